"""Asking Redis: scripts by digest, every call bounded in time, and a store that is away not asked by everybody.

One timer bounds a whole call: its turn, connecting, asking. It ends the call by cancellation, after which redis-py
closes the connection: half an answer may be on its way. Its own timeouts cost a task and two timers a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import re
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, cast

from redis.asyncio import RedisCluster
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError, SlotNotCoveredError

from proxy.core.circuit import Circuit
from proxy.stores.redis_client import open_client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from proxy.core.circuit import Ticket

    Word = str | int
    Seen = Callable[[str, float, str | None], None]

_log = logging.getLogger("sluice.store")

_NEVER: Final = 2.0  # a share of failures that cannot be: a store that answers half the time is better than none
CONNECTIONS: Final = 32
"""Of a worker, at most: a call takes a tenth of a millisecond, so that more would wait for the event loop anyway."""

# https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors: an error begins with its code, and with
# Redis 6 one within a script stands somewhere in the text. redis-py cuts off the codes it knows.
_AWAY: Final = re.compile(
    r"\b(ASK|BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|MOVED|NOAUTH|NOPERM|NOREPLICAS|OOM|READONLY|TRYAGAIN)\b"
)


def _circuit() -> Circuit:
    """A store that is out of reach is asked by one call a second, later every ten, not by every request."""
    return Circuit(failures=3, cooldown_s=1.0, max_cooldown_s=10.0, failure_share=_NEVER)


class Script:
    """A Lua script of `proxy/stores/lua`, with what all of them share before it."""

    def __init__(self, name: str) -> None:
        folder = resources.files("proxy.stores") / "lua"
        parts = ("windows.lua", f"{name}.lua")
        self.name = name
        self.text = "".join((folder / part).read_text(encoding="utf-8") for part in parts)
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class StoreAwayError(Exception):
    """The store gave no answer, or an error. `asked` tells whether it may have acted all the same."""

    def __init__(self, *, asked: bool, retry_in_s: float) -> None:
        super().__init__("the store gave no answer")
        self.asked = asked
        self.retry_in_s = retry_in_s


class Call:
    """One script to run: its keys, all in one hash slot, an id and other arguments. Must be safe to repeat."""

    __slots__ = ("_id", "_words", "keys", "script")

    def __init__(self, script: Script, keys: Sequence[str], id_: str, words: Sequence[Word]) -> None:
        self.script = script
        self.keys = keys
        self._id = id_
        self._words = " ".join(map(str, words))

    def by_digest(self) -> tuple[Word, ...]:
        """The command that runs it where the script is known."""
        return ("EVALSHA", self.script.digest, len(self.keys), *self.keys, self._id, self._words)

    def by_text(self) -> tuple[Word, ...]:
        """The command that runs it anywhere; the server knows the script from then on."""
        return ("EVAL", self.script.text, len(self.keys), *self.keys, self._id, self._words)


class Deadline:
    """Ends what the current task does within it after `seconds`, with `TimeoutError`."""

    __slots__ = ("_cancels_before", "_expired", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False

    async def __aenter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancels_before = self._task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        # only our own timer's cancellation becomes a timeout; one from outside goes on
        if self._expired and self._task.uncancel() <= self._cancels_before and kind is asyncio.CancelledError:
            raise TimeoutError

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()


class RedisLink:
    """The way to one Redis, Sentinel service or cluster.

    `timeout_s` is what a caller waits at most. `clock` is monotonic, in seconds. `seen(operation, seconds, error)` is
    told of every call; `error` is the name of what went wrong, None for nothing. Raises `ValueError` for a bad URL.
    """

    def __init__(
        self, url: str, *, timeout_s: float, clock: Callable[[], float], seen: Seen, connections: int = CONNECTIONS
    ) -> None:
        self._client, self._sentinels = open_client(url, connections=connections)
        self._timeout_s = timeout_s
        self._clock = clock
        self._seen = seen
        self._room = asyncio.Semaphore(connections)
        self._circuits: dict[str, Circuit] = {}
        self._has_answered: bool | None = None  # None before it was ever asked

    @property
    def is_away(self) -> bool:
        """Nothing has ever answered; or a node did not several times in a row, nor has it since."""
        return self._has_answered is False or any(
            circuit.is_open and self._is_asked(node) for node, circuit in self._circuits.items()
        )

    @property
    def retry_in_s(self) -> float:
        """How long the store will not be asked, or at least one node of a cluster; 0 while all answer."""
        now_s = self._clock()
        return max((circuit.retry_in_s(now_s) for circuit in self._circuits.values()), default=0.0)

    async def ask(self, call: Call) -> Any:
        """The script's answer. Raises `StoreAwayError` after `timeout_s` at most."""
        return await self._bounded(self._node_of(call), call.script.name, functools.partial(self._run, call))

    async def ask_all(self, calls: Sequence[Call], *, force: bool = False) -> list[Any]:
        """All answers, of one round trip to each node; None for a call that failed. Never raises.

        `force` asks also where nothing answered for some time.
        """
        answers: dict[Call, Any] = {}
        by_node: dict[str, list[Call]] = {}
        for call in calls:
            by_node.setdefault(self._node_of(call), []).append(call)
        for node, batch in by_node.items():
            work = functools.partial(self._run_all, batch)
            with contextlib.suppress(StoreAwayError):
                answers.update(await self._bounded(node, batch[0].script.name, work, force=force))
        return [answers.get(call) for call in calls]

    async def probe(self) -> bool:
        """Ask for a sign of life, of a cluster that of one node; whether it came. Never raises."""
        known = self._client.get_default_node() if isinstance(self._client, RedisCluster) else None
        ping = functools.partial(self._client.execute_command, "PING")
        try:
            await self._bounded("" if known is None else known.name, "probe", functools.partial(self._twice, ping))
        except StoreAwayError:
            return False
        return True

    async def close(self) -> None:
        """End all connections."""
        if isinstance(self._client, RedisCluster):
            # its own `aclose` leaves them open when the last call has failed
            await self._client.nodes_manager.aclose()
            await self._client.nodes_manager.aclose("startup_nodes")
        await self._client.aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()

    def _node_of(self, call: Call) -> str:
        """The node of a cluster that has the call's keys, as far as is known; "" if there is but one."""
        if isinstance(self._client, RedisCluster):
            with contextlib.suppress(SlotNotCoveredError):
                node = self._client.get_node_from_key(call.keys[0])
                return "" if node is None else node.name
        return ""

    def _is_asked(self, node: str) -> bool:
        """Whether calls may still go there: a node may have left its cluster, and "" has only what no node has."""
        client = self._client
        if not isinstance(client, RedisCluster):
            return True
        if not node:
            return len(client.nodes_manager.slots_cache) < REDIS_CLUSTER_HASH_SLOTS
        return client.get_node(node_name=node) is not None

    async def _bounded(
        self, node: str, operation: str, work: Callable[[], Awaitable[Any]], *, force: bool = False
    ) -> Any:
        circuit = self._circuits.setdefault(node, _circuit())
        began_s = self._clock()
        ticket = circuit.enter(began_s)
        if ticket is None and not force:
            self._seen(operation, 0.0, "circuit_open")
            raise StoreAwayError(asked=False, retry_in_s=circuit.retry_in_s(began_s))
        try:
            async with Deadline(self._timeout_s), self._room:
                if isinstance(self._client, RedisCluster):
                    # at once if it knows its nodes; a call that comes before would go anywhere
                    _ = await self._client.initialize()
                answer = await work()
        except asyncio.CancelledError:
            if ticket is not None:
                circuit.abandoned(ticket)
            raise
        except Exception as error:
            if _is_answer(error):
                self._answered(circuit, ticket)
                _log.warning("the quota store answers with an error: %s", type(error).__name__)
            else:
                self._failed(circuit, ticket, error)
            self._seen(operation, self._clock() - began_s, type(error).__name__)
            raise StoreAwayError(asked=True, retry_in_s=circuit.retry_in_s(self._clock())) from error
        self._answered(circuit, ticket)
        self._seen(operation, self._clock() - began_s, None)
        return answer

    def _answered(self, circuit: Circuit, ticket: Ticket | None) -> None:
        if circuit.is_open or self._has_answered is False:
            _log.warning("the quota store answers again")
        if ticket is not None:
            circuit.succeeded(ticket, self._clock())
        elif circuit.is_open:
            circuit.close(self._clock())
        self._has_answered = True

    def _failed(self, circuit: Circuit, ticket: Ticket | None, error: Exception) -> None:
        was_open = circuit.is_open
        if ticket is not None:
            circuit.failed(ticket, self._clock())
        is_first = self._has_answered is None
        if is_first or (self._has_answered and circuit.is_open and not was_open):
            # the type only: messages name hosts and users
            _log.error("the quota store does not answer: %s", type(error).__name__)
        self._has_answered = bool(self._has_answered)

    async def _run(self, call: Call) -> Any:
        return await self._twice(functools.partial(self._run_once, call))

    async def _run_once(self, call: Call) -> Any:
        try:
            return await self._client.execute_command(*call.by_digest())
        except NoScriptError:
            return await self._client.execute_command(*call.by_text())

    async def _run_all(self, calls: Sequence[Call]) -> dict[Call, Any]:
        """The answers to the calls that had one other than an error. Raises an error if that is none."""
        answers = await self._twice(functools.partial(self._run_batch, calls))
        for place, answer in enumerate(answers):
            if isinstance(answer, NoScriptError):
                answers[place] = await self._client.execute_command(*calls[place].by_text())
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        if len(failures) == len(answers):
            raise next((failure for failure in failures if not _is_answer(failure)), failures[0])
        for failure in failures:
            _log.warning("the quota store answers with an error: %s", type(failure).__name__)
            self._seen(calls[0].script.name, 0.0, type(failure).__name__)
        return {call: answer for call, answer in zip(calls, answers, strict=True) if not isinstance(answer, Exception)}

    async def _run_batch(self, calls: Sequence[Call]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*call.by_digest())
        return list(await pipeline.execute(raise_on_error=False))

    async def _twice(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do it; and again if a connection was lost: one from before a failover is found out when it is used.

        The nodes of a cluster are learned in between: redis-py does so when a command finds one gone, but not when a
        pipeline does, nor when it knows of none for a slot.
        """
        try:
            return await work()
        except (RedisConnectionError, SlotNotCoveredError):
            if isinstance(self._client, RedisCluster):
                await self._client.nodes_manager.initialize()
            return await work()


def _is_answer(error: Exception) -> bool:
    """Whether an error is one call's answer, say for what somebody else has stored there, and not about the store."""
    return isinstance(error, ResponseError) and not _AWAY.search(f"{error.status_code} {error}")
