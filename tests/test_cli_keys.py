"""`sluice keys` as an operator meets it: what goes where, how it ends, and what a proxy makes of the result."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from proxy import cli
from proxy.phases.authenticate import Keyring
from proxy.stores.database import open_database
from proxy.stores.keys import KeyStore
from tests.fakes.commands import command, environment, in_terminal
from tests.fakes.stored_keys import PLANS

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG = """\
ledger: {url: "sqlite:///LEDGER"}
upstreams:
  up: {base_url: "http://127.0.0.1:1/v1", auth: none}
plans:
  standard: {requests: ["60/minute"]}
keys:
  - {id: team-a, secret: sk-team-a-secret-000000, plan: standard}
"""
_SECRET = re.compile(r"sk-sluice-[A-Za-z0-9_-]{43}\n")


class Operator:
    """Somebody with a configuration and its ledger."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "state" / "ledger.db"
        self.config = folder / "sluice.yaml"
        self.config.write_text(_CONFIG.replace("LEDGER", str(self.ledger)))

    def runs(self, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of `sluice keys …`."""
        env = {"SLUICE_CONFIG": str(self.config), "OPENAI_API_KEY": None}
        result = CliRunner().invoke(cli.main, ["keys", *words], env=env, prog_name="sluice")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    def makes(self, *words: str) -> str:
        """A new key or a new secret; the secret."""
        code, out, errors = self.runs(*words)
        assert (code, bool(_SECRET.fullmatch(out))) == (0, True), errors
        return out.strip()

    def good(self, secret: str, at_s: float | None = None) -> str | None:
        """Whose secret it is, to a proxy that reads this ledger."""
        keyring = Keyring([], PLANS)
        engine = open_database(f"sqlite:///{self.ledger}")
        keyring.update(KeyStore(engine).changed_since(None))
        engine.dispose()
        holder = keyring.holder(secret.encode(), time.time() if at_s is None else at_s)
        return None if holder is None else holder.key_id

    def listed(self, *words: str) -> list[dict[str, object]]:
        code, out, _ = self.runs("list", "--format", "json", *words)
        assert code == 0
        found: list[dict[str, object]] = json.loads(out)
        return found


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def test_a_key_is_made_used_rotated_and_revoked(operator: Operator) -> None:
    first = operator.makes("create", "bob", "--plan", "standard", "--expires", "90d")
    assert operator.good(first) == "bob"
    assert operator.good(first, time.time() + 91 * 86400) is None
    second = operator.makes("rotate", "bob")
    assert operator.good(first) == operator.good(second) == "bob"
    assert operator.good(first, time.time() + 25 * 3600) is None
    third = operator.makes("rotate", "bob", "--grace", "0")
    assert [operator.good(secret) for secret in (first, second, third)] == [None, None, "bob"]
    assert operator.runs("revoke", "bob")[0] == 0
    assert operator.good(third) is None
    assert operator.ledger.stat().st_mode & 0o077 == 0


def test_the_secret_alone_is_on_standard_output_and_nowhere_else(operator: Operator) -> None:
    code, out, errors = operator.runs("create", "bob", "--requests", "5/minute")
    assert code == 0
    assert _SECRET.fullmatch(out)
    assert str(operator.ledger) in errors, "a new ledger is told with its place"
    assert "key bob is made (no plan, limits of its own); its secret is shown this once" in errors
    others = [operator.runs("list", *words)[1:] for words in ([], ["--all"], ["--format", "json"])]
    assert out.strip() not in errors + repr(others)
    assert out.strip().encode() not in operator.ledger.read_bytes()


def test_json_has_the_secret_once_and_the_rest(operator: Operator) -> None:
    given = ("--requests", "60/minute", "--requests", "500/day", "--spend", "2.50/day", "--concurrency", "3")
    _, out, _ = operator.runs("create", "bob", *given, "--expires", "2199-01-01", "--json")
    made = json.loads(out)
    assert operator.good(made.pop("secret")) == "bob"
    assert made["expires"] == "2199-01-01T00:00:00Z"
    assert made["limits"] == {"requests": ["60/minute", "500/day"], "spend": ["2.50/day"], "concurrency": 3}
    assert made["state"] == "active"
    assert operator.listed() == [made]
    rotated = json.loads(operator.runs("rotate", "bob", "--json")[1])
    assert operator.good(rotated["secret"]) == "bob"
    assert rotated["old_secret_until"] is not None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["create", "a b"], "an ID must be 1 to 128 letters, digits"),
        (["create", "-x"], "No such option"),
        (["create", "team-a"], "the configuration has a key team-a already"),
        (["create", "x", "--plan", "standrad"], "no plan 'standrad'; did you mean standard?"),
        (["create", "x", "--expires", "2027"], "--expires must be a date"),
        (["create", "x", "--expires", ""], "--expires must be a date"),
        (["create", "x", "--expires", "next year"], "--expires must be a date"),
        (["create", "x", "--expires", "2001-01-01"], "--expires 2001-01-01 is past"),
        (["create", "x", "--expires", "0s"], "is past"),
        (["create", "x", "--expires", "999999999999d"], "is too far away"),
        (["create", "x", "--requests", "many"], "--requests must be an amount and a window, such as 60/minute"),
        (["create", "x", "--tokens", "1.5/day"], "--tokens must be a whole amount"),
        (["create", "x", "--concurrency", "0"], "Invalid value for '--concurrency'"),
        (["rotate", "x", "--grace", "-1h"], "--grace must be a duration"),
        (["rotate", "x", "--grace", "400d"], "--grace must be at most 366d"),
    ],
)
def test_what_is_asked_wrongly_makes_nothing(operator: Operator, words: list[str], says: str) -> None:
    code, out, errors = operator.runs(*words)
    assert (code, out) == (2, "")
    assert says in errors.splitlines()[-1]
    assert not operator.ledger.exists()


def test_what_cannot_be_done_fails_in_one_line(operator: Operator) -> None:
    operator.makes("create", "bob")
    operator.makes("create", "gone")
    operator.runs("revoke", "gone")
    for words, says in (
        (["create", "bob"], "there is a key bob already"),
        (["create", "gone"], "its id stays taken"),
        (["revoke", "gone"], "key gone is revoked already"),
        (["rotate", "gone"], "key gone is revoked already"),
        (["revoke", "nobody"], "there is no key nobody in the ledger"),
        (["revoke", "team-a"], "it stands in the configuration, and is changed there"),
    ):
        code, out, errors = operator.runs(*words)
        assert (code, out, errors.count("\n")) == (1, "", 1)
        assert errors.startswith("sluice: ")
        assert says in errors


@pytest.mark.parametrize("words", [["list"], ["revoke", "x"], ["rotate", "x"]])
def test_only_a_first_key_makes_a_ledger(operator: Operator, words: list[str]) -> None:
    code, out, errors = operator.runs(*words)
    assert (code, out) == (1, "")
    assert f"there is no ledger {operator.ledger} yet" in errors
    assert not operator.ledger.parent.exists()


def test_a_database_that_cannot_be_used_is_told_without_its_password(operator: Operator, tmp_path: Path) -> None:
    url = f"postgresql://me:hunter2@/db?host={tmp_path}"
    operator.config.write_text(_CONFIG.replace("sqlite:///LEDGER", url))
    code, out, errors = operator.runs("list")
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert "cannot be used: connection" in errors
    assert "hunter2" not in errors
    operator.config.write_text(_CONFIG.replace("LEDGER", str(operator.config)))
    code, out, errors = operator.runs("list")
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert "not a database" in errors


def test_the_list_says_what_a_proxy_makes_of_each_key(operator: Operator) -> None:
    operator.makes("create", "bob", "--plan", "standard", "--tokens", "100000/day", "--expires", "2199-01-01")
    operator.makes("create", "ended")
    operator.makes("create", "rotated")
    operator.makes("rotate", "rotated")
    operator.makes("create", "later-in-the-file")
    operator.runs("revoke", "ended")
    assert [key["id"] for key in operator.listed()] == ["bob", "later-in-the-file", "rotated"]
    operator.config.write_text(
        operator.config.read_text().replace("standard", "gold").replace("team-a", "later-in-the-file")
    )
    states = {str(key["id"]): key["state"] for key in operator.listed("--all")}
    assert states == {
        "bob": "refused: no such plan",
        "ended": "revoked",
        "later-in-the-file": "refused: the file has this id",
        "rotated": "active",
    }
    code, out, errors = operator.runs("list")
    assert (code, errors) == (0, f"3 keys; 1 revoked, see --all; 1 more in {operator.config}\n")
    head, bob, *_, rotated = out.splitlines()
    assert re.split(r" {2,}", head.strip()) == ["key", "plan", "limits", "state", "expires", "created", "last used"]
    assert "standard  tokens 100000/day  refused: no such plan" in bob
    assert "2199-01-01 00:00" in bob
    assert re.search(r"active, old secret until \d{4}-\d\d-\d\d \d\d:\d\d", rotated)
    assert "\x1b" not in out


def test_a_long_id_is_shown_whole_in_a_pipe_on_one_line(operator: Operator) -> None:
    key_id = "x" * 128
    operator.makes("create", key_id, *("--requests", "60/minute") * 5)
    out = operator.runs("list")[1]
    assert len(out.splitlines()) == 2
    assert key_id in out


def test_expiry_may_be_a_date_a_time_or_a_duration(operator: Operator) -> None:
    for key_id, written in (("a", "2199-03-01"), ("b", "2199-03-01T12:30+02:00"), ("c", "2199-03-01T12:30")):
        operator.makes("create", key_id, "--expires", written)
    expiries = [key["expires"] for key in operator.listed()]
    assert expiries == ["2199-03-01T00:00:00Z", "2199-03-01T10:30:00Z", "2199-03-01T12:30:00Z"]


async def test_without_a_configuration_it_is_the_ledger_that_serve_uses(tmp_path: Path) -> None:
    """In processes of their own, two at once: one makes the ledger, and both keys are in it."""
    env = environment(tmp_path)
    async with command("keys", "create", "x", env=env) as one, command("keys", "create", "y", env=env) as other:
        assert set(await asyncio.gather(one.ends(), other.ends())) == {0}
    assert _SECRET.fullmatch(one.out)
    assert _SECRET.fullmatch(other.out)
    assert (tmp_path / ".local/state/sluice/sluice.db").exists()
    async with in_terminal("keys", "list", env=env) as (terminal, process):
        await terminal.shows("last used")
        await terminal.shows("2 keys")
        assert await process.wait() == 0
