"""What operators ask, on a listener of its own: `/healthz`, `/readyz`, `/metrics`, and `/admin`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.server.http import Handler
    from proxy.telemetry.metrics import Metrics


class Operated(Protocol):
    """What operators ask about: one process, or a supervisor with its workers."""

    async def problems(self) -> list[str]:
        """What keeps it from being ready; empty is ready."""

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Its metrics, and their content type."""


class OpsApi:
    """What operators ask of this process. `problems` names what keeps it from being ready; empty is ready."""

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


class PrivateOps:
    """The handler of a worker's ops listener that its supervisor alone can reach: it gives away snapshots, too.

    `inside` answers what the supervisor's admin API asks of a worker, both packed.
    """

    def __init__(self, ops: OpsApi, metrics: Metrics, inside: Callable[[bytes], bytes]) -> None:
        self._ops = ops
        self._metrics = metrics
        self._inside = inside

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.path == "/snapshot":
            return web.Response(body=await asyncio.to_thread(self._metrics.snapshot))
        if request.path == "/inside":
            return web.Response(body=self._inside(await request.read()))
        return await answer(request, self._ops)


async def answer(request: web.BaseRequest, asked: Operated, admin: Handler | None = None) -> web.StreamResponse:
    """Answer what an operator asks about `asked`; `admin` answers what is below `/admin`."""
    if admin is not None and (request.path == "/admin" or request.path.startswith("/admin/")):
        return await admin(request)
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
