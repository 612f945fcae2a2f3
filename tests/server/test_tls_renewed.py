"""A renewed certificate is shown to who connects after the reload; connections from before go on."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import msgspec
import pytest
import trustme

from proxy.config.changes import ReloadError
from proxy.config.settings import ServerTlsConfig
from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.running import running

if TYPE_CHECKING:
    from pathlib import Path

CHAT = "/v1/chat/completions"


def shown(client: RecordingClient) -> bytes | None:
    """The certificate that the client was shown."""
    connection: ssl.SSLObject = client.writer.get_extra_info("ssl_object")
    return connection.getpeercert(binary_form=True)


async def test_a_renewed_certificate_is_shown_from_the_reload_on(tmp_path: Path) -> None:
    ca, pem = trustme.CA(), tmp_path / "server.pem"
    trust = ssl.create_default_context()
    ca.configure_trust(trust)
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    tls = ServerTlsConfig(certificate=str(pem), private_key=str(pem))
    async with (
        AnsweringUpstream() as upstream,
        running(upstream.url, server={"tls": tls}) as proxy,
        await RecordingClient.connect(proxy.port, trust) as before,
    ):
        ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
        await proxy.worker.adopt(proxy.worker.config)
        async with await RecordingClient.connect(proxy.port, trust) as after:
            assert shown(after) != shown(before)
            assert (await after.ask("POST", CHAT, {"model": "m", "messages": []})).status == 200
        assert (await before.ask("POST", CHAT, {"model": "m", "messages": []})).status == 200
        missing = msgspec.structs.replace(tls, certificate=str(tmp_path / "missing.pem"))
        server = msgspec.structs.replace(proxy.worker.config.server, tls=missing)
        with pytest.raises(ReloadError, match=r"server\.tls"):
            await proxy.worker.adopt(msgspec.structs.replace(proxy.worker.config, server=server))


async def test_a_certificate_with_another_kind_of_key_is_shown_too(tmp_path: Path) -> None:
    ca, pem = trustme.CA(), tmp_path / "server.pem"
    trust = ssl.create_default_context()
    ca.configure_trust(trust)

    def renew(kind: trustme.KeyType) -> None:
        ca.issue_cert("localhost", key_type=kind).private_key_and_cert_chain_pem.write_to_path(pem)

    renew(trustme.KeyType.ECDSA)
    tls = ServerTlsConfig(certificate=str(pem), private_key=str(pem))
    async with AnsweringUpstream() as upstream, running(upstream.url, server={"tls": tls}) as proxy:
        async with await RecordingClient.connect(proxy.port, trust) as before:
            old = shown(before)
        renew(trustme.KeyType.RSA)
        await proxy.worker.adopt(proxy.worker.config)
        async with await RecordingClient.connect(proxy.port, trust) as after:
            assert shown(after) != old
            assert (await after.ask("POST", CHAT, {"model": "m", "messages": []})).status == 200
