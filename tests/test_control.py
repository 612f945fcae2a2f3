"""What passes between a supervisor and its workers: the same configuration, whole messages, and the end of either."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.file import load
from proxy.control import Begin, Channel, Counted, Drain, Failed, Hurry, Message, Ready, packed, told, unpacked
from proxy.stores.base import LedgerProblem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[1]


class _Anything(dict[str, str]):
    """An environment in which every variable is set."""

    def get(self, name: str, default: Any = None) -> Any:
        return "0123456789abcdef" * 4

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return "0123456789abcdef" * 4


FILES = [ROOT / "deploy" / "sluice.example.yaml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_configuration_arrives_as_it_was_sent(file: Path) -> None:
    config = load(file, _Anything())
    arrived = unpacked(packed(config))
    assert arrived == config
    assert [key.secret for key in arrived.keys] == [key.secret for key in config.keys]
    assert arrived.upstreams["openai"].api_keys[0].reveal()
    assert "0123456789abcdef" not in repr(arrived)


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Channel, Channel]]:
    ends = [await Channel.over(sock) for sock in socket.socketpair()]
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            await end.close()


MESSAGES: list[Message] = [
    Begin(1, b"\x00" * 300_000, "/tmp/x"),
    Drain(0.0),
    Drain(5.0),
    Hurry(),
    Ready(),
    Failed("the ledger: ä"),
    Counted(b""),
]


async def test_messages_arrive_whole_and_in_order_and_then_the_end() -> None:
    async with pair() as (one, other):
        for message in MESSAGES:
            one.send(message)
        assert [await other.receive() for _ in MESSAGES] == MESSAGES
        assert not other.peer_has_ended
        await one.close()
        assert await other.receive() is None
        assert other.peer_has_ended
        other.send(Ready())  # nobody hears it, and nothing breaks
        assert await other.receive() is None


async def test_half_a_message_is_the_end() -> None:
    ours, theirs = socket.socketpair()
    channel = await Channel.over(ours)
    with theirs:
        theirs.sendall(b"\x00\x00\x00\x09half")
    assert await channel.receive() is None
    await channel.close()


@given(st.text(min_size=1))
def test_a_problem_is_told_with_its_file(name: str) -> None:
    assert told(FileNotFoundError(2, "No such file or directory", name)) == f"{name}: No such file or directory"
    assert told(OSError(98, "Address already in use")) == "Address already in use"
    assert told(LedgerProblem("the ledger is away")) == "the ledger is away"
