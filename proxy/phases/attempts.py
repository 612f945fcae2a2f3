"""Ask upstreams until there is an answer to relay. Nothing went downstream yet, so asking again is possible.

What is asked again is decided by `core/retry.py`; here are the places to ask at, the pauses, and what is known of each
try. The exchange's reservation and row are held once across all of them.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from proxy.core import errors
from proxy.core.headers import header
from proxy.core.retry import CREDENTIAL_STATUSES, Happened, Sent, decide, retry_after_of
from proxy.phases.forward import Course, forward
from proxy.phases.patience import Patience
from proxy.phases.places import Ask
from proxy.phases.route import write

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from proxy.core.retry import Retry, RetryPolicy
    from proxy.phases.account import Account
    from proxy.phases.admit import Admission
    from proxy.phases.balancer import Balancer
    from proxy.phases.exchange import Exchange, Phase
    from proxy.phases.forward import Answer
    from proxy.phases.hedging import Hedge
    from proxy.phases.places import Place
    from proxy.phases.route import Sending, Target
    from proxy.tasks import BackgroundTasks
    from proxy.telemetry.routing import RoutingMetrics


_WISHES = {b"true": True, b"false": False}
_RESULTS = ("0xx", "1xx", "2xx", "3xx", "4xx", "5xx")  # by the first digit of a status


class Try(msgspec.Struct, frozen=True, gc=False):
    """One try, for the log line: where, what came of it, and how long that took in seconds."""

    upstream: str
    result: str
    seconds: float


class Outcome(msgspec.Struct, frozen=True, eq=False):
    """What came of one try: an answer, or the error in place of one."""

    place: Place
    sending: Sending
    answer: Answer | None
    error: errors.ProxyError | None


class Attempts:
    """Makes the attempts of exchanges.

    `clock` is monotonic and `unix_clock` UNIX time, both in seconds; `draw` gives random numbers from 0 to 1, for the
    jitter of pauses.
    """

    def __init__(
        self,
        balancer: Balancer,
        policy: RetryPolicy,
        *,
        via: bytes,
        tasks: BackgroundTasks,
        metrics: RoutingMetrics,
        write_stall_s: float | None,
        hedge: Hedge | None,
        clock: Callable[[], float],
        unix_clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._balancer = balancer
        self._policy = policy
        self._via = via
        self._tasks = tasks
        self._metrics = metrics
        self._write_stall_s = write_stall_s
        self._hedge = hedge
        self._clock = clock
        self._unix_clock = unix_clock
        self._draw = draw

    async def answer(
        self, exchange: Exchange, admission: Admission, target: Target, account: Account, enter: Callable[[Phase], None]
    ) -> tuple[Sending, Answer]:
        """The answer, and the request that it is to; `enter` is told of the phases.

        Raises `ProxyError` of what failed last, or because there is no upstream to ask; and what reading the client's
        body raises.
        """
        principal = admission.principal
        ask = Ask(
            principal.key_id,
            principal.plan.weight,
            len(admission.body),
            target.model.routes,
            waits=lambda: enter("queue"),
        )
        place = self._balancer.at_once(ask) or await self._balancer.place(ask)
        course = Course(exchange, admission, account, ask, place.route.upstream.pool.loop.time())
        while True:
            enter("forward")
            if self._hedge is None or admission.rest is not None:
                outcome = await self._try(course, place)
            else:
                outcome = await self._hedged(self._hedge, course, place)
            answer = outcome.answer
            if answer is not None and answer.kind != "error":
                return outcome.sending, answer
            retry = self._retry(course, outcome)
            if retry is None:
                return _result(outcome)
            if answer is not None:
                answer.close()
            account.is_sent = False  # what it did is over, and cost nothing that anybody will say
            ask.spends = retry.spends
            ask.only = outcome.place.route if _is_of_the_key(outcome) else None
            if not retry.elsewhere:
                ask.tried = tuple(route for route in ask.tried if route is not outcome.place.route)
            self._metrics.retried(place.upstream.name, retry.reason)
            await asyncio.sleep(retry.pause_s)
            place = await self._balancer.place(ask)

    async def _hedged(self, hedge: Hedge, course: Course, place: Place) -> Outcome:
        """The outcome of one try, or of two where the first takes long."""
        places = [place]

        def another() -> Coroutine[Any, Any, Outcome] | None:
            second = self._balancer.place_now(course.ask)
            if second is None:
                return None
            places.append(second)
            self._metrics.retried(place.upstream.name, "hedged")
            return self._try(course, second)

        outcome = await hedge.first_good(self._try(course, place), another)
        if outcome.answer is not None and outcome.answer.kind != "error":
            losers = [one.route for one in places if one.was_asked and not one.was_judged]
            course.account.lost += [route.rename or course.admission.model for route in losers]
        return outcome

    async def _try(self, course: Course, place: Place) -> Outcome:
        """One try at one upstream, which learns of the outcome; the place is the answer's if there is one."""
        began_s = time.perf_counter()
        account, name = course.account, place.route.upstream.name
        account.upstream = name
        result = "abandoned"  # an upstream is not to blame for a client that left or sent nonsense
        answer = error = None
        try:
            sending = write(course.exchange, course.admission, place.route, place.api_key, self._via)
        except BaseException:
            place.leave()
            raise
        try:
            account.attempts += 1
            answering = forward(course, sending, place, self._tasks, self._write_stall_s)
            answer = await (answering if sending.hop is None else sending.hop.watch(answering))
            if answer.refuses_usage:
                refusal, answer = answer, None
                sending, answer = await self._without_usage(course, place, refusal)
            answer.place = place
            status = answer.stream.head.status
            self._balancer.answered(place, status, self._retry_after_s(answer) if status >= 400 else None)
            result = _RESULTS[status // 100]
        except errors.ProxyError as failure:
            if failure.kind.blame is not errors.Blame.UPSTREAM:
                raise
            error = failure
            errors.without_frames(failure)
            result = failure.kind.outcome
            if failure.kind is not errors.OUT_OF_TIME:  # it was slow with what others left of the time
                place.failed()
        finally:
            if answer is None:
                place.leave()
            self._metrics.attempted(name, result)
            account.tries.append(Try(name, result, time.perf_counter() - began_s))
        return Outcome(place, sending, answer, error)

    async def _without_usage(self, course: Course, place: Place, refusal: Answer) -> tuple[Sending, Answer]:
        """Ask an upstream that refuses the `stream_options` that Sluice added again without, there and then."""
        upstream = place.upstream
        refusal.close()
        self._metrics.attempted(upstream.name, _RESULTS[refusal.stream.head.status // 100])
        sending = write(course.exchange, course.admission, place.route, place.api_key, self._via, may_ask_usage=False)
        course.account.attempts += 1
        answering = forward(course, sending, place, self._tasks, self._write_stall_s)
        answer = await (answering if sending.hop is None else sending.hop.watch(answering))
        if answer.kind != "error":  # else it was about something else, and quoted the request
            upstream.refused_usage(sending.served)
        return sending, answer

    def _retry_after_s(self, answer: Answer) -> float | None:
        wishes = answer.stream.head.headers
        after, after_ms = header(wishes, b"retry-after"), header(wishes, b"retry-after-ms")
        return retry_after_of(after, self._unix_clock(), value_ms=after_ms)

    def _retry(self, course: Course, outcome: Outcome) -> Retry | None:
        """Whether and how to ask again after what was no good, by the table."""
        happened = Happened(None if outcome.error is None else outcome.error.kind)
        if outcome.answer is not None:
            head = outcome.answer.stream.head
            wish = _WISHES.get(header(head.headers, b"x-should-retry") or b"")
            happened = Happened(None, head.status, self._retry_after_s(outcome.answer), wish)
        place, exchange = outcome.place, course.exchange
        patience = Patience.of(exchange.headers, exchange.timeline.arrived_s)
        sent = Sent.ALL
        if outcome.error is not None and outcome.error.kind.repeat is errors.Repeat.NOTHING_SENT:
            sent = Sent.NOTHING
        elif outcome.sending.is_spent:
            sent = Sent.PARTLY_SPENT
        ask = msgspec.structs.replace(course.ask, spends=sent is not Sent.NOTHING)
        return decide(
            happened,
            sent=sent,
            attempts_made=len(course.account.tries),
            policy=self._policy,
            elsewhere=self._balancer.can_go_elsewhere(ask),
            other_key=place.upstream.health.credentials.others(place.api_key, self._clock()),
            patience_s=patience.left_s(time.perf_counter()),
            jitter=self._draw(),
            may_spend=self._balancer.can_go_anywhere(ask),
        )


def _is_of_the_key(outcome: Outcome) -> bool:
    return outcome.answer is not None and outcome.answer.stream.head.status in CREDENTIAL_STATUSES


def _result(outcome: Outcome) -> tuple[Sending, Answer]:
    if outcome.answer is None:
        raise outcome.error or errors.ProxyError(errors.INTERNAL, "An attempt came to nothing.")
    return outcome.sending, outcome.answer
