"""What all scenarios share: certificates, and the two forms of the relay."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme

from proxy.phases import relay

if TYPE_CHECKING:
    from pathlib import Path


class Certificates(NamedTuple):
    """A throw-away authority: its file for whoever trusts it, a server's files and context, a client's context."""

    ca_file: str
    certificate_file: str
    key_file: str
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(params=["at the transport", "plain"])
def relay_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that uses it is run over both forms of the relay."""
    if request.param == "plain":
        monkeypatch.setattr(relay, "may_flow", lambda *_: False)


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
