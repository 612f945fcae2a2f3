"""`sluice serve` as a process of its own: its configuration in a file, its addresses from its banner."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.fakes.forking import fork
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.fakes.forking import Forked

_ROOT = Path(__file__).parents[2]


@dataclass
class Served:
    """A proxy in a process of its own. `out` and `err` are what it has written so far."""

    process: asyncio.subprocess.Process | Forked
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    port: int = 0
    ops_port: int = 0
    _readers: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def workers(self) -> dict[int, psutil.Process]:
        """The processes of its workers by their ids; none where it works itself."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return {child.pid: child for nursery in psutil.Process(self.pid).children() for child in nursery.children()}
        return {}

    def kill(self) -> None:
        """End it and its workers without a word."""
        workers = self.workers.values()
        if self.process.returncode is None:
            self.process.kill()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log lines so far, as far as they are whole."""
        return [json.loads(line) for line in self.out.decode().splitlines(keepends=True) if line.endswith("\n")]

    @property
    def exchanges(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == "exchange"]

    async def exit_code(self, within_s: float = LONG_S) -> int:
        """Wait for its end, and for the last of its output."""
        code = await asyncio.wait_for(self.process.wait(), within_s)
        await asyncio.gather(*self._readers)
        return code

    def follow(self) -> None:
        """Collect its output."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        loop = asyncio.get_running_loop()
        for stream, collected in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            self._readers.append(loop.create_task(_collect(stream, collected)))

    async def listening(self) -> None:
        """Wait for the banner, which names both ports."""
        await until(lambda: b"curl" in self.err or self.process.returncode is not None, "a banner on standard error")
        found = re.search(r"API +https?://[^:]+:(\d+)/v1\s+operators +http://[^:]+:(\d+)", self.err.decode())
        assert found is not None, self.err.decode()
        self.port, self.ops_port = int(found[1]), int(found[2])


async def _collect(stream: asyncio.StreamReader, collected: bytearray) -> None:
    while data := await stream.read(65536):
        collected += data


async def start(
    config: dict[str, Any],
    folder: Path,
    loop: str = "uvloop",
    *,
    words: tuple[str, ...] = (),
    program: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Served:
    """Start it on `config`, which JSON writes as YAML, with more `words` on its command line; not yet listening.

    Without a `program`, the module that is run, it is forked from a process that has imported everything.
    """
    file = folder / "sluice.yaml"
    file.write_text(json.dumps(config))
    command = ("serve", "--config", str(file), *words)
    environment = {**os.environ, "SLUICE_LOOP": loop, "PYTHONWARNINGS": "error", **(environ or {})}
    process: asyncio.subprocess.Process | Forked
    if program is None:
        process = await fork(command, environment)
    else:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", program, *command),
            cwd=_ROOT,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    served = Served(process)
    served.follow()
    return served


@contextlib.asynccontextmanager
async def served(
    config: dict[str, Any], folder: Path, loop: str = "uvloop", *, program: str | None = None, **environ: str
) -> AsyncIterator[Served]:
    """A proxy that listens; killed at the end, if it still runs."""
    proxy = await start(config, folder, loop, program=program, environ=environ)
    try:
        await proxy.listening()
        yield proxy
    finally:
        proxy.kill()
        await proxy.exit_code()
