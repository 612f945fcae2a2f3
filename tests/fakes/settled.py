"""The ledger's row of an exchange that has ended, as it is in the database of a running proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.fakes.ledgers import rows
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from tests.fakes.running import Running


async def all_rows(proxy: Running, count: int) -> dict[str, dict[str, Any]]:
    """Wait for the ends of `count` exchanges; their rows by `x-sluice-id`."""
    await proxy.exchange(count)
    app = proxy.worker.app
    app.ledger.writer.hurry()
    await until(lambda: app.ledger.waiting == 0, "the rows in the database")
    return rows(app._opened.engine)


async def settled_row(proxy: Running, count: int = 1) -> dict[str, Any]:
    """The row of the last of `count` exchanges. The log line says the same of it."""
    found = await all_rows(proxy, count)
    line = proxy.exchanges[count - 1]
    row = found[line["id"]]
    said = {name: line.get(name) for name in ("grade", "input_tokens", "output_tokens", "attempts", "outcome")}
    assert said == {name: row[name] for name in said}
    return row


async def nothing_held(proxy: Running) -> None:
    """No exchange, no connection and no task is left of what the proxy did."""
    app = proxy.worker.app
    await until(lambda: len(app.live) == len(app.tasks) == 0, "an idle proxy")
    assert [upstream.pool.open - upstream.pool.idle for upstream in app.upstreams.values()] == [0] * len(app.upstreams)
    assert proxy.total("sluice_exchanges_in_flight") == 0
