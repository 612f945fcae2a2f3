"""Who asks: the key a client presents becomes a principal, or 401.

Keys live in memory as SHA-256 digests. A presented secret is hashed before it is looked up, so the time of the look-up
says nothing about any stored key; the match is then confirmed in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.core import errors
from proxy.core.limits import KeyLimits, Terms, merged, parse_limits
from proxy.core.quota import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from proxy.core.patterns import PatternTable
    from proxy.core.throttle import Throttle
    from proxy.phases.exchange import Exchange
    from proxy.stores.keys import Changes, StoredKey
    from proxy.telemetry.metrics import Metrics

# where credentials may stand; the first two are also where Sluice looks for its own keys
CREDENTIAL_HEADERS = frozenset({b"authorization", b"api-key", b"x-api-key"})
_INCORRECT = "Incorrect API key provided."
_MISSING = (
    "You didn't provide an API key. Send it in an Authorization header using Bearer auth "
    "(Authorization: Bearer YOUR_KEY)."
)


_NO_TERMS: Final = Terms()
_UNLIMITED: Final = KeyLimits(_NO_TERMS)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the keys of a plan may use."""

    name: str | None
    models: PatternTable
    endpoints: PatternTable  # `inference`, `stateful`, or path globs
    terms: Terms = _NO_TERMS
    limits: KeyLimits = _UNLIMITED  # of keys that have none of their own
    weight: float = 1.0  # of each of its keys in the fair queue
    cuts_when_exhausted: bool = False  # streams that outgrow what they reserved and have used up a budget
    allows_inference: bool = field(init=False)  # all of it, whatever endpoint

    def __post_init__(self) -> None:
        object.__setattr__(self, "allows_inference", self.endpoints.match("inference") is not None)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who holds a key. `expires_s` is UNIX time in seconds; `limits` the plan's, with the key's own in their place."""

    key_id: str
    plan: Plan
    digest: bytes = field(repr=False)
    expires_s: float | None = None
    limits: KeyLimits = _UNLIMITED


def digest_of(secret: bytes) -> bytes:
    """The form in which keys are held and compared."""
    return hashlib.sha256(secret).digest()


class Refused(NamedTuple):
    """Ids of stored keys that are not taken, by reason. Each fails closed: nobody gets more than was meant."""

    named_in_file: list[str]  # the configuration has a key with this id, or with this secret: that one counts
    unknown_plan: list[str]  # the configuration does not know what the key may do
    unreadable: list[str]  # somebody else has spoilt the row


class Keyring:
    """All keys, looked up by digest in O(1): those of the configuration, and stored ones, which change at run time.

    `plans` are those that stored keys may be on, by name; under None what a key without a plan may do.
    """

    def __init__(self, principals: Iterable[Principal], plans: Mapping[str | None, Plan] | None = None) -> None:
        self._by_digest = {principal.digest: principal for principal in principals}
        self._plans = plans or {}
        self._in_file = frozenset(principal.key_id for principal in self._by_digest.values())
        self._stored: dict[str, Principal] = {}
        self._rotated: dict[str, Principal] = {}  # holders of the secrets before the last rotation
        self._doubtful: set[str] = set()  # stored keys that are gone unless they come again
        self._used_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._by_digest)

    def holder(self, secret: bytes, now_s: float) -> Principal | None:
        """The principal of `secret`, or None: unknown, revoked and expired keys are the same to a client."""
        digest = digest_of(secret)
        principal = self._by_digest.get(digest)
        if principal is None or not hmac.compare_digest(principal.digest, digest):
            return None
        if principal.expires_s is not None and principal.expires_s <= now_s:
            return None
        self._used_s[principal.key_id] = now_s
        return principal

    def update(self, changes: Changes) -> Refused:
        """Take over what happened to stored keys, all of it in one turn of the event loop."""
        if changes.anew:
            self._doubtful = set(self._stored)
        refused = Refused([], [], changes.unreadable)
        for key_id in changes.unreadable:
            self._remove(key_id)
        for key in changes.keys:
            self._remove(key.id)
            if key.revoked_ms is not None:
                continue
            if key.id in self._in_file or key.digest in self._by_digest:
                refused.named_in_file.append(key.id)
            elif key.plan not in self._plans:
                refused.unknown_plan.append(key.id)
            else:
                self._add_readable(key, refused)
        if not changes.more:
            for key_id in tuple(self._doubtful):
                self._remove(key_id)
        return refused

    def take_used(self) -> dict[str, int]:
        """When stored keys were last used since this was asked before: UNIX time in milliseconds by id."""
        used, self._used_s = self._used_s, {}
        return {key_id: int(used_s * 1000) for key_id, used_s in used.items() if key_id in self._stored}

    def _add_readable(self, key: StoredKey, refused: Refused) -> None:
        try:
            self._add(key, self._plans[key.plan])
        except (TypeError, ValueError):
            refused.unreadable.append(key.id)

    def _add(self, key: StoredKey, plan: Plan) -> None:
        expires_s = _seconds(key.expires_ms)
        limits = plan.limits if key.limits is None else KeyLimits(merged(plan.terms, terms_of(key.limits)))
        principal = Principal(key.id, plan, key.digest, expires_s, limits)
        self._stored[key.id] = self._by_digest[key.digest] = principal
        until_s, before = _seconds(key.previous_until_ms), key.previous_digest
        if until_s is not None and before is not None and before not in self._by_digest:
            earliest_s = until_s if expires_s is None else min(until_s, expires_s)
            self._rotated[key.id] = self._by_digest[before] = Principal(key.id, plan, before, earliest_s, limits)

    def _remove(self, key_id: str) -> None:
        self._doubtful.discard(key_id)
        for principal in (self._stored.pop(key_id, None), self._rotated.pop(key_id, None)):
            if principal is not None:
                del self._by_digest[principal.digest]


def terms_of(limits: Mapping[str, Any]) -> Terms:
    """Limits in the form of the configuration's. Raises `ValueError` or `TypeError` for what is none."""
    if unknown := limits.keys() - Terms._fields:
        raise ValueError(f"unknown limits: {sorted(unknown)}")
    concurrency = limits.get("concurrency")
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise ValueError("the concurrency is no whole number of at least 1")
    return Terms(
        parse_limits(limits.get("requests"), Kind.REQUESTS),
        parse_limits(limits.get("tokens"), Kind.TOKENS),
        parse_limits(limits.get("spend"), Kind.SPEND),
        concurrency,
    )


def _seconds(time_ms: int | None) -> float | None:
    return None if time_ms is None else time_ms / 1000


def secret_of(name: bytes, value: bytes) -> bytes:
    """The secret in a credential header: what follows `Bearer` in an Authorization, else the value."""
    if name.lower() != b"authorization":
        return value.strip()
    scheme, _, secret = value.strip().partition(b" ")
    return secret.strip() if scheme.lower() == b"bearer" else b""


def authenticate(first: Mapping[bytes, bytes], keyring: Keyring, now_s: float) -> Principal:
    """The principal of the key among the `first_values` of a request's headers.

    It stands in `Authorization: Bearer`, or in `api-key` as Azure SDKs send it. Raises `ProxyError` 401. Where both are
    present either may hold Sluice's key: an upstream with `auth: passthrough` then gets the client's own credential
    from the other.
    """
    told = _MISSING
    for name in (b"authorization", b"api-key"):
        value = first.get(name)
        if value is not None and (secret := secret_of(name, value)):
            principal = keyring.holder(secret, now_s)
            if principal is not None:
                return principal
            told = _INCORRECT
    raise errors.ProxyError(errors.INVALID_API_KEY, told)


class Authenticator:
    """Finds out who asks, and tells addresses from which too many ask without a good key to wait."""

    def __init__(self, keyring: Keyring, throttle: Throttle | None, metrics: Metrics) -> None:
        self._keyring = keyring
        self._throttle = throttle
        self._metrics = metrics

    def principal(self, exchange: Exchange, now_s: float) -> Principal:
        """The principal of the exchange, at `now_s` by UNIX time. Raises `ProxyError` 401, or 429 with the wait."""
        try:
            return authenticate(exchange.first, self._keyring, now_s)
        except errors.ProxyError as refusal:
            wait_s = None
            if self._throttle is not None:
                wait_s = self._throttle.failed(exchange.client, exchange.timeline.arrived_s)
            self._metrics.auth_failed("refused" if wait_s is None else "throttled")
            if wait_s is None:
                raise
            message = f"{refusal.message} Too many such requests have come from your address."
            raise errors.ProxyError(errors.RATE_LIMIT_REQUESTS, message, retry_after_s=wait_s) from None
