"""Configuration files for tests: written to a temporary place, loaded, and what went wrong as plain tuples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config.file import load
from proxy.config.problems import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from proxy.config.settings import Config

UPSTREAM = "upstreams: {local: {base_url: http://127.0.0.1:1, auth: none}}\n"
"""One line that is enough of a configuration; what a test adds begins on line 2."""


def load_text(directory: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> Config:
    """Load `text` as the file `sluice.yaml`."""
    file = directory / "sluice.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(file, environ or {})


def problems_of(
    directory: Path, text: str | bytes, environ: Mapping[str, str] | None = None
) -> list[tuple[str, int | None, str]]:
    """Path, line and message of all that is wrong with `text`; empty if nothing is."""
    try:
        load_text(directory, text, environ)
    except ConfigError as error:
        return [(problem.path, problem.line, problem.message) for problem in error.problems]
    return []
