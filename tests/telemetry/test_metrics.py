"""Metrics: the names and labels operators build on, bounded label sets, rendering beside the loop."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy import __version__
from proxy.core.quota import Calendar, Kind, Limit, Standing
from proxy.core.usage import Usage
from proxy.telemetry import loop_lag
from proxy.telemetry import metrics as module
from proxy.telemetry.loop_lag import EventLoopLag
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.plain import OVERFLOW
from tests.fakes.quota_stands import told

# design.md section 13: dashboards and alerts are written against these
PROMISED = {
    "sluice_requests_total": {"key", "model", "endpoint", "outcome", "status"},
    "sluice_time_to_first_byte_seconds": {"model", "upstream", "streamed"},
    "sluice_duration_seconds": {"model", "upstream", "streamed"},
    "sluice_overhead_seconds": {"endpoint"},
    "sluice_exchanges_in_flight": {"phase"},
    "sluice_aborts_total": {"phase", "by"},
    "sluice_backpressure_pauses_total": {"upstream"},
    "sluice_backpressure_seconds_total": {"upstream"},
    "sluice_upstream_attempts_total": {"upstream", "result"},
    "sluice_auth_failures_total": {"result"},
    "sluice_tokens_total": {"key", "model", "kind", "grade"},
    "sluice_cost_usd_total": {"key", "model"},
    "sluice_unpriced_exchanges_total": {"model"},
    "sluice_accounting_faults_total": set[str](),
    "sluice_ledger_queue": set[str](),
    "sluice_ledger_commit_seconds": set[str](),
    "sluice_quota_rejections_total": {"key", "kind", "window"},
    "sluice_quota_unchecked_total": {"key"},
    "sluice_quota_limit": {"key", "kind", "window"},
    "sluice_quota_used": {"key", "kind", "window"},
    "sluice_store_seconds": {"operation"},
    "sluice_store_errors_total": {"operation"},
    "sluice_event_loop_lag_seconds": set[str](),
    "sluice_log_dropped_total": set[str](),
    "sluice_spans_lost_total": set[str](),
    "sluice_build_info": {"version", "python"},
}


@dataclass
class Log:
    dropped: int = 0


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def end_exchange(
    metrics: Metrics, *, streamed: bool = True, first_byte_s: float | None = 0.3, overhead_s: float | None = 0.0008
) -> None:
    metrics.exchange_ended(
        ("team-a", "gpt-4o*", "chat/completions", "ok", 200, "openai", streamed, "exact"),
        duration_s=4.0,
        time_to_first_byte_s=first_byte_s,
        overhead_s=overhead_s,
        usage=Usage(1, 1),
        cost_nano_usd=1,
    )


def use_everything(metrics: Metrics) -> None:
    end_exchange(metrics)
    metrics.watch_exchanges(lambda: {"relay": 1})
    metrics.aborted("relay", "client")
    metrics.routing.attempted("openai", "2xx")
    metrics.auth_failed("refused")
    metrics.backpressure("openai", 3, 1.5)
    metrics.watch_log(Log())
    metrics.unpriced("m")
    metrics.accounting_faults(1)
    metrics.watch_ledger(lambda: 3)
    metrics.committed(0.001, 2)
    limit = Limit(Kind.SPEND, 5_000_000, Calendar.MONTH)
    metrics.quotas.refused("a", limit)
    metrics.quotas.unchecked("a")
    metrics.quotas.admitted("a", told(Standing(limit, 1, 4_999_999, 1.0)))
    metrics.quotas.store_asked("reserve", 0.001, "TimeoutError")


def test_every_promised_metric_is_there_with_its_labels_and_nothing_else(metrics: Metrics) -> None:
    use_everything(metrics)
    shown: dict[str, set[str]] = {}
    for family in parse_text(metrics.render()[0].decode()):
        if family.name.startswith("sluice_"):
            for sample in family.samples:
                base = sample.name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
                shown.setdefault(base, set()).update(sample.labels.keys() - {"le"})
    assert shown == PROMISED


def test_an_exchange_counts_once_and_lands_in_its_buckets(metrics: Metrics, registry: CollectorRegistry) -> None:
    end_exchange(metrics)
    end_exchange(metrics)
    labels = {"key": "team-a", "model": "gpt-4o*", "endpoint": "chat/completions", "outcome": "ok", "status": "200"}
    assert registry.get_sample_value("sluice_requests_total", labels) == 2
    answer = {"model": "gpt-4o*", "upstream": "openai", "streamed": "true"}
    assert registry.get_sample_value("sluice_duration_seconds_sum", answer) == 8.0
    first_byte = "sluice_time_to_first_byte_seconds_bucket"
    assert registry.get_sample_value(first_byte, answer | {"le": "0.2"}) == 0
    assert registry.get_sample_value(first_byte, answer | {"le": "0.4"}) == 2
    overhead = {"endpoint": "chat/completions", "le": "0.001"}
    assert registry.get_sample_value("sluice_overhead_seconds_bucket", overhead) == 2


def test_times_that_never_happened_are_not_observed(metrics: Metrics, registry: CollectorRegistry) -> None:
    end_exchange(metrics, first_byte_s=None, overhead_s=None, streamed=False)
    answer = {"model": "gpt-4o*", "upstream": "openai", "streamed": "false"}
    assert registry.get_sample_value("sluice_duration_seconds_count", answer) == 1
    assert registry.get_sample_value("sluice_time_to_first_byte_seconds_count", answer) is None
    assert registry.get_sample_value("sluice_overhead_seconds_count", {"endpoint": "chat/completions"}) is None


def test_exchanges_in_flight_are_asked_for_at_each_look(metrics: Metrics, registry: CollectorRegistry) -> None:
    def in_flight(phase: str) -> float | None:
        return registry.get_sample_value("sluice_exchanges_in_flight", {"phase": phase})

    assert in_flight("admit") is None, "nobody serves here"
    counts = {"admit": 1.0, "relay": 0.0}
    metrics.watch_exchanges(lambda: counts)
    assert (in_flight("admit"), in_flight("relay")) == (1, 0)
    counts |= {"admit": 0.0, "relay": 1.0}
    assert (in_flight("admit"), in_flight("relay")) == (0, 1)


def test_histograms_never_carry_the_key(metrics: Metrics) -> None:
    use_everything(metrics)
    for family in parse_text(metrics.render()[0].decode()):
        if family.type == "histogram":
            assert all("key" not in sample.labels for sample in family.samples)


def test_label_sets_past_the_cap_count_together(monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry) -> None:
    monkeypatch.setattr(module, "_MAX_COUNTER_LABEL_SETS", 3)
    metrics = Metrics(registry)
    for number in range(10):
        metrics.aborted(f"phase-{number}", "client")
    metrics.aborted("phase-0", "client")
    name = "sluice_aborts_total"
    assert registry.get_sample_value(name, {"phase": "phase-0", "by": "client"}) == 2
    assert registry.get_sample_value(name, {"phase": "phase-3", "by": "client"}) is None
    assert registry.get_sample_value(name, {"phase": OVERFLOW, "by": OVERFLOW}) == 7


def test_what_the_log_dropped_is_read_when_asked(metrics: Metrics, registry: CollectorRegistry) -> None:
    log = Log()
    metrics.watch_log(log)
    log.dropped = 17
    assert registry.get_sample_value("sluice_log_dropped_total") == 17


def test_process_garbage_collector_and_build_are_shown(metrics: Metrics, registry: CollectorRegistry) -> None:
    assert (registry.get_sample_value("process_resident_memory_bytes") or 0) > 1_000_000
    assert registry.get_sample_value("python_gc_collections_total", {"generation": "0"}) is not None
    build = [family for family in parse_text(metrics.render()[0].decode()) if family.name == "sluice_build_info"]
    assert build[0].samples[0].labels["version"] == __version__


def openmetrics_names(text: str) -> set[str]:
    families = openmetrics_parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]  # the library's
    return {family.name for family in families}


async def test_renders_in_a_thread_as_text_or_as_openmetrics(metrics: Metrics) -> None:
    use_everything(metrics)
    text, text_type = await asyncio.to_thread(metrics.render)
    assert text_type.startswith("text/plain; version=0.0.4")
    assert {family.name for family in parse_text(text.decode())} >= {"sluice_requests", "sluice_log_dropped"}
    asked = "application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5"
    openmetrics, openmetrics_type = await asyncio.to_thread(metrics.render, asked)
    assert openmetrics_type.startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics_names(openmetrics.decode()) >= {"sluice_requests", "sluice_log_dropped"}


def test_rendering_while_label_sets_are_added_fails_on_neither_side(metrics: Metrics) -> None:
    done = threading.Event()

    def add() -> None:
        for number in range(2_000):
            metrics.routing.attempted(f"upstream-{number}", "2xx")
        done.set()

    adder = threading.Thread(target=add)
    adder.start()
    while not done.is_set():
        metrics.render()
    adder.join()
    assert b'upstream="upstream-1999"' in metrics.render()[0]


async def test_lag_tells_how_late_the_loop_is_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "_LAG_INTERVAL_S", 0.005)
    observed: list[float] = []
    twice = asyncio.Event()

    def observe(lag_s: float) -> None:
        observed.append(lag_s)
        if len(observed) == 2:
            twice.set()

    lag = EventLoopLag(observe)
    lag.start()
    threading.Event().wait(0.06)  # the loop is busy for so long
    await twice.wait()
    lag.stop()
    assert observed[0] > 0.03
    assert min(observed) >= 0
    assert lag._timer is None
    lag.stop()


async def test_lag_reaches_its_histogram(
    monkeypatch: pytest.MonkeyPatch, metrics: Metrics, registry: CollectorRegistry
) -> None:
    monkeypatch.setattr(loop_lag, "_LAG_INTERVAL_S", 0)
    lag = metrics.event_loop_lag()
    lag.start()
    while not registry.get_sample_value("sluice_event_loop_lag_seconds_count"):
        await asyncio.sleep(0)
    lag.stop()
