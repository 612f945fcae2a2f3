"""The circuit of a store: when it opens, who may try, how the pauses grow."""

from __future__ import annotations

from proxy.stores.breaker import FAILURES, FIRST_PAUSE_S, LONGEST_PAUSE_S, Circuit


def opened(at_s: float = 0.0) -> Circuit:
    circuit = Circuit()
    for _ in range(FAILURES):
        assert circuit.admits(at_s)
        circuit.failed(at_s)
    return circuit


def test_it_opens_after_failures_in_a_row_alone() -> None:
    circuit = Circuit()
    for _ in range(5):
        for _ in range(FAILURES - 1):
            circuit.failed(0)
        assert circuit.admits(0)
        circuit.succeeded()
    assert not circuit.is_open
    assert not opened().admits(0)


def test_one_probe_a_pause_and_the_pauses_grow() -> None:
    circuit = opened(100.0)
    asked_at_s = []
    for at_s in (tenths / 10 for tenths in range(1000, 1600)):
        if circuit.admits(at_s):
            asked_at_s.append(at_s)
            circuit.failed(at_s)
    pauses = [after - before for before, after in zip([100.0, *asked_at_s], asked_at_s, strict=False)]
    assert [round(pause) for pause in pauses[:5]] == [FIRST_PAUSE_S, 2, 4, 8, LONGEST_PAUSE_S]
    assert set(map(round, pauses[4:])) == {LONGEST_PAUSE_S}


def test_a_probe_that_is_never_heard_of_is_followed_by_another() -> None:
    circuit = opened()
    assert circuit.admits(FIRST_PAUSE_S)
    assert not circuit.admits(FIRST_PAUSE_S + 0.5)
    assert circuit.admits(FIRST_PAUSE_S + 2)


def test_an_answer_closes_it_and_forgets_the_pauses() -> None:
    circuit = opened()
    assert circuit.retry_in_s(0.25) == FIRST_PAUSE_S - 0.25
    assert circuit.admits(FIRST_PAUSE_S)
    circuit.succeeded()
    assert circuit.admits(FIRST_PAUSE_S)
    assert circuit.retry_in_s(FIRST_PAUSE_S) == 0
    for _ in range(FAILURES):
        circuit.failed(10)
    assert circuit.admits(10 + FIRST_PAUSE_S)


def test_failures_of_calls_from_before_change_nothing() -> None:
    circuit = opened()
    for at_s in range(10):
        circuit.failed(at_s / 10)
    assert circuit.admits(FIRST_PAUSE_S)
