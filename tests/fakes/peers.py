"""The two peers of a relay without a socket: a stream that gives what it is told, a downstream that remembers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from proxy.core.headers import header
from proxy.phases.exchange import Endpoint, Exchange, Treatment
from proxy.upstream.framing import ResponseHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from proxy.core.ending import StreamShape
    from proxy.core.headers import RawHeaders
    from proxy.phases.exchange import RequestBody, Sink
    from proxy.phases.watchdog import Watchdog


class FakeStream:
    """An upstream's answer: its reads in order, then its end or `error`. Also stands in for the watchdog around it."""

    def __init__(
        self,
        reads: Iterable[bytes],
        *,
        status: int = 200,
        headers: RawHeaders | None = None,
        error: Exception | None = None,
    ) -> None:
        length = header(headers or [], b"content-length")
        self.head = ResponseHead(status, b"", headers or [], None if length is None else int(length))
        self.complete = False
        self.error = error
        self.aborted = False
        self.reads_done = 0
        self.hurried_s: float | None = None
        self.comment: Callable[[], None] | None = None
        self._reads = iter(reads)

    def read_nowait(self) -> bytes:
        """All that comes is waited for."""
        return b""

    async def read(self) -> bytes:
        data = next(self._reads, b"")
        self.reads_done += 1
        if not data and self.error is not None:
            raise self.error
        return data

    def abort(self) -> None:
        self.aborted = True

    def arm(self) -> None:
        """There is nothing to watch for."""

    def hurry(self, idle_s: float) -> None:
        self.hurried_s = idle_s

    def keep_alive(self, interval_s: float, send: Callable[[], None]) -> None:
        self.comment = send

    @property
    def watchdog(self) -> Watchdog:
        return cast("Watchdog", self)


class FakeDownstream:
    """Remembers what was written, each write by itself, and how it ended."""

    is_direct = False
    is_full = False
    first_byte_s = None
    backpressure = (0, 0.0)
    sent_bytes = 0

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.status: int | None = None
        self.headers: RawHeaders = []
        self.content_length: int | None = None
        self.ended: str | None = None  # finish, cut or abort
        self.is_waiting = False
        self.acknowledged: int | None = None
        self.flowing_bytes = self.flowing_body_bytes = 0  # not told of, with framing and without

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    @property
    def started(self) -> bool:
        return self.status is not None

    def start(self, status: int, headers: RawHeaders, content_length: int | None) -> None:
        self.status, self.headers, self.content_length = status, headers, content_length

    def send_head(self) -> None:
        """Nothing is held back here."""

    async def write(self, data: bytes) -> None:
        self.writes.append(data)

    def write_now(self, data: bytes) -> bool:
        self.writes.append(data)
        return not self.is_full

    def flow(self, on_full: Callable[[], object]) -> Sink:
        def write(chunks: bytes) -> None:
            if not self.write_now(b"".join(self._bodies(chunks))):
                on_full()

        return cast("Sink", SimpleNamespace(write=write))

    def _bodies(self, chunks: bytes) -> Iterator[bytes]:
        while chunks:
            line, _, rest = chunks.partition(b"\r\n")
            size = int(line, 16)
            self.flowing_bytes += len(line) + 2 + size + 2
            self.flowing_body_bytes += size
            assert rest[size : size + 2] == b"\r\n", chunks
            yield rest[:size]
            chunks = rest[size + 2 :]

    def end_flow(self) -> None:
        """Nothing is held here."""

    def flowed(self, body_bytes: int, chunk_bytes: int) -> None:
        self.flowing_bytes -= chunk_bytes
        self.flowing_body_bytes -= body_bytes

    def write_comment(self, data: bytes) -> None:
        self.writes.append(data)

    async def drain(self) -> None:
        """Nothing is held here."""

    async def finish(self) -> None:
        self.ended = "finish"

    def cut(self) -> None:
        self.ended = "cut"

    def abort(self) -> None:
        self.ended = "abort"

    def acknowledged_bytes(self) -> int | None:
        return self.acknowledged


def exchange(
    downstream: FakeDownstream,
    shape: StreamShape,
    *,
    treatment: Treatment = "metered",
    method: str = "POST",
) -> Exchange:
    """An exchange whose request does not matter."""
    endpoint = Endpoint("chat/completions", treatment, shape)
    body = cast("RequestBody", None)
    return Exchange("sl_1", endpoint, method, "/chat/completions", "", [], "127.0.0.1", body, downstream)
