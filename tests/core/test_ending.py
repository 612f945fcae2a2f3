"""An answer that ends without its last events is told from one that is finished."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.ending import EndingWatch, StreamShape, until_hidden_error
from proxy.core.sse import MAX_EVENT_BYTES, EventScanner

DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"This"},"logprobs":null,"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
ERROR = b'data: {"error":{"message":"The server had an error","type":"server_error","param":null,"code":null}}\n\n'
CREATED = (
    b'event: response.created\ndata: {"type":"response.created",'
    b'"response":{"status":"in_progress","error":null,"usage":null},"sequence_number":0}\n\n'
)
COMPLETED = (
    b'event: response.completed\ndata: {"type":"response.completed",'
    b'"response":{"status":"completed","error":null,"usage":{}},"sequence_number":12}\n\n'
)


def watched(shape: StreamShape, *blocks: bytes) -> EndingWatch:
    watch = EndingWatch(shape)
    for block in blocks:
        watch.saw(block)
    return watch


def nothing_seen(watch: EndingWatch) -> bool:
    return not any((watch.finish_seen, watch.error_seen, watch.hidden_error_seen))


def test_a_chat_without_finish_reason_and_done_is_truncated() -> None:
    watch = watched("chat", DELTA, DELTA)
    assert watch.truncated(done=False)
    assert not watch.truncated(done=True)
    assert nothing_seen(watch)


@pytest.mark.parametrize(
    "block",
    [
        STOP,
        DELTA + STOP,
        STOP.replace(b'"finish_reason":"', b'"finish_reason" : "'),
        STOP.replace(b"\n", b"\r\n"),
        b'data: {"choices":[{"index":0,"finish_reason":null},{"index":1,"finish_reason":"length"}]}\n\n',
        b'data: {"choices":[{"text":"","finish_reason":"stop"}]}\n\n',
    ],
)
def test_a_finish_reason_ends_a_chat(block: bytes) -> None:
    watch = watched("chat", DELTA, block, DELTA)
    assert watch.finish_seen
    assert not watch.truncated(done=False)


@pytest.mark.parametrize("value", ["null", '""', "0"])
def test_a_finish_reason_that_says_nothing_is_none(value: str) -> None:
    watch = watched("chat", DELTA.replace(b"null}", value.encode() + b"}"))
    assert watch.truncated(done=False)


@given(st.text(), st.sampled_from(['"finish_reason":"stop"', '"error":{"message":"x"}', '\n\nerror: {"a":1}\n\n', ""]))
def test_nothing_a_model_writes_looks_like_an_ending(text: str, told: str) -> None:
    """Content is a JSON string, so its quotes and line ends are escaped."""
    for content in (told + text, json.dumps({"x": told + text}), text + told):
        chunk = {"choices": [{"delta": {"content": content}, "finish_reason": None}]}
        for ensure_ascii in (True, False):
            data = json.dumps(chunk, ensure_ascii=ensure_ascii).encode()
            watch = watched("chat", b"data: " + data + b"\n\n")
            assert nothing_seen(watch)


@pytest.mark.parametrize("shape", ["chat", "responses"])
@pytest.mark.parametrize(
    "data",
    [
        b'{"error":{"message":"x"}}',
        b'{"error":"boom"}',
        b'{"choices":[],"error": {"message":"x"}}',
        b'{"error":{"message":"cut emoji \\ud83d"}}',
    ],
)
def test_an_upstream_that_says_it_failed_ends_honestly(shape: StreamShape, data: bytes) -> None:
    watch = watched(shape, b"event: error\ndata: " + data + b"\n\n")
    assert watch.error_seen
    assert not watch.truncated(done=False)


@pytest.mark.parametrize("shape", ["chat", "responses"])
@pytest.mark.parametrize(
    "data",
    [
        b'{"error":null}',
        b'{"error" : null,"choices":[]}',
        b'{"error":""}',
        b'{"error":{}}',
        b'{"response":{"output":[{"type":"mcp_call","error":{"type":"http_error"}}]}}',
        b"[]",
        b'["error"]',
        b'"error"',
        b'{"error":{"message":"cut',
        b'{"error":' + b"[" * 100_000,
    ],
)
def test_what_clients_do_not_raise_is_no_error(shape: StreamShape, data: bytes) -> None:
    watch = watched(shape, b"data: " + data + b"\n\n")
    assert not watch.error_seen
    assert watch.truncated(done=False)


def test_a_flat_error_event_is_an_ending_of_a_response_only() -> None:
    """On chat no SDK raises it (protocol.md section 2.2), so it would look like a finished answer."""
    flat = b'event: error\ndata: {"type":"error","code":"x","message":"y","sequence_number":5}\n\n'
    assert watched("responses", CREATED, flat).error_seen
    assert watched("chat", DELTA, flat).truncated(done=False)


@pytest.mark.parametrize(
    ("hidden", "passes"),
    [
        (b"error: {}\n\n", b""),
        (b"id: 1\rerror: {}\r\r", b"id: 1\r"),
        (b'data: [{"error":{"code":503}}]\n\n', None),
        (b'data: {"object":"error","message":"internal","code":"3700"}\r\n\r\n', None),
        (b'event: x\ndata: { "object" : "error" }\n\n', None),
    ],
)
def test_an_error_that_no_sdk_raises_is_noticed_and_nothing_behind_it_is_sent(
    hidden: bytes, passes: bytes | None
) -> None:
    block = DELTA + hidden + b"data: [DONE]\n\n"
    watch = watched("chat", block)
    assert watch.hidden_error_seen
    assert not watch.error_seen
    shown = DELTA + (hidden if passes is None else passes)
    assert until_hidden_error(block) == shown
    assert until_hidden_error(b"data: [DONE]\n\n" + block) == b"data: [DONE]\n\n" + shown


@pytest.mark.parametrize("block", [b"error: {}\n\n", DELTA + b"error:x\n\n", b"id: 1\rerror: {}\r\r"])
def test_an_error_field_line_is_noticed(block: bytes) -> None:
    watch = watched("chat", block)
    assert watch.hidden_error_seen
    assert not watch.error_seen


def test_a_field_whose_name_only_ends_in_error_is_none() -> None:
    assert not watched("chat", b"xerror: {}\n\n", b": error: no\n\n").hidden_error_seen


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed", "cancelled"])
def test_a_response_ends_with_its_terminal_event(kind: str) -> None:
    watch = watched("responses", CREATED, COMPLETED.replace(b"completed", kind.encode()))
    assert watch.finish_seen
    assert not watch.truncated(done=False)


def test_a_response_without_terminal_event_is_truncated_even_after_done() -> None:
    watch = watched("responses", CREATED, b'data: {"type":"response.output_text.done"}\n\n', STOP)
    assert watch.truncated(done=True)
    assert watch.truncated(done=False)


def test_the_last_sequence_number_outlives_events_without_one() -> None:
    watch = EndingWatch("responses")
    assert watch.last_sequence_number is None
    watch.saw(CREATED)
    assert watch.last_sequence_number == 0
    watch.saw(COMPLETED + b": ping\n\n")
    watch.saw(b": ping\n\n")
    assert watch.last_sequence_number == 12
    watch.saw(b'data: {"sequence_number":"none"}\n\n')
    assert watch.last_sequence_number is None


def test_other_streams_are_never_truncated_and_not_looked_at() -> None:
    watch = watched("other", STOP, ERROR)
    assert nothing_seen(watch)
    assert not watch.truncated(done=False)


def test_no_bytes_say_nothing() -> None:
    assert watched("chat", b"").truncated(done=False)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_what_is_split_over_the_fragments_of_an_oversize_event_is_found(size: int) -> None:
    """Fed through the scanner, with white space in the way, at every phase of the split."""
    padding = b'"x":"' + b"x" * MAX_EVENT_BYTES + b'",'
    for phase in range(min(size, 40)):
        tail = padding[:phase] and b'"y":' + b"1" * phase + b","
        chat = b"data: {" + padding + tail + b'"choices":[{"finish_reason" :  "stop"}]}\n\n'
        response = b"data: {" + padding + tail + b'"type": "response.completed" , "sequence_number" : 1234567}\n\n'
        assert through_the_scanner("chat", chat, size).finish_seen
        watch = through_the_scanner("responses", response, size)
        assert (watch.finish_seen, watch.last_sequence_number) == (True, 1234567)


def through_the_scanner(shape: StreamShape, stream: bytes, size: int) -> EndingWatch:
    watch, scanner = EndingWatch(shape), EventScanner()
    watch.saw(scanner.feed(stream[: MAX_EVENT_BYTES + 1]))
    for at in range(MAX_EVENT_BYTES + 1, len(stream), size):
        watch.saw(scanner.feed(stream[at : at + size]))
    return watch


def test_a_fragment_does_not_begin_a_line() -> None:
    """What looks like an error field at the start of a fragment is inside the oversize line."""
    oversize = b'data: {"x":"' + b"x" * MAX_EVENT_BYTES
    watch = watched("chat", oversize, b'error: "}\n\n', DELTA)
    assert not watch.hidden_error_seen
    watch = watched("chat", oversize, b'"}\nerr', b"or: x\n\n")
    assert watch.hidden_error_seen


@pytest.mark.parametrize("error", [b'error: {"code":500}\n\n', b'data: {"object":"error"}\n\n'])
def test_what_stands_behind_a_hidden_error_says_nothing(error: bytes) -> None:
    """It is not sent: a response that counted as finished would break off without a word."""
    for behind in (COMPLETED, ERROR):
        watch = watched("responses", CREATED + error + behind)
        assert (watch.hidden_error_seen, watch.finish_seen, watch.error_seen) == (True, False, False)
        assert watch.last_sequence_number == 0
    for blocks in ((COMPLETED + error,), (COMPLETED, error)):
        watch = watched("responses", *blocks)
        assert (watch.hidden_error_seen, watch.finish_seen, watch.last_sequence_number) == (True, True, 12)
