"""Events that are like the one before are shown as if they were looked at by themselves."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.alike import AlikeEvents
from proxy.core.ending import EndingWatch, StreamShape
from proxy.core.injection import UsageHider
from proxy.core.sse import EventScanner

_STARTS = [
    '{"id":"c","choices":[{"index":0,"delta":{"content":"',
    '{"a":"\\"content\\":\\"x","content":"',
    '{"content":"',
]
_MIDDLES = [
    '"},"finish_reason":null}]',
    '"}}],"usage":null',
    '"},"finish_reason":null}],"usage" : null',
    '"}',
    '"',
    '"}}],"usage":null,"obfuscation":"',
    '"}}],"usage":{"total_tokens":1},"obfuscation":"',
    '"}}],"obfuscation":"ab","usage":null,"x":"',
]
_ENDS = ["}", '"}', '"},"usage":null}', ""]
_TEXTS = st.text(max_size=12) | st.sampled_from([
    "", "\\", "\\n", '"', '\\"', "error", "\n", "\n\ndata: {", "\r", "finish_reason", '"finish_reason":"stop', "usage",
    '","usage":null,"x":"', "é", "\x00", "[DONE]", '"obfuscation":"',
])  # fmt: skip


@st.composite
def _events(draw: st.DrawFn) -> list[bytes]:
    """Events of one stream: alike as a rule, in texts of any kind, with bytes that are no UTF-8 now and then."""
    start, middle, end = draw(st.tuples(*map(st.sampled_from, (_STARTS, _MIDDLES, _ENDS))))
    events = []
    for text, filler in draw(st.lists(st.tuples(_TEXTS, _TEXTS), min_size=2, max_size=6)):
        event = f"data: {start}{text}{middle}{filler}{end}\n\n".encode(errors="replace")
        events.append(event.replace("é".encode(), b"\xe9") if draw(st.integers(0, 9)) == 0 else event)
    return events


@given(_events(), st.booleans())
@example([b'data: {"content":""}\n\n', b'data: {"content":"}\n\n'], False)
def test_an_event_that_is_like_another_is_shown_as_by_itself(events: list[bytes], hides: bool) -> None:
    alike, scanner, ending = AlikeEvents(), EventScanner(), EndingWatch(StreamShape.CHAT)
    for event in events:
        hide = UsageHider().hide if hides else bytes
        shown = alike.shown(event)
        before = scanner.events
        if shown is not None:
            assert b"error" not in event
            assert scanner.takes(event)
            assert scanner.events == before + 1
            assert not ending.flowed(event)
            assert shown == hide(event)
        elif b"error" not in event and scanner.takes(event):
            if ending.flowed(event):
                break  # what comes behind a finish is looked at by itself
            alike.learn(event, hide(event))


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
    for text in ("a", "", "Grüße", "{}", "x" * 5000):
        assert alike.shown(chunk(text)) == UsageHider().hide(chunk(text))
    for text in ("a\nb", 'say "so"', "an error"):
        assert alike.shown(chunk(text)) is None
    alike.forget()
    assert alike.shown(chunk("a")) is None
