"""`GET /models`: what this key may use, in OpenAI's shape.

Names that stand in the configuration are known. Behind a pattern only the upstream knows the names, so it is asked,
at most once a minute; an upstream that does not answer costs its part of the list, not the list.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

from proxy.core import errors
from proxy.phases.admit import model_not_found
from proxy.upstream.attempt import UpstreamRequest, attempt

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.phases.authenticate import Principal
    from proxy.phases.exchange import Exchange
    from proxy.phases.route import Router, Upstream
    from proxy.tasks import BackgroundTasks

_KEPT_S: Final = 60.0
_PATIENCE_S: Final = 5.0
_MAX_LIST_BYTES: Final = 4 * 1024 * 1024  # OpenRouter's list, the longest known, is about half a megabyte
_WILD: Final = frozenset("*?[")


class _Listed(msgspec.Struct):
    id: str
    created: int | float | None = None
    owned_by: str | None = None


class _Listing(msgspec.Struct):
    data: list[_Listed]


class Catalogue:
    """Which models there are."""

    def __init__(self, router: Router, tasks: BackgroundTasks, clock: Callable[[], float] = time.monotonic) -> None:
        self._router = router
        self._tasks = tasks
        self._clock = clock
        self._kept: dict[str, tuple[float, list[_Listed]]] = {}

    async def answer(self, exchange: Exchange, principal: Principal) -> bytes:
        """The list, or one model of it. Raises `ProxyError` 404 for a model this key may not use."""
        allowed = principal.plan.models
        _, _, wanted = exchange.path.partition("/models/")
        if wanted:
            name = unquote(wanted)
            if allowed.match(name) is None or self._router.find(name) is None:
                raise model_not_found("models", name)
            listed = [model for model in await self._all() if model["id"] == name]
            return msgspec.json.encode(listed[0] if listed else _shape(_Listed(name)))
        models = [model for model in await self._all() if allowed.match(model["id"]) is not None]
        return msgspec.json.encode({"object": "list", "data": models})

    async def _all(self) -> list[dict[str, Any]]:
        routes = self._router.routes
        found = {name: _shape(_Listed(name)) for name in routes if not _WILD & set(name)}
        asked = {route.upstream.name: route.upstream for name, route in routes.items() if _WILD & set(name)}
        if not routes:
            asked = {self._router.default.name: self._router.default}
        for upstream in asked.values():
            for model in await self._of(upstream):
                target = self._router.find(model.id)
                if target is not None and target[1].upstream is upstream:
                    found.setdefault(model.id, _shape(model))
        return sorted(found.values(), key=lambda model: str(model["id"]))

    async def _of(self, upstream: Upstream) -> list[_Listed]:
        kept = self._kept.get(upstream.name)
        if kept is not None and self._clock() - kept[0] < _KEPT_S:
            return kept[1]
        try:
            listed = await self._ask(upstream)
        except errors.ProxyError:
            listed = kept[1] if kept is not None else []
        self._kept[upstream.name] = (self._clock(), listed)
        return listed

    async def _ask(self, upstream: Upstream) -> list[_Listed]:
        headers = upstream.request_headers([(b"Accept", b"application/json")], b"1.1 sluice")
        request = UpstreamRequest(b"GET", upstream.target("/models", ""), headers)
        stream = await attempt(upstream.pool, request, first_byte_s=_PATIENCE_S, tasks=self._tasks)
        too_slow = errors.ProxyError(errors.UPSTREAM_TIMEOUT, "The upstream's list of models took too long.")
        timer = asyncio.get_running_loop().call_later(_PATIENCE_S, stream.fail, too_slow)
        try:
            body = bytearray()
            while len(body) <= _MAX_LIST_BYTES and (data := await stream.read()):
                body += data
            if stream.head.status != 200 or not stream.complete:
                return []
            return msgspec.json.decode(body, type=_Listing).data
        except msgspec.MsgspecError:
            return []  # a server with another idea of a list: then only configured names are shown
        finally:
            timer.cancel()
            stream.close()


def _shape(model: _Listed) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.created or 0),
        "owned_by": model.owned_by or "sluice",
    }
