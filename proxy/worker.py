"""One process of the proxy: its listeners, and its life from a start to a stop that loses nothing.

SIGTERM: `/readyz` says 503 at once, new connections are still served for `shutdown.notice`, then the listeners close,
exchanges in flight finish within `shutdown.drain`, and what is left gets an error. SIGINT skips the notice. A second
signal ends the drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import signal
import socket
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import SQLAlchemyError

from proxy.admin.admin import Admin
from proxy.app import open_app
from proxy.building import server_tls, throttle_of
from proxy.config.changes import ReloadError
from proxy.core import errors
from proxy.server import http
from proxy.server.ops import PrivateOps, answer
from proxy.server.tls import TlsListener
from proxy.sockets import BACKLOG, listener
from proxy.stores.database import reason_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable

    import structlog

    from proxy.config.changes import Changes
    from proxy.config.settings import Config
    from proxy.generation import Generation
    from proxy.telemetry.metrics import Metrics

# what a process needs besides its connections: listeners, the ledger, logs, the resolver
_SPARE_DESCRIPTORS: Final = 200
# each exchange holds a connection on either side
_DESCRIPTORS_PER_CONNECTION: Final = 2
_MAX_OPS_CONNECTIONS: Final = 100
# what is left when a drain ends is told so, and has this long to take the message
_LAST_WORDS_S: Final = 2.0


class Worker:
    """A proxy that serves on sockets.

    `api` and `ops` are listening sockets made elsewhere; without them the worker listens where `config` says. On a
    Unix socket `ops` answers a supervisor, which alone can reach it. The upstreams that are `drained` get no exchange.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        *,
        api: socket.socket | None = None,
        ops: socket.socket | None = None,
        drained: Iterable[str] = (),
    ) -> None:
        self.config = config
        self.log = log
        self.metrics = metrics
        self.max_connections = connection_limit(config.server.max_connections, log)
        self.reload: Callable[[], Awaitable[Changes]] | None = None  # takes the configuration's file over
        self._admin: Admin | None = None
        self._drained = tuple(drained)
        self._given = api, ops
        self._servers: list[asyncio.Server] = []
        self._http: list[http.Server] = []
        self._tls: list[TlsListener] = []
        self._stop = asyncio.Event()
        self._closing = asyncio.Event()
        self._hurry = asyncio.Event()
        self._notice_s = 0.0
        self._is_open = False
        self.port = 0
        self.ops_port = 0

    async def start(self) -> None:
        """Open the ledger and listen. Raises `LedgerProblem`, or `OSError` naming an address that cannot be had."""
        self.app = await open_app(self.config, self.metrics, self.log, self._drained)
        self._is_open = True
        tls = server_tls(self.config)
        api_socket, ops_socket = self._sockets()
        self.port, self.ops_port = _port(api_socket), _port(ops_socket)
        api = http.server(self.app.api.handle, max_connections=self.max_connections, log=self.log)
        await self._listen(api, api_socket, tls)
        handle = self._operators(is_private=ops_socket.family == socket.AF_UNIX)
        await self._listen(
            http.server(http.with_aiohttp(handle), max_connections=_MAX_OPS_CONNECTIONS, log=self.log), ops_socket, None
        )

    def _operators(self, *, is_private: bool) -> http.Handler:
        """What answers operators, or the supervisor on their behalf."""
        app = self.app
        if is_private:
            return PrivateOps(app.ops, self.metrics, app.inside.answered).handle
        self._admin = Admin(
            lambda: app.config,
            app.inside,
            engine=lambda: app.engine,
            reload=lambda: self.reload,
            throttle=throttle_of(self.config),
            log=self.log,
        )
        return functools.partial(answer, asked=app.ops, admin=self._admin.handle)

    def _sockets(self) -> tuple[socket.socket, socket.socket]:
        api, ops = self._given
        settings = self.config
        if api is None:
            api = listener(settings.server.host, settings.server.port, "server")
        if ops is None:
            try:
                ops = listener(settings.ops.host, settings.ops.port, "ops")
            except OSError:
                api.close()
                raise
        return api, ops

    async def _listen(self, server: http.Server, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        self._http.append(server)
        factory: Callable[[], asyncio.BaseProtocol] = server
        if tls is not None:
            factory = TlsListener(tls, server, server.may_accept)
            self._tls.append(factory)
        loop = asyncio.get_running_loop()
        # both listen() once more, by default with a backlog of 100
        if sock.family == socket.AF_UNIX:
            self._servers.append(await loop.create_unix_server(factory, sock=sock, backlog=BACKLOG))
        else:
            self._servers.append(await loop.create_server(factory, sock=sock, backlog=BACKLOG))

    async def run(
        self, on_ready: Callable[[], None], on_stop: Callable[[], None], on_hangup: Callable[[], None]
    ) -> None:
        """Serve until a signal says otherwise, then stop in order."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: None if self._stop.is_set() else on_hangup())
        loop.add_signal_handler(signal.SIGTERM, lambda: self._signalled(self.config.shutdown.notice))
        loop.add_signal_handler(signal.SIGINT, self._signalled, 0.0)
        on_ready()
        await self._stop.wait()
        on_stop()
        await self.until_stopped()

    async def prepare(self, config: Config) -> Generation:
        """What `config` would make of it; nothing has changed yet. Raises `ReloadError`."""
        try:
            tls = await asyncio.to_thread(server_tls, config)
            made = await self.app.prepare(config)
        except (OSError, SQLAlchemyError) as problem:
            reason = str(problem.strerror or problem) if isinstance(problem, OSError) else reason_of(problem)
            raise ReloadError([reason]) from problem
        made.tls = tls
        return made

    async def adopt(self, config: Config) -> None:
        """Serve as `config` says from now on, as far as that needs no restart. Raises `ReloadError`."""
        await self.change_to(await self.prepare(config))

    async def change_to(self, made: Generation) -> None:
        """Serve as `made`; exchanges in flight end as they began."""
        await self.app.change_to(made)
        self.config = made.config
        if made.tls is not None:
            for listening in self._tls:
                listening.context = made.tls  # whoever connects from now on is shown its certificate

    def _signalled(self, notice_s: float) -> None:
        if self._stop.is_set():
            self.hurry()
        else:
            self.begin_stop(notice_s)

    def begin_stop(self, notice_s: float) -> None:
        """Let `until_stopped` go on to the stop. Asked again without a notice, the notice is over."""
        if not self._stop.is_set():
            self._notice_s = notice_s
            self._stop.set()
        if notice_s <= 0:
            self._closing.set()

    def hurry(self) -> None:
        """End notice and drain."""
        self._closing.set()
        self._hurry.set()

    async def until_stopped(self) -> None:
        """Serve until `begin_stop`, then stop in order."""
        await self._stop.wait()
        self.app.drain()
        self.log.info("draining", in_flight=len(self.app.live), notice_s=self._notice_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), self._notice_s)
        await self.stop(self.config.shutdown.drain)

    async def stop(self, drain_s: float) -> None:
        """Close the listeners, let exchanges finish for `drain_s` seconds, end the rest, and let go of everything."""
        if not self._is_open:
            return
        self.app.drain()
        for listening in self._servers[:1]:
            listening.close()  # the API's; operators see the drain to its end
        await self._idle(drain_s)
        left = len(self.app.live)
        if left:
            self.log.warning("drain ended", cut=left)
            self.app.live.interrupt(errors.ProxyError(errors.DRAINING, "Sluice is stopping.", retry_after_s=1.0))
            self._hurry = asyncio.Event()
            await self._idle(_LAST_WORDS_S)
        for listening in self._servers:
            listening.close()
        for server in self._http:
            await server.shutdown(0.1)
        for tls in self._tls:
            tls.close()
        if self._admin is not None:
            await self._admin.close()
        await self.app.close()
        self._is_open = False

    async def _idle(self, patience_s: float) -> None:
        """Wait until no exchange is live, or patience ends, or somebody is in a hurry."""
        hurried = self.app.tasks.start(self._hurry.wait(), "hurry")
        idle = self.app.tasks.start(self.app.live.idle(), "idle")
        await asyncio.wait({hurried, idle}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        idle.cancel()


def _port(sock: socket.socket) -> int:
    """The port of a listener; 0 of a Unix socket."""
    return 0 if sock.family == socket.AF_UNIX else int(sock.getsockname()[1])


def connection_limit(wanted: int, log: structlog.typing.FilteringBoundLogger) -> int:
    """How many connections the file-descriptor limit allows, after raising it as far as the system lets us."""
    needed = wanted * _DESCRIPTORS_PER_CONNECTION + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    allowed = max(1, min(wanted, (soft - _SPARE_DESCRIPTORS) // _DESCRIPTORS_PER_CONNECTION))
    if allowed < wanted:
        log.warning("server.max_connections lowered", configured=wanted, allowed=allowed, descriptors=soft)
    return allowed
