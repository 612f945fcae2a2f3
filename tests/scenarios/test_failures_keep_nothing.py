"""An exchange that fails leaves nothing for the garbage collector, which comes rarely and counts no bytes.

An error that is kept has a traceback, whose frames hold the exchange, which holds the request's body and the error.
"""

from __future__ import annotations

import gc
import socket
import types
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.config.settings import KeyConfig, PlanConfig
from proxy.config.upstreams import TimeoutsConfig
from proxy.config.values import Secret
from tests.fakes.answering import chat, response
from tests.fakes.raw_client import RawClient
from tests.fakes.routing_stage import BODY, STREAMED, routed
from tests.fakes.running import KEY
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TRIES: Final = 12
_TRUNCATED: Final = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
_SPENT: Final[dict[str, Any]] = {
    "plans": {"p": PlanConfig(requests=("1/day",))},
    "keys": (KeyConfig(id="team-a", secret=Secret(KEY), plan="p"),),
}


def _silent(_request: bytes) -> bytes:
    """It takes the request and closes."""
    return b""


def _failing(_request: bytes) -> bytes:
    return response(b'{"error":{"message":"no"}}', status=500)


def _truncating(_request: bytes) -> bytes:
    return response(_TRUNCATED, content_type="text/event-stream")


@pytest.fixture
def refused() -> Iterator[str]:
    """The URL of a port that nobody listens on, and nobody else gets."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/v1"


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _tracebacks() -> int:
    return sum(isinstance(one, types.TracebackType) for one in gc.get_objects())


async def _kept(*upstreams: Callable[[bytes], bytes] | str, body: bytes = BODY, status: int, **how: Any) -> int:
    """So many tracebacks are left of `_TRIES` exchanges more."""
    async with routed(*upstreams, **how) as at:
        for _ in range(3):
            await at.ask(body)
        before = _tracebacks()
        for _ in range(_TRIES):
            assert (await at.ask(body)).status == status
        await at.proxy.exchange(_TRIES + 3)
        return _tracebacks() - before


async def test_an_upstream_that_is_not_there(refused: str) -> None:
    assert await _kept(refused, status=502) < _TRIES


@pytest.mark.parametrize("first", [_silent, _failing])
async def test_an_upstream_that_fails_and_one_that_takes_over(first: Callable[[bytes], bytes]) -> None:
    assert await _kept(first, chat, status=200) < _TRIES


async def test_an_upstream_that_is_not_there_and_one_that_takes_over(refused: str) -> None:
    assert await _kept(refused, chat, status=200) < _TRIES


async def test_an_upstream_that_is_too_slow_with_its_head() -> None:
    slow: dict[str, Any] = {"timeouts": TimeoutsConfig(first_byte=0.05)}
    assert await _kept(lambda _request: b"HTTP/1.1 200 OK\r\n", status=504, upstream=slow) < _TRIES


async def test_a_spent_quota() -> None:
    assert await _kept(chat, status=429, **_SPENT) < _TRIES


async def test_a_body_that_is_no_json() -> None:
    assert await _kept(chat, body=BODY[:-1], status=400) < _TRIES


async def test_a_stream_that_breaks_off() -> None:
    assert await _kept(_truncating, body=STREAMED, status=200) < _TRIES


async def test_a_client_that_leaves_in_the_middle_of_its_body() -> None:
    """Its task is cancelled, and keeps the frames it was cancelled in."""
    async with routed(chat) as at:
        before = 0
        for left in range(1, 4 + _TRIES):
            client = await RawClient.connect(at.proxy.port)
            await client.begin("/v1/chat/completions", "Content-Length: 100")
            await client.send(b"{")
            await until(lambda: len(at.proxy.worker.app.live) == 1, "the exchange")
            client.reset()
            await at.proxy.exchange(left)
            before = before or (_tracebacks() if left == 3 else 0)
        await until(lambda: _tracebacks() - before < _TRIES, "the last of them forgotten")
