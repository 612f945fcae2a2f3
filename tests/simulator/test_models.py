"""What the words of a model name mean."""

from __future__ import annotations

import pytest

from proxy.simulator.models import EXAMPLE_MODELS, MODEL_HELP, Fault, Script, Telling, UnknownWordError, read_model_name


@pytest.mark.parametrize(
    ("model", "script"),
    [
        ("gpt-4o", Script()),
        ("simple-model", Script()),
        ("sim", Script()),
        ("sim-fast", Script(interval_s=0.0)),
        ("sim-slow", Script(interval_s=0.25)),
        ("sim-200t-5ms", Script(answer_tokens=200, interval_s=0.005)),
        ("sim-ttft-2s", Script(first_byte_s=2.0)),
        ("sim-ttft-300ms-tools", Script(first_byte_s=0.3, calls_tools=True)),
        ("sim-error-503", Script(status=503)),
        ("sim-error-event-after-0", Script(fault=Fault.ERROR_EVENT, fault_after_events=0)),
        ("sim-garbage", Script(fault=Fault.GARBAGE, fault_after_events=3)),
        ("sim-crlf-split-7-not-a-stream", Script(crlf=True, split_bytes=7, not_a_stream=True)),
        ("sim-big-3k-refusal", Script(big_bytes=3072, refuses=True)),
        ("sim-flood-100", Script(flood_bytes=100, interval_s=0.0)),
        ("sim-no-usage-fast", Script(telling=Telling.NEVER, interval_s=0.0)),
        ("sim-no-usage-usage-each", Script(telling=Telling.EACH)),
        ("sim-no-stream-options", Script(knows_stream_options=False)),
        ("sim-slow-fast", Script(interval_s=0.0)),  # the last word counts
    ],
)
def test_names(model: str, script: Script) -> None:
    assert read_model_name(model) == script


@pytest.mark.parametrize(
    "model", ["sim-fsat", "sim-fast-", "sim--fast", "sim-fastest", "sim-split-0", "sim-error-200", "sim-ttft", "sim-٣t"]
)
def test_names_with_unknown_words(model: str) -> None:
    with pytest.raises(UnknownWordError):
        read_model_name(model)


def test_the_help_names_every_word_and_the_examples_are_understood() -> None:
    for fault in Fault:
        assert f"{fault.value}-after-<n>" in MODEL_HELP
    for model in EXAMPLE_MODELS:
        read_model_name(model)
