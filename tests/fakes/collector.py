"""A collector of traces: what is posted to it over OTLP/HTTP, decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.fakes.answering import AnsweringUpstream, response

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass
class Exported:
    """One span as it was exported. Times are UNIX nanoseconds; ids are hex; `parent_id` "" is none."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[tuple[str, int]]
    is_error: bool
    has_remote_parent: bool
    resource: dict[str, Any]


class Collector(AnsweringUpstream):
    """Listens on loopback; a context manager. `status` is what it answers with."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(lambda _: response(b"", status=self.status, content_type="application/x-protobuf"))
        self.status = status

    @property
    def endpoint(self) -> str:
        """Its base URL, as operators write it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def heads(self) -> list[str]:
        """The heads of the requests, in lower case."""
        return [request.partition(b"\r\n\r\n")[0].decode().lower() for request in self.requests]

    @property
    def spans(self) -> list[Exported]:
        """All spans, in the order in which they came."""
        return [span for request in self.requests for span in _decoded(request.partition(b"\r\n\r\n")[2])]

    @property
    def served(self) -> list[Exported]:
        """The server's."""
        return [span for span in self.spans if span.kind == "SERVER"]

    @property
    def asked(self) -> list[Exported]:
        """The clients', by when they began."""
        return sorted((span for span in self.spans if span.kind == "CLIENT"), key=lambda span: span.start_ns)


def _decoded(body: bytes) -> Iterable[Exported]:
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in of_resource.scope_spans:
            for span in scope.spans:
                yield Exported(
                    name=span.name,
                    kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    state=span.trace_state,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=_plain(span.attributes),
                    events=[(event.name, event.time_unix_nano) for event in span.events],
                    is_error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                    has_remote_parent=bool(span.flags & trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK),
                    resource=_plain(of_resource.resource.attributes),
                )


def _plain(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in attributes}
