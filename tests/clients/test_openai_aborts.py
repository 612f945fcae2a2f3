"""The newest openai-python leaves: the upstream stops working, in every way and at every moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import openai
import pytest

from tests.fakes.questions import ASK
from tests.fakes.running import KEY
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from proxy.simulator.server import Simulator
    from tests.fakes.running import Running


async def _aborted(simulator: Simulator, sluice: Running, phase: str) -> None:
    """Wait until the upstream saw the abort and Sluice wrote down who left, and when."""
    await until(lambda: simulator.stats.aborted == 1, "the upstream's request aborted")
    line = await sluice.exchange()
    assert (line["outcome"], line["aborted_by"], line["phase"]) == ("client_gone", "client", phase)
    assert len(sluice.worker.app.live) == 0


async def test_closing_a_stream_aborts_the_upstream(
    client: openai.AsyncOpenAI, simulator: Simulator, sluice: Running
) -> None:
    stream = await client.chat.completions.create(model="sim-1ms-100000t", messages=ASK, stream=True)
    await anext(stream)
    await stream.close()
    await _aborted(simulator, sluice, "relay")


async def test_leaving_the_helpers_block_aborts_the_upstream(
    client: openai.AsyncOpenAI, simulator: Simulator, sluice: Running
) -> None:
    async with client.chat.completions.stream(model="sim-1ms-100000t", messages=ASK) as stream:
        await anext(stream)
    await _aborted(simulator, sluice, "relay")


async def test_cancelling_the_task_that_reads_a_stream_aborts_the_upstream(
    client: openai.AsyncOpenAI, simulator: Simulator, sluice: Running
) -> None:
    begun = asyncio.Event()

    async def read() -> None:
        async with await client.chat.completions.create(model="sim-stall-after-2", messages=ASK, stream=True) as stream:
            async for _ in stream:
                begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _aborted(simulator, sluice, "relay")


async def test_cancelling_a_request_before_its_first_byte_aborts_the_upstream(
    client: openai.AsyncOpenAI, simulator: Simulator, sluice: Running
) -> None:
    task = asyncio.create_task(client.chat.completions.create(model="sim-ttft-1m", messages=ASK))
    await until(lambda: simulator.stats.open == 1, "the request at the upstream")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _aborted(simulator, sluice, "forward")


async def test_closing_a_response_aborts_the_upstream(
    client: openai.AsyncOpenAI, simulator: Simulator, sluice: Running
) -> None:
    stream = await client.responses.create(model="sim-1ms-100000t", input="Hello", stream=True)
    await anext(stream)
    await stream.close()
    await _aborted(simulator, sluice, "relay")


async def test_the_sdks_timeout_before_the_first_byte_aborts_the_upstream(
    client: openai.AsyncOpenAI, simulator: Simulator, sluice: Running
) -> None:
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.2).chat.completions.create(model="sim-ttft-1m", messages=ASK)
    await _aborted(simulator, sluice, "forward")


async def test_the_sdks_timeout_within_a_stream_aborts_the_upstream(
    client: openai.AsyncOpenAI, simulator: Simulator, sluice: Running
) -> None:
    stream = await client.with_options(timeout=0.2).chat.completions.create(
        model="sim-fast-stall-after-2", messages=ASK, stream=True
    )
    with pytest.raises(openai.APITimeoutError):
        _ = [chunk async for chunk in stream]
    await stream.close()
    await _aborted(simulator, sluice, "relay")


async def test_closing_the_client_aborts_its_streams(simulator: Simulator, sluice: Running) -> None:
    client = openai.AsyncOpenAI(base_url=sluice.url, api_key=KEY, max_retries=0)
    stream = await client.chat.completions.create(model="sim-1ms-100000t", messages=ASK, stream=True)
    await anext(stream)
    await client.close()
    await _aborted(simulator, sluice, "relay")
