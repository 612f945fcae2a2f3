"""The ledger's bad days: what runs goes on, what comes is refused, and no row is lost or stays open for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.fakes import outages
from tests.fakes.line import Line, line
from tests.fakes.outage_clients import Clients, finish, id_of, is_ready, queue_length, readiness, written
from tests.fakes.postgres import PostgresServer, running_postgres
from tests.fakes.recordings import ROLE
from tests.fakes.running import fresh_ledger
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fakes.outages import Outage

BACK_WITHIN_S = LONG_S


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that may be stopped."""
    with running_postgres() as own:
        yield own


@pytest.fixture
def server_url(server: PostgresServer) -> str:
    return outages.new_database(server)


@pytest.fixture
def file_url() -> Iterator[str]:
    with fresh_ledger() as url:
        yield url


async def is_over(base: Line) -> None:
    """Wait until the proxy is ready again and has written what waited."""
    ops_port = base.proxy.ops_port
    await until_asked(lambda: is_ready(ops_port), "it is ready again", BACK_WITHIN_S)
    await until(lambda: base.proxy.worker.app.ledger.waiting == 0, "all is written", BACK_WITHIN_S)
    assert await queue_length(ops_port) == 0


async def survives(outage: Outage, url: str) -> None:
    """The whole promise, for one way to fail."""
    async with line(ledger=url) as base, Clients(base.upstream, base.proxy) as clients:
        ops_port = base.proxy.ops_port
        running = [await clients.streaming() for _ in range(3)]
        leaving, _, seen = await clients.streaming()
        await asyncio.to_thread(outage.fail)
        late = await clients.refused_after_the_upstream_answered()
        refused = [await clients.refused_at_once() for _ in range(2)]
        assert await readiness(ops_port) == (503, [f"ledger: {outage.said}"])
        for stream in running:
            await finish(*stream)
        await leaving.client.close()
        await until_asked(lambda: _has_queued(ops_port, 5), "all that has ended waits in the queue, each once")
        await asyncio.to_thread(outage.heal)
        await is_over(base)
        running.append(await clients.streaming())
        await finish(*running[-1])
        await base.proxy.exchange(8)
        lines = {line["id"]: line for line in base.proxy.exchanges}
    ran = [id_of(answer) for _, _, answer in running]
    found = written(url)
    assert set(found) == {*ran, id_of(seen), id_of(late)}
    assert [(found[name]["outcome"], found[name]["status"]) for name in ran] == [("ok", 200)] * 4
    assert (found[id_of(seen)]["outcome"], found[id_of(seen)]["grade"]) == ("client_gone", "counted")
    row = found[id_of(late)]
    assert (row["outcome"], row["status"], row["grade"]) == ("store_unavailable", 503, "exact")
    assert (row["input_tokens"], row["output_tokens"], row["cost_nano_usd"]) == (0, 0, 0)
    assert None not in [row["ended_ms"] for row in found.values()]
    assert (lines[id_of(late)]["phase"], lines[id_of(late)]["upstream_status"]) == ("relay", 200)
    assert {lines[id_of(answer)]["phase"] for answer in refused} == {"route"}


async def _has_queued(ops_port: int, rows: int) -> bool:
    return await queue_length(ops_port) == rows


async def test_a_file_that_another_program_has_locked(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outages.hasten(monkeypatch)
    with outages.locked(file_url) as outage:
        await survives(outage, file_url)


async def test_a_file_that_can_no_longer_be_written(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outages.hasten(monkeypatch)
    with outages.read_only(monkeypatch) as outage:
        await survives(outage, file_url)


@pytest.mark.parametrize("kind", [outages.stopped, outages.frozen])
async def test_a_postgres_that_fails(
    kind: Callable[[PostgresServer], Outage],
    server: PostgresServer,
    server_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outages.hasten(monkeypatch)
    await survives(kind(server), server_url)


async def test_connections_that_postgres_ends(
    server: PostgresServer, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is connected again at once: those who run and those who come do not notice."""
    outages.hasten(monkeypatch)
    async with line(ledger=server_url) as base, Clients(base.upstream, base.proxy) as clients:
        running = [await clients.streaming() for _ in range(3)]
        assert await asyncio.to_thread(outages.terminate_backends, server) > 0
        running += [await clients.streaming() for _ in range(3)]
        assert await readiness(base.proxy.ops_port) == (200, [])
        for stream in running:
            await finish(*stream)
        await is_over(base)
        await base.proxy.exchange(6)
    found = written(server_url)
    assert {name: row["outcome"] for name, row in found.items()} == {id_of(answer): "ok" for _, _, answer in running}


async def test_so_many_exchanges_are_unfinished_and_no_more(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds memory until its row is complete: the bound is one on memory, whatever becomes of the database."""
    outages.hasten(monkeypatch, max_unfinished=3)
    with outages.locked(file_url) as outage:
        async with line(ledger=file_url) as base, Clients(base.upstream, base.proxy) as clients:
            running = [await clients.streaming() for _ in range(3)]
            await clients.refused_at_once()
            assert await readiness(base.proxy.ops_port) == (200, [])
            await asyncio.to_thread(outage.fail)
            for stream in running:
                await finish(*stream)
            await until_asked(lambda: _has_queued(base.proxy.ops_port, 3), "they wait in the queue")
            await clients.refused_at_once()
            await asyncio.to_thread(outage.heal)
            await is_over(base)
            running.append(await clients.streaming())
            await finish(*running[-1])
            await base.proxy.exchange(6)
    assert set(written(file_url)) == {id_of(answer) for _, _, answer in running}


async def test_a_client_that_leaves_while_its_row_is_waited_for(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has seen nothing, the upstream was at work: the row comes later, and says so."""
    outages.hasten(monkeypatch, patience_s=2 * LONG_S)
    with outages.locked(file_url) as outage:
        async with line(ledger=file_url) as base, Clients(base.upstream, base.proxy) as clients:
            await until(lambda: base.proxy.worker.app.ledger.waiting == 0, "it runs")
            await asyncio.to_thread(outage.fail)
            own = await clients.another()
            peer = await own.open()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + ROLE)
            await until(lambda: base.proxy.sample("sluice_exchanges_in_flight", phase="relay") == 1, "it waits")
            await own.client.reset()
            await asyncio.wait_for(peer.ended(), LONG_S)
            gone = await base.proxy.exchange()
            await asyncio.to_thread(outage.heal)
            await is_over(base)
    assert (gone["outcome"], gone["phase"], gone["sent_bytes"]) == ("client_gone", "relay", 0)
    [row] = written(file_url).values()
    assert (row["id"], row["outcome"], row["first_byte_ms"]) == (gone["id"], "client_gone", None)
