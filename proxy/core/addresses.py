"""Whose request it is: the client's address behind proxies that are trusted, and the networks it stands for.

A proxy writes the address it was called from at the right end of `X-Forwarded-For` or `Forwarded` (RFC 7239); what
stands left of it, its client may have written. So the chain is read from the right, and ends at the first address
that is not a trusted proxy's. Whatever is not plainly an address ends it too: then the client is the proxy that wrote
so. Nothing here raises on what was received.
"""

from __future__ import annotations

import functools
import itertools
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.core.headers import RawHeaders

_MAX_HOPS: Final = 32  # nobody has more proxies, and a header may have thousands of commas
_MAPPED_BITS: Final = 96  # ::ffff:0:0/96 is IPv4 in IPv6's notation (RFC 4291 section 2.5.5.2)
_MAPPED_START: Final = "::ffff:"
# an address; some proxies add the port, and then IPv6 stands in brackets (RFC 7239 section 6)
_NODE: Final = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15}))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]{1,64}))?|([0-9A-Fa-f:.]{2,45})"
)
# a pair of an element of Forwarded (RFC 7239 section 4), where some write IPv6 and ports without the quotes
_PAIR: Final = re.compile(
    rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:([!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]+)|\"((?:[^\"\\]|\\.)*)\")[ \t]*(?:;|\Z)"
)

_Address = IPv4Address | IPv6Address


class TrustedProxies:
    """Networks whose word about their own clients is taken. Raises `ValueError` for what is no network."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(map(parse_network, networks))

    def client(self, peer: str, headers: RawHeaders) -> str:
        """The client's address: what trusted proxies say of a connection from `peer`, else `peer`.

        `Forwarded` counts only where there is no `X-Forwarded-For`: nearly all proxies write the latter alone, and
        pass on a `Forwarded` that their client made up.
        """
        if not self._networks and not peer.startswith(_MAPPED_START):
            return peer
        client = _parsed(peer)
        if client is None:
            return peer
        if self._trusts(client):
            for hop in itertools.islice(_hops(headers), _MAX_HOPS):
                if hop is None:
                    break
                client = hop
                if not self._trusts(client):
                    break
        return str(client)

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """The network of `10.0.0.0/8`, `2001:db8::/32` or a single address; IPv4 also where it is written as IPv6.

    Raises `ValueError`; also for a network of all addresses, since then anybody could claim any address.
    """
    try:
        network = ip_network(text, strict=False)
        written = ip_address(text.partition("/")[0])
    except ValueError:
        raise ValueError("must be an address or a network such as 10.0.0.0/8 or 2001:db8::/32") from None
    if written != network.network_address:
        raise ValueError(f"has bits behind its prefix: {network} would be the network")
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= _MAPPED_BITS:
        network = IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    if network.prefixlen == 0:
        raise ValueError("must be the networks of the proxies, not every address there is")
    return network


def networks_of(address: str) -> tuple[bytes, ...]:
    """The networks that stand for whoever has `address`, smallest first: what may be theirs alone.

    Of IPv4 the address. Of IPv6 the /64, which is one subscriber's at most, and the /48, which is the most that is
    handed out without asking (RFC 6177). One and the same for all that is no address: unix sockets have none.
    """
    parsed = _parsed(address)
    if parsed is None:
        return (b"",)
    packed = parsed.packed
    return (packed,) if isinstance(parsed, IPv4Address) else (packed[:8], packed[:6])


def _hops(headers: RawHeaders) -> Iterator[_Address | None]:
    """What the headers say, from the last proxy to the first; None for what is no address."""
    values = [value for name, value in headers if name.lower() == b"x-forwarded-for"]
    if values:
        yield from map(_node, _elements(values))
        return
    values = [value for name, value in headers if name.lower() == b"forwarded"]
    yield from (_node(_forwarded_for(element)) for element in _elements(values))


def _elements(values: list[bytes]) -> Iterator[bytes]:
    """The members of a comma-separated list, from the right.

    A comma in a quoted string is taken for one between members, so that a quote which a client has opened does not
    swallow what the proxy wrote behind it. The halves of such a string are no members, and end the chain.
    """
    for value in reversed(values):
        yield from reversed(value.rsplit(b",", _MAX_HOPS))


def _forwarded_for(element: bytes) -> bytes:
    """The value of `for` in an element of Forwarded; empty if it has none, several, or is not well-formed."""
    found = b""
    at = 0
    while at < len(element):
        pair = _PAIR.match(element, at)
        if pair is None or (found and pair[1].lower() == b"for"):
            return b""
        if pair[1].lower() == b"for":
            found = pair[2] or pair[3]
        at = pair.end()
    return found


def _node(text: bytes) -> _Address | None:
    match = _NODE.fullmatch(text.strip(b" \t"))
    return None if match is None else _parsed((match[1] or match[2] or match[3]).decode("ascii"))


@functools.lru_cache(4096)
def _parsed(text: str) -> _Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
