"""May it go on: the endpoint and the model are allowed, the body is in order and small enough.

What an inference request is about stands in its body, so a JSON body is read whole, within `max_request_bytes` and in
time, and of a multipart upload as much as it takes to find its `model`. Other bodies stream, to stateful endpoints.
"""

from __future__ import annotations

import asyncio
import functools
import re
import zlib
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from proxy.core import errors
from proxy.core.body import edited, read_metered, read_model
from proxy.core.discreet import as_repr
from proxy.core.multipart import ModelFinder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from proxy.core.body import Edit
    from proxy.phases.authenticate import Plan, Principal
    from proxy.phases.exchange import Exchange

# Work on more goes to a thread. So much takes 2 ms of the loop at the worst (a thousand members to walk, halves of
# surrogate pairs to blank), and 0.1 ms for an ordinary chat. A thread is no cure for all: while
# zlib works the loop runs, while msgspec does it waits, 1 to 4 ms a MiB.
_LONG_BYTES: Final = 65536
_MAX_INFLATION: Final = 1032  # bytes that deflate makes of one, at most (zlib's technical details)
# RFC 6839 section 3.1
_JSON_TYPE: Final = re.compile(rb"application/json|[!#$&^_.+\-0-9a-z]+/[!#$&^_.+\-0-9a-z]+\+json")
_Found = TypeVar("_Found")


class Admission(msgspec.Struct, frozen=True):
    """The right to go on, and what is known of the request by now.

    `body` is what was read of it: all, unless `rest` is there to read on from. `model_span` is where in `body` the
    model's name stands, in JSON with its quotes; None where `model` is. `usage_edit` makes a streamed request ask for
    the usage that its client did not ask for.
    """

    principal: Principal
    model: str | None
    streamed: bool
    body: bytes
    rest: AsyncIterator[bytes] | None = None
    model_span: tuple[int, int] | None = None
    inflated: bool = False
    usage_edit: Edit | None = None

    def edited(self, rename: str | None, *, asks_usage: bool) -> bytes:
        """`body` with another name in the place of its model's, asking for usage, and every other byte as it was."""
        edits: list[Edit] = []
        if rename is not None and self.model_span is not None:
            # JSON was read whole; a form that names a model always has a rest
            edits.append((*self.model_span, msgspec.json.encode(rename) if self.rest is None else rename.encode()))
        if asks_usage and self.usage_edit is not None:
            edits.append(self.usage_edit)
        return edited(self.body, edits) if edits else self.body

    def __repr__(self) -> str:
        """What a log may show."""
        return f"Admission(model={self.model!r}, streamed={self.streamed}, body=<{len(self.body)} bytes>)"

    __rich_repr__ = as_repr

    def without_body(self) -> Admission:
        """The same once the request is answered: a long stream would hold its body for as long as it lasts."""
        return Admission(self.principal, self.model, self.streamed, b"")


async def admit(exchange: Exchange, principal: Principal, max_request_bytes: int) -> Admission:
    """Check the request against the principal's plan and read what must be known of its body.

    Raises `ProxyError` 400, 403, 404, 408 or 413.
    """
    treatment, plan = exchange.endpoint.treatment, principal.plan
    if treatment == "stateful" or not plan.allows_inference:
        _allow_endpoint(exchange, plan)
    if treatment == "stateful":
        return Admission(principal, None, streamed=False, body=b"", rest=_pieces(exchange))
    if treatment == "metered":
        body, inflated = exchange.body.take_whole(), False
        if body is None or len(body) > max_request_bytes or exchange.first.get(b"content-encoding"):
            body, inflated = await _read_plain(exchange, body, max_request_bytes)
        request = read_metered(body) if len(body) <= _LONG_BYTES else await asyncio.to_thread(read_metered, body)
        admission = Admission(
            principal,
            request.model,
            request.stream,
            body,
            model_span=request.model_span,
            inflated=inflated,
            usage_edit=request.usage_edit,
        )
    else:
        admission = await _admit_inference(exchange, principal, max_request_bytes)
    _allow_model(exchange, plan, admission.model)
    return admission


def _allow_endpoint(exchange: Exchange, plan: Plan) -> None:
    """Look for the name of an endpoint, where the plan does not allow all inference."""
    is_stateful, allowed = exchange.endpoint.treatment == "stateful", plan.endpoints
    if is_stateful and allowed.match("stateful") is not None:
        return
    # a path has its leading slash, so that no client can spell one of the two words
    if allowed.match(exchange.path if is_stateful else "/" + exchange.endpoint.name) is None:
        raise errors.ProxyError(errors.ENDPOINT_NOT_ALLOWED, f"This API key may not use {_shown(exchange)}.")


def _shown(exchange: Exchange) -> str:
    """The endpoint as a message may name it: known names only, nothing of what a client typed."""
    return f"/v1/{exchange.endpoint.name}" if exchange.endpoint.treatment != "stateful" else "this endpoint"


def model_not_found(endpoint_name: str, model: str) -> errors.ProxyError:
    """The error for a model that does not exist or is not in the plan: a client cannot tell which."""
    if endpoint_name == "responses":
        message = f"The requested model '{model[:200]}' does not exist."
        return errors.ProxyError(errors.MODEL_NOT_FOUND_RESPONSES, message, param="model")
    message = f"The model `{model[:200]}` does not exist or you do not have access to it."
    return errors.ProxyError(errors.MODEL_NOT_FOUND, message)


def _allow_model(exchange: Exchange, plan: Plan, model: str | None) -> None:
    if model is None:
        # an endpoint may have a default model, which a plan with a list of models cannot judge
        if plan.models.match("") is None:
            raise errors.ProxyError(
                errors.MISSING_PARAMETER, "This API key must name a `model` in the request.", param="model"
            )
    elif plan.models.match(model) is None:
        raise model_not_found(exchange.endpoint.name, model)


async def _admit_inference(exchange: Exchange, principal: Principal, max_request_bytes: int) -> Admission:
    """Read the model from the body, whose type must be one in which upstreams look for it as we do."""
    content_type = exchange.first.get(b"content-type", b"")
    media_type = content_type.split(b";")[0].strip().lower()
    if media_type == b"multipart/form-data":
        return await _admit_multipart(exchange, principal, max_request_bytes)
    if media_type and not _JSON_TYPE.fullmatch(media_type):
        raise errors.ProxyError(
            errors.BAD_REQUEST, "The request's Content-Type must be application/json or multipart/form-data."
        )
    body, inflated = await _read_plain(exchange, exchange.body.take_whole(), max_request_bytes)
    if not body and not media_type:
        return Admission(principal, None, streamed=False, body=body, inflated=inflated)
    model, model_span = await _beside(len(body), read_model, body)
    return Admission(principal, model, streamed=False, body=body, model_span=model_span, inflated=inflated)


async def _beside(most_bytes: int, find: Callable[[bytes], _Found], body: bytes) -> _Found:
    """What `find` makes of the body; beside the event loop where that is work on `most_bytes` and these are many."""
    return await asyncio.to_thread(find, body) if most_bytes > _LONG_BYTES else find(body)


async def _admit_multipart(exchange: Exchange, principal: Principal, max_request_bytes: int) -> Admission:
    """Read until the `model` field is known, at most `max_request_bytes`, and let the rest stream."""
    finder = ModelFinder(exchange.first.get(b"content-type", b""))
    held = bytearray()
    while finder.model is None:
        piece = await exchange.body.read()
        if not piece:
            return Admission(principal, None, streamed=False, body=bytes(held))
        held += piece
        if len(held) > max_request_bytes:
            raise _too_large(max_request_bytes, "before its `model` field")
        finder.feed(piece)
    rest = _watched_pieces(exchange, finder)
    return Admission(principal, finder.model, streamed=False, body=bytes(held), rest=rest, model_span=finder.span)


async def _pieces(exchange: Exchange) -> AsyncIterator[bytes]:
    while piece := await exchange.body.read():
        yield piece


async def _watched_pieces(exchange: Exchange, finder: ModelFinder) -> AsyncIterator[bytes]:
    """The rest of an upload; a second `model` field in it ends the exchange, as the upstream might obey that one."""
    while piece := await exchange.body.read():
        finder.feed(piece)
        yield piece


async def _read_plain(exchange: Exchange, raw: bytes | None, max_request_bytes: int) -> tuple[bytes, bool]:
    """The whole body with a `Content-Encoding` undone, and whether there was one; `raw` is what was there at once."""
    if raw is None:
        raw = await _read_whole(exchange, max_request_bytes)
    elif len(raw) > max_request_bytes:
        raise _too_large(max_request_bytes, f"({len(raw)} bytes read)")
    encoding = exchange.first.get(b"content-encoding")
    if not encoding or (encoding := encoding.strip().lower()) == b"identity":
        return raw, False
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise errors.ProxyError(
            errors.BAD_REQUEST, "The request's Content-Encoding is not supported: send gzip, deflate or none."
        )
    inflate = functools.partial(_inflate, max_request_bytes)
    return await _beside(len(raw) * _MAX_INFLATION, inflate, raw), True


async def _read_whole(exchange: Exchange, max_request_bytes: int) -> bytes:
    """The body as it comes."""
    announced = exchange.body.content_length
    if announced is not None and announced > max_request_bytes:
        raise _too_large(max_request_bytes, f"({announced} bytes announced)")
    held = bytearray()
    while piece := await exchange.body.read():
        if len(piece) == announced:
            return piece  # all of it, as short bodies come
        held += piece
        if len(held) > max_request_bytes:
            raise _too_large(max_request_bytes, f"({len(held)} bytes read)")
    return bytes(held)


def _too_large(max_request_bytes: int, how: str) -> errors.ProxyError:
    return errors.ProxyError(
        errors.REQUEST_TOO_LARGE, f"The request exceeds the maximum content size of {max_request_bytes} bytes {how}."
    )


def _inflate(max_request_bytes: int, body: bytes) -> bytes:
    """Bounded like the body itself: no more is inflated than may be taken."""
    try:
        unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip and zlib by their own headers
        plain = unzip.decompress(body, max_request_bytes + 1)
    except zlib.error as error:
        raise errors.ProxyError(
            errors.BAD_REQUEST, "The request's body is not what its Content-Encoding says."
        ) from error
    if len(plain) > max_request_bytes:
        raise _too_large(max_request_bytes, "when inflated")
    if not unzip.eof or unzip.unused_data:
        raise errors.ProxyError(errors.BAD_REQUEST, "The request's body is not what its Content-Encoding says.")
    return plain
