"""The stream's one timer, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, cast

import pytest

from proxy.core import errors
from proxy.phases.watchdog import Watchdog
from tests.fakes.clock import ManualLoop
from tests.fakes.peers import FakeDownstream

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Coroutine, Generator

    from proxy.upstream.stream import UpstreamStream


class _Stream:
    """An upstream that is silent for good, unless bytes wait."""

    def __init__(self) -> None:
        self.failure: errors.ProxyError | None = None
        self.aborted = False
        self.complete = False
        self.waiting = b""

    def read_nowait(self) -> bytes:
        data, self.waiting = self.waiting, b""
        return data

    async def read(self) -> bytes:
        return await _Silence()

    def fail(self, error: errors.ProxyError) -> None:
        self.failure = error

    def abort(self) -> None:
        self.aborted = True


class _Silence:
    """Awaited by hand: it suspends, and nobody wakes it."""

    def __await__(self) -> Generator[None, None, bytes]:
        yield
        return b""


class _Watch:
    """A watchdog with all that it watches."""

    def __init__(
        self,
        loop: ManualLoop,
        idle_s: float | None = None,
        deadline_s: float | None = None,
        write_stall_s: float | None = None,
    ) -> None:
        self.loop = loop
        self.stream = _Stream()
        self.downstream = FakeDownstream()
        self.comments: list[float] = []
        stream, on = cast("UpstreamStream", self.stream), cast("AbstractEventLoop", loop)
        self.dog = Watchdog(stream, self.downstream, idle_s, deadline_s, write_stall_s, on)
        self.dog.arm()

    def wait_for_upstream(self) -> Coroutine[object, None, bytes]:
        """Begin a read that finds nothing."""
        reading = self.dog.read()
        reading.send(None)
        return reading

    def comment(self) -> None:
        self.comments.append(self.loop.now)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> ManualLoop:
    manual = ManualLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: manual)
    return manual


def test_without_limits_no_timer_is_armed(loop: ManualLoop) -> None:
    _Watch(loop)
    assert not loop.timers


def test_no_timer_is_armed_before_anybody_waits(loop: ManualLoop) -> None:
    stream = _Stream()
    dog = Watchdog(cast("UpstreamStream", stream), FakeDownstream(), 10.0, 60.0, 20.0, cast("AbstractEventLoop", loop))
    stream.waiting = b"a"
    with pytest.raises(StopIteration):
        dog.read().send(None)
    assert not loop.timers
    reading = dog.read()
    reading.send(None)
    assert len(loop.timers) == 1
    reading.close()
    dog.stop()


def test_silence_counts_from_when_the_relay_began_to_wait(loop: ManualLoop) -> None:
    watch = _Watch(loop, idle_s=10.0)
    loop.advance(25.0)  # the relay was busy writing: no silence of the upstream's
    assert watch.dog.fired is None
    reading = watch.wait_for_upstream()
    loop.advance(9.9)
    assert watch.dog.fired is None
    loop.advance(10.0)
    assert watch.dog.fired == "idle"
    assert watch.stream.failure is not None
    assert watch.stream.failure.kind is errors.UPSTREAM_TIMEOUT
    reading.close()


def test_silence_is_found_out_in_time(loop: ManualLoop) -> None:
    """However the waiting falls between two looks, it is cut after `idle`, not after twice that."""
    for began in (0.0, 0.1, 4.9, 9.9):
        watch = _Watch(loop, idle_s=10.0)
        loop.advance(began)
        reading = watch.wait_for_upstream()
        loop.advance(10.001)
        assert watch.dog.fired == "idle", began
        reading.close()


def test_each_read_starts_the_silence_anew(loop: ManualLoop) -> None:
    watch = _Watch(loop, idle_s=10.0)
    for _ in range(5):
        reading = watch.wait_for_upstream()
        loop.advance(8.0)
        reading.close()
    assert watch.dog.fired is None


def test_bytes_that_wait_are_no_silence(loop: ManualLoop) -> None:
    watch = _Watch(loop, idle_s=10.0)
    watch.stream.waiting = b"data"
    with pytest.raises(StopIteration) as returned:
        watch.dog.read().send(None)
    assert returned.value.value == b"data"
    loop.advance(30.0)
    assert watch.dog.fired is None


def test_hurry_shortens_the_silence_and_never_lengthens_it(loop: ManualLoop) -> None:
    watch = _Watch(loop, idle_s=120.0)
    watch.dog.hurry(1.0)
    watch.dog.hurry(5.0)
    reading = watch.wait_for_upstream()
    loop.advance(2.0)
    assert watch.dog.fired == "idle"
    reading.close()


def test_hurry_works_without_an_idle_limit(loop: ManualLoop) -> None:
    """`idle: off` must not let an upstream hold the end open for ever."""
    watch = _Watch(loop)
    watch.dog.hurry(1.0)
    reading = watch.wait_for_upstream()
    loop.advance(2.1)
    assert watch.dog.fired == "idle"
    reading.close()


def test_the_total_counts_whatever_happens(loop: ManualLoop) -> None:
    watch = _Watch(loop, idle_s=10.0, deadline_s=loop.now + 30.0)
    for _ in range(4):
        reading = watch.wait_for_upstream()
        loop.advance(7.0)
        reading.close()
    assert watch.dog.fired is None
    loop.advance(2.0)
    assert watch.dog.fired == "total"


def test_only_the_first_limit_fires(loop: ManualLoop) -> None:
    watch = _Watch(loop, idle_s=10.0, deadline_s=loop.now + 11.0)
    reading = watch.wait_for_upstream()
    loop.advance(60.0)
    assert watch.dog.fired == "idle"
    reading.close()


def test_a_client_that_accepts_nothing_is_cut(loop: ManualLoop) -> None:
    """At most a quarter of the limit late; both sides are dropped."""
    watch = _Watch(loop, write_stall_s=60.0)
    watch.downstream.acknowledged = 1000
    loop.advance(60.0)
    assert watch.downstream.ended is None
    loop.advance(16.0)
    assert watch.dog.fired == "write_stall"
    assert watch.downstream.ended == "abort"
    assert watch.stream.failure is not None
    assert watch.stream.failure.kind is errors.CLIENT_STALLED
    assert not loop.timers


def test_a_slow_client_that_goes_on_is_not_cut(loop: ManualLoop) -> None:
    watch = _Watch(loop, write_stall_s=60.0)
    for sent in range(1, 20):
        watch.downstream.acknowledged = sent
        loop.advance(40.0)
    assert watch.dog.fired is None


def test_a_client_with_nothing_outstanding_is_not_stalled(loop: ManualLoop) -> None:
    """A silent upstream is not the client's fault; its time begins with what it does not take."""
    watch = _Watch(loop, write_stall_s=60.0)
    loop.advance(600.0)
    watch.downstream.acknowledged = 5
    loop.advance(44.0)
    assert watch.dog.fired is None
    loop.advance(46.0)
    assert watch.dog.fired == "write_stall"


def test_comments_come_at_their_interval_of_silence(loop: ManualLoop) -> None:
    watch = _Watch(loop, idle_s=100.0)
    watch.dog.keep_alive(15.0, watch.comment)
    loop.advance(40.0)
    assert not watch.comments
    began = loop.now
    reading = watch.wait_for_upstream()
    loop.advance(50.0)
    assert [at - began for at in watch.comments] == [15.0, 30.0, 45.0]
    reading.close()


def test_comments_end_with_the_stream(loop: ManualLoop) -> None:
    """None after a limit has fired, none after `stop`."""
    watch = _Watch(loop, idle_s=20.0)
    watch.dog.keep_alive(15.0, watch.comment)
    reading = watch.wait_for_upstream()
    loop.advance(100.0)
    assert len(watch.comments) == 1
    assert not loop.timers
    reading.close()
    stopped = _Watch(loop, idle_s=20.0)
    stopped.dog.keep_alive(15.0, stopped.comment)
    stopped.dog.stop()
    assert not loop.timers


class _Flow(NamedTuple):
    silent_s: Callable[[], float]

    def catch_up(self) -> None:
        """Nobody follows."""


def test_the_silence_of_a_flow_counts_from_what_came_last(loop: ManualLoop) -> None:
    """It tells nobody of each event, so it is asked."""
    watch, came_s = _Watch(loop, idle_s=10.0), [loop.now - 500.0]
    watch.dog.keep_alive(4.0, watch.comment)
    watch.dog.flows(_Flow(lambda: loop.now - came_s[0]))
    loop.advance(9.9)
    assert (watch.dog.fired, len(watch.comments)) == (None, 2)
    came_s[0] = loop.now
    loop.advance(9.9)
    assert watch.dog.fired is None
    loop.advance(0.2)
    assert watch.dog.fired == "idle"


def test_behind_a_flow_nobody_waits(loop: ManualLoop) -> None:
    watch = _Watch(loop, idle_s=10.0)
    watch.dog.flows(_Flow(lambda: loop.now))
    watch.dog.flows(None)
    loop.advance(30.0)
    assert watch.dog.fired is None


def test_nobody_is_hurried_whose_body_is_whole(loop: ManualLoop) -> None:
    watch = _Watch(loop)
    watch.stream.complete = True
    watch.dog.hurry(1.0)
    assert not loop.timers
