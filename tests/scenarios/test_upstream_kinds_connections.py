"""The way to an upstream as a file configures it, with real certificates; and every way it can fail, in its row.

The rows are those of the table of errors: 502 for what is refused or wrong, 504 for what takes too long. None names an
address, and the log line has the cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
import trustme

from proxy.config.settings import RetriesConfig
from proxy.config.upstreams import TimeoutsConfig, UpstreamTlsConfig
from proxy.config.values import SecretUrl
from tests.fakes.client import RecordingClient
from tests.fakes.config_files import load_text
from tests.fakes.connect_proxy import ConnectProxy
from tests.fakes.endings import assert_envelope
from tests.fakes.line import CHAT_REQUEST, JSON_TYPE, LAST_CHUNK, PATIENCE_S, chunk, head
from tests.fakes.raw_upstream import FullListener, RawUpstream
from tests.fakes.recordings import CHAT, DONE, FINISH, ROLE
from tests.fakes.running import UPSTREAM_KEY, running, upstream_config
from tests.fakes.settled import nothing_held, settled_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.fakes.client import Answer
    from tests.fakes.raw_upstream import RawPeer
    from tests.fakes.running import Running
    from tests.scenarios.conftest import Certificates

_ONCE: Final[dict[str, Any]] = {"retries": RetriesConfig(attempts=1)}
_STREAM: Final = ROLE + FINISH + DONE
_CONFIG: Final = """\
upstreams:
  far:
    base_url: https://[::1]:${PORT}/v1
    api_keys: ["${UPSTREAM_KEY}"]
    tls: {ca: "${FOLDER}/ca.pem", client_certificate: "${FOLDER}/client.pem", client_key: "${FOLDER}/client.key"}
    proxy: http://user:p%40ss@127.0.0.1:${PROXY_PORT}
"""


async def test_everything_at_once(tmp_path: Path) -> None:
    """A private authority, a client's certificate, an outbound proxy with a password, IPv6: a stream comes through."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    client_certificate = ca.issue_cert("sluice@example.org", common_name="sluice")
    client_certificate.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    client_certificate.private_key_pem.write_to_path(tmp_path / "client.key")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("::1").configure_cert(server)
    ca.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    async with ConnectProxy() as outbound:
        with RawUpstream(server, "::1") as upstream:
            env = {"PORT": str(upstream.port), "PROXY_PORT": str(outbound.port), "FOLDER": str(tmp_path)}
            config = await asyncio.to_thread(load_text, tmp_path, _CONFIG, env | {"UPSTREAM_KEY": UPSTREAM_KEY})
            async with asking(config.upstreams) as (proxy, client):
                peer = await asyncio.wait_for(upstream.accept(), PATIENCE_S)
                request = await peer.answer(head() + chunk(_STREAM) + LAST_CHUNK)
                answer = await asyncio.wait_for(client.answer(), PATIENCE_S)
                assert (answer.status, answer.body, answer.whole) == (200, _STREAM, True)
                assert f"\r\nHost: [::1]:{upstream.port}\r\n".encode() in request
                assert f"\r\nAuthorization: Bearer {UPSTREAM_KEY}\r\n".encode() in request
                assert peer.tls is not None
                assert (("commonName", "sluice"),) in (peer.tls.getpeercert() or {})["subject"]
                assert len(outbound.heads) == 1
                assert b"\r\nProxy-Authorization: Basic dXNlcjpwQHNz\r\n" in outbound.heads[0]
                await settled_row(proxy)
                assert "p@ss" not in proxy.log_text
                assert "p%40ss" not in proxy.log_text


@contextlib.asynccontextmanager
async def asking(upstreams: Any) -> AsyncIterator[tuple[Running, RecordingClient]]:
    """A proxy, and a client that has asked it for a stream."""
    async with running(upstreams, settings=_ONCE) as proxy, await RecordingClient.connect(proxy.port) as client:
        client.send("POST", CHAT, CHAT_REQUEST, headers=(JSON_TYPE,))
        yield proxy, client


class Row(NamedTuple):
    """What the client and the log are told. `cause` is the beginning of what the log line names."""

    status: int
    code: str
    cause: str | None = None


_UNREACHABLE: Final = Row(502, "upstream_unreachable")
_TIMEOUT: Final = Row(504, "upstream_timeout")
_PROTOCOL: Final = Row(502, "upstream_protocol_error")


async def told(proxy: Running, answer: Answer, row: Row, *addresses: object) -> None:
    """The row, in the answer, the log and the ledger; nothing charged, nothing left open, no address shown."""
    assert_envelope(answer, row.status, row.code)
    entry = await proxy.exchange()
    assert (entry["outcome"], entry["blame"], entry["phase"]) == (row.code, "upstream", "forward")
    if row.cause is not None:
        assert entry["cause"].startswith(row.cause)
    settled = await settled_row(proxy)
    assert (settled["status"], settled["grade"], settled["cost_nano_usd"]) == (row.status, "exact", 0)
    assert not any(str(address) in answer.error["message"] for address in addresses)
    assert proxy.sample("sluice_upstream_attempts_total", upstream="up", result=row.code) == 1
    await nothing_held(proxy)


async def failing(row: Row, url: str, **settings: Any) -> None:
    """One request to an upstream that cannot be reached."""
    async with asking({"up": upstream_config(url, **settings)}) as (proxy, client):
        answer = await asyncio.wait_for(client.answer(), PATIENCE_S)
        await told(proxy, answer, row, url.rpartition(":")[2].partition("/")[0], "127.0.0.1")


def dead_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_nobody_listens() -> None:
    await failing(_UNREACHABLE._replace(cause="ECONNREFUSED"), f"http://127.0.0.1:{dead_port()}/v1")


async def test_nobody_listens_at_the_outbound_proxy() -> None:
    outbound = SecretUrl(f"http://127.0.0.1:{dead_port()}")
    await failing(_UNREACHABLE._replace(cause="ECONNREFUSED"), "http://127.0.0.1:9/v1", proxy=outbound)


async def test_a_connect_that_hangs() -> None:
    with FullListener() as full:
        await failing(_TIMEOUT, f"http://127.0.0.1:{full.port}/v1", timeouts=TimeoutsConfig(connect=0.1))


async def test_an_outbound_proxy_that_refuses() -> None:
    async with ConnectProxy() as outbound:
        outbound.refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
        url = SecretUrl(f"http://127.0.0.1:{outbound.port}")
        await failing(_UNREACHABLE, "https://127.0.0.1:9/v1", proxy=url)


async def refusing_handshake(peer: RawPeer) -> None:
    """The server's side of a handshake that the proxy breaks off."""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await peer.handshake()
        await peer.request()
    peer.close()


async def silent(peer: RawPeer) -> None:
    """Says nothing until the other side goes."""
    await peer.ended_raw()


async def speaking_plainly(peer: RawPeer) -> None:
    """A server without TLS."""
    await peer.recv_raw()
    await asyncio.get_running_loop().sock_sendall(peer.sock, b"HTTP/1.1 400 Bad Request\r\n\r\n")


_HANDSHAKES: Final[dict[str, tuple[Callable[[RawPeer], Awaitable[None]], bool, Row]]] = {
    "wrong certificate": (refusing_handshake, False, _UNREACHABLE._replace(cause="certificate: ")),
    "no TLS": (speaking_plainly, True, _UNREACHABLE._replace(cause="TLS: ")),
    "silent handshake": (silent, True, _TIMEOUT),
}


@pytest.mark.parametrize(("server", "trusted", "row"), _HANDSHAKES.values(), ids=_HANDSHAKES.keys())
async def test_a_handshake_that_fails(
    certificates: Certificates, server: Callable[[RawPeer], Awaitable[None]], row: Row, *, trusted: bool
) -> None:
    """The server's certificate is of a private authority."""
    tls = UpstreamTlsConfig(ca=certificates.ca_file) if trusted else UpstreamTlsConfig()
    with RawUpstream(certificates.server) as upstream:
        url = f"https://localhost:{upstream.port}/v1"
        timeouts = TimeoutsConfig(connect=0.3 if row is _TIMEOUT else 10.0)
        async with asking({"up": upstream_config(url, tls=tls, timeouts=timeouts)}) as (proxy, client):
            await server(await asyncio.wait_for(upstream.accept_raw(), PATIENCE_S))
            answer = await asyncio.wait_for(client.answer(), PATIENCE_S)
            await told(proxy, answer, row, upstream.port, "localhost")


_ANSWERS: Final = {
    "garbage": (b"\x00\x01\x02garbage", _PROTOCOL),
    "endless header": (b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200_000, _PROTOCOL),
    "endless headers": (b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(20_000)), _PROTOCOL),
    "half a header": (b"HTTP/1.1 200 OK\r\nContent-Ty", _TIMEOUT),
    "nothing": (b"", _TIMEOUT),
}


@pytest.mark.parametrize(("sent", "row"), _ANSWERS.values(), ids=_ANSWERS.keys())
async def test_an_answer_that_is_none_over_tls(certificates: Certificates, sent: bytes, row: Row) -> None:
    """And does not end: whatever comes is judged as it comes, or when its time is over."""
    tls = UpstreamTlsConfig(ca=certificates.ca_file)
    timeouts = TimeoutsConfig(first_byte=10.0 if row is _PROTOCOL else 0.2)
    with RawUpstream(certificates.server) as upstream:
        url = f"https://localhost:{upstream.port}/v1"
        async with asking({"up": upstream_config(url, tls=tls, timeouts=timeouts)}) as (proxy, client):
            peer = await asyncio.wait_for(upstream.accept(), PATIENCE_S)
            await peer.request()
            with contextlib.suppress(ConnectionError):  # it hangs up when it has seen enough
                await peer.send(sent)
            answer = await asyncio.wait_for(client.answer(), PATIENCE_S)
            await asyncio.wait_for(peer.ended(), PATIENCE_S)
            await told(proxy, answer, row, upstream.port, "localhost")
