"""The `model` of a form is found while it streams, and a form that could be read differently is refused."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import BAD_REQUEST, ProxyError
from proxy.core.multipart import MAX_MODEL_BYTES, MAX_PARTS, MAX_SEMICOLONS, ModelFinder

BOUNDARY = b"----formdata-undici-0123456789"
CONTENT_TYPE = b"multipart/form-data; boundary=" + BOUNDARY
MODEL = b'Content-Disposition: form-data; name="model"'


def form(*parts: tuple[bytes, bytes], boundary: bytes = BOUNDARY, end: bytes = b"--\r\n") -> bytes:
    texts = [b"--" + boundary + b"\r\n" + headers + b"\r\n\r\n" + value + b"\r\n" for headers, value in parts]
    return b"".join(texts) + b"--" + boundary + end


def audio(value: bytes) -> tuple[bytes, bytes]:
    return (
        b'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: application/octet-stream',
        value,
    )


def field(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    return b'Content-Disposition: form-data; name="' + name + b'"', value


def found(parts: list[bytes], content_type: bytes = CONTENT_TYPE) -> tuple[str | None, tuple[int, int] | None]:
    finder = ModelFinder(content_type)
    for part in parts:
        finder.feed(part)
    return finder.model, finder.span


def outcome(parts: list[bytes]) -> Any:
    try:
        return found(parts)
    except ProxyError as error:
        return error.kind, error.message, error.param


NEARLY_BOUNDARIES = st.sampled_from([b"\r\n", b"\r", b"--", b"\r\n--", b"\r\n--" + BOUNDARY[:9], b"-", b"x", b"\n"])
CONTENTS = st.lists(NEARLY_BOUNDARIES | st.binary(max_size=8), max_size=6).map(b"".join)
MODELS = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=20)
CUTS = st.lists(st.integers(1, 500), max_size=6)


def cut(body: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(body), *(c for c in cuts if c < len(body))})
    return [body[a:b] for a, b in itertools.pairwise(places)]


@given(MODELS, st.lists(CONTENTS, min_size=2, max_size=2), CUTS, st.booleans())
def test_whole_byte_by_byte_and_at_any_cut_the_same_model_is_found(
    model: str, contents: list[bytes], cuts: list[int], last: object
) -> None:
    value = model.encode()
    parts = [audio(contents[0]), field(b"prompt", contents[1])]
    parts.insert(2 if last else 0, (MODEL, value))
    body = form(*parts)
    start = body.index(MODEL + b"\r\n\r\n") + len(MODEL) + 4
    expected = (model, (start, start + len(value))) if model else (None, None)
    assert found([body]) == expected
    assert found([body[i : i + 1] for i in range(len(body))]) == expected
    assert found(cut(body, cuts)) == expected


@given(CONTENTS, CUTS)
def test_what_is_in_the_model_field_is_found_or_refused_at_any_cut_alike(content: bytes, cuts: list[int]) -> None:
    body = form((MODEL, content), audio(b"x"))
    whole = outcome([body])
    assert outcome([body[i : i + 1] for i in range(len(body))]) == whole
    assert outcome(cut(body, cuts)) == whole
    if any(byte < 32 for byte in content):
        assert whole[0] is BAD_REQUEST
    if isinstance(whole[1], tuple):
        assert body[slice(*whole[1])] == content


@given(st.binary(max_size=60), CUTS)
def test_no_bytes_crash_it(noise: bytes, cuts: list[int]) -> None:
    body = form(audio(b"x"), (MODEL, b"m"))
    damaged = body[: len(noise) * 3] + noise + body[len(noise) * 4 :]
    assert outcome(cut(damaged, cuts)) is not None


def test_the_model_is_known_as_soon_as_its_field_is_complete() -> None:
    body = form((MODEL, b"whisper-1"), audio(b"x" * 100))
    known = body.index(b'\r\nContent-Disposition: form-data; name="file"') + 2
    finder = ModelFinder(CONTENT_TYPE)
    finder.feed(body[: known - 1])
    assert (finder.model, finder.span) == (None, None)
    finder.feed(body[known - 1 : known])
    assert finder.model == "whisper-1"
    finder.feed(body[known:])
    assert finder.span
    assert body[slice(*finder.span)] == b"whisper-1"


@pytest.mark.parametrize(
    "headers",
    [
        b"content-disposition:form-data;name=model",
        b'CONTENT-DISPOSITION: form-data ; NAME = "model"',
        b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"',
        b'Content-Disposition: form-data; name="model"; x="; filename=y"',
    ],
)
def test_spellings_of_the_field_that_all_parsers_read_alike(headers: bytes) -> None:
    assert found([form((headers, b"m"))])[0] == "m"


@pytest.mark.parametrize(
    "headers",
    [
        b'Content-Disposition: form-data; name="model"; filename="m.txt"',
        b'Content-Disposition: form-data; name="model"; filename="m.txt"; filename*=utf-8\'\'m.txt',
        b'Content-Disposition: form-data; name="models"',
        b'Content-Disposition: form-data; name="model[]"',
        b"Content-Disposition: form-data",
        b'Content-Disposition:\r\nX-Name: form-data; name="model"',
        b'X-Disposition: form-data; name="model"',
    ],
)
def test_other_parts_are_not_the_model(headers: bytes) -> None:
    assert found([form((headers, b"no"), (MODEL, b"m"))])[0] == "m"


@pytest.mark.parametrize(
    "headers",
    [
        b'Content-Disposition: form-data; name="x"; name="model"',
        b'Content-Disposition: form-data; name="model"; Name=x',
        b"Content-Disposition: form-data; name*=utf-8''model",
        b'Content-Disposition: form-data; name="x"; name*0=model',
        b'Content-Disposition: form-data; name="model"; filename=""',
        b"Content-Disposition: form-data; name=\"model\"; FileName*=utf-8''x",
        b'Content-Disposition: attachment; name="model"',
        b"Content-Disposition: form-data; name='model'",
        b'Content-Disposition: form-data; name="mo\\del"',
        b'Content-Disposition: form-data; name="Model"',
        b'Content-Disposition: form-data; name="x"\r\ncontent-disposition: form-data; name="model"',
    ],
)
def test_a_part_that_parsers_may_read_differently_is_refused(headers: bytes) -> None:
    with pytest.raises(ProxyError, match=r"ambiguous Content-Disposition") as caught:
        found([form((headers, b"m"))])
    assert caught.value.kind is BAD_REQUEST


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (form((MODEL, b"a"), audio(b"x"), (MODEL, b"a")), "The form has more than one field 'model'.", "model"),
        (form((MODEL, b""), (MODEL, b"a")), "The form has more than one field 'model'.", "model"),
        (form((MODEL, b"m" * 257)), "The field 'model' is longer than 256 bytes.", "model"),
        (form((MODEL, b"m\r\nx")), "The field 'model' contains control characters.", "model"),
        (form((MODEL, b"\r\n--m")), "The field 'model' contains control characters.", "model"),
        (form((MODEL, b"\xff")), "The field 'model' is not valid UTF-8.", "model"),
        (
            form((b'X: a\nContent-Disposition: form-data; name="model"', b"m")),
            "A header in the form contains a line feed.",
            None,
        ),
        (b"hello", "We could not parse the multipart body of your request.", None),
        (form((b"No colon", b"")), "We could not parse the multipart body of your request.", None),
        (form((b"X: " + b"a" * 5000, b"")), "We could not parse the multipart body of your request.", None),
        (form((b"\r\n".join([b"X: a"] * 9), b"")), "We could not parse the multipart body of your request.", None),
        (form((MODEL, b"m"), end=b" x"), "We could not parse the multipart body of your request.", None),
    ],
)
def test_bad_forms_are_refused_whole_and_byte_by_byte(body: bytes, message: str, param: str | None) -> None:
    assert outcome([body]) == (BAD_REQUEST, message, param)
    assert outcome([body[i : i + 1] for i in range(len(body))]) == (BAD_REQUEST, message, param)


def test_as_many_parts_are_taken_as_are_allowed_and_no_more() -> None:
    fields = [field(b"x", b"")] * (MAX_PARTS - 1)
    assert found([form(*fields, (MODEL, b"m"))])[0] == "m"
    assert found([form((MODEL, b"m"), *fields)])[0] == "m"
    for parts in ([*fields, field(b"x", b""), (MODEL, b"m")], [(MODEL, b"m"), *fields, field(b"x", b"")]):
        body = form(*parts)
        refusal = (BAD_REQUEST, f"The form has more than {MAX_PARTS} parts.", None)
        assert outcome([body]) == refusal
        assert outcome([body[i : i + 1] for i in range(len(body))]) == refusal


def test_a_file_name_with_semicolons_is_taken_within_reason() -> None:
    """They are what its parser takes long for."""
    named = b'Content-Disposition: form-data; name="file"; filename="%s"'
    assert found([form((named % (b";" * (MAX_SEMICOLONS - 2)), b""), (MODEL, b"m"))])[0] == "m"
    with pytest.raises(ProxyError, match=f"more than {MAX_SEMICOLONS} semicolons"):
        found([form((named % (b";" * (MAX_SEMICOLONS - 1)), b""), (MODEL, b"m"))])
    with pytest.raises(ProxyError, match=f"more than {MAX_SEMICOLONS} semicolons"):
        ModelFinder(CONTENT_TYPE + b";" * MAX_SEMICOLONS)


SEMICOLONS = b'--b\r\nContent-Disposition: form-data; name="f%s\r\n\r\n\r\n' % (b";" * 4000)


@pytest.mark.parametrize(
    "unit",
    [b"--b\r\nA: b\r\n\r\n\r\n", b"--b\r\n\r\n\r\n", SEMICOLONS, b"--b\r\n\r\n" + b"\r\n--bX" * 22_000],
    ids=["small", "without headers", "semicolons", "nearly delimiters"],
)
def test_no_form_takes_long_to_refuse(unit: bytes) -> None:
    """The processor time of this thread for what may come in one read: the least of three, as garbage may come due."""
    hostile = unit * (131_072 // len(unit) + 1)
    took_s = []
    for _ in range(3):
        finder = ModelFinder(b"multipart/form-data; boundary=b")
        began_s = time.thread_time()
        with pytest.raises(ProxyError):
            finder.feed(hostile)
        took_s.append(time.thread_time() - began_s)
    assert min(took_s) < 0.006


def test_a_model_of_the_largest_size_is_taken() -> None:
    assert found([form((MODEL, b"m" * MAX_MODEL_BYTES))])[0] == "m" * MAX_MODEL_BYTES


@pytest.mark.parametrize("end", [b"--", b"--\r\nepilogue", b"--\r\n" * 3])
def test_what_follows_the_closing_boundary_does_not_matter(end: bytes) -> None:
    assert found([form((MODEL, b"m"), end=end)])[0] == "m"


def test_a_form_that_breaks_off_has_no_model_yet() -> None:
    assert found([form((MODEL, b"m"))[:-8]]) == (None, None)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"Multipart/Form-Data;Boundary=abc", b"abc"),
        (b'multipart/form-data; charset=utf-8; boundary="a b:c"', b"a b:c"),
        (b"multipart/form-data; boundary=" + b"x" * 70, b"x" * 70),
    ],
)
def test_boundaries_that_clients_use(content_type: bytes, boundary: bytes) -> None:
    assert found([form((MODEL, b"m"), boundary=boundary)], content_type)[0] == "m"


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/mixed; boundary=abc",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b"multipart/form-data; boundary=" + b"x" * 71,
        b'multipart/form-data; boundary="ends in space "',
        b"multipart/form-data; boundary=a\xff",
        b"multipart/form-data; boundary=a; boundary=b",
        b"multipart/form-data; boundary=a; boundary*=utf-8''b",
    ],
)
def test_a_content_type_without_a_usable_boundary_is_refused(content_type: bytes) -> None:
    with pytest.raises(ProxyError, match=r"multipart/form-data with a boundary") as caught:
        ModelFinder(content_type)
    assert caught.value.kind is BAD_REQUEST
