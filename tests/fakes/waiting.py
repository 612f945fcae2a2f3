"""Waiting for what will be so, without sleeping for luck."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LONG_S = 60.0  # what must happen, happens within this on the slowest and busiest machine
# how much too early a timer may end: libuv counts in whole milliseconds, rounds what is left, and so does `loop.time()`
TIMER_S = 0.002
# The longer it has taken, the longer until the next look: a condition may cost more than what is waited for.
_LOOK_S, _LONGEST_LOOK_S, _LOOK_SHARE = 0.002, 0.02, 0.1


async def until(condition: Callable[[], object], what: str, within_s: float = LONG_S) -> None:
    """Look every few milliseconds until `condition` holds; fail when it does not in time."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while not condition():
        if loop.time() > began_s + within_s:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        await _pause(loop, began_s)


async def until_asked(condition: Callable[[], Awaitable[object]], what: str, within_s: float = LONG_S) -> None:
    """`until`, for a condition that must be asked for over the network."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while not await condition():
        if loop.time() > began_s + within_s:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        await _pause(loop, began_s)


async def until_settled(value: Callable[[], object], quiet_s: float) -> None:
    """Wait until `value` has not changed for `quiet_s` seconds."""
    loop = asyncio.get_running_loop()
    seen, since_s = value(), loop.time()
    while loop.time() - since_s < quiet_s:
        await _pause(loop, since_s)
        if (now := value()) != seen:
            seen, since_s = now, loop.time()


async def _pause(loop: asyncio.AbstractEventLoop, since_s: float) -> None:
    looked = loop.create_future()
    pause_s = min(max(_LOOK_S, (loop.time() - since_s) * _LOOK_SHARE), _LONGEST_LOOK_S)
    loop.call_later(pause_s, looked.set_result, None)
    await looked
