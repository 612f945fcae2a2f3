"""What a client is told of its quota: OpenAI's `x-ratelimit-*` headers, and why a request does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core import errors
from proxy.core.quota import Calendar, Kind, amount_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.core.headers import RawHeaders
    from proxy.core.quota import Demand, Limit, Refused, Standing

_HEADERS: Final = {Kind.REQUESTS: b"requests", Kind.TOKENS: b"tokens"}
_MICRO: Final = 1_000_000
_SECONDS: Final = {1: "second", 60: "minute", 3600: "hour"}
_TOO_MANY_AT_ONCE: Final = "This API key has as many requests in flight as it may have at once"


def headers(standings: Iterable[Standing]) -> RawHeaders:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, each for the window with the smallest share left."""
    tightest: dict[Kind, Standing] = {}
    for standing in standings:
        kind = standing.limit.kind
        if kind not in _HEADERS:
            continue
        other = tightest.get(kind)
        # shares compared without dividing
        if other is None or standing.remaining * other.limit.amount < other.remaining * standing.limit.amount:
            tightest[kind] = standing
    lines: RawHeaders = []
    for kind, standing in tightest.items():
        name = _HEADERS[kind]
        lines.append((b"x-ratelimit-limit-" + name, b"%d" % standing.limit.amount))
        lines.append((b"x-ratelimit-remaining-" + name, b"%d" % standing.remaining))
        lines.append((b"x-ratelimit-reset-" + name, duration(standing.reset_s).encode("ascii")))
    return lines


def duration(seconds: float) -> str:
    """A time in OpenAI's notation, to the millisecond: `0s`, `20ms`, `6.5s`, `1m6.5s`, `2h0m0s`."""
    whole_ms = max(0, round(seconds * 1000))
    if whole_ms == 0:
        return "0s"
    if whole_ms < 1000:
        return f"{whole_ms}ms"
    minutes, rest_ms = divmod(whole_ms, 60_000)
    tail = f"{rest_ms / 1000:g}s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail


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
