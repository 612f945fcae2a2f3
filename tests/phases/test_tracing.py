"""Hops: what each end of a request to an upstream is called, and one that is still under way when the exchange ends."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from proxy.core import errors
from proxy.core.tracing import Moment
from proxy.phases.record import Findings, ending_of
from proxy.phases.spans import provider_of, spans_of
from proxy.phases.tracing import Trace, Tracing
from tests.fakes.arrived import arrived
from tests.fakes.routes import upstream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from proxy.core.tracing import Span, TraceContext
    from proxy.phases.forward import Answer

UP = upstream(pool=SimpleNamespace(origin=SimpleNamespace(host="127.0.0.1", port=8000)))


class Kept:
    """A sender that keeps what it is given."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def send(self, context: TraceContext, spans: Sequence[Span]) -> None:
        self.spans += spans

    def close(self, patience_s: float) -> int:
        return 0


def begun(*drawn: int) -> tuple[Trace, Kept]:
    """A trace whose ids are `drawn` and then count on from 1."""
    ids = [*drawn, *range(1, 10)]
    kept = Kept()
    tracing = Tracing(kept, sample=1.0, scheme="https", draw_bits=lambda _: ids.pop(0), unix_ns=lambda: 10**18)
    return tracing.begin([]), kept


async def raising(error: BaseException) -> Answer:
    raise error


async def answered(status: int) -> Answer:
    return cast("Answer", SimpleNamespace(stream=SimpleNamespace(head=SimpleNamespace(status=status))))


async def told(answering: Awaitable[Answer]) -> Span:
    """The span of a request that ended so."""
    trace, kept = begun()
    hop = trace.ask(UP, "m")
    with contextlib.suppress(errors.ProxyError, asyncio.CancelledError, ConnectionError):
        await hop.watch(answering)
    trace.end(ending_of(arrived(), Findings()))
    return kept.spans[1]


@pytest.mark.parametrize(
    ("answering", "error_type", "is_error"),
    [
        (lambda: answered(200), None, False),
        (lambda: answered(404), "404", True),
        (lambda: raising(errors.ProxyError(errors.UPSTREAM_TIMEOUT, "late")), "upstream_timeout", True),
        (lambda: raising(errors.ProxyError(errors.BAD_REQUEST, "short")), "bad_request", False),
        (lambda: raising(ConnectionResetError()), "abandoned", False),
        (lambda: raising(asyncio.CancelledError()), "abandoned", False),
    ],
    ids=["answered", "refused", "late", "the client's fault", "the client left", "outrun"],
)
async def test_every_end_has_its_name(answering: Any, error_type: str | None, is_error: bool) -> None:
    span = await told(answering())
    assert (span.attributes.get("error.type"), span.is_error) == (error_type, is_error)
    assert (span.first_byte_ns is None) == (error_type not in (None, "404"))
    assert span.start_ns <= span.end_ns <= 10**18


def test_one_that_learns_of_its_end_after_the_exchange_is_abandoned_and_ends_with_it() -> None:
    exchange = arrived()
    trace, kept = begun()
    trace.ask(UP, "m")
    trace.end(ending_of(exchange, Findings()))
    served, asked = kept.spans
    assert (asked.attributes["error.type"], asked.is_error, asked.first_byte_ns) == ("abandoned", False, None)
    assert served.start_ns <= asked.start_ns < asked.end_ns == served.end_ns


def test_no_id_is_zero() -> None:
    trace, _ = begun(0, 0)
    assert (trace.context.trace_id, trace.context.span_id) == (1, 1)


def test_an_exchange_that_came_nowhere_has_a_span() -> None:
    trace, _ = begun(0xA, 0xB)
    (span,) = spans_of(trace, ending_of(arrived(), Findings()), "https", Moment(0.0, 10**18))
    assert (span.parent_id, span.attributes["url.scheme"], span.is_error) == (0, "https", True)


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("api.openai.com", "openai"),
        ("eu.api.openai.com", "openai"),
        ("acme.openai.azure.com", "azure.ai.openai"),
        ("bedrock-runtime.eu-west-1.amazonaws.com", "aws.bedrock"),
        ("europe-west1-aiplatform.googleapis.com", "gcp.vertex_ai"),
        ("10.0.0.1", "ours"),
        ("openai.com.example", "ours"),
    ],
)
def test_a_provider_goes_by_its_host_and_else_by_its_name(host: str, provider: str) -> None:
    assert provider_of(host, "ours") == provider
