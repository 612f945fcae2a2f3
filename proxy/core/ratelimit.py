"""What a client is told of its quota: OpenAI's `x-ratelimit-*` headers, and why a request does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core import errors
from proxy.core.quota import Calendar, Kind, amount_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.core.headers import RawHeaders
    from proxy.core.quota import Demand, Limit, Refused, Standing

_REQUESTS: Final = Kind.REQUESTS  # members are slow to find on their class
_TOKENS: Final = Kind.TOKENS
_OF_REQUESTS: Final = b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"
_OF_TOKENS: Final = b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"
_MICRO: Final = 1_000_000
_SECONDS: Final = {1: "second", 60: "minute", 3600: "hour"}
_TOO_MANY_AT_ONCE: Final = "This API key has as many requests in flight as it may have at once"


def headers(standings: Iterable[Standing]) -> RawHeaders:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, each for the window with the smallest share left."""
    requests = tokens = None
    for standing in standings:
        kind = standing.limit.kind
        if kind is _TOKENS:
            tokens = standing if tokens is None else _tighter(tokens, standing)
        elif kind is _REQUESTS:
            requests = standing if requests is None else _tighter(requests, standing)
    told = [] if requests is None else _lines(requests, *_OF_REQUESTS)
    if tokens is not None:
        told += _lines(tokens, *_OF_TOKENS)
    return told


def _tighter(one: Standing, other: Standing) -> Standing:
    # shares compared without dividing
    return other if other.remaining * one.limit.amount < one.remaining * other.limit.amount else one


def _lines(standing: Standing, limit: bytes, remaining: bytes, reset: bytes) -> RawHeaders:
    return [
        (limit, b"%d" % standing.limit.amount),
        (remaining, b"%d" % standing.remaining),
        (reset, duration(standing.reset_s).encode("ascii")),
    ]


def duration(seconds: float) -> str:
    """A time in OpenAI's notation, to the millisecond: `0s`, `20ms`, `6.5s`, `1m6.5s`, `2h0m0s`."""
    whole_ms = round(seconds * 1000)
    if whole_ms >= 60_000:
        minutes, rest_ms = divmod(whole_ms, 60_000)
        if minutes < 60:
            return f"{minutes}m{rest_ms / 1000:g}s"
        return f"{minutes // 60}h{minutes % 60}m{rest_ms / 1000:g}s"
    if whole_ms >= 1000:
        return f"{whole_ms / 1000:g}s"
    return f"{whole_ms}ms" if whole_ms > 0 else "0s"


def refusal(refused: Refused, demand: Demand) -> errors.ProxyError:
    """The error for a request that a quota refuses: which limit, what is left of it, and when to try again."""
    told = headers(refused.standings)
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
    used = next(standing.used for standing in refused.standings if standing.limit == limit)
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
