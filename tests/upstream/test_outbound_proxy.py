"""Through an outbound proxy: the tunnel it is asked for, its refusals, its credentials."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest

from proxy.core.errors import UPSTREAM_CONNECT_TIMEOUT
from proxy.upstream.connect import Origin, ProxyAddress, tls_context
from proxy.upstream.pool import UpstreamPool
from tests.fakes.connect_proxy import ConnectProxy
from tests.fakes.exchanges import HELLO, read_all, start
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.reaching import reach, trusting, unreachable

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.tasks import BackgroundTasks
    from tests.upstream.conftest import Certificates


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 200 Connection established\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nProxy-Agent: x\r\nContent-Length: 9\r\n\r\n",
    ],
)
async def test_through_an_outbound_proxy(
    certificates: Certificates, tasks: BackgroundTasks, greeting: bytes, *, secure: bool
) -> None:
    async with ConnectProxy(greeting=greeting) as outbound:
        with RawUpstream(certificates.server if secure else None) as upstream:
            origin = Origin(
                "127.0.0.1",
                upstream.port,
                tls=trusting(certificates.ca_file) if secure else None,
                proxy=ProxyAddress.from_url(f"http://user:p%40ss@127.0.0.1:{outbound.port}"),
            )
            request = await reach(origin, upstream, tasks)
            assert b"Proxy-Authorization" not in request
            target = b"127.0.0.1:%d" % upstream.port
            assert outbound.heads == [
                b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\n"
                b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n\r\n"
            ]


@pytest.mark.parametrize(
    "refusal",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nsorr",
        b"garbage\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000,
        b"HTTP/1.1 200 OK\r\n\r\nahead of the tunnel",
    ],
)
async def test_an_outbound_proxy_that_refuses(upstream: RawUpstream, refusal: bytes) -> None:
    async with ConnectProxy() as outbound:
        outbound.refusal = refusal
        address = ProxyAddress("127.0.0.1", outbound.port, "user", "secret")
        error = await unreachable(Origin("upstream.test", upstream.port, proxy=address))
        assert "proxy" in error.message
        assert "secret" not in error.message


async def test_an_outbound_proxy_that_is_silent(upstream: RawUpstream) -> None:
    origin = Origin("upstream.test", 443, proxy=ProxyAddress("127.0.0.1", upstream.port))
    await unreachable(origin, UPSTREAM_CONNECT_TIMEOUT, connect_timeout_s=0.05)
    peer = await upstream.accept()
    assert (await peer.request()).startswith(b"CONNECT upstream.test:443 HTTP/1.1\r\n")
    await peer.ended()


async def test_a_client_certificate_is_shown_through_the_tunnel(
    certificates: Certificates, tasks: BackgroundTasks, tmp_path: Path
) -> None:
    """TLS is between Sluice and the upstream: the proxy in between sees ciphertext."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates.ca.issue_cert("127.0.0.1").configure_cert(server)
    certificates.ca.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    file = tmp_path / "client.pem"
    file.write_bytes(certificates.ca.issue_cert("sluice@example.org").private_key_and_cert_chain_pem.bytes())
    client = tls_context(verify=True, ca=certificates.ca_file, client_certificate=str(file), client_key=None)
    async with ConnectProxy() as outbound:
        with RawUpstream(server) as upstream:
            address = ProxyAddress("127.0.0.1", outbound.port)
            await reach(Origin("127.0.0.1", upstream.port, tls=client, proxy=address), upstream, tasks)
            tls = upstream.peers[0].tls
            assert tls is not None
            assert tls.getpeercert()
        assert len(outbound.heads) == 1


async def test_a_wrong_certificate_behind_the_tunnel(certificates: Certificates) -> None:
    """The certificate must name the upstream, not the proxy: here both are at one address."""
    async with ConnectProxy() as outbound:
        with RawUpstream(certificates.server) as upstream:
            origin = Origin(
                "127.0.0.1",
                upstream.port,
                tls=trusting(certificates.ca_file),
                server_hostname="other.test",
                proxy=ProxyAddress("127.0.0.1", outbound.port),
            )
            failing = asyncio.get_running_loop().create_task(unreachable(origin))
            peer = await upstream.accept_raw()
            with pytest.raises((ssl.SSLError, ConnectionError)):  # noqa: PT012 - TLS 1.3 may tell it a step later
                await peer.handshake()
                await peer.request()
            peer.close()
            assert (await failing).message == "The upstream's certificate was not accepted."


async def test_a_handshake_that_hangs_behind_the_tunnel(certificates: Certificates) -> None:
    """The time of connecting covers all of it: the proxy, its answer, the handshake."""
    async with ConnectProxy() as outbound:
        with RawUpstream() as upstream:
            address = ProxyAddress("127.0.0.1", outbound.port)
            origin = Origin("127.0.0.1", upstream.port, tls=trusting(certificates.ca_file), proxy=address)
            failing = asyncio.get_running_loop().create_task(
                unreachable(origin, UPSTREAM_CONNECT_TIMEOUT, connect_timeout_s=0.5)
            )
            peer = await upstream.accept_raw()
            await failing
            await peer.ended()


async def test_the_tunnel_is_kept_alive_as_a_connection_is(certificates: Certificates, tasks: BackgroundTasks) -> None:
    """A second exchange goes through it; the proxy is asked once."""
    async with ConnectProxy() as outbound:
        with RawUpstream(certificates.server) as upstream:
            origin = Origin(
                "127.0.0.1",
                upstream.port,
                tls=trusting(certificates.ca_file),
                proxy=ProxyAddress("127.0.0.1", outbound.port),
            )
            pool = UpstreamPool(origin, connect_timeout_s=5)
            attempting = start(pool, tasks)
            peer = await upstream.accept()
            await peer.answer(HELLO)
            stream = await attempting
            assert await read_all(stream) == b"hello"
            stream.close()
            again = start(pool, tasks)
            await peer.answer(HELLO)
            assert (await again).reused
            (await again).abort()
            pool.close()
        assert len(outbound.heads) == 1


def test_a_proxys_address_shows_no_credentials() -> None:
    address = ProxyAddress.from_url("http://user:secret@proxy.test:3128/")
    assert (address.host, address.port, address.user, address.password) == ("proxy.test", 3128, "user", "secret")
    assert "secret" not in repr(Origin("h", 1, proxy=address))
    assert ProxyAddress.from_url("http://proxy.test").port == 80
    for url in ("https://u:secret@proxy.test:1", "socks5://u:secret@proxy.test:1", "proxy.test:1", "http://x/secret"):
        with pytest.raises(ValueError, match="outbound proxy") as raised:
            ProxyAddress.from_url(url)
        assert "secret" not in str(raised.value)
