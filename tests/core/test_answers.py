"""Whatever an upstream sends, what it used is read once and rightly, and the text is there if it never says."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import proxy.core.answer_body
import proxy.core.answers
from proxy.core.answer_body import MAX_BODY_BYTES, BodyAnswer
from proxy.core.answers import BATCH_BYTES, EventAnswer
from proxy.core.sse import MAX_EVENT_BYTES, EventScanner
from proxy.core.usage import Usage
from tests.fakes.recordings import DONE, RECORDINGS
from tests.fakes.usage_recordings import STREAMS, event, plain, said, typed

if TYPE_CHECKING:
    from proxy.core.answers import AnswerReader

# what the recordings of the relay's tests say, and the text of those that say nothing
USAGE = {
    "openai": Usage(12, 12),
    "crlf": Usage(12, 12),
    "cr": Usage(12, 12),
    "bom": Usage(12, 12),
    "responses": Usage(22, 6),
    "transcription": Usage(14, 0),
    "openrouter": Usage(9, 1),
    "gemini": Usage(4, 2),
    "groq": Usage(41, 2),
    "deepseek": Usage(4, 9),
    "mistral": Usage(5, 2),
    "together": Usage(1, 2),
    "vllm": Usage(5, 1),  # said in the middle
}
TEXTS = {
    "openai-n-2": ["one", "un"],
    "openai-tools": ['get_weather{"city":"L\u00e9on","finish_reason":"stop"}'],
    "completions": ["\n\nThis"],
    "azure": ["Hi"],
    "openrouter-error": [],
    "vllm": ["hm", "."],
    "ollama": ["Hm"],
    "llama.cpp": ["x"],
    "line-separators": ["a\u2028b\u2029c\x85d\x0be"],
    "split-utf8": ["\u4f60\u597d\uff0c\u4e16 \U0001f30a \xe9 \u2013 \U0001f469\u200d\U0001f467"],
}


def relayed(body: bytes, cuts: list[int] | None = None, *, ended: bool = True) -> EventAnswer:
    """Read a stream as the relay does: what the scanner releases, of reads that end at the cuts."""
    answer, scanner, at = EventAnswer(), EventScanner(), 0
    for cut in [*sorted(cuts or []), len(body)]:
        block = scanner.feed(body[at:cut]) if cut > at else b""
        at = max(at, cut)
        if block:
            answer.saw(block)
    if ended and (rest := scanner.finish()):
        answer.saw(rest)
    answer.finish()
    return answer


def whole(body: bytes, size: int = MAX_BODY_BYTES, *, input_only: bool = False) -> BodyAnswer:
    answer = BodyAnswer(input_only=input_only)
    for at in range(0, len(body), size):
        answer.saw(body[at : at + size])
    answer.finish()
    return answer


def findings(answer: AnswerReader) -> tuple[Any, ...]:
    found = answer.usage, answer.final
    return found if answer.final else (*found, answer.lost, answer.faults, answer.take_texts())


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_usage_of_every_recording(name: str) -> None:
    answer = relayed(RECORDINGS[name].body)
    assert answer.usage == USAGE.get(name)
    assert answer.final == (name in USAGE and name != "vllm")
    assert answer.faults == 0
    assert not answer.lost
    if name in TEXTS:
        assert answer.take_texts() == TEXTS[name]


@pytest.mark.parametrize("name", STREAMS)
def test_the_usage_of_every_stream_that_says_it(name: str) -> None:
    answer = relayed(STREAMS[name].body)
    assert answer.usage == STREAMS[name].usage
    assert answer.final == (STREAMS[name].usage is not None)
    assert answer.faults == 0


STREAM_BODIES = [recording.body for recording in RECORDINGS.values()] + [told.body for told in STREAMS.values()]
deltas = st.builds(said, st.text(max_size=400), index=st.integers(0, 2))
usages = st.builds(lambda n, m: said("", usage=plain(n, m)), st.integers(-1, 9), st.integers(0, 9))
odd = st.sampled_from(
    [
        b": comment\n\n",
        b"data: nonsense\n\n",
        b"event: x\r\ndata: {}\r\n\r\n",
        b'data: {"choices":null}\n\n',
        b'data: {"choices":[{"index":null,\ndata: "delta":{"content":"n"}}]}\n\n',
        said(None, "stop"),
        said("x" * 70_000, usage=plain(3, 4)),
        typed("response.output_text.done", text="y" * 66_000),
        typed("response.completed", response={"pad": "z" * 100_000, "usage": plain(7, 8)}),
        DONE,
    ]
)
streams = st.lists(deltas | usages | odd, max_size=60).map(b"".join)


@given(st.sampled_from(STREAM_BODIES) | streams, st.lists(st.integers(0, 120_000), max_size=20))
def test_it_does_not_matter_where_a_stream_is_cut(body: bytes, cuts: list[int]) -> None:
    assert findings(relayed(body, cuts)) == findings(relayed(body))


@pytest.mark.parametrize("body", STREAM_BODIES)
def test_byte_by_byte_is_as_whole(body: bytes) -> None:
    body = body[-3000:] if len(body) > 10_000 else body  # the image streams: their ends
    assert findings(relayed(body, list(range(len(body))))) == findings(relayed(body))


def test_a_stream_broken_off_has_the_text_of_what_was_seen() -> None:
    words = [f" w{n}" for n in range(500)]
    answer = relayed(b"".join(map(said, words)) + b'data: {"choices":[{"del', ended=False)
    assert answer.take_texts() == ["".join(words)]
    assert (answer.usage, answer.final, answer.lost, answer.faults) == (None, False, False, 0)


def test_text_may_be_taken_while_the_stream_goes_on() -> None:
    answer, taken = EventAnswer(), ""
    words = [f" w{n}" for n in range(2000)]
    for word in words:
        answer.saw(said(word))
        if answer.text_chars > 1000:
            taken += "".join(answer.take_texts())
            assert answer.text_chars == 0
    assert len(taken) > 5000
    answer.finish()
    assert taken + "".join(answer.take_texts()) == "".join(words)


@pytest.mark.parametrize(
    ("body", "final"),
    [
        (said("a", usage=plain(4, 1)), False),
        (said("a", usage=plain(4, 1)) + said("b"), False),
        (said("a", usage=plain(4, 1)) + said("b", "stop") + DONE, False),
        (said("a", usage=plain(4, 1)) + said(None, "stop") + DONE, True),
        (said("a", "stop", usage=plain(4, 1)), True),
        (said("a", "stop", usage=plain(4, 1)) + said("b", index=1), False),
        (said("a", index=1) + said("a", "stop", usage=plain(4, 1)), False),
        (said("a", index=1) + said("a", "stop") + said(None, "stop", 1) + event({"usage": plain(4, 1)}), True),
        (said("a", usage=plain(4, 1)) + DONE.replace(b"\n", b"\r\n"), True),
        (typed("response.in_progress", response={"usage": plain(4, 1)}), False),
        (typed("response.completed", response={"usage": plain(4, 1)}), True),
    ],
)
def test_usage_is_final_if_the_end_was_seen_and_no_output_behind_it(body: bytes, final: bool) -> None:
    for padding in (b"", b": x\n\n", b": x\n\n" * BATCH_BYTES):
        answer = relayed(padding + body)
        assert answer.usage == Usage(4, 1)
        assert answer.final is final


ECHO: Any = {"usage": {"input_tokens": 1, "output_tokens": 0}, "response": {"usage": plain(1, 0)}}
ECHOED: Any = {
    "tools": [{"type": "function", "parameters": {"properties": ECHO, **ECHO}}],
    "metadata": ECHO,
    "text": {"format": {"schema": ECHO, **ECHO}},
    "output": [{"content": [{"text": json.dumps(ECHO)}], **ECHO}],
}


@pytest.mark.parametrize("pad", ["", "x" * 100_000])
@pytest.mark.parametrize("usage", [None, plain(75, 1186)])
def test_a_client_cannot_say_what_it_used_by_having_it_echoed(pad: str, usage: Any) -> None:
    expected = None if usage is None else Usage(75, 1186)
    before, after = {"pad": pad, **ECHOED}, {**ECHOED, "instructions": pad}
    for body in ({**before, "usage": usage}, {"usage": usage, **after}):
        assert whole(json.dumps(body).encode()).usage == expected
        created = typed("response.created", response={**body, "usage": None}, sequence_number=0)
        end = typed("response.completed", sequence_number=1, response=body)
        answer = relayed(created + end, list(range(0, len(created + end), 5000)))
        assert answer.usage == expected
        assert not answer.lost


def test_an_oversize_event_with_output_is_lost() -> None:
    answer = relayed(said("a") + said("x" * MAX_EVENT_BYTES) + said("b"))
    assert answer.lost
    assert answer.faults == 0
    assert answer.take_texts() == ["ab"]


@pytest.mark.parametrize("pad", ["", "x" * 100_000])
@pytest.mark.parametrize("background", [True, False, None])
def test_a_stream_of_a_response_in_the_background_is_lost_until_it_is_whole(pad: str, background: bool | None) -> None:
    made = {"status": "in_progress", "background": background, "instructions": pad, "usage": None}
    body = typed("response.created", response=made) + typed("response.output_text.delta", delta="a")
    assert relayed(body).lost is (background is True)
    whole_body = body + typed("response.completed", response=made | {"usage": plain(4, 1)})
    assert (relayed(whole_body).usage, relayed(whole_body).final) == (Usage(4, 1), True)


def test_what_is_held_can_be_read_at_once() -> None:
    answer = EventAnswer()
    for block, final in ((said("a"), False), (said(None, "stop"), False), (said("", usage=plain(4, 1)), True)):
        answer.saw(block)
        assert not answer.final
        answer.catch_up()
        assert answer.final is final
    assert (answer.usage, answer.take_texts()) == (Usage(4, 1), ["a"])


def test_a_byte_order_mark_hides_no_event() -> None:
    assert relayed(b"\xef\xbb\xbf" + said("a")).take_texts() == ["a"]


@given(st.lists(st.binary(max_size=300) | st.sampled_from([b"data: {", b"}\n\n", b"\r\n", b"[" * 20_000]), max_size=20))
def test_any_bytes_do_and_little_is_held(chunks: list[bytes]) -> None:
    for answer, bound in ((EventAnswer(), BATCH_BYTES), (BodyAnswer(), MAX_BODY_BYTES)):
        for chunk in chunks:
            answer.saw(chunk)
            assert len(answer._held) <= bound
        answer.finish()
        answer.take_texts()


@pytest.mark.parametrize("reader", [EventAnswer, BodyAnswer])
def test_a_fault_in_here_is_counted_and_goes_no_further(
    reader: type[EventAnswer | BodyAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(proxy.core.answers, "read_events", fail)
    monkeypatch.setattr(proxy.core.answer_body, "read_json", fail)
    answer = reader()
    answer.saw(b'data: {"usage":{}}\n\n')
    answer.finish()
    assert (answer.usage, answer.lost, answer.faults) == (None, True, 1)


BLOCKS = {
    "deltas": [said("word " * 3)] * 4000,
    "tiny": [b"\n\n"] * 100_000,
    "image": [b'data: {"b64_json":"', *[b"A" * 16384] * 300, b'"}\n\n'],
    "endless": [b"x" * 16384] * 300,
    "choices": [said("a", index=n) for n in range(20_000)],
    "usage": [said("", usage=plain(1, n)) for n in range(5000)],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_memory_is_bounded(name: str) -> None:
    answer = EventAnswer()
    tracemalloc.start()
    try:
        for block in BLOCKS[name]:
            answer.saw(block)
            if answer.text_chars > 16_384:
                answer.take_texts()
        held_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{name}: {held_bytes} B held, {peak_bytes} B at the peak")
    assert held_bytes < 128 * 1024
    assert peak_bytes < 512 * 1024
