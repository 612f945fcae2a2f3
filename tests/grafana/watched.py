"""Two proxies under all kinds of load: what is shown to a Prometheus that watches them.

One has two workers and a real Redis; the other's Redis does not answer, and it lets exchanges pass.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from proxy.simulator.server import Simulator
from tests.fakes.client import RecordingClient
from tests.fakes.redis import free_port, running_redis
from tests.fakes.served import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.fakes.served import Served

_KEYS: Final = {"team": "sk-team-0123456789", "small": "sk-small-0123456789", "poor": "sk-poor-0123456789"}
_CALLERS: Final = 4  # twice what the upstream may have at once
_PRICE: Final = {"input": 0.15, "output": 0.6}


@dataclass(frozen=True)
class Watched:
    """The two, by where operators ask."""

    ops_ports: tuple[int, ...]

    async def exposition(self) -> str:
        """What the first shows a scraper."""
        async with await RecordingClient.connect(self.ops_ports[0]) as client:
            return (await client.ask("GET", "/metrics", key=None)).body.decode()


@contextlib.asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    """Both proxies, and clients that ask until the end."""
    async with contextlib.AsyncExitStack() as stack:
        redis = stack.enter_context(running_redis())
        simulator = Simulator()
        await simulator.start()
        stack.push_async_callback(simulator.close)
        stores: dict[str, dict[str, Any]] = {
            "well": {"url": redis.url.replace("unix://", "redis+unix://"), "timeout": 5},
            "alone": {"url": f"redis://127.0.0.1:{free_port()}", "on_failure": "allow"},
        }

        async def start(name: str) -> Served:
            home = folder / name
            home.mkdir()
            configuration = _configuration(simulator.url, stores[name], home)
            configuration["server"]["workers"] = 2 if name == "well" else 1
            return await stack.enter_async_context(served(configuration, home))

        proxies = await asyncio.gather(*map(start, stores))
        over = asyncio.Event()
        asking = asyncio.create_task(_ask_until(over, *proxies))
        try:
            yield Watched(tuple(proxy.ops_port for proxy in proxies))
        finally:
            over.set()
            await asking


def _configuration(simulator: str, store: dict[str, Any], home: Path) -> dict[str, Any]:
    def upstream(url: str, **settings: Any) -> dict[str, Any]:
        return {"base_url": url, "auth": "none", **settings}

    generous = {
        "requests": ["1000000/day"],
        "tokens": ["100000000/minute", "1000000000/month"],
        "spend": ["1000/day", "50000/month"],
        "concurrency": 1000,
    }
    return {
        "server": {"port": 0, "auth_failures": None},
        "ops": {"port": 0},
        "store": store,
        "ledger": {"url": f"sqlite:///{home / 'ledger.db'}"},
        "upstreams": {
            "sim": upstream(simulator, max_concurrency=_CALLERS // 2),
            "faulty": upstream(simulator),
            "flood": upstream(simulator),
            "dead": upstream(f"http://127.0.0.1:{free_port()}/v1"),
        },
        "models": {
            "sim-*": {"routes": [{"upstream": "sim"}], "price": _PRICE, "max_output_tokens": 500},
            "sim-error-*": {"routes": [{"upstream": "faulty"}], "price": _PRICE},
            "sim-flood-*": {"routes": [{"upstream": "flood"}], "price": _PRICE},
            "free": {"routes": [{"upstream": "sim", "model": "sim-fast-3t"}]},
            "dead": {"routes": [{"upstream": "dead"}]},
        },
        "plans": {"generous": generous, "small": {"requests": ["2/hour"]}, "poor": {"spend": ["0.000001/day"]}},
        "keys": [
            {"id": name, "secret": secret, "plan": "generous" if name == "team" else name}
            for name, secret in _KEYS.items()
        ],
        "retries": {"backoff": 0.01, "max_backoff": 0.05},
        "log": {"level": "error"},
    }


async def _ask_until(over: asyncio.Event, well: Served, alone: Served) -> None:
    """Several callers, each in its own order, until it is over."""

    async def caller(first: int) -> None:
        turn = first
        while not over.is_set():
            await _MENU[turn % len(_MENU)](well.port)
            if turn % 4 == 0:
                await _ask(alone.port, "sim-fast-5t")
            turn += 1

    async with asyncio.TaskGroup() as callers:
        for number in range(_CALLERS):
            callers.create_task(caller(number * 3))


async def _ask(port: int, model: str, key: str | None = _KEYS["team"], *, stream: bool = False) -> None:
    async with await RecordingClient.connect(port) as client:
        await client.ask("POST", "/v1/chat/completions", _body(model, stream=stream), key=key)


async def _embed(port: int) -> None:
    async with await RecordingClient.connect(port) as client:
        await client.ask("POST", "/v1/embeddings", {"model": "sim-fast", "input": "metrics"}, key=_KEYS["team"])


async def _leave(port: int) -> None:
    """See the first piece of a stream, and go."""
    async with await RecordingClient.connect(port) as client:
        client.send("POST", "/v1/chat/completions", _body("sim-200t-20ms", stream=True), key=_KEYS["team"])
        await client.piece(await client.head())
        await client.reset()


async def _dawdle(port: int) -> None:
    """Read nothing of a flood while another answer takes its time, then go."""
    async with await RecordingClient.connect(port, receive_buffer=4096) as client:
        client.send("POST", "/v1/chat/completions", _body("sim-flood-16m", stream=True), key=_KEYS["team"])
        await client.head()
        await _ask(port, "sim-20t-10ms", stream=True)
        await client.reset()


def _body(model: str, *, stream: bool) -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": "How busy are you?"}]}


_MENU: Final[tuple[Callable[[int], Awaitable[None]], ...]] = (
    lambda port: _ask(port, "sim-20t-5ms", stream=True),
    lambda port: _ask(port, "sim-fast-5t"),
    _embed,
    lambda port: _ask(port, "sim-10t-5ms", stream=True),
    lambda port: _ask(port, "free"),
    lambda port: _ask(port, "sim-fast", key=_KEYS["small"]),
    lambda port: _ask(port, "sim-fast", key=_KEYS["poor"]),
    lambda port: _ask(port, "sim-fast", key="sk-nobody-0123456789"),
    lambda port: _ask(port, "sim-error-503", stream=True),
    lambda port: _ask(port, "sim-error-429"),
    lambda port: _ask(port, "dead"),
    _leave,
    _dawdle,
)
