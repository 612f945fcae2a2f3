"""Through an outbound proxy: the tunnel it is asked for, its refusals, its credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.core.errors import UPSTREAM_CONNECT_TIMEOUT
from proxy.upstream.connect import Origin, ProxyAddress
from tests.fakes.connect_proxy import ConnectProxy
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.reaching import reach, trusting, unreachable

if TYPE_CHECKING:
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


def test_a_proxys_address_shows_no_credentials() -> None:
    address = ProxyAddress.from_url("http://user:secret@proxy.test:3128/")
    assert (address.host, address.port, address.user, address.password) == ("proxy.test", 3128, "user", "secret")
    assert "secret" not in repr(Origin("h", 1, proxy=address))
    assert ProxyAddress.from_url("http://proxy.test").port == 80
    for url in ("https://u:secret@proxy.test:1", "socks5://u:secret@proxy.test:1", "proxy.test:1", "http://x/secret"):
        with pytest.raises(ValueError, match="outbound proxy") as raised:
            ProxyAddress.from_url(url)
        assert "secret" not in str(raised.value)
