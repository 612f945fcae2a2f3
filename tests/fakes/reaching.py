"""Reaching an upstream, or failing to, as the tests of connecting do it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.core.errors import UPSTREAM_UNREACHABLE, ErrorKind, ProxyError
from proxy.upstream.connect import tls_context
from proxy.upstream.pool import UpstreamPool
from tests.fakes.exchanges import HELLO, POST, read_all, start

if TYPE_CHECKING:
    import ssl

    from proxy.tasks import BackgroundTasks
    from proxy.upstream.connect import Origin
    from tests.fakes.raw_upstream import RawUpstream


def trusting(ca_file: str) -> ssl.SSLContext:
    return tls_context(verify=True, ca=ca_file, client_certificate=None, client_key=None)


async def reach(origin: Origin, upstream: RawUpstream, tasks: BackgroundTasks) -> bytes:
    """One exchange with the origin. Returns the request that the upstream read."""
    pool = UpstreamPool(origin, connect_timeout_s=5)
    attempting = start(pool, tasks, POST)
    accepting = asyncio.get_running_loop().create_task(upstream.accept())
    await asyncio.wait([attempting, accepting], return_when=asyncio.FIRST_COMPLETED)
    if attempting.done():
        accepting.cancel()
        attempting.result()
    request = await (await accepting).answer(HELLO)
    stream = await attempting
    assert await read_all(stream) == b"hello"
    stream.close()
    assert pool.idle == 1
    pool.close()
    assert pool.open == 0
    return request


async def unreachable(
    origin: Origin, kind: ErrorKind = UPSTREAM_UNREACHABLE, *, connect_timeout_s: float = 5
) -> ProxyError:
    """Connecting fails, leaves nothing open and names no address."""
    pool = UpstreamPool(origin, connect_timeout_s=connect_timeout_s)
    with pytest.raises(ProxyError) as raised:
        await pool.acquire()
    assert raised.value.kind is kind
    assert pool.open == 0
    assert origin.host not in raised.value.message
    assert str(origin.port) not in raised.value.message
    return raised.value
