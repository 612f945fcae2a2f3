"""The canonical line is written past structlog's chain: it is the very line that the chain would write."""

from __future__ import annotations

import datetime as dt
import itertools
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from proxy.core import errors
from proxy.core.usage import GRADES, Usage
from proxy.phases.admit import Admission
from proxy.phases.attempts import Try
from proxy.phases.exchange import PHASES
from proxy.phases.record import Findings, ending_of, record
from proxy.phases.relay import Relayed
from proxy.phases.route import Target
from proxy.phases.settle import Settlement
from proxy.telemetry.logs import MASK, configure, log_always, log_clean
from proxy.telemetry.metrics import Metrics
from tests.fakes.accounts import account
from tests.fakes.arrived import arrived, principal
from tests.fakes.routes import model, upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.typing import FilteringBoundLogger

    from proxy.phases.account import Account
    from proxy.phases.exchange import Exchange

KEY = "sk-sluice-Zm9vYmFyYmF6cXV4"
FORMS: Final[tuple[Literal["json", "console"], ...]] = ("json", "console")
BOUND: Final[tuple[dict[str, object], ...]] = ({}, {"worker": 3, "api_key": KEY, "thing": object()})
odd_texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["gpt-4o", KEY, f"\x1b{KEY}", "a\nforged", "\ud800", "é" * 3000, "m" * 2001, "authorization: bearer x"]
    ),
)
names = st.text(max_size=30)  # of what stands in the configuration
counts = st.integers(0, 2**70)
kinds = st.sampled_from([kind for kind in vars(errors).values() if isinstance(kind, errors.ErrorKind)])
causes = st.one_of(
    st.none(), st.builds(OSError, st.sampled_from([111, 9999]), odd_texts), st.builds(KeyError, odd_texts)
)


class Lines:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.write = self.lines.append

    def is_terminal(self) -> bool:
        return False


class Stopped(dt.datetime):
    """A clock that stands: at a full second, where fractions are left out, or not."""

    at = dt.datetime(2026, 7, 1, 12, 30, 5, tzinfo=dt.UTC)

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]  # it stands
        assert tz is not None
        return cls.at


@pytest.fixture(autouse=True)
def _one_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("proxy.telemetry.logs.datetime", Stopped)
    clock = SimpleNamespace(datetime=Stopped, timezone=dt.timezone)
    monkeypatch.setattr("structlog.processors.datetime", clock)
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers


@st.composite
def failures(draw: st.DrawFn) -> errors.ProxyError:
    error = errors.ProxyError(draw(kinds), draw(odd_texts))
    error.__cause__ = draw(causes)
    return error


@st.composite
def accounts(draw: st.DrawFn) -> Account:
    tried = account()
    tried.attempts = draw(counts)
    tried.upstream = draw(st.one_of(st.none(), names))
    tried.tries = draw(st.lists(made(Try, upstream=names, result=names, seconds=st.floats(0, 1e6)), max_size=3))
    return tried


@st.composite
def answers(draw: st.DrawFn) -> Any:
    head = SimpleNamespace(status=draw(st.integers(100, 599)))
    return SimpleNamespace(stream=SimpleNamespace(head=head, received_bytes=draw(counts), reused=draw(st.booleans())))


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


def made(kind: Callable[..., Any], **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """As `st.builds`, of classes whose annotations cannot be read at run time."""
    return st.fixed_dictionaries(parts).map(lambda known: kind(**known))


findings = made(
    Findings,
    principal=maybe(st.builds(principal)),
    admission=maybe(
        made(
            Admission,
            principal=st.builds(principal),
            model=maybe(odd_texts),
            streamed=st.booleans(),
            body=st.just(b""),
        )
    ),
    target=maybe(odd_texts.map(lambda label: Target(label, model(upstream())))),
    account=maybe(accounts()),
    answer=maybe(answers()),
    relayed=maybe(made(Relayed, events=counts, failure=maybe(failures()), told_error=st.booleans())),
    settlement=maybe(
        made(
            Settlement,
            grade=st.sampled_from(GRADES),
            usage=st.builds(Usage, *[counts] * 10, st.floats(0, 1e6)),
            cost_nano_usd=counts,
            is_priced=st.booleans(),
        )
    ),
    error=maybe(failures()),
    answered=maybe(st.just(200)),
    ended_in=maybe(st.sampled_from(PHASES)),
    aborted_by=maybe(st.sampled_from(["client", "total", "drain"])),
    fault=maybe(st.sampled_from(["KeyError", "ValueError"])),
)


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    exchange = arrived(method=draw(odd_texts))
    exchange.client = draw(odd_texts)
    downstream = cast("Any", exchange.downstream)
    downstream.sent_bytes = draw(counts)
    downstream.first_byte_s = draw(maybe(st.just(exchange.timeline.arrived_s + 0.25)))
    context = SimpleNamespace(is_sampled=draw(st.booleans()))
    trace = SimpleNamespace(id="0af7651916cd43dd8448eb211c80319c", context=context, end=lambda *_: None)
    exchange.trace = cast("Any", draw(maybe(st.just(trace))))
    for phase in draw(st.lists(st.sampled_from(PHASES), max_size=9)):
        exchange.timeline.enter(phase)
    return exchange


def both(exchange: Exchange, found: Findings, log: FilteringBoundLogger, written: Lines) -> list[bytes]:
    """The line as it is written, and as the chain writes the same fields."""
    fields: dict[str, object] = {}
    levels: list[Any] = []

    def keep(log: FilteringBoundLogger, level: Any, event: str, known: dict[str, object]) -> None:
        fields.update(known)
        levels.append(level)
        log_clean(log, level, event, known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proxy.phases.record.log_clean", keep)
        record(ending_of(exchange, found), Metrics(CollectorRegistry()), log)
    log_always(log, levels[0], "exchange", **fields)
    return written.lines


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(exchange=exchanges(), found=findings, microsecond=st.sampled_from([0, 1, 120_000]))
def test_the_line_is_the_one_that_the_chain_writes(exchange: Exchange, found: Findings, microsecond: int) -> None:
    """Each example in all forms: to draw one takes longer than to write it four times."""
    Stopped.at = Stopped.at.replace(microsecond=microsecond)
    for form, bound in itertools.product(FORMS, BOUND):
        written = Lines()
        log = configure("info", form, cast("Any", written), **bound)
        line, reference = both(exchange, found, log, written)
        assert line == reference
        assert KEY.encode() not in line
        assert b"2026-07-01T12:30:05" in line


def test_what_others_wrote_is_cut_and_masked() -> None:
    written = Lines()
    exchange = arrived(method="M" * 5000)
    exchange.client = KEY
    log = configure("info", "json", cast("Any", written))
    line, reference = both(exchange, Findings(), log, written)
    assert line == reference
    assert b"M" * 2000 in line
    assert b"M" * 2001 not in line
    assert MASK.encode() in line
