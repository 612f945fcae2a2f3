"""A real Prometheus for tests: `prometheus` and `promtool` of the PATH; root installs Debian's package where they miss.

Where neither is to be had, tests are skipped, and say why.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from tests.fakes.client import RecordingClient
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator

_READY_S = LONG_S
_INSTALLING_S = 100.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_NAMES = ("prometheus", "promtool")


@functools.cache
def program(name: str) -> str:
    """The path of `prometheus` or `promtool`. Skips the test where it is not to be had."""
    why = "" if shutil.which(name) else _install()
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name.upper()} IS NOT INSTALLED, nothing of it was tested: {why}")
    return found


@functools.cache
def _install() -> str:
    """Install Debian's package; why that failed, if it did."""
    if os.geteuid() != 0:
        return "not on the PATH, and only root may install Debian's package `prometheus`"
    if shutil.which("apt-get") is None:
        return "not on the PATH, and there is no apt-get"
    options = ("-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=60")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    why = ""
    for command in (("update", "-qq"), ("install", *options, "prometheus")):
        try:
            done = subprocess.run(
                ["apt-get", *command], env=quiet, capture_output=True, text=True, timeout=_INSTALLING_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"apt-get {command[0]} did not end"
        why = f"apt-get {command[0]}: {(done.stderr.strip() or 'done').splitlines()[-1]}"
    if Path("/run/systemd/system").exists():
        # the package starts a service, which nobody asked for
        subprocess.run(["systemctl", "disable", "--now", "prometheus"], capture_output=True, check=False)
    return why


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    return subprocess.run([program("promtool"), *words], capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Prometheus:
    """A server that scrapes, and evaluates rules, every second."""

    port: int

    async def ask(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of its HTTP API. Fails with what it says of a query that it does not understand."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        async with await RecordingClient.connect(self.port) as client:
            answer = await client.ask("GET", f"/api/v1/{path}{query}", key=None)
        assert answer.status == 200, f"{parameters}: {answer.body.decode()}"
        return answer.json["data"]

    async def values(self, expression: str) -> list[float]:
        """The values of an instant query, without those that are no number: 0/0 is none."""
        found = await self.ask("query", query=expression)
        samples = [found] if found["resultType"] == "scalar" else found["result"]
        values = [float(sample[1] if found["resultType"] == "scalar" else sample["value"][1]) for sample in samples]
        return [value for value in values if value == value]  # noqa: PLR0124 - NaN is not equal to itself


@contextlib.contextmanager
def running_prometheus(folder: Path, jobs: dict[str, list[str]], rules: list[Path]) -> Iterator[Prometheus]:
    """A server that scrapes the targets (`host:port`) of each job, on a free port, gone afterwards."""
    scrape_configs = [{"job_name": job, "static_configs": [{"targets": targets}]} for job, targets in jobs.items()]
    settings = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "scrape_configs": scrape_configs,
        "rule_files": [str(file) for file in rules],
    }
    configuration, log = folder / "prometheus.yml", folder / "log"
    configuration.write_text(json.dumps(settings))  # which is YAML, too
    command = [
        program("prometheus"),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--log.level=info",
    ]
    die = functools.partial(ctypes.CDLL(None).prctl, _DIE_WITH_PARENT, signal.SIGKILL)
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=die)  # noqa: PLW1509 - a system call and nothing else
    try:
        yield Prometheus(_listening(process, log))
    finally:
        process.kill()
        process.wait(_READY_S)


def _listening(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until it serves; the port that it took, which its log alone says."""
    deadline_s = time.monotonic() + _READY_S
    while "Server is ready" not in (said := log.read_text()):
        assert process.poll() is None, said
        assert time.monotonic() < deadline_s, said
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    found = re.search(r'msg="Listening on" address=127\.0\.0\.1:(\d+)|Listening on.*?127\.0\.0\.1:(\d+)', said)
    assert found is not None, said
    return int(found[1] or found[2])
