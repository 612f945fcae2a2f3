"""Keeps the keyring as the ledger has it: a key created, rotated or revoked counts on every worker within a second.

A database that fails leaves the keys as they were last known. Whoever had access keeps it, and revocations wait: the
other choice, to refuse everybody, would make every outage of the database one of the proxy.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import structlog

    from proxy.phases.authenticate import Keyring, Refused
    from proxy.stores.keys import Changes, Mark

_NAMED: Final = 10  # of keys that a log line tells about


class KeySource(Protocol):
    """Where stored keys come from. Both methods block, and raise whatever the database raises."""

    def changed_since(self, mark: Mark | None) -> Changes:
        """The first keys changed after `mark`, which earlier changes led to; None: of all."""

    def note_used(self, used: Mapping[str, int]) -> None:
        """Write when keys were last used: UNIX time in milliseconds by id."""


class KeyRefresher:
    """Reads changes of keys every `poll_s` seconds, and writes at most every `note_s` when keys were last used."""

    def __init__(
        self,
        source: KeySource,
        keyring: Keyring,
        log: structlog.typing.FilteringBoundLogger,
        *,
        poll_s: float = 0.5,
        note_s: float = 60.0,
    ) -> None:
        self._source = source
        self._keyring = keyring
        self._log = log
        self._poll_s = poll_s
        self._note_s = note_s
        self._mark: Mark | None = None
        self._used_ms: dict[str, int] = {}
        self._failing: set[str] = set()

    async def load(self) -> None:
        """Read what has changed; before the listener opens, all keys. Raises what the database raises."""
        more = True
        while more:
            changes = await asyncio.to_thread(self._source.changed_since, self._mark)
            self._mark, more = changes.mark, changes.more
            self._tell(self._keyring.update(changes))

    async def run(self) -> None:
        """Poll until cancelled, whatever the database does."""
        clock = asyncio.get_running_loop().time
        noted_s = clock()
        while True:
            await asyncio.sleep(self._poll_s)
            await self._attempt("keys_stale", self.load)
            if clock() - noted_s >= self._note_s:
                noted_s = clock()
                await self._attempt("keys_use_unwritten", self.note_used)

    async def note_used(self) -> None:
        """Write when keys were last used; at a stop, what the last minute brought. Raises what the database raises."""
        self._used_ms = self._used_ms | self._keyring.take_used()
        if self._used_ms:
            await asyncio.to_thread(self._source.note_used, self._used_ms)
            self._used_ms = {}

    async def _attempt(self, failure: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work`; log its first failure as `failure`, and that it works again after the last."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - a refresher that ended would leave revoked keys good
            if failure not in self._failing:
                self._failing.add(failure)
                self._log.error(failure, reason=type(error).__name__, note="tried again until it works")
        else:
            if failure in self._failing:
                self._failing.remove(failure)
                self._log.info(f"{failure}_over")

    def _tell(self, refused: Refused) -> None:
        for reason, ids in refused._asdict().items():
            if ids:
                self._log.warning("keys_refused", reason=reason, count=len(ids), ids=ids[:_NAMED])
