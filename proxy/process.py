"""What every process of the proxy has: a log, metrics, and a worker unless it supervises; and a worker's whole life."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import CollectorRegistry

from proxy.config.changes import ReloadError
from proxy.config.sharing import share_of
from proxy.control import Adopt, Begin, Channel, Counted, Done, Drain, Failed, Hurry, Ready, Try, told, unpacked
from proxy.sockets import BACKLOG
from proxy.stores.base import LedgerProblem
from proxy.tasks import BackgroundTasks
from proxy.telemetry.log_writer import LogWriter
from proxy.telemetry.logs import configure
from proxy.telemetry.metrics import Metrics
from proxy.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    import structlog

    from proxy.config.settings import Config

# How long the event loop may wait for the interpreter lock while another thread works: the ledger's commits rows, one
# counts tokens. With Python's 5 ms an event of a stream waits as long.
_SWITCH_S: Final = 0.001
# Of the garbage collector. A full collection looks at everything that lives, and nothing else runs meanwhile: 80 ms
# for what a start leaves behind, 150 with 1,500 streams, and with Python's (700, 10, 10) every few seconds. What an
# exchange leaves is freed by counting references; cycles are few, and most of them young. With 10 as the last of the
# three 9,900 streams saw nine stalls of 50 to 250 ms while they began, with 100 none.
_COLLECT_AFTER: Final = (10_000, 10, 100)


class Telemetry(NamedTuple):
    """How a process is seen."""

    metrics: Metrics
    log: structlog.typing.FilteringBoundLogger


@contextlib.contextmanager
def telemetry(config: Config, **fields: object) -> Iterator[Telemetry]:
    """Log to standard output, which the workers of a supervisor share, every line with `fields`; and count."""
    writer = LogWriter(sys.stdout, is_shared=config.server.workers > 1)
    metrics = Metrics(CollectorRegistry())
    metrics.watch_log(writer)
    try:
        yield Telemetry(metrics, configure(config.log.level, config.log.format, writer, **fields))
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def serving_worker(
    config: Config,
    seen: Telemetry,
    *,
    api: socket.socket | None = None,
    ops: socket.socket | None = None,
    drained: Iterable[str] = (),
) -> AsyncIterator[Worker]:
    """A worker that listens, stopped at the end. Raises what `Worker.start` does."""
    sys.setswitchinterval(_SWITCH_S)
    lag = seen.metrics.event_loop_lag()
    worker = Worker(config, seen.metrics, seen.log, api=api, ops=ops, drained=drained)
    try:
        await worker.start()
        _spare_what_stays()
        lag.start()
        yield worker
    finally:
        lag.stop()
        await worker.stop(0.0)


def _spare_what_stays() -> None:
    """Keep the garbage collector away from what was made by the start: nearly all of it stays until the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


async def work(control: int, api: int) -> int:
    """Be a worker of the supervisor at the other end of the socket `control`; accept on the socket `api`.

    Both are descriptors. Returns the exit code.
    """
    channel = await Channel.over(socket.socket(fileno=control))
    try:
        begin = await channel.receive()
        if not isinstance(begin, Begin):
            return 1  # the supervisor has ended
        ops_path = Path(begin.ops_path)
        try:
            with socket.socket(fileno=api) as accepting, _private_listener(ops_path) as ops:
                channel.send(await _serve(begin, channel, accepting, ops))
        finally:
            await asyncio.to_thread(_clear, ops_path, is_last=channel.peer_has_ended)
    except (LedgerProblem, OSError) as problem:
        channel.send(Failed(told(problem)))
        return 1
    finally:
        await channel.close()
    return 0


async def _serve(begin: Begin, channel: Channel, api: socket.socket, ops: socket.socket) -> Counted:
    """Serve until the supervisor, its end, or SIGTERM says otherwise. What was counted by then."""
    config = share_of(unpacked(begin.config), begin.number)
    tasks = BackgroundTasks()
    with telemetry(config, worker=begin.number) as seen:
        async with serving_worker(config, seen, api=api, ops=ops, drained=begin.drained) as worker:
            # a service manager may send it to every process of the service, the supervisor included: a second one from
            # there is no reason to hurry
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGTERM, lambda: worker.begin_stop(worker.config.shutdown.notice)
            )
            channel.send(Ready())
            tasks.keep(_obey(worker, channel, begin.number), "supervisor")
            await worker.until_stopped()
            await tasks.close(0.0)
        return Counted(seen.metrics.snapshot())


async def _obey(worker: Worker, channel: Channel, number: int) -> None:
    """Do what the supervisor says; without one, end, and leave the address to whoever comes next."""
    while (message := await channel.receive()) is not None:
        if isinstance(message, Drain):
            worker.begin_stop(message.notice_s)
        elif isinstance(message, Try):
            channel.send(await _tried(worker, share_of(unpacked(message.config), number)))
        elif isinstance(message, Adopt):
            channel.send(await _adopted(worker, share_of(unpacked(message.config), number)))
        elif isinstance(message, Hurry):
            worker.begin_stop(0.0)
            worker.hurry()
    worker.begin_stop(0.0)


async def _tried(worker: Worker, config: Config) -> Done:
    try:
        await worker.prepare(config)
    except ReloadError as error:
        return Done(str(error))
    return Done(None)


async def _adopted(worker: Worker, config: Config) -> Done:
    """Serve what all workers could serve a moment ago; one that cannot any more must not go on with the old."""
    try:
        await worker.adopt(config)
    except ReloadError as error:
        why, note = error.problems, "the worker ends, and another takes its place"
        worker.log.error("reload failed", why=why, note=note)  # noqa: TRY400 - where it was raised says nothing
        worker.begin_stop(0.0)
    return Done(None)


def _private_listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.bind(str(path))
    sock.listen(BACKLOG)
    return sock


def _clear(ops_path: Path, *, is_last: bool) -> None:
    """Remove the socket, and its folder if the supervisor, whose it is, has not lived to do it."""
    ops_path.unlink(missing_ok=True)
    if is_last:
        with contextlib.suppress(OSError):  # another worker's socket is in it
            ops_path.parent.rmdir()
