"""Where workers' processes come from: forked, told of when they end, and had again when that which is forked from dies.

What is forked here is a worker that hears nothing from its supervisor: it ends when its pair is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from proxy.control import Born, Channel, Fork, NotBorn, framed
from proxy.nursery import Nursery, Process
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ASKED: Final = Fork(frozenset({"sqlalchemy.dialects.sqlite.pysqlite", "proxy.not_there"}), frozenset({"o200k_base"}))


@pytest.fixture
async def nursery() -> AsyncIterator[Nursery]:
    nursery = Nursery()
    yield nursery
    await nursery.close()


@contextlib.asynccontextmanager
async def forked(nursery: Nursery) -> AsyncIterator[tuple[Process, socket.socket]]:
    """A process, and our end of its pair."""
    ours, theirs = socket.socketpair()
    with ours, socket.create_server(("127.0.0.1", 0)) as api:
        with theirs:
            process = await asyncio.wait_for(nursery.fork(ASKED, (theirs.fileno(), api.fileno())), LONG_S)
        yield process, ours


def parent_of(process: Process) -> psutil.Process:
    parent = psutil.Process(process.pid).parent()
    assert parent is not None
    return parent


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


async def ended(process: Process) -> int | None:
    return await asyncio.wait_for(process.wait(), LONG_S)


async def test_it_forks_and_tells_how_each_process_ended(nursery: Nursery) -> None:
    async with forked(nursery) as (closed, its_pair), forked(nursery) as (killed, _), forked(nursery) as (signalled, _):
        parent = parent_of(closed)
        assert parent == parent_of(killed) == parent_of(signalled)
        assert parent.parent() == psutil.Process()
        assert parent.num_threads() == 1, "a fork would inherit the locks of others"
        its_pair.close()
        killed.kill()
        os.kill(signalled.pid, signal.SIGTERM)
        assert [await ended(one) for one in (closed, killed, signalled)] == [1, -signal.SIGKILL, -signal.SIGTERM]
        assert parent.children() == [], "who has ended is buried"
        killed.kill()  # does nothing: another process may have its number


async def test_a_process_has_what_it_was_given_and_nothing_else(nursery: Nursery) -> None:
    """A listener of which it kept a copy would let clients connect that nobody serves."""
    async with forked(nursery) as (first, _), forked(nursery) as (second, _):
        for process in (first, second):
            seen = psutil.Process(process.pid)
            await until(lambda seen=seen: seen.num_threads() >= 1 and bool(seen.net_connections("inet")), "it is there")  # type: ignore[misc]
            assert len(seen.net_connections("inet")) == 1
            assert os.getsid(process.pid) == process.pid
        assert parent_of(first).net_connections("inet") == []


async def test_signals_of_a_service_manager_are_not_its_own(nursery: Nursery) -> None:
    async with forked(nursery) as (process, _):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            parent_of(process).send_signal(number)
        async with forked(nursery) as (another, _):
            assert parent_of(another) == parent_of(process)


async def test_another_takes_its_place_when_it_dies_and_its_processes_go_on(nursery: Nursery) -> None:
    async with forked(nursery) as (orphan, _):
        parent_of(orphan).kill()
        assert await ended(orphan) is None, "nobody is left who would know"
        assert psutil.pid_exists(orphan.pid)
        async with forked(nursery) as (process, _):
            assert parent_of(process).parent() == psutil.Process()
        orphan.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            await asyncio.to_thread(psutil.Process(orphan.pid).wait, LONG_S)


@pytest.fixture
def _inherits_orphans() -> Iterator[None]:
    """As the first process of a container does."""
    prctl, set_child_subreaper = ctypes.CDLL(None, use_errno=True).prctl, 36  # prctl(2)
    assert prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    yield
    prctl(set_child_subreaper, 0, 0, 0, 0)


@pytest.mark.usefixtures("_inherits_orphans")
async def test_orphans_that_the_supervisor_inherits_are_buried(nursery: Nursery) -> None:
    async with forked(nursery) as (orphan, _):
        parent = parent_of(orphan)
        parent.kill()
        assert await ended(orphan) is None
        async with forked(nursery):
            assert parent_of(orphan) == psutil.Process(), "inherited, and it goes on"
        orphan.kill()
        await until(lambda: not is_alive(orphan.pid), "its end")
        async with forked(nursery):
            assert not psutil.pid_exists(orphan.pid)


async def test_one_that_dies_while_it_is_asked_fails_the_start(nursery: Nursery) -> None:
    async with forked(nursery) as (process, _):
        parent = parent_of(process)
        parent.suspend()
        with contextlib.ExitStack() as stack:
            stack.callback(parent.kill)
            asking = asyncio.ensure_future(nursery.fork(ASKED, ()))
            await asyncio.sleep(0)
        with pytest.raises(OSError, match="that workers are forked from has ended"):
            await asyncio.wait_for(asking, LONG_S)


FAILS_ONCE: Final = """
import errno, os, socket, sys
from proxy.prefork import fork_when_asked
fork = os.fork
def no_fork():
    os.fork = fork
    raise OSError(errno.EAGAIN, "no more processes")
os.fork = no_fork
fork_when_asked(socket.socket(fileno=int(sys.argv[1])))
"""


async def test_a_fork_that_fails_is_told_and_the_next_may_do() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FAILS_ONCE, str(theirs.fileno())), pass_fds=(theirs.fileno(),)
        )
    channel = await Channel.over(ours.dup())
    with ours, socket.socket() as one, socket.socket() as other:
        answers = []
        for _ in range(2):
            socket.send_fds(ours, [framed(ASKED)], [one.fileno(), other.fileno()])
            answers.append(await asyncio.wait_for(channel.receive(), LONG_S))
    assert answers[0] == NotBorn(errno.EAGAIN)
    assert isinstance(answers[1], Born)
    await channel.close()
    assert await asyncio.wait_for(process.wait(), LONG_S) == 0


async def test_one_that_hangs_is_killed_and_so_is_what_it_was_to_kill() -> None:
    """A supervisor that waits for it for ever could neither replace its workers nor end."""
    nursery = Nursery(kill_s=0.2)
    try:
        async with forked(nursery) as (process, _), forked(nursery) as (other, _):
            parent = parent_of(process)
            parent.suspend()
            process.kill()
            assert await ended(process) is None, "nobody knows how"
            await until(lambda: not is_alive(process.pid), "it is killed all the same")
            assert is_alive(other.pid)
            async with forked(nursery) as (another, _):
                assert parent_of(another) != parent
    finally:
        await nursery.close()


async def test_one_that_does_not_fork_in_time_fails_the_start_and_another_takes_its_place() -> None:
    nursery = Nursery(fork_s=LONG_S)
    try:
        async with forked(nursery) as (process, _):
            parent = parent_of(process)
            parent.suspend()
            nursery._fork_s = 0.1
            with pytest.raises(TimeoutError, match="that workers are forked from does not answer"):
                await nursery.fork(ASKED, ())
            nursery._fork_s = LONG_S
            async with forked(nursery) as (another, _):
                assert parent_of(another) != parent
    finally:
        await nursery.close()


async def test_who_waits_for_a_process_is_told_when_all_is_closed(nursery: Nursery) -> None:
    async with forked(nursery) as (process, _):
        parent = parent_of(process)
        parent.suspend()
        asking = [asyncio.ensure_future(nursery.fork(ASKED, ())) for _ in range(2)]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(nursery.close())
        for asked in asking:
            with pytest.raises(OSError, match=r"has ended|canceled"):
                await asyncio.wait_for(asked, LONG_S)
        assert await ended(process) is None
        parent.resume()
        await asyncio.wait_for(closing, LONG_S)


async def test_a_process_that_nobody_waits_for_any_more_is_given_to_nobody_else(nursery: Nursery) -> None:
    async with forked(nursery) as (process, _):
        parent = parent_of(process)
        parent.suspend()
        ours, theirs = socket.socketpair()
        with ours, theirs, socket.create_server(("127.0.0.1", 0)) as api:
            given_up = asyncio.ensure_future(nursery.fork(ASKED, (theirs.fileno(), api.fileno())))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.wait([given_up])
        parent.resume()
        async with forked(nursery) as (another, _):
            await until(lambda: len(parent.children()) == 2, "the one that was given up ends by itself")
            assert {child.pid for child in parent.children()} == {process.pid, another.pid}
