"""The vocabulary of quotas: counters have stable names, and hostile amounts are cut."""

from __future__ import annotations

import copy
import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.quota import MAX_AMOUNT, Calendar, Demand, Kind, Limit, amount_of, bounded, counter_name


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        (Limit(Kind.TOKENS, 5000, 60, "gpt-4*"), "tokens:60:gpt-4*"),
        (Limit(Kind.TOKENS, 9, 60, "gpt-4*"), "tokens:60:gpt-4*"),
        (Limit(Kind.REQUESTS, 1, Calendar.DAY), "requests:day:"),
        (Limit(Kind.SPEND, 1, Calendar.MONTH), "spend:month:"),
    ],
)
def test_a_counter_is_named_by_all_but_the_amount(limit: Limit, name: str) -> None:
    assert counter_name(limit) == name


def test_members_stay_single_where_they_are_copied_so_their_identity_may_be_hashed() -> None:
    limit = Limit(Kind.SPEND, 1, Calendar.YEAR)
    for other in (copy.deepcopy(limit), pickle.loads(pickle.dumps(limit))):
        assert other == limit
        assert hash(other) == hash(limit)


@given(st.builds(Demand, *[st.integers() | st.sampled_from([0, MAX_AMOUNT, MAX_AMOUNT + 1, -1])] * 3))
def test_demands_are_cut_to_what_can_be_counted(demand: Demand) -> None:
    for kind, given_amount in zip(Kind, msgspec.structs.astuple(demand), strict=True):
        assert amount_of(demand, kind) == given_amount
        assert amount_of(bounded(demand), kind) == sorted((0, given_amount, MAX_AMOUNT))[1]
