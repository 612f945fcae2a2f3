"""The period of a report, as people write it."""

from __future__ import annotations

import datetime as dt
from typing import Final

from proxy.config.values import parse_duration

_DAY_MS: Final = 86_400_000
_LAST_MS: Final = 253_402_300_799_999  # the end of the year 9999, beyond which there are no dates


class PeriodError(ValueError):
    """What cannot be a period, and which end of it, `since` or `until`, is at fault."""

    def __init__(self, end: str, message: str) -> None:
        super().__init__(message)
        self.end = end


def period(since: str, until: str | None, now_ms: int) -> tuple[int, int]:
    """The two ends of a period, see `moment`; without `until` it ends now. Raises `PeriodError`."""
    ends = []
    for end, text in (("since", since), ("until", "0s" if until is None else until)):
        try:
            ends.append(moment(text, now_ms))
        except ValueError as error:
            raise PeriodError(end, f"{error}, not {text[:60]!a}") from error
    if ends[0] >= ends[1]:
        raise PeriodError("since", "must be before until")
    return ends[0], ends[1]


def moment(text: str, now_ms: int) -> int:
    """UNIX time in milliseconds from a date or time (ISO 8601, UTC unless it says otherwise), or how long ago.

    Whole days ago mean the midnight of UTC at which that day began, so that a report by day begins with a whole one.
    Raises `ValueError`.
    """
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        return _ago(text, now_ms)
    at = at if at.tzinfo is not None else at.replace(tzinfo=dt.UTC)
    at_ms = (at - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(milliseconds=1)
    return min(max(at_ms, 0), _LAST_MS)


def _ago(text: str, now_ms: int) -> int:
    wrong = ValueError("must be a date (2026-11-01), a time (2026-11-01T12:00Z) or how long ago (7d, 12h)")
    if not text[-1:].isalpha():  # `2026` would be seconds
        raise wrong
    try:
        then_ms = max(now_ms - round(parse_duration(text) * 1000), 0)
    except ValueError as error:
        raise wrong from error
    return then_ms - then_ms % _DAY_MS if text.endswith("d") else then_ms
