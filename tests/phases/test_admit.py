"""May it go on: what is read of a body, how much of it, and what the plan says of endpoint and model."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest

from proxy.core import errors
from proxy.phases.admit import Admission, admit
from tests.fakes.arrived import CHAT, RESPONSES, STATEFUL, UPLOAD, arrived, principal

if TYPE_CHECKING:
    from proxy.phases.exchange import Endpoint

LIMIT_BYTES = 10_000
BODY = b'{"model":"m","stream":true}'
FORM = [(b"Content-Type", b"multipart/form-data; boundary=b")]
MODEL_PART = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
FILE_PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'


async def refused(*pieces: bytes, endpoint: Endpoint = CHAT, **how: object) -> errors.ProxyError:
    exchange = arrived(endpoint, pieces=list(pieces), **how)  # type: ignore[arg-type]
    with pytest.raises(errors.ProxyError) as caught:
        await admit(exchange, principal(), LIMIT_BYTES)
    return caught.value


async def rest_of(admission: Admission) -> list[bytes]:
    assert admission.rest is not None
    return [piece async for piece in admission.rest]


@pytest.mark.parametrize("pieces", [[BODY], [BODY[:5], BODY[5:]], [BODY[at : at + 1] for at in range(len(BODY))]])
async def test_a_metered_body_is_read_whole_however_it_comes(pieces: list[bytes]) -> None:
    admission = await admit(arrived(pieces=pieces), principal(), LIMIT_BYTES)
    assert (admission.model, admission.streamed, admission.body, admission.rest) == ("m", True, BODY, None)


async def test_the_announced_length_is_judged_before_anything_is_read() -> None:
    exchange = arrived(pieces=[BODY], announced=LIMIT_BYTES + 1)
    with pytest.raises(errors.ProxyError) as caught:
        await admit(exchange, principal(), LIMIT_BYTES)
    assert caught.value.kind is errors.REQUEST_TOO_LARGE
    assert exchange.body.received_bytes == 0


async def test_reading_stops_at_the_limit() -> None:
    exchange = arrived(pieces=[b"x" * 1000] * 1000)
    with pytest.raises(errors.ProxyError) as caught:
        await admit(exchange, principal(), LIMIT_BYTES)
    assert caught.value.kind is errors.REQUEST_TOO_LARGE
    assert exchange.body.received_bytes <= LIMIT_BYTES + 1000


async def test_one_piece_over_the_limit_is_too_much_as_well() -> None:
    assert (await refused(b"x" * (LIMIT_BYTES + 1))).kind is errors.REQUEST_TOO_LARGE


async def test_a_long_body_is_parsed_beside_the_event_loop_with_the_same_result() -> None:
    long = json.dumps({"model": "m", "messages": ["x" * 300_000]}).encode()
    admission = await admit(arrived(pieces=[long]), principal(), len(long))
    assert (admission.model, admission.body) == ("m", long)
    with pytest.raises(errors.ProxyError) as caught:
        await admit(arrived(pieces=[long + b"}"]), principal(), len(long) + 1)
    assert caught.value.kind is errors.BAD_REQUEST


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        (b"gzip", gzip.compress(BODY, mtime=0)),
        (b"X-GZIP", gzip.compress(BODY, mtime=0)),
        (b"deflate", zlib.compress(BODY)),
        (b"identity", BODY),
    ],
)
async def test_content_encodings_are_read_through(coding: bytes, packed: bytes) -> None:
    admission = await admit(arrived(pieces=[packed], headers=[(b"Content-Encoding", coding)]), principal(), LIMIT_BYTES)
    assert (admission.model, admission.body, admission.inflated) == ("m", BODY, coding != b"identity")


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"compress"])
async def test_other_content_encodings_are_refused(coding: bytes) -> None:
    error = await refused(BODY, headers=[(b"Content-Encoding", coding)])
    assert error.kind is errors.BAD_REQUEST
    assert coding.decode() not in error.message


@pytest.mark.parametrize("size", [LIMIT_BYTES + 1, 100 * LIMIT_BYTES])
async def test_what_inflates_beyond_the_limit_is_too_large(size: int) -> None:
    bomb = gzip.compress(b" " * size, mtime=0)
    assert len(bomb) < LIMIT_BYTES
    assert (await refused(bomb, headers=[(b"Content-Encoding", b"gzip")])).kind is errors.REQUEST_TOO_LARGE


async def test_a_bomb_is_not_inflated_to_be_judged() -> None:
    bomb = gzip.compress(bytes(20_000_000), compresslevel=1)
    exchange = arrived(pieces=[bomb], headers=[(b"Content-Encoding", b"gzip")])
    tracemalloc.start()
    try:
        with pytest.raises(errors.ProxyError) as caught:
            await admit(exchange, principal(), len(bomb))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.kind is errors.REQUEST_TOO_LARGE
    assert peak_bytes < 10 * len(bomb) < 2_000_000


async def test_of_an_upload_as_much_is_read_as_names_the_model() -> None:
    file = [b"x" * 1000] * 100
    exchange = arrived(UPLOAD, pieces=[MODEL_PART + FILE_PART, *file, b"\r\n--b--\r\n"], headers=FORM)
    admission = await admit(exchange, principal(), LIMIT_BYTES)
    assert (admission.model, admission.body) == ("whisper", MODEL_PART + FILE_PART)
    assert admission.model_span is not None
    assert admission.body[slice(*admission.model_span)] == b"whisper"
    assert await rest_of(admission) == [*file, b"\r\n--b--\r\n"]


async def test_an_upload_whose_model_comes_last_is_held_up_to_the_limit() -> None:
    short = [FILE_PART, b"x" * 1000, b"\r\n", MODEL_PART, b"--b--\r\n"]
    admission = await admit(arrived(UPLOAD, pieces=list(short), headers=FORM), principal(), LIMIT_BYTES)
    held = admission.body + b"".join(await rest_of(admission))
    assert (admission.model, held) == ("whisper", b"".join(short))
    error = await refused(FILE_PART, *[b"x" * 1000] * 100, endpoint=UPLOAD, headers=FORM)
    assert error.kind is errors.REQUEST_TOO_LARGE


async def test_an_upload_without_a_model_goes_to_the_default() -> None:
    pieces = [FILE_PART, b"x\r\n--b--\r\n"]
    admission = await admit(arrived(UPLOAD, pieces=list(pieces), headers=FORM), principal(), LIMIT_BYTES)
    assert (admission.model, admission.body, admission.rest) == (None, b"".join(pieces), None)


async def test_a_second_model_in_the_rest_of_an_upload_ends_it() -> None:
    exchange = arrived(UPLOAD, pieces=[MODEL_PART + b"--b\r\n", MODEL_PART[5:] + b"--b--\r\n"], headers=FORM)
    admission = await admit(exchange, principal(), LIMIT_BYTES)
    with pytest.raises(errors.ProxyError) as caught:
        await rest_of(admission)
    assert (caught.value.kind, caught.value.param) == (errors.BAD_REQUEST, "model")


async def test_bodies_without_a_readable_model_stream_unread() -> None:
    for endpoint, headers in ((UPLOAD, [(b"Content-Type", b"audio/wav")]), (STATEFUL, FORM)):
        pieces = [b"RIFF", b"x" * 2 * LIMIT_BYTES]
        exchange = arrived(endpoint, pieces=list(pieces), headers=headers)
        admission = await admit(exchange, principal(endpoints=("inference", "stateful")), LIMIT_BYTES)
        assert (admission.model, admission.body, exchange.body.received_bytes) == (None, b"", 0)
        assert await rest_of(admission) == pieces


@pytest.mark.parametrize(
    ("endpoints", "endpoint", "path", "allowed"),
    [
        (("inference",), CHAT, None, True),
        (("inference",), UPLOAD, None, True),
        (("inference",), STATEFUL, "/files", False),
        (("stateful",), STATEFUL, "/files", True),
        (("stateful",), CHAT, None, False),
        (("/files*",), STATEFUL, "/files/f-1", True),
        (("files*",), STATEFUL, "/files/f-1", True),
        (("/files*",), STATEFUL, "/batches", False),
        (("/chat/*",), CHAT, None, True),
        (("/chat/*",), RESPONSES, None, False),
        (("audio/*",), UPLOAD, None, True),
    ],
)
async def test_endpoints_are_what_the_plan_names(
    endpoints: tuple[str, ...], endpoint: Endpoint, path: str | None, allowed: bool
) -> None:
    exchange = arrived(endpoint, pieces=[BODY], path=path)
    holder = principal(endpoints=endpoints)
    if allowed:
        assert (await admit(exchange, holder, LIMIT_BYTES)).principal is holder
    else:
        with pytest.raises(errors.ProxyError) as caught:
            await admit(exchange, holder, LIMIT_BYTES)
        assert caught.value.kind is errors.ENDPOINT_NOT_ALLOWED
        assert exchange.body.received_bytes == 0
        assert path is None or path not in caught.value.message


@pytest.mark.parametrize(
    ("endpoint", "kind", "param"),
    [(CHAT, errors.MODEL_NOT_FOUND, None), (RESPONSES, errors.MODEL_NOT_FOUND_RESPONSES, "model")],
)
async def test_a_model_outside_the_plan_does_not_exist(
    endpoint: Endpoint, kind: errors.ErrorKind, param: str | None
) -> None:
    with pytest.raises(errors.ProxyError) as caught:
        await admit(arrived(endpoint, pieces=[BODY]), principal(models=("other", "n*")), LIMIT_BYTES)
    assert (caught.value.kind, caught.value.param) == (kind, param)


async def test_a_long_model_name_is_not_repeated_whole() -> None:
    body = json.dumps({"model": "x" * 5000}).encode()
    with pytest.raises(errors.ProxyError) as caught:
        await admit(arrived(pieces=[body]), principal(models=("other",)), LIMIT_BYTES)
    assert len(caught.value.message) < 300
