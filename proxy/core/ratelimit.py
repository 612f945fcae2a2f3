"""What a client is told of its quota: OpenAI's `x-ratelimit-*` headers, and why a request does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core import errors
from proxy.core.quota import Calendar, Kind, amount_of
from proxy.core.quota_windows import faded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.core.headers import RawHeaders
    from proxy.core.quota import Demand, Limit, Refused
    from proxy.core.quota_stands import Row, Stands

_OF_REQUESTS: Final = b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"
_OF_TOKENS: Final = b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"
_MICRO: Final = 1_000_000
_SECONDS: Final = {1: "second", 60: "minute", 3600: "hour"}
_TOO_MANY_AT_ONCE: Final = "This API key has as many requests in flight as it may have at once"


def headers(stands: Stands) -> RawHeaders:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, each for the window with the smallest share left."""
    laid, now_ms = stands.laid, stands.now_ms
    requests, tokens, _ = stands.charged
    told = _lines(_OF_REQUESTS, laid.requests, requests, now_ms) if laid.requests else []
    if laid.tokens:
        told += _lines(_OF_TOKENS, laid.tokens, tokens, now_ms)
    return told


def _lines(names: tuple[bytes, bytes, bytes], rows: Sequence[Row], charged: int, now_ms: int) -> RawHeaders:
    tightest = rows[0]
    least, limit = 1, 0  # more than any share
    for row in rows:
        amount, room, previous, over_ms, length_ms = row
        left = room - charged
        if previous:
            left -= faded(previous, over_ms - now_ms, length_ms)
        if left * limit < least * amount:  # shares compared without dividing
            least, limit, tightest = left, amount, row
    amount, room, previous, over_ms, length_ms = tightest
    reset_ms = over_ms - now_ms
    if room - charged < amount:
        reset_ms += length_ms  # what its current bucket counts, the next one does
    elif not previous:
        reset_ms = 0
    of_limit, of_remaining, of_reset = names
    return [(of_limit, b"%d" % limit), (of_remaining, b"%d" % max(least, 0)), (of_reset, _duration(reset_ms))]


def duration(seconds: float) -> str:
    """A time in OpenAI's notation, to the millisecond: `0s`, `20ms`, `6.5s`, `1m6.5s`, `2h0m0s`."""
    return _duration(round(seconds * 1000)).decode("ascii")


def _duration(whole_ms: int) -> bytes:
    if whole_ms >= 60_000:
        minutes, rest_ms = divmod(whole_ms, 60_000)
        if minutes < 60:
            return b"%dm%gs" % (minutes, rest_ms / 1000)
        return b"%dh%dm%gs" % (minutes // 60, minutes % 60, rest_ms / 1000)
    if whole_ms >= 1000:
        return b"%gs" % (whole_ms / 1000)
    return b"%dms" % whole_ms if whole_ms > 0 else b"0s"


def refusal(refused: Refused, demand: Demand) -> errors.ProxyError:
    """The error for a request that a quota refuses: which limit, what is left of it, and when to try again."""
    told = headers(refused.stands)
    limit = refused.limit
    if limit is None:
        return errors.ProxyError(errors.TOO_MANY_AT_ONCE, f"{_TOO_MANY_AT_ONCE}.", headers=told)
    name = f"{_amount(limit, limit.amount)} per {window_name(limit)}"
    asked = amount_of(demand, limit.kind)
    if refused.wait_s is None:
        message = (
            f"Request too large: with its prompt and the longest answer that it allows it may use "
            f"{_amount(limit, asked)}, and the limit is {name}. Set max_tokens, or less of it."
        )
        return errors.ProxyError(errors.LARGER_THAN_LIMIT, message, headers=told)
    used = next(standing.used for standing in refused.stands.standings() if standing.limit == limit)
    state = f"used {_amount(limit, used)}, may use {_amount(limit, asked)} more"
    if isinstance(limit.window, Calendar):
        renewed = f"It is renewed in {duration(refused.wait_s)}."
        message = f"You exceeded your current quota: limit {name}, {state}. {renewed}"
        return errors.ProxyError(errors.INSUFFICIENT_QUOTA, message, headers=told)
    kind = errors.RATE_LIMIT_REQUESTS if limit.kind is Kind.REQUESTS else errors.RATE_LIMIT_TOKENS
    message = f"Rate limit reached: limit {name}, {state}. Please try again in {duration(refused.wait_s)}."
    return errors.ProxyError(kind, message, retry_after_s=refused.wait_s, headers=told)


def _amount(limit: Limit, amount: int) -> str:
    if limit.kind is Kind.SPEND:
        return f"{amount / _MICRO:.6f}".rstrip("0").rstrip(".") + " USD"
    return f"{amount} {limit.kind.value if amount != 1 else limit.kind.value.removesuffix('s')}"


def window_name(limit: Limit) -> str:
    """The window in words: `minute`, `5m0s`, `month`; with the pattern of models that it is narrowed to."""
    if isinstance(limit.window, Calendar):
        name = limit.window.value
    else:
        name = _SECONDS.get(limit.window) or duration(limit.window)
    return f"{name} for {limit.model}" if limit.model else name
