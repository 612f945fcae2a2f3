"""Quotas: what a key may use, what it has used, and what an exchange reserves. Pure: the time is an argument."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from proxy.core.quota_stands import Stands

LEASE_MS: Final = 30_000
"""How long a slot stays taken without being renewed: what a dead worker's exchanges hold comes back within it."""

MAX_AMOUNT: Final = 10**15
"""No limit, demand or counter goes beyond it: sums and the sliding formula stay exact in Lua's 53 bits."""


class Kind(enum.Enum):
    """What a limit counts, in the order of a demand's amounts."""

    __hash__ = object.__hash__  # members are single: Enum's own hash is ten times as slow, and limits are hashed often

    REQUESTS = "requests"
    TOKENS = "tokens"  # prompt and output
    SPEND = "spend"  # whole micro-USD


_PLACES: Final = {kind: at for at, kind in enumerate(Kind)}
_AMOUNTS: Final = {
    Kind.REQUESTS: attrgetter("requests"),
    Kind.TOKENS: attrgetter("tokens"),
    Kind.SPEND: attrgetter("micro_usd"),
}


class Calendar(enum.Enum):
    """Windows of the calendar, in UTC."""

    __hash__ = object.__hash__

    DAY = "day"
    MONTH = "month"
    YEAR = "year"


class Limit(NamedTuple):
    """One limit of a key, made once from the configuration.

    `amount` counts requests, tokens or micro-USD and is at most `MAX_AMOUNT`. `window` is in seconds where it slides,
    at most a day. `model` is the pattern of a limit narrowed to some models, "" for all.
    """

    kind: Kind
    amount: int
    window: int | Calendar
    model: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Everything that applies to one exchange of one key. No two windows have the same `counter_name`.

    Of each window `names` are those of the counters, and `places` say which amount of a demand it counts.
    """

    windows: tuple[Limit, ...] = ()
    concurrency: int | None = None
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)  # worked out once: asked for every exchange
    places: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(map(counter_name, self.windows)))
        object.__setattr__(self, "places", tuple([_PLACES[limit.kind] for limit in self.windows]))


class Demand(msgspec.Struct, frozen=True, gc=False):
    """What an exchange reserves, or used. A store takes what is beyond `MAX_AMOUNT` for `MAX_AMOUNT`."""

    requests: int = 0
    tokens: int = 0
    micro_usd: int = 0


class Standing(msgspec.Struct, frozen=True, gc=False):
    """Where a limit stands after an operation, for headers and metrics.

    `remaining` is never negative. `reset_s` is the time until all of it is available again, if nothing else is used:
    what OpenAI means by `x-ratelimit-reset-*`.
    """

    limit: Limit
    used: int
    remaining: int
    reset_s: float


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """An admitted exchange: `id` is the exchange's, and unique.

    `buckets` says for each window of `limits` where it was charged: the bucket's number of a sliding window, the start
    of a calendar window in seconds of UNIX time. `unchecked` is one that a store out of reach let pass without limits:
    nothing is reserved, and there are no buckets and nothing stands.
    """

    id: str
    key_id: str
    limits: Limits
    demand: Demand
    buckets: tuple[int, ...]
    unchecked: bool = False


class Granted(msgspec.Struct, frozen=True, gc=False):
    """The exchange is admitted, and so the limits stand with it."""

    reservation: Reservation
    stands: Stands


class Refused(NamedTuple):
    """The exchange is not admitted, and nothing has changed.

    `limit` is the one that refuses; of several, the one that makes it wait longest; None where only the concurrency
    refuses. `wait_s` is the time until this demand would fit if nothing else happened, to the millisecond; None if it
    never will (it is larger than the limit's amount), and for concurrency, where nobody knows.
    """

    limit: Limit | None
    wait_s: float | None
    stands: Stands


@functools.lru_cache(4096)
def counter_name(limit: Limit) -> str:
    """What a limit counts in, within a key: `tokens:60:gpt-4*`, `spend:month:`.

    The amount is not in it: a limit that is changed goes on with what was used.
    """
    window = limit.window.value if isinstance(limit.window, Calendar) else limit.window
    return f"{limit.kind.value}:{window}:{limit.model}"


def bounded(demand: Demand) -> Demand:
    """The demand as stores count it: nothing below zero, nothing beyond `MAX_AMOUNT`."""
    requests, tokens, micro_usd = demand.requests, demand.tokens, demand.micro_usd
    if 0 <= requests <= MAX_AMOUNT and 0 <= tokens <= MAX_AMOUNT and 0 <= micro_usd <= MAX_AMOUNT:
        return demand
    return Demand(*(min(max(amount, 0), MAX_AMOUNT) for amount in (requests, tokens, micro_usd)))


def amount_of(demand: Demand, kind: Kind) -> int:
    """How much of `kind` there is in a demand."""
    amount: int = _AMOUNTS[kind](demand)
    return amount
