"""What goes along with a relay: the row is durable before the first byte, all is watched, the hidden stays hidden."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast, get_args

import pytest

from proxy.core import errors
from proxy.core.answer_body import BodyAnswer
from proxy.core.answers import EventAnswer
from proxy.core.injection import UsageHider
from proxy.core.usage import Observation, Usage
from proxy.phases.forward import Answer, AnswerKind
from proxy.phases.relay import Accompaniment, Relayed, relay
from tests.fakes.accounts import MemoryEntry, accompaniment, observer
from tests.fakes.peers import FakeDownstream, FakeStream, exchange
from tests.fakes.recordings import DONE, FINISH, OPENAI, ROLE, delta
from tests.fakes.usage_recordings import event, plain, said

if TYPE_CHECKING:
    from proxy.phases.upstreams import Upstream
    from proxy.upstream.stream import UpstreamStream

UNRECORDED = errors.ProxyError(errors.STORE_UNAVAILABLE, "The ledger cannot be written.")


async def relayed(
    stream: FakeStream, along: Accompaniment, downstream: FakeDownstream, kind: AnswerKind = "events"
) -> Relayed:
    answer = Answer(cast("UpstreamStream", stream), stream.watchdog, kind)
    upstream = cast("Upstream", None)
    return await relay(exchange(downstream, "chat"), answer, upstream, along, None)


@pytest.mark.parametrize("kind", get_args(AnswerKind))
async def test_nothing_goes_downstream_before_the_row_is_durable(kind: AnswerKind) -> None:
    downstream, stream = FakeDownstream(), FakeStream([ROLE + FINISH + DONE])
    with pytest.raises(errors.ProxyError) as caught:
        await relayed(stream, accompaniment(entry=MemoryEntry(UNRECORDED)), downstream, kind)
    assert caught.value is UNRECORDED
    assert not downstream.started


async def test_the_observer_sees_what_the_client_does_not() -> None:
    watching, downstream = observer(EventAnswer()), FakeDownstream()
    cuts = [OPENAI[start : start + 90] for start in range(0, len(OPENAI), 90)]
    await relayed(FakeStream(cuts), accompaniment(watching, hide=UsageHider().hide), downstream)
    assert downstream.body.endswith(DONE)
    assert b'"usage"' not in downstream.body
    watching.finish()
    assert watching.observe(0) == Observation("exact", Usage(12, 12))


async def test_bodies_that_are_no_events_are_seen_too() -> None:
    seen = bytearray()

    class Seen(BodyAnswer):
        def saw(self, data: bytes) -> int:
            seen.extend(data)  # to see that all of it comes by
            return super().saw(data)

    watching = observer(Seen())
    await relayed(FakeStream([b'{"usage":', b"null}"]), accompaniment(watching), FakeDownstream(), "opaque")
    assert seen == b'{"usage":null}'


@pytest.mark.parametrize("error", [ConnectionResetError, asyncio.CancelledError])
@pytest.mark.parametrize(
    ("reads", "reads_on"),
    [
        ([ROLE, delta("a")], False),
        ([ROLE, FINISH], True),
        ([ROLE, FINISH + DONE], False),
        ([ROLE, said("a", "stop", usage=plain(4, 1))], False),
        ([ROLE, said("a", "stop") + said("", usage=plain(4, 1))], False),
        ([ROLE, said("a", usage=plain(4, 1)) + said("b", "stop")], True),
    ],
    ids=[
        "before the finish reason",
        "behind it",
        "behind the end",
        "usage beside it",
        "usage behind it",
        "usage before",
    ],
)
async def test_only_behind_a_finish_reason_is_there_a_rest_to_read(
    error: type[BaseException], reads: list[bytes], *, reads_on: bool
) -> None:
    downstream, watching = FakeDownstream(), observer(EventAnswer())

    async def write(data: bytes) -> None:
        if data is not ROLE:
            raise error

    downstream.write = write  # type: ignore[method-assign]  # a client that leaves
    with pytest.raises(error):
        await relayed(FakeStream(reads), accompaniment(watching), downstream)
    assert (watching.rest is not None) is reads_on


async def test_reading_on_ends_with_the_usage() -> None:
    """Whatever the upstream does with its connection then."""
    watching, downstream = observer(EventAnswer()), FakeDownstream()
    usage = event({"choices": [], "usage": plain(4, 1)})
    stream = FakeStream([ROLE, FINISH, b": x\n\n", usage[:20], usage[20:], b": y\n\n" * 9, DONE])
    stream.stop = stream.abort  # type: ignore[attr-defined]  # of the watchdog
    stream.fail = None  # type: ignore[attr-defined]  # comes after two seconds

    async def write(data: bytes) -> None:
        if data is not ROLE:
            raise ConnectionResetError

    downstream.write = write  # type: ignore[method-assign]  # a client that leaves
    with pytest.raises(ConnectionResetError):
        await relayed(stream, accompaniment(watching), downstream)
    assert watching.rest is not None
    await watching.rest()
    assert stream.reads_done == 5
    watching.finish()
    assert watching.observe(0) == Observation("exact", Usage(4, 1))


ASKED = event({"id": "c", "choices": [{"index": 0, "delta": {"content": "a"}}], "usage": None})
UNASKED = event({"id": "c", "choices": [{"index": 0, "delta": {"content": "a"}}]})


async def test_what_stands_before_an_error_field_is_hidden_from_too() -> None:
    downstream, stream = FakeDownstream(), FakeStream([ASKED + b'error: {"code":500}\n\n'])
    ended = await relayed(stream, accompaniment(hide=UsageHider().hide), downstream)
    assert ended.failure is not None
    assert downstream.body == UNASKED + errors.chat_error_event(ended.failure)


@pytest.mark.parametrize("shown", [b"", b"shown"])
async def test_the_remainder_of_a_body_goes_the_way_of_the_rest(shown: bytes) -> None:
    seen = []

    def hide(block: bytes) -> bytes:
        seen.append(block)
        return shown

    downstream, stream = FakeDownstream(), FakeStream([FINISH + DONE, b'data: {"usage":null}'])
    await relayed(stream, accompaniment(hide=hide), downstream)
    assert seen == [FINISH + DONE, b'data: {"usage":null}']
    assert downstream.writes == [shown] * 2 if shown else downstream.writes == []
