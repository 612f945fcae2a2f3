"""May it go on: what is read of a body, and how much of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from proxy.core import errors
from proxy.phases.admit import Admission, admit
from tests.fakes.arrived import CHAT, STATEFUL, UPLOAD, arrived, principal

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

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


async def test_what_an_admission_shows_of_itself_is_not_its_body() -> None:
    admission = await admit(arrived(pieces=[BODY]), principal(), LIMIT_BYTES)
    assert repr(admission) == f"Admission(model='m', streamed=True, body=<{len(BODY)} bytes>)"
    assert BODY.decode() not in str(admission.__rich_repr__())


async def test_a_body_that_came_in_one_piece_is_not_asked_for_more() -> None:
    exchange = arrived(pieces=[BODY, b"never read"], announced=len(BODY))
    assert (await admit(exchange, principal(), LIMIT_BYTES)).body == BODY
    assert exchange.body.received_bytes == len(BODY)


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


class CountingThreads(ThreadPoolExecutor):
    """The event loop's threads, with a count of what they were given."""

    given = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.given += 1
        return super().submit(fn, *args, **kwargs)


def threads() -> CountingThreads:
    """Those of the running loop, which ends them."""
    counting = CountingThreads(1)
    asyncio.get_running_loop().set_default_executor(counting)
    return counting


@pytest.mark.parametrize("endpoint", [CHAT, UPLOAD])
async def test_a_long_body_is_parsed_beside_the_event_loop_with_the_same_result(endpoint: Endpoint) -> None:
    counting = threads()
    assert (await admit(arrived(endpoint, pieces=[BODY]), principal(), LIMIT_BYTES)).model == "m"
    assert counting.given == 0
    long = json.dumps({"model": "m", "messages": ["x" * 300_000]}).encode()
    admission = await admit(arrived(endpoint, pieces=[long]), principal(), len(long))
    assert (admission.model, admission.body, counting.given) == ("m", long, 1)
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


async def test_what_may_inflate_to_much_is_inflated_beside_the_event_loop() -> None:
    counting = threads()
    gzipped = [(b"Content-Encoding", b"gzip")]
    small = await admit(arrived(pieces=[gzip.compress(BODY)], headers=gzipped), principal(), LIMIT_BYTES)
    assert (small.body, counting.given) == (BODY, 0)
    long = b'{"model":"m","user":"' + b"a" * 3_000_000 + b'"}'
    admission = await admit(arrived(pieces=[gzip.compress(long)], headers=gzipped), principal(), len(long))
    assert (admission.body, counting.given) == (long, 2)
    with pytest.raises(errors.ProxyError) as caught:
        await admit(arrived(pieces=[gzip.compress(long)], headers=gzipped), principal(), len(long) - 1)
    assert (caught.value.kind, counting.given) == (errors.REQUEST_TOO_LARGE, 3)


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


@pytest.mark.parametrize("name", ["n", 'quo"te\\', "org/r\u00e9al", "\u043d\u043e\u0432\u0430\u044f \U0001f30a"])
async def test_a_body_that_names_another_model_is_otherwise_the_same(name: str) -> None:
    gzipped = [(b"Content-Type", b"application/json"), (b"Content-Encoding", b"gzip")]
    start, end = b' { "messages":[{"model":"m"}],"model"\t:  ', b' ,"x":1.0}'
    text = start + rb'"\u006d"' + end
    for endpoint in (CHAT, UPLOAD):
        for exchange in (
            arrived(endpoint, pieces=[text]),
            arrived(endpoint, pieces=[gzip.compress(text)], headers=gzipped),
        ):
            admission = await admit(exchange, principal(), LIMIT_BYTES)
            assert admission.model == "m"
            naming = admission.edited(name, asks_usage=False)
            assert (naming[: len(start)], naming[-len(end) :]) == (start, end)
            assert json.loads(naming[len(start) : -len(end)]) == name
    form = await admit(arrived(UPLOAD, pieces=[MODEL_PART + FILE_PART], headers=FORM), principal(), LIMIT_BYTES)
    assert form.edited(name, asks_usage=False) == MODEL_PART.replace(b"whisper", name.encode()) + FILE_PART


@pytest.mark.parametrize("path", ["/files", "/responses/r"])
async def test_the_bodies_of_stateful_endpoints_stream_unread(path: str) -> None:
    pieces = [b"RIFF", b"x" * 2 * LIMIT_BYTES]
    exchange = arrived(STATEFUL, path=path, pieces=list(pieces), headers=FORM)
    admission = await admit(exchange, principal(endpoints=("stateful",)), LIMIT_BYTES)
    assert (admission.model, admission.body, exchange.body.received_bytes) == (None, b"", 0)
    assert admission.edited("m", asks_usage=False) == b""
    assert await rest_of(admission) == pieces


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/json",
        b"Application/JSON ; charset=utf-8",
        b"application/vnd.api+json",
        b"application/problem+JSON;x=y",
        b"text/x.a-b+json",
        None,
    ],
)
async def test_no_spelling_of_json_hides_the_model(content_type: bytes | None) -> None:
    headers = [] if content_type is None else [(b"Content-Type", content_type)]
    assert (await admit(arrived(UPLOAD, pieces=[BODY], headers=headers), principal(), LIMIT_BYTES)).model == "m"
    with pytest.raises(errors.ProxyError) as caught:
        await admit(arrived(UPLOAD, pieces=[BODY], headers=headers), principal(models=("n",)), LIMIT_BYTES)
    assert caught.value.kind is errors.MODEL_NOT_FOUND


@pytest.mark.parametrize(
    "content_type",
    [
        b"audio/wav",
        b"application/octet-stream",
        b"application/x-www-form-urlencoded",
        b"text/plain",
        b"multipart/mixed; boundary=b",
        b"application/json-seq",
        b"application/jsonl",
        b"text/json",
        b"x/y, application/a+json",
        b"multipart/form-data, application/json; boundary=b",
    ],
)
async def test_other_types_could_hide_a_model_and_are_refused_unread(content_type: bytes) -> None:
    exchange = arrived(UPLOAD, pieces=[BODY], headers=[(b"Content-Type", content_type)])
    with pytest.raises(errors.ProxyError, match="must be application/json or multipart/form-data") as caught:
        await admit(exchange, principal(), LIMIT_BYTES)
    assert (caught.value.kind, exchange.body.received_bytes) == (errors.BAD_REQUEST, 0)
    assert content_type.decode() not in caught.value.message


async def test_nothing_of_no_type_names_no_model() -> None:
    admission = await admit(arrived(UPLOAD, headers=[]), principal(), LIMIT_BYTES)
    assert (admission.model, admission.body, admission.rest) == (None, b"", None)
    assert admission.edited("m", asks_usage=False) == b""
    assert (await refused(endpoint=UPLOAD)).kind is errors.BAD_REQUEST
    assert (await refused(b"model=m", endpoint=UPLOAD, headers=[])).kind is errors.BAD_REQUEST
