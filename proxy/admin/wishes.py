"""What may be asked of keys, by the command line or the admin API. Each check says what is wrong, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from proxy.config.kinds import Name
from proxy.config.read import nearest, unwrap
from proxy.config.values import parse_duration
from proxy.core.limits import parse_limit
from proxy.core.quota import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxy.config.settings import Config

_LONGEST_GRACE_S: Final = 366 * 86400
_LAST_MS: Final = 253_402_300_799_000  # the end of the year 9999: later moments have no date


def wrong_with_id(key_id: str) -> str | None:
    """Why this cannot name a key; None if it can."""
    try:
        msgspec.convert(key_id, Name)
    except msgspec.ValidationError:
        return f"must {unwrap(msgspec.inspect.type_info(Name))[2]['must']}"
    return None


def wrong_with_plan(plan: str | None, config: Config) -> str | None:
    """Why a key cannot be on it; None if it can."""
    if plan is None or plan in config.plans:
        return None
    return f"there is no plan {plan[:128]!a}{nearest(plan, config.plans)}"


def wrong_with_limits(limits: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """The limits that cannot be meant: their kind, their place, and why."""
    for kind in ("requests", "tokens", "spend"):
        for index, limit in enumerate(limits.get(kind) or ()):
            try:
                parse_limit(limit, Kind(kind))
            except ValueError as error:
                yield kind, index, f"{error}, not {limit[:60]!a}"


def wrong_with_expiry(expires_ms: int, now_ms: int) -> str | None:
    """Why a key cannot expire then; None if it can."""
    if now_ms < expires_ms <= _LAST_MS:
        return None
    return "is past" if expires_ms <= now_ms else "is too far away"


def grace_ms(text: str) -> int:
    """How long an old secret stays good, in milliseconds. Raises `ValueError`."""
    grace_s = parse_duration(text)
    if grace_s > _LONGEST_GRACE_S:
        raise ValueError("must be at most 366d: a secret that stays good for ever is not rotated")
    return round(grace_s * 1000)
