"""What images, audio and files in a prompt cost in tokens.

For images there are published rules (protocol.md section 6), and their size is told from the first bytes of the file;
the rest has a default here. All are estimates: bills differ, and the upstream's own usage wins.
"""

from __future__ import annotations

import binascii
import math
import re
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

# Of images whose size is not known: remote URLs, uploaded files, formats we do not read.
_DEFAULT_SIDE: Final = 1024

_MAX_SIDE: Final = 65535  # the largest that JPEG and GIF can say; costs are bounded far below
_TILE: Final = 512
_PATCH: Final = 32
_MAX_PATCHES: Final = 1536
_MAX_SEGMENTS: Final = 100  # of a JPEG before its frame header; cameras write some ten


# Audio: ten tokens a second, as OpenAI's audio models count, of MP3 at 128 kbit/s or of WAV with 24,000 samples of
# 16 bits.
_WAV_BYTES_PER_TOKEN: Final = 4800
_AUDIO_BYTES_PER_TOKEN: Final = 1600
# Files: a PDF's page is read as text and as an image, some 1,500 tokens for 48 KiB of file; text as text.
_FILE_BYTES_PER_TOKEN: Final = 32
_TEXT_FILE_BYTES_PER_TOKEN: Final = 4
_UNSEEN_FILE_TOKENS: Final = 3000  # files, audio and video that the upstream fetches: two pages
# Reasoning that is handed back encrypted, in base64: as long as its text, four bytes a token.
_ENCRYPTED_CHARS_PER_TOKEN: Final = 6

# The members by which a part of a message is recognised as one of these.
MEDIA: Final = frozenset(
    {"image_url", "input_audio", "encrypted_content"}
    | {"file", "file_data", "file_id", "file_url", "audio_url", "video_url"}
)


class _Tiles(NamedTuple):
    """Models that cut an image into tiles of 512 pixels: tokens of the image, and of each tile."""

    base: int
    tile: int


class _Patches(NamedTuple):
    """Models that cut an image into patches of 32 pixels, at most 1536: tokens of a patch."""

    multiplier: float


# The first that matches the beginning of the model's name. o4-mini, gpt-5-mini and -nano and what comes after 5.1 are
# not verified. The larger budgets of `original` detail on the newest models are not published well enough to use.
_RULES: Final[tuple[tuple[re.Pattern[str], _Tiles | _Patches], ...]] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"gpt-4o-mini", _Tiles(2833, 5667)),
        (r"gpt-(?:4\.1|5[.\d]*)-nano", _Patches(2.46)),
        (r"gpt-(?:4\.1|5[.\d]*)-mini", _Patches(1.62)),
        (r"o4-mini", _Patches(1.72)),
        (r"gpt-5(?:\.1)?(?![.\d])", _Tiles(70, 140)),
        (r"gpt-5\.", _Patches(1.2)),
        (r"o1|o3", _Tiles(75, 150)),
    )
)
_UNKNOWN: Final = _Tiles(85, 170)  # gpt-4o's and gpt-4.1's


def image_tokens(width: int, height: int, detail: str, model: str) -> int:
    """What an image of so many pixels costs on a model. A `detail` other than `low` counts as `high`.

    Sides are taken for at least 1 and at most 65535 pixels; no image costs more than some 50,000 tokens.
    """
    width, height = (min(max(side, 1), _MAX_SIDE) for side in (width, height))
    name = model.lower().rpartition("/")[2].removeprefix("ft:")
    rule = next((rule for pattern, rule in _RULES if pattern.match(name)), _UNKNOWN)
    if isinstance(rule, _Patches):
        if detail == "low":  # the model is shown a version that fits 512 pixels
            width, height = _fitted(width, height, _TILE)
        return math.ceil(_patches(width, height) * rule.multiplier)
    return rule.base if detail == "low" else rule.base + rule.tile * _tiles(width, height)


def _fitted(width: int, height: int, longest: int) -> tuple[int, int]:
    """The sides scaled down, never up, so that the longer is at most `longest`."""
    over = max(width, height)
    if over <= longest:
        return width, height
    return max(1, width * longest // over), max(1, height * longest // over)


def _tiles(width: int, height: int) -> int:
    width, height = _fitted(width, height, 2048)
    shorter = min(width, height)
    if shorter > 768:
        width, height = width * 768 // shorter, height * 768 // shorter
    return math.ceil(width / _TILE) * math.ceil(height / _TILE)


def _patches(width: int, height: int) -> int:
    patches = math.ceil(width / _PATCH) * math.ceil(height / _PATCH)
    if patches <= _MAX_PATCHES:
        return patches
    shrink = math.sqrt(_MAX_PATCHES * _PATCH**2 / (width * height))
    across, down = width * shrink / _PATCH, height * shrink / _PATCH
    # and a little more, so that one side is a whole number of patches
    shrink = min(max(1, math.floor(across)) / across, max(1, math.floor(down)) / down)
    # the difference of floats must not make another row of patches
    return min(_MAX_PATCHES, math.ceil(across * shrink - 1e-6) * math.ceil(down * shrink - 1e-6))


def media_tokens(part: dict[str, Any], model: str) -> int:
    """What a part that has a member of `MEDIA` costs. An image of unknown size is taken for 1024 by 1024 pixels."""
    if isinstance(audio := part.get("input_audio"), dict):
        per_token = _WAV_BYTES_PER_TOKEN if audio.get("format") == "wav" else _AUDIO_BYTES_PER_TOKEN
        return _base64_tokens(audio.get("data"), per_token)
    if isinstance(secret := part.get("encrypted_content"), str):
        return len(secret) // _ENCRYPTED_CHARS_PER_TOKEN
    if "image_url" in part or part.get("type") == "input_image":
        image = part.get("image_url")
        url, detail = (
            (image.get("url"), image.get("detail")) if isinstance(image, dict) else (image, part.get("detail"))
        )
        size = image_size(url) if isinstance(url, str) else None
        return image_tokens(*(size or (_DEFAULT_SIDE, _DEFAULT_SIDE)), str(detail), model)
    file = part.get("file")
    data = (file if isinstance(file, dict) else part).get("file_data")
    is_text = isinstance(data, str) and data.startswith("data:text/")
    return _base64_tokens(data, _TEXT_FILE_BYTES_PER_TOKEN if is_text else _FILE_BYTES_PER_TOKEN)


def _base64_tokens(data: Any, bytes_per_token: int) -> int:
    return len(data) * 3 // 4 // bytes_per_token if isinstance(data, str) else _UNSEEN_FILE_TOKENS


def image_size(url: str) -> tuple[int, int] | None:
    """Width and height in pixels of the PNG, JPEG, GIF or WebP image in a base64 `data:` URL (RFC 2397), else None.

    Only the bytes that say it are decoded, whatever the length of the URL.
    """
    comma = url.find(",", 0, 256)
    if comma < 0 or not url.startswith("data:") or ";base64" not in url[:comma]:
        return None
    try:
        return _size(_Base64(url, comma + 1).read)
    except (binascii.Error, UnicodeEncodeError, IndexError):  # not base64, or it ends too soon
        return None


class _Base64:
    """A file in base64 (RFC 4648), read anywhere without decoding what is before."""

    def __init__(self, text: str, start: int) -> None:
        self._text = text
        self._start = start

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer where the file ends."""
        skipped, inside = divmod(offset, 3)
        start = self._start + skipped * 4
        quads = self._text[start : start + -(-(inside + length) // 3) * 4]
        return binascii.a2b_base64(quads.encode("ascii") + b"==")[inside : inside + length]


def _size(read: Callable[[int, int], bytes]) -> tuple[int, int] | None:
    """Raises IndexError where the file ends too soon."""
    head = read(0, 30)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):  # PNG section 11.2.1: IHDR comes first
        return _number(head, 16, 4), _number(head, 20, 4)
    if head.startswith((b"GIF87a", b"GIF89a")):  # the logical screen
        return _number(head, 6, 2, "little"), _number(head, 8, 2, "little")
    if head.startswith(b"\xff\xd8"):
        return _jpeg_size(read)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp_size(head)
    return None


def _jpeg_size(read: Callable[[int, int], bytes]) -> tuple[int, int] | None:
    """From segment to segment up to the frame header (ITU-T T.81, B.1.1.4 and B.2.2)."""
    offset = 2
    for _ in range(_MAX_SEGMENTS):
        segment = read(offset, 9)
        marker = _number(segment, 0, 2)
        if marker == 0xFFFF:  # any number of fill bytes may go before a marker
            offset += 1
            continue
        if 0xFFC0 <= marker <= 0xFFCF and marker not in {0xFFC4, 0xFFC8, 0xFFCC}:
            return _number(segment, 7, 2), _number(segment, 5, 2)
        if marker < 0xFFC0 or marker == 0xFFDA:  # no marker at all, or the picture itself without a header
            return None
        offset += 2 + _number(segment, 2, 2)
    return None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """From the first chunk (RFC 9649 sections 2.5 to 2.7)."""
    kind = head[12:16]
    if kind == b"VP8X":
        return _number(head, 24, 3, "little") + 1, _number(head, 27, 3, "little") + 1
    if kind == b"VP8L":
        bits = _number(head, 21, 4, "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return _number(head, 26, 2, "little") & 0x3FFF, _number(head, 28, 2, "little") & 0x3FFF
    return None


def _number(data: bytes, offset: int, length: int, order: Literal["big", "little"] = "big") -> int:
    """Raises IndexError where `data` ends before."""
    if offset + length > len(data):
        raise IndexError
    return int.from_bytes(data[offset : offset + length], order)
