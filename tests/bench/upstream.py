"""An OpenAI-compatible upstream that costs little: `python -m tests.bench.upstream [PORT]` prints where it listens.

`sluice simulate` puts clarity before speed; this one shall never be what is measured. The prompt says how to
answer: `mock-EVENTS-INTERVAL` streams so many events, one every INTERVAL microseconds (0: all at once), `mock-silent`
one event and then nothing, `mock-flood` as much as is read, `mock-error` a 500. Without `stream` all answer one object.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Final, cast

import uvloop

HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"x-request-id: req_bench\r\nopenai-processing-ms: 12\r\nTransfer-Encoding: chunked\r\n\r\n"
)
BEGIN: Final = (
    b'data: {"id":"chatcmpl-BENCH0000000000000000000000","object":"chat.completion.chunk","created":1763600000,'
    b'"model":"mock","service_tier":"default","system_fingerprint":"fp_0123456789","choices":['
)
FLOOD_EVENTS_AT_ONCE: Final = 64


def chunk(data: bytes) -> bytes:
    """One chunk frame."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(choices: bytes, usage: bytes) -> bytes:
    """One event in its chunk frame."""
    return chunk(BEGIN + choices + b"]" + usage + b"}\n\n")


def delta(usage: bytes) -> bytes:
    """An event with a piece of text."""
    return event(b'{"index":0,"delta":{"content":" stream"},"logprobs":null,"finish_reason":null}', usage)


def ending(events: int, *, tells_usage: bool) -> bytes:
    """What follows the last piece of text."""
    null = b',"usage":null' if tells_usage else b""
    parts = [event(b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}', null)]
    if tells_usage:
        parts.append(
            event(
                b"",
                b',"usage":{"prompt_tokens":10,"completion_tokens":%d,"total_tokens":%d}' % (events, 10 + events),
            )
        )
    return b"".join([*parts, chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"])


def whole(status: bytes, body: bytes) -> bytes:
    """An answer that is not streamed."""
    return (
        b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nx-request-id: req_bench\r\nContent-Length: %d\r\n\r\n%b"
        % (status, len(body), body)
    )


DELTAS: Final = {False: delta(b""), True: delta(b',"usage":null')}
ENDINGS: Final[dict[tuple[int, bool], bytes]] = {}
ANSWER: Final = whole(
    b"200 OK",
    b'{"id":"chatcmpl-BENCH","object":"chat.completion","created":1763600000,"model":"mock","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"hello from the bench upstream","refusal":null},"logprobs":null,'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":8,"total_tokens":18},'
    b'"service_tier":"default","system_fingerprint":"fp_0"}',
)
ERROR: Final = whole(
    b"500 Internal Server Error", b'{"error":{"message":"as asked","type":"server_error","code":null}}'
)
MODELS: Final = whole(
    b"200 OK", b'{"object":"list","data":[{"id":"mock","object":"model","created":1,"owned_by":"bench"}]}'
)
MODEL: Final = re.compile(rb"mock-(?:(?P<events>\d+)-(?P<interval_us>\d+)|(?P<word>silent|flood|error))")
CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Upstream(asyncio.Protocol):
    """One connection, which stays open for further requests. Requests that are framed in chunks are not understood."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._input = b""
        self._timer: asyncio.TimerHandle | None = None
        self._left = self._events = 0
        self._interval_s = self._due_s = 0.0
        self._tells_usage = self._floods = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._floods = False
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._input += data
        while (head_end := self._input.find(b"\r\n\r\n")) >= 0:
            head_end += 4
            length = CONTENT_LENGTH.search(self._input, 0, head_end)
            end = head_end + (int(length[1]) if length else 0)
            if len(self._input) < end:
                return
            body, self._input = self._input[head_end:end], self._input[end:]
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        asked = MODEL.search(body)
        streams = b'"stream":true' in body or b'"stream": true' in body
        if not body:
            self._transport.write(MODELS)
        elif asked is not None and asked["word"] == b"error":
            self._transport.write(ERROR)
        elif asked is None or not streams:
            self._transport.write(ANSWER)
        else:
            self._tells_usage = b'"include_usage":true' in body or b'"include_usage": true' in body
            self._stream(asked)

    def _stream(self, asked: re.Match[bytes]) -> None:
        one = DELTAS[self._tells_usage]
        if asked["word"] == b"silent":
            self._transport.write(HEAD + one)
        elif asked["word"] == b"flood":
            self._transport.write(HEAD)
            self._floods = True
            self.resume_writing()
        else:
            self._events = self._left = int(asked["events"])
            self._interval_s = int(asked["interval_us"]) / 1e6
            self._transport.write(HEAD)
            if self._interval_s:
                self._due_s = self._loop.time() + self._interval_s
                self._timer = self._loop.call_at(self._due_s, self._next)
                return
            for _ in range(self._left):  # each by itself, as it would leave a model server
                self._transport.write(one)
            self._end()

    def _next(self) -> None:
        self._transport.write(DELTAS[self._tells_usage])
        self._left -= 1
        if self._left:
            self._due_s += self._interval_s
            self._timer = self._loop.call_at(self._due_s, self._next)
        else:
            self._end()

    def _end(self) -> None:
        asked = self._events, self._tells_usage
        if asked not in ENDINGS:
            ENDINGS[asked] = ending(self._events, tells_usage=self._tells_usage)
        self._transport.write(ENDINGS[asked])

    def pause_writing(self) -> None:
        self._floods = False

    def resume_writing(self) -> None:
        # only a flood is ever paused: nothing else is larger than a transport's buffer
        self._floods = True
        while self._floods:
            self._transport.write(DELTAS[self._tells_usage] * FLOOD_EVENTS_AT_ONCE)


async def serve(port: int) -> None:
    """Serve until the process ends."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
