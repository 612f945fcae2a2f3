"""`/admin/usage`: the report of `sluice usage`, as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from proxy.admin.periods import PeriodError, period
from proxy.server.admin_routes import Asked, Refusal, Route, Told
from proxy.stores.usage import Dimension, Query, Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.admin.database import Database

# an id or a name as clients send it, without what no database holds in a text
_Text = Annotated[str, Meta(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]


class UsageWanted(msgspec.Struct, forbid_unknown_fields=True):
    """What to report."""

    by: Annotated[
        tuple[Dimension, ...], Meta(max_length=6, description="one row for each of these; may be repeated")
    ] = ("key",)
    since: Annotated[str, Meta(description="2026-11-01, 2026-11-01T12:00Z, or how long ago: 7d, 12h")] = "30d"
    until: Annotated[str | None, Meta(description="likewise; up to it, without it; now if not given")] = None
    key: Annotated[_Text | None, Meta(description="only this key, by its id")] = None
    model: Annotated[_Text | None, Meta(description="only this model, by the name that clients sent")] = None


class UsageRoutes:
    """The route about usage. `clock_ms` is UNIX time in milliseconds."""

    def __init__(self, database: Database, clock_ms: Callable[[], int]) -> None:
        self._database = database
        self._now_ms = clock_ms

    def routes(self) -> tuple[Route, ...]:
        """The row of the table."""
        what = "Requests, tokens and cost, from the ledger."
        return (Route("GET", "/admin/usage", what, self._report, Report, query=UsageWanted, refusals=(503,)),)

    async def _report(self, asked: Asked) -> Told:
        wanted: UsageWanted = asked.query
        try:
            since_ms, until_ms = period(wanted.since, wanted.until, self._now_ms())
        except PeriodError as error:
            raise Refusal(400, "invalid_request", str(error), path=f"query.{error.end}") from error
        query = Query(tuple(dict.fromkeys(wanted.by)), since_ms, until_ms, wanted.key, wanted.model)
        return Told(await self._database.report(query))
