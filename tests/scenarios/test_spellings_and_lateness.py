"""Two ways a good client was wronged and a bad one was served."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.config.settings import KeyConfig, PlanConfig
from proxy.config.values import Secret
from tests.fakes.client import RecordingClient
from tests.fakes.line import CHAT_REQUEST, JSON_TYPE, LAST_CHUNK, PATIENCE_S, chunk, head, line
from tests.fakes.running import KEY


async def test_a_slow_upstream_does_not_make_its_client_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the time spent waiting for the client counts against `request_read_timeout`."""
    monkeypatch.setattr("proxy.server.request_body._MIN_BYTES_PER_S", 2**40)
    body = b"--b\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--b\r\n"
    body += b"Content-Disposition: form-data; name=file; filename=a\r\n\r\n" + b"x" * (16 << 20) + b"\r\n--b--\r\n"
    async with line(server={"request_read_timeout": 1.0}) as way:
        kind = ("Content-Type", "multipart/form-data; boundary=b")
        client = await RecordingClient.connect(way.proxy.port)
        client.send("POST", "/v1/audio/transcriptions", body, headers=(kind,))
        peer = await way.accept()
        paused = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(1.5, paused.set_result, None)
        await paused
        await asyncio.wait_for(peer.request(), PATIENCE_S)
        await peer.send(head("200 OK", "application/json") + chunk(b'{"text":"ok"}') + LAST_CHUNK)
        answer = await asyncio.wait_for(client.answer(), PATIENCE_S)
        await client.close()
    assert (answer.status, answer.body) == (200, b'{"text":"ok"}')


@pytest.mark.parametrize("path", ["/V1/chat/completions", "/OpenAI/v1/chat/completions", "/api/v1/embeddings"])
async def test_another_prefix_does_not_pass_unmetered(path: str) -> None:
    """A plan with stateful endpoints must not reach a metered one under a spelling that the upstream may know."""
    plans = {"all": PlanConfig(endpoints=("inference", "stateful"))}
    keys = (KeyConfig(id="team-a", secret=Secret(KEY), plan="all"),)
    async with line(plans=plans, keys=keys) as way:
        way.client.send("POST", path, CHAT_REQUEST, headers=(JSON_TYPE,))
        answer = await way.answer()
    assert (answer.status, answer.error["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ((("Authorization", f"Bearer {KEY}"), ("x-api-key", "theirs")), [b"x-api-key: theirs"]),
        ((("api-key", KEY), ("Authorization", "Basic dTpw")), [b"Authorization: Basic dTpw"]),
        ((("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer theirs")), [b"Authorization: Bearer theirs"]),
        ((("Authorization", f"Bearer {KEY}"),), [b"Authorization: Bearer " + KEY.encode()]),
    ],
    ids=["x-api-key", "basic", "two bearers", "one for both"],
)
async def test_passthrough_keeps_the_key_that_is_for_sluice_alone(
    sent: tuple[tuple[str, str], ...], expected: list[bytes]
) -> None:
    """Of two credentials, only the one that is not a key of Sluice's goes upstream."""
    async with line(upstream={"auth": "passthrough"}) as way:
        await way.open(key=None, headers=(JSON_TYPE, *sent))
        lines = way.peer_request.split(b"\r\n\r\n")[0].split(b"\r\n")
    names = (b"authorization:", b"api-key:", b"x-api-key:")
    assert [text for text in lines if text.lower().startswith(names)] == expected


async def test_a_placeholder_key_does_not_tear_error_messages_apart() -> None:
    """Local servers are given keys such as `x`; only what can be a secret is masked."""
    settings: dict[str, Any] = {"api_keys": (Secret("x"),)}
    async with line(upstream=settings) as way:
        body = b'{"error":{"message":"max_tokens exceeds the context"}}'
        answer = await way.answered([head("400 Bad Request", "application/json") + chunk(body) + LAST_CHUNK])
    assert answer.body == body
