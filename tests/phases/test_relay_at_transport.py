"""The two forms of the relay are one: any stream, any cuts, any pace of the client, the same bytes and findings."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from unittest.mock import Mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.answers import EventAnswer
from proxy.core.injection import UsageHider
from proxy.core.sse import MAX_EVENT_BYTES
from proxy.phases import observe
from proxy.phases import relay as relay_module
from proxy.phases.forward import Answer
from proxy.phases.relay import relay
from proxy.phases.watchdog import Watchdog
from proxy.upstream.connection import READ_BUFFER_BYTES, UpstreamConnection
from proxy.upstream.pool import ReadBuffer
from proxy.upstream.stream import UpstreamStream
from tests.fakes.accounts import accompaniment, observer
from tests.fakes.injected import cut
from tests.fakes.line import LAST_CHUNK, chunk
from tests.fakes.peers import FakeDownstream, exchange
from tests.fakes.recordings import DONE, FINISH, RECORDINGS, ROLE, delta

if TYPE_CHECKING:
    from proxy.core.ending import StreamShape
    from proxy.upstream.pool import UpstreamPool

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class _Pace:
    """A client that reads a while after each so many writes, and a transport that is full until then."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._writes = 0
        self.reads = asyncio.Event()
        self.reads.set()

    def wrote(self) -> None:
        self._writes += 1
        if self._every and self._writes % self._every == 0:
            self.reads.clear()


class _SlowDownstream(FakeDownstream):
    """A chunked answer to a client with a pace."""

    is_direct = True

    def __init__(self, every: int) -> None:
        super().__init__()
        self.pace = _Pace(every)
        self.through = 0
        self.gone = False

    @property
    def is_full(self) -> bool:  # type: ignore[override]  # that of a client without a pace is constant
        return not self.pace.reads.is_set()

    async def write(self, data: bytes) -> None:
        self._write(data)
        await self.drain()

    def write_now(self, data: bytes) -> bool:
        assert not self.is_full
        self.through += 1
        self._write(data)
        return not self.is_full

    def _write(self, data: bytes) -> None:
        if self.gone:
            raise ConnectionResetError
        self.writes.append(data)
        self.pace.wrote()

    async def drain(self) -> None:
        self.is_waiting = True
        await self.pace.reads.wait()
        self.is_waiting = False


class _Upstream:
    """A connection whose bytes the test hands in, as a transport does: not while reading is paused."""

    def __init__(self) -> None:
        self.buffer = ReadBuffer()
        self.connection = UpstreamConnection(self.buffer, lambda _: None)
        self.reads = asyncio.Event()
        self.reads.set()
        self.connection.connection_made(cast("asyncio.Transport", self))
        reader = self.connection.begin()
        self.give(HEAD)
        assert reader.head is not None
        self.stream = UpstreamStream(
            cast("UpstreamPool", None), self.connection, reader, reader.head, None, reused=False
        )

    def give(self, data: bytes) -> None:
        self.buffer.view[: len(data)] = data
        self.connection.buffer_updated(len(data))

    def set_write_buffer_limits(self, **_: int) -> None:
        """As a transport's."""

    def pause_reading(self) -> None:
        self.reads.clear()

    def resume_reading(self) -> None:
        self.reads.set()

    def abort(self) -> None:
        self.reads.set()


class _Found(NamedTuple):
    body: bytes
    ended: str | None
    relayed: Any
    observation: Any


class _Case(NamedTuple):
    """`turns`: after which reads the loop gets its turn; in the end it always does."""

    reads: list[bytes]
    turns: int
    every: int
    shape: StreamShape
    hides: bool


async def _turns(count: int = 8) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _run(case: _Case) -> tuple[_Found, int]:
    upstream, downstream = _Upstream(), _SlowDownstream(case.every)
    stream = upstream.stream
    dog = Watchdog(stream, downstream, None, None, None, asyncio.get_running_loop())
    watching = observer(EventAnswer())
    along = accompaniment(watching, hide=UsageHider().hide if case.hides else None)
    answer = Answer(stream, dog, "events")
    relaying = asyncio.ensure_future(
        relay(exchange(downstream, case.shape), answer, cast("Any", SimpleNamespace(secrets=())), along, None)
    )
    await _turns()
    for number, read in enumerate(case.reads):
        while not upstream.reads.is_set() and not relaying.done():
            downstream.pace.reads.set()
            await _turns()
        if upstream.connection.closed or relaying.done():
            break
        upstream.give(read)
        if case.turns >> (number % 8) & 1:
            await _turns(1 + number % 3)
        if number % 4 == 3:
            downstream.pace.reads.set()
            await _turns()
    upstream.connection.connection_lost(None)
    while not relaying.done():
        downstream.pace.reads.set()
        await _turns(1)
    assert (downstream.flowing_body_bytes, downstream.flowing_bytes) == (0, 0)
    dog.stop()
    watching.finish()
    relayed = relaying.result()
    failure = relayed.failure and (relayed.failure.kind, relayed.failure.message)
    # as much as came until then, where an error ends the relay, be it one that clients do not see
    ends_early = failure is not None or any(mark in b"".join(case.reads) for mark in (b"error:", b'"object":"error"'))
    received = None if ends_early else stream.received_bytes
    findings = relayed.events, failure, relayed.told_error, received
    return _Found(downstream.body, downstream.ended, findings, watching.observe(3)), downstream.through


async def _both(case: _Case) -> int:
    """Compare the two; how many writes went past the plain loop."""
    flowed, through = await _run(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay_module, "may_flow", lambda *_: False)
        plain, none = await _run(case)
    assert flowed == plain
    assert none == 0
    return through


_USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n'
_EVENTS = st.sampled_from([
    ROLE, delta("a"), delta("b"), delta("c") + delta("d"), FINISH, DONE, _USAGE, _USAGE + DONE, delta("a")[:20],
    b": c\n\n",
    delta("a").replace(b"\n", b"\r\n"), delta("a")[:-2] + b"\n\r", b"id: 1\n" + delta("a"), delta("error"), b"\n",
    b'data: {"error":{"message":"x"}}\n\n', b'error: {"code":500}\n\n', b'data: {"object":"error"}\n\n',
    b'event: response.created\ndata: {"type":"response.created","sequence_number":1}\n\n',
    b'event: x\ndata: {"type":"response.completed","sequence_number":2,"response":{"usage":null}}\n\n',
    delta("a")[:-3] + b',"usage":null}\n\n', delta("b")[:-3] + b',"usage":null,"obfuscation":"xy"}\n\n',
    b"data: " + b"x" * MAX_EVENT_BYTES,
    *(recording.body for name, recording in RECORDINGS.items() if name in {"openai", "responses", "azure", "cr"}),
])  # fmt: skip


@st.composite
def _cases(draw: st.DrawFn) -> _Case:
    """Mostly an event a chunk and a chunk a read, as upstreams send them; else anything."""
    events = draw(st.lists(_EVENTS, max_size=12))
    wire = [chunk(event) for event in events] + draw(st.sampled_from([[LAST_CHUNK], [], [b"x\r\n"]]))
    places = draw(st.none() | st.lists(st.integers(0, 3000), max_size=9))
    if places is not None:
        wire = list(cut(b"".join(wire), places))
    most = READ_BUFFER_BYTES
    reads = [read[start : start + most] for read in wire for start in range(0, len(read), most)]
    shapes: tuple[StreamShape, ...] = "chat", "responses", "other"
    shape = draw(st.sampled_from(shapes))
    return _Case(reads, draw(st.integers(0, 255)), draw(st.integers(0, 3)), shape, draw(st.booleans()))


@given(_cases())
@example(_Case([*[chunk(ROLE)] * 4, chunk(b'error: {"code":500}\n\n'), chunk(delta("a"))], 17, 2, "chat", hides=False))
@example(_Case([*[chunk(ROLE)] * 5, chunk(b"error:\n\n"), chunk(delta("a")[:-1] + b"\r")], 35, 2, "chat", hides=False))
@example(_Case([chunk(ROLE), chunk(DONE), chunk(b'data: {"object":"error"}\n\n')], 0, 1, "chat", hides=False))
async def test_both_forms_write_and_find_the_same(case: _Case) -> None:
    await _both(case)


async def test_usual_events_go_past_the_loop() -> None:
    """Else the other test compares the plain form with itself."""
    reads = [chunk(ROLE), *[chunk(delta("a"))] * 20, chunk(FINISH), chunk(DONE) + LAST_CHUNK]
    assert await _both(_Case(reads, 255, 0, "chat", hides=True)) == 22
    assert await _both(_Case(reads, 0, 0, "chat", hides=False)) == 22
    assert await _both(_Case(reads, 255, 5, "chat", hides=False)) >= 10
    together = [chunk(ROLE), chunk(delta("a")), chunk(delta("b")) + chunk(delta("c")), *reads[-2:]]
    assert await _both(_Case(together, 255, 0, "chat", hides=True)) == 4
    half = [*together[:3], chunk(delta("d")) + chunk(delta("e"))[:9], chunk(delta("e"))[9:], *reads[-2:]]
    assert await _both(_Case(half, 255, 0, "chat", hides=True)) == 5  # the half is for the loop


@pytest.mark.parametrize("events", [1, 2, 8, 20])
async def test_much_that_passes_is_told_of_before_it_is_too_much(events: int) -> None:
    """However many events a read holds: else their text piles up, and becomes one event that nobody can follow."""
    long = [chunk(delta("word " * 125))] * events
    reads = [chunk(ROLE), chunk(delta("a")), *[b"".join(long)] * 80, chunk(FINISH), chunk(DONE) + LAST_CHUNK]
    found, through = await _run(_Case(reads, 0, 0, "chat", hides=False))
    assert (found.relayed[0], through) == (80 * events + 4, 83)
    assert found.observation is None or found.observation.grade == "counted"  # none yet: it takes a thread


@pytest.mark.parametrize("together", [1, 2, 7])
@pytest.mark.parametrize("chars", [100, 600, 700, 800, 1300, 1900])
async def test_long_texts_are_counted_well(chars: int, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are told of together, they are no more than is counted at once; else the rest is counted roughly."""
    roughly = Mock(return_value=0)
    monkeypatch.setattr(observe, "_ROUGHLY", SimpleNamespace(count=roughly))
    reads = [chunk(ROLE), chunk(delta("a")), *[chunk(delta("word " * (chars // 5))) * together] * 300]
    await _run(_Case([*reads, chunk(FINISH), chunk(DONE) + LAST_CHUNK], 0, 0, "chat", hides=False))
    assert not roughly.called


async def _flowing() -> tuple[_Upstream, _SlowDownstream, asyncio.Future[Any]]:
    """A chat whose events may flow, and the task that relays it, with no limit to watch."""
    upstream, downstream = _Upstream(), _SlowDownstream(0)
    dog = Watchdog(upstream.stream, downstream, None, None, None, asyncio.get_running_loop())
    answer = Answer(upstream.stream, dog, "events")
    relaying = asyncio.ensure_future(
        relay(exchange(downstream, "chat"), answer, cast("Any", None), accompaniment(), None)
    )
    await _turns()
    return upstream, downstream, relaying


async def test_an_event_is_written_in_the_turn_in_which_it_arrives() -> None:
    """Promise 2: no task runs between the upstream's bytes and the client's."""
    upstream, downstream, relaying = await _flowing()
    sent = b""
    for event in (ROLE, delta("a"), delta("b")):
        upstream.give(chunk(event))
        sent += event
        assert downstream.body == sent
    relaying.cancel()
    await asyncio.wait({relaying})


@pytest.mark.parametrize("events", [[ROLE], [ROLE, delta("a")], [ROLE, delta("a"), delta("b")]])
async def test_a_client_that_left_is_found_out_at_the_next_event(events: list[bytes]) -> None:
    upstream, downstream, relaying = await _flowing()
    for event in events:
        upstream.give(chunk(event))
    downstream.gone = True
    upstream.give(chunk(delta("a")))
    with pytest.raises(ConnectionResetError):
        await relaying
    upstream.give(chunk(delta("b")))  # nobody takes it any more
    assert downstream.body == b"".join(events)
