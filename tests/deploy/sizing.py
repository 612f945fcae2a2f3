"""What a worker takes, for deploy/SIZING.md: a stream's memory and descriptors, an exchange's CPU and store calls.

    python -m tests.deploy.sizing [--streams 1000] [--exchanges 2000]

A real `sluice serve` with every kind of limit, a real Redis and a real PostgreSQL, the simulator as upstream, and this
process as the client. Streams are held silent (one event a minute) while they are measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psutil
import psycopg
import uvloop

from tests.fakes.client import RecordingClient
from tests.fakes.postgres import fresh_database, shared_postgres
from tests.fakes.redis import running_redis
from tests.fakes.served import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY: Final = "sk-test-key-0123456789"
SILENT: Final = "sim-20t-60000ms"
QUICK: Final = "sim-10t-0ms"
AT_ONCE: Final = 20
RENEWALS_S: Final = 30.0


class Taken(NamedTuple):
    """What a process holds and has used, and what its stores have done, at one moment."""

    rss_kib: int
    descriptors: int
    cpu_s: float
    store_calls: int
    store_bytes: int


class Bench:
    """A worker under measurement and its stores."""

    def __init__(self, port: int, pid: int, redis: Any) -> None:
        self.port = port
        self.process = psutil.Process(pid)
        self.redis = redis

    def taken(self) -> Taken:
        """The figures now; the scripts' own commands are not counted, as they cost no round trip."""
        used = self.process.cpu_times()
        stats = self.redis.info("stats")
        calls = stats["total_commands_processed"] - self._within_scripts()
        moved = stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
        rss_kib = self.process.memory_info().rss // 1024
        return Taken(rss_kib, self.process.num_fds(), used.user + used.system, calls, moved)

    def connections(self) -> int:
        """Those of the worker to Redis: all but our own."""
        return int(self.redis.info("clients")["connected_clients"]) - 1

    def _within_scripts(self) -> int:
        """Commands that scripts called: everything on keys, since the worker itself only calls scripts."""
        stats = self.redis.info("commandstats")
        outside = ("evalsha", "eval", "script|load", "hello", "client|setinfo", "info", "ping", "auth", "select")
        return sum(row["calls"] for name, row in stats.items() if name.removeprefix("cmdstat_") not in outside)


def config(upstream: int, redis_url: str, ledger_url: str) -> dict[str, Any]:
    limits = {
        "requests": ["1000000/minute"],
        "tokens": ["1000000000/minute", "1000000000000/month"],
        "spend": ["1000000/month"],
        "concurrency": 100_000,
    }
    return {
        "server": {"port": 0},
        "ops": {"port": 0},
        "store": {"url": redis_url, "timeout": "5s"},
        "ledger": {"url": ledger_url},
        "upstreams": {"simulator": {"base_url": f"http://127.0.0.1:{upstream}/v1", "auth": "none"}},
        "models": {"*": {"price": {"input": 1, "output": 2}, "max_output_tokens": 100}},
        "plans": {"all": limits},
        "keys": [{"id": "bench", "secret": KEY, "plan": "all"}],
    }


@contextlib.asynccontextmanager
async def simulator() -> AsyncIterator[int]:
    """`sluice simulate` in a process of its own; its port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "simulate", "--port", "0"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        first = (await process.stdout.readline()).decode()
        yield int(first.partition("127.0.0.1:")[2].partition("/")[0])
    finally:
        process.terminate()
        await process.communicate()


@contextlib.asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[tuple[Bench, str]]:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(running_redis())
        ledger = stack.enter_context(fresh_database(stack.enter_context(shared_postgres())))
        async with (
            simulator() as port,
            served(config(port, redis.url, ledger), folder, program="proxy") as proxy,  # with memory of its own
        ):
            yield Bench(proxy.port, proxy.pid, stack.enter_context(redis.client())), ledger


def question(model: str, *, stream: bool) -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": "What is a sluice for?"}]}


async def opened(port: int) -> RecordingClient:
    """A stream that has begun and says no more for a minute."""
    client = await RecordingClient.connect(port)
    client.send("POST", "/v1/chat/completions", question(SILENT, stream=True), key=KEY)
    answer = await client.head()
    assert answer.status == 200
    assert await client.piece(answer)
    return client


async def ask(port: int, count: int, *, stream: bool) -> None:
    async def one_after_another() -> None:
        async with await RecordingClient.connect(port) as client:
            for _ in range(count // AT_ONCE):
                question_ = question(QUICK, stream=stream)
                answer = await client.ask("POST", "/v1/chat/completions", question_, key=KEY)
                assert answer.status == 200
                assert answer.whole

    await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))


async def measure_streams(on: Bench, count: int) -> None:
    before = on.taken()
    print(f"a worker that has answered {AT_ONCE * 10} requests: {before.rss_kib / 1024:.0f} MiB")
    clients = []
    for start in range(0, count, AT_ONCE):
        clients += await asyncio.gather(*(opened(on.port) for _ in range(min(AT_ONCE, count - start))))
    held = on.taken()
    memory_kib = (held.rss_kib - before.rss_kib) / count
    descriptors = (held.descriptors - before.descriptors) / count
    print(f"{count} silent streams, each: {memory_kib:.1f} KiB, {descriptors:.2f} descriptors")
    began_s = time.monotonic()
    await asyncio.sleep(RENEWALS_S)
    later, passed_s = on.taken(), time.monotonic() - began_s
    renewals = (later.store_calls - held.store_calls) / count / passed_s * 60
    idle_share = (later.cpu_s - held.cpu_s) / passed_s
    print(f"  held for {passed_s:.0f} s: {renewals:.2f} Redis calls per stream and minute, {idle_share:.1%} of a core")
    for client in clients:
        await client.reset()
    async with asyncio.timeout(30):  # until all of them are settled
        while on.taken().descriptors > before.descriptors + AT_ONCE:
            await asyncio.sleep(0.5)


async def measure_exchanges(on: Bench, count: int, ledger: str, *, stream: bool) -> None:
    rows, size = stored(ledger)
    before, began_s = on.taken(), time.monotonic()
    await ask(on.port, count, stream=stream)
    after, passed_s = on.taken(), time.monotonic() - began_s
    calls = (after.store_calls - before.store_calls) / count
    moved = (after.store_bytes - before.store_bytes) / count
    cpu_us = (after.cpu_s - before.cpu_s) / count * 1e6
    kind = "streams of 10 tokens" if stream else "answers without a stream"
    print(f"{count} {kind}, {AT_ONCE} at once, {count / passed_s:.0f}/s, each: {cpu_us:.0f} us of CPU,")
    print(f"  {calls:.2f} Redis calls, {moved:.0f} bytes to and from Redis")
    async with asyncio.timeout(10):  # rows are committed together
        while stored(ledger)[0] - rows < count:
            await asyncio.sleep(0.1)
    more_rows, more_bytes = stored(ledger)[0] - rows, stored(ledger)[1] - size
    print(f"  {more_rows / count:.2f} rows, {more_bytes / more_rows:.0f} bytes each with indexes")


def stored(ledger: str) -> tuple[int, int]:
    """Rows of exchanges in PostgreSQL, and what they take with their indexes."""
    with psycopg.connect(ledger) as connection:
        found = connection.execute("SELECT count(*), pg_total_relation_size('exchanges') FROM exchanges").fetchone()
    assert found is not None
    return int(found[0]), int(found[1])


def connections(ledger: str) -> int:
    """Those of the worker to PostgreSQL, after all it has done."""
    with psycopg.connect(ledger) as connection:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sluice'"
        found = connection.execute(asked).fetchone()
    assert found is not None
    return int(found[0])


async def main(streams: int, exchanges: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with bench(Path(folder)) as (on, ledger):
            await ask(on.port, AT_ONCE * 10, stream=False)
            await measure_streams(on, streams)
            for stream in (False, True):
                await measure_exchanges(on, exchanges, ledger, stream=stream)
            print(f"connections of a worker: {connections(ledger)} to PostgreSQL, {on.connections()} to Redis")
            keys = on.redis.keys("*")
            sizes = sum(on.redis.memory_usage(key) for key in keys)
            print(f"Redis holds {len(keys)} keys, {sizes / len(keys):.0f} bytes each, after {exchanges * 2} exchanges")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--exchanges", type=int, default=2000)
    chosen = parser.parse_args()
    uvloop.run(main(chosen.streams, chosen.exchanges))
