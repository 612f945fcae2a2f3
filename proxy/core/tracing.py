"""Traces as they cross the wire (W3C Trace Context), and spans as plain data.

https://www.w3.org/TR/trace-context-1/: `traceparent` names the trace, the span of whoever asks, and whether the trace
is recorded; `tracestate` belongs to the vendors and crosses as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from proxy.core.headers import RawHeaders

CONTEXT_HEADERS: Final = (b"traceparent", b"tracestate")

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1
# the share is taken of these bits of a trace's id, as OpenTelemetry's samplers do, so that all of them agree
_RATIO_BITS: Final = 64


class TraceContext(NamedTuple):
    """A place in a trace: the trace, a span of it, whether it is recorded, and what vendors carry along."""

    trace_id: int
    span_id: int
    is_sampled: bool
    state: bytes = b""

    def headers(self) -> RawHeaders:
        """What tells the next hop of it."""
        parent = b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, _SAMPLED if self.is_sampled else 0)
        return [(b"traceparent", parent), (b"tracestate", self.state)] if self.state else [(b"traceparent", parent)]


class Moment(NamedTuple):
    """One moment by two clocks: `at_s` is monotonic, in seconds, `unix_ns` UNIX time in nanoseconds."""

    at_s: float
    unix_ns: int

    def unix_ns_of(self, at_s: float) -> int:
        """The UNIX time of another moment."""
        return self.unix_ns + round((at_s - self.at_s) * 1e9)


class Span(NamedTuple):
    """One span that is over. Times are UNIX nanoseconds; `parent_id` 0: the trace begins here.

    `is_client`: it tells of a request that Sluice made, else of one that it served.
    """

    name: str
    is_client: bool
    span_id: int
    parent_id: int
    start_ns: int
    end_ns: int
    attributes: dict[str, str | int]
    first_byte_ns: int | None
    is_error: bool


def received_context(headers: RawHeaders) -> TraceContext | None:
    """The trace that a request belongs to; None without one, or where it is malformed (sections 3.2.2 and 4.3)."""
    parents = [value for name, value in headers if len(name) == 11 and name.lower() == b"traceparent"]
    if len(parents) != 1:
        return None
    match = _TRACEPARENT.fullmatch(parents[0].strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = b",".join(value for name, value in headers if len(name) == 10 and name.lower() == b"tracestate")
    return TraceContext(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED), state)


def is_sampled(trace_id: int, ratio: float) -> bool:
    """Whether a trace that begins here is among the `ratio` (0 to 1) that is recorded."""
    return trace_id & ((1 << _RATIO_BITS) - 1) < round(ratio * (1 << _RATIO_BITS))
