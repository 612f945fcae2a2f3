"""A route of the admin API: what it is called by, how its requests are read, and how they are answered or refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs, unquote

import msgspec
from msgspec import inspect

from proxy.core import errors
from proxy.server.request_body import RequestBody

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from aiohttp import web

_MOST_BYTES: Final = 65_536
_READ_TIMEOUT_S: Final = 30.0
_MOST_PARAMETERS: Final = 32
_PLACE: Final = re.compile(r"(?P<message>.*) - at `(?P<path>[^`]*)`", re.DOTALL)


class Problem(msgspec.Struct, omit_defaults=True):
    """One of several things that are wrong: where, and what."""

    message: str
    path: str | None = None
    line: int | None = None


class ErrorDetails(msgspec.Struct, omit_defaults=True):
    """What went wrong: for people, for programs, and where in the request (`$.limits.requests[0]`, `query.since`)."""

    message: str
    code: str
    path: str | None = None
    problems: tuple[Problem, ...] = ()


class ErrorAnswer(msgspec.Struct):
    """The answer to what cannot be done."""

    error: ErrorDetails


class Refusal(Exception):  # noqa: N818 - it is an answer
    """What was asked for is not done. `target` is the name of what it was about, where that is known to exist."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        path: str | None = None,
        problems: Sequence[Problem] = (),
        headers: Mapping[str, str] | None = None,
        target: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.details = ErrorDetails(message, code, path, tuple(problems))
        self.headers = headers or {}
        self.target = target


class Asked(NamedTuple):
    """A request that was read: the names in its path, and its query and body as the route has them."""

    names: Mapping[str, str]
    query: Any
    body: Any


class Told(NamedTuple):
    """What is answered; of a change also what it was about, and what the log may tell of it."""

    content: object
    target: str | None = None
    location: str | None = None
    details: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table. `query`, `body` and `answer` are types; a route with an `action` changes something."""

    method: str
    path: str
    summary: str
    serve: Callable[[Asked], Awaitable[Told]]
    answer: Any
    status: int = 200
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    action: str | None = None
    refusals: tuple[int, ...] = ()

    def match(self, steps: Sequence[str]) -> dict[str, str] | None:
        """The names in a path whose steps these are, percent-encoded; None where it is another path."""
        own = self.path.split("/")
        if len(own) != len(steps):
            return None
        names = {}
        for want, step in zip(own, steps, strict=True):
            if want.startswith("{") and step:
                names[want[1:-1]] = unquote(step)
            elif want != step:
                return None
        return names


async def read(request: web.BaseRequest, route: Route, names: Mapping[str, str], query: str) -> Asked:
    """Raises `Refusal` for what the route does not take."""
    asked_for = _query(query, route.query)
    body = await _body(request)
    if route.body is not None:
        return Asked(names, asked_for, _decoded(body or b"{}", route.body))
    if body:
        raise Refusal(400, "invalid_request", "This takes no body.", path="$")
    return Asked(names, asked_for, None)


async def _body(request: web.BaseRequest) -> bytes:
    # `_message` has no public name
    received = RequestBody(request.protocol, request._message, request.content, _READ_TIMEOUT_S)  # noqa: SLF001 - see above
    too_large = Refusal(413, "too_large", f"A body may have {_MOST_BYTES} bytes.")
    if (received.content_length or 0) > _MOST_BYTES:
        raise too_large
    body = b""
    try:
        while data := await received.read():
            body += data
            if len(body) > _MOST_BYTES:
                raise too_large
    except errors.ProxyError as error:
        raise Refusal(error.kind.status, error.kind.code or "invalid_request", error.message) from error
    return body


def _decoded(body: bytes, kind: type[msgspec.Struct]) -> msgspec.Struct:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _misfit(error, "$") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, "invalid_request", "The body is not JSON in UTF-8.") from error


def _query(query: str, kind: type[msgspec.Struct] | None) -> msgspec.Struct | None:
    try:
        found = parse_qs(query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError as error:
        raise Refusal(400, "invalid_request", "The query is not in order.", path="query") from error
    if kind is None:
        if found:
            raise Refusal(400, "invalid_request", "This takes no query.", path="query")
        return None
    lists = _lists_of(kind)
    values: dict[str, Any] = {}
    for name, given in found.items():
        if name not in lists and len(given) > 1:
            raise Refusal(400, "invalid_request", "This is given twice.", path=f"query.{name[:64]}")
        values[name] = given if name in lists else given[0]
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _misfit(error, "query") from error


def _lists_of(kind: type[msgspec.Struct]) -> set[str]:
    """The members that may be given several times."""
    found = set()
    for field in msgspec.structs.fields(kind):
        told = inspect.type_info(field.type)
        while isinstance(told, inspect.Metadata):
            told = told.type
        if isinstance(told, inspect.VarTupleType):
            found.add(field.name)
    return found


def _misfit(error: msgspec.ValidationError, root: str) -> Refusal:
    """What does not fit its type, and where."""
    told = _PLACE.fullmatch(str(error))
    message, path = (told["message"], told["path"]) if told is not None else (str(error), "$")
    return Refusal(400, "invalid_request", f"{message}.", path=root + path.removeprefix("$"))
