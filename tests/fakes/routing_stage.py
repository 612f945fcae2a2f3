"""A proxy before the upstreams `a`, `b`, … of one model `m`, and what they and the metrics say of each try."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.config.settings import ModelConfig, RetriesConfig
from proxy.config.upstreams import RouteConfig
from tests.fakes.answering import AnsweringUpstream, chat
from tests.fakes.client import RecordingClient
from tests.fakes.line import PATIENCE_S
from tests.fakes.running import Running, running, upstream_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from tests.fakes.client import Answer

CHAT: Final = "/v1/chat/completions"
BODY: Final = b'{ "model": "m", "temperature": 1.00,  "messages": [{"role":"user","content":"Hi"}]}'
STREAMED: Final = b'{ "model": "m", "stream": true, "messages": [{"role":"user","content":"Hi"}]}'
JSON: Final = (("Content-Type", "application/json"),)
QUICK: Final = RetriesConfig(backoff=0.0)


class HoldingUpstream(AnsweringUpstream):
    """Answers each request when it is told to; `held` counts those that wait for it."""

    def __init__(self, answer: Callable[[bytes], bytes] = chat) -> None:
        super().__init__(answer)
        self._held: deque[asyncio.Future[None]] = deque()

    @property
    def held(self) -> int:
        return len(self._held)

    async def __aexit__(self, *exc_info: object) -> None:
        for turn in self._held:
            turn.set_exception(ConnectionAbortedError())
        await super().__aexit__(*exc_info)

    def release(self) -> None:
        """Answer the request that came first."""
        self._held.popleft().set_result(None)

    async def _request(self, reader: asyncio.StreamReader) -> bytes:
        request = await super()._request(reader)
        self._held.append(asyncio.get_running_loop().create_future())
        await self._held[-1]
        return request


def script(*answers: bytes | Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """These answers, one after the other; the last for ever."""
    left = deque(answers)

    def answer(request: bytes) -> bytes:
        turn = left.popleft() if len(left) > 1 else left[0]
        return turn if isinstance(turn, bytes) else turn(request)

    return answer


class Changing:
    """An answer that the test changes meanwhile: `AnsweringUpstream` looks up its own before the request is there."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self.answer = answer

    def __call__(self, request: bytes) -> bytes:
        return self.answer(request)


def body_of(request: bytes) -> bytes:
    """Behind the head."""
    return request.partition(b"\r\n\r\n")[2]


class Routed(NamedTuple):
    """Who is there. `client` has an open connection to the proxy; those that came `later` are in `clients`."""

    upstreams: Sequence[AnsweringUpstream]
    proxy: Running
    client: RecordingClient
    clients: list[RecordingClient]

    @property
    def asked(self) -> list[int]:
        """How many requests each upstream got."""
        return [len(upstream.requests) for upstream in self.upstreams]

    async def ask(self, body: bytes = BODY, headers: tuple[tuple[str, str], ...] = (), **how: Any) -> Answer:
        """One exchange on the client's connection."""
        return await self.client.ask("POST", CHAT, body, headers=(*JSON, *headers), **how)

    async def later(self, body: bytes = BODY, **how: Any) -> tuple[RecordingClient, asyncio.Task[Answer]]:
        """Ask on a connection of its own; the answer is waited for in a task."""
        client = await RecordingClient.connect(self.proxy.port)
        self.clients.append(client)
        client.send("POST", CHAT, body, headers=JSON, **how)
        return client, asyncio.get_running_loop().create_task(asyncio.wait_for(client.answer(), PATIENCE_S))

    def in_flight(self) -> dict[str, int]:
        """Exchanges at each upstream, as the metric has it."""
        upstreams = self.proxy.worker.app.upstreams
        shown = {name: int(self.proxy.sample("sluice_upstream_in_flight", upstream=name)) for name in upstreams}
        assert shown == {name: upstream.health.in_flight for name, upstream in upstreams.items()}
        return shown


def samples(proxy: Running, name: str) -> dict[str, float]:
    """The samples of a metric that are not 0, by the values of their labels."""
    return {" ".join(sample.labels.values()): sample.value for sample in proxy.samples(name) if sample.value}


@contextlib.asynccontextmanager
async def routed(
    *answering: AnsweringUpstream | Callable[[bytes], bytes] | str,
    routes: Iterable[Mapping[str, Any]] = (),
    upstream: Mapping[str, Any] | None = None,
    each: Mapping[str, Mapping[str, Any]] | None = None,
    retries: RetriesConfig = QUICK,
    settings: Mapping[str, Any] | None = None,
    **how: Any,
) -> AsyncIterator[Routed]:
    """Put them up. A string is the URL of an upstream of the test's own; `a` is asked first, then `b`.

    `routes` are settings of each one's route, `upstream` those of all upstreams and `each` by name;
    `how` is what `running` takes.
    """
    given = [dict(one) for one in routes]
    async with contextlib.AsyncExitStack() as stack:
        configs, ups = {}, []
        for name, one in zip("abcd", answering, strict=False):
            if not isinstance(one, str):
                up = one if isinstance(one, AnsweringUpstream) else AnsweringUpstream(one)
                ups.append(await stack.enter_async_context(up))
            url = one if isinstance(one, str) else ups[-1].url
            own = {**(upstream or {}), **(each or {}).get(name, {})}
            configs[name] = upstream_config(url, **{"usage": "as-asked", **own})
        ways = [
            RouteConfig(upstream=name, **{"priority": index, **(given[index] if given else {})})
            for index, name in enumerate(configs)
        ]
        models = {"m": ModelConfig(routes=tuple(ways))}
        settings = {"retries": retries, **(settings or {})}
        proxy = await stack.enter_async_context(running(configs, models=models, settings=settings, **how))
        client = await stack.enter_async_context(await RecordingClient.connect(proxy.port))
        later: list[RecordingClient] = []
        try:
            yield Routed(ups, proxy, client, later)
        finally:
            for waiting in later:
                await waiting.close()
