"""What `sluice usage` prints: a report on the ledger as a table for people, or as JSON or CSV for programs.

The table is not Rich's: that takes a second for every 1,000 rows, and cuts off figures where a terminal is narrow.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Final

import click
import msgspec
from rich.cells import cell_len, chop_cells

from proxy.stores.base import LedgerProblem
from proxy.stores.usage import open_read_only, report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.config.values import SecretUrl
    from proxy.stores.usage import Query, Report, Row

_CENT: Final = Decimal("0.01")
_COUNTS: Final = ("requests", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
_HEADINGS: Final = ("requests", "input", "cached", "output", "reasoning", "cost (USD)")
_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # and in full width
_GRADES: Final = {
    "exact": "said by the upstream",
    "counted": "counted by Sluice",
    "unknown": "charged as reserved",
}
_NARROWEST: Final = 16  # what is left of a column of names in a terminal that is too narrow
_GAP: Final = "  "


def run(url: SecretUrl, query: Query, style: str) -> str | None:
    """Print what the ledger at `url` says, as a `table`, `json` or `csv`; what went wrong, None if nothing did."""
    try:
        engine = open_read_only(url.reveal())
        try:
            found = report(engine, query)
        finally:
            engine.dispose()
    except LedgerProblem as error:
        return f"the ledger {url} cannot be read: {error}"
    if style == "table":
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        click.echo(as_table(found, width), nl=False)
    else:
        click.echo(as_json(found) if style == "json" else as_csv(found), nl=False)
    return None


def as_json(report: Report) -> str:
    """One JSON object, its amounts of money as decimal strings. It is all ASCII: terminals obey some of the rest."""
    return json.dumps(msgspec.to_builtins(report), indent=2) + "\n"


def as_csv(report: Report) -> str:
    """Header and rows (RFC 4180), without a total. Names that a spreadsheet would compute begin with an apostrophe."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow([*report.by, *_COUNTS, "cost_usd"])
    for row in report.rows:
        names = ("'" + name if name.startswith(_FORMULA) else name for name in _names(report, row))
        lines.writerow([*names, *(getattr(row, count) for count in _COUNTS), row.cost_usd])
    return text.getvalue()


def as_table(report: Report, width: int | None) -> str:
    """The table with its total, and how far it can be trusted.

    Names are folded to `width` terminal cells, or never where that is None. Figures are never cut: a terminal that is
    too narrow for them wraps the lines.
    """
    period = f"{report.since:%Y-%m-%d %H:%M} to {report.until:%Y-%m-%d %H:%M} UTC"
    if not report.rows:
        return "\n".join([f"No exchange that began from {period} has ended.", *_remarks(report)]) + "\n"
    rows = [[*(name or "(none)" for name in _names(report, row)), *_figures(row)] for row in report.rows]
    total = ["total", *[""] * (len(report.by) - 1), *_figures(report.total)]
    table = _lines([*report.by, *_HEADINGS], rows, total, len(report.by), width)
    return "\n".join([f"Usage from {period}", "", *table, "", *_trust(report), *_remarks(report)]) + "\n"


def _names(report: Report, row: Row) -> list[str]:
    return [printable(getattr(row, dimension)) for dimension in report.by]


def printable(name: str) -> str:
    """A name that clients may have chosen, its control and other invisible characters escaped as in Python."""
    if name.isprintable():
        return name
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)


def money(usd: str) -> str:
    """An exact amount to the cent, with thousands separators; what is less than a cent, but something, says so."""
    amount = Decimal(usd)
    return "<0.01" if 0 < amount < _CENT else f"{amount.quantize(_CENT, ROUND_HALF_UP):,}"


def percentage(part: Decimal, whole: Decimal) -> str:
    """A share to the tenth of a per cent. Only nothing is 0 %, and only all is 100 %."""
    if not whole:
        return "-"
    if part in (0, whole):
        return "100 %" if part else "0 %"
    share = (100 * part / whole).quantize(Decimal("0.1"), ROUND_HALF_UP)
    if share < Decimal("0.1"):
        return "<0.1 %"
    return ">99.9 %" if share == 100 else f"{share} %"


def _figures(row: Row) -> list[str]:
    return [*(f"{getattr(row, count):,}" for count in _COUNTS), money(row.cost_usd)]


def _trust(report: Report) -> list[str]:
    """How much of the total is exact, counted and unknown, as a small table."""
    tokens = Decimal(report.total.input_tokens + report.total.output_tokens)
    cost = Decimal(report.total.cost_usd)
    lines = [f"{'':9}{'tokens':>8}{'cost':>9}"]
    for grade, meaning in _GRADES.items():
        share = report.grades[grade]
        of_tokens, of_cost = percentage(Decimal(share.tokens), tokens), percentage(Decimal(share.cost_usd), cost)
        lines.append(f"{grade:9}{of_tokens:>8}{of_cost:>9}  {meaning}: {_so_many(share.requests, 'request')}")
    return lines


def _remarks(report: Report) -> list[str]:
    remarks = []
    if report.interrupted:
        died = _so_many(report.interrupted, "request")
        remarks.append(f"Interrupted by the death of a worker, charged as reserved: {died}.")
    if report.open.requests:
        reserved = f"{report.open.tokens:,} tokens and {money(report.open.cost_usd)} USD"
        remarks.append(f"Open, and not in the sums: {_so_many(report.open.requests, 'request')}, reserving {reserved}.")
    return ["", *remarks] if remarks else []


def _so_many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _lines(heading: list[str], rows: Sequence[list[str]], total: list[str], names: int, width: int | None) -> list[str]:
    """Lay out columns, of which the first `names` hold names and the others figures, to the right."""
    widths = [max(map(cell_len, column)) for column in zip(heading, *rows, total, strict=True)]
    if width is not None:
        _narrow(widths, names, width)
    rule = _GAP.join("-" * wide for wide in widths)
    body = [line for row in rows for line in _folded(row, widths, names)]
    return [*_folded(heading, widths, names), rule, *body, rule, *_folded(total, widths, names)]


def _narrow(widths: list[int], names: int, width: int) -> None:
    """Take what is too much from the columns of names, the widest first."""
    over = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    while over > 0 and names:
        widest = max(range(names), key=widths.__getitem__)
        if widths[widest] <= _NARROWEST:
            return
        widths[widest] -= 1
        over -= 1


def _folded(row: list[str], widths: list[int], names: int) -> list[str]:
    """The lines of one row: as many as its longest name needs."""
    cells = [chop_cells(cell, wide) or [""] for cell, wide in zip(row, widths, strict=True)]
    height = max(map(len, cells))
    lines = []
    for index in range(height):
        texts = [cell[index] if index < len(cell) else "" for cell in cells]
        padded = [
            " " * (wide - cell_len(text)) + text if column >= names else text + " " * (wide - cell_len(text))
            for column, (text, wide) in enumerate(zip(texts, widths, strict=True))
        ]
        lines.append(_GAP.join(padded).rstrip())
    return lines
