"""How many connections an address may have, and how fast it may begin requests."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.core.visitors import Crowd, Visitors

WITHIN, OVER, FLOOD = Crowd.WITHIN, Crowd.OVER, Crowd.FLOOD


def test_connections_beyond_the_limit_are_over_it_and_beyond_its_double_a_flood():
    """The first get an answer that says so; more of them would cost more than it helps."""
    visitors = Visitors(connections=2, starts_per_minute=0)
    assert [visitors.enter("a") for _ in range(5)] == [WITHIN, WITHIN, OVER, OVER, FLOOD]
    assert visitors.enter("b") is WITHIN


def test_who_leaves_makes_room():
    """What counts is what is open."""
    visitors = Visitors(connections=1, starts_per_minute=0)
    assert [visitors.enter("a"), visitors.enter("a")] == [WITHIN, OVER]
    visitors.leave("a")
    assert visitors.crowd("a") is WITHIN
    visitors.leave("a")
    assert visitors.remembered == 0


def test_a_limit_of_zero_is_none():
    """An operator whose load balancer does this switches it off."""
    visitors = Visitors(connections=0, starts_per_minute=0)
    assert {visitors.enter("a") for _ in range(10_000)} == {WITHIN}
    assert {visitors.start("a", 0.0) for _ in range(10_000)} == {0.0}
    for _ in range(10_000):
        visitors.fail("a", 0.0)
    assert not visitors.is_failing("a", 0.0)
    assert visitors.remembered == 1


def test_a_minutes_worth_may_be_begun_at_once_and_then_one_by_one():
    """A page opens several; afterwards the rate is the limit's."""
    visitors = Visitors(connections=0, starts_per_minute=6)
    assert [visitors.start("a", 100.0) for _ in range(6)] == [0.0] * 6
    assert visitors.start("a", 100.0) == pytest.approx(10.0)
    assert visitors.start("a", 105.0) == pytest.approx(5.0)
    assert visitors.start("a", 110.0) == 0.0
    assert visitors.start("a", 110.0) == pytest.approx(10.0)
    assert visitors.start("b", 110.0) == 0.0


def test_what_is_taken_back_of_somebody_unknown_changes_nothing():
    """The table may have lost the address meanwhile."""
    visitors = Visitors(connections=0, starts_per_minute=1)
    visitors.refund("a")
    assert visitors.remembered == 0
    assert [visitors.start("a", 0.0), visitors.start("a", 0.0)] == [0.0, pytest.approx(60.0)]


@settings(derandomize=True)
@given(st.integers(1, 50), st.lists(st.floats(0, 20), max_size=120))
def test_no_minute_has_more_than_twice_the_limit_and_who_waits_as_told_gets_in(limit, gaps):
    """The bucket holds a minute's worth, and one more runs in during a minute."""
    visitors, now, taken = Visitors(connections=0, starts_per_minute=limit), 0.0, list[float]()
    for gap in gaps:
        now += gap
        wait = visitors.start("a", now)
        if wait:
            now += wait
            assert visitors.start("a", now) == 0.0
        taken.append(now)
    for start in taken:
        assert sum(start <= at < start + 60.0 for at in taken) <= 2 * limit


@settings(derandomize=True)
@given(st.integers(1, 50), st.integers(0, 200))
def test_what_is_taken_back_was_never_counted(limit, number):
    """A backend with a good token may put in as many messages as its plan allows."""
    visitors = Visitors(connections=0, starts_per_minute=limit)
    for _ in range(number):
        assert visitors.start("a", 5.0) == 0.0
        visitors.refund("a")
    assert [visitors.start("a", 5.0) > 0 for _ in range(limit + 1)] == [*[False] * limit, True]


def test_connections_that_come_to_nothing_count_beyond_the_limit():
    """Starts are refused with an answer; a peer whose connections never get so far gets none for a while."""
    visitors = Visitors(connections=0, starts_per_minute=4)
    for _ in range(4):
        assert not visitors.is_failing("a", 0.0)
        visitors.fail("a", 0.0)
    assert visitors.start("a", 0.0) > 0.0
    assert not visitors.is_failing("a", 0.0)
    visitors.fail("a", 0.0)
    assert visitors.is_failing("a", 0.0)
    for _ in range(1000):
        visitors.fail("a", 0.0)
    assert not visitors.is_failing("a", 61.0)
    assert visitors.start("a", 121.0) == 0.0


def test_refused_starts_alone_never_close_the_door():
    """They are told when to come again."""
    visitors = Visitors(connections=0, starts_per_minute=4)
    for _ in range(1000):
        visitors.start("a", 0.0)
    assert not visitors.is_failing("a", 0.0)


def test_the_table_is_bounded_and_the_idlest_goes():
    """A flood from many addresses takes no memory without end, and doesn't free one that keeps asking."""
    visitors = Visitors(connections=0, starts_per_minute=2, addresses=10)
    for number in range(1000):
        visitors.start("busy", 0.0)
        visitors.fail("busy", 0.0)
        visitors.start(str(number), 0.0)
        visitors.fail(f"fails {number}", 0.0)
    assert visitors.remembered == 10
    assert visitors.start("busy", 0.0) > 0.0


class Comings(RuleBasedStateMachine):
    """Any order of comings and goings, against a plain count."""

    def __init__(self) -> None:
        super().__init__()
        self.visitors = Visitors(connections=2, starts_per_minute=0)
        self.open = dict.fromkeys("abc", 0)

    @rule(name=st.sampled_from("abc"))
    def enter(self, name):
        self.open[name] += 1
        assert self.visitors.enter(name) is self.visitors.crowd(name)

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data())
    def leave(self, data):
        name = data.draw(st.sampled_from([name for name, number in self.open.items() if number]))
        self.open[name] -= 1
        self.visitors.leave(name)

    @invariant()
    def counts_agree(self):
        for name, number in self.open.items():
            assert self.visitors.crowd(name) is (WITHIN if number <= 2 else OVER if number <= 4 else FLOOD)
        assert self.visitors.remembered == sum(number > 0 for number in self.open.values())


TestComings = Comings.TestCase
TestComings.settings = settings(derandomize=True, max_examples=50)
