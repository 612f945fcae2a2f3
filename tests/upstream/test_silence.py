"""One timer for all exchanges whose upstream says nothing: each fails in its time, and nobody else does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from proxy.core.errors import UPSTREAM_TIMEOUT, ProxyError
from proxy.upstream.silence import Silence
from tests.fakes.waiting import TIMER_S, until

if TYPE_CHECKING:
    from proxy.upstream.connection import UpstreamConnection
    from proxy.upstream.framing import ResponseReader


class Waiting:
    """Stands in for a connection that waits for a head."""

    def __init__(self) -> None:
        self.failed_s: float | None = None
        self.error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        assert self.failed_s is None
        self.failed_s, self.error = asyncio.get_running_loop().time(), error

    @property
    def connection(self) -> UpstreamConnection:
        return cast("UpstreamConnection", self)


def reader(head: object = None) -> ResponseReader:
    return cast("ResponseReader", SimpleNamespace(head=head))


@pytest.fixture
async def silence() -> Silence:
    return Silence(asyncio.get_running_loop())


async def test_each_fails_in_its_own_time_whatever_the_order(silence: Silence) -> None:
    begun_s = asyncio.get_running_loop().time()
    limits_s = [0.2, 0.05, 30.0, 0.1, 0.05]
    waiting = [Waiting() for _ in limits_s]
    for one, limit_s in zip(waiting, limits_s, strict=True):
        silence.expect(one.connection, reader(), limit_s)
    await until(lambda: len(silence) == 1, "all but the patient one have failed")
    for one, limit_s in zip(waiting, limits_s, strict=True):
        if limit_s < 1:
            assert one.failed_s is not None
            assert one.failed_s - begun_s >= limit_s - TIMER_S
            assert isinstance(one.error, ProxyError)
            assert one.error.kind is UPSTREAM_TIMEOUT
    assert waiting[2].failed_s is None
    order = sorted((one.failed_s, limit_s) for one, limit_s in zip(waiting, limits_s, strict=True) if one.failed_s)
    assert [limit_s for _, limit_s in order] == [0.05, 0.05, 0.1, 0.2]


async def test_those_that_were_heard_do_not_fail(silence: Silence) -> None:
    heard, answered, last = Waiting(), Waiting(), Waiting()
    silence.expect(heard.connection, reader(), 0.02)
    silence.expect(answered.connection, reader(head=object()), 0.02)
    silence.expect(last.connection, reader(), 0.05)
    silence.heard(heard.connection)
    silence.heard(heard.connection)
    await until(lambda: last.failed_s is not None, "the last one fails")
    assert (heard.failed_s, answered.failed_s, len(silence)) == (None, None, 0)


async def test_expecting_again_begins_anew(silence: Silence) -> None:
    begun_s = asyncio.get_running_loop().time()
    busy, other = Waiting(), Waiting()
    silence.expect(busy.connection, reader(), 0.05)
    silence.expect(busy.connection, reader(), 0.3)
    silence.expect(other.connection, reader(), 0.1)
    await until(lambda: not len(silence), "both have failed")
    assert other.failed_s is not None
    assert other.failed_s - begun_s >= 0.1 - TIMER_S
    assert busy.failed_s is not None
    assert busy.failed_s - begun_s >= 0.3 - TIMER_S


async def test_it_rests_while_nobody_waits(silence: Silence) -> None:
    for _ in range(3):
        one = Waiting()
        silence.expect(one.connection, reader(), 0.02)
        silence.heard(one.connection)
        await until(lambda: silence._timer is None, "the last look")
        assert one.failed_s is None
