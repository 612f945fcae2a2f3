"""What holds for every test: which event loop, nothing blocks it, nothing is left running.

Event loops. Async tests run on uvloop, as `sluice serve` does. A test, class or module that must hold on both loops is
marked `pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])` (a module by `pytestmark`) and runs twice. A folder
may define `pytest_asyncio_loop_factories` in its own conftest instead. Loop policies are deprecated from Python 3.14
on; this hook is what pytest-asyncio offers in their place.

Blocking. While a loop runs, a call from `proxy/` that may block (sleep, files, a blocking socket, a held lock) raises
`blockbuster.BlockingError`, which fails the test. Code of tests and libraries may block, unless proxy code called it.

Time. pytest-timeout raises in whatever runs when its alarm comes. Where a loop runs, that is often a task other than
the test's, which keeps the exception for itself while the test waits on, or a callback, and uvloop only reports what
that raises. So all tasks are cancelled instead; again and again, for one that goes on regardless, and also in what
follows a failure. What even that does not end, the process ends with (`faulthandler_timeout` in pyproject.toml).

Examples. None has a deadline: on a busy machine any may take longer than Hypothesis would give it.

Runners. Tests that keep both cores busy, or share what is installed once, run one after the other, in one runner. Which
they are is said here and not by `xdist_group`: pytest 9.2 does not see what pytest-xdist 3.8 makes of those marks.

Leaks. After an async test and its fixtures no task may be left; forgotten transports and files raise ResourceWarning,
and warnings are errors. Sockets reach loopback only (pytest-socket, configured in pyproject.toml).
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import signal
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
import uvloop
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadGroupScheduling

from proxy.telemetry import log_writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
    from types import FrameType

    from xdist.remote import Producer

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

_LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}

# a cancelled task needs one turn to end, a closed transport one more to say so; TLS a few
_SETTLING_TURNS = 10

_TOGETHER = {
    "tests/grafana/test_queries.py": "prometheus",
    "tests/grafana/test_rules.py": "prometheus",
    "tests/scenarios/test_four_workers.py": "processes",
    "tests/scenarios/test_quota_one_slot.py": "processes",
    "tests/scenarios/test_quota_outages.py": "processes",
    "tests/scenarios/test_quota_processes.py": "processes",
}

_AGAIN_S = 10.0  # between two alarms for a test that is over its time
_LIMITS = pytest.StashKey[Any]()


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    asks = any("loop_factories" in mark.kwargs for mark in item.iter_markers("asyncio"))
    return _LOOPS if asks else {"uvloop": _LOOPS["uvloop"]}


class _Together(LoadGroupScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return _TOGETHER.get(nodeid.partition("::")[0], nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadGroupScheduling | None:
    return _Together(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    # modules and tests stay to the end: to look for garbage among them takes as long as fifty tests, each time
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_itemcollected(item: pytest.Item) -> None:
    # an autouse async fixture would start a loop for every plain test, too
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
        item.fixturenames.insert(0, "guarded_loop")


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, object, object]:
    is_set = yield
    raises = signal.getsignal(signal.SIGALRM)
    assert callable(raises)
    alarms = itertools.count(1)

    def over(number: int, frame: FrameType | None) -> None:
        alarm, loop = next(alarms), asyncio._get_running_loop()
        if loop is not None:
            loop.call_soon_threadsafe(_cancel_all, loop, f"the test's time limit of {settings.timeout:g} s")
        if loop is None or alarm > 1:
            raises(number, frame)

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, _AGAIN_S)
    item.stash[_LIMITS] = settings
    return is_set


def _cancel_all(loop: asyncio.AbstractEventLoop, why: str) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel(why)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    # a failure ends the limit, and what has failed is the likeliest to hang now
    if (settings := item.stash.get(_LIMITS, None)) is not None:
        item.ihook.pytest_timeout_set_timer(item=item, settings=settings)
    return (yield)


@pytest.fixture
async def guarded_loop() -> AsyncIterator[None]:
    """First in, last out: what the test and its other fixtures started must be over by then."""
    yield
    for _ in range(_SETTLING_TURNS):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left running: {sorted(map(repr, left))}"


@pytest.fixture(scope="session", autouse=True)
def _nothing_blocks() -> Iterator[None]:
    with blockbuster_ctx("proxy") as buster:
        # the very last act of a process: nothing is left that the loop could do meanwhile
        buster.functions["threading.Lock.acquire"].can_block_in("telemetry/log_writer.py", {"close"})
        yield


@pytest.fixture(scope="session", autouse=True)
def _lines_are_written_at_once() -> Iterator[None]:
    """Thousands of tests look at a log line; what they would wait for is that more lines come."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_writer, "_GATHER_S", 0.0)
        yield


class _SharedStatements(dict[tuple[Any, ...], Any]):
    """What SQLAlchemy has compiled, for all databases of a kind; its own caches are for one engine each."""

    def get(self, key: tuple[Any, ...], default: object = None) -> Any:
        return super().get((type(key[0]), *key[1:]), default)

    def __setitem__(self, key: tuple[Any, ...], compiled: object) -> None:
        super().__setitem__((type(key[0]), *key[1:]), compiled)


@pytest.fixture(scope="session", autouse=True)
def _statements_are_compiled_once() -> Iterator[None]:
    """A process has one ledger. Here are a thousand, and to compile what opens one takes half of the time it takes."""
    create_engine, shared = sa.create_engine, _SharedStatements()

    def create_sharing(*args: Any, **settings: Any) -> sa.Engine:
        engine = create_engine(*args, **settings)
        engine.update_execution_options(compiled_cache=shared)
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sa, "create_engine", create_sharing)
        yield
