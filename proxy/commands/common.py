"""What the commands share: the configuration they work on, and how they fail."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.config.settings import Config

CONFIG_OPTION = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="SLUICE_CONFIG",
    help="The configuration file (YAML). Also SLUICE_CONFIG.",
)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import much without the garbage collector, which looks for a tenth of the time at what all stays."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def load(path: Path) -> Config:
    """The configuration in `path`; one with mistakes ends the command, every mistake named."""
    from proxy.config.file import load as read
    from proxy.config.problems import ConfigError

    try:
        return read(path, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        count = len(error.problems)
        click.echo(f"{path}: {count} mistake{'s' if count != 1 else ''}", err=True)
        sys.exit(2)


def load_or_default(path: Path | None) -> Config:
    """The configuration in `path`; without one that which `serve` makes up: same ledger, same ids of keys."""
    if path is not None:
        return load(path)
    from proxy.config.file import state_directory, without_file

    # nothing is asked of an upstream here: the simulator's address is not known before it runs
    return without_file(os.environ, state_directory(os.environ), simulator_url="http://127.0.0.1/v1")[0]


def fail(message: str, *, code: int = 1) -> NoReturn:
    """End the command with one line and an exit code: 1 for what failed, 2 for what was asked wrongly."""
    click.echo(f"sluice: {message}", err=True)
    sys.exit(code)
