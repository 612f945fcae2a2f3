"""What an exchange leaves in a trace: one span for itself, one for each request to an upstream.

The spans are made when the exchange is over, from what is known by then. Attributes are those of OpenTelemetry's
conventions for HTTP and for generative AI, and a few of our own under `sluice.`. No prompt, no answer, no credential,
no query and no raw path is among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core import errors
from proxy.core.tracing import Span
from proxy.core.usage import Usage

if TYPE_CHECKING:
    from proxy.core.tracing import Moment
    from proxy.phases.record import Ending
    from proxy.phases.tracing import Hop, Trace

_Attributes = dict[str, str | int]

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_LONGEST_MODEL: Final = 128
_NO_USAGE: Final = Usage()
_OPERATIONS: Final = {
    "chat/completions": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
# well-known values of `gen_ai.provider.name`, by the end of a host's name
_PROVIDERS: Final = (
    ("api.openai.com", "openai"),
    (".openai.azure.com", "azure.ai.openai"),
    (".cognitiveservices.azure.com", "azure.ai.openai"),
    (".services.ai.azure.com", "azure.ai.inference"),
    ("api.anthropic.com", "anthropic"),
    ("generativelanguage.googleapis.com", "gcp.gemini"),
    ("aiplatform.googleapis.com", "gcp.vertex_ai"),
    (".amazonaws.com", "aws.bedrock"),
    ("api.groq.com", "groq"),
    ("api.mistral.ai", "mistral_ai"),
    ("api.deepseek.com", "deepseek"),
    ("api.perplexity.ai", "perplexity"),
    ("api.x.ai", "x_ai"),
    ("api.cohere.com", "cohere"),
    ("api.cohere.ai", "cohere"),
)


def spans_of(trace: Trace, ending: Ending, scheme: str, end: Moment) -> list[Span]:
    """The spans of an exchange, its own first. `scheme` is that of its URL; `end` is by `time.perf_counter`."""
    exchange = ending.exchange
    name, attributes = _served(ending, scheme)
    first_s = exchange.downstream.first_byte_s
    own = Span(
        name,
        is_client=False,
        span_id=trace.context.span_id,
        parent_id=trace.parent_id,
        start_ns=end.unix_ns_of(exchange.timeline.arrived_s),
        end_ns=end.unix_ns,
        attributes=attributes,
        first_byte_ns=None if first_s is None else end.unix_ns_of(first_s),
        is_error=_is_failure(ending),
    )
    return [own, *(_hop_span(trace, ending, hop, end) for hop in trace.hops)]


def _hop_span(trace: Trace, ending: Ending, hop: Hop, end: Moment) -> Span:
    """The span of one request to an upstream; that of the answer which went to the client ends with the exchange."""
    attributes = _asked(ending, hop, trace.hops.index(hop))
    is_error = hop.is_error or (hop.status or 0) >= 400
    end_ns = head_ns = end.unix_ns if hop.ended_s is None else end.unix_ns_of(hop.ended_s)
    if hop is ending.findings.hop:
        attributes |= _relayed(ending, hop)
        is_error = is_error or _has_broken(ending)
        end_ns = end.unix_ns
    return Span(
        _name(attributes),
        is_client=True,
        span_id=hop.span_id,
        parent_id=trace.context.span_id,
        start_ns=end.unix_ns_of(hop.began_s),
        end_ns=end_ns,
        attributes=attributes,
        first_byte_ns=None if hop.status is None else head_ns,
        is_error=is_error,
    )


def _served(ending: Ending, scheme: str) -> tuple[str, _Attributes]:
    """The name and the attributes of the server's span. The path is that of the route table, not the client's."""
    exchange, findings = ending.exchange, ending.findings
    path = f"/v1/{exchange.endpoint.name}"
    known = exchange.method in _METHODS
    attributes: _Attributes = {
        "http.request.method": exchange.method if known else "_OTHER",
        "http.route": path,
        "url.path": path,
        "url.scheme": scheme,
        "http.response.status_code": ending.status,
        "sluice.id": exchange.id,
    }
    if findings.principal is not None:
        attributes["sluice.key_id"] = findings.principal.key_id
    if findings.target is not None:
        attributes["sluice.model"] = findings.target.label
    if findings.ended_in is not None:
        attributes["sluice.phase"] = findings.ended_in
    if findings.aborted_by is not None:
        attributes["sluice.aborted_by"] = findings.aborted_by
    if ending.outcome != "ok":
        attributes["error.type"] = ending.outcome
    return f"{exchange.method if known else 'HTTP'} {path}", attributes


def _asked(ending: Ending, hop: Hop, number: int) -> _Attributes:
    """What is known of every request to an upstream."""
    exchange, admission = ending.exchange, ending.findings.admission
    upstream = hop.upstream
    origin = upstream.pool.origin
    endpoint = exchange.endpoint.name
    attributes: _Attributes = {
        "gen_ai.operation.name": _OPERATIONS.get(endpoint, endpoint),
        "gen_ai.provider.name": provider_of(origin.host, upstream.name),
        "http.request.method": exchange.method,
        "server.address": origin.host,
        "server.port": origin.port,
        "sluice.upstream": upstream.name,
    }
    if hop.served is not None:
        attributes["gen_ai.request.model"] = hop.served[:_LONGEST_MODEL]
    if admission is not None and admission.streamed:
        attributes["gen_ai.request.stream"] = True
    if number:
        attributes["http.request.resend_count"] = number
    if hop.status is not None:
        attributes["http.response.status_code"] = hop.status
        if hop.status >= 400:
            attributes["error.type"] = str(hop.status)
    elif hop.error is not None:
        attributes["error.type"] = hop.error
    return attributes


def _relayed(ending: Ending, hop: Hop) -> _Attributes:
    """What is known besides of the request whose answer went to the client."""
    found: _Attributes = {}
    if ending.outcome != "ok" and (hop.status or 0) < 400:
        found["error.type"] = ending.outcome
    account, settlement = ending.findings.account, ending.findings.settlement
    if account is None or settlement is None or settlement.grade == "unknown" or settlement.usage == _NO_USAGE:
        return found
    usage = settlement.usage
    lost_tokens = account.prompt_tokens * len(account.lost)  # of tries that were outrun: they have spans of their own
    found["gen_ai.usage.input_tokens"] = usage.input_tokens - lost_tokens
    found["gen_ai.usage.output_tokens"] = usage.output_tokens
    if usage.cached_tokens:
        found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if usage.reasoning_tokens:
        found["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    found["sluice.grade"] = settlement.grade
    return found


def _name(attributes: _Attributes) -> str:
    """The name of a span of generative AI: the operation and the model."""
    model = attributes.get("gen_ai.request.model")
    operation = attributes["gen_ai.operation.name"]
    return f"{operation} {model}" if model is not None else f"{operation}"


def provider_of(host: str, name: str) -> str:
    """Who serves at `host`, in the words of the conventions; else the upstream's `name` in the configuration."""
    return next((provider for end, provider in _PROVIDERS if host.endswith(end)), name)


def _has_broken(ending: Ending) -> bool:
    """The upstream failed in the middle of its answer, or told of an error in it."""
    relayed = ending.findings.relayed
    failure = relayed.failure if relayed is not None else None
    return ending.told_error or (failure is not None and failure.kind.blame is errors.Blame.UPSTREAM)


def _is_failure(ending: Ending) -> bool:
    """It is the server's fault, or its upstream's: what the client did wrong is no error of this span."""
    findings, error = ending.findings, ending.findings.error
    is_fault = findings.fault is not None or (error is not None and error.kind.blame is not errors.Blame.DOWNSTREAM)
    return is_fault or _has_broken(ending) or ending.status >= 500
