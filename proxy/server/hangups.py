"""Notices at once that a client hung up, in whatever state its transport is.

Transports look for the end of a stream only while they read, and then flush what is unsent before they tell: over TLS
a half-closed client that stopped reading would hold its upstream until `write_stall`, and so would one that leaves
while its upload waits for the upstream. The kernel knows better: EPOLLRDHUP says that the peer closed its side,
whether or not anybody reads (epoll_ctl(2)). Elsewhere than on Linux there is no such thing, and `write_stall` decides.
"""

from __future__ import annotations

import asyncio
import select
import sys
from typing import Final

_AT_ONCE: Final = 64  # events taken in one turn; the rest come in the next one


class Hangups:
    """Aborts the transports of clients that hung up. One for all connections of a listener, for the loop it is made in.

    It is an epoll instance, itself watched by the loop. The kernel drops a socket from it when that is closed.
    """

    def __init__(self) -> None:
        self._transports: dict[int, asyncio.Transport] = {}
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll() if sys.platform == "linux" else None
        if self._epoll is not None:
            self._loop.add_reader(self._epoll.fileno(), self._look)

    def watch(self, descriptor: int, transport: asyncio.Transport) -> None:
        """Abort `transport`, whose socket this is, once its peer has closed its side or reset the connection."""
        if self._epoll is not None:
            self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLONESHOT)
            self._transports[descriptor] = transport

    def forget(self, descriptor: int, transport: asyncio.Transport) -> None:
        """`transport` is lost. Over TLS that is told late, when the number may already mean another socket."""
        if self._transports.get(descriptor) is transport:
            del self._transports[descriptor]

    def close(self) -> None:
        """Watch nothing any more. Idempotent."""
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            self._loop.remove_reader(epoll.fileno())
            epoll.close()
        self._transports.clear()

    def _look(self) -> None:
        if self._epoll is not None:
            for descriptor, _ in self._epoll.poll(0, _AT_ONCE):
                if (transport := self._transports.get(descriptor)) is not None:
                    transport.abort()
