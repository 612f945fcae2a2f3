"""What operators ask, on a listener of its own: `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.telemetry.metrics import Metrics


class Operated(Protocol):
    """What operators ask about: one process, or a supervisor with its workers."""

    async def problems(self) -> list[str]:
        """What keeps it from being ready; empty is ready."""

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Its metrics, and their content type."""


class OpsApi:
    """The handler of the ops listener. `problems` names what keeps this process from being ready; empty is ready."""

    def __init__(self, metrics: Metrics, problems: Callable[[], list[str]]) -> None:
        self._metrics = metrics
        self._problems = problems

    async def problems(self) -> list[str]:
        """What keeps this process from being ready; empty is ready."""
        return self._problems()

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics of this process, and their content type."""
        # rendering takes long with many label sets, and holds no lock that the relay needs
        return await asyncio.to_thread(self._metrics.render, accept)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        return await answer(request, self)


class PrivateOps:
    """The handler of a worker's ops listener that its supervisor alone can reach: it gives away snapshots, too."""

    def __init__(self, ops: OpsApi, metrics: Metrics) -> None:
        self._ops = ops
        self._metrics = metrics

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.path == "/snapshot":
            return web.Response(body=await asyncio.to_thread(self._metrics.snapshot))
        return await self._ops.handle(request)


async def answer(request: web.BaseRequest, asked: Operated) -> web.StreamResponse:
    """Answer what an operator asks about `asked`."""
    if request.method not in ("GET", "HEAD"):
        return _json(405, {"error": "only GET and HEAD here"}, Allow="GET, HEAD")
    if request.path == "/healthz":
        return _json(200, {"status": "ok"})
    if request.path == "/readyz":
        problems = await asked.problems()
        return _json(503 if problems else 200, {"status": "not ready" if problems else "ready", "why": problems})
    if request.path == "/metrics":
        body, content_type = await asked.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type, "Server": "sluice"})
    return _json(404, {"error": "no such page: /healthz, /readyz, /metrics"})


def _json(status: int, content: object, **headers: str) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(content),
        content_type="application/json",
        headers={**headers, "Server": "sluice"},
    )
