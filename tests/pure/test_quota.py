"""What a plan means in one region, and what a node admits that cannot ask."""

import pytest

from relay.core.quota import BURST_SECONDS, Alone, Limits, burst, limits, retry_after
from relay.rulebook.plans import Plan

GOLD = Plan(
    name="gold", concurrent_calls=100, call_starts_per_minute=60, call_minutes_per_day=1000.0, messages_per_second=10.0
)


def test_a_region_gets_its_share_of_every_number():
    """Regions don't ask each other: together they allow what the plan says."""
    assert limits(GOLD, 0.25) == Limits(25, 15, 15_000.0, 2.5)
    assert limits(GOLD, 1.0) == Limits(100, 60, 60_000.0, 10.0)


def test_what_a_plan_does_not_say_has_no_limit():
    """And nobody needs to be asked."""
    assert limits(Plan(), 0.5) == Limits()
    assert not Limits(messages_per_second=1.0).any_for_calls


@pytest.mark.parametrize("held", [Limits(concurrent=1), Limits(starts_per_minute=1), Limits(seconds_per_day=1.0)])
def test_any_limit_of_calls_has_to_be_counted(held):
    """Each for itself."""
    assert held.any_for_calls


def test_whoever_may_call_at_all_may_do_it_in_every_region():
    """A share below one would otherwise be nothing."""
    assert limits(Plan(concurrent_calls=1, call_starts_per_minute=2), 0.1)[:2] == (1, 1)


@pytest.mark.parametrize(("number", "share", "part"), [(100, 0.29, 29), (10, 0.7, 7), (3, 1 / 3, 1), (7, 0.5, 3)])
def test_a_part_is_rounded_down_but_loses_nothing_to_arithmetic(number, share, part):
    """100 * 0.29 is 28.999999999999996."""
    assert limits(Plan(concurrent_calls=number), share).concurrent == part


def test_a_day_is_spent_when_its_seconds_are_used_up():
    """Not before; and never without a limit."""
    assert not Limits(seconds_per_day=60.0).is_spent(59.9)
    assert Limits(seconds_per_day=60.0).is_spent(60.0)
    assert not Limits().is_spent(1e9)


def test_one_message_may_always_come_at_once():
    """A slow rate must not mean never."""
    assert burst(0.1) == 1.0
    assert burst(10.0) == 10 * BURST_SECONDS


NOON = 20_000 * 86_400.0 + 43_200


@pytest.mark.parametrize(
    ("refused", "seconds", "answer"),
    [
        ("concurrent", 0.0, 5),
        ("starts", 0.2, 1),
        ("starts", 7.1, 8),
        ("minutes", 0.0, 43_200),
        ("minutes", 43_199.5, 43_200),
        ("unknown", 0.0, 5),
        ("unknown", 9.7, 10),
        ("messages", 0.001, 1),
    ],
)
def test_a_refusal_says_in_whole_seconds_when_to_try_again(refused, seconds, answer):
    """A header with 0 would be a loop."""
    assert retry_after(refused, seconds, NOON) == answer


def test_alone_a_tenant_may_have_as_many_calls_on_a_node_as_in_the_region():
    """More than that it never has; what other nodes admit is not known."""
    alone, held = Alone(), Limits(concurrent=2)
    assert [alone.admit("acme", held, live, 0.0) for live in (0, 1, 2)] == [("", 0.0), ("", 0.0), ("concurrent", 0.0)]


def test_alone_starts_are_counted_by_tenant():
    """One that begins too many holds up no other."""
    alone, held = Alone(), Limits(starts_per_minute=3)
    assert [alone.admit("acme", held, 0, 0.0)[0] for _ in range(4)] == ["", "", "", "starts"]
    assert alone.admit("acme", held, 0, 5.0) == ("starts", pytest.approx(15.0))
    assert alone.admit("acme", held, 0, 20.1) == ("", 0.0)
    assert alone.admit("other", held, 0, 5.0) == ("", 0.0)


def test_alone_the_minutes_of_the_day_are_not_known():
    """The policy that lets calls in lets these in; the first report after the outage ends what is too much."""
    assert Alone().admit("acme", Limits(seconds_per_day=1.0), 50, 0.0) == ("", 0.0)


def test_what_a_node_counts_alone_is_bounded():
    """Whatever names there are: the idlest is forgotten, which lets more in, not less."""
    alone = Alone()
    assert alone.take("first", 0.001, 1.0, 0.0) == 0.0
    assert alone.take("first", 0.001, 1.0, 0.0) > 0
    for number in range(10_000):
        alone.take(number, 1.0, 1.0, 0.0)
    assert alone.take("first", 0.001, 1.0, 0.0) == 0.0


def test_a_rate_allows_its_burst_and_then_one_at_a_time():
    """As in Redis."""
    alone = Alone()
    assert [alone.take("k", 2.0, 4.0, 0.0) for _ in range(5)] == [0, 0, 0, 0, pytest.approx(0.5)]
    assert alone.take("k", 2.0, 4.0, 0.5) == 0.0
    assert alone.take("k", 2.0, 4.0, 0.5) == pytest.approx(0.5)
