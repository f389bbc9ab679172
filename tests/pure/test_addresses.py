"""Whose address counts: what sockets and proxies write, and how far a proxy's word is taken."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.addresses import client_behind, counted_as, is_trusted, read_address

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48"))
PEER = ip_address("10.0.0.1")
addresses = st.ip_addresses()
clients = addresses.filter(lambda address: not is_trusted(address, PROXIES) and not getattr(address, "ipv4_mapped", 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("  203.0.113.7 ", "203.0.113.7"),
        ("203.0.113.7:51324", "203.0.113.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:cb00:7107]:80", "203.0.113.7"),
    ],
)
def test_an_address_is_read_however_a_proxy_writes_it(text, expected):
    """Some add the port; an IPv6 socket says that its peer has an IPv4 address mapped into IPv6."""
    assert read_address(text) == ip_address(expected)


@pytest.mark.parametrize(
    "text",
    [
        *("", "unknown", "_hidden", "localhost", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.4:", "1.2.3.4:http"),
        *("1.2.3.4/32", "[2001:db8::1", "[2001:db8::1]x", "[::1]:٣", "2001:db8::1]:80", "1.2.3.4:-1", "::1" + " " * 99),
        *("１.2.3.4", "1" * 10_000, "[" * 10_000, ":" * 10_000),
    ],
)
def test_what_is_no_address_is_none(text):
    """It would be a name that nobody can check, and a client may have written it; with the spaces it still is one."""
    assert read_address(text) == (ip_address("::1") if text.startswith("::1 ") else None)


@settings(derandomize=True)
@given(st.text(max_size=80))
def test_any_text_is_an_address_or_none(text):
    """It comes from the network."""
    assert isinstance(read_address(text), IPv4Address | IPv6Address | None)


@settings(derandomize=True)
@given(addresses, st.sampled_from(["{}", " {} ", "[{}]", "[{}]:80"]))
def test_every_address_can_be_read_again(address, shape):
    """As the standard library writes it."""
    text = shape.format(address) if address.version == 6 else str(address)
    assert read_address(text) == (getattr(address, "ipv4_mapped", None) or ip_address(str(address).partition("%")[0]))


@settings(derandomize=True)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_ipv6_is_counted_by_the_network_that_one_customer_has(network, one, other):
    """A /64 has more addresses than any table; two of them are one visitor."""
    names = {counted_as(IPv6Address(network << 64 | host)) for host in (one, other)}
    assert names == {f"{IPv6Address(network << 64)}/64"}


@settings(derandomize=True)
@given(clients, clients)
def test_different_customers_have_different_names(one, other):
    """Else one could use up what another may have."""
    alike = one == other or (one.version == other.version == 6 and int(one) >> 64 == int(other) >> 64)
    assert (counted_as(one) == counted_as(other)) is alike


def test_what_has_no_address_shares_a_name():
    """It is limited all the same."""
    assert counted_as(None) == "unknown"


@settings(derandomize=True)
@given(clients, st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=5), st.lists(clients, max_size=3))
def test_what_a_client_writes_does_not_change_its_address(client, written, spoofed):
    """The trusted proxy adds what it sees to the end."""
    header = ",".join([*written, *map(str, spoofed), str(client)])
    assert client_behind(PEER, [header], PROXIES) == client


@settings(derandomize=True)
@given(clients, st.lists(st.sampled_from(["10.1.2.3", "10.255.0.1", "2001:db8:1::5"]), max_size=10))
def test_trusted_proxies_in_a_row_are_passed_over(client, proxies):
    """A load balancer before an ingress before the node; each adds who connected to it."""
    assert client_behind(PEER, [", ".join(["1.2.3.4", str(client), *proxies])], PROXIES) == client


def test_several_headers_are_one_list():
    """RFC 9110, section 5.3: a proxy may add a line instead of lengthening one."""
    assert client_behind(PEER, ["1.2.3.4", "203.0.113.7", "10.0.0.9"], PROXIES) == ip_address("203.0.113.7")


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ([], "10.0.0.1"),
        ([""], "10.0.0.1"),
        (["unknown"], "10.0.0.1"),
        (["203.0.113.7, unknown"], "10.0.0.1"),
        (["203.0.113.7,"], "10.0.0.1"),
        (["203.0.113.7, garbage, 10.0.0.2"], "10.0.0.1"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ([",".join(["10.0.0.2"] * 10_000)], "10.0.0.1"),
    ],
    ids=["none", "empty", "word", "word last", "comma last", "word behind a proxy", "all trusted", "endless"],
)
def test_where_no_client_can_be_told_it_is_the_peer(forwarded, expected):
    """Not whatever stands further to the left: a client may have written that. Trusted throughout, it is the first."""
    assert client_behind(PEER, forwarded, PROXIES) == ip_address(expected)
