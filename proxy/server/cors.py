"""Cross-origin requests: which browser origins may call, and the headers that say so (protocol.md section 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core.headers import CORS_EXPOSED, CORS_REQUEST_HEADERS_FLOOR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.core.headers import RawHeaders

_EXPOSED: Final = ", ".join(CORS_EXPOSED).encode("ascii")


class Cors:
    """The configured origins; "*" among them allows any."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)
        self._any = "*" in self._origins

    def headers(self, origin: str | None) -> RawHeaders:
        """What an answer to a request from `origin` carries; nothing where the origin is not allowed."""
        if origin is None or not (self._any or origin in self._origins):
            return []
        return [
            (b"Access-Control-Allow-Origin", origin.encode("utf-8", "replace")),
            (b"Access-Control-Expose-Headers", _EXPOSED),
            (b"Vary", b"Origin"),
        ]

    def preflight(self, origin: str | None, wanted_headers: str | None, *, private_network: bool) -> dict[str, str]:
        """The headers of the answer to an `OPTIONS` request."""
        answer = {"Allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}
        if origin is None or not (self._any or origin in self._origins):
            return answer
        wanted = ", ".join([*CORS_REQUEST_HEADERS_FLOOR, *([wanted_headers] if wanted_headers else [])])
        answer |= {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": wanted,
            "Access-Control-Max-Age": "7200",
            "Vary": "Origin, Access-Control-Request-Headers",
        }
        if private_network:
            answer["Access-Control-Allow-Private-Network"] = "true"
        return answer
