"""An exchange under way, as it is seen from outside: what it takes to end it, and who did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.core import errors
from proxy.phases.record import Findings

if TYPE_CHECKING:
    import asyncio

    from proxy.phases.watchdog import StallWatch, Watchdog


@dataclass(slots=True)
class Live:
    """What is known of a live exchange so far, and what it takes to end it from outside."""

    task: asyncio.Task[object] | None
    findings: Findings = field(default_factory=Findings)
    watchdog: Watchdog | StallWatch | None = None
    interruption: errors.ProxyError | None = None


def who_ended(live: Live) -> tuple[errors.ProxyError, str]:
    """Why an exchange was cancelled or lost its client, and the word for who did it."""
    if live.interruption is not None:
        return live.interruption, "drain"
    if live.watchdog is not None and live.watchdog.fired == "write_stall":
        return errors.ProxyError(errors.CLIENT_STALLED, "The client stopped reading."), "write_stall"
    return errors.ProxyError(errors.CLIENT_GONE, "The client has left."), "client"
