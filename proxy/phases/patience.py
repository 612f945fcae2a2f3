"""How long the client waits for an answer, as far as it says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.headers import header

if TYPE_CHECKING:
    from proxy.core.headers import RawHeaders

# `x-sluice-timeout` is ours; the others are what OpenAI's SDKs say of their own time limit (protocol.md section 1)
_NAMES: Final = (b"x-sluice-timeout", b"x-stainless-timeout", b"x-stainless-read-timeout")
_SECONDS: Final = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,9})?")


class Patience(NamedTuple):
    """Until when the client waits, on the monotonic clock; None where it does not say."""

    until_s: float | None

    @classmethod
    def of(cls, headers: RawHeaders, arrived_s: float) -> Patience:
        """What the request's headers say, in seconds from its arrival; nonsense says nothing."""
        for name in _NAMES:
            value = header(headers, name)
            if value is not None and _SECONDS.fullmatch(value.strip()):
                return cls(arrived_s + float(value))
        return cls(None)

    def left_s(self, now_s: float) -> float | None:
        """How much of it is left."""
        return None if self.until_s is None else max(0.0, self.until_s - now_s)
