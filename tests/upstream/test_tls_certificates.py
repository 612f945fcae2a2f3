"""Certificates, real ones: which servers are believed, which clients are, and what is read from which file."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from proxy.core.errors import UPSTREAM_UNREACHABLE, ProxyError
from proxy.upstream.connect import Origin, tls_context
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.reaching import reach, trusting, unreachable

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.tasks import BackgroundTasks
    from tests.upstream.conftest import Certificates

_NOT_ACCEPTED = "The upstream's certificate was not accepted."
_HOST = "127.0.0.1"


def server_with(issued: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    return context


async def refused(server: ssl.SSLContext, client: ssl.SSLContext, *, old_server: bool = False) -> ProxyError:
    """The error of a handshake that one of the two breaks off, which leaves nothing open."""
    with RawUpstream(server) as upstream:
        failing = asyncio.get_running_loop().create_task(unreachable(Origin(_HOST, upstream.port, tls=client)))
        peer = await upstream.accept_raw()
        with pytest.raises((ssl.SSLError, ConnectionError)):  # noqa: PT012 - TLS 1.3 may tell it a step later
            await peer.handshake()
            await peer.request()
        if old_server:
            await peer._flush()  # its alert
        peer.close()
        return await failing


async def test_an_expired_certificate_is_not_trusted(certificates: Certificates) -> None:
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    expired = certificates.ca.issue_cert(_HOST, not_after=yesterday)
    error = await refused(server_with(expired), trusting(certificates.ca_file))
    assert error.message == _NOT_ACCEPTED
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    assert error.__cause__.verify_message == "certificate has expired"


async def test_a_certificate_of_another_authority_is_not_trusted(certificates: Certificates) -> None:
    """A configured authority is the only one."""
    error = await refused(server_with(trustme.CA().issue_cert(_HOST)), trusting(certificates.ca_file))
    assert error.message == _NOT_ACCEPTED


async def test_a_chain_over_an_intermediate_authority(certificates: Certificates, tasks: BackgroundTasks) -> None:
    """The server sends the one between; the client knows the root alone."""
    between = certificates.ca.create_child_ca()
    with RawUpstream(server_with(between.issue_cert(_HOST))) as upstream:
        await reach(Origin(_HOST, upstream.port, tls=trusting(certificates.ca_file)), upstream, tasks)


async def test_one_file_may_name_several_authorities(
    certificates: Certificates, tasks: BackgroundTasks, tmp_path: Path
) -> None:
    """As while an authority is replaced by the next."""
    other = trustme.CA()
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(other.cert_pem.bytes() + certificates.ca.cert_pem.bytes())
    for authority in (other, certificates.ca):
        with RawUpstream(server_with(authority.issue_cert(_HOST))) as upstream:
            await reach(Origin(_HOST, upstream.port, tls=trusting(str(bundle))), upstream, tasks)


def asking_for_clients(certificates: Certificates) -> ssl.SSLContext:
    """A server that wants a client's certificate, of the same authority."""
    server = server_with(certificates.ca.issue_cert(_HOST))
    certificates.ca.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    return server


def showing(certificates: Certificates, file: Path, client: trustme.LeafCert) -> ssl.SSLContext:
    """A client whose certificate, chain and key are one file."""
    file.write_bytes(client.private_key_and_cert_chain_pem.bytes())
    return tls_context(verify=True, ca=certificates.ca_file, client_certificate=str(file), client_key=None)


async def test_a_clients_key_may_be_in_its_certificates_file(
    certificates: Certificates, tasks: BackgroundTasks, tmp_path: Path
) -> None:
    """With the chain over an intermediate authority, which is sent along."""
    issued = certificates.ca.create_child_ca().issue_cert("sluice@example.org", common_name="sluice")
    with RawUpstream(asking_for_clients(certificates)) as upstream:
        client = showing(certificates, tmp_path / "client.pem", issued)
        await reach(Origin(_HOST, upstream.port, tls=client), upstream, tasks)
        tls = upstream.peers[0].tls
        assert tls is not None
        assert (("commonName", "sluice"),) in (tls.getpeercert() or {})["subject"]


async def test_a_client_whom_the_upstream_does_not_know(certificates: Certificates, tmp_path: Path) -> None:
    """TLS 1.3 tells it behind the handshake: then it is the answer that fails, and the connection is not used again."""
    server = asking_for_clients(certificates)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    client = showing(certificates, tmp_path / "client.pem", trustme.CA().issue_cert("someone@example.org"))
    error = await refused(server, client, old_server=True)
    assert (error.kind, error.message) == (UPSTREAM_UNREACHABLE, "The TLS handshake with the upstream failed.")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_each_version_that_is_spoken(
    certificates: Certificates, tasks: BackgroundTasks, version: ssl.TLSVersion
) -> None:
    server = server_with(certificates.ca.issue_cert(_HOST))
    server.minimum_version = server.maximum_version = version
    with RawUpstream(server) as upstream:
        await reach(Origin(_HOST, upstream.port, tls=trusting(certificates.ca_file)), upstream, tasks)
        tls = upstream.peers[0].tls
        assert tls is not None
        assert tls.version() == version.name.replace("_", ".")
