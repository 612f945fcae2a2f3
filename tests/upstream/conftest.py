"""Every test here runs on both event loops: what the transports promise is half of what is tested."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme
import uvloop

from proxy.tasks import BackgroundTasks
from proxy.upstream.connect import Origin
from proxy.upstream.pool import UpstreamPool
from tests.fakes.raw_upstream import RawUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class Certificates(NamedTuple):
    """A certificate authority, in a file and as an object, and the server's side of TLS under it."""

    ca: trustme.CA
    ca_file: str
    server: ssl.SSLContext


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder: Path = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    server.set_alpn_protocols(["h2", "http/1.1"])
    return Certificates(ca, str(folder / "ca.pem"), server)


@pytest.fixture
async def tasks() -> AsyncIterator[BackgroundTasks]:
    tasks = BackgroundTasks()
    yield tasks
    await tasks.close(patience_s=0)


@pytest.fixture
async def upstream() -> AsyncIterator[RawUpstream]:
    with RawUpstream() as upstream:
        yield upstream


@pytest.fixture
async def pool(upstream: RawUpstream) -> AsyncIterator[UpstreamPool]:
    pool = UpstreamPool(Origin(upstream.host, upstream.port), connect_timeout_s=5)
    yield pool
    for connection in list(pool._open):
        connection.abort()
    pool.close()
