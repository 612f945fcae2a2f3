"""What every refusal has in common: OpenAI's envelope, its headers, and a proxy that goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.fakes.client import RecordingClient

if TYPE_CHECKING:
    from tests.fakes.answering import AnsweringUpstream
    from tests.fakes.client import Answer
    from tests.fakes.running import Running

# part of whatever bad input a test sends: it must not show up in the log
MARK = "zq7marker"
GOOD: dict[str, Any] = {"model": "gpt-test", "messages": [{"role": "user", "content": "Hello"}]}


@dataclass(frozen=True)
class Row:
    """A row of the error table, as a client sees it."""

    status: int
    code: str | None = None
    param: str | None = None
    type: str = "invalid_request_error"


def assert_refused(answer: Answer, row: Row) -> None:
    """The answer is this row of the table: status, envelope, content type and ids."""
    assert answer.whole, "the answer was cut"
    assert answer.status == row.status
    assert answer.header("content-type") == "application/json"
    error = answer.error
    assert list(answer.json) == ["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert (error["type"], error["code"], error["param"]) == (row.type, row.code, row.param)
    assert MARK not in error["message"]
    ids = [answer.header("x-request-id"), answer.header("x-sluice-id")]
    assert ids[0] == ids[1]
    assert ids[0] is not None
    assert ids[0].startswith("sl_")
    assert answer.header("server") == "sluice"
    assert answer.header("transfer-encoding") is None


async def raw_answer(port: int, request: bytes) -> Answer:
    """Send bytes on a connection of their own; the first answer to them."""
    async with await RecordingClient.connect(port) as client:
        client.writer.write(request)
        return await client.answer()


async def assert_serves(proxy: Running, upstream: AnsweringUpstream, client: RecordingClient | None = None) -> None:
    """The next request works: on `client`, the same connection, or on a new one."""
    if client is None:
        async with await RecordingClient.connect(proxy.port) as fresh:
            await assert_serves(proxy, upstream, fresh)
        return
    seen = len(upstream.requests)
    answer = await client.ask("POST", "/v1/chat/completions", GOOD)
    assert answer.status == 200
    assert len(upstream.requests) == seen + 1


def assert_not_logged(proxy: Running, *secrets: str) -> None:
    """Nothing of the input is in the log."""
    for text in (MARK, *secrets):
        assert text not in proxy.log_text
