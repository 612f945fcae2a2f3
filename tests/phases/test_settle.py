"""What each ending of an exchange is charged."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.core import errors
from proxy.core.pricing import Price
from proxy.core.usage import Grade, Observation, Usage
from proxy.phases.forward import AnswerKind
from proxy.phases.record import Findings
from proxy.phases.settle import Settlement, enter, observed_at_once, settle
from tests.fakes.accounts import RESERVED, MemoryEntry, account, observer
from tests.fakes.arrived import arrived

NOTHING = Observation(Grade.EXACT)
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
        (findings(error=UNREACHABLE), True, NOTHING),
        (findings(error=UNREACHABLE, kind=AnswerKind.EVENTS), True, NOTHING),
        (findings(error=UNRECORDED, kind=AnswerKind.OPAQUE), True, NOTHING),
        (findings(kind=AnswerKind.ERROR), True, NOTHING),
        (findings(error=GONE, aborted_by="client"), False, NOTHING),
        (findings(error=GONE, aborted_by="client"), True, Observation(Grade.COUNTED, Usage(7))),
        (findings(error=GONE, aborted_by="client", streamed=False), True, Observation(Grade.UNKNOWN)),
        (findings(error=GONE, aborted_by="client", kind=AnswerKind.ERROR), True, NOTHING),
        (findings(kind=AnswerKind.OPAQUE), True, Observation(Grade.UNKNOWN)),
    ],
)
def test_what_was_used_without_looking_at_an_answer(found: Findings, *, sent: bool, observation: Observation) -> None:
    assert observed_at_once(arrived(), found, account(sent=sent)) == observation


def test_a_rest_to_read_takes_time() -> None:
    found = findings(kind=AnswerKind.EVENTS, error=GONE, aborted_by="client")
    assert found.observer is not None
    found.observer.rest = lambda: cast("Any", None)
    assert observed_at_once(arrived(), found, account()) is None


PRICE = Price(input=Decimal(2), output=Decimal(8))


@pytest.mark.parametrize(
    ("price", "observation", "settlement"),
    [
        (PRICE, Observation(Grade.EXACT, Usage(5, 3)), Settlement(Grade.EXACT, Usage(5, 3), 34_000, is_priced=True)),
        (PRICE, Observation(Grade.UNKNOWN), Settlement(Grade.UNKNOWN, RESERVED, 814_000, is_priced=True)),
        (PRICE, NOTHING, Settlement(Grade.EXACT, Usage(), 0, is_priced=True)),
        (None, Observation(Grade.COUNTED, Usage(5)), Settlement(Grade.COUNTED, Usage(5), 0, is_priced=False)),
        (None, NOTHING, Settlement(Grade.EXACT, Usage(), 0, is_priced=True)),
    ],
)
def test_the_price(price: Price | None, observation: Observation, settlement: Settlement) -> None:
    assert settle(account(price=price), observation) == settlement


def test_the_row() -> None:
    entry = MemoryEntry()
    of = account(entry=entry)
    of.attempts = 2
    settlement = Settlement(Grade.COUNTED, Usage(5, 3), 34_000, is_priced=True)
    enter(of, settlement, ended_ms=1_700_000_000_000, status=499, outcome="client_gone", first_byte_s=0.0126)
    [row] = entry.settled
    assert (row.ended_ms, row.status, row.outcome, row.attempts) == (1_700_000_000_000, 499, "client_gone", 2)
    assert (row.grade, row.usage, row.cost_nano_usd, row.first_byte_ms) == (Grade.COUNTED, Usage(5, 3), 34_000, 13)
