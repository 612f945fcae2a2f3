"""Events that are like the one before are shown as if they were looked at by themselves."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.alike import KEPT_FOR_EACH, MAX_ALIKE_BYTES, AlikeEvents
from proxy.core.answers import EventAnswer
from proxy.core.ending import EndingWatch
from proxy.core.injection import UsageHider
from proxy.core.sse import EventScanner

# T is a text, F a filler
_FORMS = [
    '{"id":"c","choices":[{"index":0,"delta":{"content":"T"},"finish_reason":null}]}',
    '{"choices":[{"delta":{"content":"T"}}],"usage":null}',
    '{"choices":[{"delta":{"content":"T"},"logprobs":null}],"usage":null,"obfuscation":"F"}',
    '{"choices":[{"delta":{"content":"T"}}],"obfuscation":"F"}',
    '{"choices":[{"delta":{"content":"T"}}],"obfuscation":"F","usage":null}',
    '{"choices":[{"delta":{"content":"T"}}],"usage" : null,"obfuscation":"F"}',
    '{"choices":[{"delta":{"content":"T"}}],"usage":{"total_tokens":1},"obfuscation":"F"}',
    '{"a":"\\"content\\":\\"x","choices":[{"delta":{"content":"T"}}]}',
    '{"x":{"content":"T"},"choices":[{"delta":{"content":"b"}}]}',
    '{"x":{"content":"b"},"choices":[{"delta":{"content":"T"}}]}',
    '{"x":{"content":"T"},"choices":[{"delta":{"content" : "b"}}]}',
    '{"choices":[{"index":1,"delta":{"content":"T"}}]}',
    '{"content":"T"}',
    '{"choices":[{"delta":{"content":"T"}}]',
]
_RAW = [
    "", "\\", "\\n", "\\\\n", "\\u0041", "\\ud800", "\\x", "\\\\", 'a\\\\"', '"', '\\"', "error", "\n",
    "\n\ndata: {", "\r", "finish_reason", '"finish_reason":"stop', "usage", '","usage":null,"x":"', "é", "\x00",
    "[DONE]", '"obfuscation":"', '"}}],"usage":null,"obfuscation":"', "}", "\x7f",
]  # fmt: skip
_PLAIN = st.text("ab }", max_size=5)
_WRITTEN = st.text(max_size=9).map(lambda text: json.dumps(text, ensure_ascii=False)[1:-1])
_TEXTS = st.one_of(_PLAIN, _PLAIN, _PLAIN, _WRITTEN, st.sampled_from(_RAW))


@st.composite
def _events(draw: st.DrawFn) -> list[bytes]:
    """Events of one stream: alike as a rule, in texts of any kind, with bytes that are no UTF-8 now and then."""
    form = draw(st.sampled_from(_FORMS))
    events = []
    for text, filler in draw(st.lists(st.tuples(_TEXTS, _PLAIN | _TEXTS), min_size=3, max_size=8)):
        event = f"data: {form.replace('T', text).replace('F', filler)}\n\n".encode(errors="replace")
        events.append(event.replace("é".encode(), b"\xe9") if draw(st.integers(0, 9)) == 0 else event)
    return events


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def _shown(alike: AlikeEvents, event: bytes) -> bytes | None:
    kept = len(alike.kept)
    shown = alike.shown(_chunk(event), 1.0)
    assert len(alike.kept) == kept + KEPT_FOR_EACH * (shown is not None)
    if shown is None:
        return None
    _, _, rest = shown.partition(b"\r\n")
    assert shown == _chunk(rest[:-2])
    return rest[:-2]


@given(_events(), st.booleans())
@example([b'data: {"content":""}\n\n', b'data: {"content":"}\n\n'], False)
def test_an_event_that_is_like_another_is_shown_as_by_itself(events: list[bytes], hides: bool) -> None:
    alike, scanner, ending = AlikeEvents(), EventScanner(), EndingWatch("chat")
    told, told_together = EventAnswer(), EventAnswer()
    came: list[bytes] = []
    went: list[bytes] = []
    for event in events:
        hide = UsageHider().hide if hides else bytes
        shown = _shown(alike, event)
        before = scanner.events
        if shown is not None:
            assert scanner.takes(event)
            assert scanner.events == before + 1
            assert not ending.flowed(event)
            assert shown == hide(event)
            told.saw(event)
            came.append(event)
            went.append(shown)
        elif b"error" not in event and scanner.takes(event):
            if ending.flowed(event):
                break  # what comes behind a finish is looked at by itself
            _take(alike, came, went, told_together)
            alike.learn(event, hide(event))
    _take(alike, came, went, told_together)
    for reader in (told, told_together):
        reader.finish()
    assert told_together.take_texts() == told.take_texts()
    assert not told.faults


def _take(alike: AlikeEvents, came: list[bytes], went: list[bytes], told: EventAnswer) -> None:
    passed = alike.take()
    assert (passed.events, passed.times_s, passed.body_bytes) == (len(came), [1.0] * len(came), sum(map(len, came)))
    assert (passed.shown_bytes, passed.chunk_bytes) == (sum(map(len, went)), sum(map(len, map(_chunk, went))))
    assert not alike.kept
    told.saw(passed.said)
    came.clear()
    went.clear()


@pytest.mark.parametrize("obfuscation", [None, "abc"])
def test_the_chunks_of_an_answer_are_alike(obfuscation: str | None) -> None:
    def chunk(text: str) -> bytes:
        told: dict[str, object] = {
            "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
            "usage": None,
        }
        if obfuscation is not None:
            told["obfuscation"] = obfuscation[: len(text)]
        return f"data: {json.dumps(told, separators=(',', ':'), ensure_ascii=False)}\n\n".encode()

    alike = AlikeEvents()
    alike.learn(chunk("Hi"), UsageHider().hide(chunk("Hi")))
    for text in ("a", "", "Grüße", "{}", "a\nb", 'say "so"', "C:\\", "x" * 500):
        assert _shown(alike, chunk(text)) == UsageHider().hide(chunk(text))
    assert _shown(alike, chunk("an error")) == UsageHider().hide(chunk("an error"))  # says it, and is none
    for text in ("\x00", "x" * MAX_ALIKE_BYTES):
        assert _shown(alike, chunk(text)) is None
    alike.forget()
    assert _shown(alike, chunk("a")) is None


@pytest.mark.parametrize("chunk_bytes", [262, 775, 776, 3000])
def test_an_event_without_its_size_is_no_chunk(chunk_bytes: int) -> None:
    """Whatever its length: of some lengths there is no chunk that says its size."""
    alike = AlikeEvents()
    event = b'data: {"choices":[{"delta":{"content":"T"}}]}\n\n'
    assert alike.learn(event, event)
    bare = event.replace(b"T", b"x" * (chunk_bytes - len(event) - 1)) + b"\r\n"
    assert len(bare) == chunk_bytes
    assert alike.shown(bare, 1.0) is None
    assert not alike.kept


@pytest.mark.parametrize(
    "last", [b'"content":"text"', b'"content": "text"', b'"c\\u006fntent":"text"', b'"content":""']
)
def test_of_two_members_of_one_name_the_last_counts(last: bytes) -> None:
    """So the text that differs is none that anybody is shown."""
    event = b'data: {"choices":[{"delta":{"content":"x",' + last + b"}}]}\n\n"
    assert not AlikeEvents().learn(event, event)
