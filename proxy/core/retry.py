"""May what failed be tried again, and when: one table of what happened, what was sent and what policy says.

| what happened | nothing sent | the request held whole | a streamed body partly used up |
|---|---|---|---|
| no connection | always | always | never |
| a kept-alive connection closed without a byte | always | by policy | never |
| no head in time, a broken answer, not a stream | by policy | by policy | never |
| the upstream says `x-should-retry: false` | never | never | never |
| 401, 403 | by policy, with another API key | the same | never |
| 408, 429, 500, 502, 503, 504, 529, or it says `x-should-retry: true` | by policy | by policy | never |
| anything else | never | never | never |

"Always" is within the attempts and the client's patience; "by policy" within the retry budget too, because the upstream
may have worked on it. Once a byte went downstream nothing is repeated.

Another route is tried at once, as is another API key where the key was at fault. Otherwise there is a pause like
Envoy's: random, up to a bound that doubles with each retry, and after what the upstream asked for. One that asks for
more than the policy's longest pause is not waited for: the exchange holds its quota all the while, and its client,
which gets the answer with its `retry-after`, can plan with it.
"""

from __future__ import annotations

import calendar
import enum
import re
from dataclasses import dataclass
from email.utils import parsedate_tz
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.errors import Repeat

if TYPE_CHECKING:
    from proxy.core.errors import ErrorKind

RETRYABLE_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504, 529})
CREDENTIAL_STATUSES: Final = frozenset({401, 403})
"""Only another API key can help."""
MAX_RETRY_AFTER_S: Final = 86_400.0
"""What is asked beyond that is no wait but a refusal."""
_MAX_RETRY_AFTER_CHARS: Final = 64
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]*)?", re.ASCII)


class Sent(enum.Enum):
    """What of the request reached an upstream."""

    NOTHING = "nothing"
    ALL = "all"  # or part of it; it is held whole and can be sent again
    PARTLY_SPENT = "partly_spent"  # a streamed body of which some is used up


class Happened(NamedTuple):
    """How an attempt ended: with an error (`kind`), or an upstream's answer with `status` (`kind` None).

    `retry_after_s` and `should_retry` are what the answer asked for, None for nothing.
    """

    kind: ErrorKind | None = None
    status: int | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` in all; the pause before the first retry is up to `backoff_s`, before any up to `max_backoff_s`."""

    attempts: int
    backoff_s: float
    max_backoff_s: float


class Retry(NamedTuple):
    """Try again after `pause_s`, `elsewhere` on an untried route, else on the same. `spends`: from the retry budget.

    `reason` is one of a few words, for `sluice_retries_total`.
    """

    pause_s: float
    reason: str
    elsewhere: bool
    spends: bool


def decide(
    happened: Happened,
    *,
    sent: Sent,
    attempts_made: int,
    policy: RetryPolicy,
    elsewhere: bool,
    other_key: bool,
    patience_s: float | None,
    jitter: float,
    may_spend: bool,
    committed: bool = False,
) -> Retry | None:
    """Whether and how to try again; None: what happened is what the client is told.

    `elsewhere`: there is a route that was not tried. `other_key`: there is another API key for this one that does not
    cool down. `patience_s` is left of the client's time, None for no end. `jitter` is random in [0, 1). `may_spend`:
    the retry budget has something left. `committed`: a byte went downstream.
    """
    if committed or sent is Sent.PARTLY_SPENT or attempts_made >= policy.attempts:
        return None
    reason = _reason(happened, other_key=other_key)
    spends = not _is_undelivered(happened, sent)
    if reason is None or (spends and not may_spend):
        return None
    if happened.status in CREDENTIAL_STATUSES:
        elsewhere = False
    pause_s: float | None = 0.0
    if not elsewhere and not (other_key and _is_of_the_key(happened)):
        pause_s = _pause_s(happened.retry_after_s, attempts_made, policy, jitter)
    if pause_s is None or (patience_s is not None and pause_s >= patience_s):
        return None
    return Retry(pause_s, reason, elsewhere, spends)


def retry_after_of(value: bytes | None, now_unix_s: float, *, value_ms: bytes | None = None) -> float | None:
    """The seconds that `retry-after` asks to wait, from 0 to `MAX_RETRY_AFTER_S`; None where it says nothing sensible.

    RFC 9110 section 10.2.3: a number of seconds or a date. Fractions are read as SDKs do, which also look at
    `retry-after-ms` (`value_ms`) first (protocol.md section 2.6).
    """
    wait_ms = _number(_text(value_ms))
    if wait_ms is not None:
        return min(wait_ms / 1000, MAX_RETRY_AFTER_S)
    text = _text(value)
    wait_s = _number(text)
    if wait_s is None:
        date_s = _date_unix_s(text)
        wait_s = None if date_s is None else max(0.0, date_s - now_unix_s)
    return None if wait_s is None else min(wait_s, MAX_RETRY_AFTER_S)


def _reason(happened: Happened, *, other_key: bool) -> str | None:
    """The row's word; None for those that say never."""
    kind, status = happened.kind, happened.status
    if kind is not None:
        if kind.repeat in _WORDS:
            return _WORDS[kind.repeat]
        return kind.outcome if kind.repeat is Repeat.BY_POLICY else None
    if status is None or happened.should_retry is False:
        return None
    if status in CREDENTIAL_STATUSES:
        return f"status_{status}" if other_key else None
    if status in RETRYABLE_STATUSES:
        return f"status_{status}"
    return "should_retry" if happened.should_retry and status >= 400 else None


_WORDS: Final = {Repeat.NOTHING_SENT: "nothing_sent", Repeat.STALE_CONNECTION: "stale_connection"}


def _is_undelivered(happened: Happened, sent: Sent) -> bool:
    """No upstream was given work: to try elsewhere is no more of it than was asked for."""
    if happened.kind is None:
        return False
    repeat = happened.kind.repeat
    return repeat is Repeat.NOTHING_SENT or (repeat is Repeat.STALE_CONNECTION and sent is Sent.NOTHING)


def _is_of_the_key(happened: Happened) -> bool:
    """The upstream refused or limited the API key, and might serve the next one."""
    return happened.kind is None and (happened.status == 429 or happened.status in CREDENTIAL_STATUSES)


def _pause_s(asked_s: float | None, attempts_made: int, policy: RetryPolicy, jitter: float) -> float | None:
    """What the upstream asked for, and then some, lest all that it told so come back at once; None: too long."""
    # the exponent is bounded: 2**1000 seconds is more than a float holds
    bound_s = min(policy.backoff_s * 2.0 ** min(attempts_made - 1, 64), policy.max_backoff_s)
    if asked_s is not None and asked_s > policy.max_backoff_s:
        return None
    return max(asked_s or 0.0, 0.0) + jitter * bound_s


def _text(value: bytes | None) -> str:
    return "" if value is None or len(value) > _MAX_RETRY_AFTER_CHARS else value.decode("latin-1").strip(" \t")


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _date_unix_s(text: str) -> float | None:
    """RFC 9110 section 5.6.7, in any of its three forms; all of them mean UTC where they name no other zone."""
    try:
        parts = parsedate_tz(text)
        return None if parts is None else float(calendar.timegm(parts[:6]) - (parts[9] or 0))
    except (ValueError, OverflowError, IndexError, TypeError):
        return None  # whatever it is, it is no date
