"""What is read of a JSON body is what any upstream will read, and an edit keeps every other byte."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.body import edited, members, read_metered, read_model
from proxy.core.errors import BAD_REQUEST, INVALID_TYPE, MISSING_PARAMETER, ErrorKind, ProxyError
from proxy.core.members import MAX_MEMBERS

SPACE = st.text(" \t\n\r", max_size=2).map(str.encode)
NAMES = st.text(max_size=6) | st.sampled_from(
    ["model", "stream", "stream_options", "x", 'quo"te', "back\\slash", "{[,"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


def judged(name: str) -> bool:
    amounts = {"n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens"}
    return name.casefold() in {"model", "stream", "stream_options"} | amounts


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A JSON object with one model, in any spelling and with any white space; other names may come twice."""
    others = draw(st.lists(st.tuples(NAMES.filter(lambda name: not judged(name)), VALUES), max_size=5))
    place = draw(st.integers(0, len(others)))
    separators = draw(st.sampled_from([(",", ":"), (", ", " : "), ("\n,\t", ":")]))
    texts = []
    for name, value in (*others[:place], ("model", draw(st.text(min_size=1))), *others[place:]):
        key, text = (json.dumps(x, ensure_ascii=draw(st.booleans()), separators=separators) for x in (name, value))
        if name == "model" and draw(st.booleans()):
            key = r'"mod\u0065l"'
        texts.append(b"".join((draw(SPACE), key.encode(), draw(SPACE), b":", draw(SPACE), text.encode(), draw(SPACE))))
    return draw(SPACE) + b"{" + b",".join(texts) + b"}" + draw(SPACE)


def pairs(body: bytes) -> Any:
    """The members in order, repetitions too."""
    return json.loads(body, object_pairs_hook=list)


def renamed(body: bytes, model: str) -> bytes:
    """The body with another value where `read_model` says that its model stands."""
    _, span = read_model(body)
    assert span is not None
    return edited(body, [(*span, json.dumps(model).encode())])


@given(bodies(), st.text(min_size=1))
def test_an_edit_at_the_models_span_changes_the_model_and_nothing_else(body: bytes, model: str) -> None:
    shown = renamed(body, model)
    assert pairs(shown) == [(name, model if name == "model" else value) for name, value in pairs(body)]
    assert read_model(shown)[0] == model
    assert renamed(shown, "m") == renamed(body, "m")


@given(bodies())
def test_every_member_is_found_where_it_is(body: bytes) -> None:
    found = members(body)
    assert {name: pairs(body[start:end]) for name, (start, end) in found.spans.items()} == dict(pairs(body))
    added = body[: found.insert_at] + b'"added":[1],' + body[found.insert_at :]
    assert pairs(added) == [("added", [1]), *pairs(body)]


@given(bodies())
def test_half_a_surrogate_pair_changes_nothing_for_the_others(body: bytes) -> None:
    """It makes msgspec refuse the body as it is."""
    cut = rb'"\\\ud83d\\ud83d\\\\\uDE00"'
    whole = body.rstrip()[:-1] + b',"cut":' + cut + b"}"
    found = members(whole)
    start, end = found.spans["cut"]
    assert whole[start:end] == cut
    assert {name: span for name, span in found.spans.items() if name != "cut"} == {
        name: span for name, span in members(body).spans.items() if name != "cut"
    }
    assert read_model(whole) == read_model(body)


def names_or_refusal(body: bytes) -> set[str] | ErrorKind:
    try:
        return set(members(body).spans)
    except ProxyError as error:
        return error.kind


@given(bodies(), st.data())
def test_a_damaged_body_is_refused_or_is_json_all_the_same(body: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(body) - 1))
    damaged = (
        body[:at]
        + data.draw(st.sampled_from([b"", b"\x00", b"{", b"}", b'"', b",", b"\\", b"\xff", rb"\ud83d"]))
        + body[at + 1 :]
    )
    found = names_or_refusal(damaged)
    assert found is BAD_REQUEST or found == {name for name, _ in pairs(damaged)}


@pytest.mark.parametrize(
    ("body", "model", "stream"),
    [
        (b'{"model":"m"}', b'"m"', False),
        (b'{"model":"m","stream":null,"stream_options":null}', b'"m"', False),
        (b'{"model":"m","stream":false}', b'"m"', False),
        (b' {"stream" : true , "model":"\\u006d"}\n', rb'"\u006d"', True),
        (b'{"stream_options":{"include_usage":true},"stream":true,"model":"m"}', b'"m"', True),
        (b'{"messages":[{"model":1,"stream":"x"}],"model":"m"}', b'"m"', False),
    ],
)
def test_what_a_metered_request_says(body: bytes, model: bytes, stream: object) -> None:
    request = read_metered(body)
    assert (request.model, request.stream) == ("m", stream)
    assert body[slice(*request.model_span)] == model


@pytest.mark.parametrize(
    "rest",
    [
        rb'"messages":[{"role":"user","content":"cut emoji \ud83d"}]',
        rb'"messages":[{"role":"user","content":"\ude00\ud83d \\ud83d"}]',
        b'"messages":[{"role":"user","content":"' + "ä€😀\u2028\x7f".encode() + b'"}]',
        b'"seed":' + b"9" * 6000 + b',"x":-1e999,"y":1E-400,"z":0.10000000000000000000000001',
        rb'"seed":' + b"9" * 6000 + rb',"cut":"\ud83d"',
        b'"user":1,"user":2,"user":1',
        b'"user":{"model":1,"model":2}',
        b'"modelx":1,"mode":2,"":3,"Stream_Option":4',
        b'"x":' + b"[" * 200 + b"]" * 200,
        rb'"\ud83d":1',
        rb'"\ud83d":1,"\ud83d":2,"______":3,"\\":4,"__":5',
        rb'"stream\ud83d":1,"x":"\\ud83d\\"',
        rb'"a\"b\\":"]}"',
    ],
)
def test_what_real_clients_send_is_taken_and_left_alone(rest: bytes) -> None:
    for body in (b"{" + rest + b',"model":"m"}', b'{"model":"m",' + rest + b"}"):
        assert read_metered(body).model == "m"
        assert renamed(body, "n") == body.replace(b':"m"', b':"n"')


NOT_JSON = "We could not parse the JSON body of your request."
AMBIGUOUS = "The request body has more than one member '{}'."


@pytest.mark.parametrize(
    ("body", "kind", "message", "param"),
    [
        (b"", BAD_REQUEST, "The request body is empty; it must be a JSON object.", None),
        (b" ", BAD_REQUEST, NOT_JSON, None),
        (b"model=m", BAD_REQUEST, NOT_JSON, None),
        (b'{"model":"m"', BAD_REQUEST, NOT_JSON, None),
        (b'{"model":"m"}}', BAD_REQUEST, NOT_JSON, None),
        (b'{"model":"m",}', BAD_REQUEST, NOT_JSON, None),
        (b'{"model":"m" "n":1}', BAD_REQUEST, NOT_JSON, None),
        (b'{"model":"m","x":NaN}', BAD_REQUEST, NOT_JSON, None),
        (b'{"model":"m","x":-Infinity}', BAD_REQUEST, NOT_JSON, None),
        (b'{"model":"m\n"}', BAD_REQUEST, NOT_JSON, None),
        (rb'{"model":"m","x":"\ud83d","y"}', BAD_REQUEST, NOT_JSON, None),
        (rb'{"model":"m","x":"\ud83d"{"y":1}', BAD_REQUEST, NOT_JSON, None),
        (rb',"model":"m","x":"\ud83d"}', BAD_REQUEST, NOT_JSON, None),
        (rb'{"model":"m","x":"\ud83"}', BAD_REQUEST, NOT_JSON, None),
        (rb'{"model":"m","x":\ud83d}', BAD_REQUEST, NOT_JSON, None),
        (rb'{"model":"m",\\"x":1}', BAD_REQUEST, NOT_JSON, None),
        (b"[]", BAD_REQUEST, "The request body must be a JSON object.", None),
        (b"null", BAD_REQUEST, "The request body must be a JSON object.", None),
        (b'\xef\xbb\xbf{"model":"m"}', BAD_REQUEST, "The request body must not begin with a byte order mark.", None),
        (b'{"model":"m","x":"\xff"}', BAD_REQUEST, "The request body is not valid UTF-8.", None),
        (b'{"model":"m","x":"\xed\xa0\xbd"}', BAD_REQUEST, "The request body is not valid UTF-8.", None),
        (b"[" * 100_000, BAD_REQUEST, "The request body must be a JSON object.", None),
        (b'{"x":' + b"[" * 100_000, BAD_REQUEST, "The request body is nested too deeply.", None),
        (b'{"x":' * 100_000, BAD_REQUEST, "The request body is nested too deeply.", None),
        (rb'{"a":"\ud83d","x":' + b"[" * 100_000, BAD_REQUEST, "The request body is nested too deeply.", None),
        (b"{}", MISSING_PARAMETER, "You must provide a model parameter.", "model"),
        (b'{"model":null}', MISSING_PARAMETER, "You must provide a model parameter.", "model"),
        (b'{"model":""}', MISSING_PARAMETER, "You must provide a model parameter.", "model"),
        (b'{"model":7}', INVALID_TYPE, "Invalid type for 'model': expected a string.", "model"),
        (b'{"model":["m"]}', INVALID_TYPE, "Invalid type for 'model': expected a string.", "model"),
        (rb'{"model":"\ud83d"}', BAD_REQUEST, "The value of 'model' is not valid Unicode.", "model"),
        (b'{"model":"m","stream":"true"}', INVALID_TYPE, "Invalid type for 'stream': expected a boolean.", "stream"),
        (b'{"model":"m","stream":1}', INVALID_TYPE, "Invalid type for 'stream': expected a boolean.", "stream"),
        (
            b'{"model":"m","stream":true,"stream_options":[]}',
            INVALID_TYPE,
            "Invalid type for 'stream_options': expected an object.",
            "stream_options",
        ),
        (
            b'{"model":"m","stream_options":{}}',
            BAD_REQUEST,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
        ),
        (b'{"model":"m","x":1,"model":"m"}', BAD_REQUEST, AMBIGUOUS.format("model"), "model"),
        (rb'{"model":"m","mod\u0065l":"n"}', BAD_REQUEST, AMBIGUOUS.format("model"), "model"),
        (b'{"stream":true,"model":"m","stream":false}', BAD_REQUEST, AMBIGUOUS.format("stream"), "stream"),
        (b'{"model":"m","Model":"n"}', BAD_REQUEST, "The name of member 'model' must be lower-case.", "model"),
        (rb'{"model":"","\u017ftream":1}', BAD_REQUEST, "The name of member 'stream' must be lower-case.", "stream"),
    ],
)  # fmt: skip
def test_bad_bodies_are_refused_by_the_member_at_fault(
    body: bytes, kind: ErrorKind, message: str, param: str | None
) -> None:
    with pytest.raises(ProxyError) as caught:
        read_metered(body)
    assert (caught.value.kind, caught.value.message, caught.value.param) == (kind, message, param)


def test_an_inference_request_need_not_name_a_model() -> None:
    for body in (b"{}", b'{"model":null}', b'{"model":""}'):
        assert read_model(body) == (None, None)
    assert read_model(b'{"model":"m","stream":"anything"}') == ("m", (9, 12))
    with pytest.raises(ProxyError, match="expected a string"):
        read_model(b'{"model":1}')


def test_a_repeated_name_does_not_lead_the_walk_astray() -> None:
    """By the length of the last value, the walk from the first one would end well, and wrong."""
    body = b'{"a":0,"model":"xx","a":{"q":0,"zzzzzzzzzzz":"m"}}'
    found = members(body)
    assert {name: body[slice(*span)] for name, span in found.spans.items()} == {
        "a": b'{"q":0,"zzzzzzzzzzz":"m"}',
        "model": b'"xx"',
    }


def test_an_empty_object_has_room_for_a_member() -> None:
    assert members(b" { } ").spans == {}
    assert members(b" { } ").insert_at == 3


def numbered(count: int) -> bytes:
    return b",".join(b'"k%06d":1' % number for number in range(count))


@pytest.mark.parametrize("last", [b'"z":[{"k":[1,2]}]', b'"k000000":2', rb'"z":"\ud83d"'])
def test_as_many_members_are_taken_as_are_allowed_and_no_more(last: bytes) -> None:
    def body(count: int) -> bytes:
        return b'{"model":"m",' + numbered(count - 2) + b"," + last + b"}"

    assert read_metered(body(MAX_MEMBERS)).model == "m"
    with pytest.raises(ProxyError, match=f"more than {MAX_MEMBERS} members") as caught:
        read_metered(body(MAX_MEMBERS + 1))
    assert (caught.value.kind, caught.value.param) == (BAD_REQUEST, None)


def test_members_within_members_are_not_counted() -> None:
    inner = b"{" + numbered(2 * MAX_MEMBERS) + b"}"
    assert read_model(b'{"a":' + inner + b',"model":"m","b":[' + inner + b"]}")[0] == "m"


@pytest.mark.parametrize(
    "many",
    [b'"a":1,' * 21_000, numbered(15_000) + b",", rb'"\ud83d":1,' * 12_000, b'"a":1,' * 400_000],
    ids=["repeated", "distinct", "surrogates", "long"],
)
def test_too_many_members_cost_next_to_nothing(many: bytes) -> None:
    """Over ten times what it takes, and a fourth of what reading all would."""
    body = b"{" + many + b'"model":"m"}'
    assert names_or_refusal(body) is BAD_REQUEST
    assert least_s(body) < 0.012


def test_half_a_surrogate_pair_does_not_make_a_body_slow() -> None:
    """A million bytes of small values take 5 ms; the standard library's parser would take over 100."""
    body = rb'{"model":"m","cut":"\ud83d","x":[' + b"[[[[[[1]]]]]]," * 77_000 + b"1]}"
    assert read_metered(body).model == "m"
    assert least_s(body) < 0.05


def least_s(body: bytes) -> float:
    """The processor time of this thread for looking through the body: the least of three, as garbage may come due."""
    took_s = []
    for _ in range(3):
        began_s = time.thread_time()
        names_or_refusal(body)
        took_s.append(time.thread_time() - began_s)
    return min(took_s)
