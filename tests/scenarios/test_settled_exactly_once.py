"""Promise 6: every admission is settled exactly once, in its row, its quota and the metrics, however it ends."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.config.settings import KeyConfig, ModelConfig, PlanConfig, PriceConfig
from proxy.config.values import Secret
from proxy.stores.ledger import LedgerEntry
from tests.fakes.line import LAST_CHUNK, Line, chunk, head, line
from tests.fakes.raw_client import RawClient
from tests.fakes.recordings import DONE, FINISH, ROLE, delta
from tests.fakes.running import KEY
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    Ending = Callable[[Line], Coroutine[Any, Any, None]]

CHAT: Final = {"model": "m", "stream": True, "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]}
BODY: Final = json.dumps(CHAT).encode()


async def whole(way: Line) -> None:
    answer = await way.answered([head(), chunk(ROLE + FINISH + DONE), LAST_CHUNK], body=BODY)
    assert answer.whole


async def upstream_error(way: Line) -> None:
    answer = await way.answered([head("503 Busy", "application/json") + chunk(b'{"error":{}}') + LAST_CHUNK], body=BODY)
    assert answer.status == 503


async def broken_off(way: Line) -> None:
    await way.answered([head(), chunk(ROLE + delta("a"))], body=BODY)


async def no_answer(way: Line) -> None:
    assert (await way.answered([], body=BODY)).status == 502


async def left(way: Line, answer: bytes) -> None:
    client = await RawClient.connect(way.proxy.port)
    await client.post("/v1/chat/completions", CHAT, "Content-Type: application/json")
    peer = await way.accept()
    await peer.request()
    if answer:
        await peer.send(answer)
        await client.recv_until(b"\n\n")
    await client.leave("reset")
    await peer.ended()


async def left_before_the_answer(way: Line) -> None:
    await left(way, b"")


async def left_within_it(way: Line) -> None:
    await left(way, head() + chunk(ROLE + delta("a")))


async def drained(way: Line) -> None:
    peer, _ = await way.begun(body=BODY)
    await peer.send(chunk(ROLE))
    await until(lambda: len(way.proxy.worker.app.live) == 1, "a stream")
    await way.proxy.worker.stop(0.0)
    peer.close()


@pytest.mark.parametrize(
    "ending",
    [whole, upstream_error, broken_off, no_answer, left_before_the_answer, left_within_it, drained],
    ids=lambda ending: ending.__name__,
)
@pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])
async def test_each_ending_settles_once(ending: Ending, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows: Counter[str] = Counter()
    quota: Counter[str] = Counter()
    settle = LedgerEntry.settle

    def settled(entry: LedgerEntry, how: Any) -> None:
        rows[entry.opened.id] += 1
        settle(entry, how)

    monkeypatch.setattr(LedgerEntry, "settle", settled)
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    plan = PlanConfig(requests=("100/hour",), tokens=("100000/hour",), spend=("9/hour",), concurrency=5)
    key = KeyConfig(id="team-a", secret=Secret(KEY), plan="p")
    models = {"m": ModelConfig(price=PriceConfig(input=1, output=2))}
    async with line(ledger=ledger, plans={"p": plan}, keys=(key,), models=models) as way:
        quotas, store = way.proxy.worker.app._quotas, way.proxy.worker.app._opened.store
        told = store.settle_now

        def counted(reservation: Any, used: Any) -> bool:
            quota[reservation.id] += 1
            return told(reservation, used)

        monkeypatch.setattr(store, "settle_now", counted)
        await ending(way)
        await until(lambda: len(way.proxy.worker.app.live) == 0, "the end")
        exchange = await way.proxy.exchange()
        assert quotas._held == {}
        assert rows == quota == Counter({exchange["id"]: 1})
        assert way.proxy.total("sluice_requests_total") == 1
        charged = exchange["input_tokens"] + exchange["output_tokens"]
        assert way.proxy.total("sluice_tokens_total") == charged
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        found = database.execute("SELECT id, outcome, input_tokens + output_tokens FROM exchanges").fetchall()
    assert found == [(exchange["id"], exchange["outcome"], charged)]
