"""An address that keeps failing to authenticate is told to wait; a good key works from everywhere, at any time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.fakes.client import RecordingClient
from tests.fakes.refusals import GOOD, MARK, Row, assert_not_logged, assert_refused, assert_serves
from tests.fakes.running import KEY
from tests.fakes.stage import stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.client import Answer
    from tests.fakes.running import Running
    from tests.fakes.stage import Stage

CHAT = "/v1/chat/completions"
NO_KEY = Row(401, "invalid_api_key")
THROTTLED = Row(429, "rate_limit_exceeded", type="requests")


@contextlib.asynccontextmanager
async def limited(limit: str | None = "3/hour", *, trusted: tuple[str, ...] = ()) -> AsyncIterator[Stage]:
    async with stage(server={"auth_failures": limit, "trusted_proxies": trusted}) as cast:
        yield cast


async def wrong(client: RecordingClient, *headers: tuple[str, str], key: str | None = f"sk-{MARK}") -> Answer:
    """A request with a key that nobody has."""
    return await client.ask("POST", CHAT, GOOD, key=key, headers=headers)


def failures(proxy: Running) -> tuple[float, float]:
    """Refused and throttled, by the metrics, which have nothing else."""
    name = "sluice_auth_failures_total"
    counted = proxy.sample(name, result="refused"), proxy.sample(name, result="throttled")
    assert sum(counted) == proxy.total(name)
    return counted


async def test_further_failures_are_told_to_wait_and_good_keys_are_not() -> None:
    async with limited() as (upstream, proxy, client):
        for key in (f"sk-{MARK}", f"sk-other-{MARK}", None):
            assert_refused(await wrong(client, key=key), NO_KEY)
        for key in (f"sk-{MARK}", None):
            answer = await wrong(client, key=key)
            assert_refused(answer, THROTTLED)
            wait_s, wait_ms = int(answer.header("retry-after") or 0), int(answer.header("retry-after-ms") or 0)
            assert 1_200_000 <= wait_ms <= wait_s * 1000 < wait_ms + 1000 <= 4_801_000
            assert answer.header("www-authenticate") is None
            assert "API key" in answer.error["message"], "what is wrong is still said"
        assert upstream.requests == []
        await assert_serves(proxy, upstream, client)
        assert_refused(await wrong(client), THROTTLED)
        assert failures(proxy) == (3, 3)
        await proxy.exchange(7)
        line = proxy.exchanges[4]
        assert (line["status"], line["outcome"], line["phase"]) == (429, "rate_limited", "authenticate")
    assert_not_logged(proxy, KEY)


async def test_all_endpoints_and_connections_count_together() -> None:
    async with limited() as (_, proxy, client):
        for method, path in (("GET", "/v1/models"), ("GET", "/v1/files"), ("POST", "/embeddings")):
            assert_refused(await client.ask(method, path, b"", key=MARK), NO_KEY)
        async with await RecordingClient.connect(proxy.port) as other:
            assert_refused(await wrong(other), THROTTLED)
        assert failures(proxy) == (3, 1)


async def test_many_at_once_are_not_more_than_the_limit() -> None:
    async with limited("20/hour") as (_, proxy, _):

        async def fail() -> int:
            async with await RecordingClient.connect(proxy.port) as client:
                return (await wrong(client)).status

        statuses = await asyncio.gather(*(fail() for _ in range(50)))
        assert (statuses.count(401), statuses.count(429)) == failures(proxy) == (20, 30)


async def test_without_a_limit_all_are_refused_alike() -> None:
    async with limited(None) as (_, proxy, client):
        for _ in range(100):
            assert_refused(await wrong(client), NO_KEY)
        assert failures(proxy) == (100, 0)


async def test_the_limit_is_sixty_a_minute_unless_it_is_set() -> None:
    async with stage() as (_, proxy, client):
        statuses = [(await wrong(client)).status for _ in range(70)]
        assert statuses[:60] == [401] * 60
        assert statuses[-1] == 429
        assert failures(proxy)[1] >= 5


async def test_whoever_is_not_trusted_cannot_say_who_it_is() -> None:
    async with limited(trusted=("192.0.2.0/24",)) as (_, proxy, client):
        for number in range(3):
            claims = ("X-Forwarded-For", f"203.0.113.{number}"), ("Forwarded", f"for=203.0.113.{number}")
            assert_refused(await wrong(client, *claims), NO_KEY)
        assert_refused(await wrong(client, ("X-Forwarded-For", "203.0.113.9")), THROTTLED)
        await proxy.exchange(4)
        assert {line["client"] for line in proxy.exchanges} == {"127.0.0.1"}


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded"])
async def test_behind_a_trusted_proxy_each_client_is_counted(name: str) -> None:
    def seen(address: str) -> tuple[str, str]:
        if name == "Forwarded":
            address = f'for="[{address}]:4711"' if ":" in address else f"for={address}"
        return name, address

    async with limited(trusted=("127.0.0.1", "10.0.0.0/8")) as (upstream, proxy, client):
        for number in range(3):
            claim = seen(f"198.51.100.{number}")  # written by the client, in a line of its own
            assert_refused(await wrong(client, claim, seen("203.0.113.7")), NO_KEY)
        assert_refused(await wrong(client, seen("203.0.113.7"), seen("10.1.2.3")), THROTTLED)
        assert_refused(await wrong(client, seen("203.0.113.8")), NO_KEY)
        for host in (1, 2, 3):
            assert_refused(await wrong(client, seen(f"2001:db8::{host}")), NO_KEY)
        assert_refused(await wrong(client, seen("2001:db8::4")), THROTTLED)
        assert_refused(await wrong(client, seen("2001:db8:0:1::1")), NO_KEY)
        assert_refused(await wrong(client), NO_KEY)
        served = await client.ask("POST", CHAT, GOOD, headers=(seen("203.0.113.7"),))
        assert served.status == 200
        assert b"203.0.113.7" not in upstream.requests[-1], "nobody else is told"
        await proxy.exchange(12)
        told = [line["client"] for line in proxy.exchanges]
        assert told[3:5] == ["203.0.113.7", "203.0.113.8"]
        assert told[8:] == ["2001:db8::4", "2001:db8:0:1::1", "127.0.0.1", "203.0.113.7"]
        assert b"203.0.113" not in (await asyncio.to_thread(proxy.metrics.render))[0]


@pytest.mark.parametrize("garbage", ["", "unknown", f"<{MARK}>", "1.2.3.4.5", '"', "," * 3000, "[::1", "fe80::1%x"])
async def test_garbage_is_counted_as_the_proxy_that_sent_it(garbage: str) -> None:
    async with limited(trusted=("127.0.0.1",)) as (upstream, proxy, client):
        for name in ("X-Forwarded-For", "X-Forwarded-For", "Forwarded"):
            assert_refused(await wrong(client, (name, garbage)), NO_KEY)
        assert_refused(await wrong(client, ("Forwarded", garbage)), THROTTLED)
        await assert_serves(proxy, upstream, client)
        await proxy.exchange(5)
        assert {line["client"] for line in proxy.exchanges} == {"127.0.0.1"}
    assert_not_logged(proxy)
