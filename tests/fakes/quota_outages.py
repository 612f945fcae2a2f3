"""Ways for a shared store of quotas to fail under running proxies, and to come back."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.fakes.redis import running_redis
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fakes.redis import RedisServer

_PATIENCE_S: Final = LONG_S
_LOOK_S: Final = 0.01
_DOWN_AFTER_MS: Final = 300


@dataclass(frozen=True)
class Trouble:
    """How to bring it about and to end it, each blocking. `url` is the store's, `server` leads after the end.

    `keeps` says that the store has its counters afterwards, but for what had not reached the replica where it
    `is_replicated`; `is_felt` that it cannot be asked meanwhile.
    """

    url: str
    server: RedisServer
    fail: Callable[[], object]
    heal: Callable[[], object]
    keeps: bool
    is_felt: bool = True
    is_replicated: bool = False


@contextlib.contextmanager
def stopped() -> Iterator[Trouble]:
    """The server is killed, and started again: empty."""
    with running_redis() as server:
        yield Trouble(server.url, server, server.stop, server.start, keeps=False)


@contextlib.contextmanager
def paused() -> Iterator[Trouble]:
    """The server hangs: its kernel goes on to accept and acknowledge."""
    with running_redis() as server:
        yield Trouble(server.url, server, server.pause, server.resume, keeps=True)


@contextlib.contextmanager
def flushed() -> Iterator[Trouble]:
    """The server is emptied, scripts included, and goes on."""
    with running_redis() as server:
        yield Trouble(server.url, server, server.flush, lambda: None, keeps=False, is_felt=False)


@contextlib.contextmanager
def failed_over() -> Iterator[Trouble]:
    """The server is killed, and Sentinel makes its replica the leader."""
    with (
        running_redis(tcp=True, settings=("repl-diskless-sync-delay 0",)) as first,
        running_redis(tcp=True, settings=(f"replicaof 127.0.0.1 {first.port}",)) as second,
    ):
        watch = (
            f"sentinel monitor quotas 127.0.0.1 {first.port} 1",
            f"sentinel down-after-milliseconds quotas {_DOWN_AFTER_MS}",
            "sentinel failover-timeout quotas 3000",
        )
        # before sentinel asks the leader, which it does at its start and then every ten seconds
        _until(lambda: _follows(second), "a replica that follows")
        with running_redis(tcp=True, settings=watch, sentinel=True) as sentinel, sentinel.client() as asked:
            _until(lambda: _is_known(asked), "a replica that sentinel knows")
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/quotas/0"

            def heal() -> None:
                _until(lambda: _leads(second), "the replica leads")

            yield Trouble(url, second, first.stop, heal, keeps=True, is_replicated=True)


def _follows(server: RedisServer) -> bool:
    return bool(_replication(server).get("master_link_status") == "up")


def _leads(server: RedisServer) -> bool:
    return bool(_replication(server)["role"] == "master")


def _replication(server: RedisServer) -> dict[str, Any]:
    with server.client() as client:
        found: dict[str, Any] = client.info("replication")
        return found


def _is_known(sentinel: Any) -> bool:
    replicas = sentinel.execute_command("SENTINEL", "REPLICAS", "quotas")
    return len(replicas) == 1 and "disconnected" not in str(replicas)


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(_LOOK_S)
