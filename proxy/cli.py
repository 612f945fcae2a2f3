"""The `sluice` command. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

Commands import what they need when they run, so that `sluice --help` answers at once and `serve` never pays for the
OpenAI SDK.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import click

from proxy import __version__
from proxy.commands import keys
from proxy.commands.common import CONFIG_OPTION, fail, importing, load, load_or_default
from proxy.stores.base import LedgerProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from proxy.serving import Served
    from proxy.stores.usage import Dimension

_DIMENSIONS = ("key", "model", "day", "upstream", "endpoint", "outcome")
_PORT = click.IntRange(0, 65535)
_STANDARD_ERROR = 2
_BASE_URL = "http://127.0.0.1:8080/v1"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sluice")
def main() -> None:
    """Sluice: an OpenAI-compatible streaming proxy.

    Start with `sluice demo`, or `sluice serve` and paste the curl line that it prints.
    """
    _open_what_is_closed()


@main.command()
@CONFIG_OPTION
@click.option("--host", metavar="ADDRESS", help="Listen here instead of `server.host`.")
@click.option("--port", type=_PORT, metavar="PORT", help="Listen here instead of `server.port`; 0 takes a free one.")
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Processes, instead of `server.workers`.")
def serve(config_file: Path | None, host: str | None, port: int | None, workers: int | None) -> None:
    """Run the proxy until SIGTERM or Ctrl-C.

    SIGHUP takes over what the configuration says then.

    Without a configuration it listens on loopback, makes a key for this run, and forwards to OpenAI if OPENAI_API_KEY
    is set, else to the built-in simulator.
    """
    _leave_when_told()
    with importing():
        from proxy import serving
        from proxy.config import file

    chosen = None if config_file is None else load(config_file)
    read = None if config_file is None else functools.partial(file.load, config_file, os.environ)
    asked = (("host", host), ("port", port), ("workers", workers))
    overrides = {name: value for name, value in asked if value is not None}
    banner = functools.partial(_banner, config_file=config_file)
    _run(serving.serve(chosen, overrides, read=read, banner=banner))


@main.command("_nursery", hidden=True)
@click.argument("control", type=int)
def nursery(control: int) -> None:
    """Be what the workers of `serve` are forked from, and each of them: `serve` alone starts this."""
    with importing():
        from proxy import prefork, process
    loop_factory = _loop_factory()
    newborn = prefork.fork_when_asked(socket.socket(fileno=control))
    if newborn is not None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            code = runner.run(process.work(*newborn))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the interpreter would tidy up all that is shared, and copy it for that


@main.command()
@click.option("--port", type=_PORT, metavar="PORT", default=8080, show_default=True, help="Listen here, if it is free.")
@click.option("--once", is_flag=True, help="Stop after the first answer instead of serving on.")
def demo(port: int, *, once: bool) -> None:
    """See it work: simulator, proxy and a first chat.

    One command starts a simulated upstream and the proxy before it, asks a question with the OpenAI SDK, and then
    serves until Ctrl-C.
    """
    from proxy import serving

    _run(serving.demo(port, once=once, banner=_banner, echo=click.echo))


@main.command("check-config")
@CONFIG_OPTION
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
def check_config(config_file: Path | None, file: Path | None) -> None:
    """Check a configuration, name every mistake.

    A configuration in order is printed as it is in effect, defaults included and secrets masked.
    """
    from proxy.config.schema import effective
    from proxy.config.warnings import warnings

    chosen = file or config_file
    if chosen is None:
        raise click.UsageError("name a configuration: sluice check-config FILE")
    config = load(chosen)
    click.echo(effective(config), nl=False)
    for warning in warnings(config):
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{chosen}: in order", err=True)


@main.command()
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Listen here.")
@click.option("--port", type=_PORT, metavar="PORT", default=8081, show_default=True, help="0 takes a free one.")
def simulate(host: str, port: int) -> None:
    """Run an OpenAI-compatible upstream with no model.

    The names of models say how it answers: how long, how fast, and with which faults. It prints them when it starts.
    """
    from proxy import serving

    _run(serving.simulate(host, port, echo=click.echo))


@main.command()
@click.argument("message", required=False)
@click.option("--model", metavar="NAME", default="sim", show_default=True, help="The model to ask.")
@click.option(
    "--base-url",
    metavar="URL",
    envvar="SLUICE_BASE_URL",
    default=_BASE_URL,
    show_default=True,
    help="Where the proxy is. Also SLUICE_BASE_URL.",
)
@click.option("--key", metavar="KEY", envvar="SLUICE_API_KEY", help="A key of the proxy's. Also SLUICE_API_KEY.")
def chat(message: str | None, model: str, base_url: str, key: str | None) -> None:
    """Chat in the terminal through the proxy.

    Ctrl-C stops an answer, Ctrl-D ends. With MESSAGE, or with input from a pipe, one answer is printed.
    """
    from proxy.commands.chat import run

    if not key:
        raise click.UsageError("no key: set SLUICE_API_KEY or give --key")
    if not key.isascii():
        raise click.UsageError("the key has characters that no HTTP header takes")
    if (wrong := _wrong_with(base_url)) is not None:
        raise click.UsageError(f"--base-url {wrong}, such as {_BASE_URL}")
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read()
    if message is not None and not message.strip():
        raise click.UsageError("the message is empty")
    failure = run(message, model=model, base_url=base_url, key=key)
    if failure is not None:
        fail(failure)


@main.command()
@CONFIG_OPTION
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(_DIMENSIONS),
    default=("key",),
    help="One line for each of these; may be repeated. [default: key]",
)
@click.option(
    "--since", metavar="WHEN", default="30d", show_default=True, help="2026-11-01, 2026-11-01T12:00Z, 7d, 12h."
)
@click.option("--until", metavar="WHEN", help="Likewise; up to it, without it. [default: now]")
@click.option("--key", "key_id", metavar="ID", help="Only this key.")
@click.option("--model", metavar="NAME", help="Only this model.")
@click.option(
    "--format",
    "style",
    type=click.Choice(("table", "json", "csv")),
    default="table",
    show_default=True,
    help="How to print it.",
)
def usage(
    config_file: Path | None,
    *,
    by: tuple[Dimension, ...],
    since: str,
    until: str | None,
    key_id: str | None,
    model: str | None,
    style: str,
) -> None:
    """Report requests, tokens and cost from the ledger.

    One line per key, or per whatever --by names: --by day --by key. Days and times are UTC; 7d begins at the midnight
    seven days ago. JSON and CSV hold exact numbers.
    """
    from proxy.admin.periods import PeriodError, period
    from proxy.commands.usage import run
    from proxy.stores.usage import Query

    try:
        since_ms, until_ms = period(since, until, time.time_ns() // 1_000_000)
    except PeriodError as error:
        raise click.UsageError(f"--{error.end} {error}") from error
    query = Query(tuple(dict.fromkeys(by)), since_ms, until_ms, key_id, model)
    failure = run(load_or_default(config_file).ledger.url, query, style)
    if failure is not None:
        fail(failure)


main.add_command(keys.keys)


def _wrong_with(base_url: str) -> str | None:
    """What keeps a URL from being one that an SDK takes, in words; None if nothing does."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError as error:
        return f"is no URL ({error})"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "must begin with http:// or https:// and a host"
    return "has no port that one can connect to" if port == 0 else None


def _banner(served: Served, config_file: Path | None = None) -> None:
    """One short banner on standard error; standard output is for log lines."""
    options = "" if config_file is None else f" --config {config_file}"
    lines = [
        f"Sluice {__version__}",
        f"  API        {served.base_url}",
        f"  operators  {served.ops_url}  (/metrics /healthz /readyz /admin)",
        *(f"  upstream   {name}  {url}" for name, url in served.upstreams),
        f"  ledger     {served.ledger}  (sluice usage{options}, sluice keys{options})",
    ]
    if served.key is not None:
        lines.append(f"  key        {served.key}  (made for this run)")
    lines += [f"  warning    {warning}" for warning in served.warnings]
    how = "Try it:" if served.key is not None else "Try it, with a key in SLUICE_API_KEY:"
    lines += ["", how, "", served.curl(), ""]
    click.echo("\n".join(lines), err=True)


def _open_what_is_closed() -> None:
    """Put /dev/null where a standard stream is closed, or a socket would get its number, which libuv cannot close."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin, sys.stdout = sys.stdin or os.fdopen(0, closefd=False), sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(_STANDARD_ERROR, "w", closefd=False)


def _leave_when_told() -> None:
    """End well on a signal that comes before the proxy runs. As the first process of a container nobody else would."""

    def leave(*_: object) -> NoReturn:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` on the loop of choice. An address that cannot be had, or a file, is a failure told in one line."""
    from proxy.control import StartError, told

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(work)
        except StartError as problem:
            fail(str(problem))
        except (LedgerProblem, OSError) as problem:
            fail(told(problem))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Take uvloop where it is installed; SLUICE_LOOP=asyncio takes the standard library's loop."""
    if os.environ.get("SLUICE_LOOP", "uvloop") == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        click.echo("uvloop is not installed: running on asyncio's own loop", err=True)
        return None
    return uvloop.new_event_loop
