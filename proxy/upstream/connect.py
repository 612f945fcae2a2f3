"""Opening a connection to an upstream: addresses, the outbound proxy's tunnel, TLS.

Whatever goes wrong here is told as `UPSTREAM_UNREACHABLE` or `UPSTREAM_CONNECT_TIMEOUT`: nothing of the request was
sent, so it may be tried elsewhere. However it ends, nothing stays open.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote, urlsplit

import aiohappyeyeballs

from proxy.core.errors import UPSTREAM_CONNECT_TIMEOUT, UPSTREAM_UNREACHABLE, ProxyError
from proxy.upstream.connection import UpstreamConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.upstream.pool import ReadBuffer

HAPPY_EYEBALLS_DELAY_S: Final = 0.25  # RFC 8305 section 5
# A vanished peer is noticed after 60 + 4 x 15 s: sooner than most idle timeouts of the network in between.
KEEPALIVE_IDLE_S: Final = 60
KEEPALIVE_INTERVAL_S: Final = 15
KEEPALIVE_PROBES: Final = 4


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    """An outbound proxy that tunnels with CONNECT, and the credentials it wants."""

    host: str
    port: int
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def from_url(cls, url: str) -> ProxyAddress:
        """Read `http://[user:password@]host[:port]`. Raises ValueError, without the credentials in its text."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in {"", "/"}:
            raise ValueError("an outbound proxy is given as http://[user:password@]host:port")
        user = None if parts.username is None else unquote(parts.username)
        password = None if parts.password is None else unquote(parts.password)
        return cls(parts.hostname, parts.port or 80, user, password)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an upstream is and how to reach it. `server_hostname` is what its certificate must name, if not `host`."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    server_hostname: str | None = None
    proxy: ProxyAddress | None = None

    @property
    def authority(self) -> str:
        """`host:port`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def tls_context(
    *, verify: bool, ca: str | None, client_certificate: str | None, client_key: str | None
) -> ssl.SSLContext:
    """TLS 1.2 or later, HTTP/1.1 by ALPN.

    The three files are PEM; `ca` replaces the system's authorities, the key may be in the certificate's file. Raises
    OSError or ssl.SSLError for files that cannot be used.
    """
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if client_certificate is not None:
        context.load_cert_chain(client_certificate, client_key)
    return context


async def connect(
    origin: Origin, *, read_buffer: ReadBuffer, on_closed: Callable[[UpstreamConnection], None], timeout_s: float
) -> UpstreamConnection:
    """Open a connection within `timeout_s` seconds, tunnel and TLS included.

    Raises a `ProxyError` of kind UPSTREAM_UNREACHABLE or UPSTREAM_CONNECT_TIMEOUT. Must run in a task.
    """
    connection = UpstreamConnection(read_buffer, on_closed)
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    cancels_before = task.cancelling()
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(timeout_s, expire)
    try:
        await _establish(origin, connection)
    except BaseException as error:
        connection.abort()
        # only our own timer's cancellation becomes a timeout; one from outside goes on
        if expired and task.uncancel() <= cancels_before and isinstance(error, asyncio.CancelledError):
            raise ProxyError(UPSTREAM_CONNECT_TIMEOUT, "Connecting to the upstream took too long.") from error
        raise
    finally:
        timer.cancel()
    return connection


async def _establish(origin: Origin, connection: UpstreamConnection) -> None:
    target = origin.proxy or origin
    sock = await _dial(target.host, target.port)
    loop = asyncio.get_running_loop()
    try:
        await loop.create_connection(lambda: connection, sock=sock)
    except OSError as error:
        raise _unreachable("Could not connect to the upstream.") from error
    connection.attach(sock)
    if origin.proxy is not None:
        await _tunnel(connection, origin, origin.proxy)
    if origin.tls is not None:
        await _secure(connection, origin.tls, origin.server_hostname or origin.host)
    if connection.closed:
        raise _unreachable("The upstream closed the connection at once.")


async def _dial(host: str, port: int) -> socket.socket:
    def new_socket(address: tuple[Any, ...]) -> socket.socket:
        sock = socket.socket(*address[:3])
        _tune(sock)
        return sock

    loop = asyncio.get_running_loop()
    try:
        addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: no valid host name
        raise _unreachable("The upstream's name could not be resolved.") from error
    try:
        return await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S, interleave=1, loop=loop, socket_factory=new_socket
        )
    except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError for some addresses
        raise _unreachable("Could not connect to the upstream.") from error


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def _tunnel(connection: UpstreamConnection, origin: Origin, proxy: ProxyAddress) -> None:
    """RFC 9110 section 9.3.6. A successful answer has no body, whatever its head says."""
    authority = origin.authority
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.user is not None:
        credentials = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {credentials}")
    reader = connection.begin(bodiless=True)
    connection.write("\r\n".join([*lines, "", ""]).encode())
    try:
        while (head := reader.head) is None:
            await connection.changed()
    except ProxyError as error:
        raise _unreachable("The outbound proxy did not answer properly.") from error
    if not 200 <= head.status <= 299:
        raise _unreachable(f"The outbound proxy refused the tunnel with status {head.status}.")
    if reader.excess:
        raise _unreachable("The outbound proxy sent bytes ahead of the tunnel.")
    connection.finish()
    connection.exchanges = 0  # a new connection, as far as the upstream knows


async def _secure(connection: UpstreamConnection, context: ssl.SSLContext, server_hostname: str) -> None:
    try:
        await connection.secure(context, server_hostname)
    except ssl.SSLCertVerificationError as error:
        raise _unreachable("The upstream's certificate was not accepted.") from error
    except OSError as error:  # ssl.SSLError among them
        raise _unreachable("The TLS handshake with the upstream failed.") from error


def _unreachable(message: str) -> ProxyError:
    return ProxyError(UPSTREAM_UNREACHABLE, message)
