"""Every error has the one shape that SDKs parse, and says whose fault it was and whether it may be repeated."""

from __future__ import annotations

import json

import pytest

from proxy.core import errors
from proxy.core.errors import (
    Blame,
    ErrorKind,
    ProxyError,
    Repeat,
    chat_error_event,
    envelope,
    error_object,
    responses_error_event,
)
from proxy.core.sse import Event, parse_events

KINDS = {name: value for name, value in vars(errors).items() if isinstance(value, ErrorKind)}
ERROR = ProxyError(errors.UPSTREAM_TIMEOUT, 'The upstream said "nothing".', param="model", retry_after_s=1.5)
SHAPE = {
    "message": 'The upstream said "nothing".',
    "type": "server_error",
    "param": "model",
    "code": "upstream_timeout",
}


def test_an_error_carries_what_is_told_and_what_is_decided_by_it() -> None:
    assert (ERROR.kind, ERROR.message, ERROR.param, ERROR.retry_after_s) == (
        errors.UPSTREAM_TIMEOUT, SHAPE["message"], "model", 1.5,
    )  # fmt: skip
    assert str(ERROR) == SHAPE["message"]
    assert repr(ERROR) == "ProxyError(upstream_timeout, 'The upstream said \"nothing\".')"


def test_the_envelope_has_all_four_members_even_where_they_are_null() -> None:
    bare = ProxyError(errors.BAD_REQUEST, "No.")
    assert json.loads(envelope(ERROR)) == {"error": SHAPE}
    assert json.loads(envelope(bare)) == {
        "error": {"message": "No.", "type": "invalid_request_error", "param": None, "code": None}
    }
    assert error_object(bare)["code"] is None


def test_the_chat_event_is_the_error_and_then_done() -> None:
    assert chat_error_event(ERROR).endswith(b"\n\n")
    error, done = parse_events(chat_error_event(ERROR))
    assert (error.type, json.loads(error.data)) == ("", {"error": SHAPE})
    assert done == Event("", b"[DONE]", None)


def test_the_responses_event_is_nested_and_numbered() -> None:
    assert responses_error_event(ERROR, 7).endswith(b"\n\n")
    [event] = parse_events(responses_error_event(ERROR, 7))
    assert event.type == "error"
    assert json.loads(event.data) == {"type": "error", "error": SHAPE, "sequence_number": 7}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_status_type_and_blame_agree(kind: ErrorKind) -> None:
    """4xx is the client's doing, 5xx is not; OpenAI names both sides by type."""
    theirs = 400 <= kind.status < 500
    assert 400 <= kind.status < 600
    assert theirs == (kind.blame is Blame.DOWNSTREAM)
    assert theirs == (kind.type != "server_error")
    assert kind.outcome.isidentifier()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_only_the_upstream_s_failures_may_be_repeated(kind: ErrorKind) -> None:
    has_time_left = kind is not errors.OUT_OF_TIME
    assert (kind.repeat is not Repeat.NEVER) == (kind.blame is Blame.UPSTREAM and has_time_left)


def test_what_never_reached_the_upstream_is_told_apart_from_what_may_have() -> None:
    assert errors.UPSTREAM_UNREACHABLE.repeat is Repeat.NOTHING_SENT
    assert errors.UPSTREAM_CONNECT_TIMEOUT.repeat is Repeat.NOTHING_SENT
    assert errors.UPSTREAM_TIMEOUT.repeat is Repeat.BY_POLICY
    assert errors.UPSTREAM_STALE.repeat is Repeat.STALE_CONNECTION
