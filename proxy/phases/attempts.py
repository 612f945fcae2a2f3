"""Ask upstreams until there is an answer to relay. Nothing went downstream yet, so asking again is possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core import errors
from proxy.phases.forward import AnswerKind, forward
from proxy.phases.route import route

if TYPE_CHECKING:
    from proxy.phases.account import Account
    from proxy.phases.admit import Admission
    from proxy.phases.exchange import Exchange
    from proxy.phases.forward import Answer
    from proxy.phases.route import Route, Router
    from proxy.tasks import BackgroundTasks
    from proxy.telemetry.metrics import Metrics


class Attempts:
    """Makes the attempts of exchanges, and counts them."""

    def __init__(
        self, router: Router, via: bytes, tasks: BackgroundTasks, metrics: Metrics, write_stall_s: float | None
    ) -> None:
        self._router = router
        self._via = via
        self._tasks = tasks
        self._metrics = metrics
        self._write_stall_s = write_stall_s

    async def answer(
        self, exchange: Exchange, admission: Admission, chosen: Route, account: Account
    ) -> tuple[Route, Answer]:
        """The answer, and the route it came by.

        An upstream that refuses the `stream_options` that Sluice added is asked again without. Raises what `forward`
        raises.
        """
        answer = await self._attempt(exchange, admission, chosen, account)
        if not answer.refuses_usage:
            return chosen, answer
        answer.close()
        chosen = route(exchange, admission, self._router, self._via, may_ask_usage=False)
        answer = await self._attempt(exchange, admission, chosen, account)
        if answer.kind is not AnswerKind.ERROR:  # else the error was about something else, and quoted the request
            chosen.upstream.refused_usage(chosen.served)
        return chosen, answer

    async def _attempt(self, exchange: Exchange, admission: Admission, chosen: Route, account: Account) -> Answer:
        """Forward, and count it: an upstream is not to blame for a client that left or sent nonsense."""
        result = "abandoned"
        account.attempts += 1
        try:
            forwarded = await forward(
                exchange,
                admission,
                chosen,
                tasks=self._tasks,
                write_stall_s=self._write_stall_s,
                on_sent=account.sent,
            )
            result = f"{forwarded.stream.head.status // 100}xx"
        except errors.ProxyError as error:
            if error.kind.blame is errors.Blame.UPSTREAM:
                result = error.kind.outcome
            raise
        finally:
            self._metrics.attempted(chosen.upstream.name, result)
        return forwarded
