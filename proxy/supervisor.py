"""Several workers: the sockets they share, their restarts, and signals passed on.

All workers accept on the same socket, so that a worker that ends takes no connection along (with SO_REUSEPORT
each has a queue of its own, which is reset: libraries.md section 2). SIGTERM and SIGINT make the workers drain as one
would alone; a second one ends that.
"""

from __future__ import annotations

import asyncio
import functools
import shutil
import signal
import tempfile
from typing import TYPE_CHECKING, Final

from proxy.admin.admin import Admin
from proxy.building import encodings_of, throttle_of
from proxy.child import Child, how_it_ended
from proxy.config.changes import ReloadError
from proxy.control import Adopt, Begin, Drain, Fork, Hurry, StartError, Try, packed
from proxy.fleet import Fleet
from proxy.nursery import Nursery
from proxy.opening import modules_of
from proxy.server import http
from proxy.server.ops import answer
from proxy.sockets import BACKLOG, listener
from proxy.stores.database import open_database
from proxy.tasks import BackgroundTasks

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    import structlog

    from proxy.config.changes import Changes
    from proxy.config.settings import Config
    from proxy.nursery import Process
    from proxy.telemetry.metrics import Metrics

_MAX_OPS_CONNECTIONS: Final = 100
# after a drain: last words, settling, writing the ledger, on a busy machine
_ENDING_S: Final = 20.0
# a path of a Unix socket has at most 107 bytes (unix(7)); names in the folder are short
_LONGEST_FOLDER: Final = 80


class Supervisor:
    """The parent of `config.server.workers` processes.

    `api` and `ops` are listening sockets made elsewhere; without them it listens where `config` says.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        *,
        api: socket.socket | None = None,
        ops: socket.socket | None = None,
    ) -> None:
        self.config = config
        self.log = log
        self.reload: Callable[[], Awaitable[Changes]] | None = None  # takes the configuration's file over
        self._api = api
        self._ops = ops
        self._tasks = BackgroundTasks()
        self.fleet = Fleet(config.server.workers, metrics, self._tasks)
        self._packed = packed(config)
        self._last_serial = 0
        self._stop = asyncio.Event()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._folder = ""
        self._operators: asyncio.Server | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._admin = Admin(
            lambda: self.config,
            self.fleet,
            engine=lambda: open_database(config.ledger.url.reveal()),
            reload=lambda: self.reload,
            throttle=throttle_of(config),
            log=log,
        )
        handle = functools.partial(answer, asked=self.fleet, admin=self._admin.handle)
        self._http = http.server(http.with_aiohttp(handle), max_connections=_MAX_OPS_CONNECTIONS, log=log)
        self._nursery = Nursery()
        self.port = 0
        self.ops_port = 0

    async def start(self) -> None:
        """Listen, and start all workers. Raises `StartError` if one cannot start, `OSError` naming an address."""
        self._api = api = self._api or listener(self.config.server.host, self.config.server.port, "server")
        self._ops = ops = self._ops or listener(self.config.ops.host, self.config.ops.port, "ops")
        self.port, self.ops_port = int(api.getsockname()[1]), int(ops.getsockname()[1])
        self._operators = await asyncio.get_running_loop().create_server(self._http, sock=ops, backlog=BACKLOG)
        self._folder = await asyncio.to_thread(_private_folder)
        for number in self.fleet.restarts:
            self._keepers.append(self._tasks.start(self._keep(number, api), f"worker {number}"))
        await self._started

    async def run(
        self, on_ready: Callable[[], None], on_stop: Callable[[], None], on_hangup: Callable[[], None]
    ) -> None:
        """Serve until a signal says otherwise; return when all workers have drained and ended."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: None if self._stop.is_set() else on_hangup())
        loop.add_signal_handler(signal.SIGTERM, lambda: self._signalled(self.config.shutdown.notice))
        loop.add_signal_handler(signal.SIGINT, self._signalled, 0.0)
        on_ready()
        await self._stop.wait()
        on_stop()
        await asyncio.wait(self._keepers)

    async def adopt(self, config: Config) -> None:
        """Have all workers serve as `config` says, if all of them can. Raises `ReloadError`."""
        data = packed(config)
        children = [child for child in self.fleet.children.values() if child.is_ready]
        if not children:
            raise ReloadError(["no worker is ready to try it: ask again when one is"])
        found = await asyncio.gather(*(child.does(Try(data)) for child in children))
        if problems := list(dict.fromkeys(why for why in found if why is not None)):
            raise ReloadError(problems)
        self.config, self._packed = config, data
        for child in self.fleet.children.values():
            if child not in children:
                child.channel.send(Adopt(data))  # it is starting with the old one
        found = await asyncio.gather(*(child.does(Adopt(data)) for child in children))
        for child, why in zip(children, found, strict=True):
            if why is not None:
                self.log.error("worker killed, as it did not take over a reload", worker=child.number, why=why)
                child.kill()  # the one that takes its place begins with it

    def _signalled(self, notice_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self._stop.is_set():
            self._stop_listening()
            self._say(Hurry())
            loop.call_later(_ENDING_S, self._kill)
            return
        self._stop.set()
        self.fleet.is_draining = True
        self.log.info("draining", workers=len(self.fleet.children), notice_s=notice_s)
        self._say(Drain(notice_s))
        # the workers stop listening then: one more open copy would let clients connect whom nobody serves
        loop.call_later(notice_s, self._stop_listening)
        loop.call_later(notice_s + self.config.shutdown.drain + _ENDING_S, self._kill)

    def _stop_listening(self) -> None:
        if self._api is not None:
            self._api.close()

    def _say(self, message: Drain | Hurry) -> None:
        for child in self.fleet.children.values():
            child.channel.send(message)

    def _kill(self) -> None:
        for child in self.fleet.children.values():
            self.log.error("worker killed, as it does not end", worker=child.number, pid=child.process.pid)
            child.kill()

    async def stop(self) -> None:
        """End what still runs, without a drain, and let go of everything."""
        self._stop.set()
        self.fleet.is_draining = True
        if self._keepers:
            for child in self.fleet.children.values():
                child.kill()
        await self._nursery.close()  # before what waits for it to fork
        if self._keepers:
            await asyncio.wait(self._keepers)
        if self._operators is not None:
            self._operators.close()
        await self._http.shutdown(0.1)
        await self._admin.close()
        await self._tasks.close(0.0)
        for sock in (self._api, self._ops):
            if sock is not None:
                sock.close()
        if self._folder:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _keep(self, number: int, api: socket.socket) -> None:
        """Have a worker of this number, until the stop."""
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            began_s = loop.time()
            how = await self._live(number, api)
            if self._stop.is_set():
                return
            if not self._started.done():
                self._stop.set()  # the others may fail for the same reason: one message is enough
                self._started.set_exception(StartError(how))
                return
            await self._pause_after(number, how, loop.time() - began_s)

    async def _live(self, number: int, api: socket.socket) -> str:
        """Start a worker, and let go of it when it has ended; how it ended."""
        self._last_serial += 1
        ops_path = f"{self._folder}/{self._last_serial}"
        begin = Begin(number, self._packed, ops_path, tuple(sorted(self.fleet.drained)))
        try:
            child = await Child.start(begin, self._last_serial, functools.partial(self._fork, api))
        except OSError as error:
            return f"worker {number} could not be started: {error.strerror or error}"
        self.fleet.joined(child)
        if begin.config is not self._packed:
            child.channel.send(Adopt(self._packed))  # there was a reload while it was being started
        if self._stop.is_set():  # it was decided meanwhile
            child.channel.send(Drain(0.0))
        code = await child.ended(functools.partial(self._is_ready, child))
        self.fleet.left(child)
        await child.close()
        return child.failure or f"worker {number} ended: {how_it_ended(code)}"

    async def _fork(self, api: socket.socket, control: int) -> Process:
        """The process of a worker that accepts on `api`. Raises `OSError`."""
        asked = Fork(modules_of(self.config), frozenset(encodings_of(self.config)))
        return await self._nursery.fork(asked, (control, api.fileno()))

    def _is_ready(self, child: Child) -> None:
        self.fleet.accepts(child)
        if self.fleet.is_whole and not self._started.done():
            self._started.set_result(None)

    async def _pause_after(self, number: int, how: str, lived_s: float) -> None:
        """Tell of a death, and wait before the next start; not longer than until the stop."""
        now_s = asyncio.get_running_loop().time()
        pause_s = self.fleet.died(number, now_s, lived_s)
        is_loop = self.fleet.restarts[number].is_loop(now_s)
        tell, event = (self.log.error, "worker dies again and again") if is_loop else (self.log.warning, "worker died")
        tell(event, worker=number, how=how, lived_s=round(lived_s, 3), next_in_s=pause_s)
        waiting = self._tasks.start(self._stop.wait(), "stop")
        await asyncio.wait([waiting], timeout=pause_s)
        waiting.cancel()


def _private_folder() -> str:
    """A folder for the workers' sockets, which nobody else may enter."""
    folder = tempfile.mkdtemp(prefix="sluice-workers-")
    if len(folder) <= _LONGEST_FOLDER:
        return folder
    shutil.rmtree(folder)
    return tempfile.mkdtemp(prefix="sluice-workers-", dir="/tmp")
