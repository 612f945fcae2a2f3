"""The admin API put together: its routes, who may use them, and the database it has beside the proxy's own."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from proxy.admin.database import Database
from proxy.admin.keys import KeyRoutes
from proxy.admin.processes import ProcessRoutes
from proxy.admin.reload import ReloadRoutes
from proxy.admin.usage import UsageRoutes
from proxy.server.admin_api import AdminApi
from proxy.tasks import BackgroundTasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import structlog
    from aiohttp import web
    from sqlalchemy import Engine

    from proxy.admin.inside import Processes
    from proxy.config.changes import Changes
    from proxy.config.settings import Config
    from proxy.core.throttle import Throttle
    from proxy.server.admin_routes import Route

# changes that are being made at a stop
_ENDING_S: Final = 3.0


class Admin:
    """The admin API of a proxy of one process, or of a supervisor's. `config` is what is in force.

    It is off, and asks for no `engine`, where `ops.admin_token` is empty. `reload` gives the function that takes the
    configuration's file over; None where there is no file.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        processes: Processes,
        *,
        engine: Callable[[], Engine],
        reload: Callable[[], Callable[[], Awaitable[Changes]] | None],
        throttle: Throttle | None,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._tasks = BackgroundTasks()
        self._database: Database | None = None
        token = config().ops.admin_token.reveal()
        routes: list[Route] = []
        if token:
            self._database = Database(engine())
            routes += KeyRoutes(self._database, config, _now_ms).routes()
            routes += UsageRoutes(self._database, _now_ms).routes()
            routes += ProcessRoutes(processes, config).routes()
            routes += ReloadRoutes(reload).routes()
        self._api = AdminApi(token, routes, throttle, tasks=self._tasks, log=log, clock=time.monotonic)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request below `/admin`."""
        return await self._api.handle(request)

    async def close(self) -> None:
        """Let go of what it has open, once the changes that it is making are made."""
        await self._tasks.close(_ENDING_S)
        if self._database is not None:
            await asyncio.to_thread(self._database.close)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
