"""The admin API of several workers: one door, at the supervisor, behind which all of them are asked and told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.fakes.admin import TOKEN, Operator
from tests.fakes.answering import CHAT_JSON, AnsweringUpstream, response
from tests.fakes.client import RecordingClient
from tests.fakes.fleet import fleet, worker_of
from tests.fakes.line import chunk, head
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.client import Answer
    from tests.fakes.raw_upstream import RawPeer
    from tests.fakes.served import Served

STREAM: Final = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "zq7content"}]}
WHOLE: Final = {"model": "m", "messages": []}
EVENT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
BOTH: Final = {1, 2}


async def statuses(proxy: Served, key: str) -> set[tuple[int, int]]:
    """What each worker answers: its process and the status; asked until both were met."""
    found: set[tuple[int, int]] = set()
    for _ in range(200):
        async with await RecordingClient.connect(proxy.port) as client:
            answer = await client.ask("POST", "/v1/chat/completions", WHOLE, key=key)
            found.add((worker_of(proxy, client), answer.status))
        if len({pid for pid, _ in found}) == 2:
            return found
    raise AssertionError("only one worker was ever met")


async def becomes(expected: int, proxy: Served, key: str) -> None:
    async def is_so() -> bool:
        return {status for _, status in await statuses(proxy, key)} == {expected}

    await until_asked(is_so, f"{expected} on both workers", LONG_S)


async def test_keys_and_usage(tmp_path: Path) -> None:
    async with AnsweringUpstream() as upstream, fleet(upstream.url, tmp_path) as proxy:
        operator = Operator(proxy)
        secret = (await operator.does("POST", "/admin/keys", {"id": "team-b"}, status=201))["secret"]
        await becomes(200, proxy, secret)
        rotated = (await operator.does("POST", "/admin/keys/team-b/rotate", {"grace": "0"}))["secret"]
        await becomes(200, proxy, rotated)
        await becomes(401, proxy, secret)
        await operator.does("PATCH", "/admin/keys/team-b", {"limits": {"requests": ["1/day"]}})
        await becomes(429, proxy, rotated)
        await operator.does("DELETE", "/admin/keys/team-b")
        await becomes(401, proxy, rotated)

        async def is_settled() -> bool:
            rows = (await operator.get("/admin/usage?by=key&by=outcome"))["rows"]
            return any(row["key"] == "team-b" and row["outcome"] == "ok" for row in rows)

        await until_asked(is_settled, "its use is in the ledger", LONG_S)
        await until(lambda: len(operator.audit) == 4, "a line for each change", LONG_S)
        assert {line["outcome"] for line in operator.audit} == {"done"}
        assert (await operator.get("/admin/keys/team-a"))["source"] == "file"
        await operator.refused(409, "key_of_file", "DELETE", "/admin/keys/team-a")
    written = (proxy.out + proxy.err).decode()
    for hidden in (secret, rotated, TOKEN):
        assert hidden not in written


@dataclass
class Stream:
    """A stream that has begun, and the upstream's side of it."""

    client: RecordingClient
    peer: RawPeer
    answer: Answer


@contextlib.asynccontextmanager
async def streams_on_both(
    proxy: Served, upstream: RawUpstream, operator: Operator
) -> AsyncIterator[tuple[dict[str, Stream], list[dict[str, Any]]]]:
    """Streams on both workers by their ids, and what the operator is shown of them."""
    begun: dict[str, Stream] = {}
    async with contextlib.AsyncExitStack() as stack:
        while len(begun) < 100:
            client = await stack.enter_async_context(await RecordingClient.connect(proxy.port))
            client.send("POST", "/v1/chat/completions", STREAM)
            peer = await upstream.accept()
            await peer.answer(head() + chunk(EVENT))
            answer = await client.head()
            await client.piece(answer)
            begun[answer.header("x-sluice-id") or ""] = Stream(client, peer, answer)
            shown = await operator.get("/admin/exchanges")
            assert (shown["total"], shown["no_answer"]) == (len(begun), [])
            if {one["worker"] for one in shown["exchanges"]} == BOTH:
                yield begun, shown["exchanges"]
                return
    raise AssertionError("only one worker was ever met")


async def test_exchanges_are_seen_and_cut_on_whichever_worker(tmp_path: Path) -> None:
    with RawUpstream() as upstream:
        async with fleet(f"http://127.0.0.1:{upstream.port}/v1", tmp_path) as proxy:
            operator = Operator(proxy)
            async with streams_on_both(proxy, upstream, operator) as (begun, shown):
                assert {one["id"] for one in shown} == begun.keys()
                assert {one["phase"] for one in shown} == {"relay"}
                of_worker = {one["worker"]: one["id"] for one in shown}
                for worker, exchange_id in of_worker.items():
                    told = await operator.does("DELETE", f"/admin/exchanges/{exchange_id}", status=202)
                    assert told == {"id": exchange_id, "worker": worker}
                    stream = begun.pop(exchange_id)
                    while await stream.client.piece(stream.answer):
                        continue
                    assert stream.answer.body.count(b'"code":"cut_by_operator"') == 1
                    assert stream.answer.body.endswith(b"data: [DONE]\n\n")
                    await stream.peer.ended()
                await until(lambda: len(proxy.exchanges) == 2, "their lines", LONG_S)
                assert {(line["aborted_by"], line["worker"]) for line in proxy.exchanges} == {
                    ("operator", number) for number in BOTH
                }
                assert {one["id"] for one in (await operator.get("/admin/exchanges"))["exchanges"]} == begun.keys()
                (up,) = (await operator.get("/admin/upstreams"))["upstreams"]
                assert up["in_flight"] == len(begun) == sum(one["in_flight"] for one in up["workers"])
                assert {one["worker"] for one in up["workers"]} == BOTH
                await operator.refused(404, "not_found", "DELETE", f"/admin/exchanges/{of_worker[1]}")
                for stream in begun.values():
                    stream.peer.close()
        assert "zq7content" not in (proxy.out + proxy.err).decode()


async def test_a_drain_holds_on_all_workers_and_on_those_that_come_later(tmp_path: Path) -> None:
    key = "sk-test-key-0123456789"
    async with AnsweringUpstream(lambda _: response(CHAT_JSON)) as upstream, fleet(upstream.url, tmp_path) as proxy:
        operator = Operator(proxy)
        told = await operator.does("POST", "/admin/upstreams/up/drain", {"drain": True})
        assert told == {"name": "up", "drained": True, "workers": [1, 2], "no_answer": []}
        await becomes(503, proxy, key)
        before = set(proxy.workers)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(proxy.workers) == 2 and not before & set(proxy.workers), "two others", LONG_S)

        async def are_there() -> bool:
            return sum(len(one["workers"]) for one in (await operator.get("/admin/upstreams"))["upstreams"]) == 2

        await until_asked(are_there, "both accept connections", LONG_S)
        assert {status for _, status in await statuses(proxy, key)} == {503}
        assert upstream.requests == []
        (up,) = (await operator.get("/admin/upstreams"))["upstreams"]
        assert [(one["worker"], one["drained"]) for one in up["workers"]] == [(1, True), (2, True)]
        told = await operator.does("POST", "/admin/upstreams/up/drain", {"drain": False})
        assert (told["drained"], told["workers"]) == (False, [1, 2])
        assert {status for _, status in await statuses(proxy, key)} == {200}


async def test_a_worker_that_does_not_answer_is_named(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with AnsweringUpstream() as upstream, fleet(upstream.url, tmp_path) as proxy:
        operator = Operator(proxy)
        stopped = proxy.workers[min(proxy.workers)]
        stopped.suspend()
        began_s = loop.time()
        shown = await operator.get("/admin/exchanges")
        assert (shown["exchanges"], len(shown["no_answer"])) == ([], 1)
        (silent,) = shown["no_answer"]
        (other,) = BOTH - {silent}
        found = await operator.get("/admin/upstreams")
        assert found["no_answer"] == [silent]
        assert [one["worker"] for one in found["upstreams"][0]["workers"]] == [other]
        refusal = await operator.refused(504, "no_answer", "DELETE", "/admin/exchanges/sl_1")
        assert f"worker {silent} did not" in refusal["message"]
        told = await operator.does("POST", "/admin/upstreams/up/drain", {"drain": True})
        assert told == {"name": "up", "drained": True, "workers": [other], "no_answer": [silent]}
        assert loop.time() - began_s < LONG_S
        stopped.resume()

        async def all_answer() -> bool:
            return bool((await operator.get("/admin/exchanges"))["no_answer"] == [])

        await until_asked(all_answer, "it answers again", LONG_S)
        told = await operator.does("POST", "/admin/upstreams/up/drain", {"drain": True})
        assert told == {"name": "up", "drained": True, "workers": [1, 2], "no_answer": []}
