"""What accounting costs: CPU of an event on top of the bare relay, and of an exchange by its parts.

    python -m tests.bench.accounting [--json]

The real phases run over a stream and a client in memory, which cost next to nothing themselves: what is left of a
relayed event is the relay's own part, without sockets and framing. Ratios are to that, so they flatter nobody. CPU is
this thread's; the commits of the ledger's thread are in `ledger.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import uvloop
from prometheus_client import CollectorRegistry

from proxy.core.answers import EventAnswer
from proxy.core.gaps import Gaps
from proxy.core.injection import UsageHider
from proxy.core.pricing import PriceList, cost_nano_usd
from proxy.core.prompts import estimate
from proxy.core.usage import Grade, Observation, Usage
from proxy.phases.account import Accounting
from proxy.phases.admit import Admission
from proxy.phases.forward import Answer
from proxy.phases.observe import Counting, Observer
from proxy.phases.quotas import Quotas
from proxy.phases.record import Findings, ending_of
from proxy.phases.relay import Accompaniment, relay
from proxy.phases.route import Model, Route, Target
from proxy.phases.settle import enter, settle
from proxy.stores.base import Opened, Settled
from proxy.stores.database import migrate, open_database
from proxy.stores.ledger import DatabaseLedger
from proxy.stores.memory import MemoryQuotaStore
from proxy.telemetry.metrics import Metrics
from proxy.tokenizers import installed, load
from tests.fakes.arrived import arrived, principal
from tests.fakes.peers import FakeDownstream, FakeStream, exchange
from tests.fakes.routes import upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.phases.account import Account
    from proxy.phases.exchange import Exchange
    from proxy.phases.observe import CountsBeside

EVENTS: Final = 200
ROUNDS: Final = 40
STREAMS_A_ROUND: Final = 5
EXCHANGES_A_ROUND: Final = 100
ENCODING: Final = "o200k_base"
WORDS: Final = ("the", "stream", "of", "answers", "runs", "word", "by", "token", "through", "a", "sluice,", "until", "")
QUESTION: Final = "Please explain to a colleague how an upstream answers, and what it costs when nobody listens. " * 8
BODY: Final = json.dumps(
    {
        "model": "gpt-4o-mini",
        "stream": True,
        "max_tokens": 512,
        "temperature": 0.2,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant who answers briefly."},
            {"role": "user", "content": QUESTION},
        ],
    }
).encode()
USAGE: Final = Usage(input_tokens=180, output_tokens=200, cached_tokens=128)


def chunk(choices: str, usage: str) -> bytes:
    """An event as OpenAI sends it."""
    return (
        'data: {"id":"chatcmpl-CnM0abcdefghij","object":"chat.completion.chunk","created":1765879680,'
        '"model":"gpt-4o-mini-2024-07-18","system_fingerprint":"fp_0123456789",'
        f'"choices":[{choices}]{usage}}}\n\n'
    ).encode()


def deltas(usage: str) -> list[bytes]:
    """The events with text."""
    texts = (" " + WORDS[number % len(WORDS)] for number in range(EVENTS))
    return [
        chunk(f'{{"index":0,"delta":{{"content":"{text}"}},"logprobs":null,"finish_reason":null}}', usage)
        for text in texts
    ]


def whole(usage: str, *, says_usage: bool) -> list[bytes]:
    """A stream to its end, with or without the event that tells what was used."""
    last = chunk('{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}', usage)
    said = chunk("", ',"usage":{"prompt_tokens":180,"completion_tokens":200,"total_tokens":380}')
    return [*deltas(usage), last, *([said] if says_usage else []), b"data: [DONE]\n\n"]


@dataclass(frozen=True)
class Shape:
    """A stream, and what goes along with it. `beside` is the shape without accounting that it is compared to."""

    name: str
    events: list[bytes]
    beside: str
    observes: bool = True
    hides: bool = False
    aborted: bool = False
    grade: Grade = "exact"


WITH_NULL: Final = whole(',"usage":null', says_usage=True)
PLAIN: Final = "bare relay, usage:null on each event"
SHORTER: Final = "bare relay, no usage"
SHAPES: Final = (
    Shape(PLAIN, WITH_NULL, PLAIN, observes=False, grade="unknown"),
    Shape("usage asked for by Sluice, hidden", WITH_NULL, PLAIN, hides=True),
    Shape("usage asked for by the client", WITH_NULL, PLAIN),
    Shape(SHORTER, deltas(""), SHORTER, observes=False, aborted=True, grade="unknown"),
    Shape("no usage, counted, the client left", deltas(""), SHORTER, aborted=True, grade="counted"),
    Shape("no usage, counted at the end", whole("", says_usage=False), SHORTER, grade="counted"),
)


async def durable() -> None:
    """A row that is."""


async def stream_once(shape: Shape, counting: Counting) -> None:
    """Relay one stream and find out what it used."""
    downstream = FakeDownstream()
    error = ConnectionResetError() if shape.aborted else None
    stream = FakeStream(shape.events, error=error)
    answer = Answer(cast("Any", stream), stream.watchdog, "events")
    observer = Observer(EventAnswer() if shape.observes else None, counting, ENCODING)
    along = Accompaniment(observer, Gaps(), [], durable, UsageHider().hide if shape.hides else None)
    try:
        await relay(exchange(downstream, "chat"), answer, cast("Any", None), along, None)
    except ConnectionResetError:
        assert shape.aborted
    observer.finish()
    observation = observer.observe(180)
    assert observation is not None
    assert observation.grade is shape.grade


def cpu_us(work: Callable[[], object], count: int) -> float:
    """Microseconds of this thread's CPU for one of `count`."""
    began_ns = time.thread_time_ns()
    for _ in range(count):
        work()
    return (time.thread_time_ns() - began_ns) / 1000 / count


def run_now(work: Any) -> Any:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


def events(counting: Counting) -> dict[str, float]:
    """CPU of an event by shape: the median of rounds in which each has its turn."""
    seen: dict[str, list[float]] = {shape.name: [] for shape in SHAPES}
    for _ in range(ROUNDS):
        for shape in SHAPES:

            def once(shape: Shape = shape) -> None:
                run_now(stream_once(shape, counting))

            seen[shape.name].append(cpu_us(once, STREAMS_A_ROUND) / len(shape.events))
    return {name: statistics.median(figures) for name, figures in seen.items()}


class Exchanges:
    """Usual exchanges, and what it costs to account for them; each figure in microseconds of CPU."""

    def __init__(self, ledger: DatabaseLedger, counting: Counting) -> None:
        self._ledger = ledger
        self._counting = counting
        self._prices = PriceList({"gpt-4o*": None})
        store = MemoryQuotaStore(lambda: time.monotonic_ns() // 1_000_000)
        quotas = Quotas(store, lambda asking, _: asking.close(), Metrics(CollectorRegistry()).quotas)
        self._accounting = Accounting(
            quotas=quotas,
            ledger=ledger,
            prices=self._prices,
            counting=counting,
            estimating=ThreadPoolExecutor(1),
            clock=time.time,
        )
        self._target = Target("gpt-4o*", Model((Route(upstream("openai")),), max_output_tokens=4096))
        self._admission = Admission(principal(), "gpt-4o-mini", streamed=True, body=BODY)
        self._numbers = itertools.count()
        self.seen: dict[str, list[float]] = {}

    def _measure(self, name: str, work: Callable[[], object]) -> None:
        self.seen.setdefault(name, []).append(cpu_us(work, EXCHANGES_A_ROUND))

    def _arrived(self) -> Exchange:
        return msgspec.structs.replace(arrived(), id=f"bench-{next(self._numbers):016x}")

    def round(self) -> None:
        """Begin and end some exchanges, and do each part of it by itself."""
        accounting, admission, target = self._accounting, self._admission, self._target
        price = self._prices.find("gpt-4o-mini", "gpt-4o-mini")
        assert price is not None
        coming = [self._arrived() for _ in range(EXCHANGES_A_ROUND)]
        opened: list[Account] = []

        def begin() -> None:
            opened.append(run_now(accounting.open(coming.pop(), admission, target)))

        self._measure("account.open", begin)
        settled = [settle(account, Observation("exact", USAGE)) for account in opened]
        self._measure("settle", lambda: settle(opened[0], Observation("exact", USAGE)))

        ending = ending_of(self._arrived(), Findings(answered=200))

        def end() -> None:
            enter(opened.pop(), settled.pop(), ending, accounting.now_ms())

        self._measure("enter", end)
        now = self._counting.now
        self._measure(" of it: estimate", lambda: estimate(BODY, "chat/completions", ENCODING, now))
        self._measure(" of it: find the price", lambda: self._prices.find("gpt-4o-mini", "gpt-4o-mini"))
        self._measure(" of it: multiply", lambda: cost_nano_usd(USAGE, price))
        rows = [
            Opened(f"bench-{next(self._numbers):016x}", "team-a", "chat/completions", "m", "up", True, 0, 0, 0)
            for _ in range(EXCHANGES_A_ROUND)
        ]
        entries = []
        self._measure(" of it: ledger.open", lambda: entries.append(self._ledger.open(rows.pop())))
        ended = Settled(1, 200, "ok", "exact", USAGE, 265_800, 1, 21)
        self._measure(" of it: entry.settle", lambda: entries.pop().settle(ended))


async def exchanges(counting: Counting) -> dict[str, float]:
    """The parts of an exchange: the median of rounds, each written to a real ledger before the next."""
    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(f"sqlite:///{Path(folder) / 'ledger.db'}")
        migrate(engine)
        ledger = DatabaseLedger(engine, "bench", clock_ms=lambda: 0, on_commit=lambda _seconds, _rows: None)
        ledger.start()
        measured = Exchanges(ledger, counting)
        for _ in range(ROUNDS):
            measured.round()
            while ledger.waiting:
                await asyncio.sleep(0.002)
        assert await ledger.close(10) == 0
        engine.dispose()
    return {name: statistics.median(figures) for name, figures in measured.seen.items()}


def show(of_events: dict[str, float], of_exchanges: dict[str, float]) -> None:
    """Two small tables."""
    print(f"{'stream of 200 events':<40}{'us/event':>10}{'more':>8}{'ratio':>8}")
    for shape in SHAPES:
        spent, bare = of_events[shape.name], of_events[shape.beside]
        print(f"{shape.name:<40}{spent:>10.2f}{spent - bare:>8.2f}{spent / bare:>8.2f}")
    print(f"\n{'exchange':<40}{'us':>10}")
    for name, spent in of_exchanges.items():
        print(f"{name:<40}{spent:>10.2f}")
    total = sum(of_exchanges[name] for name in ("account.open", "settle", "enter"))
    print(f"{'open, settle and enter':<40}{total:>10.2f}")


async def measure() -> tuple[dict[str, float], dict[str, float]]:
    """Both kinds of figures."""
    counting = Counting(load({ENCODING}), cast("CountsBeside", None))
    gc.collect()
    gc.freeze()
    return events(counting), await exchanges(counting)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    of_events, of_exchanges = uvloop.run(measure())
    if arguments.json:
        more = {shape.name: of_events[shape.name] - of_events[shape.beside] for shape in SHAPES}
        found = {"us_per_event": of_events, "us_more_per_event": more, "us_per_exchange": of_exchanges}
        print(json.dumps({**found, "exact_counter": installed()}))
    else:
        show(of_events, of_exchanges)


if __name__ == "__main__":
    main()
