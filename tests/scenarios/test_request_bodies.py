"""Promise 4, requests: a stream does not hold the request that it answers."""

from __future__ import annotations

import gc
import json
import tracemalloc
from typing import Final

import pytest

from proxy.config.settings import ModelConfig, RouteConfig
from proxy.phases.admit import Admission
from proxy.upstream.attempt import UpstreamRequest
from tests.fakes.line import chunk, line
from tests.fakes.recordings import ROLE

LONG: Final = 4 * 1024 * 1024
BODY: Final = json.dumps({"model": "m", "stream": True, "messages": [{"content": "word " * (LONG // 5)}]}).encode()


@pytest.mark.parametrize("usage", ["inject", "as-asked"])
async def test_a_body_is_let_go_of_when_the_answer_begins(usage: str) -> None:
    """Neither as it came nor as it was edited."""
    models = {"m": ModelConfig(routes=(RouteConfig(model="renamed"),))}
    async with line(upstream={"usage": usage}, models=models) as way:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            peer, answer = await way.begun(body=BODY)
            way.peer_request = b""
            await peer.send(chunk(ROLE))
            assert await way.piece(answer)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert held < LONG / 8
        alive = [thing for thing in gc.get_objects() if isinstance(thing, Admission | UpstreamRequest)]
        assert all(len(thing.body) == 0 for thing in alive if isinstance(thing.body, bytes))
        peer.close()
