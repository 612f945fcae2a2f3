"""The traces that exchanges belong to: begun on arrival, passed on to upstreams, handed over when the exchange is over.

Without a tracing configuration none of this runs: `Exchange.trace` is None.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from proxy.core import errors
from proxy.core.tracing import Moment, TraceContext, is_sampled, received_context
from proxy.phases.spans import spans_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from proxy.core.headers import RawHeaders
    from proxy.core.tracing import Span
    from proxy.phases.forward import Answer
    from proxy.phases.record import Ending
    from proxy.phases.upstreams import Upstream


class Sender(Protocol):
    """Takes spans and sends them to where they are kept."""

    def send(self, context: TraceContext, spans: Sequence[Span]) -> None:
        """Take the spans of one exchange, its own first; never waits."""

    def close(self, patience_s: float) -> int:
        """Send what waits, for at most `patience_s` seconds; how many spans are left. Blocks."""


class Hop:
    """One request to an upstream, from its first byte to the head of the answer, or to its failure."""

    __slots__ = ("_context", "began_s", "ended_s", "error", "is_error", "served", "status", "upstream")

    def __init__(self, context: TraceContext, upstream: Upstream, served: str | None) -> None:
        self._context = context
        self.upstream = upstream
        self.served = served
        self.began_s = time.perf_counter()
        self.ended_s: float | None = None
        self.status: int | None = None
        self.error: str | None = "abandoned"  # one that was outrun may learn of it after the exchange's end
        self.is_error = False

    @property
    def span_id(self) -> int:
        """Its span."""
        return self._context.span_id

    def headers(self) -> RawHeaders:
        """What makes the upstream's spans children of this one."""
        return self._context.headers()

    async def watch(self, answering: Awaitable[Answer]) -> Answer:
        """Wait for the answer, and note when it came or why it did not. Raises what `answering` does."""
        try:
            answer = await answering
        except errors.ProxyError as failure:
            self.error = failure.kind.outcome
            self.is_error = failure.kind.blame is errors.Blame.UPSTREAM
            raise
        finally:
            self.ended_s = time.perf_counter()
        self.status = answer.stream.head.status
        self.error = None
        return answer


class Trace:
    """An exchange's part of a trace. `context` is its own span; `parent_id` the client's, 0 where there is none."""

    __slots__ = ("_tracing", "context", "hops", "parent_id")

    def __init__(self, tracing: Tracing, context: TraceContext, parent_id: int) -> None:
        self._tracing = tracing
        self.context = context
        self.parent_id = parent_id
        self.hops: list[Hop] = []

    @property
    def id(self) -> str:
        """The trace's id, as people look it up."""
        return f"{self.context.trace_id:032x}"

    def ask(self, upstream: Upstream, served: str | None) -> Hop:
        """Note that an upstream is about to be asked for the model that it calls `served`."""
        hop = Hop(self.context._replace(span_id=self._tracing.new_id(64)), upstream, served)
        self.hops.append(hop)
        return hop

    def end(self, ending: Ending) -> None:
        """Hand over the spans, if the trace is recorded. To be called once, when the exchange is over."""
        if self.context.is_sampled:
            self._tracing.end(self, ending)


class Tracing:
    """Begins and ends the traces of exchanges.

    `sample` is the share of traces begun here that are recorded; of others the client has decided. `scheme` is that of
    the API's listener. `draw_bits` gives random integers of so many bits; `unix_ns` is UNIX time in nanoseconds.
    """

    def __init__(
        self,
        sender: Sender,
        *,
        sample: float,
        scheme: str,
        draw_bits: Callable[[int], int],
        unix_ns: Callable[[], int],
    ) -> None:
        self._sender = sender
        self._sample = sample
        self._scheme = scheme
        self._draw_bits = draw_bits
        self._unix_ns = unix_ns

    def new_id(self, bits: int) -> int:
        """A new id of a trace or a span; none is 0."""
        return self._draw_bits(bits) or 1

    def begin(self, headers: RawHeaders) -> Trace:
        """The trace of an exchange that has just arrived with these headers."""
        received = received_context(headers)
        if received is not None:
            return Trace(self, received._replace(span_id=self.new_id(64)), received.span_id)
        trace_id = self.new_id(128)
        return Trace(self, TraceContext(trace_id, self.new_id(64), is_sampled(trace_id, self._sample)), 0)

    def end(self, trace: Trace, ending: Ending) -> None:
        """Hand over the spans of an exchange that ends now."""
        end = Moment(time.perf_counter(), self._unix_ns())
        self._sender.send(trace.context, spans_of(trace, ending, self._scheme, end))

    def close(self, patience_s: float) -> int:
        """Send what waits, for at most `patience_s` seconds; how many spans are left. Blocks."""
        return self._sender.close(patience_s)
