"""A supervisor and its workers: starts that fail, signals, deaths, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, Self

import psutil
import pytest

from tests.fakes import served
from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.fleet import configuration, fleet, readiness, scrape, total
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.client import Answer
    from tests.fakes.served import Served

CHAT: Final = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
WHOLE: Final = {"model": "m", "messages": []}
STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
NOWHERE: Final = "http://127.0.0.1:1/v1"
STORE: Final = "redis://127.0.0.1:1"  # of which nobody asks anything


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def ask(proxy: Served) -> Answer:
    async with await RecordingClient.connect(proxy.port) as client:
        return await client.ask("POST", "/v1/chat/completions", WHOLE)


async def begin_stream(proxy: Served, upstream: RawUpstream) -> tuple[RecordingClient, Answer]:
    client = await RecordingClient.connect(proxy.port)
    client.send("POST", "/v1/chat/completions", CHAT)
    peer = await upstream.accept()
    await peer.answer(STREAM_HEAD + chunk(EVENT))
    answer = await client.head()
    await client.piece(answer)
    return client, answer


def said(proxy: Served, event: str) -> list[dict[str, Any]]:
    return [line for line in proxy.lines if line["event"] == event]


async def test_a_ledger_that_cannot_be_opened_is_one_line_and_exit_1(tmp_path: Path) -> None:
    """Both workers fail: the first to say why ends the start, and nothing is tried again."""
    config = configuration(NOWHERE, STORE, tmp_path)
    config["ledger"]["url"] = f"sqlite:///{tmp_path / 'missing' / 'ledger.db'}"
    proxy = await served.start(config, tmp_path)
    assert await proxy.exit_code(LONG_S) == 1
    [line] = proxy.err.decode().splitlines()
    assert line.startswith("sluice: the ledger ")
    assert "No such file or directory" in line
    assert proxy.lines == []


async def test_an_address_in_use_is_one_line_and_exit_1(tmp_path: Path) -> None:
    config = configuration(NOWHERE, STORE, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for section in ("server", "ops"):
            port = taken.getsockname()[1]
            proxy = await served.start(config | {section: config[section] | {"port": port}}, tmp_path)
            assert await proxy.exit_code(LONG_S) == 1
            assert proxy.err.decode() == (
                f"sluice: cannot listen on 127.0.0.1:{port} ({section}.host, {section}.port): Address already in use\n"
            )


@pytest.mark.parametrize(
    ("setting", "url", "problem"),
    [
        (
            "store",
            "memory://",
            "more than one worker needs a shared store, such as redis://: limits would hold per worker",
        ),
        ("ledger", "sqlite:///:memory:", "more than one worker needs a ledger that they share: in memory each"),
    ],
)
async def test_what_workers_cannot_share_is_refused_on_the_command_line_too(
    tmp_path: Path, setting: str, url: str, problem: str
) -> None:
    config = configuration(NOWHERE, STORE, tmp_path, workers=1)
    config[setting]["url"] = url
    proxy = await served.start(config, tmp_path, words=("--workers", "2"))
    assert await proxy.exit_code(LONG_S) == 1
    assert proxy.err.decode().startswith(f"sluice: {problem}")


async def test_the_number_of_workers_from_the_command_line(tmp_path: Path) -> None:
    config = configuration(NOWHERE, STORE, tmp_path, workers=1)
    proxy = await served.start(config, tmp_path, words=("--workers", "3"))
    try:
        await proxy.listening()
        assert len(proxy.workers) == 3
        # of the 180 MiB that each has, it shares what was loaded before it was forked
        assert max(worker.memory_full_info().uss for worker in proxy.workers.values()) < 40 * 2**20
        assert total((await scrape(proxy))[1], "sluice_workers") == 3
        commands = " ".join(word for worker in proxy.workers.values() for word in worker.cmdline())
        assert "sk-" not in commands
        proxy.process.send_signal(signal.SIGTERM)
        assert await proxy.exit_code(LONG_S) == 0
    finally:
        proxy.kill()
        await proxy.exit_code(LONG_S)


async def test_a_second_signal_ends_the_drain_at_once(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = tmp_path / number.name
        folder.mkdir()
        with RawUpstream() as upstream:
            url = f"http://127.0.0.1:{upstream.port}/v1"
            async with fleet(url, folder, notice="10m", drain="10m") as proxy:
                client, answer = await begin_stream(proxy, upstream)
                # as from a terminal: to the supervisor, and to everybody in its group
                for pid in (proxy.pid, *proxy.workers) * 2:
                    os.kill(pid, number)
                    await until(lambda: len(said(proxy, "draining")) >= 1, "the drain to begin", LONG_S)
                while await client.piece(answer):
                    continue
                assert b'"code":"draining"' in answer.body
                assert answer.body.endswith(b"data: [DONE]\n\n")
                assert await proxy.exit_code(LONG_S) == 0
                await client.close()
        assert b"Traceback" not in proxy.err


async def test_signals_to_the_workers_alone_do_not_hurry_a_drain(tmp_path: Path) -> None:
    """A service manager sends SIGTERM to every process of the service; each gets it twice then."""
    rest = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    with RawUpstream() as upstream:
        async with fleet(f"http://127.0.0.1:{upstream.port}/v1", tmp_path) as proxy:
            client = await RecordingClient.connect(proxy.port)
            client.send("POST", "/v1/chat/completions", CHAT)
            peer = await upstream.accept()
            await peer.answer(STREAM_HEAD + chunk(EVENT))
            answer = await client.head()
            for pid in (*proxy.workers, proxy.pid, *proxy.workers):
                os.kill(pid, signal.SIGTERM)
            await until(lambda: len(said(proxy, "draining")) == 3, "all drain", LONG_S)
            await peer.send(chunk(rest) + b"0\r\n\r\n")
            while await client.piece(answer):
                continue
            assert (answer.body, answer.whole) == (EVENT + rest, True)
            assert await proxy.exit_code(LONG_S) == 0
            await client.close()


async def test_workers_whose_supervisor_is_killed_finish_and_free_the_address(tmp_path: Path) -> None:
    with RawUpstream() as upstream:
        async with fleet(f"http://127.0.0.1:{upstream.port}/v1", tmp_path, notice="10m", drain="1s") as proxy:
            client, answer = await begin_stream(proxy, upstream)
            workers = proxy.workers
            proxy.process.kill()
            while await client.piece(answer):
                continue
            assert b'"code":"draining"' in answer.body  # it was told, after the second that it had
            await until(lambda: not any(is_alive(worker) for worker in workers.values()), "they end", LONG_S)
            with socket.create_server(("127.0.0.1", proxy.port), reuse_port=False):
                pass
            await client.close()
            assert await proxy.exit_code(LONG_S) == -signal.SIGKILL


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def test_a_worker_that_dies_again_and_again_is_told_of(tmp_path: Path) -> None:
    """The other one serves on; the pauses grow; readiness and the log say so."""
    async with AnsweringUpstream() as upstream, fleet(upstream.url, tmp_path) as proxy:
        [steady, *_] = proxy.workers
        for deaths in range(5):
            await until(lambda: len(proxy.workers) == 2, "both run", LONG_S)
            [dying] = [worker for pid, worker in proxy.workers.items() if pid != steady]
            dying.kill()
            await until(lambda deaths=deaths: len(deaths_of(proxy)) == deaths + 1, "it is told", LONG_S)  # type: ignore[misc]
        assert [line["next_in_s"] for line in deaths_of(proxy)] == [0.1, 0.2, 0.4, 0.8, 1.6]
        assert {line["worker"] for line in deaths_of(proxy)} == {deaths_of(proxy)[0]["worker"]}
        assert (await ask(proxy)).status == 200
        number = deaths_of(proxy)[0]["worker"]

        async def only_the_loop_is_left() -> bool:
            return await readiness(proxy) == (503, [f"worker {number} dies again and again"])

        await until_asked(only_the_loop_is_left, "a replacement that runs", LONG_S)
    assert [line["level"] for line in said(proxy, "worker dies again and again")] == ["error"]


def deaths_of(proxy: Served) -> list[dict[str, Any]]:
    return [line for line in proxy.lines if line["event"] in ("worker died", "worker dies again and again")]


class Manager:
    """What systemd does: it listens, hands over the socket, and is told of the service's states."""

    def __init__(self, address: str) -> None:
        self.told: list[bytes] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(address)
        self._sock.setblocking(False)

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._sock, lambda: self.told.append(self._sock.recv(1000)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("abstract", [False, True])
async def test_systemd_gives_the_socket_and_is_told(tmp_path: Path, workers: int, *, abstract: bool) -> None:
    address = f"@sluice-{os.getpid()}-{workers}" if abstract else str(tmp_path / "notify")
    config = configuration(NOWHERE, STORE, tmp_path, workers=workers)
    config["server"]["port"] = 1  # which nobody but root could have, and nobody asks for
    (tmp_path / "sluice.yaml").write_text(json.dumps(config))
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    # LISTEN_PID names the process itself, which execs
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
        "os.execv(sys.executable, [sys.executable, '-m', 'proxy', 'serve', '--config', sys.argv[2]])"
    )
    with Manager(address.replace("@", "\0")) as manager, listening:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, str(listening.fileno()), str(tmp_path / "sluice.yaml")),
            pass_fds=(listening.fileno(),),
            env={**os.environ, "NOTIFY_SOCKET": address},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        proxy = served.Served(process)
        proxy.follow()
        try:
            await proxy.listening()
            assert proxy.port == port
            async with await RecordingClient.connect(port) as client:
                assert (await client.ask("GET", "/v1/models")).status == 200
            await until(lambda: manager.told == [b"READY=1"], "it is told of the start")
            process.send_signal(signal.SIGTERM)
            assert await proxy.exit_code(LONG_S) == 0
            await until(lambda: manager.told == [b"READY=1", b"STOPPING=1"], "it is told of the stop")
        finally:
            proxy.kill()
            await proxy.exit_code(LONG_S)
