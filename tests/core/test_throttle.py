"""How many failures an address has, how long it must wait, and that nobody else can make it forgotten cheaply."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.limits import parse_limit
from proxy.core.quota import Kind
from proxy.core.throttle import CAPACITY, Throttle

VICTIM, START_S = "203.0.113.7", 1_000_020.0  # where a minute of the window begins


def throttle(limit: str = "5/minute", capacity: int = CAPACITY) -> Throttle:
    return Throttle(parse_limit(limit, Kind.REQUESTS), capacity)


def exhaust(subject: Throttle, address: str, now_s: float = START_S) -> float:
    """Fail until it is refused; the wait that is told."""
    while (wait_s := subject.failed(address, now_s)) is None:
        pass
    return wait_s


def within_the_48(number: int, site: int = 0) -> str:
    """An address in a /64 of its own."""
    return f"2001:db8:{site:x}:{number:x}::1"


def test_so_many_failures_are_free_and_then_there_is_a_wait() -> None:
    subject = throttle()
    assert [subject.failed(VICTIM, START_S) for _ in range(5)] == [None] * 5
    assert subject.failed(VICTIM, START_S) == pytest.approx(72.0)
    assert subject.failed("203.0.113.8", START_S) is None


@given(st.lists(st.floats(0, 60), min_size=1, max_size=40), st.integers(1, 6))
def test_the_wait_is_true(pauses_s: list[float], amount: int) -> None:
    """A millisecond earlier it is still refused, and then it is not, however often it was asked in between."""
    subject, now_s = throttle(f"{amount}/minute"), START_S
    for pause_s in pauses_s:
        now_s += pause_s
        wait_s = subject.failed(VICTIM, now_s)
        if wait_s is not None:
            now_ms = int(now_s * 1000) + round(wait_s * 1000)
            assert subject.failed(VICTIM, (now_ms - 0.5) / 1000) is not None
            assert subject.failed(VICTIM, (now_ms + 0.5) / 1000) is None
            now_s = (now_ms + 0.5) / 1000


def test_a_clock_that_goes_back_opens_nothing() -> None:
    subject = throttle()
    exhaust(subject, VICTIM)
    assert subject.failed(VICTIM, START_S - 600) == pytest.approx(672.0)


def test_ipv6_is_counted_by_64_and_ipv4_in_its_notation_as_ipv4() -> None:
    subject = throttle()
    exhaust(subject, "2001:db8::1")
    assert subject.failed("2001:db8::ffff:2", START_S) is not None
    assert subject.failed("2001:db8:0:1::1", START_S) is None
    exhaust(subject, VICTIM)
    assert subject.failed(f"::ffff:{VICTIM}", START_S) is not None


def test_all_without_an_address_share_one_count() -> None:
    subject = throttle()
    exhaust(subject, "")
    assert subject.failed("/run/sluice.sock", START_S) is not None
    assert len(subject) == 1


def test_a_48_has_four_times_the_limit_in_all() -> None:
    subject = throttle()
    free = sum(subject.failed(within_the_48(number), START_S) is None for number in range(1000))
    assert free == 20
    assert len(subject) == 21, "what is refused is not held"
    assert subject.failed(within_the_48(0, site=1), START_S) is None


def test_the_address_that_has_not_failed_for_the_longest_is_forgotten() -> None:
    subject = throttle(capacity=3)
    for host in (1, 2, 3, 1, 4):
        subject.failed(f"10.0.0.{host}", START_S)
    assert len(subject) == 3
    exhaust(subject, "10.0.0.3")
    exhaust(subject, "10.0.0.1")
    subject.failed("10.0.0.3", START_S)  # refused, and yet it fails
    for host in (5, 6):
        subject.failed(f"10.0.0.{host}", START_S)
    assert subject.failed("10.0.0.3", START_S) is not None
    assert subject.failed("10.0.0.1", START_S) is None


def test_memory_is_bounded_whoever_fails() -> None:
    subject = throttle(capacity=100)
    for number in range(1000):
        subject.failed(f"10.0.{number >> 8}.{number & 255}", START_S + number)
        subject.failed(within_the_48(number, site=number), START_S + number)
    assert len(subject) == 100


def test_who_holds_a_48_cannot_make_another_forgotten_while_it_counts() -> None:
    """A full table, and networks without end that fail all the time: new ones, and those that it has held for long."""
    subject = throttle(capacity=100)
    for number in range(200):  # fills the table in ten minutes
        subject.failed(within_the_48(number), START_S + 3 * number)
    later_s = START_S + 1200
    wait_s, new = exhaust(subject, VICTIM, later_s), itertools.count(1000)
    for step in range(int(wait_s)):
        for number in (*itertools.islice(new, 200), *range(200)):
            subject.failed(within_the_48(number), later_s + step)
    assert subject.failed(VICTIM, later_s + wait_s - 0.01) == pytest.approx(0.01)
    assert subject.failed(VICTIM, later_s + wait_s + 0.001) is None
