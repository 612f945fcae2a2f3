"""The end of an exchange's account: what it used, what that costs, and the row of the ledger completed.

Settling survives the cancellation of the exchange: where it takes time (a long text to count, the usage of a client
that left after the last word) the pipeline runs it in a task of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from proxy.core.pricing import cost_nano_usd
from proxy.core.usage import Grade, Observation, Usage
from proxy.stores.base import Settled

if TYPE_CHECKING:
    from proxy.phases.account import Account
    from proxy.phases.observe import Observer
    from proxy.phases.record import Ending, Findings

_NOTHING_USED: Final = Observation("exact")
UNKNOWN: Final = Observation("unknown")


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """What is charged. `is_priced` is False where tokens were used and nobody knows their price."""

    grade: Grade
    usage: Usage
    cost_nano_usd: int
    is_priced: bool


def observed_at_once(findings: Findings, account: Account) -> Observation | None:
    """What the exchange used; None where finding out takes time."""
    observer = findings.observer
    if findings.is_refused:
        return _NOTHING_USED  # whatever failed, the client got nothing but the error
    if observer is None or findings.answer is None:
        return _unanswered(findings, account)
    if findings.answer.kind == "error":
        return _NOTHING_USED
    if findings.relayed is None or findings.relayed.failure is not None:
        return None
    observer.finish()
    if observer.is_error and not observer.has_final_usage:
        return _NOTHING_USED
    return observer.observe(account.prompt_tokens)


async def observed_later(account: Account, observer: Observer, turn: asyncio.Lock) -> Observation:
    """The same where it takes time: for the usage behind a finish reason, or to count a text.

    What broke off was probably not alone: clients and upstreams leave with all of their streams. `turn` lets one
    settlement into each turn of the event loop, so that thirty do not become one long one.
    """
    if observer.rest is not None:
        await observer.rest()
    async with turn:
        await asyncio.sleep(0)
        observer.finish()
        observation = observer.observe(account.prompt_tokens)
    if observation is not None:
        return observation
    return await observer.observe_beside(account.prompt_tokens)


def _unanswered(findings: Findings, account: Account) -> Observation:
    """What an exchange used whose client left before there was an answer, or whose request was wrong.

    An upstream that was at work is to be paid. Of a stream the prompt is known, and what a model may have thought
    unseen is not counted; any other answer was being made where nobody sees it.
    """
    if not account.is_sent or findings.aborted_by is None:
        return _NOTHING_USED
    streamed = findings.admission is not None and findings.admission.streamed
    return Observation("counted", Usage(account.prompt_tokens)) if streamed else UNKNOWN


def settle(account: Account, observation: Observation) -> Settlement:
    """Put a price on what was used, or on what was reserved where that is unknown.

    A try that another outran had its prompt read, of which nobody tells: it is counted, and so is the sum.
    """
    grade, usage = observation.grade, observation.usage
    price = account.price
    is_unknown = grade == "unknown"
    if is_unknown:
        usage = account.reserved
    if price is None or (is_unknown and usage == Usage()):
        # sound and pictures reserve nothing: nobody knows what they cost where no usage is said
        settlement = Settlement(grade, usage, 0, is_priced=observation == _NOTHING_USED)
    else:
        settlement = Settlement(grade, usage, cost_nano_usd(usage, price), is_priced=True)
    return _with_lost(account, settlement) if account.lost else settlement


def _with_lost(account: Account, settlement: Settlement) -> Settlement:
    """What is charged besides for the tries that another outran."""
    lost_tokens = account.prompt_tokens * len(account.lost)
    return Settlement(
        "counted" if settlement.grade == "exact" else settlement.grade,
        msgspec.structs.replace(settlement.usage, input_tokens=settlement.usage.input_tokens + lost_tokens),
        settlement.cost_nano_usd + account.lost_nano_usd,
        settlement.is_priced,
    )


def enter(account: Account, settlement: Settlement, ending: Ending, ended_ms: int) -> None:
    """Complete the exchange's row; `ended_ms` is UNIX time in milliseconds."""
    first_byte_s = ending.first_byte_s
    account.entry.settle(
        Settled(
            ended_ms=ended_ms,
            status=ending.status,
            outcome=ending.outcome,
            grade=settlement.grade,
            usage=settlement.usage,
            cost_nano_usd=settlement.cost_nano_usd,
            attempts=account.attempts,
            first_byte_ms=None if first_byte_s is None else round(first_byte_s * 1000),
            upstream=account.upstream,
        )
    )
