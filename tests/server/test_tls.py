"""TLS towards clients: what goes in comes out, goodbyes are said, and a broken handshake holds nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme

from proxy.config.settings import KeyConfig, PlanConfig, ServerTlsConfig
from proxy.config.values import Secret
from proxy.server import tls
from tests.fakes.client import RecordingClient
from tests.fakes.raw_client import RawClient
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.running import KEY, Running, running
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

MIB = 1024 * 1024


class Certificates(NamedTuple):
    config: ServerTlsConfig
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder: Path = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    issued = ca.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    client = ssl.create_default_context()
    ca.configure_trust(client)
    client.set_alpn_protocols(["h2", "http/1.1"])
    pem = str(folder / "server.pem")
    return Certificates(ServerTlsConfig(certificate=pem, private_key=pem), client)


@pytest.fixture
async def proxied(certificates: Certificates) -> AsyncIterator[tuple[Running, RawUpstream]]:
    with RawUpstream() as upstream:
        async with running(
            f"http://127.0.0.1:{upstream.port}/v1",
            server={"tls": certificates.config},
            plans={"files": PlanConfig(endpoints=("/files",))},
            keys=(KeyConfig(id="team-a", secret=Secret(KEY), plan="files"),),
        ) as proxy:
            yield proxy, upstream


async def test_long_bodies_pass_whole_in_both_directions(
    proxied: tuple[Running, RawUpstream], certificates: Certificates
) -> None:
    """Also where either side is slower than the other, so that reading and writing pause."""
    proxy, upstream = proxied
    up, down = os.urandom(5 * MIB), os.urandom(5 * MIB)
    client = await RecordingClient.connect(proxy.port, certificates.client, receive_buffer=8192)
    client.send("POST", "/v1/files", up, headers=(("Content-Type", "application/octet-stream"),))
    peer = await upstream.accept()
    request = await peer.request()
    assert request.endswith(up)
    answering = asyncio.get_running_loop().create_task(
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(down) + down)
    )
    answer = await client.answer()
    assert answer.body == down
    await answering
    await client.close()


async def test_http_1_1_is_agreed_on(proxied: tuple[Running, RawUpstream], certificates: Certificates) -> None:
    client = await RawClient.connect(proxied[0].port, certificates.client)
    with contextlib.closing(client):
        assert client.tls is not None
        assert client.tls.selected_alpn_protocol() == "http/1.1"


async def test_a_connection_ends_with_a_goodbye(
    proxied: tuple[Running, RawUpstream], certificates: Certificates
) -> None:
    """A client can tell the end from a truncation (RFC 8446 section 6.1)."""
    client = await RawClient.connect(proxied[0].port, certificates.client)
    with contextlib.closing(client):
        await client.begin("/v1/nowhere", "Content-Length: 0", "Connection: close")
        while await client.recv():
            continue
        assert client.tls is not None
        assert client.tls.read(1) == b""  # without close_notify it would want more


async def test_a_client_that_says_goodbye_is_let_go(
    proxied: tuple[Running, RawUpstream], certificates: Certificates
) -> None:
    client = await RawClient.connect(proxied[0].port, certificates.client)
    with contextlib.closing(client):
        assert client.tls is not None
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        await client._flush()
        await client.ended_raw()


async def test_what_is_no_tls_is_dropped_and_nobody_else_notices(
    proxied: tuple[Running, RawUpstream], certificates: Certificates
) -> None:
    proxy, _ = proxied
    plain = await RawClient.connect(proxy.port)
    with contextlib.closing(plain):
        await plain.begin("/v1/models")
        assert (await plain.recv_raw())[:1] in (b"\x15", b"")  # an alert, or just the end
        await plain.ended_raw()
    client = await RecordingClient.connect(proxy.port, certificates.client)
    assert (await client.ask("GET", "/v1/nowhere")).status == 403
    await client.close()
    assert [line["event"] for line in proxy.lines if line["level"] in ("error", "warning")] == []


async def test_a_handshake_has_a_time_limit(
    proxied: tuple[Running, RawUpstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_HANDSHAKE_S", 0.02)
    with contextlib.closing(await RawClient.connect(proxied[0].port)) as silent:
        await silent.ended_raw()


async def test_a_stop_does_not_wait_for_a_handshake(proxied: tuple[Running, RawUpstream]) -> None:
    proxy, _ = proxied
    [listener] = proxy.worker._tls
    with contextlib.closing(await RawClient.connect(proxy.port)) as silent:
        await until(lambda: len(listener.handshaking) == 1, "a connection in its handshake")
        await proxy.worker.stop(0.0)
        await silent.ended_raw()
    assert not listener.handshaking
