"""TLS on memory buffers: ciphertext in, plaintext out; no I/O.

Why not the event loop's own layer: asyncio's takes 256 KiB a connection whether used or not, and both read up to that
much at once however little room there is, so that a stuck stream held some 600 KiB; uvloop's drops what it has not
delivered yet when the upstream closes, and keeps a closed connection open for 30 s (uvloop#471). Here a read is as
large as our buffer, and an end without close_notify is told from a clean one.
"""

from __future__ import annotations

import ssl
from typing import Final, cast

_RECORD_BYTES: Final = 16384  # a record at most (RFC 8446 section 5.1)


class TlsSession:
    """The client's side of one TLS connection. All methods raise ssl.SSLError when the peer breaks the protocol."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "peer_closed")

    def __init__(self, context: ssl.SSLContext, server_hostname: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self.peer_closed = False  # close_notify was received: the end is no truncation (RFC 8446 section 6.1)

    def received(self, ciphertext: memoryview) -> None:
        """Take what arrived."""
        self._incoming.write(ciphertext)

    def to_send(self) -> bytes:
        """What must be sent now: handshake messages, answers to key updates, encrypted data."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def handshake(self) -> bool:
        """Go on with the handshake; True when it is done. Send `to_send()` in either case."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """What must be sent for all of `data`, anything that waited for `to_send` included."""
        view = memoryview(data)
        records = []
        for start in range(0, len(view), _RECORD_BYTES):
            self._tls.write(view[start : start + _RECORD_BYTES])
            records.append(self._outgoing.read())  # at once: a memory buffer keeps the size it once had
        return b"".join(records)

    def decrypt_into(self, buffer: memoryview) -> int:
        """Decrypt one record into `buffer` and return its size; 0 when more must arrive first, or `peer_closed`."""
        if not self._incoming.pending and not self._tls.pending():
            return 0  # spares the exception below, which costs as much as a record
        try:
            size = cast("int", self._tls.read(len(buffer), buffer))  # a size, since it is given a buffer
        except ssl.SSLWantReadError:
            return 0
        self.peer_closed = not size
        return size
