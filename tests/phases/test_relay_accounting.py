"""What goes along with a relay: the row is durable before the first byte, all is watched, the hidden stays hidden."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from proxy.core import errors
from proxy.core.answers import EventAnswer
from proxy.core.ending import StreamShape
from proxy.core.injection import UsageHider
from proxy.core.usage import Grade, Observation, Usage
from proxy.phases.forward import Answer, AnswerKind
from proxy.phases.relay import Accompaniment, Relayed, relay
from tests.fakes.accounts import MemoryEntry, accompaniment, observer
from tests.fakes.peers import FakeDownstream, FakeStream, exchange
from tests.fakes.recordings import DONE, FINISH, OPENAI, ROLE, delta

if TYPE_CHECKING:
    from proxy.phases.route import Upstream
    from proxy.upstream.attempt import UpstreamStream

UNRECORDED = errors.ProxyError(errors.STORE_UNAVAILABLE, "The ledger cannot be written.")


async def relayed(
    stream: FakeStream, along: Accompaniment, downstream: FakeDownstream, kind: AnswerKind = AnswerKind.EVENTS
) -> Relayed:
    answer = Answer(cast("UpstreamStream", stream), stream.watchdog, kind)
    upstream = cast("Upstream", None)
    return await relay(exchange(downstream, StreamShape.CHAT), answer, upstream, along, None)


@pytest.mark.parametrize("kind", AnswerKind)
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
    assert watching.observe(0) == Observation(Grade.EXACT, Usage(12, 12))


async def test_bodies_that_are_no_events_are_seen_too() -> None:
    seen = bytearray()
    watching = observer()
    watching.saw = seen.extend  # type: ignore[method-assign, assignment]  # to see that all of it comes by
    await relayed(FakeStream([b'{"usage":', b"null}"]), accompaniment(watching), FakeDownstream(), AnswerKind.OPAQUE)
    assert seen == b'{"usage":null}'


@pytest.mark.parametrize("error", [ConnectionResetError, asyncio.CancelledError])
@pytest.mark.parametrize(
    ("reads", "reads_on"),
    [([ROLE, delta("a")], False), ([ROLE, FINISH], True), ([ROLE, FINISH + DONE], False)],
    ids=["before the finish reason", "behind it", "behind the end"],
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
