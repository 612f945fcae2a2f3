"""What all scenarios share: certificates, and the two forms of the relay."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme

from proxy.phases import relay
from tests.fakes.relaying import AT_THE_TRANSPORT, NEITHER, PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Certificates(NamedTuple):
    """A throw-away authority: its file for whoever trusts it, a server's files and context, a client's context."""

    ca_file: str
    certificate_file: str
    key_file: str
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(params=[AT_THE_TRANSPORT, PLAIN])
def relay_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that uses it is run over both forms of the relay; one that is `EVENTLESS` must not come to either."""
    asked = 0

    def may_flow(*_: object) -> bool:
        nonlocal asked
        asked += 1
        return False

    if request.param != AT_THE_TRANSPORT:
        monkeypatch.setattr(relay, "may_flow", may_flow)
    yield
    assert request.param != NEITHER or not asked


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder: Path = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    issued = ca.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(folder / "chain.pem", append=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(server)
    client = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    return Certificates(str(folder / "ca.pem"), str(folder / "chain.pem"), str(folder / "key.pem"), server, client)
