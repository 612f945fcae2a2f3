"""The bundled prices are sane figures, found under the names that cost that much and under no others."""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal

import pytest

from proxy.core.price_table import AS_OF, VENDORS, Row
from proxy.core.pricing import Price, PriceList

ROWS = {name: row for vendor in VENDORS for name, row in vendor.rows.items()}
every_row = pytest.mark.parametrize(("name", "row"), ROWS.items(), ids=ROWS)
BUNDLED = PriceList({})


def test_names_belong_to_one_vendor() -> None:
    assert len(ROWS) == sum(len(vendor.rows) for vendor in VENDORS)


def test_the_table_is_dated() -> None:
    assert dt.date(2026, 11, 1) <= AS_OF <= dt.date(2026, 11, 30)


@every_row
def test_a_row_is_sane(name: str, row: Row) -> None:
    assert re.fullmatch(r"(?:ft:)?[a-z0-9][a-z0-9.-]+", name)
    for figure in row:
        assert figure is None or re.fullmatch(r"0|\d{1,3}\.\d{2,4}", figure), "a plain decimal, no exponent"
    price = Price.of(**row._asdict())
    assert price.input <= 200
    assert price.output <= 1000
    assert price.cached_input is None or Decimal(0) < price.cached_input < price.input
    assert price.cache_write is None or price.input < price.cache_write <= 2 * price.input
    assert price.audio_input is None or price.audio_input > price.input
    assert price.audio_output is None or price.audio_output > price.output
    assert price.audio_minute <= Decimal("0.02")
    assert price.output == 0 or price.output >= price.input


@every_row
def test_what_is_charged_by_the_minute_alone_has_no_price_of_tokens(name: str, row: Row) -> None:
    price = Price.of(**row._asdict())
    if price.input == 0:
        assert price.output == 0
        assert price.audio_minute > 0 or name == "omni-moderation"
    else:
        assert price.audio_minute == 0


@every_row
def test_a_row_is_found_by_its_name(name: str, row: Row) -> None:
    assert BUNDLED.find(name, None) == Price.of(**row._asdict())


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-2024-11-20", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("gpt-4o-audio-preview-2025-06-03", "gpt-4o-audio-preview"),
        ("gpt-4-turbo-2024-04-09", "gpt-4-turbo"),
        ("gpt-5-2025-08-07", "gpt-5"),
        ("gpt-5-pro-2025-10-06", "gpt-5-pro"),
        ("o3-mini-2025-01-31", "o3-mini"),
        ("omni-moderation-latest", "omni-moderation"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-3-7-sonnet-latest", "claude-3-7-sonnet"),
        ("grok-4.3-latest", "grok-4.3"),
        ("openai/gpt-4o", "gpt-4o"),
        ("openai/gpt-4o-2024-11-20", "gpt-4o"),
        ("anthropic/claude-sonnet-4.5", "claude-sonnet-4-5"),
        ("anthropic/claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("anthropic/claude-3.7-sonnet", "claude-3-7-sonnet"),
        ("google/gemini-2.5-pro", "gemini-2.5-pro"),
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("models/gemini-flash-latest", "gemini-flash-latest"),
        ("mistralai/mistral-large-2512", "mistral-large-2512"),
        ("x-ai/grok-4.20", "grok-4.20"),
        ("GPT-4o", "gpt-4o"),
        ("OpenAI/GPT-4o-2024-11-20", "gpt-4o"),
        ("ft:gpt-4o-2024-08-06:org::id", "ft:gpt-4o"),
        ("ft:gpt-4o-mini-2024-07-18:Org:name:id:ckpt-step-90", "ft:gpt-4o-mini"),
        ("openai/ft:gpt-4.1-mini-2025-04-14:org::id", "ft:gpt-4.1-mini"),
        ("ft:gpt-3.5-turbo-0125:org", "ft:gpt-3.5-turbo-0125"),
        ("ft:davinci-002", "ft:davinci-002"),
    ],
)
def test_snapshots_and_prefixes_cost_the_same(name: str, same_as: str) -> None:
    assert BUNDLED.find(name, None) == Price.of(**ROWS[same_as]._asdict())


def test_a_snapshot_with_a_price_of_its_own_keeps_it() -> None:
    for name in ("gpt-4o-2024-05-13", "openai/gpt-4o-2024-05-13"):
        assert BUNDLED.find(name, None) == Price.of(input=5, output=15)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-latest",
        "-2024-08-06",
        "openai/",
        "unheard-of",
        "GPT-4o-nonsense",
        " gpt-4o",
        "gpt-4o\n",
        "gpt-4o-latest\n",
        "gpt-4o:extended",
        "gpt-4o-mini-next",
        "gpt-4o-2024-13-06",
        "gpt-4o-2024-08-32",
        "gpt-4o-2024-0806",
        "gpt-4o-24-08-06",
        "gpt-5o",
        "gpt-5.7",
        "gpt-4.1-micro",
        "claude-sonnet-4-7",
        "claude-sonnet-4.5",
        "claude-sonnet-4-5-20251301",
        "claude-sonnet-4-5-20250932",
        "claude-sonnet-4-5-2025092",
        "ft:",
        "ft::org",
        "ft:gpt-4-turbo:org::id",
        "ft:unheard-of:gpt-4o",
        "draft:gpt-4o",
        "openai/ft:ft:gpt-4o",
        "gpt-4o-mini-2024-07-18.ft-0123",
        "anthropic/gpt-4o",
        "openai/claude-sonnet-4-5",
        "openai/anthropic/claude-sonnet-4-5",
        "openai/openai/gpt-4o",
        "models/gpt-4o",
        "openai/gpt-4o:free",
        "deepseek/deepseek-v4-flash",
        "gemini-2.5-flash-image",
        "gemini-2.5-flash-preview-09-2025",
        "llama3.3",
        "llama-3.3-70b-instruct",
        "meta-llama/llama-3.3-70b-instruct",
        "qwen3:32b",
        "qwen/qwen3-32b",
        "openai/gpt-oss-120b",
        "gpt-oss:20b",
        "mistral",
        "mistral-small",
        "mistral-large",
        "codestral",
        "whisper-large-v3",
        "gpt-4o" + "-latest" * 10_000,
        "gpt-4o-" * 10_000,
    ],
)
def test_near_misses_and_models_of_others_have_no_price(name: str) -> None:
    assert BUNDLED.find(name, None) is None
