"""`/v1/*`: from a request as aiohttp parses it to an exchange, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import HttpVersion10, HttpVersion11

from proxy.core import errors
from proxy.phases.exchange import Exchange, new_exchange_id
from proxy.phases.watchdog import StallWatch, send_whole
from proxy.server.downstream import Downstream
from proxy.server.request_body import RequestBody
from proxy.server.routes import UNROUTED, resolve

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from aiohttp.http import RawRequestMessage

    from proxy.core.addresses import TrustedProxies
    from proxy.phases.pipeline import Pipeline
    from proxy.phases.tracing import Tracing
    from proxy.server.connection import Connection
    from proxy.server.cors import Cors

_VERSIONS: Final = (HttpVersion11, HttpVersion10)
# headers that may keep any endpoint from taking a request; most have none of them
_JUDGED: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"via"})


@dataclass(frozen=True, slots=True)
class Serving:
    """How requests are served that come now; others that came before may be served otherwise."""

    pipeline: Pipeline
    cors: Cors
    request_read_timeout_s: float
    write_stall_s: float | None
    trusted_proxies: TrustedProxies


class OpenAIApi:
    """The handler of the API's listener. `serving` may be replaced at any time."""

    def __init__(self, serving: Serving, via_name: bytes, tracing: Tracing | None = None) -> None:
        self.is_draining = False
        self.serving = serving
        self._via_name = via_name
        self._tracing = tracing

    async def handle(self, connection: Connection, message: RawRequestMessage, content: StreamReader) -> bool:
        """Serve one request; whether the connection goes on. Raises `ConnectionError` where nothing may follow."""
        serving, method, headers = self.serving, message.method, list(message.raw_headers)
        cors = serving.cors.headers(message.headers.get("Origin"))
        downstream = Downstream(connection, message, content, cors, self)
        if method == "OPTIONS":
            return await self._preflight(serving, message, downstream)
        target = message.path
        if not target.startswith("/"):  # absolute form (RFC 9112 section 3.2.2)
            target = message.url.raw_path_qs
        refusal: errors.ProxyError | None = None
        endpoint, path, query = UNROUTED, "/", ""
        try:
            endpoint, path, query = resolve(method, target)
        except errors.ProxyError as error:
            refusal = error
        exchange = Exchange(
            id=new_exchange_id(),
            endpoint=endpoint,
            method=method,
            path=path,
            query=query,
            headers=headers,
            client=serving.trusted_proxies.client(connection.remote, headers),
            body=RequestBody(connection, message, content, serving.request_read_timeout_s),
            downstream=downstream,
            trace=None if self._tracing is None else self._tracing.begin(headers),
        )
        if refusal is None and not (message.version in _VERSIONS and _JUDGED.isdisjoint(exchange.first)):
            refusal = self._refusal(exchange.first, message)
        try:
            await serving.pipeline.run(exchange, connection.task, refusal)
        except Exception as fault:
            if downstream.started:
                raise ConnectionResetError("an answer is out already") from fault
            raise
        return downstream.keeps_alive

    def _refusal(self, first: dict[bytes, bytes], message: RawRequestMessage) -> errors.ProxyError | None:
        """Why no endpoint takes this, whatever it asks; `first` are the first values of its headers."""
        if message.version not in _VERSIONS:  # what claims to be HTTP/0.9 or HTTP/2.0 in the form of HTTP/1.1
            return errors.ProxyError(errors.BAD_REQUEST, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
        coding = first.get(b"transfer-encoding")
        if coding is not None and (coding.strip().lower() != b"chunked" or message.version == HttpVersion10):
            # another coding would stay in the body; and HTTP/1.0 has none at all (RFC 9112 section 6.1)
            return errors.ProxyError(errors.BAD_REQUEST, "The only Transfer-Encoding understood is chunked.")
        expect = first.get(b"expect")
        if expect is not None and expect.strip().lower() != b"100-continue":
            return errors.ProxyError(errors.EXPECTATION_FAILED, "Only `Expect: 100-continue` is understood.")
        if message.upgrade:  # a WebSocket may smuggle
            return errors.ProxyError(errors.BAD_REQUEST, "This server does not upgrade connections.")
        via = first.get(b"via")
        if via is not None and self._via_name in via:
            return errors.ProxyError(
                errors.UPSTREAM_PROTOCOL_ERROR, "The request came back to this proxy: an upstream points at it."
            )
        return None

    async def _preflight(self, serving: Serving, message: RawRequestMessage, downstream: Downstream) -> bool:
        asked = message.headers
        answer = serving.cors.preflight(
            asked.get("Origin"),
            asked.get("Access-Control-Request-Headers"),
            private_network="Access-Control-Request-Private-Network" in asked,
        )
        headers = [(name.encode("ascii"), value.encode("utf-8", "replace")) for name, value in answer.items()]
        await send_whole(downstream, 204, headers, b"", StallWatch(downstream, serving.write_stall_s))
        return downstream.keeps_alive
