"""`/v1/*`: from aiohttp's request to an exchange, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import HttpVersion10, HttpVersion11, web

from proxy.core import errors
from proxy.phases.exchange import Exchange, new_exchange_id
from proxy.phases.watchdog import StallWatch, send_whole
from proxy.server.downstream import Downstream
from proxy.server.request_body import RequestBody
from proxy.server.routes import UNROUTED, resolve

if TYPE_CHECKING:
    from proxy.core.addresses import TrustedProxies
    from proxy.phases.exchange import Endpoint
    from proxy.phases.pipeline import Pipeline
    from proxy.phases.tracing import Tracing
    from proxy.server.cors import Cors


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

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request. Raises `ConnectionError` when the connection was cut, so that aiohttp adds nothing."""
        serving = self.serving
        origin = request.headers.get("Origin")
        if request.method == "OPTIONS":
            return await self._preflight(serving, request, origin)
        downstream = Downstream(request, serving.cors.headers(origin), is_last=self._is_last)
        exchange, refusal = self._exchange(serving, request, downstream)
        await serving.pipeline.run(exchange, refusal)
        if downstream.is_cut or not downstream.started:
            raise ConnectionResetError("cut")
        return downstream.answered

    def _is_last(self) -> bool:
        """Whether an answer that begins now is the last of its connection."""
        return self.is_draining

    def _exchange(
        self, serving: Serving, request: web.BaseRequest, downstream: Downstream
    ) -> tuple[Exchange, errors.ProxyError | None]:
        raw_path, _, query = request.raw_path.partition("?")
        if not raw_path.startswith("/"):  # absolute form (RFC 9112 section 3.2.2)
            raw_path, query = request.rel_url.raw_path, request.rel_url.raw_query_string
        refusal: errors.ProxyError | None = None
        endpoint: Endpoint = UNROUTED
        path = "/"
        try:
            _refuse_version(request)
            endpoint, path = resolve(request.method, raw_path)
        except errors.ProxyError as error:
            refusal = error
        headers = list(request.raw_headers)
        exchange = Exchange(
            id=new_exchange_id(),
            endpoint=endpoint,
            method=request.method,
            path=path,
            query=query,
            headers=headers,
            client=serving.trusted_proxies.client(request.remote or "", headers),
            body=RequestBody(request, serving.request_read_timeout_s),
            downstream=downstream,
            trace=None if self._tracing is None else self._tracing.begin(headers),
        )
        return exchange, refusal or self._refusal(exchange.first, request)

    def _refusal(self, first: dict[bytes, bytes], request: web.BaseRequest) -> errors.ProxyError | None:
        """Why no endpoint takes this; `first` are the first values of its headers."""
        coding = first.get(b"transfer-encoding")
        if coding is not None and (coding.strip().lower() != b"chunked" or request.version == HttpVersion10):
            # another coding would stay in the body; and HTTP/1.0 has none at all (RFC 9112 section 6.1)
            return errors.ProxyError(errors.BAD_REQUEST, "The only Transfer-Encoding understood is chunked.")
        expect = first.get(b"expect")
        if expect is not None and expect.strip().lower() != b"100-continue":
            return errors.ProxyError(errors.EXPECTATION_FAILED, "Only `Expect: 100-continue` is understood.")
        if request._message.upgrade:  # noqa: SLF001 - the parser's verdict has no public name; a WebSocket may smuggle
            return errors.ProxyError(errors.BAD_REQUEST, "This server does not upgrade connections.")
        via = first.get(b"via")
        if via is not None and self._via_name in via:
            return errors.ProxyError(
                errors.UPSTREAM_PROTOCOL_ERROR, "The request came back to this proxy: an upstream points at it."
            )
        return None

    async def _preflight(self, serving: Serving, request: web.BaseRequest, origin: str | None) -> web.StreamResponse:
        headers = serving.cors.preflight(
            origin,
            request.headers.get("Access-Control-Request-Headers"),
            private_network="Access-Control-Request-Private-Network" in request.headers,
        )
        raw = [(name.encode("ascii"), value.encode("utf-8", "replace")) for name, value in headers.items()]
        downstream = Downstream(request, raw, is_last=self._is_last)
        await send_whole(downstream, 204, [], b"", StallWatch(downstream, serving.write_stall_s))
        return downstream.answered


def _refuse_version(request: web.BaseRequest) -> None:
    """What claims to be HTTP/0.9 or HTTP/2.0 in the form of HTTP/1.1."""
    if request._version not in (HttpVersion10, HttpVersion11):  # noqa: SLF001 - aiohttp keeps what `version` says
        request._version = HttpVersion11  # noqa: SLF001 - or the answer's status line would claim that version
        raise errors.ProxyError(errors.BAD_REQUEST, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
