"""Trace context: what is understood, what is passed on, and which traces are recorded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.core.tracing import Moment, TraceContext, is_sampled, received_context

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01".encode()

trace_ids = st.integers(1, 2**128 - 1)
span_ids = st.integers(1, 2**64 - 1)


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (GOOD, True),
        (GOOD[:-2] + b"00", False),
        (GOOD[:-2] + b"fe", False),
        (GOOD[:-2] + b"ff", True),
        (b" " + GOOD + b"\t", True),
        (b"cc" + GOOD[2:], True),
        (b"cc" + GOOD[2:] + b"-what.comes.later", True),
    ],
)
def test_a_parent_is_understood(value: bytes, sampled: bool) -> None:
    expected = TraceContext(int(TRACE, 16), int(SPAN, 16), sampled)
    assert received_context([(b"Accept", b"*/*"), (b"TraceParent", value)]) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        GOOD[:-1],
        GOOD + b"0",
        GOOD + b"-more",
        GOOD.upper(),
        b"ff" + GOOD[2:],
        b"cc" + GOOD[2:] + b"more",
        GOOD.replace(b"-", b"_"),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE}-{SPAN}-0x".encode(),
        f"00-{TRACE}-{SPAN}-01\n".encode() + b"\xff",
        "00-٤bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01".encode(),
    ],
)
def test_a_malformed_parent_is_none(value: bytes) -> None:
    assert received_context([(b"traceparent", value), (b"tracestate", b"a=b")]) is None


def test_two_parents_are_none() -> None:
    assert received_context([(b"traceparent", GOOD), (b"traceparent", GOOD)]) is None


def test_state_is_joined_and_passed_on_as_it_is() -> None:
    received = received_context([(b"tracestate", b"a=1,b=2"), (b"traceparent", GOOD), (b"Tracestate", b"odd \xff")])
    assert received is not None
    assert received.headers() == [(b"traceparent", GOOD), (b"tracestate", b"a=1,b=2,odd \xff")]


@given(trace_ids, span_ids, st.booleans())
def test_what_is_written_is_what_the_sdk_reads(trace_id: int, span_id: int, sampled: bool) -> None:
    headers = TraceContext(trace_id, span_id, sampled).headers()
    assert received_context(headers) == TraceContext(trace_id, span_id, sampled)
    carrier = {name.decode(): value.decode() for name, value in headers}
    (span,) = TraceContextTextMapPropagator().extract(carrier).values()
    context = span.get_span_context()  # type: ignore[attr-defined]  # a context holds anything
    assert (context.trace_id, context.span_id, bool(context.trace_flags)) == (trace_id, span_id, sampled)


@given(st.binary(max_size=80))
def test_no_value_is_too_odd(value: bytes) -> None:
    received = received_context([(b"traceparent", value)])
    assert received is None or received.trace_id


@given(trace_ids, st.floats(0, 1))
def test_the_sdk_samples_the_same(trace_id: int, ratio: float) -> None:
    decided = TraceIdRatioBased(ratio).should_sample(None, trace_id, "").decision
    assert is_sampled(trace_id, ratio) == (decided is Decision.RECORD_AND_SAMPLE)


@given(trace_ids)
def test_none_and_all(trace_id: int) -> None:
    assert (is_sampled(trace_id, 0.0), is_sampled(trace_id, 1.0)) == (False, True)


def test_a_moment_tells_the_time_of_others() -> None:
    moment = Moment(1_000.0, 1_700_000_000_000_000_000)
    assert moment.unix_ns_of(1_000.0) == 1_700_000_000_000_000_000
    assert moment.unix_ns_of(998.5) == 1_699_999_998_500_000_000
