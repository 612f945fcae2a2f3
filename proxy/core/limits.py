"""Limits as they are written, read once; and which of a plan's and a key's apply to an exchange."""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.patterns import PatternTable
from proxy.core.quota import MAX_AMOUNT, Calendar, Kind, Limit, Limits, counter_name

if TYPE_CHECKING:
    from collections.abc import Iterable

_LIMIT: Final = re.compile(
    r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(?:/|per\s)\s*([0-9]{0,4})\s*([a-z]+)\s*", re.IGNORECASE | re.ASCII
)
_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600}
_CALENDARS: Final = {calendar.value: calendar for calendar in Calendar}
_LONGEST_S: Final = 86_400  # of a sliding window: its square in milliseconds is still exact in Lua's 53 bits
_MICRO: Final = 1_000_000
_REMEMBERED: Final = 256  # combinations of patterns that models match, of each key or plan


class Terms(NamedTuple):
    """The limits of a plan, or those that a key has in place of its plan's; None where it says nothing."""

    requests: tuple[Limit, ...] | None = None
    tokens: tuple[Limit, ...] | None = None
    spend: tuple[Limit, ...] | None = None
    concurrency: int | None = None


class KeyLimits:
    """What applies to the exchanges of a key: its limits for all models, and those narrowed to the model asked for.

    A limit counts every exchange whose model its pattern matches, whatever other patterns do.
    """

    def __init__(self, terms: Terms) -> None:
        self._concurrency = terms.concurrency
        self._limits = _strictest([*(terms.requests or ()), *(terms.tokens or ()), *(terms.spend or ())])
        patterns = dict.fromkeys(limit.model for limit in self._limits if limit.model)
        self._tables = [(pattern, PatternTable([pattern])) for pattern in patterns]
        self._of_all = self._narrowed_to(())
        self._remembered = functools.lru_cache(_REMEMBERED)(self._narrowed_to)

    def for_model(self, model: str) -> Limits:
        """The limits of an exchange that asks for `model`."""
        if not self._tables:
            return self._of_all
        return self._remembered(tuple([pattern for pattern, table in self._tables if table.match(model) is not None]))

    def _narrowed_to(self, patterns: tuple[str, ...]) -> Limits:
        windows = tuple(limit for limit in self._limits if not limit.model or limit.model in patterns)
        return Limits(windows, self._concurrency)


def merged(plan: Terms, key: Terms) -> Terms:
    """A key's terms with its plan's where the key says nothing."""
    return Terms(
        plan.requests if key.requests is None else key.requests,
        plan.tokens if key.tokens is None else key.tokens,
        plan.spend if key.spend is None else key.spend,
        plan.concurrency if key.concurrency is None else key.concurrency,
    )


def parse_limits(texts: Iterable[str] | None, kind: Kind, model: str = "") -> tuple[Limit, ...] | None:
    """`parse_limit` of each; None for None."""
    return None if texts is None else tuple(parse_limit(text, kind, model) for text in texts)


def parse_limit(text: str, kind: Kind, model: str = "") -> Limit:
    """A limit from the notation of the `limits` package: `60/minute`, `5 per 2 hours`, and `2.50/day` for USD.

    Seconds, minutes and hours slide, in any multiple up to a day; a day, a month and a year are those of the calendar
    in UTC. Fractions of a micro-USD are dropped. Raises `ValueError`.
    """
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise ValueError(f"must be an amount and a window, such as {'2.50/day' if kind is Kind.SPEND else '60/minute'}")
    return Limit(kind, _amount(match[1], kind), _window(int(match[2] or 1), match[3].lower().removesuffix("s")), model)


def _window(multiple: int, unit: str) -> int | Calendar:
    if unit not in _SECONDS and unit not in _CALENDARS:
        raise ValueError("has an unknown window: use second, minute, hour, day, month or year")
    if multiple == 0:
        raise ValueError("must have a window longer than nothing")
    if unit in _CALENDARS:
        if multiple != 1:
            raise ValueError("has an unknown window: days, months and years are those of the calendar, one at a time")
        return _CALENDARS[unit]
    if multiple * _SECONDS[unit] > _LONGEST_S:
        raise ValueError("has a window that slides over more than a day: use day, month or year")
    return multiple * _SECONDS[unit]


def _amount(digits: str, kind: Kind) -> int:
    if "." in digits and kind is not Kind.SPEND:
        raise ValueError("must be a whole amount and a window, such as 60/minute")
    amount = int(Decimal(digits) * (_MICRO if kind is Kind.SPEND else 1))
    if amount == 0:
        raise ValueError("must allow more than nothing")
    if amount > MAX_AMOUNT:
        raise ValueError(f"must be at most {MAX_AMOUNT // (_MICRO if kind is Kind.SPEND else 1)}")
    return amount


def _strictest(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """The limits with one for each counter, the smallest: two would count everything twice."""
    by_counter: dict[str, Limit] = {}
    for limit in limits:
        kept = by_counter.setdefault(counter_name(limit), limit)
        if limit.amount < kept.amount:
            by_counter[counter_name(limit)] = limit
    return tuple(by_counter.values())
