"""The table of the admin API's routes as an OpenAPI 3.1 document, made from the types of their bodies."""

from __future__ import annotations

import http
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from proxy import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.server.admin_routes import Route

_REFUSED_EVERYWHERE: Final = (401, 429)
_READING: Final = (400,)
_BODY: Final = (400, 408, 413)
_NAME: Final = re.compile(r"\{(\w+)\}")
_DESCRIPTION: Final = "For operators, on the listener `ops`. HEAD is answered like GET, without the body."


def document(routes: Sequence[Route], error: type[msgspec.Struct]) -> dict[str, Any]:
    """The document. `error` is the type of every refusal's body."""
    bodies = [route.body for route in routes if route.body is not None]
    kinds: list[Any] = [*bodies, *(route.answer for route in routes), error]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(map(str, kinds), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of, schema_of[str(error)])
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sluice admin API", "version": __version__, "description": _DESCRIPTION},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "The setting ops.admin_token."}
            },
        },
    }


def _operation(route: Route, schema_of: dict[str, Any], error: dict[str, Any]) -> dict[str, Any]:
    refusals = {*_REFUSED_EVERYWHERE, *_READING, *route.refusals, *(_BODY if route.body is not None else ())}
    responses = {str(route.status): _response(route.status, schema_of[str(route.answer)])}
    if route.status == 201:
        location = {"schema": {"type": "string", "format": "uri-reference"}}
        responses["201"]["headers"] = {"Location": location}
    responses |= {str(status): _response(status, error) for status in sorted(refusals)}
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "responses": responses,
    }
    if parameters := [*_in_path(route), *_in_query(route)]:
        operation["parameters"] = parameters
    if route.body is not None:
        is_required = any(field.required for field in msgspec.structs.fields(route.body))
        operation["requestBody"] = {"required": is_required, "content": _content(schema_of[str(route.body)])}
    return operation


def _operation_id(route: Route) -> str:
    return "_".join([route.method.lower(), *re.findall(r"\w+", route.path.removeprefix("/admin/"))])


def _response(status: int, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": http.HTTPStatus(status).phrase, "content": _content(schema)}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _in_path(route: Route) -> list[dict[str, Any]]:
    schema = {"type": "string"}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in _NAME.findall(route.path)]


def _in_query(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    schema = msgspec.json.schema(route.query)
    properties = schema["$defs"][route.query.__name__]["properties"]
    found = []
    for name, told in properties.items():
        plain = {key: value for key, value in told.items() if key != "description"}
        found.append({"name": name, "in": "query", "description": told.get("description", ""), "schema": plain})
    return found
