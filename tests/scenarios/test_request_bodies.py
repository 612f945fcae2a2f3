"""Promise 4, requests: a stream does not hold the request that it answers."""

from __future__ import annotations

import gc
import json
import tracemalloc
from typing import Final

import pytest

from proxy.config.settings import ModelConfig
from proxy.config.upstreams import RouteConfig
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
        [live] = way.proxy.worker.app.live._live.values()
        assert live.findings.admission is not None
        assert live.findings.admission.body == b""
        peer.close()
