"""The error taxonomy: what happened, whose fault it was, may the attempt be repeated, and how a client is told.

Every failure of an exchange is a `ProxyError` of one `ErrorKind`. Whoever meets a foreign exception (a socket error, a
parser error) maps it here at once; breaker, retry, metrics, logs and answers read only the kind.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence


class Blame(enum.Enum):
    """Whose fault an error is."""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"
    SLUICE = "sluice"


class Repeat(enum.Enum):
    """Whether the attempt that failed may be repeated, as long as nothing went downstream."""

    NEVER = "never"
    NOTHING_SENT = "nothing_sent"  # the upstream never saw the request: always safe
    STALE_CONNECTION = "stale_connection"  # a reused connection closed without a byte: once, on a fresh one
    BY_POLICY = "by_policy"  # the upstream may have acted on it


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One row of the error table: what an outcome is called in logs and metrics, and what a client is told."""

    outcome: str
    status: int
    type: str
    code: str | None
    blame: Blame
    repeat: Repeat = Repeat.NEVER
    should_retry: bool | None = None  # `x-should-retry`, which SDKs obey before anything else; None: theirs to decide


_INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"

BAD_REQUEST = ErrorKind("bad_request", 400, _INVALID, None, Blame.DOWNSTREAM)
INVALID_TYPE = ErrorKind("bad_request", 400, _INVALID, "invalid_type", Blame.DOWNSTREAM)
MISSING_PARAMETER = ErrorKind("bad_request", 400, _INVALID, "missing_required_parameter", Blame.DOWNSTREAM)
INVALID_VALUE = ErrorKind("bad_request", 400, _INVALID, "invalid_value", Blame.DOWNSTREAM)
INVALID_API_KEY = ErrorKind("invalid_api_key", 401, _INVALID, "invalid_api_key", Blame.DOWNSTREAM)
ENDPOINT_NOT_ALLOWED = ErrorKind("endpoint_not_allowed", 403, _INVALID, "endpoint_not_allowed", Blame.DOWNSTREAM)
MODEL_NOT_FOUND = ErrorKind("model_not_found", 404, _INVALID, "model_not_found", Blame.DOWNSTREAM)
# /v1/responses answers an unknown model with 400 where chat answers 404 (protocol.md section 3)
MODEL_NOT_FOUND_RESPONSES = ErrorKind("model_not_found", 400, _INVALID, "model_not_found", Blame.DOWNSTREAM)
UNKNOWN_URL = ErrorKind("unknown_url", 404, _INVALID, "unknown_url", Blame.DOWNSTREAM)
METHOD_NOT_SUPPORTED = ErrorKind("method_not_supported", 405, _INVALID, "method_not_supported", Blame.DOWNSTREAM)
REQUEST_TIMEOUT = ErrorKind("request_timeout", 408, _INVALID, "request_timeout", Blame.DOWNSTREAM)
REQUEST_TOO_LARGE = ErrorKind("request_too_large", 413, _INVALID, "request_too_large", Blame.DOWNSTREAM)
EXPECTATION_FAILED = ErrorKind("bad_request", 417, _INVALID, None, Blame.DOWNSTREAM)
CLIENT_GONE = ErrorKind("client_gone", 499, _INVALID, "client_gone", Blame.DOWNSTREAM)
CLIENT_STALLED = ErrorKind("client_stalled", 499, _INVALID, "client_stalled", Blame.DOWNSTREAM)

RATE_LIMIT_REQUESTS = ErrorKind("rate_limited", 429, "requests", "rate_limit_exceeded", Blame.DOWNSTREAM)
RATE_LIMIT_TOKENS = ErrorKind("rate_limited", 429, "tokens", "rate_limit_exceeded", Blame.DOWNSTREAM)
TOO_MANY_AT_ONCE = ErrorKind("rate_limited", 429, "requests", "concurrency_limit_exceeded", Blame.DOWNSTREAM)
# waiting helps against neither: a `retry-after` until next month makes some clients freeze (protocol.md section 2.6)
LARGER_THAN_LIMIT = ErrorKind(
    "larger_than_limit", 429, "tokens", "request_too_large", Blame.DOWNSTREAM, should_retry=False
)
INSUFFICIENT_QUOTA = ErrorKind(
    "insufficient_quota", 429, "insufficient_quota", "insufficient_quota", Blame.DOWNSTREAM, should_retry=False
)

INTERNAL = ErrorKind("internal_error", 500, _SERVER, "internal_error", Blame.SLUICE)
NO_UPSTREAM = ErrorKind("no_upstream", 503, _SERVER, "no_upstream", Blame.SLUICE)
QUEUE_FULL = ErrorKind("queue_full", 503, _SERVER, "queue_full", Blame.SLUICE)
QUEUE_TIMEOUT = ErrorKind("queue_timeout", 503, _SERVER, "queue_timeout", Blame.SLUICE)
STORE_UNAVAILABLE = ErrorKind("store_unavailable", 503, _SERVER, "store_unavailable", Blame.SLUICE)
CUT_BY_OPERATOR = ErrorKind("cut_by_operator", 503, _SERVER, "cut_by_operator", Blame.SLUICE, should_retry=False)
DRAINING = ErrorKind("draining", 503, _SERVER, "draining", Blame.SLUICE)
TOO_MANY_CONNECTIONS = ErrorKind("too_many_connections", 503, _SERVER, "too_many_connections", Blame.SLUICE)

UPSTREAM_UNREACHABLE = ErrorKind(
    "upstream_unreachable", 502, _SERVER, "upstream_unreachable", Blame.UPSTREAM, Repeat.NOTHING_SENT
)
UPSTREAM_CONNECT_TIMEOUT = ErrorKind(
    "upstream_timeout", 504, _SERVER, "upstream_timeout", Blame.UPSTREAM, Repeat.NOTHING_SENT
)
UPSTREAM_TIMEOUT = ErrorKind("upstream_timeout", 504, _SERVER, "upstream_timeout", Blame.UPSTREAM, Repeat.BY_POLICY)
# the time for the whole exchange is over, however quick this upstream may be
OUT_OF_TIME = ErrorKind("upstream_timeout", 504, _SERVER, "upstream_timeout", Blame.UPSTREAM)
UPSTREAM_PROTOCOL_ERROR = ErrorKind(
    "upstream_protocol_error", 502, _SERVER, "upstream_protocol_error", Blame.UPSTREAM, Repeat.BY_POLICY
)
UPSTREAM_STALE = ErrorKind(
    "upstream_protocol_error", 502, _SERVER, "upstream_protocol_error", Blame.UPSTREAM, Repeat.STALE_CONNECTION
)
UPSTREAM_NOT_A_STREAM = ErrorKind(
    "upstream_not_a_stream", 502, _SERVER, "upstream_not_a_stream", Blame.UPSTREAM, Repeat.BY_POLICY
)


class ProxyError(Exception):
    """A failure of an exchange, ready to be told to the client.

    `message` is public: it must never hold a key, a prompt or a completion. `param` names the request member at fault.
    `retry_after_s` is the honest wait in seconds, sent as `retry-after` and `retry-after-ms`; `headers` are sent with
    an answer that tells of the error.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers

    def __repr__(self) -> str:
        return f"ProxyError({self.kind.outcome}, {self.message!r})"


def without_frames(error: BaseException) -> None:
    """Take the tracebacks from an error that is kept, and from its causes.

    Their frames hold the exchange with the request's body, and most often what holds the error: such a circle is there
    until the garbage collector comes.
    """
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            left += (one.__cause__, one.__context__)


def error_object(error: ProxyError) -> dict[str, str | None]:
    """The inner object of OpenAI's envelope; all four members are required by the OpenAPI specification."""
    return {"message": error.message, "type": error.kind.type, "param": error.param, "code": error.kind.code}


def envelope(error: ProxyError) -> bytes:
    """The JSON body of an error answer: `{"error": {"message", "type", "param", "code"}}`."""
    return msgspec.json.encode({"error": error_object(error)})


def error_headers(error: ProxyError) -> list[tuple[bytes, bytes]]:
    """The headers of an error answer beside those of every answer; the wait in seconds is rounded up."""
    headers = list(error.headers)
    if error.kind.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.kind.should_retry else b"false"))
    if error.kind.status == 401:
        headers.append((b"WWW-Authenticate", b"Bearer"))
    if error.retry_after_s is not None:
        wait_ms = max(1, round(error.retry_after_s * 1000))
        headers.append((b"retry-after", b"%d" % -(-wait_ms // 1000)))
        headers.append((b"retry-after-ms", b"%d" % wait_ms))
    return headers


def chat_error_event(error: ProxyError) -> bytes:
    """The error as the last events of a chat or completions stream, as OpenAI sends it (protocol.md section 1.2)."""
    return b"data: " + envelope(error) + b"\n\ndata: [DONE]\n\n"


def responses_error_event(error: ProxyError, sequence_number: int) -> bytes:
    """The error as the last event of a /v1/responses stream.

    The nested form is the only one that every SDK raises with its message (protocol.md section 2.4).
    """
    event = {"type": "error", "error": error_object(error), "sequence_number": sequence_number}
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
