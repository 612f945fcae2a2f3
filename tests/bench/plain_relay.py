"""The plain peer: what an aiohttp programmer writes in twenty lines. No keys, no quotas, no accounts, no checks.

python -m tests.bench.plain_relay PORT UPSTREAM_PORT
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import aiohttp
import uvloop
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SESSION = web.AppKey("session", aiohttp.ClientSession)
UPSTREAM = web.AppKey("upstream", str)


async def relay(request: web.Request) -> web.StreamResponse:
    """Ask the upstream, and pass on what it says."""
    body = await request.read()
    url, headers = request.app[UPSTREAM] + request.path, {"Content-Type": "application/json"}
    async with request.app[SESSION].post(url, data=body, headers=headers) as answer:
        content_type = answer.headers.get("Content-Type", "")
        if not content_type.startswith("text/event-stream"):
            return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": content_type})
        await response.prepare(request)
        async for data in answer.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response


async def sessions(app: web.Application) -> AsyncIterator[None]:
    """One session for all requests."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        app[SESSION] = session
        yield


def main() -> None:
    """Serve until the process ends."""
    app = web.Application()
    app[UPSTREAM] = f"http://127.0.0.1:{sys.argv[2]}"
    app.cleanup_ctx.append(sessions)
    app.router.add_route("*", "/{tail:.*}", relay)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        print=None,
        handler_cancellation=True,
        backlog=4096,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
