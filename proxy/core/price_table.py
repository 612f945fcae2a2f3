"""What well-known models cost, for those that the configuration gives no price.

The figures are as of `AS_OF`, the last dated change in their sources: the price tables of genai-prices 0.2.3 and of
litellm 1.109.1, both of which name the vendors' own pages. A row stands here where the two agree or one alone knows the
model. Where they differ the newer figure was taken if its source tells which that is: genai-prices for
`mistral-large-4` and for the audio input of `gpt-4o-*transcribe*` (as in OpenAI's cookbook), litellm for
`mistral-large-latest`, `deepseek-chat` and `deepseek-reasoner`. Other models on which they differ are absent.

Prices are USD per million tokens, as strings so that they stay decimal. One price a model, therefore:

- Where it rises with the length of the prompt, that of the shortest; where it differs by the time of day (DeepSeek),
  the higher; where it is introductory, that which follows.
- A cache write costs that of the shortest time to live. Cached audio and images cost what cached text does.
- Fine-tuned models cost what their base costs fine-tuned, `ft:BASE`; what training costs is not known here.
- The output of image models is taken to be image, that of `gpt-4o-mini-tts` to be audio. Gemini's image models, whose
  answers mix text and image at very different prices, are absent.
- Service tiers (batch, flex, priority), regional supplements and tools charged by the call are not known here.

Models whose weights are open have no price of their own: it is their host's, or nothing. They are absent, but for
names that a single vendor uses.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

AS_OF: Final = dt.date(2026, 11, 9)


class Row(NamedTuple):
    """The price of a model in USD per million tokens, `audio_minute` in USD per minute; None: as the base kind."""

    input: str
    cached_input: str | None
    output: str
    cache_write: str | None = None
    audio_input: str | None = None
    image_input: str | None = None
    audio_output: str | None = None
    audio_minute: str = "0"


class Vendor(NamedTuple):
    """The models of one vendor.

    `prefixes` are those under which the same model costs the same elsewhere. Behind `dotted_prefix` its versions are
    also written `4.5`, where the vendor writes `4-5`.
    """

    rows: Mapping[str, Row]
    prefixes: tuple[str, ...] = ()
    dotted_prefix: str | None = None


_OPENAI: Final = {
    "gpt-6.1-sol": Row("2.00", "0.10", "10.00", cache_write="2.50"),
    "gpt-6.1-terra": Row("1.00", "0.05", "5.00", cache_write="1.25"),
    "gpt-6-astra": Row("10.00", "1.00", "50.00", cache_write="12.50"),
    "gpt-6-sol": Row("2.00", "0.20", "10.00", cache_write="2.50"),
    "gpt-6-luna": Row("0.10", "0.01", "0.50", cache_write="0.125"),
    "gpt-5.6": Row("4.00", "0.40", "20.00", cache_write="5.00"),
    "gpt-5.6-sol": Row("4.00", "0.40", "20.00", cache_write="5.00"),
    "gpt-5.6-terra": Row("2.00", "0.20", "12.00", cache_write="2.50"),
    "gpt-5.6-luna": Row("0.20", "0.02", "1.20", cache_write="0.25"),
    "gpt-5.5": Row("5.00", "0.50", "30.00"),
    "gpt-5.5-pro": Row("30.00", None, "180.00"),
    "chat-latest": Row("5.00", "0.50", "30.00"),
    "gpt-5.4": Row("2.50", "0.25", "15.00"),
    "gpt-5.4-pro": Row("30.00", None, "180.00"),
    "gpt-5.4-mini": Row("0.75", "0.075", "4.50"),
    "gpt-5.4-nano": Row("0.20", "0.02", "1.25"),
    "gpt-5.3-codex": Row("1.75", "0.175", "14.00"),
    "gpt-5.3-chat-latest": Row("1.75", "0.175", "14.00"),
    "gpt-5.2": Row("1.75", "0.175", "14.00"),
    "gpt-5.2-pro": Row("21.00", None, "168.00"),
    "gpt-5.2-codex": Row("1.75", "0.175", "14.00"),
    "gpt-5.2-chat-latest": Row("1.75", "0.175", "14.00"),
    "gpt-5.1": Row("1.25", "0.125", "10.00"),
    "gpt-5.1-codex": Row("1.25", "0.125", "10.00"),
    "gpt-5.1-codex-max": Row("1.25", "0.125", "10.00"),
    "gpt-5.1-codex-mini": Row("0.25", "0.025", "2.00"),
    "gpt-5.1-chat-latest": Row("1.25", "0.125", "10.00"),
    "gpt-5": Row("1.25", "0.125", "10.00"),
    "gpt-5-pro": Row("15.00", None, "120.00"),
    "gpt-5-mini": Row("0.25", "0.025", "2.00"),
    "gpt-5-nano": Row("0.05", "0.005", "0.40"),
    "gpt-5-codex": Row("1.25", "0.125", "10.00"),
    "gpt-5-chat-latest": Row("1.25", "0.125", "10.00"),
    "gpt-5-search-api": Row("1.25", "0.125", "10.00"),
    "gpt-4.1": Row("2.00", "0.50", "8.00"),
    "gpt-4.1-mini": Row("0.40", "0.10", "1.60"),
    "gpt-4.1-nano": Row("0.10", "0.025", "0.40"),
    "gpt-4o": Row("2.50", "1.25", "10.00"),
    "gpt-4o-2024-05-13": Row("5.00", None, "15.00"),
    "gpt-4o-mini": Row("0.15", "0.075", "0.60"),
    "gpt-4o-search-preview": Row("2.50", "1.25", "10.00"),
    "gpt-4o-mini-search-preview": Row("0.15", "0.075", "0.60"),
    "chatgpt-4o-latest": Row("5.00", None, "15.00"),
    "o4-mini": Row("1.10", "0.275", "4.40"),
    "o4-mini-deep-research": Row("2.00", "0.50", "8.00"),
    "o3": Row("2.00", "0.50", "8.00"),
    "o3-pro": Row("20.00", None, "80.00"),
    "o3-mini": Row("1.10", "0.55", "4.40"),
    "o3-deep-research": Row("10.00", "2.50", "40.00"),
    "o1": Row("15.00", "7.50", "60.00"),
    "o1-pro": Row("150.00", None, "600.00"),
    "computer-use-preview": Row("3.00", None, "12.00"),
    "codex-mini-latest": Row("1.50", "0.375", "6.00"),
    "gpt-4-turbo": Row("10.00", None, "30.00"),
    "gpt-4-turbo-preview": Row("10.00", None, "30.00"),
    "gpt-4-0125-preview": Row("10.00", None, "30.00"),
    "gpt-4-1106-preview": Row("10.00", None, "30.00"),
    "gpt-4": Row("30.00", None, "60.00"),
    "gpt-4-0613": Row("30.00", None, "60.00"),
    "gpt-3.5-turbo": Row("0.50", None, "1.50"),
    "gpt-35-turbo": Row("0.50", None, "1.50"),
    "gpt-3.5-turbo-0125": Row("0.50", None, "1.50"),
    "gpt-3.5-turbo-1106": Row("1.00", None, "2.00"),
    "gpt-3.5-turbo-16k": Row("3.00", None, "4.00"),
    "gpt-3.5-turbo-instruct": Row("1.50", None, "2.00"),
    "gpt-3.5-turbo-instruct-0914": Row("1.50", None, "2.00"),
    "davinci-002": Row("2.00", None, "2.00"),
    "babbage-002": Row("0.40", None, "0.40"),
    "ft:gpt-4.1": Row("3.00", "0.75", "12.00"),
    "ft:gpt-4.1-mini": Row("0.80", "0.20", "3.20"),
    "ft:gpt-4.1-nano": Row("0.20", "0.05", "0.80"),
    "ft:gpt-4o": Row("3.75", "1.875", "15.00"),
    "ft:gpt-4o-mini": Row("0.30", "0.15", "1.20"),
    "ft:o4-mini": Row("4.00", "1.00", "16.00"),
    "ft:gpt-4-0613": Row("30.00", None, "60.00"),
    "ft:gpt-3.5-turbo": Row("3.00", None, "6.00"),
    "ft:gpt-3.5-turbo-0125": Row("3.00", None, "6.00"),
    "ft:gpt-3.5-turbo-0613": Row("3.00", None, "6.00"),
    "ft:gpt-3.5-turbo-1106": Row("3.00", None, "6.00"),
    "ft:davinci-002": Row("12.00", None, "12.00"),
    "ft:babbage-002": Row("1.60", None, "1.60"),
    "gpt-audio-1.5": Row("2.50", None, "10.00", audio_input="32.00", audio_output="64.00"),
    "gpt-audio": Row("2.50", None, "10.00", audio_input="32.00", audio_output="64.00"),
    "gpt-audio-mini": Row("0.60", None, "2.40", audio_input="10.00", audio_output="20.00"),
    "gpt-4o-audio-preview": Row("2.50", None, "10.00", audio_input="40.00", audio_output="80.00"),
    "gpt-4o-mini-audio-preview": Row("0.15", None, "0.60", audio_input="10.00", audio_output="20.00"),
    "gpt-realtime-2.1": Row("4.00", "0.40", "24.00", audio_input="32.00", image_input="5.00", audio_output="64.00"),
    "gpt-realtime-2.1-mini": Row("0.60", "0.06", "2.40", audio_input="10.00", image_input="0.80", audio_output="20.00"),
    "gpt-realtime-2": Row("4.00", "0.40", "24.00", audio_input="32.00", image_input="5.00", audio_output="64.00"),
    "gpt-realtime-1.5": Row("4.00", "0.40", "16.00", audio_input="32.00", image_input="5.00", audio_output="64.00"),
    "gpt-realtime": Row("4.00", "0.40", "16.00", audio_input="32.00", image_input="5.00", audio_output="64.00"),
    "gpt-realtime-mini": Row("0.60", "0.06", "2.40", audio_input="10.00", image_input="0.80", audio_output="20.00"),
    "gpt-4o-realtime-preview": Row("5.00", "2.50", "20.00", audio_input="40.00", audio_output="80.00"),
    "gpt-4o-mini-realtime-preview": Row("0.60", "0.30", "2.40", audio_input="10.00", audio_output="20.00"),
    "gpt-4o-transcribe": Row("2.50", None, "10.00", audio_input="6.00"),
    "gpt-4o-transcribe-diarize": Row("2.50", None, "10.00", audio_input="6.00"),
    "gpt-4o-mini-transcribe": Row("1.25", None, "5.00", audio_input="3.00"),
    "gpt-transcribe": Row("0", None, "0", audio_minute="0.0045"),
    "whisper-1": Row("0", None, "0", audio_minute="0.006"),
    "gpt-4o-mini-tts": Row("0.60", None, "12.00"),
    "gpt-image-2.5-flare": Row("5.00", "1.25", "30.00", image_input="8.00"),
    "gpt-image-2.5-sunburst": Row("5.00", "1.25", "30.00", image_input="8.00"),
    "gpt-image-2": Row("5.00", "1.25", "30.00", image_input="8.00"),
    "gpt-image-1.5": Row("5.00", "1.25", "32.00", image_input="8.00"),
    "chatgpt-image-latest": Row("5.00", "1.25", "32.00", image_input="8.00"),
    "gpt-image-1": Row("5.00", "1.25", "40.00", image_input="10.00"),
    "gpt-image-1-mini": Row("2.00", "0.20", "8.00", image_input="2.50"),
    "text-embedding-3-large": Row("0.13", None, "0"),
    "text-embedding-3-small": Row("0.02", None, "0"),
    "text-embedding-ada-002": Row("0.10", None, "0"),
    "omni-moderation": Row("0", None, "0"),
}

_ANTHROPIC: Final = {
    "claude-fable-5-2": Row("8.00", "0.20", "40.00", cache_write="10.00"),
    "claude-fable-5-1": Row("10.00", "0.25", "50.00", cache_write="12.50"),
    "claude-fable-5": Row("10.00", "1.00", "50.00", cache_write="12.50"),
    "claude-mythos-5-2": Row("8.00", "0.20", "40.00", cache_write="10.00"),
    "claude-mythos-5-1": Row("10.00", "0.25", "50.00", cache_write="12.50"),
    "claude-mythos-5": Row("10.00", "1.00", "50.00", cache_write="12.50"),
    "claude-opus-5-5": Row("4.00", "0.20", "20.00", cache_write="5.00"),
    "claude-opus-5": Row("5.00", "0.50", "25.00", cache_write="6.25"),
    "claude-opus-4-8": Row("5.00", "0.50", "25.00", cache_write="6.25"),
    "claude-opus-4-7": Row("5.00", "0.50", "25.00", cache_write="6.25"),
    "claude-opus-4-6": Row("5.00", "0.50", "25.00", cache_write="6.25"),
    "claude-opus-4-5": Row("5.00", "0.50", "25.00", cache_write="6.25"),
    "claude-opus-4-1": Row("15.00", "1.50", "75.00", cache_write="18.75"),
    "claude-opus-4-0": Row("15.00", "1.50", "75.00", cache_write="18.75"),
    "claude-opus-4": Row("15.00", "1.50", "75.00", cache_write="18.75"),
    "claude-sonnet-5-5": Row("2.00", "0.10", "10.00", cache_write="2.50"),
    "claude-sonnet-5": Row("2.00", "0.20", "10.00", cache_write="2.50"),
    "claude-sonnet-4-6": Row("3.00", "0.30", "15.00", cache_write="3.75"),
    "claude-sonnet-4-5": Row("3.00", "0.30", "15.00", cache_write="3.75"),
    "claude-sonnet-4-0": Row("3.00", "0.30", "15.00", cache_write="3.75"),
    "claude-sonnet-4": Row("3.00", "0.30", "15.00", cache_write="3.75"),
    "claude-3-7-sonnet": Row("3.00", "0.30", "15.00", cache_write="3.75"),
    "claude-3-5-sonnet": Row("3.00", "0.30", "15.00", cache_write="3.75"),
    "claude-haiku-5-5": Row("0.10", "0.01", "0.50", cache_write="0.125"),
    "claude-haiku-4-5": Row("1.00", "0.10", "5.00", cache_write="1.25"),
    "claude-3-5-haiku": Row("0.80", "0.08", "4.00", cache_write="1.00"),
    "claude-3-opus": Row("15.00", "1.50", "75.00", cache_write="18.75"),
    "claude-3-haiku": Row("0.25", "0.03", "1.25", cache_write="0.30"),
}

_GOOGLE: Final = {
    "gemini-4-argon": Row("4.00", "0.20", "20.00"),
    "gemini-3.8-flash": Row("0.75", "0.075", "3.75"),
    "gemini-3.7-flash": Row("0.75", "0.075", "3.75"),
    "gemini-3.6-flash": Row("0.75", "0.075", "3.75"),
    "gemini-3.5-flash": Row("1.50", "0.15", "9.00"),
    "gemini-3.5-flash-lite": Row("0.30", "0.03", "2.50"),
    "gemini-3.1-pro-preview": Row("2.00", "0.20", "12.00"),
    "gemini-3.1-flash-lite": Row("0.25", "0.025", "1.50", audio_input="0.50"),
    "gemini-3-flash-preview": Row("0.50", "0.05", "3.00", audio_input="1.00"),
    "gemini-2.5-pro": Row("1.25", "0.125", "10.00"),
    "gemini-2.5-flash": Row("0.30", "0.03", "2.50", audio_input="1.00"),
    "gemini-2.5-flash-lite": Row("0.10", "0.01", "0.40", audio_input="0.30"),
    "gemini-pro-latest": Row("2.00", "0.20", "12.00"),
    "gemini-flash-latest": Row("0.75", "0.075", "3.75"),
    "gemini-flash-lite-latest": Row("0.30", "0.03", "2.50"),
    "gemini-embedding-2": Row("0.20", None, "0", audio_input="6.50", image_input="0.45"),
    "gemini-embedding-001": Row("0.15", None, "0"),
}

_MISTRAL: Final = {
    "mistral-large-4": Row("0.70", "0.07", "2.10"),
    "mistral-large-4-0": Row("0.70", "0.07", "2.10"),
    "mistral-large-2512": Row("0.50", "0.05", "1.50"),
    "mistral-large-latest": Row("0.50", "0.05", "1.50"),
    "mistral-medium-3-5": Row("1.50", "0.15", "7.50"),
    "mistral-medium-3.5": Row("1.50", "0.15", "7.50"),
    "mistral-medium-2604": Row("1.50", "0.15", "7.50"),
    "mistral-medium-latest": Row("1.50", "0.15", "7.50"),
    "mistral-small-2603": Row("0.15", "0.015", "0.60"),
    "mistral-small-latest": Row("0.15", "0.015", "0.60"),
    "ministral-14b-2512": Row("0.20", "0.02", "0.20"),
    "ministral-14b-latest": Row("0.20", "0.02", "0.20"),
    "ministral-8b-2512": Row("0.15", "0.015", "0.15"),
    "ministral-8b-latest": Row("0.15", "0.015", "0.15"),
    "ministral-3b-2512": Row("0.10", "0.01", "0.10"),
    "ministral-3b-latest": Row("0.10", "0.01", "0.10"),
    "devstral-2512": Row("0.40", "0.04", "2.00"),
    "devstral-latest": Row("0.40", "0.04", "2.00"),
    "codestral-2508": Row("0.30", "0.03", "0.90"),
    "codestral-latest": Row("0.30", "0.03", "0.90"),
    "pixtral-large-latest": Row("2.00", "0.20", "6.00"),
    "voxtral-small-2507": Row("0.10", "0.01", "0.40"),
    "voxtral-small-latest": Row("0.10", "0.01", "0.40"),
    "voxtral-small-transcribe-3-0": Row("0", None, "0", audio_minute="0.004"),
    "voxtral-mini-transcribe-3-0": Row("0", None, "0", audio_minute="0.0035"),
    "voxtral-mini-2602": Row("0", None, "0", audio_minute="0.003"),
    "voxtral-mini-latest": Row("0", None, "0", audio_minute="0.003"),
    "codestral-embed": Row("0.15", "0.015", "0"),
    "codestral-embed-2505": Row("0.15", "0.015", "0"),
    "mistral-embed": Row("0.10", None, "0"),
}

_DEEPSEEK: Final = {
    "deepseek-flash": Row("0.30", "0.006", "1.20"),
    "deepseek-v4-flash": Row("0.30", "0.006", "1.20"),
    "deepseek-v4-pro": Row("1.32", "0.044", "3.96"),
    "deepseek-chat": Row("0.28", "0.028", "0.42"),
    "deepseek-reasoner": Row("0.28", "0.028", "0.42"),
}

_GROQ: Final = {
    "llama-3.3-70b-versatile": Row("0.59", None, "0.79"),
    "llama-3.1-8b-instant": Row("0.05", None, "0.08"),
}

_XAI: Final = {
    "grok-4.7": Row("2.00", "0.50", "6.00"),
    "grok-4.6": Row("2.00", "0.50", "6.00"),
    "grok-4.5": Row("2.00", "0.30", "6.00"),
    "grok-4.3": Row("1.25", "0.20", "2.50"),
    "grok-4.20": Row("1.25", "0.20", "2.50"),
    "grok-4.20-reasoning": Row("1.25", "0.20", "2.50"),
    "grok-4.20-non-reasoning": Row("1.25", "0.20", "2.50"),
    "grok-4.20-multi-agent": Row("1.25", "0.20", "2.50"),
    "grok-4.20-0309-reasoning": Row("1.25", "0.20", "2.50"),
    "grok-4.20-0309-non-reasoning": Row("1.25", "0.20", "2.50"),
    "grok-4.20-multi-agent-0309": Row("1.25", "0.20", "2.50"),
    "grok-build-0.1": Row("1.00", "0.20", "2.00"),
}

# The prefixes are OpenRouter's, where these vendors' models cost the same (DeepSeek's do not), and Google's own
# `models/`.
VENDORS: Final = (
    Vendor(_OPENAI, ("openai/",)),
    Vendor(_ANTHROPIC, ("anthropic/",), dotted_prefix="anthropic/"),
    Vendor(_GOOGLE, ("google/", "models/")),
    Vendor(_MISTRAL, ("mistralai/",)),
    Vendor(_XAI, ("x-ai/",)),
    Vendor(_DEEPSEEK),
    Vendor(_GROQ),
)
