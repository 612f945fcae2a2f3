"""The same chat stream from an upstream that was asked for usage, and from one that was not."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import assume
from hypothesis import strategies as st

from proxy.core.injection import UsageHider
from proxy.core.sse import EventScanner

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_NAMES = 16  # of the members of a chunk named so, this many are looked at
USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15, "prompt_tokens_details": {"cached_tokens": 0}}

# what a model may write to look like what is hidden
_LURES = [
    '"usage":null',
    ',"usage":null}',
    '"usage"',
    '\\","usage":null',
    '"choices":[],"usage":{}',
    "data: [DONE]\n\n",
]
_TEXTS = st.text(max_size=12) | st.sampled_from(_LURES)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "usage", "choices", '"usage']), inner)
    ),
    max_leaves=5,
)
_OTHERS = st.dictionaries(st.sampled_from(["id", "model", "x_groq", "prompt_filter_results", "provider"]), _VALUES)
_CHOICES = st.lists(
    st.fixed_dictionaries({"index": st.integers(0, 3), "delta": st.dictionaries(_TEXTS, _VALUES, max_size=2)}),
    max_size=2,
)
_COMMENTS = st.sampled_from([": keep-alive", ":", ': "usage":null', ': {"choices":[],"usage":{}}'])
_SCALARS = st.dictionaries(st.sampled_from(["id", "created", "model", "obfuscation"]), st.none() | _TEXTS, max_size=3)


class Pair(NamedTuple):
    """A stream `asked` for usage and the same stream `unasked`."""

    asked: bytes
    unasked: bytes


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """A stream with any spacing, line ends, field lines and comments, in both forms."""
    spacing = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " :  ")]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    field = draw(st.sampled_from(["data: ", "data:", f"event: message{end}data: ", "data:  "]))
    ascii_only = draw(st.booleans())

    def event(chunk: dict[str, Any]) -> str:
        text = json.dumps(chunk, separators=spacing, ensure_ascii=ascii_only)
        return field + text + end * 2

    asked = unasked = draw(st.sampled_from(["", "\ufeff"]))
    for _ in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            comment = draw(_COMMENTS) + end * draw(st.integers(1, 3))
            asked, unasked = asked + comment, unasked + comment
        chunk = {"choices": draw(_CHOICES), **draw(_OTHERS)}
        assume(json.dumps(chunk).count('"usage"') < MOST_NAMES)
        members = draw(st.permutations(list(chunk.items())))
        place = draw(st.integers(0, len(members)))
        asked += event(dict([*members[:place], ("usage", None), *members[place:]]))
        unasked += event(dict(members))
    if draw(st.booleans()):
        comment = draw(_COMMENTS) + end * draw(st.integers(1, 2))
        asked, unasked = asked + comment, unasked + comment
    last: dict[str, Any] = {**draw(_SCALARS), "choices": [], "usage": USAGE}
    asked += event(dict(draw(st.permutations(list(last.items())))))
    ending = f"data: [DONE]{end}{end}" if draw(st.booleans()) else ""
    return Pair((asked + ending).encode(errors="replace"), (unasked + ending).encode(errors="replace"))


def hidden(pieces: Iterable[bytes]) -> bytes:
    """What a client gets of a body that arrives in these pieces."""
    scanner, hider = EventScanner(), UsageHider()
    shown = [hider.hide(scanner.feed(piece)) for piece in pieces]
    return b"".join([*shown, hider.hide(scanner.finish())])


def cut(body: bytes, places: Iterable[int]) -> Sequence[bytes]:
    """The body in pieces, cut at these places as far as it reaches."""
    at = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[start:end] for start, end in itertools.pairwise(at)]
