"""The last phase: one canonical log line and the metrics of the exchange, however it ended."""

from __future__ import annotations

import errno
import os
import ssl
import time
from typing import TYPE_CHECKING, Final

import msgspec

from proxy.core import errors
from proxy.core.gaps import Gaps
from proxy.core.usage import Usage
from proxy.telemetry.logs import MAX_VALUE_CHARS, log_clean

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


_LONGEST_MODEL: Final = 128
_NO_DETAILS: Final = msgspec.structs.astuple(Usage())[2:]


class Findings(msgspec.Struct):
    """What the phases returned, for the record: each is None where the exchange did not come so far."""

    principal: Principal | None = None
    admission: Admission | None = None
    target: Target | None = None
    hop: Hop | None = None  # of the trace: the try that answered
    account: Account | None = None
    answer: Answer | None = None
    observer: Observer | None = None
    gaps: Gaps = msgspec.field(default_factory=Gaps)
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


class Ending(msgspec.Struct, frozen=True):
    """What an exchange came to. `first_byte_s` counts from the request's arrival."""

    exchange: Exchange
    findings: Findings
    status: int
    outcome: str
    error: errors.ProxyError | None
    told_error: bool
    upstream: str | None
    first_byte_s: float | None


def ending_of(exchange: Exchange, findings: Findings) -> Ending:
    """What the exchange came to by what is found so far.

    `status` is the one that the client got; 499 for one that left (as nginx logs it), though it may have seen a 200.
    `outcome` is one word: ok, upstream_error, or that of the error. `told_error`: the upstream told of an error in an
    answer whose status says that all is well.
    """
    error, answer, relayed, observer = findings.error, findings.answer, findings.relayed, findings.observer
    told_error = (relayed is not None and relayed.told_error) or (observer is not None and observer.is_error)
    if error is not None:
        status = error.kind.status
    elif findings.answered is not None:
        status = findings.answered
    else:
        status = answer.stream.head.status if answer is not None else 500
    if error is None and relayed is not None:
        error = relayed.failure
    outcome = "ok"
    if error is not None:
        outcome = error.kind.outcome
    elif told_error or status >= 400:
        outcome = "upstream_error"
    first_byte_s = exchange.downstream.first_byte_s
    if first_byte_s is not None:
        first_byte_s -= exchange.timeline.arrived_s
    return Ending(exchange, findings, status, outcome, error, told_error, findings.upstream, first_byte_s)


def record(ending: Ending, metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> None:
    """Count the exchange and write its line."""
    exchange, findings = ending.exchange, ending.findings
    principal, admission, target = findings.principal, findings.admission, findings.target
    relayed, settlement, trace = findings.relayed, findings.settlement, exchange.trace
    duration_s = time.perf_counter() - exchange.timeline.arrived_s
    spent_s, overhead_s = exchange.timeline.passed()
    labels = (
        principal.key_id if principal is not None else "",
        target.label if target is not None else "",
        exchange.endpoint.name,
        ending.outcome,
        ending.status,
        ending.upstream or "",
        (admission is not None and admission.streamed) or (relayed is not None and relayed.events > 0),
        settlement.grade if settlement is not None else "",
    )
    metrics.exchange_ended(
        labels,
        duration_s=duration_s,
        # an error of ours is no first byte of an upstream's
        time_to_first_byte_s=ending.first_byte_s if findings.answer is not None else None,
        overhead_s=overhead_s,
        trace_id=trace.id if trace is not None and trace.context.is_sampled else None,
        usage=settlement.usage if settlement is not None else None,
        cost_nano_usd=settlement.cost_nano_usd if settlement is not None else 0,
    )
    if settlement is not None and not settlement.is_priced:
        metrics.unpriced(labels[1])
    if findings.gaps.total_s and target is not None:
        metrics.inter_events.add(target.label, ending.upstream or "", findings.gaps)
    if findings.aborted_by is not None and findings.ended_in is not None:
        metrics.aborted(findings.ended_in, findings.aborted_by)
    if findings.observer is not None and findings.observer.faults:
        metrics.accounting_faults(findings.observer.faults)
    is_trouble = findings.fault is not None or (ending.outcome != "ok" and _is_trouble(ending))
    log_clean(log, "warning" if is_trouble else "info", "exchange", _fields(ending, duration_s, spent_s))
    if trace is not None:
        trace.end(ending)


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


def _fields(ending: Ending, duration_s: float, spent_s: dict[Phase, float]) -> dict[str, object]:
    """The canonical line: what is known of the exchange, and never a key, a prompt or an answer.

    It is clean (see `log_clean`): what others have written is cut to size here.
    """
    exchange, findings = ending.exchange, ending.findings
    principal, admission, account, answer = findings.principal, findings.admission, findings.account, findings.answer
    relayed, settlement = findings.relayed, findings.settlement
    fields: dict[str, object] = {
        "id": exchange.id,
        "key_id": principal.key_id if principal is not None else None,
        "endpoint": exchange.endpoint.name,
        "method": exchange.method[:MAX_VALUE_CHARS],
        "client": exchange.client[:MAX_VALUE_CHARS],
        "model": (admission.model or "")[:_LONGEST_MODEL] if admission and findings.target else None,
        "upstream": ending.upstream,
        "status": ending.status,
        "outcome": ending.outcome,
        "phase": findings.ended_in,
        "attempts": account.attempts if account is not None else 0,
        "duration_s": round(duration_s, 6),
        "phases_s": spent_s,
        "received_bytes": exchange.body.received_bytes,
        "sent_bytes": exchange.downstream.sent_bytes,
    }
    if ending.first_byte_s is not None:
        fields["first_byte_s"] = round(ending.first_byte_s, 6)
    if answer is not None:
        stream = answer.stream
        fields["upstream_status"] = stream.head.status
        fields["upstream_bytes"] = stream.received_bytes
        fields["reused"] = stream.reused
    if relayed is not None:
        fields["events"] = relayed.events
    if settlement is not None:
        usage = settlement.usage
        fields["grade"] = settlement.grade
        fields["input_tokens"] = usage.input_tokens
        fields["output_tokens"] = usage.output_tokens
        details = msgspec.structs.astuple(usage)[2:]
        if details != _NO_DETAILS:
            names = Usage.__struct_fields__[2:]
            fields |= {name: value for name, value in zip(names, details, strict=True) if value}
        fields["cost_usd"] = settlement.cost_nano_usd / 1_000_000_000
    if account is not None and len(account.tries) > 1:
        fields["tries"] = [
            {"upstream": one.upstream, "result": one.result, "seconds": round(one.seconds, 6)} for one in account.tries
        ]
    if findings.aborted_by is not None:
        fields["aborted_by"] = findings.aborted_by
    if ending.outcome != "ok":
        _add_blame(fields, ending)
    if exchange.trace is not None:
        fields["trace_id"] = exchange.trace.id
    if findings.fault is not None:
        fields["fault"] = findings.fault
    return fields


def _add_blame(fields: dict[str, object], ending: Ending) -> None:
    """Whose fault it was, and what is known of it."""
    error = ending.error
    if ending.told_error:
        fields["blame"] = errors.Blame.UPSTREAM.value
    if error is None:
        return
    fields["blame"] = error.kind.blame.value
    # our own messages about downstream mistakes may quote a model's name: the outcome says enough
    if error.kind.blame is not errors.Blame.DOWNSTREAM or error.kind.status == 429:
        fields["error"] = error.message[:MAX_VALUE_CHARS]
        if error.__cause__ is not None:
            fields["cause"] = _cause(error.__cause__)[:MAX_VALUE_CHARS]


def _is_trouble(ending: Ending) -> bool:
    """Something is wrong here or at the upstream."""
    is_failure = ending.error is not None and ending.error.kind.blame is not errors.Blame.DOWNSTREAM
    return is_failure or ending.told_error or ending.status >= 500
