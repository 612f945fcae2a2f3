"""Several API keys for one upstream: the one at fault rests, the others serve, and the last one tells its own story."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.config.settings import RetriesConfig
from proxy.config.values import Secret
from tests.fakes.answering import chat, response
from tests.fakes.routing_stage import Changing, routed, samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fakes.routing_stage import Routed

KEYS: Final = {"api_keys": (Secret("sk-up-first-0001"), Secret("sk-up-second-002"), Secret("sk-up-third-0003"))}
TWO: Final = {"api_keys": KEYS["api_keys"][:2]}
ONE: Final = {"api_keys": KEYS["api_keys"][:1]}
_USED: Final = re.compile(rb"Bearer sk-up-([a-z]+)-")


def used(request: bytes) -> str:
    """Which key a request came with."""
    found = _USED.search(request)
    assert found is not None
    return found[1].decode()


def refusal(status: int, why: str, *headers: str) -> bytes:
    body = b'{"error":{"message":"%b","type":"t","param":null,"code":"theirs"}}' % why.encode()
    return response(body, status=status, extra="".join(header + "\r\n" for header in headers))


def refusing(status: int, *headers: str, keys: tuple[str, ...] = ("first",)) -> Callable[[bytes], bytes]:
    """An upstream that refuses these keys, and says which one it was."""

    def answer(request: bytes) -> bytes:
        return refusal(status, used(request), *headers) if used(request) in keys else chat(request)

    return answer


def keys_used(at: Routed, which: int = 0) -> list[str]:
    return [used(request) for request in at.upstreams[which].requests]


async def test_keys_are_used_in_turn() -> None:
    async with routed(chat, upstream=KEYS) as at:
        for _ in range(6):
            assert (await at.ask()).status == 200
        assert keys_used(at) == ["first", "second", "third"] * 2


@pytest.mark.parametrize(
    ("status", "headers"),
    [(429, ("retry-after: 30",)), (429, ()), (401, ()), (403, ())],
    ids=["429 that says until when", "429", "401", "403"],
)
async def test_the_key_at_fault_rests_and_the_others_go_on(status: int, headers: tuple[str, ...]) -> None:
    async with routed(refusing(status, *headers), upstream=KEYS) as at:
        for _ in range(5):
            assert (await at.ask()).status == 200
        assert keys_used(at) == ["first", "second", "third", "second", "third", "second"]
        first = await at.proxy.exchange()
        assert [(one["upstream"], one["result"]) for one in first["tries"]] == [("a", "4xx"), ("a", "2xx")]
        assert samples(at.proxy, "sluice_retries_total") == {f"a status_{status}": 1}
        assert not samples(at.proxy, "sluice_upstream_circuit"), "a key at fault is no failure of the upstream"


async def test_a_key_is_asked_again_when_its_rest_is_over() -> None:
    upstream = Changing(refusing(429, "retry-after: 300"))
    async with routed(upstream, upstream=TWO) as at:
        assert (await at.ask()).status == 200
        upstream.answer = chat
        credentials = at.proxy.worker.app.upstreams["a"].health.credentials
        assert (await at.ask()).status == 200
        assert not credentials.others(1, time.monotonic())
        credentials._credentials[0].until_s = 0.0  # as if it had passed
        for _ in range(2):
            assert (await at.ask()).status == 200
        assert Counter(keys_used(at)) == {"first": 2, "second": 3}


@pytest.mark.parametrize("status", [401, 403, 429])
@pytest.mark.parametrize("keys", [TWO, ONE], ids=["two keys", "one key"])
async def test_the_last_key_tells_its_own_story(status: int, keys: dict[str, Any]) -> None:
    """No cool-down hides what the upstream says: it is asked each time, and its answer passes as it is."""
    upstream = refusing(status, "retry-after: 77", "x-theirs: yes", keys=("first", "second"))
    async with routed(upstream, upstream=keys) as at:
        for turn in range(4):
            told = await at.ask()
            assert (told.status, told.error["code"]) == (status, "theirs")
            assert (told.header("retry-after"), told.header("x-theirs")) == ("77", "yes")
            assert at.asked == [turn + len(keys["api_keys"])], "the first client finds out for both, then one each"
            line = await at.proxy.exchange(turn + 1)
            assert (line["outcome"], line["upstream"]) == ("upstream_error", "a")
        assert not samples(at.proxy, "sluice_upstream_circuit")


async def test_a_refused_key_goes_to_the_next_key_of_the_same_upstream_first() -> None:
    async with routed(refusing(401), chat, upstream=TWO) as at:
        assert (await at.ask()).status == 200
        assert keys_used(at) == ["first", "second"]
        assert at.asked == [2, 0]


async def test_a_limited_upstream_is_left_for_another_until_that_is_limited_too() -> None:
    limited = refusing(429, "retry-after: 30")
    second = Changing(chat)
    async with routed(limited, second, upstream=ONE) as at:
        for _ in range(3):
            assert (await at.ask()).status == 200
        assert at.asked == [1, 3]
        second.answer = refusing(429, "retry-after: 60")
        for _ in range(2):
            told = await at.ask()
            assert (told.status, told.error["message"]) == (429, "first")
            assert told.header("retry-after") in ("30", "60")


async def test_the_credential_of_a_client_is_not_ours_to_rest() -> None:
    """With `passthrough` the next client comes with another one."""
    async with routed(lambda _: refusal(401, "whose"), upstream={"auth": "passthrough"}) as at:
        for _ in range(3):
            assert (await at.ask()).status == 401
        assert at.asked == [3]
        assert at.proxy.worker.app.upstreams["a"].health.credentials.is_ready(time.monotonic())


async def test_attempts_bound_how_many_keys_one_exchange_tries() -> None:
    everyone = refusing(401, keys=("first", "second", "third"))
    async with routed(everyone, upstream=KEYS, retries=RetriesConfig(attempts=2, backoff=0.0)) as at:
        told = await at.ask()
        assert (told.status, told.error["message"]) == (401, "second")
        assert keys_used(at) == ["first", "second"]
