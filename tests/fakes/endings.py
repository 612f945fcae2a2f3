"""What a client, a log line and the metrics must say of an answer that did not end well (promise 5)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fakes.client import Answer
    from tests.fakes.line import Line
    from tests.fakes.raw_upstream import RawPeer


def end(peer: RawPeer, how: str) -> None:
    """The upstream ends its connection: `fin` or `rst`."""
    if how == "rst":
        peer.reset()
    else:
        peer.close()


async def recorded(way: Line, outcome: str, *, status: int = 200, **fields: Any) -> dict[str, Any]:
    """The log line and the request's metric say how it ended and whose fault it was."""
    exchange = await way.proxy.exchange()
    assert exchange["outcome"] == outcome
    assert exchange["status"] == status
    assert exchange.get("blame") == (None if outcome == "ok" else "upstream")
    assert {name: exchange.get(name) for name in fields} == fields
    labels = {"key": "team-a", "model": "*", "endpoint": exchange["endpoint"]}
    labels |= {"outcome": outcome, "status": str(status)}
    assert way.proxy.sample("sluice_requests_total", **labels) == 1
    assert way.proxy.total("sluice_requests_total") == 1
    return exchange


def assert_told(answer: Answer, sent: bytes, code: str) -> None:
    """Status 200, what the upstream sent in whole events, an error event, `[DONE]`, and a proper end."""
    assert answer.status == 200
    assert answer.whole
    assert answer.body.startswith(sent)
    events = answer.body[len(sent) :].split(b"\n\n")
    assert events[1:] == [b"data: [DONE]", b""]
    assert events[0].startswith(b"data: ")
    error = json.loads(events[0][6:])["error"]
    assert error == {"message": error["message"], "type": "server_error", "param": None, "code": code}
    assert error["message"]


def assert_cut(answer: Answer, sent: bytes) -> None:
    """All that was sent and then no end: every client raises."""
    assert answer.status == 200
    assert answer.body == sent
    assert not answer.whole


def assert_envelope(answer: Answer, status: int, code: str) -> None:
    assert answer.status == status
    assert answer.whole
    assert answer.header("content-type") == "application/json"
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert (answer.error["type"], answer.error["code"]) == ("server_error", code)
    assert answer.error["message"]


async def rest(way: Line, answer: Answer) -> bytes:
    """Read to the end of the answer, or of the connection."""
    before = len(answer.body)
    try:
        while await way.piece(answer):
            pass
    except (asyncio.IncompleteReadError, ConnectionError):
        assert not answer.whole
    return answer.body[before:]
