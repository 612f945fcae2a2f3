"""An OpenAI-compatible upstream with no model: scripted answers, paces and faults, chosen by the model's name.

It serves `sluice simulate` and `sluice demo`, stands in when no upstream is configured, and is the upstream of tests.
Clarity comes before speed here. `MODEL_HELP` says what model names may ask for.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from proxy.simulator.answers import answer, completion_tokens
from proxy.simulator.chat import (
    chat_answer,
    chat_events,
    completion_answer,
    completion_events,
    embedding_answer,
    error_events,
)
from proxy.simulator.models import EXAMPLE_MODELS, MODEL_HELP, Fault, Script, UnknownWordError, read_model_name
from proxy.simulator.requests import SimulatedError, ask_chat, ask_completion, ask_responses, status_error
from proxy.simulator.responses import responses_answer, responses_error_events, responses_events
from proxy.simulator.wire import Frame, hang_up, play

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aiohttp.typedefs import Handler

    from proxy.simulator.answers import Ask, Choice
    from proxy.simulator.chat import Event

__all__ = ["MODEL_HELP", "Simulator", "Stats", "make_simulator"]

MAX_REQUEST_BYTES = 64 * 1024 * 1024  # above any limit a proxy in front would have

_STARTED_S = web.RequestKey("started_s", float)


class Stats:
    """What became of the requests for an answer: `requests` = `completed` + `failed` + `aborted` + `open`.

    `failed` were refused or went wrong as their model name asked; of `aborted` ones the client left first.
    """

    def __init__(self) -> None:
        self.requests = self.completed = self.failed = self.aborted = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def open(self) -> int:
        """Requests being answered now."""
        return self.requests - self.completed - self.failed - self.aborted

    def begin(self) -> None:
        """Count a request that came in."""
        self.requests += 1
        self._idle.clear()

    def end(self, outcome: str) -> None:
        """Count how a request ended: `completed`, `failed` or `aborted`."""
        setattr(self, outcome, getattr(self, outcome) + 1)
        if not self.open:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no request is open."""
        await self._idle.wait()

    def shown(self) -> dict[str, int]:
        """The counters, as GET /stats answers them."""
        names = ("requests", "completed", "failed", "aborted", "open")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer before it is sent, in either form; what is not asked for is not built."""

    script: Script
    body: Callable[[], dict[str, Any]]
    duration_s: float = 0.0  # how long a client that does not stream waits for it
    events: Callable[[], Iterator[Event]] | None = None  # None: not a stream
    error_events: Callable[[dict[str, Any], int], Iterator[Event]] = error_events


@dataclass(frozen=True, slots=True)
class _Shape:
    """What tells one text endpoint from another: how it is asked, and the forms of its answer."""

    read: Callable[[bytes], Ask]
    body: Callable[[Ask, Sequence[Choice], int], dict[str, Any]]
    events: Callable[[Ask, Sequence[Choice], int], Iterator[Event]]
    error_events: Callable[[dict[str, Any], int], Iterator[Event]] = error_events

    def prepare(self, raw: bytes, created: int) -> _Answer:
        """The answer to a request's body; raises `SimulatedError` 400."""
        ask = self.read(raw)
        choices = answer(ask)
        return _Answer(
            script=ask.script,
            body=partial(self.body, ask, choices, created),
            duration_s=completion_tokens(choices) * ask.script.interval_s,
            events=partial(self.events, ask, choices, created) if ask.stream else None,
            error_events=self.error_events,
        )


_CHAT = _Shape(ask_chat, chat_answer, chat_events)
_COMPLETIONS = _Shape(ask_completion, completion_answer, completion_events)
_RESPONSES = _Shape(ask_responses, responses_answer, responses_events, responses_error_events)


def _embedding(raw: bytes, _: int) -> _Answer:
    script, body = embedding_answer(raw)
    return _Answer(script, lambda: body)


def _json(body: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(body), indent=2)  # OpenAI's are pretty-printed, streams are not


def _json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=_json(body), status=status, content_type="application/json", headers=headers)


async def _send(request: web.Request, prepared: _Answer) -> tuple[web.StreamResponse, bool]:
    """Play the answer as its script says; also whether it went out whole. Raises `SimulatedError`."""
    script = prepared.script
    streamed = prepared.events is not None and not script.not_a_stream
    await asyncio.sleep(script.first_byte_s)
    if script.hangs_up:
        hang_up(request)
        return web.Response(), False
    if script.status is not None:
        raise status_error(script.status)
    line_end = b"\r\n" if script.crlf else b"\n"

    def error_after(sent: int) -> bytes:
        events = prepared.error_events(status_error(500).error_object, sent)
        return b"".join(event.encode(line_end) for event in events)

    if prepared.events is not None and streamed:
        frames = (Frame(event.encode(line_end), event.paced) for event in prepared.events())
        return await play(request, "text/event-stream; charset=utf-8", frames, script, error_after)
    await asyncio.sleep(prepared.duration_s)
    if script.fault is None and script.split_bytes is None:
        return _json_response(prepared.body()), True
    if script.fault is Fault.ERROR_EVENT:
        raise status_error(500)
    body = _json(prepared.body())
    half = len(body) // 2
    halves = [Frame(body[:half]), Frame(body[half:])]
    script = replace(script, fault_after_events=1)
    return await play(request, "application/json", halves, script, error_after)


class _Handlers:
    """The endpoints of one simulator."""

    def __init__(self, stats: Stats, clock: Callable[[], float]) -> None:
        self._stats = stats
        self._clock = clock

    def answering(self, prepare: Callable[[bytes, int], _Answer]) -> Handler:
        """A counted endpoint that answers with what `prepare` makes of the request's body."""

        async def handle(request: web.Request) -> web.StreamResponse:
            self._stats.begin()
            outcome = "failed"
            try:
                prepared = prepare(await request.read(), int(self._clock()))
                response, whole = await _send(request, prepared)
                outcome = "completed" if whole else "failed"
            except (asyncio.CancelledError, ConnectionError):
                outcome = "aborted"
                raise
            finally:
                self._stats.end(outcome)
            return response

        return handle

    async def stats(self, _: web.Request) -> web.Response:
        return _json_response(self._stats.shown())

    async def models(self, _: web.Request) -> web.Response:
        return _json_response({"object": "list", "data": [self._model(name) for name in EXAMPLE_MODELS]})

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        try:
            read_model_name(name)
        except UnknownWordError as error:
            raise SimulatedError(404, "invalid_request_error", "model_not_found", str(error)) from None
        return _json_response(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "sluice-simulator"}


@web.middleware
async def _in_envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as OpenAI's envelope, those of the router included."""
    request[_STARTED_S] = asyncio.get_running_loop().time()
    try:
        return await handler(request)
    except SimulatedError as error:
        refused = error
    except web.HTTPException as error:
        code = {404: "unknown_url", 405: "method_not_supported"}.get(error.status)
        reason = "Invalid URL" if error.status == 404 else error.reason
        message = f"{reason} ({request.method} {request.path})"
        refused = SimulatedError(error.status, "invalid_request_error", code, message)
    headers = {"retry-after": "1", "retry-after-ms": "1000"} if refused.status == 429 else None
    return _json_response({"error": refused.error_object}, refused.status, headers)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The headers every answer of OpenAI's has; time and version only on good ones, as recorded."""
    response.headers["x-request-id"] = f"req_{uuid.uuid4().hex}"
    response.headers["server"] = "sluice-simulator"
    if response.status < 400:
        waited_s = asyncio.get_running_loop().time() - request[_STARTED_S]
        response.headers["openai-processing-ms"] = str(round(waited_s * 1000))
        response.headers["openai-version"] = "2020-10-01"


def make_simulator(
    stats: Stats,
    clock: Callable[[], float] = time.time,  # noqa: TID251 the default of a clock that is passed in
) -> web.Application:
    """The simulator as an aiohttp application.

    `clock` gives the Unix time of the answers' `created`. Serve it with handler_cancellation=True: without, it goes on
    writing for clients that have left.
    """
    handlers = _Handlers(stats, clock)
    app = web.Application(middlewares=[_in_envelope], client_max_size=MAX_REQUEST_BYTES)
    app.on_response_prepare.append(_add_headers)
    for prefix in ("", "/v1"):
        app.router.add_route("POST", f"{prefix}/chat/completions", handlers.answering(_CHAT.prepare))
        app.router.add_route("POST", f"{prefix}/completions", handlers.answering(_COMPLETIONS.prepare))
        app.router.add_route("POST", f"{prefix}/responses", handlers.answering(_RESPONSES.prepare))
        app.router.add_route("POST", f"{prefix}/embeddings", handlers.answering(_embedding))
        app.router.add_route("GET", f"{prefix}/models", handlers.models)
        app.router.add_route("GET", f"{prefix}/models/{{model:.+}}", handlers.model)
    app.router.add_route("GET", "/stats", handlers.stats)
    return app


class Simulator:
    """A running simulator on a port of its own."""

    def __init__(self) -> None:
        self.stats = Stats()
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen on `host` and `port` (0: any free one). Raises `OSError` where that is not possible."""
        app = make_simulator(self.stats)
        # aiohttp waits this long for open answers, twice; they are worth nothing once somebody stops the simulator
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.02)
        await runner.setup()
        self._runner = runner
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError:
            await self.close()
            raise

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        assert self._runner is not None, "the simulator is not started"  # noqa: S101 a programming error
        return int(self._runner.addresses[0][1])

    @property
    def url(self) -> str:
        """The base URL for clients, `/v1` included."""
        assert self._runner is not None, "the simulator is not started"  # noqa: S101 a programming error
        host = self._runner.addresses[0][0]
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
