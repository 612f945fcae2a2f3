"""Which headers cross, in both directions: one table, a reason beside each entry.

A header that no rule stops crosses as it is: names and values are part of what SDKs show to applications. What Sluice
sets itself (credentials, Host, Via, framing, CORS) is added by the caller after this table had its say, so that
nothing received, not even a `Connection` header, can remove it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.patterns import Remembered

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RawHeaders = list[tuple[bytes, bytes]]


class Stop(enum.Flag):
    """Where a header stops."""

    REQUEST = enum.auto()
    CREDENTIAL = enum.auto()  # on requests, unless the client's own credential goes upstream
    RESPONSE = enum.auto()
    BOTH = REQUEST | RESPONSE


class Rule(NamedTuple):
    """Names that stop, lower-case, each for the reason `why`; a trailing `*` stands for any ending."""

    stop: Stop
    why: str
    names: tuple[bytes, ...]


RULES: Final = (
    Rule(
        Stop.BOTH,
        "hop-by-hop: speaks of one connection (RFC 9110 section 7.6.1)",
        (b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"http2-settings"),
    ),
    Rule(
        Stop.BOTH,
        "between a client and its own proxy: authenticate, authorization, connection (RFC 9110 section 11.7)",
        (b"proxy-*",),
    ),
    Rule(
        Stop.BOTH,
        "framing is decided anew on each side (RFC 9112 section 6)",
        (b"transfer-encoding", b"content-length"),
    ),
    Rule(Stop.BOTH, "ours to set; from elsewhere it could be mistaken for ours", (b"x-sluice-*",)),
    Rule(Stop.BOTH, "an edge network's view of another connection, with the client's address in it", (b"cf-*",)),
    Rule(
        Stop.BOTH,
        "an Envoy mesh's internals and timings; its requests may even steer the upstream's Envoy",
        (b"x-envoy-*",),
    ),
    Rule(
        Stop.CREDENTIAL,
        "the credential of Sluice's client, not of the upstream's",
        (b"authorization", b"api-key", b"x-api-key"),
    ),
    Rule(
        Stop.CREDENTIAL,
        "does not belong to the operator's key: the upstream would refuse it as mismatched",
        (b"openai-organization", b"openai-project"),
    ),
    Rule(Stop.REQUEST, "cookies of Sluice's origin", (b"cookie", b"cookie2")),
    Rule(Stop.REQUEST, "names this hop's peer; the caller sets the upstream's", (b"host",)),
    Rule(Stop.REQUEST, "answered by Sluice (RFC 9110 section 10.1.1)", (b"expect",)),
    Rule(
        Stop.REQUEST,
        "the caller asks for identity: a compressed stream can be neither followed nor ended",
        (b"accept-encoding",),
    ),
    Rule(
        Stop.REQUEST,
        "what earlier hops say of the client: never relayed to a third party (RFC 7239 section 8.3)",
        (
            b"forwarded",
            b"x-forwarded-*",
            b"x-original-*",
            b"x-real-ip",
            b"x-client-ip",
            b"x-cluster-client-ip",
            b"x-azure-clientip",
            b"fastly-client-ip",
            b"true-client-ip",
        ),
    ),
    Rule(
        Stop.REQUEST,
        "CORS is between the browser and Sluice; Ollama answers 403 to an origin it does not know",
        (b"origin", b"access-control-request-*"),
    ),
    Rule(
        Stop.RESPONSE,
        "CORS is between the browser and Sluice; two answers are refused by browsers",
        (b"access-control-*",),
    ),
    Rule(
        Stop.RESPONSE, "one upstream cookie for all clients would join their sessions", (b"set-cookie", b"set-cookie2")
    ),
    Rule(
        Stop.RESPONSE,
        "speaks for an origin, which is Sluice's here: transport, reporting and stored data",
        (
            b"alt-svc",
            b"strict-transport-security",
            b"expect-ct",
            b"public-key-pins*",
            b"clear-site-data",
            b"nel",
            b"report-to",
            b"reporting-endpoints",
        ),
    ),
    Rule(Stop.RESPONSE, "names the software and the time of the server, which is Sluice here", (b"server", b"date")),
    Rule(Stop.RESPONSE, "the way upstream is not the client's concern", (b"via", b"x-openai-proxy-wasm")),
    Rule(
        Stop.RESPONSE,
        "obeyed by a web server in front of Sluice, which would send its own files",
        (b"x-accel-*", b"x-sendfile", b"x-lighttpd-send-file"),
    ),
    Rule(
        Stop.RESPONSE,
        "says whose account pays",
        (b"openai-organization", b"openai-project", b"anthropic-organization-id", b"x-ms-deployment-name"),
    ),
    Rule(
        Stop.RESPONSE,
        "the account's limits, which all keys share; Sluice states each key's own",
        (b"x-ratelimit-*", b"ratelimit*", b"anthropic-ratelimit-*", b"anthropic-priority-*"),
    ),
    Rule(
        Stop.RESPONSE,
        "a LiteLLM upstream tells its key's budget, its upstreams and their headers",
        (b"x-litellm-*", b"llm_provider-*"),
    ),
)
# Kept on purpose, although it looks like an account's: apim-request-id, x-ms-region, x-ms-client-request-id and
# request-id. They say which datacentre and which request, and are what a provider's support asks for. Via crosses on
# requests: it is how loops are found (RFC 9110 section 7.6.3).

_SDK_HEADERS: Final = (
    "lang package-version os arch runtime runtime-version retry-count async read-timeout timeout raw-response "
    "helper-method stream-helper custom-event-handler poll-helper custom-poll-interval"
)

# Always allowed in a preflight's answer, beside the echo of what the browser asked for (protocol.md section 4.1).
CORS_REQUEST_HEADERS_FLOOR: Final = (
    "accept",
    "api-key",
    "authorization",
    "content-type",
    "http-referer",
    "idempotency-key",
    "openai-beta",
    "openai-organization",
    "openai-project",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-client-request-id",
    "x-title",
    "x-user-agent",
    *(f"x-stainless-{name}" for name in _SDK_HEADERS.split()),
)

# What scripts may read of an answer: request ids, and the hints that SDKs retry by. Not openai-organization, which
# never crosses.
CORS_EXPOSED: Final = (
    "openai-processing-ms",
    "openai-version",
    "retry-after",
    "retry-after-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-request-id",
    "x-should-retry",
    "x-sluice-id",
)


# All that most Connection headers say: it names no header.
_NAMES_NO_HEADER: Final = frozenset({b"keep-alive", b"close"})


class Crossing:
    """Lets pass what no rule for `where` stops, and no header of a name in `replaced`, which is in lower case."""

    def __init__(self, where: Stop, replaced: Iterable[bytes] = ()) -> None:
        names = [name for rule in RULES if rule.stop & where for name in rule.names]
        self._exact = frozenset([*(name for name in names if not name.endswith(b"*")), *replaced])
        self._prefixes = tuple(name[:-1] for name in names if name.endswith(b"*"))
        self._verdicts = Remembered(self._verdict)

    def _verdict(self, spelled: bytes) -> bool | None:
        """What becomes of a header of that name: it crosses, or not; None: it is a Connection header."""
        name = spelled.lower()
        if name == b"connection":
            return None
        return name not in self._exact and not name.startswith(self._prefixes)

    def of(self, received: Sequence[tuple[bytes, bytes]]) -> RawHeaders:
        """The headers that cross, in order and spelled as received."""
        verdicts = self._verdicts
        crossing: RawHeaders = []
        names_headers = False
        for pair in received:
            verdict = verdicts[pair[0]]
            if verdict:
                crossing.append(pair)
            elif verdict is None and pair[1] not in _NAMES_NO_HEADER:
                names_headers = True
        return _less_named(crossing, received) if names_headers else crossing


to_downstream: Final = Crossing(Stop.RESPONSE).of
"""The response headers that cross. Content-Length is the caller's to decide."""


def _less_named(crossing: RawHeaders, received: Sequence[tuple[bytes, bytes]]) -> RawHeaders:
    """What crosses but for the headers that a Connection header names: they end here too."""
    named = {token for name, value in received if name.lower() == b"connection" for token in _tokens(value)}
    return [pair for pair in crossing if pair[0].lower() not in named] if named - _NAMES_NO_HEADER else crossing


def first_values(received: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The first value of each header, by its name in lower case: for who asks for several."""
    return {name.lower(): value for name, value in reversed(received)}


def header(received: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of the header `name`, given in lower case."""
    length = len(name)
    for raw, value in received:
        if len(raw) == length and raw.lower() == name:
            return value
    return None


def plain_type(received: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """The media type of a body, in lower case and without parameters; b"" where it is missing.

    None where Content-Encoding names a coding: the body is not what its type says, and nobody can look into it.
    """
    coding = header(received, b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        return None
    content_type = header(received, b"content-type")
    return b"" if content_type is None else content_type.partition(b";")[0].strip().lower()


def _tokens(value: bytes) -> set[bytes]:
    return {token for part in value.lower().split(b",") if (token := part.strip())}
