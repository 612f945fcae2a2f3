"""Prometheus metrics: every name, label and bucket in one class.

Labels come from the configuration or from enumerations, never from what a client sent; histograms never carry the key,
because each of their label sets is some fifteen series. Even so every metric is capped: past the cap a new label set
counts under `other`, so that no mistake of a caller can grow the process without bound.
"""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from proxy import __version__
from proxy.telemetry.inter_events import InterEvents
from proxy.telemetry.loop_lag import EventLoopLag
from proxy.telemetry.merging import Snapshots
from proxy.telemetry.plain import PlainCounter, PlainGauge, PlainHistogram, Series, Tally
from proxy.telemetry.quotas import QuotaMetrics
from proxy.telemetry.routing import RoutingMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from proxy.core.usage import Usage

ExchangeLabels = tuple[str, str, str, str, int, str, bool, str]
"""Of an exchange that ended: key, model, endpoint, outcome, status, upstream, whether it was streamed, and the grade.

The key's id and the configured name or pattern of the model that matched; empty where it did not come so far.
"""

# 10,000 label sets of a counter take some 0.3 s to render, of a histogram 3 s (libraries.md section 6)
_MAX_COUNTER_LABEL_SETS: Final = 10_000
_MAX_HISTOGRAM_LABEL_SETS: Final = 1_000

# a first token takes 0.2 to 3 s as a rule; a reasoning model thinks for minutes; `first_byte` ends it at 600 s
_FIRST_BYTE_BUCKETS_S: Final = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 60, 120, 300, 600)
# an answer is a second of embeddings or half an hour of tokens
_DURATION_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)
# the promise is 1 ms at the median and 3 ms at p99; the upper end is a slowly uploaded body
_OVERHEAD_BUCKETS_S: Final = (0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30)
_LAG_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
# a disk that syncs takes 1 ms, a database elsewhere 10; five seconds is where waiting ends
_COMMIT_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class CountsDrops(Protocol):
    """Something that counts the log lines it had to drop."""

    @property
    def dropped(self) -> int:
        """Lines dropped so far."""


class _Ended(msgspec.Struct, frozen=True):
    """What exchanges with the same labels count in."""

    requests: Tally
    duration: Series
    first_byte: Series
    overhead: Series
    input: Tally
    output: Tally
    cost: Tally


class Metrics:
    """What Sluice counts. Its methods are cheap and are called from the event loop; `render` may run in a thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # `_created` samples would double the series of every counter, and nothing here reads them
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library left it unannotated
        self._registry = registry
        self._snapshots = Snapshots(registry)
        self.routing = RoutingMetrics(registry)
        self.quotas = QuotaMetrics(registry, time.monotonic)
        self.inter_events = InterEvents()
        registry.register(self.inter_events)
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self._define_exchanges()
        self._define_backpressure()
        self._define_accounting()
        lag = "How late a timer of the event loop fired."
        self._lag = Histogram("sluice_event_loop_lag_seconds", lag, registry=registry, buckets=_LAG_BUCKETS_S)
        lost = "Spans of traces that no collector took."
        self.spans_lost = Counter("sluice_spans_lost_total", lost, registry=registry).inc
        build = Gauge("sluice_build_info", "Always 1; the labels tell.", ("version", "python"), registry=registry)
        build.labels(__version__, platform.python_version()).set(1)

    def _define_exchanges(self) -> None:
        self._ended: dict[ExchangeLabels, _Ended] = {}
        exchange = ("key", "model", "endpoint", "outcome", "status")
        answer = ("model", "upstream", "streamed")
        self._requests = self._counter("sluice_requests_total", "Exchanges that ended.", exchange)
        self._first_byte = self._histogram(
            "sluice_time_to_first_byte_seconds",
            "From the request's arrival to the first body byte downstream.",
            answer,
            _FIRST_BYTE_BUCKETS_S,
        )
        self._duration = self._histogram(
            "sluice_duration_seconds", "From the request's arrival to its end.", answer, _DURATION_BUCKETS_S
        )
        self._overhead = self._histogram(
            "sluice_overhead_seconds",
            "Time in Sluice before the request went upstream.",
            ("endpoint",),
            _OVERHEAD_BUCKETS_S,
        )
        self._in_flight = PlainGauge("sluice_exchanges_in_flight", "Exchanges under way.", "phase", self._registry)
        self._aborts = self._counter("sluice_aborts_total", "Exchanges cut before their end.", ("phase", "by"))
        self._auth_failures = self._counter(
            "sluice_auth_failures_total", "Requests without a good key, by how they were answered.", ("result",)
        )

    def _define_backpressure(self) -> None:
        self._pauses = self._counter(
            "sluice_backpressure_pauses_total", "Times a slow client made an upstream wait.", ("upstream",)
        )
        self._paused_seconds = self._counter(
            "sluice_backpressure_seconds_total", "Time upstreams waited for slow clients.", ("upstream",)
        )

    def _define_accounting(self) -> None:
        self._tokens = self._counter(
            "sluice_tokens_total",
            "Tokens charged; no token is of two kinds.",
            ("key", "model", "kind", "grade"),
        )
        self._cost = self._counter("sluice_cost_usd_total", "Money charged, in USD.", ("key", "model"))
        self._unpriced = self._counter(
            "sluice_unpriced_exchanges_total", "Exchanges charged nothing because nobody knows a price.", ("model",)
        )
        faults = "Answers that should have been readable for accounting and were not."
        self._accounting_faults = Counter("sluice_accounting_faults_total", faults, registry=self._registry)
        self._commit = Histogram(
            "sluice_ledger_commit_seconds",
            "A group of rows from its first statement to the end of its commit.",
            registry=self._registry,
            buckets=_COMMIT_BUCKETS_S,
        )
        self._ledger_queue = Gauge(
            "sluice_ledger_queue", "Rows opened or settled that are not committed yet.", registry=self._registry
        )

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...]) -> PlainCounter:
        return PlainCounter(name, documentation, labels, self._registry, max_label_sets=_MAX_COUNTER_LABEL_SETS)

    def _histogram(
        self, name: str, documentation: str, labels: tuple[str, ...], buckets_s: tuple[float, ...]
    ) -> PlainHistogram:
        return PlainHistogram(
            name, documentation, labels, self._registry, max_label_sets=_MAX_HISTOGRAM_LABEL_SETS, bounds=buckets_s
        )

    def exchange_ended(
        self,
        labels: ExchangeLabels,
        *,
        duration_s: float,
        time_to_first_byte_s: float | None,
        overhead_s: float | None,
        trace_id: str | None = None,
        usage: Usage | None = None,
        cost_nano_usd: int = 0,
    ) -> None:
        """Count an exchange that is over, however it ended, and what it is charged.

        Times that never happened (no byte went downstream, nothing went upstream) are None. `trace_id` is of a trace
        that is recorded, and goes with the times as their exemplar. The kinds of tokens add up: cached input is no
        `input`, reasoning no `output`.
        """
        ended = self._ended.get(labels) or self._find(labels)
        ended.requests.value += 1
        ended.duration.observe(duration_s, trace_id)
        if time_to_first_byte_s is not None:
            ended.first_byte.observe(time_to_first_byte_s, trace_id)
        if overhead_s is not None:
            ended.overhead.observe(overhead_s)
        if usage is None:
            return
        input_tokens, output_tokens = usage.input_tokens, usage.output_tokens
        if usage.cached_tokens or usage.reasoning_tokens:
            cached_tokens = min(usage.cached_tokens, input_tokens)
            reasoning_tokens = min(usage.reasoning_tokens, output_tokens)
            self._tally("cached", labels).value += cached_tokens
            self._tally("reasoning", labels).value += reasoning_tokens
            input_tokens -= cached_tokens
            output_tokens -= reasoning_tokens
        ended.input.value += input_tokens
        ended.output.value += output_tokens
        ended.cost.value += cost_nano_usd / 1_000_000_000

    def _find(self, labels: ExchangeLabels) -> _Ended:
        """What exchanges count in that end so; remembered, for there are many of them."""
        key, model, endpoint, outcome, status, upstream, streamed, _ = labels
        answer = model, upstream, "true" if streamed else "false"
        if len(self._ended) >= _MAX_COUNTER_LABEL_SETS:
            self._ended.clear()
        ended = self._ended[labels] = _Ended(
            self._requests.tally((key, model, endpoint, outcome, str(status))),
            self._duration.series(answer),
            self._first_byte.series(answer),
            self._overhead.series((endpoint,)),
            self._tally("input", labels),
            self._tally("output", labels),
            self._cost.tally((key, model)),
        )
        return ended

    def _tally(self, kind: str, labels: ExchangeLabels) -> Tally:
        """Where tokens of a kind count."""
        return self._tokens.tally((labels[0], labels[1], kind, labels[-1]))

    def aborted(self, phase: str, by: str) -> None:
        """Count an exchange that was cut in `phase` by: client, idle, write_stall, total or drain."""
        self._aborts.add((phase, by))

    def auth_failed(self, result: str) -> None:
        """Count a request without a good key, by its answer: refused (401) or throttled (429)."""
        self._auth_failures.add((result,))

    def backpressure(self, upstream: str, pauses: int, seconds: float) -> None:
        """Add what one exchange made its upstream wait."""
        self._pauses.add((upstream,), pauses)
        self._paused_seconds.add((upstream,), seconds)

    def unpriced(self, model: str) -> None:
        """Count an exchange that is charged nothing because nobody knows a price."""
        self._unpriced.add((model,))

    def accounting_faults(self, count: int) -> None:
        """Count what could not be read of an answer."""
        self._accounting_faults.inc(count)

    def committed(self, seconds: float, rows: int) -> None:  # noqa: ARG002 - the histogram counts commits, not rows
        """Note that the ledger has committed a group of rows. May be called from any thread."""
        self._commit.observe(seconds)

    def watch_exchanges(self, by_phase: Callable[[], dict[str, float]]) -> None:
        """Show what `by_phase` returns as `sluice_exchanges_in_flight`. It may be called in any thread."""
        self._in_flight.read = by_phase

    def watch_ledger(self, waiting: Callable[[], int]) -> None:
        """Show what `waiting` returns as `sluice_ledger_queue`."""
        self._ledger_queue.set_function(waiting)

    def watch_log(self, log: CountsDrops) -> None:
        """Show what `log` dropped as `sluice_log_dropped_total`. To be called once."""
        self._registry.register(_LogDrops(log))

    def event_loop_lag(self) -> EventLoopLag:
        """A probe of the running loop that feeds `sluice_event_loop_lag_seconds`."""
        return EventLoopLag(self._lag.observe)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics where the Accept header asks for it, else Prometheus' text.

        It takes long with many label sets, and is safe to call in a thread.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def snapshot(self) -> bytes:
        """All values, for `merging.unpack` in the process that shows those of all workers. Safe to call in a thread."""
        return self._snapshots.pack()


class _LogDrops(Collector):
    """Reads the log's own counter when asked, so that the log knows nothing of metrics."""

    def __init__(self, log: CountsDrops) -> None:
        self._log = log

    def collect(self) -> Iterable[Metric]:
        """The one sample."""
        name, documentation = "sluice_log_dropped", "Log lines dropped because the pipe was blocked."
        yield CounterMetricFamily(name, documentation, value=self._log.dropped)
