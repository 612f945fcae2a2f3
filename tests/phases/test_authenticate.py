"""Who asks: which headers carry a key, and which keys are good at a given time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from proxy.core import errors
from proxy.core.headers import first_values
from proxy.core.limits import parse_limit
from proxy.core.quota import Kind
from proxy.core.throttle import Throttle
from proxy.phases.authenticate import Authenticator, Keyring, Principal, Refused, authenticate, digest_of
from proxy.telemetry.metrics import Metrics
from tests.fakes.arrived import SECRET, arrived, principal
from tests.fakes.stored_keys import PLANS, STANDARD, changes, stored

EXPIRES_S = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "secrets"),
    [
        ([], []),
        ([(b"Authorization", b"Bearer abc")], [b"abc"]),
        ([(b"AUTHORIZATION", b"  bEARER   abc  ")], [b"abc"]),
        ([(b"authorization", b"Bearer a b")], [b"a b"]),
        ([(b"authorization", b"Bearer ")], []),
        ([(b"authorization", b"Bearer")], []),
        ([(b"authorization", b"Basic abc")], []),
        ([(b"authorization", b"abc")], []),
        ([(b"Api-Key", b" abc ")], [b"abc"]),
        ([(b"api-key", b"  ")], []),
        ([(b"api-key", b"azure"), (b"authorization", b"Bearer openai")], [b"openai", b"azure"]),
        ([(b"x-api-key", b"abc"), (b"cookie", b"abc")], []),
        ([(b"authorization", b"Bearer first"), (b"authorization", b"Bearer second")], [b"first"]),
    ],
)
def test_a_key_comes_as_bearer_or_api_key(headers: list[tuple[bytes, bytes]], secrets: list[bytes]) -> None:
    keyring = _Asked([principal()])
    with pytest.raises(errors.ProxyError):
        authenticate(first_values(headers), keyring, 0)
    assert keyring.asked == secrets


class _Asked(Keyring):
    """Notes the secrets that are looked up."""

    def __init__(self, principals: list[Principal]) -> None:
        super().__init__(principals)
        self.asked: list[bytes] = []

    def holder(self, secret: bytes, now_s: float) -> Principal | None:
        self.asked.append(secret)
        return super().holder(secret, now_s)


def test_the_holder_of_a_key_is_found_and_nobody_else() -> None:
    holder = principal()
    keyring = Keyring([holder])
    assert keyring.holder(SECRET, now_s=0) is holder
    for wrong in (b"", SECRET[:-1], SECRET + b"x", SECRET.upper(), digest_of(SECRET), holder.key_id.encode()):
        assert keyring.holder(wrong, now_s=0) is None


@pytest.mark.parametrize(("now_s", "good"), [(EXPIRES_S - 0.001, True), (EXPIRES_S, False), (EXPIRES_S + 1, False)])
def test_a_key_is_good_until_it_expires(now_s: float, good: bool) -> None:
    assert (Keyring([principal(expires_s=EXPIRES_S)]).holder(SECRET, now_s) is not None) is good


def test_either_header_may_hold_our_key() -> None:
    keyring = Keyring([principal()])
    for ours, other in ((b"authorization", b"api-key"), (b"api-key", b"authorization")):
        values = {ours: SECRET, other: b"the-upstreams"}
        headers = [(b"authorization", b"Bearer " + values[b"authorization"]), (b"api-key", values[b"api-key"])]
        assert authenticate(first_values(headers), keyring, 0).key_id == "team-a"


def test_refusals_say_whether_a_key_was_there_and_never_which() -> None:
    keyring = Keyring([principal(expires_s=EXPIRES_S)])
    messages = {}
    for what, value in {"absent": b"", "unknown": b"Bearer wrong", "expired": b"Bearer " + SECRET}.items():
        with pytest.raises(errors.ProxyError) as caught:
            authenticate({b"authorization": value}, keyring, EXPIRES_S)
        assert caught.value.kind is errors.INVALID_API_KEY
        messages[what] = caught.value.message
    assert messages["unknown"] == messages["expired"] != messages["absent"]
    assert "wrong" not in messages["unknown"]


def test_what_a_throttled_client_is_told_to_wait_is_enough_and_not_too_long() -> None:
    throttle = Throttle(parse_limit("2/minute", Kind.REQUESTS))
    authenticator = Authenticator(Keyring([principal()]), throttle, Metrics(CollectorRegistry()))

    def told(secret: bytes, at_s: float) -> tuple[errors.ErrorKind, float | None]:
        exchange = arrived(headers=[(b"authorization", b"Bearer " + secret)])
        exchange.timeline.arrived_s = at_s
        try:
            assert authenticator.principal(exchange, EXPIRES_S).key_id == "team-a"
        except errors.ProxyError as error:
            return error.kind, error.retry_after_s
        return errors.INTERNAL, None

    assert [told(b"wrong", 600.0) for _ in range(2)] == [(errors.INVALID_API_KEY, None)] * 2
    assert told(b"wrong", 610.0) == (errors.RATE_LIMIT_REQUESTS, 80.0)
    assert told(b"wrong", 689.0) == (errors.RATE_LIMIT_REQUESTS, 1.0)
    assert told(SECRET, 689.0) == (errors.INTERNAL, None), "no error: it has a holder"
    assert told(b"wrong", 690.0) == (errors.INVALID_API_KEY, None)


def test_a_keyring_does_not_hold_the_secrets_themselves() -> None:
    assert SECRET not in b"".join(Keyring([principal()])._by_digest)


def test_a_stored_key_is_good_from_the_moment_it_is_known_until_it_is_revoked() -> None:
    keyring = Keyring([principal()], PLANS)
    assert keyring.holder(b"new", 0) is None
    keyring.update(changes(stored("team-b", b"new", plan="standard")))
    holder = keyring.holder(b"new", 0)
    assert holder is not None
    assert (holder.key_id, holder.plan, holder.digest) == ("team-b", STANDARD, digest_of(b"new"))
    keyring.update(changes(stored("team-b", b"new", plan="standard", revoked_ms=1)))
    assert keyring.holder(b"new", 0) is None
    assert keyring.holder(SECRET, 0) is not None
    assert len(keyring) == 1


def test_a_stored_key_expires_without_being_told() -> None:
    keyring = Keyring([], PLANS)
    keyring.update(changes(stored("team-b", b"new", expires_ms=5_000)))
    assert keyring.holder(b"new", 4.999) is not None
    assert keyring.holder(b"new", 5.0) is None


def test_both_secrets_are_good_for_the_grace_and_then_the_new_one() -> None:
    keyring = Keyring([], PLANS)
    keyring.update(changes(stored("team-b", b"1")))
    keyring.update(changes(stored("team-b", b"2", previous=b"1", previous_until_ms=5_000)))
    for secret in (b"1", b"2"):
        holder = keyring.holder(secret, 4.999)
        assert holder is not None
        assert holder.key_id == "team-b"
        assert holder.digest == digest_of(secret), "this header is not to go upstream"
    assert keyring.holder(b"1", 5.0) is None
    assert keyring.holder(b"2", 5.0) is not None
    keyring.update(changes(stored("team-b", b"3", previous=b"2", previous_until_ms=9_000)))
    assert [keyring.holder(secret, 1.0) is not None for secret in (b"1", b"2", b"3")] == [False, True, True]
    keyring.update(changes(stored("team-b", b"3", revoked_ms=1, previous=b"2", previous_until_ms=9_000)))
    assert len(keyring) == 0


def test_an_old_secret_does_not_outlive_its_key() -> None:
    keyring = Keyring([], PLANS)
    keyring.update(changes(stored("team-b", b"2", previous=b"1", previous_until_ms=9_000, expires_ms=5_000)))
    assert keyring.holder(b"1", 4.999) is not None
    assert keyring.holder(b"1", 5.0) is None


def test_the_file_wins_over_the_ledger() -> None:
    """By id, and by secret; nothing that the ledger says afterwards takes the file's key away."""
    keyring = Keyring([principal()], PLANS)
    same_id, same_secret = stored("team-a", b"other"), stored("team-z", SECRET)
    assert keyring.update(changes(same_id, same_secret)) == Refused(["team-a", "team-z"], [], [])
    keyring.update(changes(stored("team-y", b"2", previous=SECRET, previous_until_ms=9_000)))
    for revoked in (stored("team-a", b"other", revoked_ms=1), stored("team-z", SECRET, revoked_ms=1)):
        keyring.update(changes(revoked))
    keyring.update(changes(stored("team-y", b"2", revoked_ms=1)))
    holder = keyring.holder(SECRET, 0)
    assert holder is not None
    assert holder.key_id == "team-a"
    assert keyring.holder(b"other", 0) is None


def test_a_key_that_nobody_can_judge_is_refused() -> None:
    keyring = Keyring([], PLANS)
    keyring.update(changes(stored("a", b"a"), stored("b", b"b")))
    told = keyring.update(changes(stored("a", b"a", plan="gone"), unreadable=("b",)))
    assert told == Refused([], ["a"], ["b"])
    assert keyring.holder(b"a", 0) is keyring.holder(b"b", 0) is None
    assert keyring.update(changes(stored("a", b"a", plan="standard"))) == Refused([], [], [])
    assert keyring.holder(b"a", 0) is not None
    without_plans = Keyring([])
    assert without_plans.update(changes(stored("c", b"c"))).unknown_plan == ["c"]


def test_read_anew_what_is_not_there_is_gone() -> None:
    keyring = Keyring([principal()], PLANS)
    keyring.update(changes(stored("a", b"2", previous=b"1", previous_until_ms=9_000), stored("b", b"b")))
    keyring.update(changes(stored("b", b"b"), anew=True))
    assert [keyring.holder(secret, 0) is not None for secret in (b"1", b"2", b"b", SECRET)] == [
        False,
        False,
        True,
        True,
    ]


def test_read_anew_in_pieces_what_is_there_stays_good_all_along() -> None:
    keyring = Keyring([], PLANS)
    keyring.update(changes(stored("a", b"a"), stored("b", b"b"), stored("c", b"c")))
    keyring.update(changes(stored("a", b"a"), anew=True, more=True))
    assert keyring.holder(b"b", 0) is not None
    keyring.update(changes(stored("b", b"b2"), more=True))
    keyring.update(changes(stored("d", b"d")))
    good = [keyring.holder(secret, 0) is not None for secret in (b"a", b"b", b"b2", b"c", b"d")]
    assert good == [True, False, True, False, True]
    keyring.update(changes())
    assert len(keyring) == 3


def test_it_is_noted_which_stored_keys_were_used_and_when() -> None:
    keyring = Keyring([principal()], PLANS)
    keyring.update(changes(stored("a", b"a"), stored("b", b"b", expires_ms=1), stored("c", b"c")))
    for secret, now_s in ((b"a", 1.0), (b"a", 2.5), (b"b", 3.0), (b"wrong", 4.0), (SECRET, 5.0)):
        keyring.holder(secret, now_s)
    assert keyring.take_used() == {"a": 2500}
    assert keyring.take_used() == {}


def test_revoked_reads_like_unknown() -> None:
    keyring = Keyring([], PLANS)
    keyring.update(changes(stored("a", b"a")))
    keyring.update(changes(stored("a", b"a", revoked_ms=1)))
    messages = set()
    for value in (b"Bearer a", b"Bearer unknown"):
        with pytest.raises(errors.ProxyError) as caught:
            authenticate({b"authorization": value}, keyring, 0)
        messages.add(caught.value.message)
    assert len(messages) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=12))
def test_the_ring_holds_what_the_last_change_of_each_key_says(history: list[tuple[str, int, bool]]) -> None:
    """Any history of makings, rotations and revocations: no secret of an earlier state is left."""
    keyring = Keyring([principal()], PLANS)
    good: dict[str, set[bytes]] = {}
    for key_id, serial, is_revoked in history:
        now, before = (f"{key_id}{number}".encode() for number in (serial, serial + 10))
        key = stored(key_id, now, previous=before, previous_until_ms=9_000, revoked_ms=1 if is_revoked else None)
        keyring.update(changes(key))
        good[key_id] = set() if is_revoked else {now, before}
    every = {f"{key_id}{number}".encode() for key_id in "abc" for number in (*range(4), *range(10, 14))}
    assert {secret for secret in every if keyring.holder(secret, 1.0)} == set().union(*good.values())
    assert len(keyring) == 1 + sum(map(len, good.values()))
