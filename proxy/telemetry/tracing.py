"""Spans to an OTLP collector, by OpenTelemetry's SDK: imported only where tracing is configured.

The SDK's batch processor sends them from a thread of its own, and drops what finds no room. What is dropped or refused
is counted here, and logged once for each time that the collector is away.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from proxy import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import structlog

    from proxy.core.tracing import Span, TraceContext

# some 3 MB; at a thousand exchanges a second one second of them
MAX_WAITING_SPANS: Final = 2048
_BATCH_SPANS: Final = 512
_EXPORT_TIMEOUT_S: Final = 10.0
_TRACES_PATH: Final = "/v1/traces"
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_NO_STATE: Final = TraceState()
_FINE: Final = Status(StatusCode.UNSET)
_FAILED: Final = Status(StatusCode.ERROR)


class OtlpSender:
    """Sends spans to the collector at `endpoint`, with `headers`. `lost` is told of spans that it does not get.

    `resource` says whose spans they are, beside what OTEL_RESOURCE_ATTRIBUTES says. They gather for `delay_s`.
    """

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str],
        resource: Mapping[str, str],
        *,
        log: structlog.typing.FilteringBoundLogger,
        lost: Callable[[int], None],
        delay_s: float = 1.0,
    ) -> None:
        # the SDK logs every batch that fails
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        self._resource = Resource.create(dict(resource))
        self._scope = InstrumentationScope("sluice", __version__)
        self._lost = lost
        exporter = OTLPSpanExporter(traces_url(endpoint), headers=dict(headers), timeout=_EXPORT_TIMEOUT_S)
        self._watched = _Watched(exporter, log, lost)
        self._batches = BatchSpanProcessor(
            self._watched,
            max_queue_size=MAX_WAITING_SPANS,
            schedule_delay_millis=delay_s * 1000,
            max_export_batch_size=_BATCH_SPANS,
        )
        self._taken = 0

    @property
    def waiting(self) -> int:
        """Spans that were taken and not sent yet."""
        return self._taken - self._watched.done

    def send(self, context: TraceContext, spans: Sequence[Span]) -> None:
        """Take the spans of one exchange, its own first; drop them where too many wait. Never waits."""
        if self.waiting + len(spans) > MAX_WAITING_SPANS:  # else the SDK would drop others, and tell nobody
            self._lost(len(spans))
            return
        self._taken += len(spans)
        state = TraceState.from_header([context.state.decode("latin-1")]) if context.state else _NO_STATE
        for span in spans:
            self._batches.on_end(self._readable(context.trace_id, state, span))

    def close(self, patience_s: float) -> int:
        """Send what waits, for at most `patience_s` seconds; how many spans are left. Blocks."""
        # a daemon: a collector that hangs must not hold up the process's end
        closing = threading.Thread(target=self._batches.shutdown, name="spans' end", daemon=True)
        closing.start()
        closing.join(patience_s)
        if closing.is_alive():
            self._watched.shutdown()  # ends the pause before the next try
        return self.waiting

    def _readable(self, trace_id: int, state: TraceState, span: Span) -> ReadableSpan:
        """The span in the SDK's terms. Its tracer would take the time from a clock, and ids from a generator."""
        parent = None
        if span.parent_id:
            parent = SpanContext(trace_id, span.parent_id, not span.is_client, _SAMPLED, state)
        return ReadableSpan(
            span.name,
            SpanContext(trace_id, span.span_id, False, _SAMPLED, state),  # is_remote
            parent,
            self._resource,
            span.attributes,
            () if span.first_byte_ns is None else (Event("first_byte", timestamp=span.first_byte_ns),),
            kind=SpanKind.CLIENT if span.is_client else SpanKind.SERVER,
            status=_FAILED if span.is_error else _FINE,
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


class _Watched(SpanExporter):
    """An exporter whose results are counted; called in the SDK's thread."""

    def __init__(
        self, exporter: SpanExporter, log: structlog.typing.FilteringBoundLogger, lost: Callable[[int], None]
    ) -> None:
        self.done = 0  # sent or lost
        self._exporter = exporter
        self._log = log
        self._lost = lost
        self._is_away = False
        self._is_closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; try again for a while where the collector says that it is busy, or says nothing."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self.done += len(spans)
            if result is SpanExportResult.SUCCESS:
                self._told(is_away=False)
            else:
                self._lost(len(spans))
                self._told(is_away=True)
        return result

    def shutdown(self) -> None:
        """End."""
        if not self._is_closed:
            self._is_closed = True
            self._exporter.shutdown()

    def _told(self, *, is_away: bool) -> None:
        if is_away == self._is_away:
            return
        self._is_away = is_away
        if is_away:
            self._log.warning("spans are lost: the collector of traces does not take them")
        else:
            self._log.info("the collector of traces takes spans again")


def traces_url(endpoint: str) -> str:
    """Where spans go: collectors are named by their base URL as a rule, and by the whole one by some."""
    endpoint = endpoint.rstrip("/")
    return endpoint if endpoint.endswith(_TRACES_PATH) else endpoint + _TRACES_PATH
