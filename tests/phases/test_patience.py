"""How long the client waits, as far as its headers say."""

from __future__ import annotations

import pytest

from proxy.phases.patience import Patience


@pytest.mark.parametrize(
    ("headers", "until_s"),
    [
        ([], None),
        ([(b"x-sluice-timeout", b"2.5")], 102.5),
        ([(b"X-Sluice-Timeout", b" 30 ")], 130.0),
        ([(b"x-stainless-timeout", b"600")], 700.0),
        ([(b"x-stainless-read-timeout", b"600.0")], 700.0),
        ([(b"x-stainless-timeout", b"600"), (b"x-sluice-timeout", b"1")], 101.0),
        ([(b"x-sluice-timeout", b"soon"), (b"x-stainless-timeout", b"7")], 107.0),
        ([(b"x-sluice-timeout", b"0")], 100.0),
    ],
)
def test_what_the_headers_say(headers: list[tuple[bytes, bytes]], until_s: float | None) -> None:
    assert Patience.of(headers, 100.0).until_s == until_s


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"-1", b"+1", b"1e9", b"nan", b"inf", b"1_0", b"0x10", b"1,5", b".5", b"5.", b"9" * 400, b"NaN", b"\xb2"],
)
def test_nonsense_says_nothing(nonsense: bytes) -> None:
    assert Patience.of([(b"x-sluice-timeout", nonsense)], 100.0).until_s is None


def test_it_runs_out_and_not_below_nothing() -> None:
    patience = Patience.of([(b"x-sluice-timeout", b"2")], 100.0)
    assert [patience.left_s(now_s) for now_s in (100.0, 101.5, 102.0, 500.0)] == [2.0, 0.5, 0.0, 0.0]
    assert Patience(None).left_s(100.0) is None
