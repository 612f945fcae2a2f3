"""The servers that are measured, each in processes of its own: Sluice with everything on, nginx, smg, plain aiohttp.

Contenders run on the first core, the upstream and the load client on the last one, where there are two.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import psutil
import sqlalchemy as sa

from proxy import __version__
from proxy.stores.database import migrate, open_database
from proxy.stores.tables import KEY_REVISION, KEYS
from tests.bench.load import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
CORES: Final = sorted(os.sched_getaffinity(0))
PLACES_OF_NGINX: Final = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
START_S: Final = 60.0
LOOK_S: Final = 0.005
NGINX: Final = """worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 16384; }}
http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream u {{ server 127.0.0.1:{upstream}; keepalive 2000; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000;
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 600;
    location / {{ proxy_pass http://u; }} }} }}
"""


@dataclass(frozen=True)
class Contender:
    """A server that is measured: how it is started, and what it says of its version."""

    name: str
    command: list[str]
    port: int
    version: str


class Server:
    """One that runs. `started_s` is when, by `time.perf_counter`."""

    def __init__(self, child: subprocess.Popen[bytes], port: int, started_s: float) -> None:
        self.process = psutil.Process(child.pid)
        self.port = port
        self.started_s = started_s

    def _tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        """User and system time of all its processes, in seconds; it grows by 10 ms (proc(5))."""
        return sum(sum(one.cpu_times()[:2]) for one in self._tree())

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(int(one.memory_info().rss) for one in self._tree())


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this process, and what it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def started(command: list[str], port: int, core: int, folder: Path) -> Iterator[Server]:
    """Run a server on `core` until it listens; end it by its own process id."""
    output = folder / f"{port}.log"
    with output.open("wb") as log, pinned(core):
        began_s = time.perf_counter()
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        while not _listens(port):
            if child.poll() is not None or time.perf_counter() - began_s > START_S:
                sys.exit(f"did not start: {command}\n{output.read_text(errors='replace')[-2000:]}")
            time.sleep(LOOK_S)
        yield Server(child, port, began_s)
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def upstream(folder: Path) -> Iterator[int]:
    """The upstream; its port."""
    port = free_port()
    with started([sys.executable, "-m", "tests.bench.upstream", str(port)], port, CORES[-1], folder):
        yield port


def configuration(upstream: int, folder: Path, port: int, ops_port: int) -> dict[str, Any]:
    """Sluice with all kinds of limits, prices, accounts and the log, none of them in the way."""
    plan = {
        "requests": ["100000000/minute"],
        "tokens": ["100000000000/minute", "1000000000000/month"],
        "spend": ["1000000000/month"],
        "concurrency": 100000,
    }
    return {
        "server": {"host": "127.0.0.1", "port": port, "write_stall": "10m"},
        "ops": {"host": "127.0.0.1", "port": ops_port},
        "upstreams": {"bench": {"base_url": f"http://127.0.0.1:{upstream}/v1", "api_keys": ["sk-upstream"]}},
        "models": {
            "mock*": {
                "routes": [{"upstream": "bench"}],
                "price": {"input": 1.0, "output": 2.0},
                "max_output_tokens": 1000,
            }
        },
        "plans": {"bench": plan},
        "keys": [{"id": "bench", "secret": KEY, "plan": "bench"}],
        "ledger": {"url": f"sqlite:///{folder}/ledger-{port}.db"},
        "log": {"level": "info"},
    }


def sluice(upstream: int, folder: Path, stored_keys: tuple[str, ...] = ()) -> Contender:
    """Sluice, accepting `stored_keys` of its ledger besides that of its configuration."""
    port = free_port()
    file = folder / f"sluice-{port}.yaml"
    config = configuration(upstream, folder, port, free_port())
    file.write_text(json.dumps(config))
    if stored_keys:
        store(config["ledger"]["url"], stored_keys)
    return Contender("sluice", [sys.executable, "-m", "proxy", "serve", "--config", str(file)], port, __version__)


def store(ledger_url: str, keys: tuple[str, ...]) -> None:
    """Put keys into a ledger, all at once; one by one, as `sluice keys create` does, 100,000 take minutes."""
    engine = open_database(ledger_url)
    migrate(engine)
    rows = [
        {
            "id": f"stored-{number:06}",
            "secret_sha256": hashlib.sha256(key.encode()).hexdigest(),
            "plan": "bench",
            "created_ms": 0,
            "revision": number,
        }
        for number, key in enumerate(keys, 1)
    ]
    with engine.begin() as connection:
        connection.execute(sa.insert(KEYS), rows)
        connection.execute(sa.update(KEY_REVISION).values(revision=len(rows)))
    engine.dispose()


def nginx(upstream: int, folder: Path) -> Contender | None:
    """nginx, where it is installed: what passing bytes on costs at least."""
    program = shutil.which("nginx", path=PLACES_OF_NGINX)
    if program is None:
        return None
    port = free_port()
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    return Contender("nginx", [program, "-c", str(file)], port, said.strip().rpartition("/")[2])


def smg(upstream: int, program: str) -> Contender | None:
    """A router in Rust, where it is installed. It keeps no keys, no quotas and no accounts either."""
    found = shutil.which(program)
    if found is None:
        return None
    port = free_port()
    words = f"launch --worker-urls http://127.0.0.1:{upstream} --host 127.0.0.1 --port {port} --policy round_robin"
    command = [found, *words.split(), "--sse-keepalive-secs", "0", "--prometheus-port", str(free_port())]
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    return Contender("smg", command, port, said.split()[-1])


def plain(upstream: int) -> Contender:
    """Twenty lines of aiohttp."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.plain_relay", str(port), str(upstream)]
    return Contender("plain aiohttp", command, port, aiohttp.__version__)
