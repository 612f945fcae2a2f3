"""A line whose client leaves in the middle, over TCP or TLS on both sides."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from proxy.config.settings import ServerTlsConfig
from proxy.config.upstreams import UpstreamTlsConfig
from proxy.core import errors
from tests.fakes.client import RecordingClient
from tests.fakes.line import CHAT_REQUEST, PATIENCE_S, Line, chunk
from tests.fakes.raw_upstream import RawPeer, RawUpstream
from tests.fakes.recordings import CHAT
from tests.fakes.running import running, upstream_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.scenarios.conftest import Certificates

# role, "Hi" and what frames a message and the answer: 3 + 1 + 1 + 3
PROMPT_TOKENS: Final = 8


@contextlib.asynccontextmanager
async def secure_line(certificates: Certificates) -> AsyncIterator[Line]:
    """A line over TLS, towards the client and towards the upstream."""
    with RawUpstream(certificates.server) as raw:
        tls = ServerTlsConfig(certificate=certificates.certificate_file, private_key=certificates.key_file)
        config = upstream_config(
            f"https://localhost:{raw.port}/v1", usage="as-asked", tls=UpstreamTlsConfig(ca=certificates.ca_file)
        )
        async with running({"up": config}, server={"tls": tls}) as proxy:
            client = await RecordingClient.connect(proxy.port, certificates.client)
            try:
                yield Line(raw, proxy, client)
            finally:
                await client.close()


async def received(way: Line, events: Sequence[bytes], path: str = CHAT, body: bytes = CHAT_REQUEST) -> RawPeer:
    """Let the client receive these events of a stream, each sent when it has the one before."""
    peer, answer = await way.begun(path, body)
    for event in events:
        await peer.send(chunk(event))
        while not answer.body.endswith(event):
            await way.piece(answer)
    return peer


async def left(way: Line, peer: RawPeer) -> None:
    """Let the client leave, and see that the upstream is let go."""
    await way.client.reset()
    await asyncio.wait_for(peer.ended_raw(), PATIENCE_S)


def drain_ends(way: Line) -> None:
    """End what is live, as at the end of a drain."""
    way.proxy.worker.app.live.interrupt(errors.ProxyError(errors.DRAINING, "Sluice is stopping."))
