"""Reaching an upstream: addresses, TLS, tunnels; and what each failure is called."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from proxy.core.errors import UPSTREAM_CONNECT_TIMEOUT, ProxyError
from proxy.upstream.connect import Origin, tls_context
from proxy.upstream.pool import UpstreamPool
from tests.fakes.exchanges import POST, descriptors, start, turns_until
from tests.fakes.raw_upstream import FullListener, RawUpstream
from tests.fakes.reaching import reach, trusting, unreachable

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.tasks import BackgroundTasks
    from tests.upstream.conftest import Certificates


def dead_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_refused() -> None:
    error = await unreachable(Origin("127.0.0.1", dead_port()))
    assert isinstance(error.__cause__, ConnectionRefusedError)


async def test_no_such_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_name(*args: object, **options: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_name)
    error = await unreachable(Origin("upstream.invalid", 443))
    assert isinstance(error.__cause__, socket.gaierror)


async def test_a_name_that_cannot_be_one() -> None:
    await unreachable(Origin("a" * 70 + ".test", 443))


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    resolve = asyncio.get_running_loop().getaddrinfo

    async def resolved(host: str, *args: Any, **options: Any) -> list[Any]:
        if host in {address for address, _ in addresses}:  # uvloop asks again as it connects
            return await resolve(host, *args, **options)
        return [
            (
                socket.AF_INET6 if ":" in host else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (host, port),
            )
            for host, port in addresses
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)


async def test_a_dead_first_address_is_passed_over(
    upstream: RawUpstream, tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, ("::1", upstream.port), ("127.0.0.1", upstream.port))
    await reach(Origin("upstream.test", upstream.port), upstream, tasks)


async def test_a_silent_first_address_does_not_hold_up_the_second(
    upstream: RawUpstream, tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first address drops the handshake (its queue is full); the second is tried 250 ms later."""
    with FullListener() as full:
        resolve_to(monkeypatch, ("127.0.0.1", full.port), ("127.0.0.1", upstream.port))
        await reach(Origin("upstream.test", upstream.port), upstream, tasks)


async def test_a_connect_that_hangs() -> None:
    with FullListener() as full:
        before = descriptors()
        await unreachable(Origin("127.0.0.1", full.port), UPSTREAM_CONNECT_TIMEOUT, connect_timeout_s=0.05)
        await turns_until(lambda: descriptors() <= before)


async def test_a_tls_handshake_that_hangs(upstream: RawUpstream, certificates: Certificates) -> None:
    origin = Origin("127.0.0.1", upstream.port, tls=trusting(certificates.ca_file))
    await unreachable(origin, UPSTREAM_CONNECT_TIMEOUT, connect_timeout_s=0.05)
    await (await upstream.accept_raw()).ended()


async def test_a_timeout_is_not_taken_for_a_cancellation_nor_the_reverse(upstream: RawUpstream) -> None:
    """The task goes on uncancelled after our timer; it stays cancelled after somebody else's cancel."""
    with FullListener() as full:
        await unreachable(Origin("127.0.0.1", full.port), UPSTREAM_CONNECT_TIMEOUT, connect_timeout_s=0.01)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)
        pool = UpstreamPool(Origin("127.0.0.1", full.port), connect_timeout_s=5)
        connecting = asyncio.get_running_loop().create_task(pool.acquire())
        await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_tls_under_a_private_authority(
    certificates: Certificates, tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    with RawUpstream(certificates.server) as upstream:
        resolve_to(monkeypatch, ("127.0.0.1", upstream.port))
        await reach(Origin(host, upstream.port, tls=trusting(certificates.ca_file)), upstream, tasks)
        tls = upstream.peers[0].tls
        assert tls is not None
        assert tls.version() in {"TLSv1.2", "TLSv1.3"}
        assert tls.selected_alpn_protocol() == "http/1.1"


async def test_the_certificate_may_name_something_else_than_the_address(
    certificates: Certificates, tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawUpstream(certificates.server) as upstream:
        resolve_to(monkeypatch, ("127.0.0.1", upstream.port))
        origin = Origin("10.1.2.3", upstream.port, tls=trusting(certificates.ca_file), server_hostname="localhost")
        await reach(origin, upstream, tasks)


async def handshake_refused(origin: Origin, upstream: RawUpstream) -> ProxyError:
    failing = asyncio.get_running_loop().create_task(unreachable(origin))
    peer = await upstream.accept_raw()
    with pytest.raises((ssl.SSLError, ConnectionError)):  # noqa: PT012 - TLS 1.3 may tell it a step later
        await peer.handshake()
        await peer.request()
    peer.close()
    return await failing


async def test_an_unknown_authority_is_not_trusted(certificates: Certificates) -> None:
    strict = tls_context(verify=True, ca=None, client_certificate=None, client_key=None)
    with RawUpstream(certificates.server) as upstream:
        error = await handshake_refused(Origin("127.0.0.1", upstream.port, tls=strict), upstream)
    assert error.message == "The upstream's certificate was not accepted."
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)


async def test_a_certificate_for_another_name_is_not_trusted(certificates: Certificates) -> None:
    with RawUpstream(certificates.server) as upstream:
        origin = Origin("127.0.0.1", upstream.port, tls=trusting(certificates.ca_file), server_hostname="other.test")
        error = await handshake_refused(origin, upstream)
    assert error.message == "The upstream's certificate was not accepted."


async def test_verification_can_be_switched_off(certificates: Certificates, tasks: BackgroundTasks) -> None:
    careless = tls_context(verify=False, ca=None, client_certificate=None, client_key=None)
    with RawUpstream(certificates.server) as upstream:
        await reach(Origin("127.0.0.1", upstream.port, tls=careless), upstream, tasks)


async def test_a_client_certificate_is_shown(
    certificates: Certificates, tasks: BackgroundTasks, tmp_path: Path
) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates.ca.issue_cert("127.0.0.1").configure_cert(server)
    certificates.ca.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    client = certificates.ca.issue_cert("sluice@example.org", common_name="sluice")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    client.private_key_pem.write_to_path(tmp_path / "client.key")
    context = tls_context(
        verify=True,
        ca=certificates.ca_file,
        client_certificate=str(tmp_path / "client.pem"),
        client_key=str(tmp_path / "client.key"),
    )
    with RawUpstream(server) as upstream:
        await reach(Origin("127.0.0.1", upstream.port, tls=context), upstream, tasks)
        tls = upstream.peers[0].tls
        assert tls is not None
        assert tls.getpeercert() is not None
        origin = Origin("127.0.0.1", upstream.port, tls=trusting(certificates.ca_file))
        pool = UpstreamPool(origin, connect_timeout_s=5)
        attempting = start(pool, tasks, POST)
        peer = await upstream.accept_raw()
        with pytest.raises(ssl.SSLError):
            await peer.handshake()
        await peer._flush()
        peer.close()
        with pytest.raises(ProxyError):
            await attempting
        assert pool.open == 0


async def test_a_plain_server_where_tls_was_expected(upstream: RawUpstream, certificates: Certificates) -> None:
    failing = asyncio.get_running_loop().create_task(
        unreachable(Origin("127.0.0.1", upstream.port, tls=trusting(certificates.ca_file)))
    )
    peer = await upstream.accept_raw()
    await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    error = await failing
    assert error.message == "The TLS handshake with the upstream failed."


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_an_end_within_the_handshake(upstream: RawUpstream, certificates: Certificates, end: str) -> None:
    failing = asyncio.get_running_loop().create_task(
        unreachable(Origin("127.0.0.1", upstream.port, tls=trusting(certificates.ca_file)))
    )
    peer = await upstream.accept_raw()
    await peer.recv()
    getattr(peer, end)()
    await failing


def test_old_tls_versions_are_refused(certificates: Certificates) -> None:
    assert trusting(certificates.ca_file).minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_tls_context_needs_files_that_can_be_used(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        tls_context(verify=True, ca=str(tmp_path / "none.pem"), client_certificate=None, client_key=None)
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    with pytest.raises(ssl.SSLError):
        tls_context(verify=True, ca=None, client_certificate=str(tmp_path / "ca.pem"), client_key=None)
