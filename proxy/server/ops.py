"""What operators ask, on a listener of its own: `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.telemetry.metrics import Metrics


class OpsApi:
    """The handler of the ops listener. `problems` names what keeps this process from being ready; empty is ready."""

    def __init__(self, metrics: Metrics, problems: Callable[[], list[str]]) -> None:
        self._metrics = metrics
        self._problems = problems

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.method not in ("GET", "HEAD"):
            return _json(405, {"error": "only GET and HEAD here"}, Allow="GET, HEAD")
        if request.path == "/healthz":
            return _json(200, {"status": "ok"})
        if request.path == "/readyz":
            problems = self._problems()
            return _json(503 if problems else 200, {"status": "not ready" if problems else "ready", "why": problems})
        if request.path == "/metrics":
            # rendering takes long with many label sets, and holds no lock that the relay needs
            body, content_type = await asyncio.to_thread(self._metrics.render, request.headers.get("Accept", ""))
            return web.Response(body=body, headers={"Content-Type": content_type, "Server": "sluice"})
        return _json(404, {"error": "no such page: /healthz, /readyz, /metrics"})


def _json(status: int, content: object, **headers: str) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(content),
        content_type="application/json",
        headers={**headers, "Server": "sluice"},
    )
