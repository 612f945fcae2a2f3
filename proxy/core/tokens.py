"""Counting tokens: the interface, which encoding a model has, and a rule for where no tokenizer is installed.

The exact counter needs a library and is in `proxy/tokenizers.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

O200K: Final = "o200k_base"
CL100K: Final = "cl100k_base"

# More than any model reads or writes: what is said beyond it is not believed. Keeps sums and prices small numbers.
MAX_TOKENS: Final = 10**9

# What texts are cut into, so that counting one holds the interpreter lock, or a worker thread, only shortly.
MAX_BATCH_CHARS: Final = 65536
# What a text takes of a batch besides its characters: a batch of empty texts ends as well.
_CHARS_PER_TEXT: Final = 16
# How far back from its end a place to cut a text is looked for.
_CUT_WITHIN_CHARS: Final = 1024

_CL100K_MODELS: Final = re.compile(
    r"gpt-4(?![.o\d])|gpt-3\.5|gpt-35|text-embedding-(?:ada-002|3-)|davinci-002|babbage-002"
)
# What decides for it: a name that goes on behind less may be of either encoding.
_CL100K_STEMS: Final = (
    *("ft:", "gpt-4-", "gpt-3.5", "gpt-35", "davinci-002", "babbage-002"),
    *("text-embedding-ada-002", "text-embedding-3-"),
)


class TokenCounter(Protocol):
    """Counts the tokens of texts."""

    def count(self, texts: Sequence[str], encoding: str) -> int:
        """The tokens of all `texts`, each encoded for itself.

        Special-token text such as `<|endoftext|>` counts as the ordinary text it is in a prompt. Never raises: a lone
        half of a surrogate pair counts as some character, an unknown encoding is taken for o200k_base.
        """


def encoding_of(model: str) -> str:
    """The encoding of a model by its name (protocol.md section 6), o200k_base where the name is unknown.

    Vendor prefixes (`openai/gpt-4o`) and the `ft:` of fine-tunes are looked through. Models on o200k_harmony
    (gpt-oss) have the ranks of o200k_base; text cannot hold the special tokens that set the two apart.
    """
    name = model.lower().rpartition("/")[2].removeprefix("ft:")
    return CL100K if _CL100K_MODELS.match(name) else O200K


def encodings_like(pattern: str) -> set[str]:
    """The encodings that models may have whose names match `pattern` (patterns.py), by what it begins with.

    Behind a wildcard no vendor prefix is looked for: `azure*` is not taken for `azure/gpt-4`.
    """
    begins = re.split("[*?]", pattern, maxsplit=1)[0]
    if begins == pattern:
        return {encoding_of(pattern)}
    name = begins.lower().rpartition("/")[2].removeprefix("ft:")
    if any(stem.startswith(name) and stem != name for stem in _CL100K_STEMS):
        return {O200K, CL100K}
    return {encoding_of(begins)}


def batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in batches of at most `MAX_BATCH_CHARS`, longer texts cut; each made when it is asked for.

    A cut changes the count by one token at most where whitespace is near: a word and the space before it stay
    together. Inside a longer run without any, the parts may count a few tokens more or less than the whole.
    """
    batch: list[str] = []
    room_chars = MAX_BATCH_CHARS
    for text in texts:
        if batch and len(text) > room_chars:
            yield batch
            batch, room_chars = [], MAX_BATCH_CHARS
        start = 0
        while len(text) - start > MAX_BATCH_CHARS:
            end = cut(text, start, start + MAX_BATCH_CHARS)
            yield [text[start:end]]
            start = end
        batch.append(text[start:])
        room_chars -= len(text) - start + _CHARS_PER_TEXT
    if batch:
        yield batch


def cut(text: str, start: int, end: int) -> int:
    """Where behind `start` and up to `end` to cut: before the last space near `end`, else before the line end."""
    near = max(start + 1, end - _CUT_WITHIN_CHARS)
    at = text.rfind(" ", near, end + 1)
    if at < 0:
        at = text.rfind("\n", near, end + 1)
    return end if at < 0 else at


class _Rule(NamedTuple):
    """What each occurrence of a pattern of classes adds, in tokens."""

    pattern: bytes
    o200k: float
    cl100k: float


# A character's class is told by the first byte of its UTF-8. White space is `s`, line ends are `n`: they belong to the
# word behind them and cost nothing of themselves.
_CLASSES: Final = {
    b"s": (0x09, 0x20),
    b"n": (0x0A, 0x0D),
    b"a": range(0x61, 0x7B),  # small letters
    b"A": range(0x41, 0x5B),  # capitals
    b"1": range(0x30, 0x3A),  # digits
    b"e": range(0xC2, 0xCE),  # Latin letters with accents
    b"y": range(0xCE, 0xD0),  # Greek
    b"g": range(0xD0, 0xD5),  # Cyrillic
    b"h": range(0xD5, 0xE0),  # Hebrew, Arabic
    b"t": range(0xE0, 0xE1),  # Indic scripts, Thai
    b"v": range(0xE1, 0xE2),  # Vietnamese, Georgian
    b"o": (0xE2, 0xEE, 0xEF),  # signs, full-width forms
    b"c": range(0xE3, 0xE4),  # kana
    b"k": range(0xE4, 0xEA),  # Han
    b"j": range(0xEA, 0xEE),  # Hangul
    b"x": range(0xF0, 0xF5),  # emoji
}  # all else is `p`, punctuation
# Fitted by least squares to English, code, JSON and messages of programs in sixteen languages, 5 MB in all.
_ASCII_RULES: Final = (
    _Rule(b"a", 0.166, 0.170),
    _Rule(b"A", 0.260, 0.279),
    _Rule(b"1", 0.939, 0.937),
    _Rule(b"p", 0.372, 0.325),
    _Rule(b"ns", 1.472, 1.502),  # an indented line
)
_OTHER_RULES: Final = (
    _Rule(b"e", 1.332, 2.277),
    _Rule(b"y", 0.362, 0.993),
    _Rule(b"g", 0.253, 0.426),
    _Rule(b"h", 0.324, 0.788),
    _Rule(b"t", 0.431, 1.101),
    _Rule(b"v", 0.150, 0.524),
    _Rule(b"o", 1.246, 2.196),
    _Rule(b"c", 0.761, 1.093),
    _Rule(b"k", 0.865, 1.057),
    _Rule(b"j", 0.829, 1.238),
    _Rule(b"x", 2.023, 2.350),
)
# The letters of scripts with spaces between words, all written `a`: each beginning of a word costs.
_LETTERS: Final = bytes.maketrans(b"Aeyghv", b"aaaaaa")
_WORD_RULES: Final = tuple(_Rule(before + b"a", 0.427, 0.453) for before in (b"s", b"n", b"p", b"1"))
_CONTINUATIONS: Final = bytes(range(0x80, 0xC0))


def _class_table() -> bytes:
    table = bytearray(b"p" * 256)
    for name, first_bytes in _CLASSES.items():
        for byte in first_bytes:
            table[byte] = name[0]
    return bytes(table)


_CLASS_OF: Final = _class_table()


class ApproximateCounter:
    """What counts where no tokenizer is installed: classes of characters and beginnings of words, each at a price.

    Error against the tokenizer, in o200k_base and in cl100k_base: English prose -3 % and -2 %, Markdown +9 % and +7 %,
    Python +2 % and +4 %, JavaScript +6 % and +7 %, JSON -4 % and -6 %, German -6 % and -10 %, Russian +1 % and +2 %,
    Chinese, Japanese and Korean 0 %, emoji +6 %; most other languages within 11 %, Polish and Ukrainian 21 % too low.
    Pieces of 1,500 characters err by 2 to 10 %. Base64 and other random letters are 43 % too low.
    """

    def count(self, texts: Sequence[str], encoding: str) -> int:
        """About as many tokens as `texts` have (`TokenCounter.count`)."""
        return sum(_approximate(" ".join(batch), cl100k=encoding == CL100K) for batch in batches(texts))


def _approximate(text: str, *, cl100k: bool) -> int:
    # the space before it makes the first word one that begins
    classes = b" ".join((b"", text.encode("utf-8", "surrogatepass"))).translate(_CLASS_OF, _CONTINUATIONS)
    tokens = _price(classes, _ASCII_RULES, cl100k=cl100k)
    if not text.isascii():
        tokens += _price(classes, _OTHER_RULES, cl100k=cl100k)
        classes = classes.translate(_LETTERS)
    else:
        classes = classes.replace(b"A", b"a")
    tokens += _price(classes, _WORD_RULES, cl100k=cl100k)
    return round(tokens)


def _price(classes: bytes, rules: Sequence[_Rule], *, cl100k: bool) -> float:
    return sum(classes.count(rule.pattern) * (rule.cl100k if cl100k else rule.o200k) for rule in rules)
