"""Plain metrics show what prometheus_client's own would show, byte for byte, whoever looks and whenever."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from proxy.telemetry.plain import OVERFLOW, PlainCounter, PlainGauge, PlainHistogram

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
BOUNDS = (0, 0.5, 1, 2.5, 1_000_000)
TOLD = 'what "it" is \\ and\nmore'
NOW_S = 1_700_000_000.125

labels = st.tuples(st.sampled_from(["a", "b", 'quoted "\\\n', "é"]), st.sampled_from(["x", ""]))
amounts = st.one_of(st.integers(0, 3), st.floats(0, 1e300), st.sampled_from(BOUNDS))
traces = st.one_of(st.none(), st.sampled_from(["0af7651916cd43dd8448eb211c80319c", "1" * 32]))


@pytest.fixture(autouse=True)
def _no_created() -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library left it unannotated


def shown(registry: CollectorRegistry) -> list[bytes]:
    return [choose_encoder(accept)[0](registry) for accept in ("", OPENMETRICS)]


@given(st.lists(st.tuples(labels, amounts)))
def test_a_counter_is_shown_as_the_librarys(counted: list[tuple[tuple[str, str], float]]) -> None:
    registry, reference = CollectorRegistry(), CollectorRegistry()
    plain = PlainCounter("c_total", TOLD, ("z", "b"), registry, max_label_sets=100)
    library = Counter("c_total", TOLD, ("z", "b"), registry=reference)
    for values, amount in counted:
        plain.add(values, amount)
        library.labels(*values).inc(amount)
        assert shown(registry) == shown(reference)
    assert shown(registry) == shown(reference)


@given(st.lists(st.tuples(labels, amounts, traces)))
def test_a_histogram_is_shown_as_the_librarys(observed: list[tuple[tuple[str, str], float, str | None]]) -> None:
    registry, reference = CollectorRegistry(), CollectorRegistry()
    plain = PlainHistogram("h", TOLD, ("z", "b"), registry, max_label_sets=100, bounds=BOUNDS, clock=lambda: NOW_S)
    library = Histogram("h", TOLD, ("z", "b"), registry=reference, buckets=BOUNDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prometheus_client.metrics.time.time", lambda: NOW_S)
        for values, amount, trace_id in observed:
            plain.series(values).observe(amount, trace_id)
            library.labels(*values).observe(amount, None if trace_id is None else {"trace_id": trace_id})
    assert shown(registry) == shown(reference)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-1e300, 1e300))))
def test_a_gauge_is_shown_as_the_librarys(settings: list[tuple[str, float]]) -> None:
    registry, reference = CollectorRegistry(), CollectorRegistry()
    plain = PlainGauge("g", TOLD, "z", registry)
    library = Gauge("g", TOLD, ("z",), registry=reference)
    for value, amount in settings:
        plain.values[value] = amount
        library.labels(value).set(amount)
    assert shown(registry) == shown(reference)


def test_past_the_cap_new_label_sets_count_together_and_known_ones_apart() -> None:
    registry = CollectorRegistry()
    counter = PlainCounter("c_total", "", ("a", "b"), registry, max_label_sets=2)
    histogram = PlainHistogram("h", "", ("a", "b"), registry, max_label_sets=2, bounds=BOUNDS, clock=lambda: NOW_S)
    for number in (0, 1, 2, 3, 0):
        counter.add((str(number), "x"))
        histogram.series((str(number), "x")).observe(1.0, "1" * 32)
    for name in ("c_total", "h_count"):
        found = {s.labels["a"]: s.value for m in registry.collect() for s in m.samples if s.name == name}
        assert found == {"0": 2, "1": 1, OVERFLOW: 2}
    exemplars = {s.labels["a"] for m in registry.collect() for s in m.samples if s.exemplar is not None}
    assert exemplars == {"0", "1", OVERFLOW}


def test_a_series_that_has_observed_nothing_is_not_shown() -> None:
    registry = CollectorRegistry()
    histogram = PlainHistogram("h", "", ("z",), registry, max_label_sets=2, bounds=BOUNDS)
    series = histogram.series(("a",))
    assert [metric.samples for metric in registry.collect()] == [[]]
    series.observe(0.0)
    assert registry.get_sample_value("h_count", {"z": "a"}) == 1


@pytest.fixture
def _restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before_s)


@pytest.mark.usefixtures("_restless")
def test_who_looks_while_another_thread_counts_sees_sums_that_agree() -> None:
    registry = CollectorRegistry()
    histogram = PlainHistogram("h", "", ("z",), registry, max_label_sets=100_000, bounds=BOUNDS)
    done = threading.Event()

    def count() -> None:
        for number in range(30_000):
            histogram.observe((str(number % 50),), 1.0)
        done.set()

    counting = threading.Thread(target=count)
    counting.start()
    looks = 0
    while not done.is_set() or not looks:
        samples = [sample for metric in histogram.collect() for sample in metric.samples]
        counts = [sample.value for sample in samples if sample.name == "h_count"]
        assert counts == [sample.value for sample in samples if sample.name == "h_sum"]
        looks += 1
    counting.join()
    assert registry.get_sample_value("h_count", {"z": "0"}) == 600
