"""Images cost what is published, whatever their size is said to be, and the size is read from a few bytes."""

from __future__ import annotations

import base64
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.images import image_size, image_tokens, media_tokens


@pytest.mark.parametrize(
    ("width", "height", "detail", "model", "tokens"),
    [
        (1024, 1024, "high", "gpt-4o", 765),
        (2048, 4096, "high", "gpt-4o", 1105),
        (4096, 8192, "low", "gpt-4o", 85),
        (1024, 1024, "auto", "gpt-4.1", 765),
        (512, 512, "high", "gpt-4o", 255),
        (513, 512, "high", "gpt-4o", 425),
        (1024, 1024, "high", "openai/gpt-4o-mini-2024-07-18", 2833 + 4 * 5667),
        (1024, 1024, "low", "gpt-4o-mini", 2833),
        (1024, 1024, "high", "gpt-5", 630),
        (1024, 1024, "high", "gpt-5-2025-08-07", 630),
        (1024, 1024, "high", "gpt-5.1-codex", 630),
        (1024, 1024, "high", "o1-pro", 675),
        (1024, 1024, "high", "o3", 675),
        (1024, 1024, "high", "who-knows", 765),
        (1024, 1024, "high", "gpt-4.1-mini", 1659),
        (1800, 2400, "high", "gpt-4.1-mini", 2353),
        (1024, 1024, "high", "gpt-4.1-nano", 2520),
        (1024, 1024, "high", "o4-mini", 1762),
        (1024, 1024, "high", "gpt-5-mini", 1659),
        (1024, 1024, "high", "gpt-5.4-mini", 1659),
        (1024, 1024, "high", "gpt-5.2", 1229),
        (1024, 1024, "low", "gpt-4.1-mini", 415),
        (32, 32, "high", "gpt-4.1-mini", 2),
    ],
)
def test_published_costs(width: int, height: int, detail: str, model: str, tokens: int) -> None:
    assert image_tokens(width, height, detail, model) == tokens


@given(
    st.integers(-(2**40), 2**40),
    st.integers(-(2**40), 2**40),
    st.sampled_from(["low", "high", "auto", "None"]),
    st.sampled_from(["gpt-4o", "gpt-4o-mini", "gpt-4.1-nano", "o4-mini", "gpt-5.2", ""]),
)
def test_no_size_costs_nothing_or_without_bound(width: int, height: int, detail: str, model: str) -> None:
    assert 0 < image_tokens(width, height, detail, model) <= 2833 + 8 * 5667


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_patches_stay_within_their_budget(width: int, height: int) -> None:
    assert image_tokens(width, height, "high", "o4-mini") <= 1536 * 1.72 + 1


def jpeg(width: int, height: int, *before: bytes) -> bytes:
    frame = b"\xff\xc2" + struct.pack(">HBHH", 17, 8, height, width)
    return b"\xff\xd8" + b"".join(before) + frame + b"\0" * 20


def segment(marker: int, length: int) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, length) + b"\xff" * (length - 2)


VP8L_BITS = (640 - 1) | (480 - 1) << 14
IMAGES = {
    "png": b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480) + b"\x08\x06",
    "gif87": b"GIF87a" + struct.pack("<HH", 640, 480) + b"\0",
    "gif89": b"GIF89a" + struct.pack("<HH", 640, 480) + b"\0",
    "jpeg": jpeg(640, 480),
    "jpeg with an Exif segment": jpeg(640, 480, segment(0xE1, 65535), segment(0xE2, 50_000), segment(0xC4, 30)),
    "jpeg with fill bytes": jpeg(640, 480, b"\xff\xff\xff", segment(0xE0, 16), b"\xff"),
    "webp lossy": b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 7 + b"\x9d\x01\x2a" + struct.pack("<HH", 640, 480 | 0x4000),
    "webp lossless": b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", VP8L_BITS) + b"\0" * 8,
    "webp extended": b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 8 + (639).to_bytes(3, "little") + (479).to_bytes(3, "little"),
}


def data_url(image: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("more", [0, 1, 2, 5000])
def test_the_size_is_read(kind: str, more: int) -> None:
    assert image_size(data_url(IMAGES[kind] + b"\x5a" * more)) == (640, 480)


@pytest.mark.parametrize("kind", IMAGES)
def test_a_file_that_ends_early_has_no_size(kind: str) -> None:
    whole = IMAGES[kind]
    for length in (*range(min(len(whole), 40) - 20), *range(40, len(whole) - 30, 9973)):
        assert image_size(data_url(whole[:length])) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data:",
        "data:image/png;base64,",
        "data:image/png;base64,A",
        "data:image/png;base64,\ud83d\ud83d\ud83d\ud83d",
        "data:image/png;base64,????",
        "data:image/png,%89PNG",
        "https://example.com/a.png?x=,;base64,iVBORw0KGgo",
        data_url(b"\xff\xd8" + b"\xff" * 5000),
        data_url(b"\xff\xd8" + segment(0xE0, 2) * 5000),
        data_url(b"\xff\xd8\xff\xda" + b"\0" * 100),
        data_url(b"\xff\xd8\xff\xe0\0\0" + b"\0" * 100),
        data_url(b"<svg></svg>"),
    ],
)
def test_what_is_no_image_has_no_size(url: str) -> None:
    assert image_size(url) is None


@given(st.text(st.characters(), max_size=200))
def test_no_text_raises(text: str) -> None:
    image_size("data:image/jpeg;base64," + text)
    image_size(text)


@given(st.binary(max_size=200))
def test_no_file_raises(rest: bytes) -> None:
    for start in (b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "):
        image_size(data_url(start + rest))


def test_a_large_file_costs_as_little_as_a_small_one() -> None:
    url = data_url(IMAGES["png"] + bytes(15_000_000))
    began_s = time.thread_time()
    for _ in range(100):
        assert image_size(url) == (640, 480)
    # decoding it once takes 15 ms and more
    assert time.thread_time() - began_s < 0.5


PDF = "data:application/pdf;base64," + "A" * 65536
TEXT = "data:text/plain;base64," + "A" * 4096


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ({"image_url": {"url": data_url(IMAGES["png"])}}, 425),
        ({"image_url": {"url": data_url(IMAGES["png"]), "detail": "low"}}, 85),
        ({"type": "input_image", "image_url": data_url(IMAGES["png"]), "detail": "low"}, 85),
        ({"image_url": {"url": "https://example.com/a.png"}}, 765),
        ({"type": "input_image", "file_id": "file-1"}, 765),
        ({"image_url": 7}, 765),
        ({"image_url": {"url": ["x"], "detail": {}}}, 765),
        ({"input_audio": {"data": "A" * 64000, "format": "mp3"}}, 30),
        ({"input_audio": {"data": "A" * 64000, "format": "wav"}}, 10),
        ({"input_audio": {"data": None}}, 3000),
        ({"file": {"file_data": PDF}}, 1536),
        ({"type": "input_file", "file_data": PDF}, 1536),
        ({"type": "input_file", "file_data": TEXT}, 772),
        ({"type": "file", "file": {"file_id": "file-1"}}, 3000),
        ({"file": "x"}, 3000),
        ({"type": "reasoning", "encrypted_content": "A" * 600}, 100),
    ],
)
def test_parts_of_messages(part: dict[str, object], tokens: int) -> None:
    assert media_tokens(part, "gpt-4o") == tokens
