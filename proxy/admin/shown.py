"""What may be told of a key, by the command line and the admin API alike."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.config.settings import Config, KeyConfig
    from proxy.stores.keys import StoredKey

Time = Annotated[str | None, Meta(extra_json_schema={"format": "date-time"})]


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key, without its secret. Times are in UTC; null is never."""

    id: str
    source: Annotated[
        Literal["file", "ledger"], Meta(description="file: it stands in the configuration, and is changed there")
    ]
    plan: str | None = None
    limits: Annotated[dict[str, Any] | None, Meta(description="in place of the plan's; as in the configuration")] = None
    state: Annotated[str, Meta(description="active, expired, revoked, unreadable, or refused: and why")]
    expires: Time = None
    created: Time = None
    last_used: Time = None
    revoked: Time = None
    old_secret_until: Annotated[Time, Meta(description="the secret before the last rotation is good until then")] = None


def judge(config: Config, now_ms: int) -> Callable[[StoredKey], str]:
    """What tells of stored keys what a running proxy with this configuration makes of them."""
    in_file = {key.id for key in config.keys}

    def state(key: StoredKey) -> str:
        if key.revoked_ms is not None:
            return "revoked"
        if key.expires_ms is not None and key.expires_ms <= now_ms:
            return "expired"
        if key.id in in_file:
            return "refused: the file has this id"
        if key.plan is not None and key.plan not in config.plans:
            return "refused: no such plan"
        return "active"

    return state


def of_ledger(key: StoredKey, state: str) -> Key:
    """What may be told of a stored key."""
    return Key(
        id=key.id,
        source="ledger",
        plan=key.plan,
        limits=key.limits,
        state=state,
        expires=iso(key.expires_ms),
        created=iso(key.created_ms),
        last_used=iso(key.last_used_ms),
        revoked=iso(key.revoked_ms),
        old_secret_until=iso(key.previous_until_ms),
    )


def of_file(key: KeyConfig, now_ms: int) -> Key:
    """What may be told of a key of the configuration."""
    expires_ms = None if key.expires is None else round(key.expires.timestamp() * 1000)
    limits = None if key.limits is None else msgspec.to_builtins(key.limits)
    return Key(
        id=key.id,
        source="file",
        plan=key.plan,
        limits=None if limits is None else {name: value for name, value in limits.items() if value is not None},
        state="expired" if expires_ms is not None and expires_ms <= now_ms else "active",
        expires=iso(expires_ms),
    )


def iso(time_ms: int | None) -> str | None:
    """A time as in RFC 3339, in UTC, to the second: `2027-01-01T00:00:00Z`; None for none."""
    return None if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
