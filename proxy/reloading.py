"""Taking over what a configuration file says now: checked first, then all of it at once, or none of it.

Exchanges in flight end with what they began with. What was made when the process began (addresses, workers, the
ledger, the store, the log) stays until a restart, and is named.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.config.changes import Changes, ReloadError, changes, in_force
from proxy.config.problems import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import structlog

    from proxy.config.settings import Config


class Reloads:
    """Reloads, one at a time.

    `read` reads and checks the file and may take its time; `current` is what is served by now; `adopt` serves another
    from then on, or raises `ReloadError` having changed nothing. `around` is told when a reload begins and ends.
    """

    def __init__(
        self,
        read: Callable[[], Config],
        current: Callable[[], Config],
        adopt: Callable[[Config], Awaitable[None]],
        log: structlog.typing.FilteringBoundLogger,
        around: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._read = read
        self._current = current
        self._adopt = adopt
        self._log = log
        self._around = around
        self._turn = asyncio.Lock()
        self._is_wanted = False

    async def reload(self) -> Changes:
        """Serve as the file says now; what differs. Raises `ReloadError`, and logs it, as it does what has changed."""
        async with self._turn:
            self._is_wanted = False
            self._around(True)
            try:
                found = await self._take_over()
            except ReloadError as error:
                self._log.error("reload refused", why=error.problems)
                raise
            finally:
                self._around(False)
            self._log.info("reloaded", in_force=found.in_force, need_restart=found.need_restart)
            return found

    async def on_signal(self) -> None:
        """The same for who cannot be told of a failure but by the log. One that is about to begin does for all."""
        if self._is_wanted:
            return
        self._is_wanted = True
        try:
            await self.reload()
        except ReloadError:
            return

    async def _take_over(self) -> Changes:
        try:
            config = await asyncio.to_thread(self._read)
        except ConfigError as error:
            raise ReloadError([str(problem) for problem in error.problems]) from error
        except OSError as error:
            raise ReloadError([f"{error.filename}: {error.strerror}"]) from error
        found = changes(self._current(), config)
        await self._adopt(in_force(self._current(), config))
        return found
