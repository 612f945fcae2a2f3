"""Waiting for what will be so, without sleeping for luck."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LONG_S = 5.0  # what must happen, happens within this on the slowest machine
_LOOK_S = 0.002


async def until(condition: Callable[[], object], what: str, within_s: float = LONG_S) -> None:
    """Look every few milliseconds until `condition` holds; fail when it does not in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        if loop.time() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        looked = loop.create_future()
        loop.call_later(_LOOK_S, looked.set_result, None)
        await looked
