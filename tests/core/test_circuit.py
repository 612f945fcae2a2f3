"""When a circuit opens, who may ask while it is not closed, and how its cool-downs grow."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.core.circuit import JITTER_SHARE, PROBE_WAIT_S, Circuit, State, Ticket

FAILURES, COOLDOWN_S, MAX_COOLDOWN_S = 5, 10.0, 60.0


def circuit(failures: int = FAILURES) -> Circuit:
    return Circuit(failures=failures, cooldown_s=COOLDOWN_S, max_cooldown_s=MAX_COOLDOWN_S)


def entered(subject: Circuit, now_s: float) -> Ticket:
    ticket = subject.enter(now_s)
    assert ticket is not None
    return ticket


def fail(subject: Circuit, now_s: float, times: int = 1) -> None:
    for _ in range(times):
        subject.failed(entered(subject, now_s), now_s)


def opened(at_s: float = 0.0) -> Circuit:
    subject = circuit()
    fail(subject, at_s, FAILURES)
    assert subject.state(at_s) is State.OPEN
    return subject


def test_it_opens_after_failures_in_a_row() -> None:
    subject = circuit()
    for _ in range(3):
        fail(subject, 0, FAILURES - 1)
        subject.succeeded(entered(subject, 0), 0)
    assert (subject.state(0), subject.is_open, subject.retry_in_s(0)) == (State.CLOSED, False, 0)
    fail(subject, 0, FAILURES)
    assert (subject.state(0), subject.is_open, subject.retry_in_s(0)) == (State.OPEN, True, COOLDOWN_S)
    assert subject.enter(0) is None


def test_it_opens_when_half_of_many_results_fail() -> None:
    subject = circuit()
    for number in range(19):
        if number % 2:
            fail(subject, number / 10)
        else:
            subject.succeeded(entered(subject, number / 10), number / 10)
    assert subject.state(2) is State.CLOSED, "19 results are too few to judge by"
    fail(subject, 2)
    assert subject.state(2) is State.OPEN


def test_results_of_long_ago_and_a_smaller_share_do_not_open_it() -> None:
    subject = circuit()
    for number in range(1000):  # two in five fail
        if number % 5 in {1, 3}:
            fail(subject, number / 10)
        else:
            subject.succeeded(entered(subject, number / 10), number / 10)
    for number in range(100):  # all but one in five fail, but only one and a half a second
        now_s = 200 + number / 1.5
        if number % 5:
            fail(subject, now_s)
        else:
            subject.succeeded(entered(subject, now_s), now_s)
    assert subject.state(300) is State.CLOSED


def test_an_answer_that_breaks_off_counts_though_its_head_came() -> None:
    subject = circuit()
    for _ in range(FAILURES):
        assert subject.state(1) is State.CLOSED
        ticket = entered(subject, 0)
        subject.succeeded(ticket, 0)
        subject.failed(ticket, 1)
    assert subject.state(1) is State.OPEN


def test_half_open_admits_one_at_a_time() -> None:
    subject = opened()
    assert not subject.admits(COOLDOWN_S - 0.01)
    assert subject.state(COOLDOWN_S) is State.HALF_OPEN
    assert subject.admits(COOLDOWN_S)
    assert subject.admits(COOLDOWN_S), "looking takes nothing"
    probe = entered(subject, COOLDOWN_S)
    assert not subject.admits(2 * COOLDOWN_S - 0.01)
    assert subject.enter(2 * COOLDOWN_S - 0.01) is None
    assert subject.admits(2 * COOLDOWN_S), "one that takes so long says nothing"
    assert subject.retry_in_s(COOLDOWN_S) == PROBE_WAIT_S
    subject.succeeded(probe, COOLDOWN_S + 1)
    assert subject.state(COOLDOWN_S + 1) is State.CLOSED
    fail(subject, COOLDOWN_S + 1, FAILURES - 1)
    assert subject.state(COOLDOWN_S + 1) is State.CLOSED, "what was before is forgotten"


def test_a_probe_that_is_abandoned_gives_the_permission_back() -> None:
    subject = opened()
    lost = entered(subject, COOLDOWN_S)
    subject.abandoned(lost)
    probe = entered(subject, COOLDOWN_S)
    subject.abandoned(lost)
    subject.failed(lost, COOLDOWN_S)
    subject.succeeded(lost, COOLDOWN_S)
    assert subject.enter(COOLDOWN_S) is None, "one that was abandoned has nothing more to say"
    subject.succeeded(probe, COOLDOWN_S)
    subject.abandoned(probe)
    assert subject.state(COOLDOWN_S) is State.CLOSED


def test_what_began_before_it_opened_changes_nothing() -> None:
    subject = circuit()
    before = [entered(subject, 0) for _ in range(20)]
    fail(subject, 0, FAILURES)
    subject.failed(before.pop(), 9)
    assert subject.retry_in_s(9) == COOLDOWN_S - 9
    subject.succeeded(before.pop(), 9)
    assert subject.state(9) is State.OPEN
    probe = entered(subject, COOLDOWN_S)
    subject.succeeded(before.pop(), COOLDOWN_S)
    subject.failed(before.pop(), COOLDOWN_S)
    subject.failed(None, COOLDOWN_S)
    assert subject.state(COOLDOWN_S) is State.HALF_OPEN
    subject.succeeded(probe, COOLDOWN_S)
    for ticket in before:
        subject.failed(ticket, COOLDOWN_S)
    assert subject.state(COOLDOWN_S) is State.CLOSED
    for _ in range(FAILURES):
        subject.failed(None, COOLDOWN_S)
    assert subject.state(COOLDOWN_S) is State.OPEN


def test_cool_downs_double_until_it_has_held() -> None:
    subject, now_s = opened(), 0.0
    for pause_s in (10, 20, 40, 60, 60):
        assert subject.retry_in_s(now_s) == pause_s
        now_s += pause_s
        fail(subject, now_s)
    now_s += 60
    subject.succeeded(entered(subject, now_s), now_s)
    fail(subject, now_s + 59, FAILURES)
    assert subject.retry_in_s(now_s + 59) == 60, "it did not stay closed for as long as it was open"
    now_s += 59 + 60
    subject.succeeded(entered(subject, now_s), now_s)
    fail(subject, now_s + 60, FAILURES)
    assert subject.retry_in_s(now_s + 60) == COOLDOWN_S


def test_jitter_parts_those_who_saw_the_same_failure() -> None:
    waits = []
    for jitter in (0.0, 0.5, 0.999):
        subject = circuit(failures=1)
        subject.failed(entered(subject, 0), 0, jitter)
        waits.append(subject.retry_in_s(0))
    assert waits == pytest.approx(
        [COOLDOWN_S, COOLDOWN_S * (1 - JITTER_SHARE / 2), COOLDOWN_S * (1 - JITTER_SHARE)], 0.01
    )


class CircuitMachine(RuleBasedStateMachine):
    """Any order of asking and reporting, also late: what nobody may see."""

    def __init__(self) -> None:
        super().__init__()
        self.subject = circuit()
        self.now_s = 0.0
        self.out: list[tuple[Ticket, State, float]] = []

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def enter(self) -> None:
        state, admits = self.subject.state(self.now_s), self.subject.admits(self.now_s)
        ticket = self.subject.enter(self.now_s)
        assert (ticket is not None) == admits
        assert admits or state is not State.CLOSED
        if ticket is not None:
            self.out.append((ticket, state, self.now_s))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), result=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def report(self, data: st.DataObject, result: str) -> None:
        ticket, _, _ = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        before = self.subject.state(self.now_s)
        is_probe = before is not State.CLOSED and ticket.opened == self.subject._opened
        if result == "abandoned":
            self.subject.abandoned(ticket)
        else:
            getattr(self.subject, result)(ticket, self.now_s)
        after = self.subject.state(self.now_s)
        if is_probe and result != "abandoned":
            assert after is (State.CLOSED if result == "succeeded" else State.OPEN), "the probe decides"
        elif before is not State.CLOSED:
            assert after is before, "nobody else does"
        elif result != "failed":
            assert after is State.CLOSED

    @invariant()
    def one_probe_at_most_and_none_while_open(self) -> None:
        assert all(state is not State.OPEN for _, state, _ in self.out)
        probes = sum(
            state is State.HALF_OPEN and ticket.opened == self.subject._opened and self.now_s < at_s + COOLDOWN_S
            for ticket, state, at_s in self.out
        )
        if self.subject.state(self.now_s) is State.HALF_OPEN:
            assert probes <= 1
            assert self.subject.admits(self.now_s) == (probes == 0)

    @invariant()
    def the_wait_is_honest_and_bounded(self) -> None:
        wait_s = self.subject.retry_in_s(self.now_s)
        assert 0 <= wait_s <= MAX_COOLDOWN_S
        assert (wait_s == 0) == self.subject.admits(self.now_s)
        if self.subject.state(self.now_s) is State.OPEN:
            assert not self.subject.admits(self.now_s + wait_s * 0.99)
            assert self.subject.admits(self.now_s + wait_s + 1e-6)


TestCircuitMachine = CircuitMachine.TestCase
TestCircuitMachine.settings = settings(max_examples=60, stateful_step_count=40)


def test_who_asked_without_permission_and_was_answered_closes_it() -> None:
    circuit = Circuit(failures=1, cooldown_s=10, max_cooldown_s=10)
    circuit.failed(None, 0.0)
    assert not circuit.admits(1.0)
    circuit.close(1.0)
    assert (circuit.state(1.0), circuit.admits(1.0)) == (State.CLOSED, True)


def test_an_answer_that_ends_well_in_between_ends_the_row() -> None:
    circuit = Circuit(failures=2, cooldown_s=10, max_cooldown_s=10)
    for breaks in (True, False, True, False, True):
        ticket = circuit.enter(1.0)
        assert ticket is not None
        circuit.succeeded(ticket, 1.0)
        if breaks:
            circuit.failed(ticket, 1.0)
    assert circuit.state(1.0) is State.CLOSED


@pytest.mark.parametrize("which", [0, 1])
def test_of_two_that_try_it_one_after_the_other_either_decides(which: int) -> None:
    subject = opened()
    probes = [entered(subject, COOLDOWN_S), entered(subject, 2 * COOLDOWN_S)]
    subject.succeeded(probes[which], 2 * COOLDOWN_S + 1)
    assert subject.state(2 * COOLDOWN_S + 1) is State.CLOSED
    subject = opened()
    probes = [entered(subject, COOLDOWN_S), entered(subject, 2 * COOLDOWN_S)]
    subject.failed(probes[which], 2 * COOLDOWN_S + 1)
    assert subject.state(2 * COOLDOWN_S + 1) is State.OPEN
    subject.succeeded(probes[1 - which], 2 * COOLDOWN_S + 2)
    assert subject.state(2 * COOLDOWN_S + 2) is State.OPEN, "it was asked before it opened anew"
