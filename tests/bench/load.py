"""A load client that costs little and checks what it gets: every answer whole, every stream with all of its events."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY: Final = "sk-bench-0123456789abcdef"
PATIENCE_S: Final = 120.0


class LoadError(Exception):
    """An answer was not what it should have been."""


@dataclass(slots=True)
class Answer:
    """What came. `events` are blank lines of a stream; `is_whole` says that its framing ended as it should."""

    status: int = 0
    events: int = 0
    body_bytes: int = 0
    first_byte_s: float = 0.0
    is_whole: bool = False
    ends_in_newline: bool = False
    tail: bytes = b""


def payload(wish: str, *, stream: bool, key: str = KEY) -> bytes:
    """A request for a chat completion, as it goes over the wire; the `wish` is for the upstream, in the prompt.

    Routers that ask their upstreams what models they have know `mock` alone.
    """
    body = json.dumps({"model": "mock", "stream": stream, "messages": [{"role": "user", "content": f"Hi, {wish}!"}]})
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


class Caller(asyncio.Protocol):
    """One connection that asks one question after another.

    `leave_after` events it resets the connection; it stops reading for `pause_s` once an answer has begun.
    """

    def __init__(self, *, leave_after: int | None = None, pause_s: float = 0.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._leave_after = leave_after
        self._pause_s = pause_s
        self._waiting: asyncio.Future[Answer] | None = None
        self._early = b""  # a refusal may come before the question
        self.answer = Answer()
        self.is_lost = False

    @classmethod
    async def connect(cls, port: int, **how: Any) -> Caller:
        """Connect to the port on loopback."""
        _, caller = await asyncio.get_running_loop().create_connection(lambda: cls(**how), "127.0.0.1", port)
        return caller

    async def ask(self, request: bytes) -> Answer:
        """Send a request; its answer, which is not whole where the connection ended early."""
        self._waiting = self._loop.create_future()
        self.answer = Answer()
        self._parser = httptools.HttpResponseParser(self)
        self._asked_s = time.perf_counter()
        self._transport.write(request)
        waiting, early, self._early = self._waiting, self._early, b""
        if early:
            self.data_received(early)
        elif self.is_lost:
            self._done()
        return await waiting

    def close(self) -> None:
        """Hang up."""
        self.is_lost = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:
            self._early += data
            return
        self._parser.feed_data(data)
        left = self._leave_after
        if left is not None and self.answer.events >= left:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._done()

    def on_headers_complete(self) -> None:
        self.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        answer = self.answer
        if not answer.body_bytes:
            answer.first_byte_s = time.perf_counter() - self._asked_s
            if self._pause_s:
                self._transport.pause_reading()
                self._loop.call_later(self._pause_s, self._resume)
        answer.body_bytes += len(body)
        answer.events += body.count(b"\n\n") + (answer.ends_in_newline and body.startswith(b"\n"))
        answer.ends_in_newline = body.endswith(b"\n") and not body.endswith(b"\n\n")
        answer.tail = body if len(body) > 16 else answer.tail[-16:] + body

    def on_message_complete(self) -> None:
        self.answer.is_whole = True
        if not self._parser.should_keep_alive():
            self.is_lost = True
            self._transport.close()
        self._done()

    def _resume(self) -> None:
        if not self.is_lost:
            self._transport.resume_reading()

    def _done(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(self.answer)


@dataclass(frozen=True)
class Work:
    """A load: so many `requests`, so many `at_once`. `events` of an answer are checked; 0: it is no stream."""

    wish: str
    requests: int
    at_once: int
    events: int = 0

    def check(self, answer: Answer) -> None:
        """Raise `LoadError` unless the answer is what was asked for."""
        good = answer.status == 200 and answer.is_whole and answer.body_bytes
        if self.events:  # and the finish reason, maybe the usage, and [DONE]
            good = good and self.events + 2 <= answer.events <= self.events + 3
            good = good and answer.tail.endswith(b"[DONE]\n\n")
        if not good:
            raise LoadError(f"{self.wish}: status {answer.status}, {answer.events} events, whole: {answer.is_whole}")


@dataclass
class Done:
    """What became of a load: `first_byte_s` of each answer, `events` with text in all."""

    first_byte_s: list[float]
    events: int


async def drive(port: int, work: Work, keys: tuple[str, ...] = (KEY,)) -> Done:
    """Do the work, the keys in turns. Raises `LoadError` on the first answer that is not as it should be."""
    requests = [payload(work.wish, stream=work.events > 0, key=key) for key in keys]
    numbers = iter(range(work.requests))
    done = Done([], 0)

    async def client(numbers: Iterator[int]) -> None:
        caller = await Caller.connect(port)
        try:
            for number in numbers:
                answer = await caller.ask(requests[number % len(requests)])
                work.check(answer)
                done.first_byte_s.append(answer.first_byte_s)
                done.events += work.events
        finally:
            caller.close()

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for _ in range(work.at_once):
            group.create_task(client(numbers))
    return done
