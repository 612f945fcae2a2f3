"""nginx, Envoy and HAProxy before Sluice, on the configurations of deploy/front/ with addresses of the test."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
import trustme

from tests.fakes.redis import free_port
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

FOLDER: Final = Path(__file__).parents[2] / "deploy" / "front"
NAMES: Final = ("nginx", "envoy", "haproxy")

_READY_S = LONG_S
_Backend = tuple[int, int]  # the ports of the API and of operators


class Front(NamedTuple):
    """A balancer that runs: the port it listens on, and how clients speak TLS to it, if they do."""

    port: int
    tls: ssl.SSLContext | None


def program(name: str) -> str:
    """Where the balancer is; without it the test is skipped, and says so."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=f"{beside}:/usr/sbin:/usr/local/sbin") or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: its configuration in deploy/front was NOT tried")
    return found


def checking(name: str, file: Path) -> list[str]:
    """The command by which the program itself checks a configuration."""
    words = {
        "nginx": ["-t", "-e", "stderr", "-c", str(file)],
        "envoy": ["--mode", "validate", "--log-level", "error", "-c", str(file)],
        "haproxy": ["-c", "-f", str(file)],
    }
    return [program(name), *words[name]]


def written(name: str, folder: Path, port: int, backends: Sequence[_Backend]) -> Path:
    """The shipped configuration with a test's ports, certificate and folder in place of what stands there."""
    source, adapt = {
        "nginx": ("nginx.conf", _nginx),
        "envoy": ("envoy.yaml", _envoy),
        "haproxy": ("haproxy.cfg", _haproxy),
    }[name]
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    certificate.private_key_pem.write_to_path(str(folder / "tls.key"))
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(folder / "tls.crt"), append=True)
    file = folder / source
    file.write_text(adapt((FOLDER / source).read_text(), folder, port, backends))
    return file


def _replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert text.count(old) == 1, f"{old!r} stands there {text.count(old)} times"
        text = text.replace(old, new)
    return text


def _nginx(text: str, folder: Path, port: int, backends: Sequence[_Backend]) -> str:
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{path}_temp_path {folder};" for path in paths)
    servers = " ".join(f"server 127.0.0.1:{api} max_fails=3 fail_timeout=5s;" for api, _ in backends)
    return _replaced(
        text,
        ("worker_processes auto;", "worker_processes 1;"),
        ("worker_rlimit_nofile 65536;", ""),
        ("worker_connections 20000;", "worker_connections 512;"),
        ("pid /run/nginx.pid;", f"pid {folder}/nginx.pid;"),
        ("http {\n", f"http {{ {temporary}\n"),
        ("    server 127.0.0.1:8080 max_fails=3 fail_timeout=5s;", servers),
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{port} ssl http2;"),
        ("/etc/nginx/tls/tls.crt", f"{folder}/tls.crt"),
        ("/etc/nginx/tls/tls.key", f"{folder}/tls.key"),
    )


def _envoy(text: str, folder: Path, port: int, backends: Sequence[_Backend]) -> str:
    first = text[text.index("              - endpoint:\n") : text.index("              # - endpoint:")]
    endpoints = "".join(
        _replaced(first, ("port_value: 8080", f"port_value: {api}"), ("port_value: 9090", f"port_value: {ops}"))
        for api, ops in backends
    )
    return _replaced(
        text,
        (first, endpoints),
        ("          interval: 1s\n", "          interval: 0.1s\n"),
        ("no_traffic_interval: 1s ", "no_traffic_interval: 0.1s "),
        ("{address: 0.0.0.0, port_value: 8443}", f"{{address: 127.0.0.1, port_value: {port}}}"),
        ("/etc/envoy/tls/tls.crt", f"{folder}/tls.crt"),
        ("/etc/envoy/tls/tls.key", f"{folder}/tls.key"),
    )


def _haproxy(text: str, _folder: Path, port: int, backends: Sequence[_Backend]) -> str:
    servers = "\n".join(f"  server s{api} 127.0.0.1:{api} port {ops}" for api, ops in backends)
    return _replaced(
        text,
        ("  maxconn 20000\n", "  maxconn 500\n"),
        ("bind :8443", f"bind 127.0.0.1:{port}"),
        ("  server a 127.0.0.1:8080\n", f"{servers}\n"),
        ("check inter 1s fall 2 rise 1 port 9090", "check inter 100ms fall 2 rise 1"),
    )


@contextlib.asynccontextmanager
async def front(name: str, folder: Path, backends: Sequence[_Backend]) -> AsyncIterator[Front]:
    """Run a balancer before `backends`; it has ended afterwards."""
    port = free_port()
    file = written(name, folder, port, backends)
    words = {
        "nginx": ["-e", "stderr", "-g", "daemon off;", "-c", str(file)],
        "envoy": ["--disable-hot-restart", "--concurrency", "1", "--log-level", "error", "-c", str(file)],
        "haproxy": ["-db", "-f", str(file)],
    }[name]
    with (folder / "front.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(program(name), *words, stdout=log, stderr=log)
    try:
        await until(_listens(port, process), f"{name} on port {port}", _READY_S)
        assert process.returncode is None, (folder / "front.log").read_text()
        tls = None if name == "haproxy" else ssl.create_default_context(cafile=str(folder / "ca.crt"))
        yield Front(port, tls)
    finally:
        if process.returncode is None:
            process.terminate()  # nginx takes its workers along, as it could not if it were killed
        await asyncio.wait_for(process.wait(), _READY_S)


def _listens(port: int, process: asyncio.subprocess.Process) -> Callable[[], bool]:
    def look() -> bool:
        with socket.socket() as sock:
            return process.returncode is not None or sock.connect_ex(("127.0.0.1", port)) == 0

    return look
