"""What `serve`, `demo` and `simulate` do: put the pieces into one event loop and wait for the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shlex
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from proxy import tokenizers
from proxy.config.checks import against_workers
from proxy.config.file import state_directory, wants_simulator, without_file
from proxy.config.warnings import warnings
from proxy.control import StartError
from proxy.core.patterns import PatternTable, is_pattern
from proxy.process import serving_worker, telemetry
from proxy.reloading import Reloads
from proxy.sockets import given, listener, tell_systemd
from proxy.tasks import BackgroundTasks

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from proxy.config.settings import Config, OpsConfig
    from proxy.process import Telemetry
    from proxy.supervisor import Supervisor
    from proxy.worker import Worker

_DEMO_QUESTION = "What happens between my question and your answer?"


@dataclass(frozen=True, slots=True)
class Served:
    """What the banner tells of a running proxy. `key` is a generated one; keys of a file are never printed."""

    base_url: str
    ops_url: str
    upstreams: list[tuple[str, str]]
    ledger: str
    warnings: list[str]
    key: str | None
    model: str

    def curl(self) -> str:
        """A command that works when pasted (with a configured key, once SLUICE_API_KEY holds it)."""
        key = self.key or "$SLUICE_API_KEY"
        request = {"model": self.model, "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}
        return (
            f'curl -N {self.base_url}/chat/completions -H "Authorization: Bearer {key}" '
            f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(request))}"
        )


async def serve(
    config: Config | None,
    overrides: Mapping[str, object],
    *,
    read: Callable[[], Config] | None,
    banner: Callable[[Served], None],
) -> None:
    """Serve `config`, or without one what the environment suggests, until a signal.

    `read` reads and checks once more the file that it is from, to reload it. Raises `StartError`, `LedgerProblem`, or
    `OSError` for an address or a file.
    """
    async with contextlib.AsyncExitStack() as stack:
        key = None
        if config is None:
            config, key = await _unconfigured(stack)
            config = msgspec.structs.replace(config, ops=_ops_where_free(config, overrides.get("port")))
        config = _overridden(config, overrides)
        if (problem := against_workers(config)) is not None:
            raise StartError(problem)
        api, ops, *_ = [*given(os.environ, os.getpid()), None, None]
        seen = stack.enter_context(telemetry(config))
        proxy: Worker | Supervisor
        if config.server.workers > 1:
            proxy = await stack.enter_async_context(_supervisor(config, seen, api, ops))
        else:
            proxy = await stack.enter_async_context(serving_worker(config, seen, api=api, ops=ops))

        def ready() -> None:
            banner(_served(proxy, key))
            tell_systemd(os.environ, "READY=1")

        hang_up = _reloader(proxy, read, overrides)
        await proxy.run(ready, lambda: tell_systemd(os.environ, "STOPPING=1"), hang_up)


def _overridden(config: Config, overrides: Mapping[str, object]) -> Config:
    return msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, **overrides))


def _reloader(
    proxy: Worker | Supervisor, read: Callable[[], Config] | None, overrides: Mapping[str, object]
) -> Callable[[], None]:
    """What SIGHUP does; the admin API is given the same."""
    if read is None:
        return lambda: proxy.log.warning("nothing to reload: there is no configuration file")
    tasks = BackgroundTasks()

    def around(begins: bool) -> None:  # noqa: FBT001 - there are two moments
        # sd_notify(3): a service manager waits for READY
        tell_systemd(os.environ, f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}" if begins else "READY=1")

    reloads = Reloads(lambda: _overridden(read(), overrides), lambda: proxy.config, proxy.adopt, proxy.log, around)
    proxy.reload = reloads.reload
    return lambda: tasks.keep(reloads.on_signal(), "reload")


@contextlib.asynccontextmanager
async def _supervisor(
    config: Config, seen: Telemetry, api: socket.socket | None, ops: socket.socket | None
) -> AsyncIterator[Supervisor]:
    """A supervisor whose workers accept connections; all of them have ended at the end."""
    from proxy.supervisor import Supervisor

    supervisor = Supervisor(config, *seen, api=api, ops=ops)
    try:
        await supervisor.start()
        yield supervisor
    finally:
        await supervisor.stop()


async def _unconfigured(stack: contextlib.AsyncExitStack) -> tuple[Config, str]:
    """A configuration from the environment alone, the simulator running where no upstream is known."""
    simulator_url = None
    if wants_simulator(os.environ):
        from proxy.simulator.server import Simulator

        simulator = Simulator()
        await simulator.start()
        stack.push_async_callback(simulator.close)
        simulator_url = simulator.url
    return without_file(os.environ, await _own_state_directory(), simulator_url)


async def _own_state_directory() -> Path:
    """The folder of the ledger that nobody configured; it is made, for its owner alone."""
    folder = state_directory(os.environ)
    await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
    return folder


def _served(proxy: Worker | Supervisor, key: str | None) -> Served:
    config = proxy.config
    scheme = "https" if config.server.tls.certificate is not None else "http"
    upstreams = [(name, upstream.base_url) for name, upstream in config.upstreams.items()]
    return Served(
        base_url=f"{scheme}://{_host(config.server.host)}:{proxy.port}/v1",
        ops_url=f"http://{_host(config.ops.host)}:{proxy.ops_port}",
        upstreams=upstreams,
        ledger=str(config.ledger.url),
        warnings=[*warnings(config), *_about_counting()],
        key=key,
        model=_suggested_model(config),
    )


def _about_counting() -> list[str]:
    if tokenizers.installed():
        return []
    return ["tokens are estimated where an upstream does not say: the extra `tokenizers` counts them"]


def _suggested_model(config: Config) -> str:
    """A name that is configured, or a usual one that is served; else a gap to fill, with the patterns it must match.

    The names behind a pattern are the upstream's. One we made up would be refused there, in words that do not help.
    """
    exact = next((name for name in config.models if not is_pattern(name)), None)
    if exact is not None:
        return exact
    usual = "sim" if "simulator" in config.upstreams else "gpt-4o-mini"
    if not config.models or PatternTable(config.models).match(usual) is not None:
        return usual
    return f"MODEL ({', '.join(itertools.islice(config.models, 3))})"


def _host(host: str) -> str:
    """A host as it stands in a URL one can open."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


async def simulate(host: str, port: int, *, echo: Callable[[str], None]) -> None:
    """Run the simulator until a signal. Raises `OSError` for an address that cannot be had."""
    from proxy.simulator.server import MODEL_HELP, Simulator

    simulator = Simulator()
    await simulator.start(host, port)
    echo(f"The simulator listens on {simulator.url}: an OpenAI-compatible upstream with no model.\n\n{MODEL_HELP}")
    try:
        await _until_signal()
    finally:
        await simulator.close()


async def demo(port: int, *, once: bool, banner: Callable[[Served], None], echo: Callable[[str], None]) -> None:
    """Start simulator and proxy, ask one question with the OpenAI SDK, then serve on until a signal."""
    from proxy.simulator.server import Simulator

    async with contextlib.AsyncExitStack() as stack:
        simulator = Simulator()
        await simulator.start()
        stack.push_async_callback(simulator.close)
        config, key = without_file({}, await _own_state_directory(), simulator.url)
        server = msgspec.structs.replace(config.server, port=port if _is_free(config.server.host, port) else 0)
        ops = _ops_where_free(config, port)
        log = msgspec.structs.replace(config.log, format="console")
        config = msgspec.structs.replace(config, server=server, ops=ops, log=log)
        worker = await stack.enter_async_context(serving_worker(config, stack.enter_context(telemetry(config))))
        served = _served(worker, key)
        await _first_chat(served, key, echo)
        if not once:
            await worker.run(lambda: banner(served), lambda: None, _reloader(worker, None, {}))


def _ops_where_free(config: Config, port: object) -> OpsConfig:
    """The operators' listener of a configuration that nobody wrote: on a free port where its own is taken.

    A Prometheus on the same machine has that one. With a free port for the proxy (0) it takes a free one too.
    """
    stays = port != 0 and _is_free(config.ops.host, config.ops.port)
    return config.ops if stays else msgspec.structs.replace(config.ops, port=0)


def _is_free(host: str, port: int) -> bool:
    try:
        listener(host, port, "server").close()
    except OSError:
        return False
    return True


async def _first_chat(served: Served, key: str, echo: Callable[..., None]) -> None:
    import openai

    echo(f"You, with the OpenAI SDK through {served.base_url}: {_DEMO_QUESTION}\n")
    async with openai.AsyncOpenAI(base_url=served.base_url, api_key=key, max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=served.model, messages=[{"role": "user", "content": _DEMO_QUESTION}], stream=True
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                echo(chunk.choices[0].delta.content, nl=False)
    echo("\n")


async def _until_signal() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
