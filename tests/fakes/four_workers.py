"""Two processes of two workers each, on one Redis and one PostgreSQL, behind the plain TCP balancer of deploy/front."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.deploy.fronts import program, written
from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.commands import command, environment
from tests.fakes.fleet import until_ready
from tests.fakes.line import LAST_CHUNK, chunk
from tests.fakes.quota_burst import CHAT, answer, request, used_by
from tests.fakes.recordings import DONE, FINISH, ROLE
from tests.fakes.redis import free_port
from tests.fakes.served import start
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.fakes.client import Answer
    from tests.fakes.redis import RedisServer
    from tests.fakes.served import Served

HELD: Final = "held"
"""The model whose answers wait until the test releases them; those of `PACED` take a while."""
PACED: Final = "paced"
_PACES_S: Final = {"m": 0.0, PACED: 0.04, HELD: None}
PRICE: Final = {"input": 1, "output": 2}
"""USD per million tokens."""
_NAMES: Final = ("free", "few", "slots", "requests", "requests-next", "tokens", "tokens-next")
SECRETS: Final = {name: f"sk-{name}-0123456789" for name in _NAMES}
"""By the ids of keys, which are their plans. `free` has no limits; `-next` are for a test that midnight disturbs."""
_WORKERS: Final = 4
_AT_ONCE: Final = 8
_TRIES: Final = 100  # of two idle workers one may get nearly all connections
_STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

_numbers = itertools.count()

Place = tuple[int, int]
"""A process, from 0, and the number of a worker in it."""


class CountingUpstream(AnsweringUpstream):
    """Knows how many of its answers are under way: `now`, of these `held` until `released`, and the `most` there were.

    Of a stream the first event goes out at once. An answer that is done does not count before its last byte is sent,
    so a proxy cannot know of its end sooner.
    """

    def __init__(self) -> None:
        super().__init__(answer)
        self.released = asyncio.Event()
        self.now = self.held = self.most = 0

    def release(self) -> None:
        """Let those end that are held, and hold those that come from now on."""
        self.released.set()
        self.released = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                raw = await self._request(reader)
                asked = json.loads(raw.partition(b"\r\n\r\n")[2])
                if asked.get("stream"):
                    writer.write(_STREAM_HEAD + chunk(ROLE))
                self.now += 1
                self.most = max(self.most, self.now)
                try:
                    is_wanted = await self._holds(asked["model"], reader)
                finally:
                    self.now -= 1
                if not is_wanted:
                    break
                writer.write(_rest(int(asked["user"])) if asked.get("stream") else self.answer(raw))
                await writer.drain()
        self._writers.discard(writer)
        writer.close()

    async def _holds(self, model: str, reader: asyncio.StreamReader) -> bool:
        """Wait as the model does; whether the other side is still there."""
        loop = asyncio.get_running_loop()
        gone, released = loop.create_task(reader.read(1)), loop.create_task(self.released.wait())
        self.held += model == HELD
        try:
            done, _ = await asyncio.wait({gone, released}, timeout=_PACES_S[model], return_when="FIRST_COMPLETED")
        finally:
            self.held -= model == HELD
            gone.cancel()
            released.cancel()
            await asyncio.gather(gone, released, return_exceptions=True)
        return gone not in done


def _rest(number: int) -> bytes:
    used = b'data: {"choices":[],"usage":%b}\n\n' % json.dumps(used_by(number)).encode()
    return chunk(FINISH + used + DONE) + LAST_CHUNK


class Came(NamedTuple):
    """What came of a request: `whole`, `cut` or the code of an error; what the answer says was used; and its id."""

    what: str
    input_tokens: int = 0
    output_tokens: int = 0
    id: str = ""
    remaining: str | None = None
    says_close: bool = False


def _id(answer: Answer) -> str:
    return answer.header("x-sluice-id") or ""


def _came(answer: Answer) -> Came:
    says_close = answer.header("connection") == "close"
    if answer.status != 200:
        return Came(answer.error["code"], id=_id(answer), says_close=says_close)
    if answer.header("transfer-encoding") == "chunked":
        assert answer.body.endswith(b"\n\n" + DONE), answer.body
        shown = json.loads(answer.body[: -len(b"\n\n" + DONE)].rpartition(b"data: ")[2])
    else:
        shown = answer.json
    return Came(
        "whole",
        shown["usage"]["prompt_tokens"],
        shown["usage"]["completion_tokens"],
        _id(answer),
        answer.header("x-ratelimit-remaining-requests"),
        says_close,
    )


@dataclass
class FourWorkers:
    """What runs. `port` is the balancer's; `came` is what came of every request so far, by key."""

    folder: Path
    upstream: CountingUpstream
    redis: RedisServer
    ledger_url: str
    proxies: list[Served] = field(default_factory=list)
    port: int = 0
    came: dict[str, list[Came]] = field(default_factory=dict)
    _clients: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def client(self) -> RecordingClient:
        """A connection to the balancer, closed at the end."""
        return await self._clients.enter_async_context(await RecordingClient.connect(self.port))

    async def ask(
        self,
        client: RecordingClient,
        key: str,
        model: str = "m",
        *,
        stream: bool = False,
        began: asyncio.Event | None = None,
    ) -> Came:
        """Ask for a chat and take it to its end; `began` is set when the first event is there."""
        body = request(next(_numbers)) | {"model": model}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        answer = None
        try:
            client.send("POST", CHAT, body, key=SECRETS.get(key, key))
            answer = await client.head()
            if answer.header("transfer-encoding") == "chunked":
                while await client.piece(answer):
                    if began is not None:
                        began.set()
            else:
                answer.body = await client.reader.readexactly(int(answer.header("content-length") or ""))
            came = _came(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            came = Came("cut", id=_id(answer) if answer is not None else "")
        self.came.setdefault(key, []).append(came)
        return came

    async def places_of(self, came: Sequence[Came]) -> list[Place]:
        """Who served these, by the log lines, when they are there."""
        ids = {one.id for one in came}
        places: dict[str, Place] = {}

        def are_there() -> bool:
            for number, proxy in enumerate(self.proxies):
                places.update({line["id"]: (number, line["worker"]) for line in proxy.exchanges})
            return ids <= places.keys()

        await until(are_there, "the log lines", LONG_S)
        return [places[one.id] for one in came]

    async def one_to_each(self) -> dict[Place, RecordingClient]:
        """A kept connection to each of the four workers: the balancer knows nothing of requests."""
        found: dict[Place, RecordingClient] = {}
        for _ in range(_TRIES):
            clients = await asyncio.gather(*(self.client() for _ in range(_AT_ONCE)))
            came = await asyncio.gather(*(self.ask(client, "free") for client in clients))
            for place, client in zip(await self.places_of(came), clients, strict=True):
                if found.setdefault(place, client) is not client:
                    await client.close()
            if len(found) == _WORKERS:
                return dict(sorted(found.items()))
        raise AssertionError(f"only these workers accept connections: {sorted(found)}")

    async def sluice(self, *words: str) -> str:
        """What a command prints that is run on the configuration of the proxies."""
        config = str(self.folder / "proxy-0" / "sluice.yaml")
        async with command(*words, "--config", config, env=environment(self.folder)) as child:
            assert await child.ends() == 0, child.errors
        return child.out.strip()


def _configuration(upstream: str, redis_url: str, ledger_url: str) -> dict[str, Any]:
    plans = {
        "requests": {"requests": ["50/day"]},
        "tokens": {"tokens": ["10000/day"]},
        "few": {"concurrency": 3},
        "slots": {"concurrency": 4, "requests": ["100/hour"]},
    }
    keys = [{"id": name, "secret": secret} for name, secret in SECRETS.items()]
    for key in keys:
        if (plan := key["id"].removesuffix("-next")) in plans:
            key["plan"] = plan
    return {
        "server": {"port": 0, "workers": 2, "auth_failures": None},  # as haproxy.cfg advises: all have one address
        "ops": {"port": 0},
        "store": {"url": redis_url, "timeout": "20s"},  # a slow machine must not refuse for its time
        "ledger": {"url": ledger_url},
        "upstreams": {"up": {"base_url": upstream, "auth": "none"}},
        "models": {model: {"price": PRICE} for model in _PACES_S},
        "plans": plans,
        "keys": keys,
        "shutdown": {"notice": "1s", "drain": "60s"},
    }


@contextlib.asynccontextmanager
async def _balancer(folder: Path, proxies: Sequence[Served]) -> AsyncIterator[int]:
    """HAProxy as shipped, but patient: who answers its checks late on a busy machine is not gone. Its port."""
    port = free_port()
    file = written("haproxy", folder, port, [(proxy.port, proxy.ops_port) for proxy in proxies])
    file.write_text(file.read_text().replace("defaults\n", "defaults\n  timeout check 20s\n"))
    with (folder / "haproxy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program("haproxy"), "-db", "-f", str(file), stdout=log, stderr=log
        )

    def accepts() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    try:
        await until(accepts, "HAProxy listens", LONG_S)
        yield port
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def four_workers(folder: Path, redis: RedisServer, ledger_url: str) -> AsyncIterator[FourWorkers]:
    """All of them ready, behind HAProxy; without it the test is skipped."""
    program("haproxy")
    async with contextlib.AsyncExitStack() as stack:
        # killed at the end, they leave their sockets' folders behind: in a place of ours, of a short enough name
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-four-"))
        upstream = await stack.enter_async_context(CountingUpstream())
        four = FourWorkers(folder, upstream, redis, ledger_url)
        for number in range(2):
            own = folder / f"proxy-{number}"
            own.mkdir()
            config = _configuration(upstream.url, redis.url, ledger_url)
            proxy = await start(config, own, environ={"TMPDIR": temporary})
            stack.push_async_callback(proxy.exit_code, LONG_S)
            stack.callback(proxy.kill)
            four.proxies.append(proxy)
        for proxy in four.proxies:
            await proxy.listening()
            await until_ready(proxy)
        four.port = await stack.enter_async_context(_balancer(folder, four.proxies))
        await stack.enter_async_context(four._clients)
        yield four
