"""Several real proxies in processes of their own, and what the shared store and the ledger hold of them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from tests.fakes.client import RecordingClient
from tests.fakes.quota_burst import CHAT, MODEL, request
from tests.fakes.running import KEY
from tests.fakes.served import start

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.fakes.served import Served

KEYS: Final = {"team-a": KEY, "team-b": "sk-test-key-b-123456789", "team-c": "sk-test-key-c-123456789"}
# an interpreter that ends on a busy machine
_ENDED_S: Final = 30.0
# larger than any limit of these tests: refused, and tells where the limits stand
_TOO_LARGE: Final = 10**8


def configuration(upstream: str, *, store: dict[str, Any], ledger: str, plan: dict[str, Any]) -> dict[str, Any]:
    """A proxy on free ports before one upstream, with the keys of `KEYS` on one plan, by themselves."""
    return {
        "server": {"port": 0},
        "ops": {"port": 0},
        "store": store,
        "ledger": {"url": ledger},
        "upstreams": {"up": {"base_url": upstream, "auth": "none"}},
        "models": {MODEL: {}},
        "plans": {"p": plan},
        "keys": [{"id": key_id, "secret": secret, "plan": "p"} for key_id, secret in KEYS.items()],
    }


@contextlib.asynccontextmanager
async def serving(configs: Sequence[dict[str, Any]], folder: Path) -> AsyncIterator[list[Served]]:
    """One process for each configuration, all listening; killed at the end, if they still run."""
    async with contextlib.AsyncExitStack() as stack:
        proxies = []
        for number, config in enumerate(configs):
            own = folder / f"proxy-{number}"
            own.mkdir()
            proxies.append(await start(config, own))
            stack.push_async_callback(_end, proxies[-1])
        await asyncio.gather(*(proxy.listening() for proxy in proxies))
        yield proxies


async def _end(proxy: Served) -> None:
    if proxy.process.returncode is None:
        proxy.process.kill()
    await proxy.exit_code(_ENDED_S)


async def remaining(port: int, kind: str, *, key: str = KEY) -> int:
    """What a key has left of its tightest limit of this kind, asked with a request that is too large to be admitted."""
    async with await RecordingClient.connect(port) as client:
        answer = await client.ask("POST", CHAT, request(0, _TOO_LARGE), key=key)
    assert (answer.status, answer.error["code"]) == (429, "request_too_large"), answer.body
    return int(answer.header(f"x-ratelimit-remaining-{kind}") or "")
