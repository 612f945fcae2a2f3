"""The vocabulary of accounting: what it promises to those that keep, price and report it."""

from __future__ import annotations

from msgspec.structs import astuple

from proxy.core.usage import GRADES, Observation, Usage
from proxy.stores.base import Settled
from proxy.stores.tables import EXCHANGES


def test_every_figure_has_its_column() -> None:
    """A kind of token that is added here must not be lost on the way to the ledger."""
    assert set(Usage.__struct_fields__) <= set(EXCHANGES.c.keys())
    assert set(Settled.__struct_fields__) - {"usage"} <= set(EXCHANGES.c.keys())


def test_nothing_was_used_until_something_was() -> None:
    assert not any(astuple(Usage()))
    assert Observation("exact").usage == Usage()
    assert list(GRADES) == ["exact", "counted", "unknown"]
