"""Clients that keep a proxy busy until it is gone, and remember what they saw of each exchange."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.fakes.client import RecordingClient

if TYPE_CHECKING:
    from random import Random

    from tests.fakes.client import Answer

CALLERS: Final = 12
# at once, after a moment, and piece by piece: some answers are there before a commit can be
MODELS: Final = (
    "sim-fast-1t",
    "sim-fast-40t",
    "sim-fast-5t-ttft-8ms",
    "sim-20t-3ms",
    "sim-fast-hangup",
    "sim-error-429",
)
CHAT: Final = "chat/completions"


@dataclass
class Seen:
    """An exchange of which a client has the head at least; `usage` is what a whole body said."""

    id: str
    endpoint: str
    model: str
    streamed: bool
    status: int
    is_whole: bool = False
    usage: dict[str, int] | None = None


@dataclass
class Load:
    """What `CALLERS` clients ask of the proxy at `port`, all at once and again and again, until it is gone."""

    port: int
    key: str
    draw: Random
    asked: int = 0
    nameless: int = 0  # exchanges of which a client has a part of the head
    seen: list[Seen] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False  # from now on a connection may end

    async def run(self) -> None:
        """Ask until the proxy is gone. Raises what ends a connection while it should still be there."""
        async with asyncio.TaskGroup() as callers:
            for _ in range(CALLERS):
                callers.create_task(self._call())

    async def _call(self) -> None:
        while not self.is_over:
            try:
                async with await RecordingClient.connect(self.port) as client:
                    while await self._ask(client):
                        continue
            except (asyncio.IncompleteReadError, ConnectionError):
                if not self.is_over:
                    raise

    async def _ask(self, client: RecordingClient) -> bool:
        """One exchange; whether the connection is good for another."""
        draw = self.draw
        model, streamed = draw.choice(MODELS), draw.random() < 0.6
        endpoint = CHAT if streamed or draw.random() < 0.7 else "embeddings"
        client.send("POST", f"/v1/{endpoint}", _body(endpoint, model, streamed=streamed), key=self.key)
        self.asked += 1
        try:
            answer = await client.head()
        except asyncio.IncompleteReadError as error:
            # heads come whole: no client has bytes of an exchange whose name it does not know
            self.nameless += bool(error.partial)
            raise
        exchange_id = answer.header("x-sluice-id")
        assert exchange_id is not None
        seen = Seen(exchange_id, endpoint, model, streamed, answer.status)
        self.seen.append(seen)
        self.begun.set()
        if streamed and draw.random() < 0.1:
            with contextlib.suppress(asyncio.IncompleteReadError):
                await client.piece(answer)
            await client.reset()
            return False
        await _rest(client, answer)
        seen.is_whole = answer.whole
        if answer.whole and answer.status == 200 and not streamed:
            seen.usage = answer.json["usage"]
        return answer.whole


def _body(endpoint: str, model: str, *, streamed: bool) -> dict[str, Any]:
    if endpoint != CHAT:
        return {"model": model, "input": "Nothing is lost", "dimensions": 4}
    return {"model": model, "stream": streamed, "messages": [{"role": "user", "content": "What was lost?"}]}


async def _rest(client: RecordingClient, answer: Answer) -> None:
    """The body behind a head, as far as it comes."""
    if (length := answer.header("content-length")) is not None:
        answer.body = await client.reader.readexactly(int(length))
        answer.whole = True
        return
    while await client.piece(answer):
        continue
