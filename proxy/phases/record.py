"""The last phase: one canonical log line and the metrics of the exchange, however it ended."""

from __future__ import annotations

import errno
import os
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.core import errors
from proxy.core.gaps import Gaps
from proxy.telemetry.logs import log_always

if TYPE_CHECKING:
    import structlog

    from proxy.phases.account import Account
    from proxy.phases.admit import Admission
    from proxy.phases.authenticate import Principal
    from proxy.phases.exchange import Exchange, Phase
    from proxy.phases.forward import Answer
    from proxy.phases.observe import Observer
    from proxy.phases.relay import Relayed
    from proxy.phases.route import Target
    from proxy.phases.settle import Settlement
    from proxy.phases.tracing import Hop
    from proxy.telemetry.metrics import Metrics


@dataclass(slots=True)
class Findings:
    """What the phases returned, for the record: each is None where the exchange did not come so far."""

    principal: Principal | None = None
    admission: Admission | None = None
    target: Target | None = None
    hop: Hop | None = None  # of the trace: the try that answered
    account: Account | None = None
    answer: Answer | None = None
    observer: Observer | None = None
    gaps: Gaps = field(default_factory=Gaps)
    relayed: Relayed | None = None
    settlement: Settlement | None = None
    error: errors.ProxyError | None = None
    answered: int | None = None  # the status of an answer that is Sluice's own and no error
    is_refused: bool = False  # the client got an error of Sluice's in place of an answer
    ended_in: Phase | None = None
    aborted_by: str | None = None  # client, idle, write_stall, total, drain
    fault: str | None = None  # the class of an exception that should not have been

    @property
    def upstream(self) -> str | None:
        """Who was asked last; before that, who alone may be asked."""
        if self.account is not None and self.account.upstream is not None:
            return self.account.upstream
        routes = self.target.model.routes if self.target is not None else ()
        return routes[0].upstream.name if len(routes) == 1 else None


def status_of(findings: Findings) -> int:
    """The status the client got; 499 for one that left (as nginx logs it), though it may have seen a 200."""
    if findings.error is not None:
        return findings.error.kind.status
    if findings.answered is not None:
        return findings.answered
    return findings.answer.stream.head.status if findings.answer is not None else 500


def outcome_of(findings: Findings) -> str:
    """One word for how it ended: ok, upstream_error, or the outcome of the error."""
    failure = findings.relayed.failure if findings.relayed is not None else None
    error = findings.error or failure
    if error is not None:
        return error.kind.outcome
    return "upstream_error" if told_error(findings) or status_of(findings) >= 400 else "ok"


def told_error(findings: Findings) -> bool:
    """The upstream told of an error in an answer whose status says that all is well."""
    relayed, observer = findings.relayed, findings.observer
    return (relayed is not None and relayed.told_error) or (observer is not None and observer.is_error)


def record(
    exchange: Exchange, findings: Findings, metrics: Metrics, log: structlog.typing.FilteringBoundLogger
) -> None:
    """Count the exchange and write its line."""
    duration_s = time.perf_counter() - exchange.timeline.arrived_s
    _count(exchange, findings, metrics, duration_s)
    _log(exchange, findings, log, duration_s)
    if exchange.trace is not None:
        exchange.trace.end(exchange, findings)


def _count(exchange: Exchange, findings: Findings, metrics: Metrics, duration_s: float) -> None:
    observed = findings.relayed
    # an error of ours is no first byte of an upstream's
    first_byte_s = exchange.downstream.first_byte_s if findings.answer is not None else None
    metrics.exchange_ended(
        key=findings.principal.key_id if findings.principal else "",
        model=findings.target.label if findings.target else "",
        endpoint=exchange.endpoint.name,
        outcome=outcome_of(findings),
        status=status_of(findings),
        upstream=findings.upstream or "",
        streamed=(findings.admission is not None and findings.admission.streamed)
        or (observed is not None and observed.events > 0),
        duration_s=duration_s,
        time_to_first_byte_s=since_arrival(exchange, first_byte_s),
        overhead_s=exchange.timeline.overhead_s,
        trace_id=exchange.trace.id if exchange.trace is not None and exchange.trace.context.is_sampled else None,
    )
    if findings.gaps.total_s and findings.target is not None:
        metrics.inter_events.add(findings.target.label, findings.upstream or "", findings.gaps)
    if findings.aborted_by is not None and findings.ended_in is not None:
        metrics.aborted(findings.ended_in.value, findings.aborted_by)
    settlement = findings.settlement
    if settlement is not None and findings.principal is not None and findings.target is not None:
        metrics.settled(
            key=findings.principal.key_id,
            model=findings.target.label,
            grade=settlement.grade.value,
            usage=settlement.usage,
            cost_nano_usd=settlement.cost_nano_usd,
            is_priced=settlement.is_priced,
        )
    if findings.observer is not None and findings.observer.faults:
        metrics.accounting_faults(findings.observer.faults)


def since_arrival(exchange: Exchange, at_s: float | None) -> float | None:
    """Seconds from the request's arrival to `at_s`; None if that never was."""
    return None if at_s is None else at_s - exchange.timeline.arrived_s


def _cause(error: BaseException) -> str:
    """What the system said: of its own errors the number's name and text, of others the class alone."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None)  # one that Python code raised has none
        return f"TLS: {reason or type(error).__name__}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{errno.errorcode.get(error.errno, error.errno)}: {os.strerror(error.errno)}"
    return _cause(error.__cause__) if error.__cause__ is not None else type(error).__name__


def _used(settlement: Settlement) -> dict[str, object]:
    """What is charged, with the details that are not zero."""
    usage = settlement.usage
    details = {
        name: value
        for name, value in usage._asdict().items()
        if value and name not in ("input_tokens", "output_tokens")
    }
    return {
        "grade": settlement.grade.value,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        **details,
        "cost_usd": settlement.cost_nano_usd / 1_000_000_000,
    }


def _log(exchange: Exchange, findings: Findings, log: structlog.typing.FilteringBoundLogger, duration_s: float) -> None:
    """The canonical line: what is known of the exchange, and never a key, a prompt or an answer."""
    timeline = exchange.timeline
    fields: dict[str, object] = {
        "id": exchange.id,
        "key_id": findings.principal.key_id if findings.principal else None,
        "endpoint": exchange.endpoint.name,
        "method": exchange.method,
        "client": exchange.client,
        "model": (findings.admission.model or "")[:128] if findings.admission and findings.target else None,
        "upstream": findings.upstream,
        "status": status_of(findings),
        "outcome": outcome_of(findings),
        "phase": findings.ended_in.value if findings.ended_in else None,
        "attempts": findings.account.attempts if findings.account else 0,
        "duration_s": round(duration_s, 6),
        "phases_s": {phase.value: round(spent, 6) for phase, spent in timeline.spent_s.items()},
        "received_bytes": exchange.body.received_bytes,
        "sent_bytes": exchange.downstream.sent_bytes,
    }
    first_byte_s = since_arrival(exchange, exchange.downstream.first_byte_s)
    if first_byte_s is not None:
        fields["first_byte_s"] = round(first_byte_s, 6)
    if findings.answer is not None:
        fields["upstream_status"] = findings.answer.stream.head.status
        fields["upstream_bytes"] = findings.answer.stream.received_bytes
        fields["reused"] = findings.answer.stream.reused
    if findings.relayed is not None:
        fields["events"] = findings.relayed.events
    if findings.settlement is not None:
        fields |= _used(findings.settlement)
    tries = findings.account.tries if findings.account else []
    if len(tries) > 1:
        fields["tries"] = [{**one._asdict(), "seconds": round(one.seconds, 6)} for one in tries]
    if findings.aborted_by is not None:
        fields["aborted_by"] = findings.aborted_by
    error = findings.error or (findings.relayed.failure if findings.relayed else None)
    if told_error(findings):
        fields["blame"] = errors.Blame.UPSTREAM.value
    if error is not None:
        fields["blame"] = error.kind.blame.value
        # our own messages about downstream mistakes may quote a model's name: the outcome says enough
        if error.kind.blame is not errors.Blame.DOWNSTREAM or error.kind.status == 429:
            fields["error"] = error.message
            if error.__cause__ is not None:
                fields["cause"] = _cause(error.__cause__)
    if exchange.trace is not None:
        fields["trace_id"] = exchange.trace.id
    if findings.fault is not None:
        fields["fault"] = findings.fault
    is_failure = error is not None and error.kind.blame is not errors.Blame.DOWNSTREAM
    is_trouble = findings.fault or told_error(findings) or is_failure
    log_always(log, "warning" if is_trouble or status_of(findings) >= 500 else "info", "exchange", **fields)
