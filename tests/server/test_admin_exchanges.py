"""Exchanges in flight over the admin API: shown without any content, and cut as honestly as their phase allows."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import ModelConfig
from proxy.core import errors
from tests.fakes.admin import Operator, operated, watched
from tests.fakes.client import RecordingClient
from tests.fakes.line import chunk, head
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from tests.fakes.line import Line
    from tests.fakes.raw_upstream import RawPeer

CONTENT = "zq7content"
ASKED = f'{{"model":"gpt-4o-mini","stream":true,"messages":[{{"role":"user","content":"{CONTENT}"}}]}}'.encode()
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"zq7content"}}]}\n\n'


async def only(operator: Operator) -> dict[str, Any]:
    """The one exchange in flight."""
    found = await operator.get("/admin/exchanges")
    assert (found["total"], found["no_answer"], len(found["exchanges"])) == (1, [], 1)
    one: dict[str, Any] = found["exchanges"][0]
    return one


async def until_none(operator: Operator) -> None:
    async def is_none() -> bool:
        return bool((await operator.get("/admin/exchanges"))["total"] == 0)

    await until_asked(is_none, "no exchange in flight")


async def test_nothing_is_in_flight() -> None:
    async with operated() as (_, _, operator):
        assert await operator.get("/admin/exchanges") == {"exchanges": [], "total": 0, "no_answer": []}


async def test_an_exchange_is_shown_without_any_content() -> None:
    async with watched(models={"gpt-4o*": ModelConfig()}) as (there, operator):
        peer = await there.open(body=ASKED)
        waiting = await only(operator)
        assert waiting["phase"] == "forward"
        await peer.send(head() + chunk(EVENT))
        answer = await asyncio.wait_for(there.client.head(), LONG_S)
        await there.piece(answer)
        shown = await only(operator)
        age_s = shown.pop("age_s")
        assert shown == {
            "id": answer.header("x-sluice-id"),
            "worker": 1,
            "key": "team-a",
            "endpoint": "chat/completions",
            "model": "gpt-4o*",
            "upstream": "up",
            "phase": "relay",
            "attempts": 1,
            "sent_bytes": len(EVENT),
            "streamed": True,
        }
        assert waiting["age_s"] <= age_s < 60
        assert CONTENT.encode() not in (await operator.ask("GET", "/admin/exchanges")).body
        peer.close()
        while await there.piece(answer):
            continue
        await until_none(operator)


async def test_all_that_was_sent_so_far_is_counted() -> None:
    """Also of events that are alike, of which others are told only now and then."""
    async with watched() as (there, operator):
        peer, answer = await there.begun(body=ASKED)
        for events in range(1, 9):
            await peer.send(chunk(EVENT))
            await there.piece(answer)
            assert (await only(operator))["sent_bytes"] == events * len(EVENT)
        peer.close()


async def test_an_exchange_that_is_still_being_read_is_shown() -> None:
    async with watched() as (there, operator):
        there.client.send("POST", "/v1/chat/completions", headers=(("Content-Length", "100"),))
        there.client.writer.write(b"{")

        async def is_there() -> bool:
            return bool((await operator.get("/admin/exchanges"))["total"] == 1)

        await until_asked(is_there, "it is in flight")
        shown = await only(operator)
        assert {name: shown[name] for name in ("key", "model", "upstream", "phase", "attempts", "streamed")} == {
            "key": "team-a",
            "model": None,
            "upstream": None,
            "phase": "admit",
            "attempts": 0,
            "streamed": False,
        }


async def test_the_list_is_bounded_and_begins_with_the_oldest() -> None:
    async with watched() as (there, operator), contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            client = await stack.enter_async_context(await RecordingClient.connect(there.proxy.port))
            client.send("POST", "/v1/chat/completions", ASKED, headers=(("Content-Type", "application/json"),))
            await there.accept()
        found = await operator.get("/admin/exchanges?limit=2")
        assert (found["total"], len(found["exchanges"])) == (3, 2)
        everything = (await operator.get("/admin/exchanges"))["exchanges"]
        began_ms = [one["id"][: len("sl_") + 11] for one in everything]  # of two in one, either may be first
        assert began_ms == sorted(began_ms)
        assert [one["id"] for one in found["exchanges"]] == [one["id"] for one in everything[:2]]


async def assert_cut(there: Line, operator: Operator, exchange_id: str, phase: str) -> None:
    """It is settled, told as cut by an operator, and nothing of it is left."""
    exchange = await there.proxy.exchange()
    told = {name: exchange[name] for name in ("id", "status", "outcome", "aborted_by", "phase")}
    assert told == {
        "id": exchange_id,
        "status": exchange["status"],
        "outcome": "cut_by_operator",
        "aborted_by": "operator",
        "phase": phase,
    }
    assert there.proxy.sample("sluice_aborts_total", phase=phase, by="operator") == 1
    await until_none(operator)
    await until(lambda: operator.audit, "the audit line")
    assert operator.audit == [{"action": "exchanges.cut", "outcome": "done", "target": exchange_id}]
    (upstream,) = (await operator.get("/admin/upstreams"))["upstreams"]
    assert (upstream["in_flight"], upstream["circuit"]) == (0, "closed")


async def test_a_stream_that_is_cut_ends_in_an_error_that_says_so() -> None:
    async with watched() as (there, operator):
        peer, answer = await there.begun()
        await peer.send(chunk(EVENT))
        await there.piece(answer)
        exchange_id = (await only(operator))["id"]
        told = await operator.does("DELETE", f"/admin/exchanges/{exchange_id}", status=202)
        assert told == {"id": exchange_id, "worker": 1}
        while await there.piece(answer):
            continue
        error, done = answer.body.removeprefix(EVENT).decode().removesuffix("\n\n").split("\n\n")
        assert done == "data: [DONE]"
        assert '"code":"cut_by_operator"' in error
        assert "An operator of this proxy has ended the request." in error
        await asyncio.wait_for(peer.ended(), LONG_S)
        await assert_cut(there, operator, exchange_id, "relay")
        line = there.proxy.exchanges[0]
        assert (line["status"], line["grade"]) == (200, "counted")


async def test_an_exchange_that_waits_for_the_upstream_is_answered_when_it_is_cut() -> None:
    async with watched() as (there, operator):
        peer = await there.open()
        exchange_id = (await only(operator))["id"]
        await operator.does("DELETE", f"/admin/exchanges/{exchange_id}", status=202)
        answer = await there.answer()
        assert (answer.status, answer.error["code"]) == (503, "cut_by_operator")
        assert answer.header("x-should-retry") == "false"
        await asyncio.wait_for(peer.ended(), LONG_S)
        await assert_cut(there, operator, exchange_id, "forward")


async def test_an_exchange_whose_client_reads_nothing_is_cut_all_the_same() -> None:
    async with watched() as (there, operator):
        port = there.proxy.port
        async with await RecordingClient.connect(port, receive_buffer=4096) as client:
            client.send("POST", "/v1/chat/completions", ASKED, headers=(("Content-Type", "application/json"),))
            peer = await there.accept()
            await peer.request()
            pump = asyncio.create_task(_pump(peer))
            await until(lambda: _is_stuck(there), "the client holds it up")
            exchange_id = (await only(operator))["id"]
            await operator.does("DELETE", f"/admin/exchanges/{exchange_id}", status=202)
            await asyncio.wait_for(peer.ended(), LONG_S)
            await pump
            await assert_cut(there, operator, exchange_id, "relay")


def _is_stuck(there: Line) -> bool:
    live = there.proxy.worker.app.live.all()
    return bool(live) and live[0][0].downstream.is_waiting


async def _pump(peer: RawPeer) -> None:
    """Send more than anybody's buffers hold."""
    with contextlib.suppress(ConnectionError):
        await peer.send(head())
        for _ in range(4_000):
            await peer.send(chunk(EVENT * 50))


async def test_a_cut_is_made_once() -> None:
    async with watched() as (there, operator):
        peer, answer = await there.begun()
        await peer.send(chunk(EVENT))
        await there.piece(answer)
        exchange_id = (await only(operator))["id"]
        path = f"/admin/exchanges/{exchange_id}"
        statuses = {(await operator.ask("DELETE", path)).status for _ in range(3)}
        assert statuses <= {202, 404}
        while await there.piece(answer):
            continue
        assert answer.body.count(b"cut_by_operator") == 1
        await until_none(operator)
        refusal = await operator.refused(404, "not_found", "DELETE", path)
        assert refusal["message"] == "No exchange of that id is in flight."


async def test_a_second_cut_does_not_take_the_answer_of_the_first() -> None:
    """Between the first and its answer the row is committed; a second one meanwhile changes nothing."""
    async with watched() as (there, operator):
        await there.open()
        exchange_id = (await only(operator))["id"]
        live = there.proxy.worker.app.live
        error = errors.ProxyError(errors.CUT_BY_OPERATOR, "cut")
        assert live.cut(exchange_id, error)
        for _ in range(3):
            await asyncio.sleep(0)
            live.cut(exchange_id, error)
        answer = await there.answer()
        assert (answer.status, answer.error["code"]) == (503, "cut_by_operator")


@pytest.mark.parametrize("exchange_id", ["sl_1", "%ff", "a" * 5000])
async def test_an_exchange_that_is_not_there_cannot_be_cut(exchange_id: str) -> None:
    async with operated() as (_, _, operator):
        await operator.refused(404, "not_found", "DELETE", f"/admin/exchanges/{exchange_id}")
        await until(lambda: operator.audit, "the line")
        assert operator.audit == [{"action": "exchanges.cut", "outcome": "not_found", "target": None}]
