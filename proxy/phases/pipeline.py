"""The life of a request: the order of the phases, and the one `finally`. Read this first.

    authenticate -> Principal     401 429
    admit        -> Admission     400 403 404 408 413
    route        -> Target        404
    account      -> Account       429 503; the exchange's row in the ledger is opened
    queue                         503; only where all upstreams of the model are at their limits
    forward      -> Answer        502 503 504; the upstream's own 4xx and 5xx pass
    relay        -> Relayed       after the first byte: an error event, or a connection cut
    finally
      settle     -> Settlement    what was used and what it costs; the row is completed
      record                      always, exactly once

Each phase takes what the one before returned, so a wrong order does not type-check.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.core import errors
from proxy.core.injection import UsageHider
from proxy.phases.admit import admit
from proxy.phases.live import cutter_of, who_ended
from proxy.phases.observe import Observer, reader_for
from proxy.phases.record import ending_of, record
from proxy.phases.relay import Accompaniment, relay, sluice_headers
from proxy.phases.route import find
from proxy.phases.settle import UNKNOWN, enter, observed_at_once, observed_later, settle
from proxy.phases.watchdog import StallWatch, send_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    import structlog

    from proxy.core.headers import RawHeaders
    from proxy.core.usage import Observation
    from proxy.phases.account import Account, Accounting
    from proxy.phases.attempts import Attempts
    from proxy.phases.authenticate import Authenticator, Principal
    from proxy.phases.exchange import Exchange
    from proxy.phases.forward import Answer
    from proxy.phases.live import Live, LiveExchanges
    from proxy.phases.models import Catalogue
    from proxy.phases.record import Findings
    from proxy.phases.route import Router
    from proxy.tasks import BackgroundTasks
    from proxy.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server's configuration says about every exchange."""

    max_request_bytes: int
    write_stall_s: float | None
    keepalive_s: float | None


class Pipeline:
    """Runs exchanges through the phases, as one configuration says. Holds collaborators, and nothing of any exchange.

    `live` knows which exchanges are under way, those of earlier configurations included.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        router: Router,
        catalogue: Catalogue,
        accounting: Accounting,
        attempts: Attempts,
        limits: Limits,
        live: LiveExchanges,
        tasks: BackgroundTasks,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the clock that is passed in; keys expire by wall time
    ) -> None:
        self._authenticator = authenticator
        self._router = router
        self._catalogue = catalogue
        self._accounting = accounting
        self._limits = limits
        self._attempts = attempts
        self._tasks = tasks
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._live = live
        self._turn = asyncio.Lock()  # of settling

    async def run(
        self, exchange: Exchange, task: asyncio.Task[object], refusal: errors.ProxyError | None = None
    ) -> None:
        """Serve one exchange to its end, and turn every way in which that may fail into an answer and a finding.

        `task` is the one in which this runs: asking for it each time takes long. `refusal` is why it ends before it
        began.
        """
        live = self._live.add(exchange, task)
        del task  # one that was cancelled keeps its frames
        findings = live.findings
        try:
            try:
                if refusal is not None or (refusal := self._live.refusal) is not None:
                    raise refusal
                await self._serve(exchange, live)
            except errors.ProxyError as error:
                await self._tell(exchange, live, error)
            except asyncio.CancelledError:
                if live.interruption is None or exchange.downstream.started:
                    raise
                live.go_on()
                findings.aborted_by = cutter_of(live.interruption)
                await self._tell(exchange, live, live.interruption)
        except (asyncio.CancelledError, ConnectionError):
            findings.error, findings.aborted_by = who_ended(live)
            exchange.downstream.abort()
            raise
        except Exception as fault:  # noqa: BLE001 - one exchange's fault must not become another's
            findings.fault = type(fault).__name__
            self._log.error("fault", id=exchange.id, exc_info=fault)
            told = errors.ProxyError(errors.INTERNAL, "Sluice failed on this request.")
            await self._tell(exchange, live, told)
        finally:
            findings.ended_in = findings.ended_in or exchange.timeline.phase
            self._settle(exchange, live)

    def _settle(self, exchange: Exchange, live: Live) -> None:
        """Find out what was used, in a task of its own where that takes time, and end the exchange."""
        findings = live.findings
        account, observer = findings.account, findings.observer
        if account is None:
            self._end(exchange, findings)
            return
        exchange.timeline.enter("settle")
        observation: Observation | None = UNKNOWN
        try:
            observation = observed_at_once(findings, account)
        except Exception as fault:  # noqa: BLE001 - an exchange must end, whatever is wrong with its account
            self._accounting_fault(exchange, fault)
        if observation is None and observer is not None:
            self._accounting.leave(account)
            live.task = self._tasks.start(self._settle_later(exchange, findings, account, observer), "settle")
            return
        findings.settlement = settle(account, observation or UNKNOWN)
        self._end(exchange, findings)

    async def _settle_later(self, exchange: Exchange, findings: Findings, account: Account, observer: Observer) -> None:
        observation = UNKNOWN
        try:
            observation = await observed_later(account, observer, self._turn)
        except Exception as fault:  # noqa: BLE001 - as above
            self._accounting_fault(exchange, fault)
        finally:
            try:
                if findings.answer is not None:
                    findings.answer.close()
            finally:
                findings.settlement = settle(account, observation)
                self._end(exchange, findings)

    def _accounting_fault(self, exchange: Exchange, fault: Exception) -> None:
        self._metrics.accounting_faults(1)
        self._log.error("accounting fault", id=exchange.id, exc_info=fault)

    def _end(self, exchange: Exchange, findings: Findings) -> None:
        """Complete the row, write the line, and let go of the exchange."""
        account, settlement = findings.account, findings.settlement
        ending = ending_of(exchange, findings)
        if account is not None and settlement is not None:
            enter(account, settlement, ending, self._accounting.now_ms())
            self._accounting.close(account, settlement)
        self._live.remove(exchange)
        exchange.timeline.enter("done")
        record(ending, self._metrics, self._log)
        if ending.error is not None:
            errors.without_frames(ending.error)

    async def _serve(self, exchange: Exchange, live: Live) -> None:
        """Through the phases, as long as all goes well. Nobody holds the request's body once there is an answer."""
        findings, timeline = live.findings, exchange.timeline
        principal = findings.principal = self._authenticator.principal(exchange, self._clock())
        if exchange.endpoint.treatment == "models":
            await self._answer_models(exchange, live, principal)
            return
        timeline.enter("admit")
        admission = findings.admission = await admit(exchange, principal, self._limits.max_request_bytes)
        timeline.enter("route")
        target = findings.target = find(exchange, admission, self._router)
        account = findings.account = await self._accounting.open(exchange, admission, target)
        sending, answer = await self._attempts.answer(exchange, admission, target, account, timeline.enter)
        self._accounting.answered_by(account, admission, sending)
        findings.answer, findings.hop = answer, sending.hop
        admission = findings.admission = admission.without_body()
        upstream, hide = sending.route.upstream, UsageHider().hide if sending.asks_usage else None
        del sending
        observer = Observer(reader_for(exchange, answer), self._accounting.counting, account.encoding)
        findings.observer = observer
        along = Accompaniment(observer, findings.gaps, account.headers, account.entry.durable, hide, account.allowance)
        live.watchdog = answer.watchdog
        timeline.enter("relay")
        try:
            relayed = await relay(exchange, answer, upstream, along, self._limits.keepalive_s)
            if answer.watchdog.fired == "write_stall":
                raise ConnectionResetError("the client stopped reading")
            findings.relayed = relayed
            if relayed.told_error:
                answer.failed()
            if relayed.failure is not None:
                self._broke(live, answer, relayed.failure)
        finally:
            if observer.rest is None:
                answer.close()
            pauses, seconds = exchange.downstream.backpressure
            if pauses:
                self._metrics.backpressure(upstream.name, pauses, seconds)

    def _broke(self, live: Live, answer: Answer, failure: errors.ProxyError) -> None:
        """The answer broke off in the middle: tell its upstream, and note who cut it."""
        answer.broke(failure)
        findings = live.findings
        findings.aborted_by = cutter_of(failure) if failure is live.interruption else answer.watchdog.fired
        account = findings.account
        if account is not None and account.allowance is not None and account.allowance.has_ended_it:
            findings.aborted_by = "quota"

    async def _answer_models(self, exchange: Exchange, live: Live, principal: Principal) -> None:
        body = await self._catalogue.answer(exchange, principal)
        await self._respond(exchange, live, 200, [], body)
        live.findings.answered = 200

    async def _tell(self, exchange: Exchange, live: Live, error: errors.ProxyError) -> None:
        """Answer with `error`, or, when the head is out, end the connection so that nothing looks whole."""
        findings = live.findings
        findings.error = error
        findings.ended_in = exchange.timeline.phase
        if findings.answer is not None and findings.aborted_by is None:
            findings.aborted_by = findings.answer.watchdog.fired
        if exchange.downstream.started:
            exchange.downstream.cut()
            return
        if findings.account is not None:
            with contextlib.suppress(errors.ProxyError):  # then there is no row to miss: the error is told as it is
                await findings.account.entry.durable()
        findings.is_refused = True
        headers = errors.error_headers(error)
        if findings.account is not None:
            headers += findings.account.headers
        await self._respond(exchange, live, error.kind.status, headers, errors.envelope(error))

    async def _respond(self, exchange: Exchange, live: Live, status: int, headers: RawHeaders, body: bytes) -> None:
        """An answer of our own, in JSON."""
        request_id = (b"x-request-id", exchange.id.encode("ascii"))
        content_type = (b"Content-Type", b"application/json")
        head = [content_type, request_id, *sluice_headers(exchange), *headers]
        live.watchdog = StallWatch(exchange.downstream, self._limits.write_stall_s)
        await send_whole(exchange.downstream, status, head, body, live.watchdog)
