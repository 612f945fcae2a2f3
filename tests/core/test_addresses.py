"""Whose request it is: no client can say so, and no header costs much or raises."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.addresses import TrustedProxies, networks_of, parse_network

PEER, INNER, CLIENT = "10.0.0.1", "10.0.0.2", "203.0.113.7"
TRUSTED = TrustedProxies(["10.0.0.0/8", "2001:db8:ffff::/48"])
XFF, FORWARDED = b"X-Forwarded-For", b"Forwarded"
SPOOFED = b"198.51.100.1"


def told(*values: bytes, name: bytes = XFF, peer: str = PEER) -> str:
    """The client's address where a header has these lines."""
    headers = [(b"Host", b"sluice"), *((name, value) for value in values), (b"Accept", b"*/*")]
    return TRUSTED.client(peer, headers)


def test_without_trusted_proxies_headers_say_nothing() -> None:
    headers = [(XFF, SPOOFED), (FORWARDED, b"for=" + SPOOFED)]
    assert TrustedProxies().client(PEER, headers) == PEER
    assert TRUSTED.client(CLIENT, headers) == CLIENT, "this peer is not trusted"


@pytest.mark.parametrize("peer", ["", "/run/sluice.sock", "b'\\x00abstract'", "fe80::1%eth0"])
def test_a_peer_without_a_plain_address_is_called_what_it_is_called(peer: str) -> None:
    for trusted in (TrustedProxies(), TRUSTED):
        assert trusted.client(peer, [(XFF, SPOOFED)]) == peer


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ((), PEER),
        ((b"203.0.113.7",), CLIENT),
        ((b" 203.0.113.7 \t",), CLIENT),
        ((b"198.51.100.1, 203.0.113.7",), CLIENT),
        ((b"198.51.100.1, 203.0.113.7, 10.0.0.2",), CLIENT),
        ((b"198.51.100.1,203.0.113.7", b"10.0.0.2", b"10.9.9.9"), CLIENT),
        ((b"10.0.0.3, 10.0.0.2",), "10.0.0.3"),
        ((b"203.0.113.7:51234",), CLIENT),
        ((b"[2001:db8::7]:443",), "2001:db8::7"),
        ((b"[2001:db8::7]",), "2001:db8::7"),
        ((b"2001:DB8:0::7",), "2001:db8::7"),
        ((b"203.0.113.7, 2001:db8:ffff::1",), CLIENT),
        ((b"::ffff:203.0.113.7",), CLIENT),
        ((b"203.0.113.7, ::ffff:10.0.0.2",), CLIENT),
    ],
)
def test_x_forwarded_for_is_read_from_the_right_past_trusted_proxies(lines: tuple[bytes, ...], client: str) -> None:
    assert told(*lines) == client


GARBAGE = (
    *(b"", b"unknown", b"_hidden", b"unix:", b"localhost", b"203.0.113.7.9", b"203.0.113.07", b"1.2.3", b"1.2.3.256"),
    *(b"1.2.3.4:port", b"1.2.3.4:123456", b"1.2.3.4 5.6.7.8", b'"1.2.3.4"', b"[1.2.3.4", b"[::1", b"::1]", b"[]", b":"),
    *(
        b"fe80::1%eth0",
        b"fe80::1%<b>",
        b"[fe80::1%25en0]",
        b"\xd9\xa1.2.3.4",
        b"\xff",
        b"1.2.3.4/8",
        b":::",
        b"a" * 8000,
    ),
    *(b"[" * 8000, b"." * 8000),
)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_ends_the_chain_at_the_proxy_that_wrote_it(garbage: bytes) -> None:
    """And not at what stands left of it, which the client may have written."""
    assert told(garbage) == PEER
    assert told(SPOOFED + b"," + garbage) == PEER
    assert told(SPOOFED + b"," + garbage + b", 10.0.0.2") == INNER
    assert told(SPOOFED + b"," + garbage + b",203.0.113.7") == CLIENT


def test_only_so_many_proxies_are_followed() -> None:
    hops = [f"10.0.1.{number}" for number in range(100)]
    assert told(b"203.0.113.7," + ",".join(hops).encode()) == hops[-32]
    assert told(b"203.0.113.7", *(hop.encode() for hop in hops)) == hops[-32]
    assert told(b"203.0.113.7," + ",".join(hops[:31]).encode()) == CLIENT


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ((b"for=203.0.113.7",), CLIENT),
        ((b'For="203.0.113.7:4711";proto=https;by=10.0.0.1',), CLIENT),
        ((b'proto=https ; FOR="[2001:db8::7]:4711"',), "2001:db8::7"),
        ((b"for=198.51.100.1, for=203.0.113.7, for=10.0.0.2",), CLIENT),
        ((b"for=203.0.113.7;", b"for=10.0.0.2"), CLIENT),
        ((b"for=203.0.113.7:_port",), CLIENT),
        ((b"for=[2001:db8::7]",), "2001:db8::7"),
        ((b'host="a;for=198.51.100.1;b";for=203.0.113.7',), CLIENT),
        ((b"for=unknown",), PEER),
        ((b"for=198.51.100.1, for=_hidden",), PEER),
        ((b"for=198.51.100.1, for=unknown, for=10.0.0.2",), INNER),
        ((b"for=198.51.100.1;for=203.0.113.7",), PEER),
        ((b"for=198.51.100.1, proto=https",), PEER),
        ((b"203.0.113.7",), PEER),
        ((b"for=",), PEER),
        ((b"for",), PEER),
        ((b'for="203.0.113.7',), PEER),
        ((b'for=203.0.113.7, host="x, for=198.51.100.1"',), PEER),
        ((b'for=203.0.113.7;host="x, for=198.51.100.1;a=\\"b"',), PEER),
        ((b'for=203.0.113.7;host="x, for=198.51.100.1, y"',), PEER),
        ((b'for="\\2\\03.0.113.7"',), PEER),
    ],
)
def test_forwarded_is_read_likewise(lines: tuple[bytes, ...], client: str) -> None:
    assert told(*lines, name=FORWARDED) == client


def test_forwarded_counts_only_without_x_forwarded_for() -> None:
    headers = [(FORWARDED, b"for=" + SPOOFED), (b"x-forwarded-for", CLIENT.encode())]
    assert TRUSTED.client(PEER, headers) == CLIENT
    assert TRUSTED.client(PEER, [(FORWARDED, b"for=" + SPOOFED), (XFF, b"")]) == PEER


@given(
    st.binary(max_size=200) | st.text('",;=\\ for:[]1.2.3.4', max_size=60).map(str.encode), st.booleans(), st.booleans()
)
@example(b'for="', False, True)
@example(b'for="\\', False, False)
def test_nothing_a_client_writes_changes_what_its_proxy_says(written: bytes, one_line: bool, is_xff: bool) -> None:
    name, added = (XFF, CLIENT.encode()) if is_xff else (FORWARDED, b'for="203.0.113.7:1";proto=https')
    lines = [written + b", " + added] if one_line else [written, added]
    assert told(*lines, name=name) == CLIENT


@given(
    st.lists(st.binary(max_size=60) | st.text('",;=\\ for:[]%1.2_', max_size=40).map(str.encode), max_size=4),
    st.booleans(),
)
def test_whatever_is_written_the_answer_is_an_address(lines: list[bytes], is_xff: bool) -> None:
    client = told(*lines, name=XFF if is_xff else FORWARDED)
    assert str(ipaddress.ip_address(client)) == client
    assert "%" not in client


@given(st.ip_addresses(), st.integers(0, 2**80 - 1))
def test_networks_are_those_of_a_subscriber(address: ipaddress.IPv4Address | ipaddress.IPv6Address, tail: int) -> None:
    own = networks_of(str(address))
    if address.version == 4:
        assert own == (address.packed,) == networks_of(f"::ffff:{address}")
    elif address.ipv4_mapped is None:
        neighbour = ipaddress.IPv6Address(int(address) ^ tail)
        in_the_64, in_the_48 = networks_of(str(neighbour))
        assert (in_the_64 == own[0]) is (tail < 2**64)
        assert in_the_48 == own[1] != own[0]


@pytest.mark.parametrize("address", ["", "/run/sluice.sock", "unix:", "somewhere", "1.2.3"])
def test_all_without_an_address_are_one(address: str) -> None:
    assert networks_of(address) == networks_of("") == (b"",)


def test_an_interface_makes_no_other_address() -> None:
    assert networks_of("fe80::1%eth0") == networks_of("fe80::1%eth1") == networks_of("fe80::2")


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("::1", "::1/128"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
    ],
)
def test_networks_are_written_as_usual(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((text, "must be an address or a network") for text in ("", "a", "10.0.0.0/33", "10.0.0", "*", "10.0.0.1:80")),
        ("10.0.0.1/8", "has bits behind its prefix: 10.0.0.0/8 would be the network"),
        ("2001:db8::1/32", "has bits behind its prefix: 2001:db8::/32 would be the network"),
        *((text, "not every address there is") for text in ("0.0.0.0/0", "::/0", "::ffff:0.0.0.0/96")),
    ],
)
def test_what_is_no_network_of_proxies_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_network(text)
