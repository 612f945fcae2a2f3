"""Which of the optional packages are installed."""

from __future__ import annotations

import importlib.util
from typing import Final

_OTEL: Final = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


def can_trace() -> bool:
    """The extra `otel`: the SDK, and the exporter that we use."""
    try:
        return all(importlib.util.find_spec(module) is not None for module in _OTEL)
    except ModuleNotFoundError:
        return False
