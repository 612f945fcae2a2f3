"""Whatever stands in a configuration file, it is loaded or its problems are told: never a traceback, never a secret."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.problems import ConfigError
from proxy.config.schema import effective
from proxy.config.warnings import warnings
from tests.fakes.config_files import load_text

EXAMPLE = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "sluice.example.yaml").read_text())
DUMPER = getattr(yaml, "CDumper", yaml.Dumper)
ENVIRON = {
    "OPENAI_API_KEY": "sk-1",
    "TEAM_A_KEY": "0123456789abcdef",
    "TEAM_B_KEY_SHA256": "a1" * 32,
    "ODD": "\x00\udcff",
}


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where in the example something stands."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for step, member in steps for place in places(member, (*path, step)))]


def with_value(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = with_value(value[path[0]], path[1:], new)
    return copy


ODD_WORDS = (
    *("off", "null", "~", "5s", "1/day", "*", "[", "1e400", "\u0665"),
    *("${ODD}", "${NO}", "${NO:-5}", "${", "http://[", "http://h:99999999", "redis://["),
    *("2027-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"),
)
words = st.sampled_from(["", "9" * 400, *ODD_WORDS])
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), words, st.dates(), st.binary(max_size=4)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def survives(text: str | bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        try:
            config = load_text(Path(directory), text, ENVIRON)
        except ConfigError as error:
            problems = error.problems
        else:
            assert effective(config).startswith("server:")
            assert all(warnings(config))
            return
    assert problems
    assert all(problem.message and str(problem).isprintable() for problem in problems)


@given(place=st.sampled_from(places(EXAMPLE)), value=anything, flow=st.booleans())
def test_any_value_in_any_place(place: tuple[str | int, ...], value: Any, flow: bool) -> None:
    changed = with_value(EXAMPLE, place, value)
    survives(yaml.dump(changed, Dumper=DUMPER, default_flow_style=flow, allow_unicode=True).encode("utf-8"))


@given(place=st.sampled_from(places(EXAMPLE)), word=words)
def test_any_unquoted_word_in_any_place(place: tuple[str | int, ...], word: str) -> None:
    text: str = yaml.dump(with_value(EXAMPLE, place, "PLACEHOLDER"), Dumper=DUMPER)
    survives(text.replace("PLACEHOLDER", word))


@given(st.text("{}[]:,-&*!|>'\"%@` #?\n\tab<~\x00é", max_size=60))
def test_any_text_that_looks_like_yaml(text: str) -> None:
    survives(text)


@given(st.binary(max_size=40))
def test_any_bytes(raw: bytes) -> None:
    survives(raw)
