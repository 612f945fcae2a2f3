"""A proxy in front of the simulator, and the official SDK pointed at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

from proxy.simulator.server import Simulator
from tests.fakes.running import KEY, Running, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="session", autouse=True)
def no_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each client of an SDK would read the system's authorities, in 30 ms; here nobody speaks TLS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("no authorities")))
        yield


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    simulator = Simulator()
    await simulator.start()
    yield simulator
    await simulator.close()


@pytest.fixture
async def sluice(simulator: Simulator) -> AsyncIterator[Running]:
    async with running(simulator.url) as proxy:
        yield proxy


@pytest.fixture
async def direct(simulator: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK without Sluice: what its answers are compared with."""
    async with openai.AsyncOpenAI(base_url=simulator.url, api_key="sk-any", max_retries=0) as client:
        yield client


@pytest.fixture
async def client(sluice: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=sluice.url, api_key=KEY, max_retries=0) as client:
        yield client
