"""The newest openai-python on endpoints that carry files, in either direction."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from typing import TYPE_CHECKING, Any

import openai

from proxy.config.settings import ModelConfig
from proxy.config.upstreams import RouteConfig
from tests.fakes.answering import AnsweringUpstream, response
from tests.fakes.running import KEY, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SOUND = bytes(range(256)) * 8192  # 2 MiB with every byte in it
_TRANSCRIPT = response(json.dumps({"text": "the sea", "usage": {"type": "duration", "seconds": 3}}).encode())
_TRANSCRIPT_EVENTS = response(
    b'data: {"type":"transcript.text.delta","delta":"the "}\n\n'
    b'data: {"type":"transcript.text.done","text":"the sea"}\n\n',
    content_type="text/event-stream",
)
_IMAGES = response(json.dumps({"created": 1, "data": [{"b64_json": base64.b64encode(_SOUND).decode()}]}).encode())
_MODERATION = response(b'{"id":"modr-1","model":"omni","results":[]}')


@contextlib.asynccontextmanager
async def _answered(answer: bytes, **settings: Any) -> AsyncIterator[tuple[openai.AsyncOpenAI, AnsweringUpstream]]:
    """The SDK before a proxy before an upstream that always answers this."""
    async with (
        AnsweringUpstream(lambda _: answer) as upstream,
        running(upstream.url, **settings) as proxy,
        openai.AsyncOpenAI(base_url=proxy.url, api_key=KEY, max_retries=0) as client,
    ):
        yield client, upstream


async def test_a_transcription_sends_its_file_and_brings_its_text() -> None:
    async with _answered(_TRANSCRIPT) as (client, upstream):
        answer = await client.audio.transcriptions.create(model="whisper-1", file=("sea.wav", _SOUND))
    assert answer.text == "the sea"
    assert _SOUND in upstream.requests[0]
    assert b'name="model"\r\n\r\nwhisper-1\r\n' in upstream.requests[0]


async def test_a_streamed_transcription_brings_its_events() -> None:
    async with _answered(_TRANSCRIPT_EVENTS) as (client, _):
        stream = await client.audio.transcriptions.create(
            model="gpt-4o-transcribe", file=("sea.wav", _SOUND), stream=True
        )
        kinds = [event.type async for event in stream]
    assert kinds == ["transcript.text.delta", "transcript.text.done"]


async def test_an_image_edit_sends_all_its_files_to_the_renamed_model() -> None:
    models = {"gpt-image-1": ModelConfig(routes=(RouteConfig(model="our-image-model"),))}
    async with _answered(_IMAGES, models=models) as (client, upstream):
        answer = await client.images.edit(
            model="gpt-image-1",
            prompt="more sea",
            image=[("one.png", io.BytesIO(_SOUND)), ("two.png", io.BytesIO(_SOUND[::-1]))],
        )
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "") == _SOUND
    assert _SOUND in upstream.requests[0]
    assert _SOUND[::-1] in upstream.requests[0]
    assert b"our-image-model" in upstream.requests[0]
    assert b"gpt-image-1" not in upstream.requests[0]


async def test_speech_comes_as_the_bytes_it_is() -> None:
    async with (
        _answered(response(_SOUND, content_type="audio/mpeg")) as (client, _),
        client.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input="the sea") as speech,
    ):
        heard = b"".join([piece async for piece in speech.iter_bytes()])
    assert heard == _SOUND


async def test_a_generated_image_comes_whole() -> None:
    async with _answered(_IMAGES) as (client, upstream):
        answer = await client.images.generate(model="gpt-image-1", prompt="sea")
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "") == _SOUND
    assert upstream.bodies == [{"model": "gpt-image-1", "prompt": "sea"}]


async def test_a_moderation_is_asked_and_answered() -> None:
    async with _answered(_MODERATION) as (client, upstream):
        answer = await client.moderations.create(model="omni-moderation-latest", input="sea")
    assert answer.id == "modr-1"
    assert upstream.bodies == [{"input": "sea", "model": "omni-moderation-latest"}]
