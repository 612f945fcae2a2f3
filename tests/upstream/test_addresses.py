"""IPv4 and IPv6: literal addresses, names that have both, addresses that nobody answers at."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from proxy.core.errors import UPSTREAM_CONNECT_TIMEOUT
from proxy.upstream.connect import Origin, ProxyAddress
from tests.fakes.connect_proxy import ConnectProxy
from tests.fakes.exchanges import descriptors, turns_until
from tests.fakes.names import Names
from tests.fakes.raw_upstream import FullListener, RawUpstream
from tests.fakes.reaching import reach, trusting, unreachable

if TYPE_CHECKING:
    from proxy.tasks import BackgroundTasks
    from tests.upstream.conftest import Certificates


def dead_port(host: str) -> int:
    """A port at which nobody listens."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("secure", [False, True])
async def test_an_address_in_place_of_a_name(
    certificates: Certificates, tasks: BackgroundTasks, host: str, *, secure: bool
) -> None:
    """Over TLS the certificate must name the address."""
    server = None
    if secure:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificates.ca.issue_cert(host).configure_cert(server)
    with RawUpstream(server, host) as upstream:
        origin = Origin(host, upstream.port, tls=trusting(certificates.ca_file) if secure else None)
        await reach(origin, upstream, tasks)
        assert origin.authority == (f"[::1]:{upstream.port}" if host == "::1" else f"127.0.0.1:{upstream.port}")


async def test_a_certificate_for_the_other_address_is_not_trusted(certificates: Certificates) -> None:
    """`localhost` and 127.0.0.1 are named, ::1 is not."""
    with RawUpstream(certificates.server, "::1") as upstream:
        origin = Origin("::1", upstream.port, tls=trusting(certificates.ca_file))
        error = await unreachable_while_shaking_hands(origin, upstream)
    assert error == "The upstream's certificate was not accepted."


async def unreachable_while_shaking_hands(origin: Origin, upstream: RawUpstream) -> str:
    """The message of a connection that fails within the handshake."""
    failing = asyncio.get_running_loop().create_task(unreachable(origin))
    peer = await upstream.accept_raw()
    with pytest.raises((ssl.SSLError, ConnectionError)):  # noqa: PT012 - TLS 1.3 may tell it a step later
        await peer.handshake()
        await peer.request()
    peer.close()
    return (await failing).message


@pytest.mark.parametrize("first", ["127.0.0.1", "::1"])
async def test_a_name_with_both_is_reached_where_somebody_answers(
    tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Whichever family is told first, and however many addresses of it are dead."""
    second = "::1" if first == "127.0.0.1" else "127.0.0.1"
    with RawUpstream(host=second) as upstream:
        dead = [(first, dead_port(first)), (first, dead_port(first))]
        Names(monkeypatch, *dead, (second, upstream.port))
        await reach(Origin("both.test", 443), upstream, tasks)


async def test_a_name_with_both_is_reached_at_its_first_address(
    tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver knows which is better (RFC 6724); the other is not even tried."""
    with RawUpstream(host="::1") as six, RawUpstream() as four:
        Names(monkeypatch, ("::1", six.port), ("127.0.0.1", four.port))
        await reach(Origin("both.test", 443), six, tasks)
        assert four.peers == []


async def test_a_name_whose_addresses_are_all_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told once, and no socket is left."""
    before = descriptors()
    Names(monkeypatch, *((host, dead_port(host)) for host in ("::1", "127.0.0.1", "::1", "127.0.0.1")))
    error = await unreachable(Origin("dead.test", 443))
    assert error.message == "Could not connect to the upstream."
    await turns_until(lambda: descriptors() <= before)


async def test_a_name_whose_addresses_are_all_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them together have the time of one connect."""
    with FullListener() as first, FullListener() as second:
        before = descriptors()
        Names(monkeypatch, ("127.0.0.1", first.port), ("127.0.0.1", second.port))
        await unreachable(Origin("silent.test", 443), UPSTREAM_CONNECT_TIMEOUT, connect_timeout_s=0.4)
        await turns_until(lambda: descriptors() <= before)


async def test_an_outbound_proxy_is_asked_for_an_address_in_brackets(tasks: BackgroundTasks) -> None:
    """RFC 9110 section 9.3.6: CONNECT takes an authority."""
    async with ConnectProxy() as outbound:
        with RawUpstream(host="::1") as upstream:
            origin = Origin("::1", upstream.port, proxy=ProxyAddress("127.0.0.1", outbound.port))
            await reach(origin, upstream, tasks)
            target = b"[::1]:%d" % upstream.port
            assert outbound.heads == [b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\n\r\n"]
