"""`sluice` commands as a person runs them: child processes with a clean environment, in a terminal where one is due."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

_PATIENCE_S = LONG_S


class Child:
    """A command that runs. What it says is kept, each of its two streams as text."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = ""
        self.errors = ""

    async def errors_until(self, beginning: str) -> str:
        """Read what it says on standard error until a line with this beginning; the line."""
        assert self.process.stderr is not None
        while True:
            line = (await asyncio.wait_for(self.process.stderr.readline(), _PATIENCE_S)).decode()
            self.errors += line
            if line.startswith(beginning):
                return line.rstrip("\n")
            assert line, f"it ended without a line {beginning!r}:\n{self.errors}"

    async def out_until(self, beginning: str) -> str:
        """Read its standard output until a line with this beginning; the line."""
        assert self.process.stdout is not None
        while True:
            line = (await asyncio.wait_for(self.process.stdout.readline(), _PATIENCE_S)).decode()
            self.out += line
            if line.startswith(beginning):
                return line.rstrip("\n")
            assert line, f"it ended without a line {beginning!r}:\n{self.out}"

    async def ends(self, typed: str | None = None) -> int:
        """Give it its input, read on to the end; the exit code."""
        data = None if typed is None else typed.encode()
        out, errors = await asyncio.wait_for(self.process.communicate(data), _PATIENCE_S)
        self.out += out.decode()
        self.errors += errors.decode()
        assert self.process.returncode is not None
        return self.process.returncode

    async def interrupted(self) -> int:
        """Press Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return await self.ends()


def environment(home: Path, **extra: str) -> dict[str, str]:
    """An environment without anybody's keys and settings."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb", **extra}


@contextlib.asynccontextmanager
async def command(
    *words: str, env: dict[str, str], has_input: bool = False, closed: Sequence[int] = ()
) -> AsyncIterator[Child]:
    """Run `sluice` with these words; whatever happens, it has ended afterwards. It begins with descriptors `closed`."""
    close = " ".join(f"{descriptor}>&-" for descriptor in closed)
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'exec "$@" {close}', "sh"),
        *(sys.executable, "-m", "proxy", *words),
        env=env,
        stdin=asyncio.subprocess.PIPE if has_input else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


class Terminal:
    """A terminal with a command in it: what is typed arrives as from a keyboard, Ctrl-C included."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self.shown = ""
        self._loop.add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the command has ended
            data = b""
        if not data:
            self._loop.remove_reader(self._master)
        self.shown += data.decode(errors="replace")
        self._news.set()

    async def shows(self, text: str) -> None:
        """Wait until this stands on the screen, and forget what stands before it."""

        async def look() -> None:
            while text not in self.shown:
                self._news.clear()
                await self._news.wait()

        try:
            await asyncio.wait_for(look(), _PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"{text!r} is not on the screen:\n{self.shown}") from None
        self.shown = self.shown.partition(text)[2]

    def type(self, keys: str) -> None:
        """Press keys; a control character is what its key combination sends."""
        os.write(self._master, keys.encode())


@contextlib.asynccontextmanager
async def in_terminal(*words: str, env: dict[str, str]) -> AsyncIterator[tuple[Terminal, asyncio.subprocess.Process]]:
    """Run `sluice` with these words in a terminal of its own."""
    master, slave = os.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"),
        *("-m", "proxy", *words),
        env=env,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    terminal = Terminal(master)
    try:
        yield terminal, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)
