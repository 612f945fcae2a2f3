"""The two forms of the relay, for tests that are run over both."""

from __future__ import annotations

from typing import Final

import pytest

AT_THE_TRANSPORT: Final = "at the transport"
PLAIN: Final = "plain"
NEITHER: Final = "neither"

# for a test in a module that uses `relay_form`: it relays no events, so is run once, and fails where it does
EVENTLESS: Final = pytest.mark.parametrize("relay_form", [NEITHER], indirect=True)
