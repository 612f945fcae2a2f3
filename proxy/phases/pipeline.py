"""The life of a request: the order of the phases, and the one `finally`. Read this first.

    authenticate -> Principal     401
    admit        -> Admission     400 403 404 408 413
    route        -> Route         404 503
    forward      -> Answer        502 504; the upstream's own 4xx and 5xx pass
    relay        -> Observation   after the first byte: an error event, or a connection cut
    finally
      record                      always, exactly once

Each phase takes what the one before returned, so a wrong order does not type-check.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.core import errors
from proxy.phases.admit import admit
from proxy.phases.authenticate import authenticate
from proxy.phases.exchange import Phase, Treatment
from proxy.phases.forward import forward
from proxy.phases.record import Findings, record
from proxy.phases.relay import relay, sluice_headers
from proxy.phases.route import route
from proxy.phases.watchdog import StallWatch, send_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    import structlog

    from proxy.core.headers import RawHeaders
    from proxy.phases.admit import Admission
    from proxy.phases.authenticate import Keyring, Principal
    from proxy.phases.exchange import Exchange
    from proxy.phases.forward import Answer
    from proxy.phases.models import Catalogue
    from proxy.phases.route import Route, Router
    from proxy.phases.watchdog import Watchdog
    from proxy.tasks import BackgroundTasks
    from proxy.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server's configuration says about every exchange."""

    max_request_bytes: int
    write_stall_s: float | None
    keepalive_s: float | None


class Pipeline:
    """Runs exchanges through the phases. Holds collaborators, and which exchanges are live; nothing of any of them."""

    def __init__(
        self,
        *,
        keyring: Keyring,
        router: Router,
        catalogue: Catalogue,
        limits: Limits,
        via: bytes,
        tasks: BackgroundTasks,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the clock that is passed in; keys expire by wall time
    ) -> None:
        self._keyring = keyring
        self._router = router
        self._catalogue = catalogue
        self._limits = limits
        self._via = via
        self._tasks = tasks
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._live: dict[Exchange, _Live] = {}
        self._closed: errors.ProxyError | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """How many exchanges are live."""
        return len(self._live)

    async def idle(self) -> None:
        """Wait until none is live."""
        await self._idle.wait()

    async def run(self, exchange: Exchange, refusal: errors.ProxyError | None = None) -> None:
        """Serve one exchange to its end, whatever that is; `refusal` is why it ends before it began."""
        live = _Live(asyncio.current_task())
        findings = Findings()
        self._live[exchange] = live
        self._idle.clear()
        self._metrics.phase_entered(exchange.timeline.phase.value)
        try:
            await self._serve(exchange, live, findings, refusal or self._closed)
        finally:
            del self._live[exchange]
            if not self._live:
                self._idle.set()
            findings.ended_in = findings.ended_in or exchange.timeline.phase
            self._enter(exchange, Phase.DONE)
            record(exchange, findings, self._metrics, self._log)

    def interrupt(self, error: errors.ProxyError) -> None:
        """End all live exchanges with `error`, each as honestly as its phase allows, and refuse those to come."""
        self._closed = error
        for exchange, live in list(self._live.items()):
            live.interruption = error
            if live.answer is not None and exchange.downstream.started:
                live.answer.stream.fail(error)
            elif live.task is not None:
                live.task.cancel()

    async def _serve(
        self, exchange: Exchange, live: _Live, findings: Findings, refusal: errors.ProxyError | None
    ) -> None:
        """Run the phases and turn every way they may fail into an answer and a finding."""
        try:
            try:
                if refusal is not None:
                    raise refusal
                await self._phases(exchange, live, findings)
            except errors.ProxyError as error:
                await self._tell(exchange, live, findings, error)
            except asyncio.CancelledError:
                if live.interruption is None or exchange.downstream.started or live.task is None:
                    raise
                live.task.uncancel()
                findings.aborted_by = "drain"
                await self._tell(exchange, live, findings, live.interruption)
        except (asyncio.CancelledError, ConnectionError):
            findings.error, findings.aborted_by = _who_ended(live)
            exchange.downstream.abort()
            raise
        except Exception as fault:  # noqa: BLE001 - one exchange's fault must not become another's
            findings.fault = type(fault).__name__
            self._log.error("fault", id=exchange.id, exc_info=fault)
            told = errors.ProxyError(errors.INTERNAL, "Sluice failed on this request.")
            await self._tell(exchange, live, findings, told)

    async def _phases(self, exchange: Exchange, live: _Live, findings: Findings) -> None:
        principal = findings.principal = authenticate(exchange.headers, self._keyring, self._clock())
        if exchange.endpoint.treatment is Treatment.MODELS:
            await self._answer_models(exchange, live, principal)
            findings.answered = 200
            return
        self._enter(exchange, Phase.ADMIT)
        admission = findings.admission = await admit(exchange, principal, self._limits.max_request_bytes)
        self._enter(exchange, Phase.ROUTE)
        chosen = findings.route = route(exchange, admission, self._router, self._via)
        self._enter(exchange, Phase.FORWARD)
        findings.answer = live.answer = await self._forward(exchange, admission, chosen)
        live.watchdog = live.answer.watchdog
        self._enter(exchange, Phase.RELAY)
        await self._relay(exchange, live.answer, chosen, live, findings)

    async def _forward(self, exchange: Exchange, admission: Admission, chosen: Route) -> Answer:
        """Forward, and count the attempt: an upstream is not to blame for a client that left or sent nonsense."""
        result = "abandoned"
        try:
            forwarded = await forward(
                exchange, admission, chosen, tasks=self._tasks, write_stall_s=self._limits.write_stall_s
            )
            result = f"{forwarded.stream.head.status // 100}xx"
        except errors.ProxyError as error:
            if error.kind.blame is errors.Blame.UPSTREAM:
                result = error.kind.outcome
            raise
        finally:
            self._metrics.attempted(chosen.upstream.name, result)
        return forwarded

    async def _relay(self, exchange: Exchange, answer: Answer, chosen: Route, live: _Live, findings: Findings) -> None:
        try:
            observation = await relay(exchange, answer, chosen.upstream, self._limits.keepalive_s)
            if answer.watchdog.fired == "write_stall":
                raise ConnectionResetError("the client stopped reading")
            findings.observation = observation
            if observation.failure is not None:
                findings.aborted_by = "drain" if observation.failure is live.interruption else answer.watchdog.fired
        finally:
            answer.close()
            pauses, seconds = exchange.downstream.backpressure
            if pauses:
                self._metrics.backpressure(chosen.upstream.name, pauses, seconds)

    async def _answer_models(self, exchange: Exchange, live: _Live, principal: Principal) -> None:
        body = await self._catalogue.answer(exchange, principal)
        await self._respond(exchange, live, 200, [], body)

    async def _tell(self, exchange: Exchange, live: _Live, findings: Findings, error: errors.ProxyError) -> None:
        """Answer with `error`, or, when the head is out, end the connection so that nothing looks whole."""
        findings.error = error
        findings.ended_in = exchange.timeline.phase
        if findings.answer is not None and findings.aborted_by is None:
            findings.aborted_by = findings.answer.watchdog.fired
        if exchange.downstream.started:
            exchange.downstream.cut()
            return
        await self._respond(exchange, live, error.kind.status, _error_headers(error), errors.envelope(error))

    async def _respond(self, exchange: Exchange, live: _Live, status: int, headers: RawHeaders, body: bytes) -> None:
        """An answer of our own, in JSON."""
        request_id = (b"x-request-id", exchange.id.encode("ascii"))
        content_type = (b"Content-Type", b"application/json")
        head = [content_type, request_id, *sluice_headers(exchange), *headers]
        live.watchdog = StallWatch(exchange.downstream, self._limits.write_stall_s)
        await send_whole(exchange.downstream, status, head, body, live.watchdog)

    def _enter(self, exchange: Exchange, phase: Phase) -> None:
        left = exchange.timeline.phase
        exchange.timeline.enter(phase)
        self._metrics.phase_entered(None if phase is Phase.DONE else phase.value, left=left.value)


@dataclass(slots=True)
class _Live:
    """What it takes to end a live exchange from outside."""

    task: asyncio.Task[object] | None
    answer: Answer | None = None
    watchdog: Watchdog | StallWatch | None = None
    interruption: errors.ProxyError | None = None


def _who_ended(live: _Live) -> tuple[errors.ProxyError, str]:
    """Why an exchange was cancelled or lost its client, and the word for who did it."""
    if live.interruption is not None:
        return live.interruption, "drain"
    if live.watchdog is not None and live.watchdog.fired == "write_stall":
        return errors.ProxyError(errors.CLIENT_STALLED, "The client stopped reading."), "write_stall"
    return errors.ProxyError(errors.CLIENT_GONE, "The client has left."), "client"


def _error_headers(error: errors.ProxyError) -> RawHeaders:
    headers: RawHeaders = []
    if error.kind.status == 401:
        headers.append((b"WWW-Authenticate", b"Bearer"))
    if error.retry_after_s is not None:
        wait_ms = max(1, round(error.retry_after_s * 1000))
        headers.append((b"retry-after", b"%d" % -(-wait_ms // 1000)))
        headers.append((b"retry-after-ms", b"%d" % wait_ms))
    return headers
