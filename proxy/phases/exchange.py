"""What the phases share: the exchange as it arrived, its timeline, and the two peers as protocols.

An `Exchange` holds what was fixed on arrival; nothing here is a bag that phases mutate. What a phase finds out, it
returns, and the next one takes it.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, get_args

import msgspec

from proxy.core.discreet import as_repr
from proxy.core.headers import first_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.core.ending import StreamShape
    from proxy.core.headers import RawHeaders
    from proxy.phases.tracing import Trace


Treatment = Literal["metered", "inference", "models", "stateful"]
"""What Sluice does with the requests of an endpoint.

metered: the body is read, for model route, quotas and tokens. inference: the body is streamed, and routed by `model`
where it has one. models: answered by Sluice. stateful: there is state at the upstream, shared by all holders of its
key, and so it is only for whose plan says so.
"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the route table. `name` is the path under `/v1`, and the label in logs and metrics."""

    name: str
    treatment: Treatment
    shape: StreamShape


def new_exchange_id() -> str:
    """What `x-sluice-id` says and the log line has. The time comes first, so that rows of the ledger stay in order."""
    unlike = random.getrandbits(64)  # ids are no secrets: they must only differ
    return f"sl_{time.time_ns() // 1_000_000:011x}{unlike:016x}"


Phase = Literal["authenticate", "admit", "route", "queue", "forward", "relay", "settle", "done"]
"""Where an exchange stands; the words of the log line and of the metrics."""
PHASES: Final[tuple[Phase, ...]] = get_args(Phase)


class Timeline:
    """When the phases began, on the monotonic clock. A phase may be entered again."""

    __slots__ = ("_entered", "arrived_s")

    def __init__(self) -> None:
        now_ns = time.perf_counter_ns()
        self.arrived_s = now_ns / 1_000_000_000  # the request's head was there
        self._entered: list[tuple[Phase, int]] = [("authenticate", now_ns)]

    @property
    def phase(self) -> Phase:
        """The one under way."""
        return self._entered[-1][0]

    def enter(self, phase: Phase) -> None:
        """Note that `phase` begins now, or goes on if it is under way."""
        self._entered.append((phase, time.perf_counter_ns()))

    def passed(self) -> tuple[dict[Phase, float], float | None]:
        """How long each phase took that has ended, and the overhead, in seconds.

        The phases are in the order in which they were first entered, to the microsecond, and none is rounded up. The
        overhead is the time in Sluice before the request first went upstream, the queue aside; None if it never did.
        """
        spent_s: dict[Phase, float] = {}
        overhead_s: float | None = None
        phase, since_ns = self._entered[0]
        arrived_ns = since_ns
        for entered, now_ns in self._entered[1:]:
            seconds = (now_ns - since_ns) // 1000 / 1_000_000
            spent_s[phase] = round(spent_s[phase] + seconds, 6) if phase in spent_s else seconds
            if entered == "forward" and overhead_s is None:
                overhead_s = (now_ns - arrived_ns) / 1_000_000_000 - spent_s.get("queue", 0)
            phase, since_ns = entered, now_ns
        return spent_s, overhead_s


class RequestBody(Protocol):
    """The request body as it comes in."""

    @property
    def content_length(self) -> int | None:
        """What the client said, in bytes; None for a chunked body."""

    @property
    def is_empty(self) -> bool:
        """No body is announced at all."""

    @property
    def received_bytes(self) -> int:
        """How much of it was read so far."""

    def take_whole(self) -> bytes | None:
        """All of the body where it is there and nothing of it was read; else None, and `read` gives it in pieces."""

    async def read(self) -> bytes:
        """The next bytes, b"" at the end.

        Raises `ProxyError` when the client is too slow or its framing is broken, `ConnectionError` when it has left.
        """


class Sink(Protocol):
    """Takes bytes, and does not wait."""

    def write(self, data: bytes) -> None:
        """Send `data`, or keep what cannot be sent at once."""


class Downstream(Protocol):
    """The client's side of an exchange."""

    @property
    def started(self) -> bool:
        """The head went out: the commit point is passed."""

    @property
    def first_byte_s(self) -> float | None:
        """When the first body byte was written, by `time.perf_counter`."""

    @property
    def backpressure(self) -> tuple[int, float]:
        """How often a write had to wait for the client, and for how many seconds in all."""

    @property
    def sent_bytes(self) -> int:
        """Body bytes written so far; of what flows, those that were told."""

    def start(self, status: int, headers: RawHeaders, content_length: int | None) -> None:
        """Pass the commit point; the head goes out with the first bytes, or by `send_head`.

        Without a length the body is chunked (until EOF for an HTTP/1.0 client).
        """

    def send_head(self) -> None:
        """Send the head now, if it is not out."""

    async def write(self, data: bytes) -> None:
        """Write `data` in one piece, then wait while the client's buffer is above its high-water mark.

        Raises `ConnectionError` when the client has left.
        """

    @property
    def is_direct(self) -> bool:
        """`write_now` does where its answer is heeded: the head was made, and the body is chunked."""

    def write_now(self, data: bytes) -> bool:
        """Write `data` in one piece, and do not wait; false if the client must read before more is written.

        Raises `ConnectionError` when the client has left.
        """

    def flow(self, on_full: Callable[[], object]) -> Sink:
        """Where whole chunks (RFC 9112 section 7.1) may be given to, behind others, until `end_flow`.

        `on_full` is called, from within that, when the client must read before more is written. Raises
        `ConnectionError` when the client has left; if it leaves later, what is written is lost.
        """

    def end_flow(self) -> None:
        """No more chunks flow."""

    def flowed(self, body_bytes: int, chunk_bytes: int) -> None:
        """Chunks flowed, of so many bytes without their framing and with it."""

    def write_comment(self, data: bytes) -> None:
        """Write what is no part of the upstream's answer, without waiting: between events of a silent stream."""

    @property
    def is_full(self) -> bool:
        """Something was written that the client's kernel did not take."""

    async def drain(self) -> None:
        """Wait while `is_full`. Raises `ConnectionError` when the client has left."""

    async def finish(self) -> None:
        """End the body well, and wait until the client's kernel has all of it."""

    def cut(self) -> None:
        """End the connection without ending the body, so that no client takes it for whole."""

    def abort(self) -> None:
        """Drop the connection at once, with what was not sent yet."""

    @property
    def is_waiting(self) -> bool:
        """A write waits for the client to read."""

    def acknowledged_bytes(self) -> int | None:
        """A count that grows whenever the client's side accepts bytes; None when nothing is outstanding."""


class Exchange(msgspec.Struct, eq=False):
    """One request and its response, as fixed on arrival."""

    id: str
    endpoint: Endpoint
    method: str
    path: str  # under the base URL, raw, with a leading slash
    query: str  # raw, without the question mark
    headers: RawHeaders
    client: str
    body: RequestBody
    downstream: Downstream
    timeline: Timeline = msgspec.field(default_factory=Timeline)
    trace: Trace | None = None
    first: dict[bytes, bytes] = msgspec.field(default_factory=dict)  # the first value of each header, in lower case

    def __post_init__(self) -> None:
        self.first = first_values(self.headers)

    def __repr__(self) -> str:
        # the query and the headers may hold credentials
        return f"Exchange({self.id}, {self.method} {self.path})"

    __rich_repr__ = as_repr
