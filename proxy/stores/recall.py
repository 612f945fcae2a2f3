"""What keys used in calendar windows, from the ledger: for a quota store that was restarted or lost it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from proxy.core.patterns import PatternTable
from proxy.core.quota import Demand, Kind, amount_of
from proxy.stores.database import reading
from proxy.stores.tables import EXCHANGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from proxy.core.quota import Limit

_NANO_PER_MICRO: Final = 1000
_ROW = EXCHANGES.c
_TOKENS = sa.func.coalesce(_ROW.input_tokens + _ROW.output_tokens, _ROW.reserved_tokens)
_NANO_USD = sa.func.coalesce(_ROW.cost_nano_usd, _ROW.reserved_nano_usd)
# an exchange was charged in the window in which it began; one that is open is charged as reserved
_USED = (
    sa.select(_ROW.model, sa.func.count(), sa.func.sum(_TOKENS), sa.func.sum(_NANO_USD))
    .where(_ROW.key_id == sa.bindparam("key_id"), _ROW.started_ms >= sa.bindparam("from_ms"))
    .group_by(_ROW.model)
)


def recall(engine: Engine, key_id: str, starts_s: Mapping[Limit, int]) -> dict[Limit, Demand]:
    """What the key has used of each limit since the start of its window, in seconds of UNIX time.

    Blocks. Raises SQLAlchemy's errors.
    """
    found: dict[int, list[tuple[str, Demand]]] = {}
    with reading(engine).connect() as connection:
        for start_s in set(starts_s.values()):
            rows = connection.execute(_USED, {"key_id": key_id, "from_ms": start_s * 1000})
            found[start_s] = [
                (model, Demand(requests, int(tokens), -(-int(nano_usd) // _NANO_PER_MICRO)))
                for model, requests, tokens, nano_usd in rows
            ]
    return {limit: _of(limit, found[start_s]) for limit, start_s in starts_s.items()}


def _of(limit: Limit, used: list[tuple[str, Demand]]) -> Demand:
    """The sum over the models that the limit is for."""
    table = PatternTable([limit.model] if limit.model else ["*"])
    counted = [demand for model, demand in used if not limit.model or table.match(model) is not None]
    return Demand(*(sum(amount_of(demand, kind) for demand in counted) for kind in Kind))
