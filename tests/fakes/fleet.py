"""A supervisor with its workers as an operator sees them: readiness, merged metrics, and who serves whom."""

from __future__ import annotations

import contextlib
import tempfile
from typing import TYPE_CHECKING, Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.admin import TOKEN
from tests.fakes.client import RecordingClient
from tests.fakes.redis import shared_redis
from tests.fakes.running import KEY
from tests.fakes.served import served
from tests.fakes.waiting import LONG_S, until_asked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.served import Served


def configuration(base_url: str, store_url: str, folder: Path, *, workers: int = 2, **shutdown: str) -> dict[str, Any]:
    return {
        "server": {"port": 0, "workers": workers},
        "ops": {"port": 0, "admin_token": TOKEN},
        "store": {"url": store_url},
        "ledger": {"url": f"sqlite:///{folder / 'ledger.db'}"},
        "upstreams": {"up": {"base_url": base_url, "auth": "none", "usage": "as-asked"}},
        "keys": [{"id": "team-a", "secret": KEY}],
        "shutdown": {"notice": "0s", "drain": "60s", **shutdown},
    }


@contextlib.asynccontextmanager
async def fleet(base_url: str, folder: Path, *, workers: int = 2, **shutdown: str) -> AsyncIterator[Served]:
    """`workers` that listen, with a Redis of the tests' and a ledger in `folder`."""
    # killed at the end, it leaves its sockets' folder behind: in a place of ours, whose name is short enough for them
    with shared_redis() as store_url, tempfile.TemporaryDirectory(prefix="sluice-fleet-") as temporary:
        config = configuration(base_url, store_url, folder, workers=workers, **shutdown)
        async with served(config, folder, TMPDIR=temporary) as proxy:
            yield proxy


async def readiness(proxy: Served) -> tuple[int, list[str]]:
    """The status of `/readyz`, and what it says."""
    async with await RecordingClient.connect(proxy.ops_port) as client:
        answer = await client.ask("GET", "/readyz", key=None)
        return answer.status, answer.json["why"]


async def until_ready(proxy: Served) -> None:
    async def is_ready() -> bool:
        return (await readiness(proxy))[0] == 200

    await until_asked(is_ready, "all workers are ready", LONG_S)


async def scrape(proxy: Served) -> tuple[dict[str, float], dict[str, float]]:
    """What never falls, and what may, by series."""
    async with await RecordingClient.connect(proxy.ops_port) as client:
        text = (await client.ask("GET", "/metrics", key=None)).body.decode()
    rising: dict[str, float] = {}
    other: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        kept = rising if family.type in ("counter", "histogram") else other
        for sample in family.samples:
            series = f"{sample.name}{dict(sorted(sample.labels.items()))}"
            assert series not in kept, f"twice: {series}"
            kept[series] = sample.value
    return rising, other


def fallen(before: dict[str, float], after: dict[str, float]) -> dict[str, tuple[float, float | None]]:
    """The series that have fallen or gone."""
    return {name: (was, after.get(name)) for name, was in before.items() if (after.get(name) or 0.0) < was}


def total(series: dict[str, float], name: str) -> float:
    return sum(value for key, value in series.items() if key.startswith(name + "{"))


def worker_of(proxy: Served, client: RecordingClient) -> int:
    """The id of the process that holds the other end of a client's connection."""
    port = client.writer.get_extra_info("sockname")[1]
    for pid, process in proxy.workers.items():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(held.raddr[1:] == (port,) for held in process.net_connections("tcp")):
                return pid
    raise AssertionError("no worker has accepted the connection")
