"""TLS towards clients, on memory buffers over a plain transport of the loop.

The loops' own TLS layers cannot keep a stream within its bound: asyncio's takes 256 KiB for reading whether used or
not, uvloop's likewise, and what is encrypted waits behind what is not, each with a limit of its own. Here all that
waits is ciphertext in the plain transport, whose limits, pauses and abort are the ones that count.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_HANDSHAKE_S: Final = 30.0
_RECORD_BYTES: Final = 16384  # at most (RFC 8446 section 5.1)


class TlsListener:
    """Makes the TLS side of each connection; `make_protocol` makes what speaks inside, once a handshake is done.

    All connections read into one buffer: nothing comes between a read and its use.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        make_protocol: Callable[[], asyncio.Protocol],
        may_accept: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.context = context
        self.make_protocol = make_protocol
        self.may_accept = may_accept  # asked with how many shake hands: they hold descriptors, too
        self.read_buffer = memoryview(bytearray(_RECORD_BYTES))
        self.handshaking: set[TlsTransport] = set()

    def __call__(self) -> TlsTransport:
        """One more connection."""
        return TlsTransport(self)

    def close(self) -> None:
        """Drop the connections that have not got through their handshake."""
        for transport in list(self.handshaking):
            transport.abort()


class TlsTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """The protocol of a plain transport, and the transport of the protocol inside."""

    def __init__(self, listener: TlsListener) -> None:
        super().__init__()
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = listener.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._inside: asyncio.Protocol | None = None
        self._reading_paused = False

    # what the plain transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake, not for ever."""
        self._plain = cast("asyncio.Transport", transport)
        if not self._listener.may_accept(len(self._listener.handshaking)):
            self._timer = self._loop.call_soon(self._plain.abort)
            return
        self._listener.handshaking.add(self)
        self._timer = self._loop.call_later(_HANDSHAKE_S, self._plain.abort)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the signature is asyncio's
        """Where the next read goes."""
        return self._listener.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Ciphertext arrived."""
        self._incoming.write(self._listener.read_buffer[:nbytes])
        try:
            if self._inside is not None or self._handshake():
                self._deliver()
        except ssl.SSLError:
            self._flush()  # the alert that says why
            self._plain.close()

    def pause_writing(self) -> None:
        """The plain transport keeps more than its limit."""
        if self._inside is not None:
            self._inside.pause_writing()

    def resume_writing(self) -> None:
        """It may be written again."""
        if self._inside is not None:
            self._inside.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, or broken by `exc`."""
        self._timer.cancel()
        self._listener.handshaking.discard(self)
        if self._inside is not None:
            self._inside.connection_lost(exc)

    def _handshake(self) -> bool:
        """Go on with the handshake; True when it is done, and somebody is inside."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        self._flush()
        self._timer.cancel()
        self._listener.handshaking.discard(self)
        self._inside = self._listener.make_protocol()
        self._inside.connection_made(self)
        return True

    def _deliver(self) -> None:
        """Hand on what is decrypted, while it is wanted."""
        while self._inside is not None and not self._reading_paused and not self._plain.is_closing():
            try:
                data = self._tls.read(_RECORD_BYTES)
            except ssl.SSLWantReadError:
                break
            if not data:  # close_notify
                self.close()
                return
            self._inside.data_received(data)
        self._flush()  # reading may have asked for an answer, such as to a key update

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._plain.write(self._outgoing.read())

    # what the protocol inside calls

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send; the plain transport keeps what the kernel does not take."""
        if self._plain.is_closing():
            return
        view, records = memoryview(data), []
        try:
            for start in range(0, len(view), _RECORD_BYTES):
                self._tls.write(view[start : start + _RECORD_BYTES])
                records.append(self._outgoing.read())  # at once: a memory buffer keeps the size it once had
        except ssl.SSLError:
            self._plain.abort()  # the client broke the protocol before
        else:
            self._plain.write(records[0] if len(records) == 1 else b"".join(records))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send all in one piece."""
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """Say goodbye, and close when all is sent."""
        if self._plain.is_closing():
            return
        with contextlib.suppress(ssl.SSLError):  # the client's own goodbye is not waited for (RFC 8446 section 6.1)
            self._tls.unwrap()
        self._flush()
        self._plain.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._plain.abort()

    def is_closing(self) -> bool:
        """Closed, or about to be."""
        return self._plain.is_closing()

    def pause_reading(self) -> None:
        """Deliver nothing until told to."""
        self._reading_paused = True
        self._plain.pause_reading()

    def resume_reading(self) -> None:
        """Deliver again, first what waits here."""
        self._reading_paused = False
        self._plain.resume_reading()
        self._loop.call_soon(self.buffer_updated, 0)

    def is_reading(self) -> bool:
        """Reading is not paused."""
        return self._plain.is_reading()

    def get_write_buffer_size(self) -> int:
        """Ciphertext that the kernel has not taken, in bytes."""
        return self._plain.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low and the high-water mark, in bytes."""
        return self._plain.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks between which writing is paused, in bytes."""
        self._plain.set_write_buffer_limits(high, low)

    def can_write_eof(self) -> bool:
        """TLS connections close in both directions."""
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio's transports: the TLS objects, else what the plain transport knows."""
        if name == "ssl_object":
            return self._tls
        return self._listener.context if name == "sslcontext" else self._plain.get_extra_info(name, default)
