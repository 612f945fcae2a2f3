"""Who asks: which headers carry a key, and which keys are good at a given time."""

from __future__ import annotations

import pytest

from proxy.core import errors
from proxy.phases.authenticate import Keyring, authenticate, digest_of, presented_secrets
from tests.fakes.arrived import SECRET, principal

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
    assert presented_secrets(headers) == secrets


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
        assert authenticate(headers, keyring, 0).key_id == "team-a"


def test_refusals_say_whether_a_key_was_there_and_never_which() -> None:
    keyring = Keyring([principal(expires_s=EXPIRES_S)])
    messages = {}
    for what, value in {"absent": b"", "unknown": b"Bearer wrong", "expired": b"Bearer " + SECRET}.items():
        with pytest.raises(errors.ProxyError) as caught:
            authenticate([(b"authorization", value)], keyring, EXPIRES_S)
        assert caught.value.kind is errors.INVALID_API_KEY
        messages[what] = caught.value.message
    assert messages["unknown"] == messages["expired"] != messages["absent"]
    assert "wrong" not in messages["unknown"]


def test_a_keyring_does_not_hold_the_secrets_themselves() -> None:
    assert SECRET not in b"".join(Keyring([principal()])._by_digest)
