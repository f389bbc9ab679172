"""Who is asking, as far as limits care: the address that counts, and how far a proxy's word is taken. Pure.

A client can write anything into ``X-Forwarded-For``; only what a trusted proxy added to its end is believed.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNKNOWN: Final = "unknown"  # what has no address, or none that can be read, shares one name
_HOST_BITS: Final = 64  # of an IPv6 address: whoever has one address of a /64 has them all (RFC 6177)
_LONGEST: Final = 64  # characters of an entry; the longest address with a zone and a port is shorter
_HOPS: Final = 32  # proxies in a row that are believed


def read_address(text: str) -> Address | None:
    """Read an address as sockets and proxies write it, with a port or a zone; None if it is none."""
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or not _is_port(port):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            return None
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def _is_port(text: str) -> bool:
    return not text or (text[0] == ":" and text[1:].isascii() and text[1:].isdecimal())


def counted_as(address: Address | None) -> str:
    """Return the name under which limits count an address: an IPv6 one by its /64."""
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(int(address) >> _HOST_BITS << _HOST_BITS)}/{_HOST_BITS}"
    return UNKNOWN if address is None else str(address)


def is_trusted(address: Address | None, proxies: Sequence[Network]) -> bool:
    """Whether an address is one of the trusted proxies'."""
    return address is not None and any(address in network for network in proxies)


def client_behind(peer: Address | None, forwarded: Iterable[str], proxies: Sequence[Network]) -> Address | None:
    """Find whose request a trusted proxy passes on.

    Args:
        peer: the proxy, whose connection it is.
        forwarded: the request's ``X-Forwarded-For`` headers, in order.
        proxies: the networks of all trusted proxies.

    Returns:
        The rightmost address that is no trusted proxy's: the last one that was seen and not claimed. Where all are
        trusted the leftmost of them; where nothing is there, or the entry in question can't be read, the peer.
    """
    found = peer
    for entry in reversed(",".join(forwarded).rsplit(",", _HOPS)):
        found = read_address(entry)
        if found is None:
            return peer
        if not is_trusted(found, proxies):
            return found
    return found
