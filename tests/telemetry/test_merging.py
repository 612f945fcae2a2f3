"""Merged metrics: written as prometheus_client writes them, summed over the living and the dead, never falling."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from proxy.core.quota import Calendar, Kind, Limit, Standing
from proxy.telemetry.merging import Family, Merged, Snapshots, unpack
from proxy.telemetry.metrics import Metrics
from tests.fakes.quota_stands import told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TEXT_1 = "text/plain; version=1.0.0"
FORMATS = ["", "*/*", "text/plain", TEXT_1, OPENMETRICS, "application/openmetrics-text; version=0.0.1"]


def exchange(metrics: Metrics, key: str = "team-a") -> None:
    metrics.exchange_ended(
        (key, "gpt-4o*", "chat/completions", "ok", 200, "openai", True, "exact"),
        duration_s=1.25,
        time_to_first_byte_s=0.3,
        overhead_s=0.001,
    )


def sure(text: bytes) -> list[bytes]:
    """The lines that are not different at each look."""
    return [line for line in text.splitlines() if not line.startswith((b"process_", b"python_"))]


def gauge(name: str, **series: float) -> Family:
    return Family(name, "gauge", "", {f'{name}{{of="{of}"}}': value for of, value in series.items()})


def values(merged: Merged, beside: Sequence[Sequence[Family]] = ()) -> dict[str, float]:
    lines = merged.render("", beside)[0].decode().splitlines()
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


@given(
    st.lists(st.floats(0, 1e6), min_size=2, max_size=6).flatmap(
        lambda counted: st.tuples(st.just(counted), st.permutations(range(len(counted))))
    )
)
def test_a_sum_does_not_fall_when_a_process_ends(processes: tuple[list[float], list[int]]) -> None:
    """Not by its last bit either, in whichever order they end: 6.37 once became 6.369999999999999."""
    counted, order = processes
    merged = Merged()
    for number, value in enumerate(counted):
        registry = CollectorRegistry()
        Counter("seconds", "", registry=registry).inc(value)
        merged.keep(number, Snapshots(registry).take())
    shown = values(merged)["seconds_total"]
    for number in order:
        merged.retire(number)
        assert values(merged)["seconds_total"] == shown


@pytest.mark.parametrize("accept", FORMATS)
def test_one_process_is_shown_as_it_shows_itself(accept: str) -> None:
    metrics = Metrics(CollectorRegistry())
    exchange(metrics)
    merged = Merged()
    merged.keep(1, unpack(metrics.snapshot()))
    text, content_type = merged.render(accept)
    own_text, own_type = metrics.render(accept)
    assert sure(text) == sure(own_text)
    assert len(sure(text)) > 50
    assert content_type == own_type


@given(labels=st.lists(st.text(max_size=5), min_size=1, max_size=5, unique=True), value=st.floats(0, 1e300))
def test_any_label_and_any_number_are_written_as_the_library_writes_them(labels: list[str], value: float) -> None:
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - beside what it is compared with

    registry = CollectorRegistry()
    counter = Counter("a_total", 'what "it" is \\ and\nmore', ("z", "b"), registry=registry)
    level = Gauge("level", "now", ("z",), registry=registry)
    histogram = Histogram("h", "spread", ("z",), registry=registry)
    for label in labels:
        counter.labels(label, "x").inc(value)
        level.labels(label).set(-value)
        histogram.labels(label).observe(value)
    merged = Merged()
    merged.keep(1, unpack(Snapshots(registry).pack()))
    for accept in ("", OPENMETRICS):
        assert merged.render(accept)[0] == choose_encoder(accept)[0](registry)


def test_counters_and_histograms_are_summed_and_outlive_their_process() -> None:
    merged, workers = Merged(), [Metrics(CollectorRegistry()) for _ in range(3)]
    for number, metrics in enumerate(workers):
        for _ in range(number + 1):
            exchange(metrics)
        merged.keep(number, unpack(metrics.snapshot()))
    labels = '{endpoint="chat/completions",key="team-a",model="gpt-4o*",outcome="ok",status="200"}'
    for _ in range(3):
        found = values(merged)
        assert found["sluice_requests_total" + labels] == 6
        assert found['sluice_overhead_seconds_bucket{endpoint="chat/completions",le="+Inf"}'] == 6
        assert found['sluice_duration_seconds_sum{model="gpt-4o*",streamed="true",upstream="openai"}'] == 7.5
        merged.retire(0)
        merged.retire(1)


def test_gauges_are_of_the_living_each_by_its_rule() -> None:
    merged = Merged()
    for process, value in ((1, 2.0), (2, 5.0), (3, 3.0)):
        merged.keep(
            process,
            [
                gauge("sluice_exchanges_in_flight", relay=value),
                gauge("sluice_build_info", x=1.0),
                gauge("sluice_quota_limit", k=60.0),
                gauge("sluice_quota_used", k=value),
                gauge("sluice_upstream_circuit", up=value),
                gauge("process_start_time_seconds", x=value),
            ],
        )
    merged.retire(2)
    assert values(merged) == {
        'sluice_exchanges_in_flight{of="relay"}': 5.0,
        'sluice_build_info{of="x"}': 1.0,
        'sluice_quota_limit{of="k"}': 60.0,
        'sluice_quota_used{of="k"}': 3.0,
        'sluice_upstream_circuit{of="up"}': 3.0,
        'process_start_time_seconds{of="x"}': 2.0,
    }
    merged.retire(1)
    merged.retire(3)
    assert values(merged) == {}


def test_what_stands_beside_is_not_kept() -> None:
    merged = Merged()
    beside = [[Family("a", "counter", "", {"a_total": 3.0})]]
    assert [values(merged, beside) for _ in range(2)] == [{"a_total": 3.0}] * 2
    assert values(merged) == {}


class Workers(RuleBasedStateMachine):
    """Workers count, are asked, and die at any moment: what is shown never falls, and the known sum is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.merged = Merged()
        self.counted: dict[int, float] = {}
        self.known: dict[int, float] = {}
        self.dead = 0.0
        self.shown = 0.0
        self.next = 1

    @rule()
    def start(self) -> None:
        self.counted[self.next] = 0.0
        self.next += 1

    @rule(data=st.data(), amount=st.integers(1, 5))
    def count(self, data: Any, amount: int) -> None:
        if self.counted:
            self.counted[data.draw(st.sampled_from(sorted(self.counted)))] += amount

    @rule(data=st.data())
    def ask(self, data: Any) -> None:
        if self.counted:
            worker = data.draw(st.sampled_from(sorted(self.counted)))
            self.known[worker] = self.counted[worker]
            self.merged.keep(worker, [Family("a", "counter", "", {"a_total": self.counted[worker]})])

    @rule(data=st.data())
    def die(self, data: Any) -> None:
        if self.counted:
            worker = data.draw(st.sampled_from(sorted(self.counted)))
            del self.counted[worker]
            self.dead += self.known.pop(worker, 0.0)
            self.merged.retire(worker)

    @invariant()
    def never_falls(self) -> None:
        shown = values(self.merged).get("a_total", 0.0)
        assert shown >= self.shown
        assert shown == sum(self.known.values()) + self.dead
        self.shown = shown


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=50, stateful_step_count=30)


def test_a_thousand_keys_of_two_workers_and_the_dead_are_merged_quickly(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(CollectorRegistry())
    for number in range(1000):
        exchange(metrics, f"team-{number:04}")
        for kind in ("input", "cached", "output", "reasoning"):
            metrics._tokens.add((f"team-{number:04}", "gpt-4o*", kind, "exact"), 5)
        windows = (60, Calendar.DAY, Calendar.MONTH)
        limits = [Limit(Kind.TOKENS, 100, window) for window in windows]
        metrics.quotas.admitted(f"team-{number:04}", told(*(Standing(limit, 10, 90, 60.0) for limit in limits)))
    merged, spent_s = Merged(), dict[str, float]()
    merged.keep(1, unpack(metrics.snapshot()))
    merged.retire(1)
    for number in (2, 3):
        merged.keep(number, unpack(metrics.snapshot()))
    measured: tuple[tuple[str, Callable[[], object]], ...] = (
        ("snapshot", metrics.snapshot),
        ("render", lambda: merged.render("")),
    )
    for name, work in measured:
        took_s = []
        for _ in range(3):  # the least: on a busy machine caches are cold
            began_s = time.thread_time()
            work()
            took_s.append(time.thread_time() - began_s)
        spent_s[name] = min(took_s)
    lines = merged.render("")[0].count(b"\n")
    with capsys.disabled():
        print(f"\n{lines} lines: {', '.join(f'{name} {1000 * took:.0f} ms' for name, took in spent_s.items())}")
    assert lines > 11_000
    assert 2 * spent_s["snapshot"] + spent_s["render"] < 0.3
