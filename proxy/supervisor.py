"""The process: sockets, signals and a stop that loses nothing. With one worker the supervisor is that worker.

SIGTERM: `/readyz` says 503 at once, new connections are still served for `shutdown.notice`, then the listeners close,
exchanges in flight finish within `shutdown.drain`, and what is left gets an error. SIGINT skips the notice. A second
signal ends the drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from typing import TYPE_CHECKING, Final

from proxy.app import open_app
from proxy.building import server_tls
from proxy.core import errors
from proxy.server import http
from proxy.server.tls import TlsListener

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    import structlog

    from proxy.config.settings import Config
    from proxy.telemetry.metrics import Metrics

# what a process needs besides its connections: listeners, the ledger, logs, the resolver
_SPARE_DESCRIPTORS: Final = 200
# each exchange holds a connection on either side
_DESCRIPTORS_PER_CONNECTION: Final = 2
_BACKLOG: Final = 4096
# what is left when a drain ends is told so, and has this long to take the message
_LAST_WORDS_S: Final = 2.0


class Worker:
    """One process of the proxy: its listeners, and its life from `start` to `stop`."""

    def __init__(self, config: Config, metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> None:
        self.config = config
        self.log = log
        self.metrics = metrics
        self.max_connections = connection_limit(config.server.max_connections, log)
        self._servers: list[asyncio.Server] = []
        self._http: list[http.Server] = []
        self._tls: list[TlsListener] = []
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._is_open = False
        self.port = 0
        self.ops_port = 0

    async def start(self) -> None:
        """Open the ledger and listen. Raises `LedgerProblem`, or `OSError` naming an address that cannot be had."""
        self.app = await open_app(self.config, self.metrics, self.log)
        self._is_open = True
        settings, ops = self.config.server, self.config.ops
        api = http.server(self.app.api.handle, max_connections=self.max_connections, log=self.log)
        self.port = await self._listen(api, "server", settings.host, settings.port, server_tls(self.config))
        operators = http.server(self.app.ops.handle, max_connections=100, log=self.log)
        self.ops_port = await self._listen(operators, "ops", ops.host, ops.port, None)

    async def _listen(self, server: http.Server, section: str, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        sock = listener(host, port, section)
        self._http.append(server)
        factory: Callable[[], asyncio.BaseProtocol] = server
        if tls is not None:
            factory = TlsListener(tls, server, server.may_accept)
            self._tls.append(factory)
        self._servers.append(await asyncio.get_running_loop().create_server(factory, sock=sock))
        return int(sock.getsockname()[1])

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until a signal says otherwise, then stop in order."""
        loop = asyncio.get_running_loop()
        notice_s = [self.config.shutdown.notice]

        def stop(notice: float) -> None:
            if self._stop.is_set():
                self._hurry.set()
            notice_s[0] = notice
            self._stop.set()

        loop.add_signal_handler(signal.SIGTERM, stop, self.config.shutdown.notice)
        loop.add_signal_handler(signal.SIGINT, stop, 0.0)
        on_ready()
        await self._stop.wait()
        self.app.drain()
        self.log.info("draining", in_flight=self.app.pipeline.in_flight, notice_s=notice_s[0])
        await self._unless_hurried(notice_s[0])
        await self.stop(self.config.shutdown.drain)

    async def _unless_hurried(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), seconds)

    async def stop(self, drain_s: float) -> None:
        """Close the listeners, let exchanges finish for `drain_s` seconds, end the rest, and let go of everything."""
        if not self._is_open:
            return
        self.app.drain()
        for listening in self._servers[:1]:
            listening.close()  # the API's; operators see the drain to its end
        await self._idle(drain_s)
        left = self.app.pipeline.in_flight
        if left:
            self.log.warning("drain ended", cut=left)
            self.app.pipeline.interrupt(errors.ProxyError(errors.DRAINING, "Sluice is stopping.", retry_after_s=1.0))
            self._hurry = asyncio.Event()
            await self._idle(_LAST_WORDS_S)
        for listening in self._servers:
            listening.close()
        for server in self._http:
            await server.shutdown(0.1)
        for tls in self._tls:
            tls.close()
        await self.app.close()
        self._is_open = False

    async def _idle(self, patience_s: float) -> None:
        """Wait until no exchange is live, or patience ends, or somebody is in a hurry."""
        hurried = self.app.tasks.start(self._hurry.wait(), "hurry")
        idle = self.app.tasks.start(self.app.pipeline.idle(), "idle")
        await asyncio.wait({hurried, idle}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        idle.cancel()


def listener(host: str, port: int, section: str) -> socket.socket:
    """A listening socket. Raises `OSError` that names the address, and the `section` of the settings it is from."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        # socket.create_server names the address a second time, in brackets
        why = (error.strerror or str(error)).partition(" (while")[0]
        raise OSError(error.errno, f"cannot listen on {host}:{port} ({section}.host, {section}.port): {why}") from error


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
