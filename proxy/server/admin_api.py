"""`/admin/*`: who may ask, and how answers and refusals are told. What is done stands in the routes.

Every answer is JSON, and none may be cached: some hold a secret. Every change leaves a line in the log, also one that
was refused; it never holds what was sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from proxy.server.admin_routes import Asked, ErrorAnswer, Refusal, Route, Told, read
from proxy.server.openapi import document
from proxy.telemetry.logs import log_always

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import structlog

    from proxy.core.throttle import Throttle
    from proxy.tasks import BackgroundTasks

_HEADERS: Final = {"Server": "sluice", "Cache-Control": "no-store"}
_OFF: Final = "the admin API is off: set ops.admin_token"


class AdminApi:
    """The handler of `/admin`. Without a token it is off.

    Changes are made in `tasks`: a client that leaves does not interrupt one. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        token: str,
        routes: Sequence[Route],
        throttle: Throttle | None,
        *,
        tasks: BackgroundTasks,
        log: structlog.typing.FilteringBoundLogger,
        clock: Callable[[], float],
    ) -> None:
        self._token_sha256 = _sha256(token) if token else None
        own = Route("GET", "/admin/openapi.json", "This document.", self._describe, dict[str, Any])
        self._routes = (*routes, own)
        self._throttle = throttle
        self._tasks = tasks
        self._log = log
        self._clock = clock

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            self._authenticate(request)
            return await self._answer(request)
        except Refusal as refusal:
            return _json(refusal.status, ErrorAnswer(refusal.details), refusal.headers)

    def _authenticate(self, request: web.BaseRequest) -> None:
        if self._token_sha256 is None:
            raise Refusal(404, "admin_off", _OFF)
        scheme, _, token = request.headers.get("Authorization", "").strip().partition(" ")
        # hashed, so that the time it takes says nothing of the length either
        is_right = hmac.compare_digest(_sha256(token.strip()), self._token_sha256)
        if scheme.lower() == "bearer" and is_right:
            return
        client = request.remote or ""
        wait_s = None if self._throttle is None else self._throttle.failed(client, self._clock())
        if wait_s is not None:
            wait = {"Retry-After": str(max(1, -int(-wait_s // 1)))}
            raise Refusal(429, "too_many_failures", "Too many such requests have come from your address.", headers=wait)
        self._audit("authenticate", client, "unauthorized")
        challenge = {"WWW-Authenticate": "Bearer"}
        raise Refusal(401, "unauthorized", "Authorization: Bearer with the admin token is required.", headers=challenge)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        raw_path, _, query = request.raw_path.partition("?")
        if not raw_path.startswith("/"):  # absolute form (RFC 9112 section 3.2.2)
            raw_path, query = request.rel_url.raw_path, request.rel_url.raw_query_string
        steps = raw_path.split("/")
        found = [(route, names) for route in self._routes if (names := route.match(steps)) is not None]
        if not found:
            raise Refusal(
                404, "not_found", "There is no such page; /admin/openapi.json describes those that there are."
            )
        allowed = {"Allow": ", ".join(sorted(_methods({route.method for route, _ in found})))}
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={**_HEADERS, **allowed})
        asked_for = "GET" if request.method == "HEAD" else request.method
        route, names = next((row for row in found if row[0].method == asked_for), (None, {}))
        if route is None:
            raise Refusal(405, "method_not_allowed", "This method is not for that page.", headers=allowed)
        told: Told | Refusal
        if route.action is None:
            told = await route.serve(await read(request, route, names, query))
        else:
            change = self._change(request, route, route.action, names, query)
            told = await asyncio.shield(self._tasks.start(change, "admin"))
            if isinstance(told, Refusal):
                raise told
        return _json(route.status, told.content, {} if told.location is None else {"Location": told.location})

    async def _change(
        self, request: web.BaseRequest, route: Route, action: str, names: Mapping[str, str], query: str
    ) -> Told | Refusal:
        """Make a change, and tell the log what came of it."""
        client, outcome = request.remote or "", "fault"
        told = Told(None)
        try:
            told = await route.serve(await read(request, route, names, query))
            outcome = "done"
        except Refusal as refusal:
            told, outcome = Told(None, refusal.target), refusal.details.code
            return refusal
        finally:
            self._audit(action, client, outcome, told)
        return told

    def _audit(self, action: str, client: str, outcome: str, told: Told | None = None) -> None:
        about = {} if told is None else {"target": told.target, **told.details}
        is_done = outcome == "done"
        log_always(
            self._log, "info" if is_done else "warning", "audit", action=action, client=client, outcome=outcome, **about
        )

    async def _describe(self, _: Asked) -> Told:
        return Told(document(self._routes, ErrorAnswer))


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _methods(own: set[str]) -> set[str]:
    return own | {"OPTIONS"} | ({"HEAD"} if "GET" in own else set())


def _json(status: int, content: object, headers: Mapping[str, str]) -> web.Response:
    body = msgspec.json.encode(content)
    return web.Response(status=status, body=body, content_type="application/json", headers={**_HEADERS, **headers})
