"""The shared store stopped, paused, flushed and failed over under load: each proxy does what `on_failure` promises.

Two processes share the store, one that denies and one that allows. Nobody hangs, nothing is admitted twice, streams in
flight and keys without limits notice nothing, and all is as before when the store is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.fakes.answering import AnsweringUpstream
from tests.fakes.outage_clients import Clients, finish, id_of, written
from tests.fakes.quota_burst import MODEL, answer
from tests.fakes.quota_load import Asked, Load, asking
from tests.fakes.quota_outages import Trouble, failed_over, flushed, paused, stopped
from tests.fakes.quota_serving import remaining, serving
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.running import KEY, fresh_ledger
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.fakes.client import Answer
    from tests.fakes.line import Line
    from tests.fakes.raw_upstream import RawPeer
    from tests.fakes.served import Served

    Stream = tuple[Line, RawPeer, Answer]

STREAMED: Final = "gpt-4o-mini"
STORE_TIMEOUT_S: Final = 0.5
MARGIN_S: Final = 20.0  # of a busy machine; and what the ledger may take to say what was used
RECOVERED_WITHIN_S: Final = 40.0  # the longest pause between two probes of a store that was away, and a busy machine
WIDE: Final = 1_000_000
TIGHT: Final = 30
MODES: Final = ("deny", "allow")
FEW: Final = 12
MANY: Final = 30


@pytest.fixture
def ledger_url() -> Iterator[str]:
    with fresh_ledger() as url:
        yield url


def secrets(mode: str) -> dict[str, str]:
    return {role: f"sk-test-{mode}-{role}-0123456789" for role in ("wide", "tight", "free")}


def configuration(answering: str, held: int, store_url: str, ledger_url: str, mode: str) -> dict[str, Any]:
    plans = {
        "wide": {"requests": [f"{WIDE}/month"], "tokens": ["100000000/month"], "concurrency": 1000},
        "tight": {"requests": [f"{TIGHT}/month"]},
        "streams": {"requests": [f"{WIDE}/month"], "tokens": ["100000000/month"], "concurrency": 10},
    }
    keys: list[dict[str, Any]] = [{"id": "streams", "secret": KEY, "plan": "streams"}]
    for owner in MODES:
        own = secrets(owner)
        keys += [{"id": f"{owner}-{role}", "secret": own[role], "plan": role} for role in ("wide", "tight")]
        keys.append({"id": f"{owner}-free", "secret": own["free"]})
    return {
        "server": {"port": 0},
        "ops": {"port": 0},
        "store": {"url": store_url, "timeout": STORE_TIMEOUT_S, "on_failure": mode},
        "ledger": {"url": ledger_url},
        "upstreams": {
            "answering": {"base_url": answering, "auth": "none"},
            "held": {"base_url": f"http://127.0.0.1:{held}/v1", "auth": "none", "usage": "as-asked"},
        },
        "models": {MODEL: {}, STREAMED: {"routes": [{"upstream": "held"}]}},
        "plans": plans,
        "keys": keys,
    }


@dataclass
class Stage:
    """The proxy that denies and the one that allows, their load, and two streams through each."""

    trouble: Trouble
    ledger_url: str
    answering: AnsweringUpstream
    proxies: list[Served]
    loads: list[Load]
    streams: list[list[Stream]]
    failed_s: float = 0.0
    gone_s: float = 0.0
    healed_s: float = 0.0

    def recovered_s(self, load: Load) -> float | None:
        """How long after the end of the trouble a request was held to its limits again."""
        first_s = load.first(is_held, self.healed_s)
        return None if first_s is None else first_s - self.healed_s


def is_held(one: Asked) -> bool:
    """The store was asked, and knows."""
    return one.checked or one.status == 429


@contextlib.asynccontextmanager
async def stage(trouble: Trouble, ledger_url: str, folder: Path) -> AsyncIterator[Stage]:
    with RawUpstream() as held:
        async with AnsweringUpstream(answer) as answering, contextlib.AsyncExitStack() as stack:
            configs = [configuration(answering.url, held.port, trouble.url, ledger_url, mode) for mode in MODES]
            proxies = await stack.enter_async_context(serving(configs, folder))
            streams = []
            for proxy in proxies:
                clients = await stack.enter_async_context(Clients(held, proxy))
                streams.append([await clients.streaming() for _ in range(2)])
            loads = [Load(proxy.port, secrets(mode)) for proxy, mode in zip(proxies, MODES, strict=True)]
            yield Stage(trouble, ledger_url, answering, proxies, loads, streams)


async def all_of(scene: Stage, condition: Callable[[Load], object], what: str) -> None:
    await until(lambda: all(condition(load) for load in scene.loads), what, LONG_S)


async def troubled(scene: Stage) -> None:
    """Load, trouble under load, its end, and load until all is as before. One stream ends within, one after."""
    async with asking(*scene.loads):
        await all_of(scene, lambda load: load.count(is_held) > MANY, "all is well")
        scene.failed_s = time.monotonic()
        await asyncio.to_thread(scene.trouble.fail)
        scene.gone_s = time.monotonic()
        if scene.trouble.is_felt:
            await all_of(scene, lambda load: load.count(is_missed, scene.gone_s) > MANY, "the store is missed")
        await asyncio.wait_for(asyncio.gather(*(finish(*stream) for stream, _ in scene.streams)), MARGIN_S)
        await asyncio.to_thread(scene.trouble.heal)
        scene.healed_s = time.monotonic()
        await all_of(scene, lambda load: load.count(is_held, scene.healed_s) > MANY, "limits hold again")
        used_up = "the small limit is used up, and known to be"
        await all_of(scene, lambda load: load.count(is_refused, scene.healed_s, "tight") > FEW, used_up)
        await asyncio.wait_for(asyncio.gather(*(finish(*stream) for _, stream in scene.streams)), MARGIN_S)


def is_missed(one: Asked) -> bool:
    return one.away or one.unchecked


def is_refused(one: Asked) -> bool:
    return one.status == 429


def slots(scene: Stage) -> int:
    """How many slots are taken, of all keys."""
    with scene.trouble.server.client() as client:
        return sum(int(client.zcard(name)) for name in client.scan_iter("sluice:*:slots"))


async def used(scene: Stage, key: str) -> int:
    return WIDE - await remaining(scene.proxies[0].port, "requests", key=key)


def check_promises(load: Load, mode: str) -> None:
    """What was told, and to whom."""
    for one in load.asked:
        assert one.took_s < STORE_TIMEOUT_S + MARGIN_S
        if one.role == "free":
            assert one.status == 200, "a key without limits needs no store"
        elif one.status == 503:
            assert (mode, one.code) == ("deny", "store_unavailable")
            assert int(one.retry_after or "") >= 1
        elif one.status == 429:
            assert (one.role, one.code) == ("tight", "insufficient_quota")
        else:
            assert one.status == 200
            assert one.tells_limits or mode == "allow"


def report(name: str, scene: Stage, counts: list[Count]) -> None:
    lasted_s = scene.healed_s - scene.failed_s
    print(f"\n{name}, for {lasted_s:.1f} s")
    for mode, load, found in zip(MODES, scene.loads, counts, strict=True):
        checked, unchecked = load.count(lambda one: one.checked), load.count(lambda one: one.unchecked)
        free, away = load.count(lambda one: one.role == "free"), load.count(lambda one: one.away)
        over, recovered_s = load.count(is_refused), scene.recovered_s(load) or 0.0
        print(
            f"{mode:>7}: {len(load.asked)} requests: {checked} admitted, {unchecked} unchecked, {away} refused, {over} "
            f"over the limit, {free} without limits; slowest {load.slowest_s * 1000:.0f} ms, limits hold again after "
            f"{recovered_s * 1000:.0f} ms\n{found}"
        )


@dataclass(frozen=True)
class Count:
    """What the store has counted of a key's requests, and of those that were admitted, which it was asked for."""

    counted: int
    checked: int
    unchecked: int
    uncertain: int  # of those checked: in flight when the store went, or when it was first asked again


async def count(scene: Stage, mode: str, load: Load) -> Count:
    wide = [one for one in load.asked if one.role == "wide"]
    back_s = scene.healed_s + (scene.recovered_s(load) or 0.0)
    moments = (scene.failed_s, scene.gone_s), (scene.healed_s, back_s)
    uncertain = sum(
        one.checked and any(one.sent_s <= end_s and one.sent_s + one.took_s >= begin_s for begin_s, end_s in moments)
        for one in wide
    )
    counted = await used(scene, secrets(mode)["wide"])
    return Count(counted, sum(one.checked for one in wide), sum(one.unchecked for one in wide), uncertain)


def check_count(found: Count, trouble: Trouble) -> None:
    """Nothing is counted twice, nor forgotten: a store that lost what it knew has it from the ledger."""
    if not trouble.keeps:
        assert found.checked - found.uncertain <= found.counted <= found.checked + found.unchecked
    elif trouble.is_replicated:  # what the replica had not heard of yet is lost with its leader
        assert found.checked - found.uncertain <= found.counted <= found.checked
    else:
        assert found.counted == found.checked


def check_exchanges(scene: Stage) -> None:
    """Whoever was admitted was at the upstream once, and has a row; nobody else was."""
    admitted = {str(one.number) for load in scene.loads for one in load.asked if one.status == 200}
    assert Counter(body["user"] for body in scene.answering.bodies) == Counter(admitted)
    rows = written(scene.ledger_url)
    assert {row["outcome"] for row in rows.values()} == {"ok"}
    streams = {id_of(stream[2]) for streams in scene.streams for stream in streams}
    assert len(rows) == len(admitted) + len(streams)
    assert streams <= rows.keys()


@pytest.mark.parametrize("harm", [stopped, paused, flushed, failed_over], ids=lambda harm: harm.__name__)
async def test_a_store_that_fails_under_load(harm: Any, ledger_url: str, tmp_path: Path) -> None:
    with harm() as trouble:
        async with stage(trouble, ledger_url, tmp_path) as scene:
            await troubled(scene)
            await until(lambda: slots(scene) == 0, "what could not be settled is", LONG_S)
            counts = [await count(scene, mode, load) for mode, load in zip(MODES, scene.loads, strict=True)]
            await until(lambda: all(row["ended_ms"] for row in written(ledger_url).values()), "the rows", LONG_S)
            report(harm.__name__, scene, counts)
            check_exchanges(scene)
    for mode, load, found in zip(MODES, scene.loads, counts, strict=True):
        check_promises(load, mode)
        check_count(found, trouble)
        assert load.count(lambda one: one.checked, role="tight") <= TIGHT
        assert (scene.recovered_s(load) or 0.0) < RECOVERED_WITHIN_S
        assert load.count(is_missed, scene.gone_s) > MANY or not trouble.is_felt
