"""Whose address counts: judged by a walk over the hops, from the last one, as RFC 7239 describes them."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hypothesis import strategies as st

from relay.core.addresses import UNKNOWN, client_behind, counted_as, is_trusted, read_address
from tests.fuzz.target import Target

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48"), ip_network("127.0.0.1/32"))
PEER = ip_address("10.0.0.1")
_LETTERS = frozenset("0123456789abcdefABCDEF:.")


def check_addresses(data: bytes) -> None:
    """Each line is a header. Who counts was seen by a trusted proxy; what a client wrote in front of it is nothing."""
    headers = data.decode("latin-1").split("\n")
    entries = ",".join(headers).split(",")
    for entry in entries:
        _check_entry(entry)
    found = client_behind(PEER, headers, PROXIES)
    assert isinstance(found, IPv4Address | IPv6Address)
    seen = [read_address(entry) for entry in reversed(entries)]
    behind = next((place for place, address in enumerate(seen) if not is_trusted(address, PROXIES)), None)
    if behind is None:
        assert found in {seen[-1], PEER}
        assert found == seen[-1] or len(seen) > 32
    elif behind >= 32 or seen[behind] is None:
        assert found == PEER
    else:
        assert found == seen[behind]
        for forged in ("198.51.100.9", "10.0.0.9", "unknown", "\x00", "," * 40):
            assert client_behind(PEER, [forged, *headers], PROXIES) == found
            assert client_behind(PEER, [f"{forged}, {headers[0]}", *headers[1:]], PROXIES) == found
    assert client_behind(None, headers, ()) == (seen[0] if seen[0] is not None else None)


def _check_entry(entry: str) -> None:
    address = read_address(entry)
    name = counted_as(address)
    if address is None:
        assert name == UNKNOWN
        return
    assert len(entry.strip()) <= 64
    assert read_address(str(address)) == address
    assert getattr(address, "ipv4_mapped", None) is None  # it would be another name, and no trusted proxy's
    if isinstance(address, IPv6Address):
        assert name == f"{ip_network((address, 64), strict=False).network_address}/64"
    else:
        assert name == str(address)
    plain = entry.strip().strip("[]")
    assert set(plain[:2]) <= _LETTERS


_ADDRESSES = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(
        [
            *("10.0.0.2", "10.0.0.3:80", "127.0.0.1", "[2001:db8:1::5]:443", "::ffff:10.0.0.4", "203.0.113.7:5"),
            *("unknown", "", " ", "1.2.3.4:", "[::1", "fe80::1%eth0", "::ffff:203.0.113.7%x", "[::ffff:cb00:7107]:80"),
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=12),
)

TARGET = Target(
    "addresses",
    check_addresses,
    (
        b"203.0.113.7, 10.0.0.2",
        b"198.51.100.1\n203.0.113.7:5132, 10.0.0.2, 127.0.0.1",
        b"[2001:db8::1]:443, [2001:db8:1::7]:80",
        b"::ffff:203.0.113.7, ::ffff:10.0.0.9",
        b"10.0.0.2," * 40,
        b"fe80::1%eth0",
    ),
    (
        b"10.0.0.2",
        b"::ffff:",
        b"[",
        b"]",
        b"]:80",
        b"%",
        b",",
        b", ",
        b"\n",
        b":",
        b"::",
        b"2001:db8:1::",
        b"203.0.113.7",
    ),
    st.lists(st.lists(_ADDRESSES, max_size=5).map(", ".join), min_size=1, max_size=3).map(
        lambda headers: "\n".join(headers).encode("latin-1")
    ),
)
