"""The keyring follows the ledger: what changes there counts here soon, and an outage changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import TYPE_CHECKING

import pytest
import structlog

from proxy.phases.authenticate import Keyring
from proxy.phases.refresh_keys import KeyRefresher
from tests.fakes.stored_keys import PLANS, HeldKeys, stored
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_POLL_S = 0.005


class Followed:
    """A keyring that follows keys which the test holds, and what was logged meanwhile."""

    def __init__(self, note_s: float) -> None:
        self.source = HeldKeys()
        self.keyring = Keyring([], PLANS)
        self.logged: list[structlog.typing.EventDict] = []
        log = structlog.wrap_logger(
            None, processors=[self._keep], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        self.refresher = KeyRefresher(self.source, self.keyring, log, poll_s=_POLL_S, note_s=note_s)

    def _keep(self, _: object, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        self.logged.append({"level": level, **event})
        raise structlog.DropEvent

    def good(self, secret: bytes) -> bool:
        return self.keyring.holder(secret, 1.0) is not None

    def events(self) -> list[str]:
        return [event["event"] for event in self.logged]

    async def polled(self, times: int = 2) -> None:
        """Wait until so many polls have begun from here on, so that all but the last are over."""
        asked = len(self.source.asked)
        await until(lambda: len(self.source.asked) >= asked + times, "polled")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.refresher.load()
        task = asyncio.create_task(self.refresher.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def followed() -> Followed:
    return Followed(note_s=3600.0)


async def test_a_key_made_rotated_and_revoked_elsewhere_counts_here(followed: Followed) -> None:
    followed.source.put(stored("a", b"1"))
    async with followed.running():
        assert followed.good(b"1")
        followed.source.put(stored("b", b"b", revision=2))
        await until(lambda: followed.good(b"b"), "the new key is known")
        followed.source.put(stored("a", b"2", previous=b"1", previous_until_ms=1_001, revision=3))
        await until(lambda: followed.good(b"2"), "the new secret is known")
        assert followed.good(b"1")
        followed.source.put(stored("a", b"2", revoked_ms=1, revision=4))
        await until(lambda: not followed.good(b"2"), "the revocation is known")
        assert not followed.good(b"1")
        assert followed.good(b"b")
    assert followed.logged == []


def test_the_ledger_is_looked_at_twice_in_the_second_that_is_promised() -> None:
    """A busy machine cannot tell by the clock: it may take longer over everything else."""
    assert inspect.signature(KeyRefresher).parameters["poll_s"].default <= 0.5


async def test_what_is_known_stays_through_an_outage_that_is_told_once(followed: Followed) -> None:
    followed.source.put(stored("a", b"a"))
    async with followed.running():
        followed.source.broken = True
        await followed.polled(4)
        assert followed.good(b"a")
        followed.source.put(stored("a", b"a", revoked_ms=1, revision=2))
        followed.source.broken = False
        await until(lambda: not followed.good(b"a"), "the revocation that waited is known")
        await until(lambda: "keys_stale_over" in followed.events(), "the end is told")
        followed.source.broken = True
        await followed.polled(3)
    assert followed.events() == ["keys_stale", "keys_stale_over", "keys_stale"]
    assert followed.logged[0]["reason"] == "OSError"
    assert "has gone" not in repr(followed.logged), "messages of databases may hold their address"


async def test_without_a_first_load_there_is_no_start(followed: Followed) -> None:
    followed.source.broken = True
    with pytest.raises(OSError, match="has gone"):
        await followed.refresher.load()


async def test_many_keys_are_read_in_pieces_and_none_twice(followed: Followed) -> None:
    for number in range(25):
        followed.source.put(stored(f"key-{number}", b"%d" % number, revision=number + 1))
    await followed.refresher.load()
    assert all(followed.good(b"%d" % number) for number in range(25))
    assert followed.source.asked == [0, 10, 20]
    async with followed.running():
        await followed.polled()
    assert set(followed.source.asked[3:]) == {25}


async def test_keys_that_are_not_taken_are_told_in_one_line(followed: Followed) -> None:
    followed.source.at_once = 25
    for number in range(25):
        followed.source.put(stored(f"key-{number}", b"%d" % number, plan="gone", revision=number + 1))
    await followed.refresher.load()
    (event,) = followed.logged
    assert (event["event"], event["reason"], event["count"], len(event["ids"])) == (
        "keys_refused",
        "unknown_plan",
        25,
        10,
    )


async def test_the_last_use_is_written_now_and_then_and_at_the_end() -> None:
    followed = Followed(note_s=0.0)
    followed.source.put(stored("a", b"a"))
    async with followed.running():
        assert followed.good(b"a")
        await until(lambda: followed.source.used == [{"a": 1000}], "the use is written")
        followed.source.unwritable = True
        assert followed.keyring.holder(b"a", 2.0)
        await until(lambda: "keys_use_unwritten" in followed.events(), "that it cannot be written is told")
        await followed.polled(3)
        assert followed.events() == ["keys_use_unwritten"]
    followed.source.unwritable = False
    await followed.refresher.note_used()
    await followed.refresher.note_used()
    assert followed.source.used == [{"a": 1000}, {"a": 2000}]


async def test_the_last_use_is_not_written_at_every_poll(followed: Followed) -> None:
    followed.source.put(stored("a", b"a"))
    async with followed.running():
        assert followed.good(b"a")
        await followed.polled(5)
    assert followed.source.used == []
