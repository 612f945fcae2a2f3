"""`sluice usage` as an operator meets it: tables to read, JSON and CSV to compute with, and plain refusals."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from proxy import cli
from proxy.admin.periods import moment
from proxy.commands import usage
from proxy.stores.usage import DIMENSIONS, Query, Report, open_read_only, report
from tests.fakes.commands import command, environment, in_terminal
from tests.fakes.ledger_rows import DAY_MS, MIDNIGHT_MS, ledger_with, opened, settled
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from decimal import Decimal
    from pathlib import Path

_PERIOD = ("--since", "2026-11-20", "--until", "2026-11-22")
_WIDE = "models/" + "Qwen3-235B-A22B-" * 7 + "模型"


def _invoke(config: Path | None, *words: str, **env: str) -> tuple[int, str, str]:
    chosen = () if config is None else ("--config", str(config))
    absent = dict.fromkeys(("SLUICE_CONFIG", "OPENAI_API_KEY", "XDG_STATE_HOME"))
    result = CliRunner().invoke(cli.main, ["usage", *chosen, *words], env={**absent, **env}, prog_name="sluice")
    return result.exit_code, result.stdout_bytes.decode(), result.stderr  # the runner's text has other line ends


def _configured(folder: Path, *rows: dict[str, Any]) -> Path:
    """A configuration whose ledger holds these rows."""
    url = ledger_with(folder / "sluice.db", *rows)
    file = folder / "sluice.yaml"
    file.write_text(f'ledger: {{url: "{url}"}}\nupstreams: {{up: {{base_url: "http://127.0.0.1:1/v1", auth: none}}}}\n')
    return file


def _reported(folder: Path, *rows: dict[str, Any], by: tuple[Any, ...] = ("model",)) -> Report:
    engine = open_read_only(ledger_with(folder / "sluice.db", *rows))
    return report(engine, Query(by, 0, 2 * MIDNIGHT_MS))


_MIXED = (
    settled(
        key_id="team-a", input_tokens=1_234_567, cached_tokens=1_000, output_tokens=98, cost_nano_usd=1_234_567_890_000
    ),
    settled(key_id="team-a", started_ms=MIDNIGHT_MS - 1, reasoning_tokens=7, output_tokens=10, cost_nano_usd=4_000_000),
    settled(key_id="team-b", grade="counted", output_tokens=12_345, cost_nano_usd=9_999_999),
    settled(key_id="team-b", grade="unknown", outcome="interrupted", output_tokens=4_000, cost_nano_usd=40_000_000),
    opened(key_id="team-b", reserved_tokens=12_000, reserved_nano_usd=120_000_000),
)
_TABLE = """\
Usage from 2026-11-20 00:00 to 2026-11-22 00:00 UTC

key     requests      input  cached  output  reasoning  cost (USD)
------  --------  ---------  ------  ------  ---------  ----------
team-a         2  1,234,567   1,000     108          7    1,234.57
team-b         2          0       0  16,345          0        0.05
------  --------  ---------  ------  ------  ---------  ----------
total          4  1,234,567   1,000  16,453          7    1,234.62

           tokens     cost
exact      98.7 %  >99.9 %  said by the upstream: 2 requests
counted     1.0 %   <0.1 %  counted by Sluice: 1 request
unknown     0.3 %   <0.1 %  charged as reserved: 1 request

Interrupted by the death of a worker, charged as reserved: 1 request.
Open, and not in the sums: 1 request, reserving 12,000 tokens and 0.12 USD.
"""


def test_a_table_has_totals_and_says_how_far_it_can_be_trusted(tmp_path: Path) -> None:
    assert _invoke(_configured(tmp_path, *_MIXED), *_PERIOD) == (0, _TABLE, "")


def test_the_commands_choices_are_those_of_the_reports() -> None:
    assert cli._DIMENSIONS == DIMENSIONS


def test_json_is_exact_and_whole(tmp_path: Path) -> None:
    config = _configured(tmp_path, *_MIXED)
    code, out, errors = _invoke(config, *_PERIOD, *("--by", "day", "--by", "key", "--by", "day", "--format", "json"))
    assert (code, errors) == (0, "")
    found = json.loads(out)
    assert (found["since"], found["until"]) == ("2026-11-20T00:00:00Z", "2026-11-22T00:00:00Z")
    assert found["by"] == ["day", "key"]
    rows = [(row["day"], row["key"], row["requests"], row["cost_usd"]) for row in found["rows"]]
    assert rows == [
        ("2026-11-20", "team-a", 1, "0.004"),
        ("2026-11-21", "team-a", 1, "1234.56789"),
        ("2026-11-21", "team-b", 2, "0.049999999"),
    ]
    assert found["total"]["cost_usd"] == "1234.621889999"
    assert found["grades"]["unknown"] == {"requests": 1, "tokens": 4000, "cost_usd": "0.04"}
    assert (found["open"]["requests"], found["interrupted"]) == (1, 1)


def test_csv_is_for_spreadsheets_and_safe_in_them(tmp_path: Path) -> None:
    models = ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\uff1d1", 'a,"b"', "\t=1", "gpt-4o", ""]
    rows = (settled(model=model, cost_nano_usd=900 - at) for at, model in enumerate(models))
    code, out, errors = _invoke(_configured(tmp_path, *rows), *_PERIOD, *("--by", "model", "--format", "csv"))
    assert (code, errors) == (0, "")
    assert out.startswith("model,requests,input_tokens,cached_tokens,output_tokens,reasoning_tokens,cost_usd\r\n")
    found = list(csv.reader(io.StringIO(out, newline=""), strict=True))[1:]
    safe = ["'=HYPERLINK(1)", "'+1", "'-1", "'@SUM(1)", "'\uff1d1", 'a,"b"', "\\t=1", "gpt-4o", ""]
    assert [line[0] for line in found] == safe
    assert found[0][1:] == ["1", "0", "0", "0", "0", "0.0000009"]


@pytest.mark.parametrize("style", ["table", "json", "csv"])
def test_no_name_of_a_client_reaches_the_terminal_as_a_command(tmp_path: Path, style: str) -> None:
    hostile = "gpt\x1b[2J\x9b31m\u202e\r\n\x07\u2028"
    code, out, _ = _invoke(_configured(tmp_path, settled(model=hostile)), "--by", "model", "--format", style, *_PERIOD)
    assert code == 0
    assert all(one.isprintable() or one in "\r\n" for one in out)
    named = next(line for line in out.splitlines() if "gpt" in line)
    assert r"\u202e\r\n" in named
    if style != "json":
        assert r"gpt\x1b[2J\x9b31m\u202e\r\n\x07\u2028" in named


def test_narrowed_to_one_key_and_one_model(tmp_path: Path) -> None:
    config = _configured(tmp_path, *_MIXED, settled(key_id="team-b", model="o3", output_tokens=77))
    _, out, _ = _invoke(config, *_PERIOD, "--key", "team-b", "--model", "o3", "--format", "json")
    found = json.loads(out)
    assert [(row["key"], row["output_tokens"]) for row in found["rows"]] == [("team-b", 77)]
    assert found["open"]["requests"] == 0


def test_nothing_to_report_is_said_and_no_failure(tmp_path: Path) -> None:
    config = _configured(tmp_path, opened(reserved_tokens=5))
    code, out, errors = _invoke(config, *_PERIOD)
    assert (code, errors) == (0, "")
    assert out == (
        "No exchange that began from 2026-11-20 00:00 to 2026-11-22 00:00 UTC has ended.\n\n"
        "Open, and not in the sums: 1 request, reserving 5 tokens and 0.00 USD.\n"
    )
    assert _invoke(config, *_PERIOD, "--format", "csv")[1].count("\r\n") == 1
    assert json.loads(_invoke(config, *_PERIOD, "--format", "json")[1])["rows"] == []


def test_a_ledger_that_does_not_exist_is_a_failure_and_stays_absent(tmp_path: Path) -> None:
    code, out, errors = _invoke(None, HOME=str(tmp_path))
    assert (code, out) == (1, "")
    assert errors.endswith("/.local/state/sluice/sluice.db: No such file or directory\n")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--since", "2026"), "--since must be a date (2026-11-01)"),
        (("--since", "yesterday"), "--since must be a date"),
        (("--until", "7x"), "--until must be a date"),
        (("--since", "\x1b[2Jd"), r"not '\x1b[2Jd'"),
        (("--since", "1h", "--until", "2h"), "--since must be before until"),
        (("--by", "secret"), "--by"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    code, out, errors = _invoke(tmp_path / "never-read.yaml", *words)
    assert (code, out) == (2, "")
    assert said in errors


_NOON_MS = MIDNIGHT_MS + DAY_MS // 2


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("2026-11-21", MIDNIGHT_MS),
        ("2026-11-21T12:00Z", _NOON_MS),
        ("2026-11-21T12:00", _NOON_MS),
        ("2026-11-21T14:00+02:00", _NOON_MS),
        ("12h", _NOON_MS - DAY_MS // 2),
        ("90m", _NOON_MS - 5_400_000),
        ("0s", _NOON_MS),
        ("7d", MIDNIGHT_MS - 7 * DAY_MS),
        ("999999999999d", 0),
        ("0001-01-01T00:00+10:00", 0),
        ("9999-12-31T23:59:59.999-10:00", 253_402_300_799_999),
    ],
)
def test_moments(text: str, at_ms: int) -> None:
    assert moment(text, _NOON_MS) == at_ms


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        ("0", "0.00"),
        ("0.000000001", "<0.01"),
        ("0.0099", "<0.01"),
        ("0.01", "0.01"),
        ("0.015", "0.02"),
        ("1e6", "1,000,000.00"),
    ],
)
def test_money_is_shown_to_the_cent(usd: str, shown: str) -> None:
    assert usage.money(usd) == shown


@given(st.decimals(0, 10**6, places=9), st.decimals(0, 10**6, places=9))
def test_only_nothing_is_0_percent_and_only_all_is_100(part: Decimal, rest: Decimal) -> None:
    shown = usage.percentage(part, part + rest)
    assert (shown == "-") == (part + rest == 0)
    assert (shown == "0 %") == (part == 0 < rest)
    assert (shown == "100 %") == (rest == 0 < part)
    assert shown not in ("0.0 %", "100.0 %")


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_narrow_terminal_folds_names_and_never_cuts_figures(tmp_path: Path, width: int) -> None:
    found = _reported(tmp_path, settled(model=_WIDE, cost_nano_usd=9, input_tokens=123_456_789), settled(model="o3"))
    folded = usage.as_table(found, width).splitlines()[2:]
    assert max(map(cell_len, folded)) <= max(width, 80)
    assert "123,456,789" in folded[2]
    end = next(at for at, line in enumerate(folded) if line.startswith("o3"))
    assert "".join(line.split("  ")[0] for line in folded[2:end]) == _WIDE
    piped = usage.as_table(found, None).splitlines()
    assert any(line.startswith(_WIDE + "  ") for line in piped)
    assert len({cell_len(line) for line in piped[2:7]}) == 1


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A configuration whose ledger holds a long name."""
    return _configured(tmp_path, settled(model=_WIDE))


async def test_in_a_terminal_and_in_a_pipe(tmp_path: Path, wide: Path) -> None:
    words = ("usage", "--config", str(wide), "--by", "model", *_PERIOD)
    env = environment(tmp_path, COLUMNS="80")
    async with command(*words, env=env) as child:
        assert await child.ends() == 0
        assert _WIDE in child.out
    async with in_terminal(*words, env=env) as (terminal, process):
        await until(lambda: "charged as reserved" in terminal.shown, "the whole report")
        assert await process.wait() == 0
        assert _WIDE[:16] in terminal.shown
        assert _WIDE not in terminal.shown
