"""What an event and a request cost in the proxy, beside nginx where it is installed: `make bench`.

The upstream is `sluice simulate`, the load client is this process; each contender takes its turn under the same load.
CPU is user and system time of the contender's processes. Only the ratios carry over to another machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-bench-0123456789"
NGINX = """worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream u {{ server 127.0.0.1:{upstream}; keepalive 500; }}
  server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000;
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    location / {{ proxy_pass http://u; }} }} }}
"""
SLUICE = """server: {{port: {port}}}
ops: {{port: {ops}}}
upstreams: {{simulator: {{base_url: "http://127.0.0.1:{upstream}/v1", auth: none}}}}
keys: [{{id: bench, secret: {key}}}]
"""


@dataclass(frozen=True)
class Work:
    """A load: so many requests, so many at a time."""

    name: str
    unit: str
    model: str
    stream: bool
    requests: int
    at_once: int


@dataclass
class Figure:
    """What one unit of work cost in a contender's processes, in microseconds of CPU."""

    contender: str
    work: str
    unit: str
    units: int
    cpu_us_per_unit: float
    ratio_to_nginx: float | None = None


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def started(command: list[str], port: int) -> Iterator[psutil.Process]:
    """Run a server until it listens; end it by its own process id."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            sys.exit(f"did not start: {command}")
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def cpu_s(process: psutil.Process) -> float:
    """User and system time of a process and its children, in seconds."""
    every = [process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in every)


async def request_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, payload: bytes) -> int:
    """One request on a kept-alive connection; the number of events of its answer, 1 for one that is no stream."""
    writer.write(payload)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(head.decode())
    if b"transfer-encoding: chunked" not in head:
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        return 1
    events = 0
    while size := int(await reader.readuntil(b"\r\n"), 16):
        events += (await reader.readexactly(size + 2)).count(b"\n\n")
    await reader.readexactly(2)
    return max(events, 1)


async def load(port: int, work: Work) -> int:
    """Do the work; the number of its units that were done: events of streams, else requests."""
    body = json.dumps({"model": work.model, "stream": work.stream, "messages": [{"role": "user", "content": "Hi"}]})
    payload = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    left = iter(range(work.requests))
    units = 0

    async def client() -> None:
        nonlocal units
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            events = await request_on(reader, writer, payload)
            units += events if work.unit == "event" else 1
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(work.at_once)))
    return units


def measure(name: str, process: psutil.Process, port: int, works: list[Work]) -> list[Figure]:
    """The cost of each work, after a short warm-up."""
    figures = []
    for work in works:
        asyncio.run(load(port, Work(work.name, work.unit, work.model, work.stream, work.at_once, work.at_once)))
        before = cpu_s(process)
        units = asyncio.run(load(port, work))
        used_us = (cpu_s(process) - before) * 1e6
        figures.append(Figure(name, work.name, work.unit, units, used_us / units))
    return figures


def contenders(upstream: int, folder: Path) -> Iterator[tuple[str, list[str], int]]:
    """The proxies that are there: a name, a command and the port it listens on."""
    if (nginx := shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")) is not None:
        port = free_port()
        file = folder / "nginx.conf"
        file.write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
        yield "nginx", [nginx, "-c", str(file)], port
    port = free_port()
    file = folder / "sluice.yaml"
    file.write_text(SLUICE.format(port=port, ops=free_port(), upstream=upstream, key=KEY))
    yield "sluice", [sys.executable, "-m", "proxy", "serve", "--config", str(file)], port


def show(figures: list[Figure]) -> None:
    """Print the table."""
    print(f"{'work':42}{'contender':>10}{'units':>9}{'CPU us/unit':>13}{'x nginx':>9}")
    for figure in figures:
        ratio = "" if figure.ratio_to_nginx is None else f"{figure.ratio_to_nginx:.2f}"
        line = f"{figure.work:42}{figure.contender:>10}{figure.units:>9}{figure.cpu_us_per_unit:>13.1f}{ratio:>9}"
        print(line)


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of requests")
    args = parser.parse_args()
    works = [
        Work("an event, 50 streams x 100 events/s", "event", "sim-200t-10ms", True, int(100 * args.scale), 50),
        Work("a stream of 13 events, 20 at a time", "stream", "sim-fast-10t", True, int(1000 * args.scale), 20),
        Work("a request without a stream, 20 at a time", "request", "sim-fast-10t", False, int(2000 * args.scale), 20),
    ]
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        upstream = free_port()
        simulator = [sys.executable, "-m", "proxy", "simulate", "--port", str(upstream)]
        with started(simulator, upstream):
            for name, command, port in contenders(upstream, Path(folder)):
                with started(command, port) as process:
                    figures += measure(name, process, port, works)
    base = {figure.work: figure.cpu_us_per_unit for figure in figures if figure.contender == "nginx"}
    for figure in figures:
        if base.get(figure.work):
            figure.ratio_to_nginx = figure.cpu_us_per_unit / base[figure.work]
    figures.sort(key=lambda figure: figure.work)
    show(figures)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))


if __name__ == "__main__":
    main()
