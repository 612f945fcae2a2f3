"""The two sides of a mixed exchange: an upstream that plays what was planned, and the client that asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Final

from proxy.config.settings import KeyConfig, ModelConfig, PlanConfig, PriceConfig
from proxy.config.upstreams import RouteConfig
from proxy.config.values import Secret
from tests.fakes.answering import AnsweringUpstream, response
from tests.fakes.client import RecordingClient
from tests.fakes.mixed import DEAF, KEYS, Leaves, Then
from tests.fakes.running import running, upstream_config
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.fakes.mixed import Plan
    from tests.fakes.running import Running

# not one of them costs whole nano-USD a token, but the first
PRICES: Final = {
    "mini": PriceConfig(input=0.15, cached_input=0.075, output=0.6),
    "odd": PriceConfig(input=0.0375, cached_input=0.00125, output=0.33333),
    "glob-*": PriceConfig(input=1.10, output=4.4),
    **dict.fromkeys(DEAF, PriceConfig(input=0.0005, output=0.0005)),
}
_NUMBER: Final = re.compile(rb"#(\d+)#|[?]number=(\d+)")
_REFUSAL: Final = b'{"error":{"message":"Extra inputs are not permitted: stream_options"}}'


class MixedUpstream(AnsweringUpstream):
    """Plays the plan whose number a request holds."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        super().__init__()
        self._plans = plans

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._play(await self._request(reader), reader, writer):
                continue
        self._writers.discard(writer)
        writer.close()

    async def _play(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer; whether the connection is good for another."""
        found = _NUMBER.search(request)
        if found is None:  # the proxy itself asks for the list of models
            writer.write(response(b'{"object":"list","data":[]}'))
            return True
        plan = self._plans[int(found[1] or found[2])]
        plan.has_arrived.set()
        if plan.kind.is_deaf and b"stream_options" in request:
            writer.write(response(_REFUSAL, status=400))
            return True
        assert plan.kind.answer is not None, plan.name
        for step in plan.kind.answer(plan):
            if isinstance(step, bytes):
                writer.write(step)
            elif step is Then.AWAIT:
                await plan.has_left.wait()
            else:
                while step is Then.HOLD and await reader.read(65536):
                    continue
                return False
        await writer.drain()
        return True


@contextlib.asynccontextmanager
async def mixed_proxy(upstream: MixedUpstream, ledger: str) -> AsyncIterator[Running]:
    """A proxy with several keys, models and prices; the deaf models are each at an upstream that knows nothing yet."""
    names = {"mini": "up", "odd": "up", "free": "up", "glob-*": "up", **{name: name for name in DEAF}}
    models = {
        name: ModelConfig(routes=(RouteConfig(upstream=at),), price=PRICES.get(name), max_output_tokens=700)
        for name, at in names.items()
    }
    keys = tuple(KeyConfig(id=name, secret=Secret(secret), plan="all") for name, secret in KEYS.items())
    async with running(
        {name: upstream_config(upstream.url) for name in dict.fromkeys(names.values())},
        models=models,
        plans={"all": PlanConfig(endpoints=("inference", "stateful"))},
        keys=keys,
        ledger=ledger,
    ) as proxy:
        yield proxy


async def play(plan: Plan, proxy: Running) -> None:
    """The client's side of it, to the end."""
    kind = plan.kind
    key = "sk-nobody" if plan.name == "a bad key" else KEYS[plan.key]
    body = {} if plan.name == "no model" else plan.body
    async with await RecordingClient.connect(proxy.port) as client:
        if kind.endpoint in ("files", "models"):
            client.send("GET", f"/v1/{kind.endpoint}?number={plan.number}", key=key)
        else:
            client.send("POST", f"/v1/{kind.endpoint}", body, key=key)
        if kind.leaves is not None:
            await _leave(plan, client, proxy)
            return
        answer = await client.answer()
        assert answer.status == kind.status, (plan.name, answer.body)


async def _leave(plan: Plan, client: RecordingClient, proxy: Running) -> None:
    if plan.kind.leaves is Leaves.BEFORE:
        await plan.has_arrived.wait()
        await client.reset()
        return
    answer = await client.head()
    events = plan.words + (plan.kind.leaves is Leaves.FINISHED)
    while answer.body.count(b"\n\n") < events:
        await client.piece(answer)
    await client.reset()
    if plan.kind.leaves is Leaves.FINISHED:
        exchange_id = answer.header("x-sluice-id")
        await until(lambda: _is_settling(proxy, exchange_id), "the proxy to see that the client has left")
        plan.has_left.set()


def _is_settling(proxy: Running, exchange_id: str | None) -> bool:
    live = proxy.worker.app.live._live
    return any(exchange.id == exchange_id and exchange.timeline.phase == "settle" for exchange in live)
