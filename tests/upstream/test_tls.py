"""TLS in memory: whole records or nothing, an end that is told, and damage that is an error."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from proxy.upstream.connect import tls_context
from proxy.upstream.tls import TlsSession

if TYPE_CHECKING:
    from tests.upstream.conftest import Certificates


class Server:
    """The other side, on memory buffers too."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def handshake(self) -> None:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            assert self.tls.version() is None or self.outgoing.pending


@pytest.fixture
def connected(certificates: Certificates) -> tuple[TlsSession, Server]:
    context = tls_context(verify=True, ca=certificates.ca_file, client_certificate=None, client_key=None)
    client, server = TlsSession(context, "localhost"), Server(certificates.server)
    while not client.handshake():
        server.incoming.write(client.to_send())
        server.handshake()
        client.received(memoryview(server.outgoing.read()))
    server.incoming.write(client.to_send())
    server.handshake()
    client.received(memoryview(server.outgoing.read()))
    return client, server


def decrypted(client: TlsSession) -> bytes:
    buffer, data = memoryview(bytearray(32_768)), b""
    while size := client.decrypt_into(buffer):
        data += buffer[:size]
    return data


def test_data_of_many_records_crosses_both_ways(connected: tuple[TlsSession, Server]) -> None:
    client, server = connected
    data = bytes(range(256)) * 400
    server.incoming.write(client.encrypt(data))
    assert client.to_send() == b""
    received = b""
    while len(received) < len(data):
        received += server.tls.read(65_536)
    assert received == data
    for start in range(0, len(data), 10_000):
        server.tls.write(data[start : start + 10_000])
    client.received(memoryview(server.outgoing.read()))
    assert decrypted(client) == data
    assert not client.peer_closed


def test_a_part_of_a_record_is_nothing_yet(connected: tuple[TlsSession, Server]) -> None:
    client, server = connected
    assert decrypted(client) == b""
    server.tls.write(b"hello")
    record = server.outgoing.read()
    for index in range(len(record) - 1):
        client.received(memoryview(record[index : index + 1]))
        assert decrypted(client) == b""
    client.received(memoryview(record[-1:]))
    assert decrypted(client) == b"hello"


def test_close_notify_is_told_behind_the_data(connected: tuple[TlsSession, Server]) -> None:
    client, server = connected
    server.tls.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        server.tls.unwrap()
    client.received(memoryview(server.outgoing.read()))
    assert client.decrypt_into(memoryview(bytearray(100))) == 4
    assert not client.peer_closed
    assert decrypted(client) == b""
    assert client.peer_closed


def test_a_damaged_record_is_an_error(connected: tuple[TlsSession, Server]) -> None:
    client, server = connected
    server.tls.write(b"hello")
    record = bytearray(server.outgoing.read())
    record[-1] ^= 1
    client.received(memoryview(record))
    with pytest.raises(ssl.SSLError):
        decrypted(client)
