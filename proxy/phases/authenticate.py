"""Who asks: the key a client presents becomes a principal, or 401.

Keys live in memory as SHA-256 digests. A presented secret is hashed before it is looked up, so the time of the look-up
says nothing about any stored key; the match is then confirmed in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.core import errors
from proxy.core.headers import header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.core.headers import RawHeaders
    from proxy.core.patterns import PatternTable

# where credentials may stand; the first two are also where Sluice looks for its own keys
CREDENTIAL_HEADERS = frozenset({b"authorization", b"api-key", b"x-api-key"})
_INCORRECT = "Incorrect API key provided."
_MISSING = (
    "You didn't provide an API key. Send it in an Authorization header using Bearer auth "
    "(Authorization: Bearer YOUR_KEY)."
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the keys of a plan may use."""

    name: str | None
    models: PatternTable
    endpoints: PatternTable  # `inference`, `stateful`, or path globs


@dataclass(frozen=True, slots=True)
class Principal:
    """Who holds a key. `expires_s` is UNIX time in seconds."""

    key_id: str
    plan: Plan
    digest: bytes = field(repr=False)
    expires_s: float | None = None


def digest_of(secret: bytes) -> bytes:
    """The form in which keys are held and compared."""
    return hashlib.sha256(secret).digest()


class Keyring:
    """All keys, looked up by digest in O(1)."""

    def __init__(self, principals: Iterable[Principal]) -> None:
        self._by_digest = {principal.digest: principal for principal in principals}

    def __len__(self) -> int:
        return len(self._by_digest)

    def holder(self, secret: bytes, now_s: float) -> Principal | None:
        """The principal of `secret`, or None: unknown and expired keys are the same to a client."""
        digest = digest_of(secret)
        principal = self._by_digest.get(digest)
        if principal is None or not hmac.compare_digest(principal.digest, digest):
            return None
        if principal.expires_s is not None and principal.expires_s <= now_s:
            return None
        return principal


def secret_of(credential: tuple[bytes, bytes]) -> bytes:
    """The secret in a credential header: what follows `Bearer` in an Authorization, else the value."""
    name, value = credential
    if name.lower() != b"authorization":
        return value.strip()
    scheme, _, secret = value.strip().partition(b" ")
    return secret.strip() if scheme.lower() == b"bearer" else b""


def presented_secrets(headers: RawHeaders) -> list[bytes]:
    """The credentials a request carries: `Authorization: Bearer`, then `api-key` as Azure SDKs send it."""
    found = []
    for name in (b"authorization", b"api-key"):
        value = header(headers, name)
        if value is not None and (secret := secret_of((name, value))):
            found.append(secret)
    return found


def authenticate(headers: RawHeaders, keyring: Keyring, now_s: float) -> Principal:
    """The principal of the presented key.

    Raises `ProxyError` 401. Where both headers are present either may hold Sluice's key: an upstream with
    `auth: passthrough` then gets the client's own credential from the other.
    """
    secrets = presented_secrets(headers)
    for secret in secrets:
        principal = keyring.holder(secret, now_s)
        if principal is not None:
            return principal
    raise errors.ProxyError(errors.INVALID_API_KEY, _INCORRECT if secrets else _MISSING)
