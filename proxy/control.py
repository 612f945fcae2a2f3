"""What a supervisor and its workers say to each other, over a pair of sockets that is also their lifeline.

When either end closes, the other knows that its peer has ended, however that came about. Messages are msgpack behind
a length of four bytes. Secrets travel here, never on a command line.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from proxy.config.settings import Config
from proxy.config.values import Secret

if TYPE_CHECKING:
    import socket

LENGTH_BYTES: Final = 4


class Begin(msgspec.Struct, frozen=True, tag=True):
    """To a worker, first of all: its number, the configuration that was checked, where operators' questions come.

    The upstreams that are `drained` by an operator get no exchange.
    """

    number: int
    config: bytes
    ops_path: str
    drained: tuple[str, ...] = ()


class Drain(msgspec.Struct, frozen=True, tag=True):
    """To a worker: finish what is in flight and end; take new connections for `notice_s` seconds more."""

    notice_s: float


class Hurry(msgspec.Struct, frozen=True, tag=True):
    """To a worker: end the drain now."""


class Try(msgspec.Struct, frozen=True, tag=True):
    """To a worker: see whether this configuration could be served, and change nothing."""

    config: bytes


class Adopt(msgspec.Struct, frozen=True, tag=True):
    """To a worker: serve this configuration from now on."""

    config: bytes


class Done(msgspec.Struct, frozen=True, tag=True):
    """From a worker: why the configuration that it was to try or to adopt cannot be served; None if it can, or is."""

    why: str | None


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it accepts connections."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """From a worker that could not start: why, in one line."""

    why: str


class Counted(msgspec.Struct, frozen=True, tag=True):
    """From a worker, last of all: the final snapshot of its metrics."""

    snapshot: bytes


class Fork(msgspec.Struct, frozen=True, tag=True):
    """To the process that workers are forked from, with two descriptors: fork one that will need these.

    `modules` are what it imports for its configuration only, `encodings` those whose tokens it counts.
    """

    modules: frozenset[str]
    encodings: frozenset[str]


class Kill(msgspec.Struct, frozen=True, tag=True):
    """To the process that workers are forked from: end this one without a word. One that has ended is left alone."""

    pid: int


class Born(msgspec.Struct, frozen=True, tag=True):
    """From the process that workers are forked from: one was, as it was asked."""

    pid: int


class NotBorn(msgspec.Struct, frozen=True, tag=True):
    """From the process that workers are forked from: it could not fork."""

    errno: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """From the process that workers are forked from: one has ended, by a signal if `code` is below zero."""

    pid: int
    code: int


Message = Begin | Drain | Hurry | Try | Adopt | Done | Ready | Failed | Counted | Fork | Kill | Born | NotBorn | Ended


class StartError(Exception):
    """The proxy could not start; the message says why, in one line."""


def told(problem: Exception) -> str:
    """What kept a process from starting, in one line."""
    if not isinstance(problem, OSError):
        return str(problem)
    reason = problem.strerror or str(problem)
    return f"{problem.filename}: {reason}" if problem.filename else reason


class Channel:
    """One end of the pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer_has_ended = False
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Channel:
        """The end that `sock` is; it is the channel's from now on."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, message: Message) -> None:
        """Send a message; to a peer that has ended it goes unheard."""
        if self.peer_has_ended or self._writer.transport.is_closing():
            return
        self._writer.write(framed(message))

    async def receive(self) -> Message | None:
        """The next message; None once the peer has ended."""
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
            return decoded(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.peer_has_ended = True
            return None

    async def close(self) -> None:
        """Let what was sent arrive, and end."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return  # the peer ended first


def framed(message: Message) -> bytes:
    """The message behind its length."""
    data = _encoder.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def decoded(data: bytes) -> Message:
    """The message behind a length."""
    return _decoder.decode(data)


def packed(config: Config) -> bytes:
    """The configuration as it was checked: a file that changes meanwhile cannot part one worker from another."""
    return msgspec.msgpack.encode(config, enc_hook=_reveal)


def unpacked(data: bytes) -> Config:
    """The configuration that was packed."""
    return msgspec.msgpack.decode(data, type=Config, dec_hook=_conceal)


def _reveal(value: Any) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError(type(value).__name__)


def _conceal(kind: type, value: Any) -> Any:
    if issubclass(kind, Secret):
        return kind(value)
    raise NotImplementedError(kind.__name__)


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)
