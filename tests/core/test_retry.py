"""The retry table, row by row; that it keeps its promises for any input; and what `retry-after` may say."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core import errors
from proxy.core.errors import ErrorKind, Repeat
from proxy.core.retry import (
    CREDENTIAL_STATUSES,
    MAX_RETRY_AFTER_S,
    RETRYABLE_STATUSES,
    Happened,
    Retry,
    RetryPolicy,
    Sent,
    decide,
    retry_after_of,
)
from proxy.core.retry_budget import RetryBudget

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, ErrorKind)]
POLICY = RetryPolicy(attempts=3, backoff_s=0.2, max_backoff_s=5.0)
NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


def decided(happened: Happened, **changes: Any) -> Retry | None:
    facts: dict[str, Any] = {
        "sent": Sent.ALL,
        "attempts_made": 1,
        "policy": POLICY,
        "elsewhere": False,
        "other_key": False,
        "patience_s": None,
        "jitter": 0.5,
        "may_spend": True,
    }
    return decide(happened, **{**facts, **changes})


@pytest.mark.parametrize("kind", [errors.UPSTREAM_UNREACHABLE, errors.UPSTREAM_CONNECT_TIMEOUT])
def test_what_was_not_delivered_is_tried_again_whatever_the_budget_says(kind: ErrorKind) -> None:
    for sent in (Sent.NOTHING, Sent.ALL):  # ALL: an earlier try of it was sent
        assert decided(Happened(kind), sent=sent, may_spend=False, elsewhere=True) == (0.0, "nothing_sent", True, False)
        assert decided(Happened(kind), sent=sent, may_spend=False) == (0.1, "nothing_sent", False, False)


def test_a_stale_connection_costs_nothing_only_if_no_body_went_over_it() -> None:
    stale = Happened(errors.UPSTREAM_STALE)
    assert decided(stale, sent=Sent.NOTHING, may_spend=False) == (0.1, "stale_connection", False, False)
    assert decided(stale, sent=Sent.ALL, may_spend=False) is None
    assert decided(stale, sent=Sent.ALL) == (0.1, "stale_connection", False, True)
    assert decided(stale, sent=Sent.PARTLY_SPENT) is None


@pytest.mark.parametrize(
    "kind", [errors.UPSTREAM_TIMEOUT, errors.UPSTREAM_PROTOCOL_ERROR, errors.UPSTREAM_NOT_A_STREAM]
)
def test_what_the_upstream_may_have_worked_on_is_by_policy(kind: ErrorKind) -> None:
    assert decided(Happened(kind), elsewhere=True) == (0.0, kind.outcome, True, True)
    assert decided(Happened(kind)) == (0.1, kind.outcome, False, True)
    assert decided(Happened(kind), may_spend=False, elsewhere=True) is None


@pytest.mark.parametrize("status", sorted(RETRYABLE_STATUSES))
def test_the_statuses_that_are_worth_another_try(status: int) -> None:
    assert decided(Happened(status=status), elsewhere=True) == (0.0, f"status_{status}", True, True)
    assert decided(Happened(status=status)) == (0.1, f"status_{status}", False, True)
    assert decided(Happened(status=status), may_spend=False) is None
    assert decided(Happened(status=status, should_retry=False)) is None


@pytest.mark.parametrize("status", [200, 301, 400, 404, 409, 413, 422, 501, 505])
def test_other_statuses_are_not_unless_the_upstream_asks(status: int) -> None:
    assert decided(Happened(status=status), elsewhere=True, other_key=True) is None
    asked = decided(Happened(status=status, should_retry=True))
    assert asked == ((0.1, "should_retry", False, True) if status >= 400 else None)


@pytest.mark.parametrize("status", sorted(CREDENTIAL_STATUSES))
def test_a_refused_key_is_tried_again_with_another_on_the_same_route(status: int) -> None:
    refused = Happened(status=status)
    assert decided(refused, elsewhere=True) is None
    assert decided(refused, elsewhere=True, other_key=True) == (0.0, f"status_{status}", False, True)
    assert decided(Happened(status=status, should_retry=True)) is None


def test_a_limited_key_goes_elsewhere_first_then_to_the_next_key_then_waits() -> None:
    limited = Happened(status=429, retry_after_s=2.0)
    assert decided(limited, elsewhere=True, other_key=True) == (0.0, "status_429", True, True)
    assert decided(limited, other_key=True) == (0.0, "status_429", False, True)
    assert decided(limited) == (2.1, "status_429", False, True)
    overloaded = Happened(status=503, retry_after_s=2.0)
    assert decided(overloaded, other_key=True) == (2.1, "status_503", False, True), "no key helps against that"


def test_a_wait_beyond_the_longest_pause_or_the_patience_is_left_to_the_client() -> None:
    assert decided(Happened(status=429, retry_after_s=5.0)) is not None
    assert decided(Happened(status=429, retry_after_s=5.01)) is None
    assert decided(Happened(status=429, retry_after_s=5.01), elsewhere=True) is not None
    assert decided(Happened(status=429, retry_after_s=2.0), patience_s=2.1) is None
    assert decided(Happened(status=429, retry_after_s=2.0), patience_s=2.2) is not None
    assert decided(Happened(status=500), patience_s=0.1) is None
    assert decided(Happened(status=500), patience_s=0.0, elsewhere=True) is None
    assert decided(Happened(status=500), patience_s=0.001, elsewhere=True) is not None


def test_pauses_double_up_to_the_longest_and_are_random_all_the_way_down() -> None:
    policy = RetryPolicy(attempts=100, backoff_s=0.5, max_backoff_s=3.0)

    def pause_s(attempts_made: int, jitter: float) -> float:
        retry = decided(Happened(status=500), policy=policy, attempts_made=attempts_made, jitter=jitter)
        assert retry is not None
        return retry.pause_s

    assert [pause_s(made, 0.5) for made in (1, 2, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.5, 1.5]
    assert pause_s(4, 0.0) == 0.0


def test_nothing_is_repeated_once_a_byte_went_downstream() -> None:
    for happened in (Happened(errors.UPSTREAM_UNREACHABLE), Happened(errors.UPSTREAM_TIMEOUT), Happened(status=500)):
        assert decided(happened, elsewhere=True) is not None
        assert decided(happened, elsewhere=True, committed=True) is None


def test_errors_that_are_not_the_upstreams_are_never_repeated() -> None:
    for kind in KINDS:
        retry = decided(Happened(kind), elsewhere=True, other_key=True)
        assert (retry is not None) == (kind.repeat is not Repeat.NEVER), kind


happenings = st.builds(
    Happened,
    kind=st.sampled_from([None, *KINDS, *[kind for kind in KINDS if kind.repeat is not Repeat.NEVER] * 5]),
    status=st.none() | st.sampled_from(sorted(RETRYABLE_STATUSES | CREDENTIAL_STATUSES)) | st.integers(100, 599),
    retry_after_s=st.none() | st.floats(0, 10) | st.floats(0, MAX_RETRY_AFTER_S),
    should_retry=st.sampled_from([None, True, False]),
)
fact_sets = st.fixed_dictionaries(
    {
        "sent": st.sampled_from(Sent),
        "policy": st.builds(RetryPolicy, st.integers(1, 100), st.floats(0, 60), st.floats(0, 60)),
        "elsewhere": st.booleans(),
        "other_key": st.booleans(),
        "patience_s": st.none() | st.floats(-1, 100),
        "jitter": st.floats(0, 1, exclude_max=True),
        "may_spend": st.booleans(),
        "committed": st.booleans(),
    }
)


@given(happenings, fact_sets, st.integers(1, 5) | st.integers(1, 200))
@settings(max_examples=500)
def test_never_after_commitment_nor_beyond_attempts_patience_and_budget(
    happened: Happened, facts: dict[str, Any], attempts_made: int
) -> None:
    retry = decide(happened, attempts_made=attempts_made, **facts)
    if retry is None:
        return
    policy = facts["policy"]
    assert not facts["committed"]
    assert facts["sent"] is not Sent.PARTLY_SPENT
    assert attempts_made < policy.attempts
    assert facts["may_spend"] or not retry.spends
    assert facts["elsewhere"] or not retry.elsewhere
    assert 0 <= retry.pause_s <= 2 * policy.max_backoff_s
    assert facts["patience_s"] is None or retry.pause_s < facts["patience_s"]
    if retry.elsewhere:
        assert retry.pause_s == 0
    elif happened.kind is None and not facts["other_key"]:
        assert retry.pause_s >= (happened.retry_after_s or 0), "what the upstream asked for is the least"
    if not retry.spends:
        assert happened.kind is not None
        assert happened.kind.repeat in {Repeat.NOTHING_SENT, Repeat.STALE_CONNECTION}


@given(st.lists(happenings, min_size=1, max_size=12), st.integers(0, 30), st.integers(), st.floats(0, 1), fact_sets)
def test_an_exchange_ends_and_all_of_them_stay_within_the_budget(
    known: list[Happened], count: int, seed: int, share: float, facts: dict[str, Any]
) -> None:
    """Exchanges that meet one failure after the other, of those that are known, at one moment and with one budget."""
    budget, spent, chance = RetryBudget(share), 0, random.Random(seed)
    del facts["may_spend"]
    exchanges = [chance.choices(known, k=12) for _ in range(count)]
    for failures in exchanges:
        budget.request(50.0)
        for attempts_made, happened in enumerate(failures, 1):
            assert attempts_made <= facts["policy"].attempts
            retry = decide(happened, attempts_made=attempts_made, may_spend=budget.may_spend(50.0), **facts)
            if retry is None:
                break
            if retry.spends:
                budget.spend(50.0)
                spent += 1
    assert spent <= share * len(exchanges) + 3


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        (b"120", 120.0),
        (b" 3\t", 3.0),
        (b"0", 0.0),
        (b"1.5", 1.5),
        (b"Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        (b"Wednesday, 21-Oct-15 07:28:30 GMT", 30.0),
        (b"Wed Oct 21 07:28:30 2015", 30.0),
        (b"Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_S),
        (b"9" * 60, MAX_RETRY_AFTER_S),
        (b"9" * 5000, None),
        (b"-5", None),
        (b"+5", None),
        (b"1e3", None),
        (b"nan", None),
        (b"inf", None),
        (b"0x10", None),
        (b"1_000", None),
        (b"5 s", None),
        (b"\xb2", None),
        ("٣".encode(), None),
        (b"Wed, 99 Foo 2015 07:28:30 GMT", None),
        (b"", None),
        (None, None),
    ],
)
def test_what_an_upstream_asks_to_wait(value: bytes | None, wait_s: float | None) -> None:
    assert retry_after_of(value, NOW) == wait_s


def test_milliseconds_come_first_where_they_can_be_read() -> None:
    assert retry_after_of(b"2", NOW, value_ms=b"1500") == 1.5
    assert retry_after_of(None, NOW, value_ms=b"20.5") == 0.0205
    assert retry_after_of(b"2", NOW, value_ms=b"soon") == 2.0
    assert retry_after_of(b"2", NOW, value_ms=b"9" * 40) == MAX_RETRY_AFTER_S


@given(st.binary(max_size=80) | st.text("0123456789:;,.-+ GMTZadefhnuWO()", max_size=64).map(str.encode))
@example(b"Mon, 01 Jan 99999999999999 00:00:00 GMT")
@example(b"Mon, 01 Jan 2015 99999999999:00:00 +99999999999999")
@example(b"(" * 64)
def test_nothing_that_an_upstream_says_breaks_it(value: bytes) -> None:
    for wait_s in (retry_after_of(value, NOW), retry_after_of(b"", NOW, value_ms=value)):
        assert wait_s is None or 0 <= wait_s <= MAX_RETRY_AFTER_S
