"""`GET /models`: what this key may use, in OpenAI's shape.

Names that stand in the configuration are known. Behind a pattern only the upstream knows the names, so it is asked,
at most once a minute; an upstream that does not answer costs its part of the list, not the list.
"""

from __future__ import annotations

import asyncio
import contextlib
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
    from proxy.phases.route import Router
    from proxy.phases.upstreams import Upstream
    from proxy.tasks import BackgroundTasks

_KEPT_S: Final = 60.0
_PATIENCE_S: Final = 5.0  # connecting, head and body together
_MAX_LIST_BYTES: Final = 4 * 1024 * 1024  # OpenRouter's list, the longest known, is about half a megabyte


class _Listed(msgspec.Struct):
    id: str
    created: int | float | None = None
    owned_by: str | None = None


class _Listing(msgspec.Struct):
    data: list[_Listed]


class Catalogue:
    """Which models there are. One task at a time asks an upstream; its answer is for all who wait and who come soon."""

    def __init__(self, router: Router, tasks: BackgroundTasks, clock: Callable[[], float] = time.monotonic) -> None:
        self._router = router
        self._tasks = tasks
        self._clock = clock
        self._kept: dict[Upstream, tuple[float, list[_Listed]]] = {}
        self._asking: dict[Upstream, asyncio.Task[None]] = {}

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
        names, upstreams = self._router.known()
        found = {name: _shape(_Listed(name)) for name in names}
        if asking := [self._ask(upstream) for upstream in upstreams if not self._is_fresh(upstream)]:
            await asyncio.wait(asking)  # which leaves them alone when the client of this exchange leaves
        for upstream in upstreams:
            for model in self._known(upstream):
                target = self._router.find(model.id)
                if target is not None and any(route.upstream is upstream for route in target.model.routes):
                    found.setdefault(model.id, _shape(model))
        return sorted(found.values(), key=lambda model: str(model["id"]))

    def _is_fresh(self, upstream: Upstream) -> bool:
        kept = self._kept.get(upstream)
        return kept is not None and self._clock() - kept[0] < _KEPT_S

    def _known(self, upstream: Upstream) -> list[_Listed]:
        """What it last said, however long ago."""
        kept = self._kept.get(upstream)
        return [] if kept is None else kept[1]

    def _ask(self, upstream: Upstream) -> asyncio.Task[None]:
        """The task that asks this upstream: the one that runs, or a new one, which has `_PATIENCE_S` for everything."""
        task = self._asking.get(upstream)
        if task is None or task.done():
            task = self._asking[upstream] = self._tasks.start(self._refresh(upstream), f"models of {upstream.name}")
            timer = asyncio.get_running_loop().call_later(_PATIENCE_S, task.cancel)
            task.add_done_callback(lambda _: timer.cancel())
        return task

    async def _refresh(self, upstream: Upstream) -> None:
        """Keep what the upstream lists; where that fails or is cancelled, what it listed before, as if it were new."""
        listed = self._known(upstream)
        try:
            with contextlib.suppress(errors.ProxyError):
                listed = await self._fetch(upstream)
        finally:
            self._kept[upstream] = (self._clock(), listed)

    async def _fetch(self, upstream: Upstream) -> list[_Listed]:
        """Raises `ProxyError` for an upstream that does not answer, or not with a list."""
        headers = upstream.request_headers([(b"Accept", b"application/json")], b"1.1 sluice", api_key=0)
        request = UpstreamRequest(b"GET", upstream.target("/models", ""), headers)
        stream = await attempt(upstream.pool, request, first_byte_s=None, tasks=self._tasks)
        try:
            body = bytearray()
            while len(body) <= _MAX_LIST_BYTES and (data := await stream.read()):
                body += data
            if stream.head.status == 200 and stream.complete:
                return msgspec.json.decode(body, type=_Listing).data
        except msgspec.MsgspecError as error:
            raise _not_a_list() from error  # a server with another idea of a list
        finally:
            stream.close()
        raise _not_a_list()


def _not_a_list() -> errors.ProxyError:
    return errors.ProxyError(errors.UPSTREAM_PROTOCOL_ERROR, "The upstream did not answer with a list of models.")


def _shape(model: _Listed) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.created or 0),
        "owned_by": model.owned_by or "sluice",
    }
