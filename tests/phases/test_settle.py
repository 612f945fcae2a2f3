"""What each ending of an exchange is charged."""

from __future__ import annotations

import asyncio
import itertools
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from proxy.core import errors
from proxy.core.answers import EventAnswer
from proxy.core.pricing import Price
from proxy.core.usage import Observation, Usage
from proxy.phases.record import Findings, ending_of
from proxy.phases.relay import Relayed
from proxy.phases.settle import Settlement, enter, observed_at_once, observed_later, settle
from tests.fakes.accounts import RESERVED, MemoryEntry, account, observer
from tests.fakes.arrived import arrived
from tests.fakes.recordings import delta

if TYPE_CHECKING:
    from proxy.phases.forward import AnswerKind

NOTHING = Observation("exact")
UNREACHABLE = errors.ProxyError(errors.UPSTREAM_UNREACHABLE, "refused")
GONE = errors.ProxyError(errors.CLIENT_GONE, "The client has left.")
UNRECORDED = errors.ProxyError(errors.STORE_UNAVAILABLE, "The ledger cannot be written.")


def findings(*, streamed: bool = True, kind: AnswerKind | None = None, **found: Any) -> Findings:
    made = Findings(admission=cast("Any", SimpleNamespace(streamed=streamed)), **found)
    if kind is not None:
        made.answer = cast("Any", SimpleNamespace(kind=kind))
        made.observer = observer(None)
    return made


@pytest.mark.parametrize(
    ("found", "sent", "observation"),
    [
        (findings(error=UNREACHABLE, is_refused=True), True, NOTHING),
        (findings(error=UNREACHABLE, is_refused=True, kind="events"), True, NOTHING),
        (findings(error=UNRECORDED, is_refused=True, kind="opaque"), True, NOTHING),
        (findings(kind="error"), True, NOTHING),
        (findings(error=GONE, aborted_by="client"), False, NOTHING),
        (findings(error=GONE, aborted_by="client"), True, Observation("counted", Usage(7))),
        (findings(error=GONE, aborted_by="client", streamed=False), True, Observation("unknown")),
        (findings(error=GONE, aborted_by="client", kind="error"), True, NOTHING),
        (findings(kind="opaque", relayed=Relayed()), True, Observation("unknown")),
    ],
)
def test_what_was_used_without_looking_at_an_answer(found: Findings, *, sent: bool, observation: Observation) -> None:
    assert observed_at_once(found, account(sent=sent)) == observation


@pytest.mark.parametrize("how", [{"error": GONE, "aborted_by": "client"}, {"relayed": Relayed(failure=UNREACHABLE)}])
def test_what_broke_off_is_settled_in_its_turn(how: dict[str, Any]) -> None:
    assert observed_at_once(findings(kind="events", **how), account()) is None


async def test_each_turn_of_the_loop_settles_one() -> None:
    loop, turn = asyncio.get_running_loop(), asyncio.Lock()
    turns, settled = itertools.count(), []

    class Seen(EventAnswer):
        def finish(self) -> None:
            settled.append(now[0])  # to see when

    async def settling() -> None:
        watching = observer(Seen())
        watching.saw(delta("two words"))
        assert await observed_later(account(), watching, turn) == Observation("counted", Usage(7))

    now = [next(turns)]
    tasks = [loop.create_task(settling()) for _ in range(5)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        now[0] = next(turns)
    await asyncio.gather(*tasks)
    assert len(set(settled)) == 5


PRICE = Price(input=Decimal(2), output=Decimal(8))


@pytest.mark.parametrize(
    ("price", "observation", "settlement"),
    [
        (PRICE, Observation("exact", Usage(5, 3)), Settlement("exact", Usage(5, 3), 34_000, is_priced=True)),
        (PRICE, Observation("unknown"), Settlement("unknown", RESERVED, 814_000, is_priced=True)),
        (PRICE, NOTHING, Settlement("exact", Usage(), 0, is_priced=True)),
        (None, Observation("counted", Usage(5)), Settlement("counted", Usage(5), 0, is_priced=False)),
        (None, NOTHING, Settlement("exact", Usage(), 0, is_priced=True)),
    ],
)
def test_the_price(price: Price | None, observation: Observation, settlement: Settlement) -> None:
    assert settle(account(price=price), observation) == settlement


def test_the_row() -> None:
    entry = MemoryEntry()
    of = account(entry=entry)
    of.attempts = 2
    settlement = Settlement("counted", Usage(5, 3), 34_000, is_priced=True)
    exchange = arrived()
    cast("Any", exchange.downstream).first_byte_s = exchange.timeline.arrived_s + 0.0126
    enter(of, settlement, ending_of(exchange, Findings(error=GONE)), 1_700_000_000_000)
    [row] = entry.settled
    assert (row.ended_ms, row.status, row.outcome, row.attempts) == (1_700_000_000_000, 499, "client_gone", 2)
    assert (row.grade, row.usage, row.cost_nano_usd, row.first_byte_ms) == ("counted", Usage(5, 3), 34_000, 13)
