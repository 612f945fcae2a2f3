"""The ledger's database as the admin API asks it: in threads of its own, and with every failure as an answer."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from proxy.server.admin_routes import Refusal
from proxy.stores.base import LedgerProblem
from proxy.stores.database import open_database, reason_of
from proxy.stores.keys import KeyProblem, KeyStore, NoSuchKey
from proxy.stores.usage import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from proxy.stores.usage import Query, Report

_THREADS: Final = 2
_REPORT_S: Final = 30.0

T = TypeVar("T")


class Database:
    """The database at the end of `engine`, which stays its owner's.

    Its threads are its own: names and files of requests are looked up in the event loop's. A report may take longer
    than the statements of requests do, and one is made at a time.
    """

    def __init__(self, engine: Engine) -> None:
        self.keys = KeyStore(engine)
        self._reports = engine
        if engine.dialect.name == "postgresql":
            self._reports = open_database(engine.url.render_as_string(hide_password=False), patience_s=_REPORT_S)
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="admin")
        self._turn = asyncio.Lock()

    async def ask(self, work: Callable[[], T], about: str | None = None) -> T:
        """Do `work`, which asks the key store, `about` a key. Raises `Refusal`."""
        try:
            return await self._beside(work)
        except NoSuchKey as problem:
            raise Refusal(404, "not_found", f"{problem}.") from problem
        except KeyProblem as problem:
            raise Refusal(409, "conflict", f"{problem}.", target=about) from problem

    async def report(self, query: Query) -> Report:
        """What the ledger says. Raises `Refusal`."""
        async with self._turn:
            return await self._beside(lambda: report(self._reports, query))

    async def _beside(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except LedgerProblem as problem:
            raise Refusal(503, "ledger_unavailable", f"The ledger cannot be read: {problem}.") from problem
        except SQLAlchemyError as error:
            raise Refusal(503, "ledger_unavailable", f"The ledger cannot be used: {reason_of(error)}.") from error

    def close(self) -> None:
        """End the threads; what they have begun they finish. Blocks for as long as closing connections takes."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._reports.dispose()
