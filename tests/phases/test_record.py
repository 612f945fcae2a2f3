"""The record: which status, outcome and fields each set of findings leads to."""

from __future__ import annotations

import json
import logging
import ssl
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import CollectorRegistry

from proxy.core import errors
from proxy.core.usage import Usage
from proxy.phases.admit import Admission
from proxy.phases.record import Findings, ending_of, record
from proxy.phases.relay import Relayed
from proxy.phases.route import Target
from proxy.phases.settle import Settlement
from proxy.telemetry.logs import configure
from proxy.telemetry.metrics import Metrics
from tests.fakes.accounts import account
from tests.fakes.arrived import arrived, principal
from tests.fakes.routes import model, upstream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.phases.exchange import Exchange, Phase

FAILED = errors.ProxyError(errors.UPSTREAM_TIMEOUT, "The upstream sent nothing for 2 s.")
GONE = errors.ProxyError(errors.CLIENT_GONE, "The client has left.")
PRIVATE = errors.ProxyError(errors.MODEL_NOT_FOUND, "The model `private-name` does not exist.")


class Line:
    """Takes the one line that is logged, as the log's writer does, and reads it."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, line: bytes) -> None:
        assert not self.text, "a second line"
        self.text = line

    def is_terminal(self) -> bool:
        return False

    @property
    def fields(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.text))

    @property
    def level(self) -> str:
        return cast("str", self.fields["level"])


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers


def answered(status: int) -> Any:
    head = SimpleNamespace(status=status)
    return SimpleNamespace(stream=SimpleNamespace(head=head, received_bytes=11, reused=True))


def target() -> Target:
    return Target("gpt-*", model(upstream()))


def recorded(findings: Findings, exchange: Exchange | None = None) -> tuple[Line, CollectorRegistry]:
    registry, line = CollectorRegistry(), Line()
    exchange = exchange or arrived()
    log = configure("error", "json", cast("Any", line))
    record(ending_of(exchange, findings), Metrics(registry), log)
    return line, registry


@pytest.mark.parametrize(
    ("findings", "status", "outcome"),
    [
        (Findings(answer=answered(200), relayed=Relayed(3)), 200, "ok"),
        (Findings(answer=answered(201), relayed=Relayed()), 201, "ok"),
        (Findings(answer=answered(429), relayed=Relayed()), 429, "upstream_error"),
        (Findings(answer=answered(503), relayed=Relayed()), 503, "upstream_error"),
        (Findings(answered=200), 200, "ok"),
        (Findings(error=FAILED), 504, "upstream_timeout"),
        (Findings(answer=answered(200), relayed=Relayed(3, FAILED)), 200, "upstream_timeout"),
        (Findings(answer=answered(200), error=GONE), 499, "client_gone"),
        (Findings(answer=answered(200), error=GONE, relayed=Relayed(1, FAILED)), 499, "client_gone"),
        (Findings(), 500, "upstream_error"),
    ],
)
def test_status_and_outcome(findings: Findings, status: int, outcome: str) -> None:
    ending = ending_of(arrived(), findings)
    assert (ending.status, ending.outcome) == (status, outcome)
    line, registry = recorded(findings)
    assert (line.fields["status"], line.fields["outcome"]) == (status, outcome)
    labels = {"key": "", "model": "", "endpoint": "chat/completions", "outcome": outcome, "status": str(status)}
    assert registry.get_sample_value("sluice_requests_total", labels) == 1


@pytest.mark.parametrize(("status", "level"), [(200, "info"), (404, "info"), (499, "info"), (500, "warning")])
def test_what_went_wrong_here_or_upstream_is_a_warning(status: int, level: str) -> None:
    assert recorded(Findings(answer=answered(status)))[0].level == level


def test_a_line_is_written_whatever_the_threshold_is() -> None:
    assert recorded(Findings(answered=200))[0].level == "info", "`recorded` logs from errors on"


def test_a_fault_is_a_warning_with_its_class() -> None:
    line, _ = recorded(Findings(answered=200, fault="KeyError"))
    assert (line.level, line.fields["fault"]) == ("warning", "KeyError")


def test_the_log_names_the_model_and_the_metrics_its_pattern() -> None:
    admission = Admission(principal(), "gpt-4o-mini", streamed=True, body=b"")
    found = Findings(principal=principal(), admission=admission, target=target(), answer=answered(200))
    line, registry = recorded(found)
    assert (line.fields["model"], line.fields["key_id"], line.fields["upstream"]) == ("gpt-4o-mini", "team-a", "up")
    labels = {"key": "team-a", "model": "gpt-*", "endpoint": "chat/completions", "outcome": "ok", "status": "200"}
    assert registry.get_sample_value("sluice_requests_total", labels) == 1


def test_a_model_nobody_knows_is_in_neither() -> None:
    admission = Admission(principal(), "typed-by-somebody", streamed=False, body=b"")
    line, registry = recorded(Findings(principal=principal(), admission=admission, error=PRIVATE))
    assert line.fields["model"] is None
    shown = [str(value) for value in line.fields.values()]
    shown += [value for family in registry.collect() for s in family.samples for value in s.labels.values()]
    assert not [text for text in shown if "typed-by-somebody" in text or "private-name" in text]


def test_a_long_model_name_is_cut() -> None:
    admission = Admission(principal(), "m" * 5000, streamed=False, body=b"")
    line, _ = recorded(Findings(admission=admission, target=target(), answer=answered(200)))
    assert line.fields["model"] == "m" * 128


def test_our_messages_about_upstreams_are_shown_and_those_about_clients_are_not() -> None:
    line, _ = recorded(Findings(error=FAILED))
    assert (line.fields["blame"], line.fields["error"]) == ("upstream", FAILED.message)
    line, _ = recorded(Findings(error=PRIVATE))
    assert line.fields["blame"] == "downstream"
    assert "error" not in line.fields


class Clock:
    """A clock that is read in nanoseconds, and set in seconds."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter_ns(self) -> int:
        return round(self.now_s * 1_000_000_000)


def test_times_are_those_of_the_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("proxy.phases.exchange.time", clock)
    exchange = arrived()
    stations: tuple[Phase, ...] = ("admit", "admit", "queue", "forward", "queue", "forward", "done")
    for seconds, phase in enumerate(stations, 1):
        clock.now_s += seconds
        exchange.timeline.enter(phase)
    # it was admitted for 2 s more when it was said so again; what is waited after the first try is no overhead
    spent_s = {"authenticate": 1, "admit": 5, "queue": 10, "forward": 12}
    assert exchange.timeline.passed() == (spent_s, 6)
    tried = account()
    tried.attempts = 1
    found = Findings(error=FAILED, ended_in="forward", aborted_by="idle", account=tried)
    line, registry = recorded(found, exchange)
    assert list(line.fields["phases_s"].items()) == [("authenticate", 1), ("admit", 5), ("queue", 10), ("forward", 12)]
    assert (line.fields["phase"], line.fields["attempts"], line.fields["aborted_by"]) == ("forward", 1, "idle")
    overhead = registry.get_sample_value("sluice_overhead_seconds_sum", {"endpoint": "chat/completions"})
    assert overhead == 6.0
    assert registry.get_sample_value("sluice_aborts_total", {"phase": "forward", "by": "idle"}) == 1


def test_what_never_happened_is_not_counted() -> None:
    line, registry = recorded(Findings(error=PRIVATE, ended_in="admit"))
    assert [name for name in ("first_byte_s", "events", "upstream_status", "aborted_by") if name in line.fields] == []
    counted = {s.name for family in registry.collect() for s in family.samples}
    assert "sluice_duration_seconds_count" in counted
    assert counted.isdisjoint({"sluice_overhead_seconds_count", "sluice_time_to_first_byte_seconds_count"})
    assert "sluice_aborts_total" not in counted


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 443)"), "ECONNREFUSED: Connection refused"),
        (ssl.SSLEOFError("raised by hand"), "TLS: SSLEOFError"),
        (ValueError("may quote anything"), "ValueError"),
    ],
)
def test_why_an_upstream_failed_is_said_without_what_others_wrote(cause: Exception, said: str) -> None:
    error = errors.ProxyError(errors.UPSTREAM_UNREACHABLE, "Could not connect to the upstream.")
    error.__cause__ = cause
    line, _ = recorded(Findings(error=error))
    assert line.fields["cause"] == said
    assert line.level == "warning"


def test_what_is_charged_is_in_the_line_and_the_metrics() -> None:
    usage = Usage(100, 50, cached_tokens=40, reasoning_tokens=20, audio_s=1.5)
    settlement = Settlement("counted", usage, 1_250_000_000, is_priced=True)
    found = Findings(principal=principal(), target=target(), settlement=settlement, answer=answered(200))
    line, registry = recorded(found)
    charged = {"grade": "counted", "input_tokens": 100, "output_tokens": 50, "cached_tokens": 40, "cost_usd": 1.25}
    assert charged.items() <= line.fields.items()
    assert (line.fields["reasoning_tokens"], line.fields["audio_s"]) == (20, 1.5)
    assert "cache_write_tokens" not in line.fields, "zeros of details would only make the line longer"
    labels = {"key": "team-a", "model": "gpt-*"}
    kinds = {
        kind: registry.get_sample_value("sluice_tokens_total", labels | {"kind": kind, "grade": "counted"})
        for kind in ("input", "cached", "output", "reasoning")
    }
    assert kinds == {"input": 60, "cached": 40, "output": 30, "reasoning": 20}, "they add up to the two totals"
    assert registry.get_sample_value("sluice_cost_usd_total", labels) == 1.25
    assert registry.get_sample_value("sluice_unpriced_exchanges_total", {"model": "gpt-*"}) is None


def test_what_nobody_knows_a_price_of_is_counted() -> None:
    settlement = Settlement("exact", Usage(1, 1), 0, is_priced=False)
    _, registry = recorded(Findings(principal=principal(), target=target(), settlement=settlement))
    assert registry.get_sample_value("sluice_unpriced_exchanges_total", {"model": "gpt-*"}) == 1
