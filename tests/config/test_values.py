"""Secrets stay masked, durations and limits are read in every notation that is documented, and in no other."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.values import Secret, SecretUrl, duration_text, parse_duration


def test_secret_shows_itself_only_when_asked() -> None:
    secret = Secret("sk-very-secret")
    assert "very" not in f"{secret!r} {secret!s} {secret} {[secret]} {{1: {secret!r}}}"
    assert secret.reveal() == "sk-very-secret"
    assert not Secret("")
    assert str(Secret("")) == ""


def test_secrets_are_equal_by_value_and_kind() -> None:
    assert Secret("a") == Secret("a")
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret("a") != SecretUrl("a")


def test_secret_crosses_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(Secret("a"))) == Secret("a")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("sqlite:///sluice.db", "sqlite:///sluice.db"),
        ("sqlite:////var/lib/sluice.db", "sqlite:////var/lib/sluice.db"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:hush@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:hu@sh@host", "redis://***@host"),
        ("postgresql://host/db?user=me&password=hush", "postgresql://host/db?user=me&password=***"),
        ("redis://:hu/sh@host", "***"),
        ("redis://:hu#sh@host", "***"),
        ("redis://[hush@host", "***"),
    ],
)
def test_url_is_shown_without_its_credentials(url: str, shown: str) -> None:
    assert str(SecretUrl(url)) == shown
    assert SecretUrl(url).reveal() == url


@given(
    password=st.text("abcXYZ019@:/?#[]%&= ", min_size=1),
    form=st.sampled_from(["redis://u:{}@h/0", "postgresql://u:{}@h/d?x=1"]),
)
def test_no_password_is_ever_shown(password: str, form: str) -> None:
    """Also where it should have been percent-encoded and was not."""
    marked = f"hush{password}hush"
    assert "hush" not in repr(SecretUrl(form.format(marked)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("5s", 5), ("2m", 120), ("1h", 3600), ("1d", 86400), ("7", 7), ("0.5", 0.5), ("1.5m", 90)],
)
def test_duration_notations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1s", "5 s", "5S", "1e3", "inf", "nan", "5sec", "1h30m", "٣s", "1_0", "9" * 40])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(text)


@given(st.integers(0, 366 * 86400 * 1000))
def test_duration_text_reads_back(milliseconds: int) -> None:
    assert parse_duration(duration_text(milliseconds / 1000)) == milliseconds / 1000


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "200ms"), (90, "90s"), (7200, "2h"), (0, "0s"), (0.0005, "0.0005s")]
)
def test_duration_text_is_short(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
