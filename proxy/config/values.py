"""The values a configuration is made of: secrets, durations and limits."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit

MASK: Final = "***"

_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)?")
_MS_PER_UNIT: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_CREDENTIAL_NAME: Final = re.compile(
    r"key|token|secret|passw|signature|credential|authoriz|cookie|^sig$|^code$", re.IGNORECASE
)


class Secret:
    """A text that never shows itself: `repr` and `str` are masked, `reveal()` gives it away."""

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself, for the one place that sends or hashes it."""
        return self._value

    def masked(self) -> str:
        """What may be shown: nothing but whether there is a value."""
        return MASK if self._value else ""

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._value == other.reveal()

    def __hash__(self) -> int:
        return hash(self._value)

    def __str__(self) -> str:
        return self.masked()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.masked()!r})"


class SecretUrl(Secret):
    """A URL that may hold credentials: shown without its user information and credential-like query values."""

    __slots__ = ()

    def masked(self) -> str:
        """The URL with its user information, and query values named like credentials, replaced."""
        try:
            parts = urlsplit(self._value)
        except ValueError:
            return MASK
        if "@" in parts.path + parts.query + parts.fragment:
            return MASK  # a password with / ? or # as it is: where it ends cannot be told
        _, at, host = parts.netloc.rpartition("@")
        members = parse_qsl(parts.query, keep_blank_values=True)
        shown = "&".join(f"{quote(k)}={MASK if is_credential_name(k) else quote(v, safe='/')}" for k, v in members)
        authority = "//" if "://" in self._value else ""
        scheme = f"{parts.scheme}:" if parts.scheme else ""
        return f"{scheme}{authority}{MASK if at else ''}{at}{host}{parts.path}{'?' if shown else ''}{shown}"


def is_credential_name(name: str) -> bool:
    """Whether a query member or a header of this name likely holds a credential."""
    return _CREDENTIAL_NAME.search(name) is not None


def parse_duration(text: str) -> float:
    """Seconds from `250ms`, `5s`, `2m`, `1h`, `1d` or a number of seconds. Raises `ValueError`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("must be a duration: 250ms, 5s, 2m, 1h, 1d or a number of seconds")
    return float(Decimal(match[1]) * _MS_PER_UNIT[match[2] or "s"] / 1000)


def duration_text(seconds: float) -> str:
    """The shortest notation that `parse_duration` reads back as the same number of seconds."""
    milliseconds = Decimal(repr(seconds)) * 1000
    for unit in ("d", "h", "m", "s", "ms"):
        if milliseconds and milliseconds % _MS_PER_UNIT[unit] == 0:
            return f"{milliseconds / _MS_PER_UNIT[unit]:f}".partition(".")[0] + unit
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def is_in_memory(ledger_url: SecretUrl) -> bool:
    """Whether a ledger at this URL ends with the process."""
    return ledger_url.reveal() in ("sqlite://", "sqlite:///", "sqlite:///:memory:")
