"""`sluice keys`: keys made at run time, in the ledger that running proxies read.

Secrets alone go to standard output, so that a shell can keep them in a variable; what is to be said goes to standard
error.
"""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.commands.common import CONFIG_OPTION, fail, load_or_default

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL

    from proxy.config.settings import Config
    from proxy.stores.keys import KeyStore, StoredKey

_ID = click.argument("key_id", metavar="ID")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, secret included.")


def _limit_option(kind: str, what: str, example: str) -> Callable[..., Any]:
    help_text = f"{what} per window, instead of the plan's, such as {example}; repeatable."
    return click.option(f"--{kind}", multiple=True, metavar="LIMIT", help=help_text)


@click.group()
def keys() -> None:
    """Make, list, revoke and rotate clients' keys.

    These keys live in the ledger, and running proxies heed every change within a second. Keys of the configuration file
    are changed there.
    """


@keys.command()
@_ID
@CONFIG_OPTION
@click.option("--plan", metavar="NAME", help="The plan whose limits apply.")
@click.option("--expires", metavar="WHEN", help="A date (2027-01-01, UTC), a time, or a duration from now (90d).")
@_limit_option("requests", "Requests", "60/minute")
@_limit_option("tokens", "Tokens", "200000/minute")
@_limit_option("spend", "USD", "2.50/day")
@click.option(
    "--concurrency", type=click.IntRange(min=1), metavar="N", help="Exchanges at once, instead of the plan's."
)
@_JSON
def create(
    key_id: str,
    config_file: Path | None,
    plan: str | None,
    expires: str | None,
    *,
    as_json: bool,
    **limits: Any,
) -> None:
    """Make a key named ID and print its secret."""
    from proxy.commands import keys_table

    config = load_or_default(config_file)
    now_ms = _now_ms()
    _check_id(key_id, config)
    _check_plan(plan, config)
    expires_ms = None if expires is None else _expiry_ms(expires, now_ms)
    chosen = _limits(limits)
    with _store(config, may_make_ledger=True) as store:
        key, secret = store.create(key_id, plan=plan, limits=chosen, expires_ms=expires_ms, now_ms=now_ms)
    until = "" if key.expires_ms is None else f", until {keys_table.shown(key.expires_ms)} UTC"
    _say(f"key {key.id} is made ({_plan_of(key)}{until}); its secret is shown this once")
    _give(key, secret, as_json=as_json)


@keys.command("list")
@CONFIG_OPTION
@click.option("--all", "with_revoked", is_flag=True, help="Revoked keys, too.")
@click.option(
    "--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True, help="For whom."
)
def list_(config_file: Path | None, style: str, *, with_revoked: bool) -> None:
    """Show the keys in the ledger, never their secrets."""
    from proxy.admin.shown import judge, of_ledger
    from proxy.commands import keys_table

    config = load_or_default(config_file)
    with _store(config) as store:
        stored = store.all()
    now_ms = _now_ms()
    state = judge(config, now_ms)
    shown = [key for key in stored if with_revoked or key.revoked_ms is None]
    if style == "json":
        keys_table.print_json([of_ledger(key, state(key)) for key in shown])
        return
    if shown:
        keys_table.print_table([(key, state(key)) for key in shown], now_ms)
    hidden = len(stored) - len(shown)
    aside = [f"{hidden} revoked, see --all"] if hidden else []
    if config_file is not None and config.keys:
        aside.append(f"{len(config.keys)} more in {config_file}")
    _say(f"{len(shown)} key{'' if len(shown) == 1 else 's'}" + "".join(f"; {more}" for more in aside))


@keys.command()
@_ID
@CONFIG_OPTION
def revoke(key_id: str, config_file: Path | None) -> None:
    """End the key named ID, for good."""
    config = load_or_default(config_file)
    with _store(config, changing=key_id) as store:
        store.revoke(key_id, _now_ms())
    _say(f"key {key_id} is revoked: running proxies refuse it within a second")


@keys.command()
@_ID
@CONFIG_OPTION
@click.option(
    "--grace",
    metavar="DURATION",
    default="24h",
    show_default=True,
    help="How long the old secret stays good; 0: it ends.",
)
@_JSON
def rotate(key_id: str, config_file: Path | None, grace: str, *, as_json: bool) -> None:
    """Print a new secret for the key named ID.

    The secret before it stays good for a while, so that clients can be moved; one that leaked is ended with --grace 0.
    """
    from proxy.commands import keys_table

    config = load_or_default(config_file)
    grace_ms = _grace_ms(grace)
    with _store(config, changing=key_id) as store:
        key, secret = store.rotate(key_id, grace_ms=grace_ms, now_ms=_now_ms())
    until_ms = key.previous_until_ms
    old = "ends now" if until_ms is None else f"is good until {keys_table.shown(until_ms)} UTC"
    _say(f"key {key.id} has a new secret, shown this once; the old one {old}")
    _give(key, secret, as_json=as_json)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _say(text: str) -> None:
    click.echo(text, err=True)


@contextlib.contextmanager
def _store(config: Config, *, may_make_ledger: bool = False, changing: str | None = None) -> Iterator[KeyStore]:
    """The keys of the configured ledger, brought to this version's form; what fails there ends the command."""
    from sqlalchemy.exc import DBAPIError

    from proxy.stores.base import LedgerProblem
    from proxy.stores.database import migrate, open_database, reason_of
    from proxy.stores.keys import KeyProblem, KeyStore

    with contextlib.ExitStack() as stack:
        try:
            engine = open_database(config.ledger.url.reveal())
            stack.callback(engine.dispose)
            _expect_file(engine.url, may_make=may_make_ledger)
            migrate(engine)
            yield KeyStore(engine)
        except KeyProblem as problem:
            named = any(key.id == changing for key in config.keys)
            fail(f"{problem}; it stands in the configuration, and is changed there" if named else str(problem))
        except LedgerProblem as problem:
            fail(str(problem))
        except DBAPIError as error:
            fail(f"the ledger {config.ledger.url} cannot be used: {reason_of(error)}")
        except OSError as error:
            fail(f"the ledger {config.ledger.url} cannot be used: {error.strerror}")


def _expect_file(url: URL, *, may_make: bool) -> None:
    """A ledger in a file is there, or may be made: only a first key makes one, in a place to be told."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    file = Path(url.database).absolute()
    if file.exists():
        return
    if not may_make:
        fail(f"there is no ledger {file} yet: `sluice keys create` makes one")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _say(f"a new ledger is made: {file}")


def _check_id(key_id: str, config: Config) -> None:
    from proxy.admin.wishes import wrong_with_id

    if (wrong := wrong_with_id(key_id)) is not None:
        fail(f"an ID {wrong}", code=2)
    if any(key.id == key_id for key in config.keys):
        fail(f"the configuration has a key {key_id} already", code=2)


def _check_plan(plan: str | None, config: Config) -> None:
    from proxy.admin.wishes import wrong_with_plan

    if (wrong := wrong_with_plan(plan, config)) is not None:
        fail(f"--plan: {wrong}", code=2)


def _limits(given: dict[str, Any]) -> dict[str, Any] | None:
    """The limits on the command line, checked like those of a file and in their form; None where there are none."""
    from proxy.admin.wishes import wrong_with_limits

    for kind, _, wrong in wrong_with_limits(given):
        fail(f"--{kind} {wrong}", code=2)
    return {kind: value for kind, value in given.items() if value} or None


def _expiry_ms(text: str, now_ms: int) -> int:
    """UNIX time in milliseconds of a date, a time, or a duration from now. What has no zone is UTC."""
    from proxy.admin.wishes import wrong_with_expiry
    from proxy.config.values import parse_duration

    wrong = "--expires must be a date (2027-01-01), a time (2027-01-01T12:00Z) or a duration (90d)"
    if not text[-1:].isalpha() and "-" not in text:  # "2027" would be half an hour
        fail(wrong, code=2)
    try:
        expires_ms = now_ms + round(parse_duration(text) * 1000)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
            expires_ms = round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
        except (ValueError, OverflowError):
            fail(wrong, code=2)
    if (refused := wrong_with_expiry(expires_ms, now_ms)) is not None:
        fail(f"--expires {text} {refused}", code=2)
    return expires_ms


def _grace_ms(text: str) -> int:
    from proxy.admin.wishes import grace_ms

    try:
        return grace_ms(text)
    except ValueError as error:
        fail(f"--grace {error}", code=2)


def _plan_of(key: StoredKey) -> str:
    plan = "no plan" if key.plan is None else f"plan {key.plan}"
    if key.limits:
        return f"{plan}, limits of its own"
    return plan if key.plan is not None else f"{plan}, no limits"


def _give(key: StoredKey, secret: str, *, as_json: bool) -> None:
    import msgspec

    from proxy.admin.shown import of_ledger
    from proxy.commands import keys_table

    if as_json:
        keys_table.print_json({**msgspec.structs.asdict(of_ledger(key, "active")), "secret": secret})
    else:
        click.echo(secret)
