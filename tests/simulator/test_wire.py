"""The simulator's bytes on a raw socket: the framing of its streams, and every fault a model name can ask for."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest

from proxy.simulator.server import Simulator
from tests.fakes.client import Answer, RecordingClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai.types.chat import ChatCompletionMessageParam

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say this is a test"}]


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    simulator = Simulator()
    await simulator.start()
    yield simulator
    await simulator.close()


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[RecordingClient]:
    client = await RecordingClient.connect(simulator.port)
    yield client
    await client.close()


def chat(model: str, **members: Any) -> dict[str, Any]:
    return {"model": model, "messages": ASK, "stream": True, **members}


async def ask(client: RecordingClient, model: str, **members: Any) -> Answer:
    return await client.ask("POST", "/v1/chat/completions", chat(model, **members))


def masked(body: bytes) -> str:
    """The stream, with what differs from run to run replaced."""
    lines = []
    for line in body.decode().split("\n"):
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            line = line.replace(event["id"], "ID").replace(str(event["created"]), "0", 1)  # noqa: PLW2901 masked
        lines.append(line)
    return "\n".join(lines)


CHUNK = (
    'data: {"id":"ID","object":"chat.completion.chunk","created":0,"model":"sim-2t-fast","service_tier":"default",'
    '"system_fingerprint":"fp_simulator",'
)
DETAILS = (
    '"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,'
    '"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}'
)
DELTAS = ('{"role":"assistant","content":"","refusal":null}', '{"content":"Hello"}', '{"content":" from"}')


def chat_bytes(usage: str, last: str) -> str:
    deltas = [
        f'{CHUNK}"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}]{usage}}}\n\n'
        for delta, reason in [*((delta, "null") for delta in DELTAS), ("{}", '"stop"')]
    ]
    return "".join(deltas) + last + "data: [DONE]\n\n"


async def test_a_chat_stream_is_written_as_openai_writes_it(client: RecordingClient) -> None:
    plain = await ask(client, "sim-2t-fast")
    assert masked(plain.body) == chat_bytes("", "")

    counted = await ask(client, "sim-2t-fast", stream_options={"include_usage": True})
    usage = (
        f'{CHUNK}"choices":[],"usage":{{"prompt_tokens":12,"completion_tokens":2,"total_tokens":14,{DETAILS}}}}}\n\n'
    )
    assert masked(counted.body) == chat_bytes(',"usage":null', usage)


async def test_the_headers_of_a_stream(client: RecordingClient) -> None:
    answer = await ask(client, "sim-1t-fast")
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert answer.header("transfer-encoding") == "chunked"
    assert answer.header("openai-version") == "2020-10-01"
    assert (answer.header("openai-processing-ms") or "").isdigit()
    request_id = answer.header("x-request-id") or ""
    assert request_id.startswith("req_")
    assert len(request_id) == 4 + 32


async def test_legacy_completions_on_the_wire(client: RecordingClient) -> None:
    asked = {"model": "sim-1t-fast", "prompt": "hi", "stream": True}
    answer = await client.ask("POST", "/completions", asked)
    head = 'data: {"id":"ID","object":"text_completion","created":0,"model":"sim-1t-fast","choices":'
    assert masked(answer.body) == (
        f'{head}[{{"text":"Hello","index":0,"logprobs":null,"finish_reason":null}}]}}\n\n'
        f'{head}[{{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}}]}}\n\n'
        "data: [DONE]\n\n"
    )


async def test_responses_name_and_number_their_events(client: RecordingClient) -> None:
    answer = await client.ask("POST", "/v1/responses", {"model": "sim-1t-fast", "input": "hi", "stream": True})
    events = answer.body.decode().removesuffix("\n\n").split("\n\n")
    content: dict[str, Any] = {}
    for number, event in enumerate(events):
        name, data = event.split("\n")
        content = json.loads(data.removeprefix("data: "))
        assert name == f"event: {content['type']}"
        assert content["sequence_number"] == number
        assert data.endswith(f'"sequence_number":{number}}}')
    assert b"[DONE]" not in answer.body
    assert content["response"]["usage"]["total_tokens"] == content["response"]["usage"]["input_tokens"] + 1


async def test_text_is_raw_utf_8(client: RecordingClient) -> None:
    answer = await ask(client, "sim-200t-fast")
    assert "你好".encode() in answer.body
    assert b"\\u" not in answer.body


@pytest.mark.parametrize("fault", ["reset", "cut", "stop", "stall", "garbage", "error-event"])
async def test_a_fault_comes_after_its_number_of_events(
    client: RecordingClient, simulator: Simulator, fault: str
) -> None:
    client.send("POST", "/v1/chat/completions", chat(f"sim-fast-{fault}-after-2"))
    answer = await client.head()
    assert b'"role"' in await client.piece(answer)
    assert b"Hello" in await client.piece(answer)
    match fault:
        case "reset":
            with pytest.raises(ConnectionResetError):
                await client.piece(answer)
        case "cut":
            with pytest.raises(asyncio.IncompleteReadError) as cut:
                await client.piece(answer)
            assert cut.value.partial == b""
        case "stop":
            assert await client.piece(answer) == b""
        case "garbage":
            with pytest.raises(ValueError, match="this is not a chunk size"):
                await client.piece(answer)
            await client.close()
        case "stall":
            # a further answer proves that the simulator ran on; nothing came for this one meanwhile
            other = await RecordingClient.connect(simulator.port)
            assert (await ask(other, "sim-2t-fast")).whole
            await other.close()
            assert simulator.stats.open == 1
            assert not client.reader._buffer  # type: ignore[attr-defined]
            await client.close()
        case _:
            error, done, rest = (await client.piece(answer)).decode().split("\n\n")
            assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
            assert (done, rest) == ("data: [DONE]", "")
            assert await client.piece(answer) == b""
    await simulator.stats.wait_idle()
    left = fault in ("stall", "garbage")
    assert (simulator.stats.failed, simulator.stats.aborted) == (int(not left), int(left))


@pytest.mark.parametrize("fault", ["reset", "cut", "stop", "garbage"])
async def test_an_answer_that_is_not_streamed_breaks_halfway(client: RecordingClient, fault: str) -> None:
    client.send("POST", "/v1/chat/completions", chat(f"sim-fast-{fault}", stream=False))
    answer = await client.head()
    assert answer.header("content-type") == "application/json"
    half = await client.piece(answer)
    assert b"Hello" in half
    with pytest.raises(json.JSONDecodeError):
        json.loads(half)
    raised: tuple[type[Exception], ...] = (ConnectionResetError, asyncio.IncompleteReadError, ValueError)
    if fault == "stop":
        assert await client.piece(answer) == b""
    else:
        with pytest.raises(raised):
            await client.piece(answer)


async def test_hangup_closes_without_an_answer(client: RecordingClient, simulator: Simulator) -> None:
    client.send("POST", "/v1/chat/completions", chat("sim-hangup"))
    with pytest.raises(ConnectionResetError):
        await client.head()
    assert simulator.stats.failed == 1


async def test_a_responses_error_is_nested_and_numbered(client: RecordingClient) -> None:
    asked = {"model": "sim-fast-error-event-after-5", "input": "hi", "stream": True}
    answer = await client.ask("POST", "/v1/responses", asked)
    name, data = answer.body.decode().removesuffix("\n\n").split("\n\n")[-1].split("\n")
    error = json.loads(data.removeprefix("data: "))
    assert (name, error["type"], error["sequence_number"]) == ("event: error", "error", 5)
    assert error["error"]["type"] == "server_error"
    assert answer.whole


async def test_the_sdk_raises_what_breaks(simulator: Simulator) -> None:
    async with openai.AsyncOpenAI(base_url=simulator.url, api_key="sk-any", max_retries=0) as sdk:
        for fault in ("reset", "cut", "garbage", "error-event"):
            stream = await sdk.chat.completions.create(model=f"sim-fast-{fault}", messages=ASK, stream=True)
            with pytest.raises(openai.APIError):
                [chunk async for chunk in stream]
        stopped = await sdk.chat.completions.create(model="sim-fast-stop", messages=ASK, stream=True)
        assert len([chunk async for chunk in stopped]) == 3  # nothing tells the SDK that this was cut


async def test_not_a_stream(client: RecordingClient) -> None:
    answer = await ask(client, "sim-2t-fast-not-a-stream")
    assert answer.header("content-type") == "application/json"
    assert answer.json["choices"][0]["message"]["content"] == "Hello from"


async def test_crlf(client: RecordingClient) -> None:
    answer = await ask(client, "sim-2t-fast-crlf")
    assert answer.body.count(b"\r\n\r\n") == 5
    assert answer.body.count(b"\n") == answer.body.count(b"\r\n") == 10


async def test_split_writes_cut_characters(client: RecordingClient) -> None:
    answer = await ask(client, "sim-80t-fast-split-1")
    assert {len(piece) for piece in answer.pieces} == {1}
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert any(byte >= 0x80 for byte in answer.body)


async def test_big_is_one_event(client: RecordingClient) -> None:
    answer = await ask(client, "sim-1t-fast-big-1m")
    content = json.loads(answer.pieces[1].removeprefix(b"data: "))["choices"][0]["delta"]["content"]
    assert len(content) == 1024 * 1024
    assert len(answer.pieces) == 5


async def test_a_flood_arrives_whole_at_a_slow_reader(simulator: Simulator) -> None:
    client = await RecordingClient.connect(simulator.port, receive_buffer=4096)
    answer = await ask(client, "sim-flood-2m")
    events = [json.loads(piece.removeprefix(b"data: ")) for piece in answer.pieces[1:-2]]
    text = "".join(event["choices"][0]["delta"]["content"] for event in events)
    assert 0 <= len(text.encode()) - 2 * 1024 * 1024 < 4096
    await client.close()


async def test_a_flood_ends_when_a_client_that_reads_nothing_leaves(simulator: Simulator) -> None:
    client = await RecordingClient.connect(simulator.port, receive_buffer=4096)
    client.send("POST", "/v1/chat/completions", chat("sim-flood-64m"))
    await client.head()
    await client.reset()
    await simulator.stats.wait_idle()
    assert simulator.stats.aborted == 1


async def test_what_openai_would_refuse(client: RecordingClient) -> None:
    refused: list[tuple[bytes | dict[str, Any], str | None, str | None]] = [
        (b"{", None, None),
        (b"\xff", None, None),
        ({"messages": ASK}, "missing_required_parameter", "model"),
        ({"model": "any"}, "missing_required_parameter", "messages"),
        ({"model": "any", "messages": []}, "invalid_value", "messages"),
        ({"model": "any", "messages": ["hi"]}, "invalid_type", "messages[0]"),
        ({"model": "any", "messages": ASK, "n": 0}, "invalid_value", "n"),
        ({"model": "any", "messages": ASK, "stream_options": {}}, None, "stream_options"),
    ]
    for body, code, param in refused:
        answer = await client.ask("POST", "/chat/completions", body)
        assert answer.status == 400
        assert (answer.error["type"], answer.error["code"], answer.error["param"]) == (
            "invalid_request_error",
            code,
            param,
        )


async def test_unknown_urls_and_methods_get_the_envelope(client: RecordingClient) -> None:
    unknown = await client.ask("POST", "/v1/foo", {})
    assert (unknown.status, unknown.error["message"]) == (404, "Invalid URL (POST /v1/foo)")
    method = await client.ask("GET", "/v1/chat/completions")
    assert (method.status, method.error["code"]) == (405, "method_not_supported")
