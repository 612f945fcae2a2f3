"""The usual cast of a scenario: an upstream that answers, a proxy before it, and one client's connection."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.fakes.answering import AnsweringUpstream, chat
from tests.fakes.client import RecordingClient
from tests.fakes.running import Running, running, upstream_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Stage(NamedTuple):
    """Who is there. `client` has an open connection to the proxy, not used yet."""

    upstream: AnsweringUpstream
    proxy: Running
    client: RecordingClient


@contextlib.asynccontextmanager
async def stage(
    answer: Callable[[bytes], bytes] = chat, *, upstream_settings: dict[str, Any] | None = None, **how: Any
) -> AsyncIterator[Stage]:
    """Put them up; `how` is what `running` takes."""
    async with AnsweringUpstream(answer) as upstream:
        upstreams = {"up": upstream_config(upstream.url, **(upstream_settings or {}))}
        async with running(upstreams, **how) as proxy, await RecordingClient.connect(proxy.port) as client:
            yield Stage(upstream, proxy, client)
