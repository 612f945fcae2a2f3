"""The worked configurations in `deploy/examples`, loaded as an operator would, and run before a server of the test."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from proxy.config.file import load
from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.running import KEY, running
from tests.fakes.stage import Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from proxy.config.settings import Config

EXAMPLES: Final = sorted((Path(__file__).parents[2] / "deploy" / "examples").glob("*.yaml"))
VARIABLE: Final = re.compile(r"\$\{([A-Z0-9_]+)(:-[^}]*)?\}")


def environment(file: Path) -> dict[str, str]:
    """A value for each variable that an example needs; the client's key is that of the tests."""
    names = [match[1] for match in VARIABLE.finditer(file.read_text()) if match[2] is None]
    return {name: KEY if name == "TEAM_A_KEY" else name.lower().replace("_", "-") + "-0123456789" for name in names}


def load_example(file: Path) -> Config:
    """An example as `serve` would load it."""
    return load(file, environment(file))


@contextlib.asynccontextmanager
async def staged(
    example: str, answer: Callable[[bytes], bytes], settings: dict[str, Any] | None = None
) -> AsyncIterator[Stage]:
    """A proxy configured as the example says, but for where its upstreams are: all of them are one server here.

    `settings` take the place of the example's.
    """
    file = next(file for file in EXAMPLES if file.stem == example)
    config = await asyncio.to_thread(load_example, file)
    async with AnsweringUpstream(answer) as upstream:
        upstreams = {
            name: msgspec.structs.replace(
                given, base_url=f"http://127.0.0.1:{upstream.port}{urlsplit(given.base_url).path}"
            )
            for name, given in config.upstreams.items()
        }
        how: dict[str, Any] = {"models": config.models, "plans": config.plans, "keys": config.keys}
        async with (
            running(upstreams, settings={"retries": config.retries, **(settings or {})}, **how) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            yield Stage(upstream, proxy, client)
