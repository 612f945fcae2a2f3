"""Exchanges as they arrive, without a socket: for tests of one phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from proxy.core.patterns import PatternTable
from proxy.phases.authenticate import Plan, Principal, digest_of
from proxy.phases.exchange import Endpoint, Exchange

if TYPE_CHECKING:
    from proxy.core.headers import RawHeaders

CHAT = Endpoint("chat/completions", "metered", "chat")
RESPONSES = Endpoint("responses", "metered", "responses")
UPLOAD = Endpoint("audio/transcriptions", "inference", "other")
STATEFUL = Endpoint("stateful", "stateful", "other")
SECRET = b"the-clients-key"


@dataclass
class ArrivedBody:
    """A request body that comes in as these pieces; `announced` is its Content-Length, None for chunks."""

    pieces: list[bytes]
    announced: int | None = None
    received_bytes: int = 0

    @property
    def content_length(self) -> int | None:
        return self.announced

    @property
    def is_empty(self) -> bool:
        return not self.pieces and not self.announced

    def take_whole(self) -> None:
        """It comes in pieces."""

    async def read(self) -> bytes:
        piece = self.pieces.pop(0) if self.pieces else b""
        self.received_bytes += len(piece)
        return piece


@dataclass
class NoDownstream:
    """A client to whom nothing is sent."""

    sent_bytes: int = 0
    first_byte_s: float | None = None
    started: bool = False
    backpressure: tuple[int, float] = field(default=(0, 0.0))


def arrived(
    endpoint: Endpoint = CHAT,
    *,
    pieces: list[bytes] | None = None,
    announced: int | None = None,
    headers: RawHeaders | None = None,
    method: str = "POST",
    path: str | None = None,
    query: str = "",
) -> Exchange:
    """An exchange whose head is here."""
    return Exchange(
        id="sl_test",
        endpoint=endpoint,
        method=method,
        path=path or "/" + endpoint.name,
        query=query,
        headers=headers if headers is not None else [(b"Content-Type", b"application/json")],
        client="127.0.0.1",
        body=ArrivedBody(pieces or [], announced),
        downstream=cast("Any", NoDownstream()),
    )


def principal(
    *, models: tuple[str, ...] = ("*",), endpoints: tuple[str, ...] = ("inference",), expires_s: float | None = None
) -> Principal:
    """A holder of `SECRET` on a plan."""
    plan = Plan("p", PatternTable(models), PatternTable(endpoints))
    return Principal("team-a", plan, digest_of(SECRET), expires_s)
