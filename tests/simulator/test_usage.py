"""What the simulator says of usage: OpenAI's way, and the ways of others that a model name asks for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from proxy.simulator.server import Simulator
from tests.fakes.client import RecordingClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.client import Answer

PROMPTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
both = pytest.mark.parametrize("path", sorted(PROMPTS))


@pytest.fixture
async def client() -> AsyncIterator[RecordingClient]:
    simulator = Simulator()
    await simulator.start()
    client = await RecordingClient.connect(simulator.port)
    yield client
    await client.close()
    await simulator.close()


async def asked(client: RecordingClient, path: str, model: str, **more: Any) -> Answer:
    return await client.ask("POST", path, body={"model": model, **PROMPTS.get(path, {}), **more})


def chunks(answer: Answer) -> list[dict[str, Any]]:
    events = answer.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


@both
async def test_openais_way(client: RecordingClient, path: str) -> None:
    unasked = chunks(await asked(client, path, "sim-3t-fast", stream=True))
    assert not any("usage" in chunk for chunk in unasked)
    told = chunks(await asked(client, path, "sim-3t-fast", **STREAMED))
    assert [chunk["usage"] for chunk in told[:-1]] == [None] * len(unasked)
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["completion_tokens"] == 3


@both
async def test_never(client: RecordingClient, path: str) -> None:
    told = chunks(await asked(client, path, "sim-3t-fast-no-usage", **STREAMED))
    assert told
    assert not any("usage" in chunk for chunk in told)
    assert "usage" in (await asked(client, path, "sim-3t-fast")).json
    assert "usage" not in (await asked(client, path, "sim-3t-fast-no-usage")).json


async def test_never_elsewhere(client: RecordingClient) -> None:
    assert "usage" not in (await asked(client, "/v1/embeddings", "sim-no-usage", input="a")).json
    assert (await asked(client, "/v1/responses", "sim-fast-no-usage", input="a")).json["usage"] is None


@both
@pytest.mark.parametrize("options", [STREAMED, {"stream": True}])
async def test_on_each_chunk_the_figures_so_far(client: RecordingClient, path: str, options: dict[str, Any]) -> None:
    told = chunks(await asked(client, path, "sim-3t-fast-usage-each", **options))
    assert all(chunk["choices"] for chunk in told)
    so_far = [chunk["usage"]["completion_tokens"] for chunk in told]
    assert so_far == ([0, 1, 2, 3, 3] if "chat" in path else [1, 2, 3, 3])
    whole = (await asked(client, path, "sim-3t-fast-usage-each")).json["usage"]
    assert told[-1]["usage"] == whole


@both
async def test_stream_options_refused(client: RecordingClient, path: str) -> None:
    refused = await asked(client, path, "sim-3t-fast-no-stream-options", **STREAMED)
    assert refused.status == 400
    assert refused.json["error"] == {
        "message": "Unrecognized request argument supplied: stream_options",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert len(chunks(await asked(client, path, "sim-3t-fast-no-stream-options", stream=True))) >= 3
