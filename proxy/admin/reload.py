"""`/admin/reload`: take over what the configuration's file says now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from proxy.config.changes import ReloadError
from proxy.config.problems import ConfigError
from proxy.server.admin_routes import Asked, Problem, Refusal, Route, Told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.config.changes import Changes

_UNCHANGED = "The configuration cannot be used, and nothing has changed."


class Reloaded(msgspec.Struct, frozen=True):
    """The settings that differ from those before, by name."""

    in_force: Annotated[list[str], Meta(description="as the file says from now on")]
    need_restart: Annotated[list[str], Meta(description="as they were, until the service is started again")]


class ReloadRoutes:
    """The route about the configuration's file."""

    def __init__(self, reload: Callable[[], Callable[[], Awaitable[Changes]] | None]) -> None:
        self._reload = reload

    def routes(self) -> tuple[Route, ...]:
        """The row of the table."""
        what = "Read the configuration's file again, and serve as it says."
        refusals = (409, 422)
        return (Route("POST", "/admin/reload", what, self._take_over, Reloaded, action="reload", refusals=refusals),)

    async def _take_over(self, _: Asked) -> Told:
        reload = self._reload()
        if reload is None:
            raise Refusal(409, "no_file", "This proxy was started without a configuration file.")
        try:
            found = await reload()
        except ReloadError as error:
            raise Refusal(422, "invalid_configuration", _UNCHANGED, problems=_problems(error)) from error
        return Told(Reloaded(found.in_force, found.need_restart), details=found._asdict())


def _problems(error: ReloadError) -> list[Problem]:
    """What is wrong: with a place in the file, where that is known."""
    cause = error.__cause__
    if isinstance(cause, ConfigError):
        return [Problem(problem.message, problem.path or None, problem.line) for problem in cause.problems]
    return [Problem(message) for message in error.problems]
