"""Who is served next: shares by weight, short waits for short queues, order within a key; and what it costs."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
import tracemalloc
from collections import Counter

import pytest

from proxy.core.fair_queue import MAX_WEIGHT, FairQueue

A, B, EITHER = frozenset({"a"}), frozenset({"b"}), frozenset({"a", "b"})


def queue(max_waiting: int = 100_000, max_bytes: int = 1 << 40) -> FairQueue[str]:
    return FairQueue(max_waiting=max_waiting, max_bytes=max_bytes)


def fill(subject: FairQueue[str], key: str, count: int, weight: float = 1.0, places: frozenset[str] = A) -> None:
    for number in range(count):
        assert subject.push(key, weight, f"{key}-{number}", places, 1)


def served(subject: FairQueue[str], place: str = "a") -> list[str]:
    """All that is left for `place`, in the order in which it is served."""
    return list(iter(lambda: subject.pop(place), None))


def keys(items: list[str]) -> str:
    return "".join(item.split("-")[0] for item in items)


def test_first_come_first_served_within_a_key() -> None:
    subject = queue()
    fill(subject, "x", 5)
    assert served(subject) == [f"x-{number}" for number in range(5)]
    assert subject.pop("a") is None
    assert subject.pop("unknown") is None


def test_a_key_with_500_waiting_delays_anothers_single_request_by_no_more_than_one_service_time() -> None:
    subject = queue()
    fill(subject, "flood", 500)
    for already_served in range(20):
        subject.push("single", 1.0, f"single-{already_served}", A, 1)
        order = [subject.pop("a"), subject.pop("a")]
        assert order[0] == f"single-{already_served}" or (already_served == 0 and order[1] == "single-0")


def test_a_key_that_comes_one_by_one_gets_no_more_than_its_share() -> None:
    """It is back as soon as it was served, and yet the other is served as often."""
    subject = queue()
    fill(subject, "y", 500)
    fill(subject, "x", 1)
    got = []
    for number in range(1, 400):
        got.append(subject.pop("a") or "")
        if got[-1].startswith("x"):
            subject.push("x", 1.0, f"x-{number}", A, 1)
    assert abs(keys(got).count("x") - keys(got).count("y")) <= 1


@pytest.mark.parametrize(("heavy", "light"), [(3.0, 1.0), (0.3, 0.1), (3e-9, 1e-9), (MAX_WEIGHT, MAX_WEIGHT / 3)])
def test_weights_three_to_one_give_throughput_three_to_one(heavy: float, light: float) -> None:
    subject = queue()
    fill(subject, "x", 600, heavy)
    fill(subject, "y", 600, light)
    order = keys(served(subject))
    for end in range(4, 800):
        assert abs(order[:end].count("x") - end * 0.75) <= 1, "not only in the long run"


def test_many_weights_at_once() -> None:
    subject, weights = queue(), {"1": 1.0, "2": 2.5, "3": 0.5, "4": 6.0}
    for key, weight in weights.items():
        fill(subject, key, 1000, weight)
    counts = Counter(keys(served(subject)[:1000]))
    for key, weight in weights.items():
        assert counts[key] == pytest.approx(weight * 100, abs=2)


def test_extreme_weights_cost_nothing_and_starve_nobody_who_is_alone() -> None:
    subject = queue()
    fill(subject, "x", 100, 5e-324)
    fill(subject, "y", 100, MAX_WEIGHT)
    fill(subject, "z", 100, MAX_WEIGHT)
    order = keys(served(subject))
    assert sorted(order[:200]) == ["y"] * 100 + ["z"] * 100
    assert order[200:] == "x" * 100
    fill(subject, "x", 2, 5e-324)
    subject.pop("a")
    fill(subject, "y", 2)
    assert keys(served(subject)) == "yyx", "time goes on where the slow one has come to"


@pytest.mark.parametrize("weight", [0.0, -1.0, MAX_WEIGHT * 1.01, float("inf"), float("nan")])
def test_a_weight_must_be_one(weight: float) -> None:
    with pytest.raises(ValueError):
        queue().push("x", weight, "x-0", A, 1)


def test_a_key_whose_weight_changes_waits_no_longer_than_a_turn_of_its_new_one() -> None:
    subject = queue()
    fill(subject, "y", 100)
    fill(subject, "x", 1, 1e-6)
    subject.push("x", 10.0, "x-new", A, 1)
    assert served(subject)[:3] == ["x-0", "x-new", "y-0"]


def test_weights_that_change_all_the_time_leave_no_turns_behind() -> None:
    subject = queue()
    fill(subject, "x", 1, 0.1)
    for number in range(1, 200):
        subject.push("x", min(1.0, 0.1 + number / 10), f"x-{number}", A, 1)
    fill(subject, "y", 200)
    order = keys(served(subject))
    assert all(abs(order[:end].count("x") - end / 2) <= 1 for end in range(400)), "the turn of the old weight is void"
    fill(subject, "x", 1)
    for number in range(1, 2000):
        subject.push("x", 1e-6, f"x-slow{number}", A, 1)
        subject.pop("a")
        subject.push("x", 1e6, f"x-fast{number}", A, 1)
    assert len(subject._places["a"]._heap) < 50


def test_what_cannot_be_served_here_blocks_nobody() -> None:
    subject = queue()
    fill(subject, "x", 10, places=B)
    subject.push("x", 1.0, "x-a", A, 1)
    fill(subject, "y", 2, places=EITHER)
    assert [subject.waiting(place) for place in ("a", "b", "c")] == [3, 12, 0]
    assert served(subject) == ["x-a", "y-0", "y-1"]
    assert [subject.waiting(place) for place in ("a", "b", "c")] == [0, 10, 0]
    assert keys(served(subject, "b")) == "x" * 10


def test_what_a_key_is_served_at_one_place_does_not_delay_it_at_another() -> None:
    subject = queue()
    fill(subject, "x", 100, places=B)
    for _ in range(90):
        subject.pop("b")
    fill(subject, "y", 100)
    subject.push("x", 1.0, "x-a", A, 1)
    assert "x-a" in served(subject)[:2]


def test_it_is_bounded_in_number_and_bytes() -> None:
    subject = queue(max_waiting=3, max_bytes=100)
    assert subject.push("x", 1, "x-0", A, 60)
    assert not subject.push("x", 1, "x-1", A, 41)
    assert subject.push("x", 1, "x-1", A, 40)
    assert subject.push("x", 1, "x-2", A, 0)
    assert not subject.push("y", 1, "y-0", A, 0)
    assert (len(subject), subject.held_bytes) == (3, 100)
    assert subject.pop("a") == "x-0"
    assert subject.held_bytes == 40
    assert subject.push("y", 1, "y-0", EITHER, 60)
    assert subject.remove("y-0")
    assert (len(subject), subject.held_bytes) == (2, 40)
    assert not queue(max_waiting=0).push("x", 1, "x-0", A, 0)


def test_what_waits_cannot_wait_twice_and_must_wait_for_something() -> None:
    subject = queue()
    fill(subject, "x", 1)
    for item, places, size_bytes in (("x-0", B, 1), ("x-1", frozenset[str](), 1), ("x-2", A, -1)):
        with pytest.raises(ValueError):
            subject.push("x", 1.0, item, places, size_bytes)
    assert (len(subject), subject.held_bytes) == (1, 1)


def test_who_leaves_is_gone_at_once() -> None:
    subject = queue()
    fill(subject, "x", 3, places=EITHER)
    assert "x-1" in subject
    assert subject.remove("x-1")
    assert not subject.remove("x-1")
    assert "x-1" not in subject
    assert served(subject, "b") == ["x-0", "x-2"]


def test_the_position_is_how_many_are_served_before() -> None:
    subject = queue()
    fill(subject, "x", 20, 2.0)
    fill(subject, "y", 20)
    for _ in range(5):
        subject.pop("a")
    fill(subject, "z", 3, 0.3)
    positions = {item: subject.position(item) for item in map(str, list(subject._waiters))}
    assert positions == {item: place for place, item in enumerate(served(subject))}
    with pytest.raises(KeyError):
        subject.position("x-0")


def test_the_position_is_that_of_the_shortest_queue() -> None:
    subject = queue()
    fill(subject, "x", 50)
    fill(subject, "y", 2, places=EITHER)
    assert subject.position("y-1") == 1


def test_nothing_is_kept_of_who_came_and_left() -> None:
    """Also while nobody is served, as when an upstream hangs and its clients give up one after the other."""
    subject = queue()
    fill(subject, "stays", 1)
    for number in range(10_000):
        fill(subject, f"key{number}", 1, 1 + number % 7, EITHER)
        subject.remove(f"key{number}-0")
        subject.push("stays", 1.0 + number % 5, "stays-too", A, 1)
        subject.remove("stays-too")
    assert len(subject._places) == 1
    assert len(subject._places["a"]._heap) < 50
    assert served(subject) == ["stays-0"]
    assert subject._places == {}
    assert subject._waiters == {}


def test_memory_goes_with_the_items() -> None:
    subject = queue()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1000):
            fill(subject, f"key{number}", 10, places=EITHER)
        held = tracemalloc.get_traced_memory()[0] - before
        while subject.pop("a") is not None:
            pass
        gc.collect()
        left = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    print(f"\n10,000 items of 1,000 keys for two places: {held / 10_000:.0f} bytes an item, {left} bytes after them")
    assert held < 10_000 * 1200
    assert left < 0.05 * held


def test_a_pop_is_cheap_with_ten_thousand_waiting() -> None:
    subject = queue()
    for number in range(1000):
        fill(subject, f"key{number}", 10, 0.1 + number % 13, EITHER)
    took_s = []
    for number in itertools.count():
        began_s = time.thread_time()
        item = subject.pop("a" if number % 2 else "b")
        took_s.append(time.thread_time() - began_s)
        if item is None:
            break
    assert number == 10_000
    median_us, slowest_us = statistics.median(took_s) * 1e6, statistics.quantiles(took_s, n=1000)[-1] * 1e6
    print(f"\npop, 10,000 waiting of 1,000 keys at two places: median {median_us:.1f} us, p99.9 {slowest_us:.1f} us")
    assert median_us < 200


def test_who_fills_the_queue_makes_room_for_others_until_they_have_as_many() -> None:
    queue: FairQueue[str] = FairQueue(max_waiting=6, max_bytes=1000)
    for number in range(6):
        assert queue.push("flood", 1, f"flood-{number}", frozenset({"up"}), 1)
    made_room = []
    for number in range(4):
        if (crowders := queue.crowders("quiet", 1)) is None:
            break
        for crowder in crowders:
            made_room.append(crowder)
            assert queue.remove(crowder)
        assert queue.push("quiet", 1, f"quiet-{number}", frozenset({"up"}), 1)
    assert made_room == ["flood-5", "flood-4", "flood-3"]
    assert queue.crowders("flood", 1) is None
    assert FairQueue[str](max_waiting=0, max_bytes=0).crowders("any", 0) is None


def test_nobody_makes_room_that_would_not_be_enough() -> None:
    queue: FairQueue[str] = FairQueue(max_waiting=100, max_bytes=100)
    for number in range(10):
        assert queue.push("flood", 1, f"flood-{number}", frozenset({"up"}), 10)
    assert queue.crowders("quiet", 95) is None
    assert queue.crowders("quiet", 25) == ["flood-9", "flood-8", "flood-7"]
    assert queue.crowders("quiet", 45) == [f"flood-{number}" for number in range(9, 4, -1)]
    assert queue.crowders("quiet", 55) is None, "it would have more than is left"


def test_who_holds_most_bytes_makes_room_where_these_are_short() -> None:
    queue: FairQueue[str] = FairQueue(max_waiting=100, max_bytes=1000)
    for number in range(5):
        assert queue.push("large", 1, f"large-{number}", frozenset({"up"}), 198)
    for number in range(6):
        assert queue.push("many", 1, f"many-{number}", frozenset({"up"}), 1)
    assert not queue.push("quiet", 1, "quiet", frozenset({"up"}), 100)
    assert queue.crowders("quiet", 100) == ["large-4"]
