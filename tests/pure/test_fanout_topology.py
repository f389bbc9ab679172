"""Where partitions are, what a Redis URL says, when a home is deaf: the pure parts around the servers."""

import pytest

from fanout.core.deafness import Deafness
from fanout.core.partitions import partition_tags, slot_of, tag_in
from fanout.core.subscriptions import Subscriptions
from fanout.core.topology import Address, MasterClaim, everywhere, primaries_by_tag, read_master, read_view
from fanout.redis import check_url
from fanout.redis.target import Kind, Target, parse_url

TAGS = partition_tags()
A, B, C = Address("10.0.0.1", 7001), Address("10.0.0.2", 7002), Address("10.0.0.3", 7003)


def slots(*ranges: tuple[int, int, Address]) -> list[list]:
    return [[first, last, [a.host.encode(), a.port, f"id-{a.port}".encode(), []]] for first, last, a in ranges]


def nodes(**epochs: int) -> bytes:
    return "".join(
        f"{identity.replace('_', '-')} 10.0.0.1:7001@17001 master - 0 0 {epoch} connected 0-1\n"
        for identity, epoch in epochs.items()
    ).encode()


def test_each_partition_has_the_primary_of_its_slot():
    """However the slots are divided."""
    view = read_view(slots((0, 8191, A), (8192, 16383, B)), nodes(id_7001=1, id_7002=2), A)
    found = primaries_by_tag([view])
    assert found == {tag: A if slot_of(tag.encode()) < 8192 else B for tag in TAGS}
    assert list(found.values()).count(A) == 32


def test_of_two_views_the_later_configuration_is_believed():
    """A primary that was frozen while its replica took over still names itself."""
    old = read_view(slots((0, 16383, A)), nodes(id_7001=1), A)
    new = read_view(slots((0, 16383, B)), nodes(id_7001=1, id_7002=5), B)
    for views in ([old, new], [new, old]):
        assert primaries_by_tag(views) == everywhere(B)


def test_a_partition_that_nobody_serves_is_left_out():
    """Its last primary is kept: the others must work on."""
    view = read_view(slots((0, 99, A)), nodes(id_7001=1), A)
    assert primaries_by_tag([view]) == {tag: A for tag in TAGS if slot_of(tag.encode()) <= 99}


def test_a_host_that_a_node_does_not_know_is_the_one_that_was_asked():
    """Before it met another node it has no address of its own, and a preferred endpoint may be unknown."""
    unknown = [[0, 100, [b"", 7001, b"x", []], [b"10.0.0.9", 7009, b"y", []]], [101, 16383, [None, 7002, b"z", []]]]
    view = read_view(unknown, b"", C)
    assert {one.primary for one in view.ranges} == {Address(C.host, 7001), Address(C.host, 7002)}
    assert Address("10.0.0.9", 7009) in view.nodes


@pytest.mark.parametrize(
    "strange", [[[1, 2]], [["a", 2, [b"h", 1, b"i"]]], [None], [[0, 1, [b"\xff", 1, b"i"]]]], ids=repr
)
def test_a_strange_answer_of_a_cluster_is_an_error_with_a_name(strange):
    """A proxy, or another version; never an exception that ends the node."""
    with pytest.raises(ValueError, match="cannot be read"):
        read_view(strange, b"", A)


def test_a_sentinel_that_leads_a_failover_names_the_promoted_replica():
    """While its details still show the old master, under the new epoch."""
    details = [b"name", b"relay", b"ip", b"10.0.0.1", b"port", b"7001", b"config-epoch", b"4"]
    assert read_master([b"10.0.0.2", b"7002"], details) == MasterClaim(4, B)
    for address, strange in (([b"10.0.0.2"], details), (None, details), ([b"h", b"1"], [b"name"]), ([b"h", b"1"], [])):
        with pytest.raises(ValueError, match="cannot be read"):
            read_master(address, strange)


def test_deafness_lasts_from_the_first_loss_to_the_last_acknowledgement():
    """One period for the home, however many channels it takes away."""
    deafness = Deafness()
    deafness.lost({"a", "b"}, since=10.0)
    deafness.lost({"b", "c"}, since=11.0)
    deafness.heard("a", now=12.0)
    deafness.heard("b", now=13.0)
    assert (deafness.periods, deafness.seconds(14.0)) == (1, 4.0)
    deafness.heard("c", now=15.0)
    assert deafness.seconds(99.0) == 5.0
    deafness.lost(set(), since=20.0)
    deafness.heard("a", now=21.0)
    assert (deafness.periods, deafness.seconds(99.0)) == (1, 5.0)
    deafness.lost({"a"}, since=30.0)
    assert (deafness.periods, deafness.seconds(31.0)) == (2, 6.0)


@pytest.mark.parametrize(
    ("name", "tag"), [("p:{a}:b", "a"), ("p:{a}{b}", "a"), ("plain", "plain"), ("{}x", "{}x"), ("{x", "{x")]
)
def test_a_tag_is_what_stands_in_the_first_braces(name, tag):
    """As Redis Cluster has it."""
    assert tag_in(name) == tag


# -- subscriptions


def held(*channels: str) -> Subscriptions:
    subscriptions = Subscriptions()
    for channel in channels:
        subscriptions.want(channel)
    for channel in subscriptions.take(100).subscribe:
        subscriptions.on_subscribed(channel)
    return subscriptions


def test_what_the_server_drops_by_itself_is_sent_again_only_when_told():
    """Its slot has moved: at once it would only be refused."""
    subscriptions = held("a", "b")
    assert subscriptions.on_unsubscribed("a")
    assert not subscriptions.holds("a")
    assert subscriptions.is_settled
    assert subscriptions.retry()
    assert subscriptions.take(10).subscribe == ["a"]
    assert not subscriptions.retry()


def test_an_acknowledged_unsubscription_is_no_news():
    """Also when the channel was wanted again before the acknowledgement came."""
    subscriptions = held("a")
    subscriptions.unwant("a")
    assert subscriptions.take(10).unsubscribe == ["a"]
    subscriptions.want("a")
    assert subscriptions.take(10).subscribe == ["a"]
    assert not subscriptions.on_unsubscribed("a")
    assert subscriptions.on_subscribed("a")
    assert subscriptions.on_unsubscribed("a")


def test_a_refusal_takes_back_what_is_not_acknowledged():
    """The server doesn't say which command it refused."""
    subscriptions = held("a")
    subscriptions.want("b")
    subscriptions.take(10)
    subscriptions.on_refused()
    assert subscriptions.holds("a")
    assert subscriptions.retry()
    assert subscriptions.take(10).subscribe == ["b"]


def test_what_another_server_carries_is_forgotten_without_a_word():
    """This one has dropped it already, and would answer an unsubscription with an error."""
    subscriptions = held("a", "b")
    subscriptions.forget("a")
    assert (subscriptions.wanted, subscriptions.held, subscriptions.is_settled) == (1, 1, True)
    subscriptions.want("a")
    assert subscriptions.take(10).subscribe == ["a"]


def test_a_renewed_channel_is_sent_once_more():
    """The server doesn't have it, whatever it acknowledged; what nobody wants is not sent."""
    subscriptions = held("a")
    subscriptions.renew("a")
    subscriptions.renew("b")
    assert not subscriptions.holds("a")
    assert subscriptions.take(10).subscribe == ["a"]
    assert subscriptions.carried() == []


# -- URLs

SECRET = "sesame"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", Target(kind=Kind.STANDALONE, addresses=(Address("h", 6379),))),
        ("redis://h:1/5", Target(kind=Kind.STANDALONE, addresses=(Address("h", 1),), db=5)),
        (
            "redis://me:p%40s%2Fs%3A%25@h:1/",
            Target(kind=Kind.STANDALONE, addresses=(Address("h", 1),), username="me", password="p@s/s:%"),
        ),
        ("redis://:pw@[::1]:7", Target(kind=Kind.STANDALONE, addresses=(Address("::1", 7),), password="pw")),
        (
            "rediss://u:p@h?ssl_ca_certs=/ca.pem&ssl_check_hostname=no",
            Target(
                kind=Kind.STANDALONE,
                addresses=(Address("h", 6379),),
                username="u",
                password="p",
                tls={"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False},
            ),
        ),
        (
            "rediss://h?ssl_cert_reqs=none",
            Target(
                kind=Kind.STANDALONE,
                addresses=(Address("h", 6379),),
                tls={"ssl_cert_reqs": "none", "ssl_check_hostname": False},
            ),
        ),
        (
            "redis+sentinel://u:p@s1:1,s2,[fe80::1]/mymaster?db=3&sentinel_username=su&sentinel_password=s%26p",
            Target(
                kind=Kind.SENTINEL,
                addresses=(Address("s1", 1), Address("s2", 26379), Address("fe80::1", 26379)),
                master="mymaster",
                db=3,
                username="u",
                password="p",
                sentinel_username="su",
                sentinel_password="s&p",
            ),
        ),
        (
            "rediss+cluster://:p@a:1,b:2",
            Target(kind=Kind.CLUSTER, addresses=(Address("a", 1), Address("b", 2)), password="p", tls={}),
        ),
    ],
    ids=["plain", "database", "encoded", "ipv6", "tls", "unchecked", "sentinel", "cluster"],
)
def test_a_url_says_where_and_how(url, expected):
    """One line of configuration for every kind of Redis."""
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        f"http://:{SECRET}@h",
        f"redis+://:{SECRET}@h",
        f"redis+proxy://:{SECRET}@h",
        f"unix://:{SECRET}@/tmp/x",
        f"redis://:{SECRET}@",
        f"redis://{SECRET}@h",
        f"redis://:{SECRET}@h:port",
        f"redis://:{SECRET}@h:0",
        f"redis://:{SECRET}@h:65536",
        f"redis://:{SECRET}@h/zero",
        f"redis://:{SECRET}@h/-1",
        f"redis://:{SECRET}@a,b",
        f"redis://:{SECRET}#@h",
        f"redis://:a?{SECRET}=x@h",
        f"redis://:a?{SECRET}@h",
        f"redis://:a/{SECRET}@h",
        f"redis://:{SECRET}@h?ssl_ca_certs=x",
        f"rediss://:{SECRET}@h?ssl_cert_reqs={SECRET}",
        f"rediss://:{SECRET}@h?ssl_check_hostname={SECRET}",
        f"redis://:{SECRET}@[::1",
        f"redis://:{SECRET}@[{SECRET}]x",
        f"redis+sentinel://:{SECRET}@h",
        f"redis+sentinel://:{SECRET}@h/m?db={SECRET}",
        f"redis+sentinel://:{SECRET}@h/m?db=1&db=2",
        f"redis+sentinel://:{SECRET}@h,/m",
        f"redis+cluster://:{SECRET}@h/1",
        f"redis+cluster://:{SECRET}@h?sentinel_password={SECRET}",
    ],
)
def test_a_bad_url_is_refused_without_a_word_of_it(url):
    """It has a password, and the error is printed at the start."""
    with pytest.raises(ValueError, match=".") as refused:
        check_url(url)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_no_secret_is_in_the_repr_of_a_target():
    """Whatever logs it."""
    target = parse_url(f"redis+sentinel://u:{SECRET}@h/m?sentinel_password={SECRET}")
    assert SECRET not in repr(target)
    assert SECRET not in str(target)
