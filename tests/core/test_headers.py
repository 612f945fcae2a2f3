"""Which headers cross: nothing of the client's or the operator's identity, and everything an SDK shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.headers import (
    CORS_EXPOSED,
    CORS_REQUEST_HEADERS_FLOOR,
    RULES,
    Crossing,
    RawHeaders,
    Stop,
    first_values,
    header,
    plain_type,
    to_downstream,
)

Cross = Callable[[RawHeaders], RawHeaders]

to_upstream = Crossing(Stop.REQUEST | Stop.CREDENTIAL).of
to_upstream_with_credentials = Crossing(Stop.REQUEST).of


def raw(*names: str) -> RawHeaders:
    return [(name.encode(), b"value") for name in names]


KEPT_ON_REQUESTS = raw(
    "Accept", "Content-Type", "Content-Encoding", "User-Agent", "OpenAI-Beta", "X-Stainless-Lang",
    "x-stainless-retry-count", "Idempotency-Key", "X-Client-Request-Id", "traceparent", "tracestate", "HTTP-Referer",
    "X-Title", "Via", "CDN-Loop", "Range", "If-None-Match", "x-anything-else",
)  # fmt: skip
STOPPED_ON_REQUESTS = raw(
    "Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "TE", "Trailer", "Upgrade",
    "HTTP2-Settings", "Proxy-Authorization", "Proxy-Connection", "Expect", "Accept-Encoding", "Cookie", "Forwarded",
    "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "True-Client-IP", "CF-Connecting-IP", "cf-ray",
    "X-Envoy-Upstream-Rq-Timeout-Ms", "Origin", "Access-Control-Request-Headers", "x-sluice-id",
)  # fmt: skip
CREDENTIALS = raw("Authorization", "api-key", "X-Api-Key", "OpenAI-Organization", "OpenAI-Project")
KEPT_ON_RESPONSES = raw(
    "Content-Type", "Content-Encoding", "Content-Disposition", "x-request-id", "request-id", "openai-processing-ms",
    "openai-version", "retry-after", "retry-after-ms", "x-should-retry", "Cache-Control", "ETag", "Vary",
    "X-Content-Type-Options", "apim-request-id", "x-ms-region", "x-anything-else",
)  # fmt: skip
STOPPED_ON_RESPONSES = raw(
    "Set-Cookie", "Set-Cookie2", "Alt-Svc", "Strict-Transport-Security", "Server", "Date", "CF-RAY", "cf-cache-status",
    "NEL", "Report-To", "Reporting-Endpoints", "Access-Control-Allow-Origin", "access-control-expose-headers",
    "openai-organization", "openai-project", "x-ratelimit-limit-requests", "x-ratelimit-reset-tokens_usage_based",
    "anthropic-ratelimit-requests-limit", "anthropic-organization-id", "Via", "x-envoy-upstream-service-time",
    "x-openai-proxy-wasm", "x-ms-deployment-name", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive",
    "Trailer", "Upgrade", "Proxy-Authenticate", "X-Accel-Redirect", "X-Accel-Buffering", "x-litellm-key-spend",
    "llm_provider-set-cookie", "x-sluice-id",
)  # fmt: skip


def test_requests_keep_what_upstreams_read_and_lose_what_speaks_of_this_hop() -> None:
    mixed = [pair for both in zip(KEPT_ON_REQUESTS, STOPPED_ON_REQUESTS, strict=False) for pair in both]
    assert to_upstream(mixed) == KEPT_ON_REQUESTS
    assert to_upstream(STOPPED_ON_REQUESTS) == []


def test_the_client_s_credential_crosses_only_where_the_route_asks_for_it() -> None:
    assert to_upstream(CREDENTIALS) == []
    assert to_upstream_with_credentials(CREDENTIALS) == CREDENTIALS
    assert to_upstream_with_credentials(STOPPED_ON_REQUESTS) == []


def test_responses_keep_what_sdks_show_and_lose_what_names_the_account() -> None:
    assert to_downstream(KEPT_ON_RESPONSES) == KEPT_ON_RESPONSES
    assert to_downstream(STOPPED_ON_RESPONSES) == []


@pytest.mark.parametrize("cross", [to_upstream, to_downstream])
def test_headers_that_connection_names_stop_here(cross: Cross) -> None:
    received = [
        (b"Content-Type", b"application/json"),
        (b"connection", b"keep-alive, Content-Type"),
        (b"X-Hop", b"1"),
        (b"X-End", b"2"),
        (b"Connection", b" , x-HOP"),
    ]
    assert cross(received) == [(b"X-End", b"2")]


def test_connection_cannot_remove_what_is_added_later() -> None:
    received = [(b"Connection", b"authorization, via"), (b"Via", b"1.1 a"), (b"Authorization", b"Bearer client")]
    assert [*to_upstream(received), (b"authorization", b"Bearer ours")] == [(b"authorization", b"Bearer ours")]
    assert to_upstream_with_credentials(received) == []


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=12), st.binary(max_size=12))),
    st.sampled_from([to_upstream, to_downstream]),
)
def test_order_repetition_and_spelling_stay_and_names_are_judged_in_any_case(
    received: RawHeaders, cross: Cross
) -> None:
    crossed = cross(received)
    rest = iter(received)
    assert all(pair in rest for pair in crossed)
    upper = cross([(name.upper(), value) for name, value in received])
    assert [value for _, value in upper] == [value for _, value in crossed]


def crossing(received: RawHeaders, where: Stop, replaced: set[bytes]) -> RawHeaders:
    """What crosses, by the rules alone: nothing remembered, one look at each of them for each header."""
    named = {
        token.strip()
        for name, value in received
        if name.lower() == b"connection"
        for token in value.lower().split(b",")
    }
    named = named if named - {b"", b"keep-alive", b"close"} else set()
    patterns = [name for rule in RULES if rule.stop & where for name in rule.names]
    found = []
    for name, value in received:
        lower = name.lower()
        stops = any(
            lower.startswith(pattern[:-1]) if pattern.endswith(b"*") else lower == pattern for pattern in patterns
        )
        if not (stops or lower in replaced or lower in named):
            found.append((name, value))
    return found


NAMES = st.sampled_from(
    [name.replace(b"*", ending) for rule in RULES for name in rule.names for ending in (b"", b"x", b"-y")]
    + [b"connection", b"x-hop", b"close", b"content-type", b"x" * 65]
)
SPELLINGS = st.builds(lambda name, spell: spell(name), NAMES, st.sampled_from([bytes.lower, bytes.upper, bytes.title]))
VALUES = st.sampled_from([b"", b"keep-alive", b"Close", b"close", b"x-hop, close", b"Content-Type", b"\xff"])
CROSSINGS = [
    (Crossing(where, replaced).of, where, set(replaced))
    for where in (Stop.REQUEST | Stop.CREDENTIAL, Stop.REQUEST, Stop.RESPONSE)
    for replaced in ((), (b"x-hop", b"via"))
]


@given(st.lists(st.tuples(SPELLINGS | st.binary(min_size=1, max_size=3), VALUES)), st.sampled_from(CROSSINGS))
def test_what_is_remembered_of_names_changes_nothing(
    received: RawHeaders, cross: tuple[Cross, Stop, set[bytes]]
) -> None:
    assert cross[0](received) == crossing(received, *cross[1:])


def test_names_that_strangers_think_of_are_not_remembered_for_ever() -> None:
    subject = Crossing(Stop.REQUEST)
    for number in range(10_000):
        assert len(subject.of([(b"x-%d" % number, b""), (b"x-%0300d" % number, b""), (b"Cookie", b"")])) == 2
        assert len(subject._verdicts) <= 1024
    assert max(map(len, subject._verdicts)) <= 256


def test_every_rule_stops_something_says_why_and_is_spelled_as_the_lookup_needs() -> None:
    names = [(stop, name) for rule in RULES for stop in rule.stop for name in rule.names]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule.names
        assert len(rule.why) > 10
        for name in rule.names:
            assert name == name.lower()
            sample = [(name.replace(b"*", b"anything"), b"")]
            if rule.stop & Stop.RESPONSE:
                assert to_downstream(sample) == []
            if rule.stop & (Stop.REQUEST | Stop.CREDENTIAL):
                assert to_upstream(sample) == []


def test_header_is_the_first_of_its_name() -> None:
    received = [(b"X-One", b"1"), (b"x-two", b"2"), (b"X-TWO", b"3")]
    assert header(received, b"x-two") == b"2"
    assert header(received, b"x-twa") is None


@given(st.lists(st.tuples(SPELLINGS, VALUES)))
def test_first_values_are_what_header_finds(received: RawHeaders) -> None:
    first = first_values(received)
    assert first == {name.lower(): header(received, name.lower()) for name, _ in received}


def test_types_and_codings_are_read_in_any_case_and_without_parameters() -> None:
    events = (b"Content-type", b" Text/Event-Stream ; charset=utf-8")
    assert plain_type([events, (b"content-type", b"text/html")]) == b"text/event-stream"
    assert plain_type([]) == b""
    assert plain_type([events, (b"Content-Encoding", b" Identity ")]) == b"text/event-stream"
    assert plain_type([events, (b"Content-Encoding", b"")]) == b"text/event-stream"
    assert plain_type([events, (b"content-encoding", b"gzip")]) is None
    assert plain_type([(b"content-encoding", b"GZIP"), (b"Content-Encoding", b"identity")]) is None


def test_what_scripts_may_read_crosses_or_is_ours_and_what_sdks_send_is_allowed() -> None:
    ours = {"x-sluice-id"} | {name for name in CORS_EXPOSED if name.startswith("x-ratelimit-")}
    crossing = [name.encode().lower() for name in CORS_EXPOSED if name not in ours]
    assert [name for name, _ in to_downstream([(name, b"") for name in crossing])] == crossing
    assert {"authorization", "content-type", "user-agent", "x-stainless-retry-count"} <= set(CORS_REQUEST_HEADERS_FLOOR)
    assert all(name == name.lower() for name in (*CORS_EXPOSED, *CORS_REQUEST_HEADERS_FLOOR))
