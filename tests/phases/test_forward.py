"""How the head of an answer, and if need be its first bytes, decide how the body is relayed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from proxy.core import errors
from proxy.core.headers import plain_type
from proxy.phases.forward import AnswerKind, _first_of_events, _kind
from tests.fakes.peers import FakeDownstream, FakeStream, exchange

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.phases.admit import Admission
    from proxy.phases.exchange import Treatment

_SSE = b"text/event-stream"
_JSON = b"application/json"


async def _judged(
    content_type: bytes | None,
    reads: Iterable[bytes] = (),
    *,
    status: int = 200,
    streamed: bool = True,
    treatment: Treatment = "metered",
    coding: bytes | None = None,
) -> tuple[AnswerKind, bytes]:
    headers = [(b"Content-Type", content_type)] if content_type is not None else []
    if coding is not None:
        headers.append((b"Content-Encoding", coding))
    stream = FakeStream(reads, status=status, headers=headers)
    admission = cast("Admission", SimpleNamespace(streamed=streamed))
    asked = exchange(FakeDownstream(), "chat", treatment=treatment)
    body_type = plain_type(stream.head.headers)
    kind = _kind(asked, admission, stream.head.status, body_type)
    return (kind, b"") if kind is not None else ("events", await _first_of_events(stream.watchdog, body_type))


@pytest.mark.parametrize(
    "content_type", [_SSE, b"text/event-stream; charset=utf-8", b"Text/Event-Stream;x", b" text/event-stream "]
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_the_content_type_of_events(content_type: bytes, *, streamed: bool) -> None:
    """Whoever says events gets events, without a look at the body: an empty one is not waited for."""
    assert await _judged(content_type, [b"data: x"], streamed=streamed) == ("events", b"")


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 599])
async def test_error_statuses(status: int) -> None:
    assert await _judged(_SSE, status=status) == ("error", b"")


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_redirects_are_refused(status: int) -> None:
    """A client that followed would take its key elsewhere; Sluice itself follows none."""
    with pytest.raises(errors.ProxyError) as caught:
        await _judged(_JSON, status=status)
    assert caught.value.kind is errors.UPSTREAM_PROTOCOL_ERROR


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"GZIP", b"zstd"])
@pytest.mark.parametrize("content_type", [_SSE, _JSON, None])
async def test_compressed_bodies_are_opaque(coding: bytes, content_type: bytes | None) -> None:
    assert await _judged(content_type, coding=coding) == ("opaque", b"")


@pytest.mark.parametrize("coding", [b"identity", b" Identity ", b""])
async def test_identity_is_no_coding(coding: bytes) -> None:
    assert await _judged(_SSE, coding=coding) == ("events", b"")


@pytest.mark.parametrize("how", [{"streamed": False}, {"treatment": "inference"}, {"status": 204}])
async def test_what_is_not_asked_for_as_a_stream_is_not_looked_at(how: dict[str, object]) -> None:
    assert await _judged(_JSON, [b"{}"], **how) == ("opaque", b"")  # type: ignore[arg-type]  # a table


@pytest.mark.parametrize(
    "body",
    [
        b"data: {}\n\n",
        b"data:{}",
        b": ping\n\n",
        b":\n\n",
        b"event: x\ndata: {}\n\n",
        b"id: 1\n",
        b"retry: 5\n",
        b"\n\ndata: {}\n\n",
        b"\r\n\r\ndata: {}",
        b"\xef\xbb\xbfdata: {}",
        b"data: {}\n\n" * 100,
    ],
)
@pytest.mark.parametrize("content_type", [None, b"text/plain", b"application/octet-stream"])
async def test_events_are_recognised_under_another_name(body: bytes, content_type: bytes | None) -> None:
    """In whatever pieces they come; what was taken is handed on, and no more than needed is waited for."""
    for step in (1, 2, 5, len(body)):
        reads = [body[start : start + step] for start in range(0, len(body), step)]
        kind, first = await _judged(content_type, reads)
        assert kind == "events"
        assert body.startswith(first)
        assert len(first) <= max(16, step)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (_JSON, b"data: {}\n\n"),
        (_JSON, b'{"choices":[]}'),
        (b"text/html", b"data: x"),
        (b"application/problem+json; charset=utf-8", b": x"),
        (None, b""),
        (None, b'{"data": 1}'),
        (None, b"<!DOCTYPE html>"),
        (None, b"database: down"),
        (b"text/plain", b"  data: indented"),
    ],
)
async def test_a_200_without_events_is_refused(content_type: bytes | None, body: bytes) -> None:
    for step in (1, max(1, len(body))):
        with pytest.raises(errors.ProxyError) as caught:
            await _judged(content_type, [body[start : start + step] for start in range(0, len(body), step)])
        assert caught.value.kind is errors.UPSTREAM_NOT_A_STREAM
