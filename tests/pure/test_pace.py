"""The pace of a client: what comes faster than its plan allows is paid for by a pause, and nothing is dropped."""

import pytest

from relay.core.pace import BURST_SECONDS, Pace


def looks(pace: Pace, *, messages: float, size: float, every: float, until: float) -> list[float]:
    """The pauses of a client that sends evenly and is looked at evenly; it doesn't stop for them."""
    times = [every * number for number in range(1, round(until / every) + 1)]
    return [pace.look(round(messages * now), round(size * now), now) for now in times]


def test_without_limits_nothing_pauses():
    """Most calls have none."""
    assert Pace(None, None, 0.0).look(10**9, 10**12, 1.0) == 0.0


@pytest.mark.parametrize("every", [0.25, 2.5, 30.0], ids=["four a second", "as the watchdog looks", "rarely"])
def test_a_client_at_its_rate_is_never_paused(every):
    """However rarely one looks: what came between two looks had that time."""
    assert set(looks(Pace(50, 64_000, 0.0), messages=50, size=64_000, every=every, until=60.0)) == {0.0}


def test_a_burst_of_two_seconds_passes_and_what_is_beyond_is_paid_for():
    """A client whose network stood still sends what it held at once."""
    pace = Pace(50, None, 10.0)
    assert pace.look(round(50 * BURST_SECONDS), 0, 10.0) == 0.0
    assert pace.look(round(50 * BURST_SECONDS) + 25, 0, 10.0) == pytest.approx(0.5)


def test_after_the_pause_it_goes_on_at_its_rate():
    """The pause is as long as it takes: not one message more may come, nor is it held up for longer."""
    pace = Pace(10, None, 0.0)
    assert pace.look(50, 0, 0.0) == pytest.approx(3.0)
    assert pace.look(50, 0, 3.0) == pytest.approx(0.0)
    assert pace.look(51, 0, 3.0) == pytest.approx(0.1)


def test_bytes_and_messages_count_each_for_itself():
    """A few large messages cost what many small ones do not, and the other way round."""
    assert Pace(10, 1000, 0.0).look(1, 5000, 0.0) == pytest.approx(3.0)
    assert Pace(10, 1000, 0.0).look(50, 100, 0.0) == pytest.approx(3.0)


def test_idleness_is_not_saved_up():
    """An hour of silence allows no more than the burst."""
    pace = Pace(10, None, 0.0)
    assert pace.look(0, 0, 3600.0) == 0.0
    assert pace.look(30, 0, 3600.0) == pytest.approx(1.0)


def test_twice_the_rate_is_paused_half_of_the_time():
    """Over a while the rate holds."""
    pace, sent, now = Pace(100, None, 0.0), 0, 0.0
    while now < 60.0:
        sent, now = sent + 50, now + 0.25  # 200 a second, for as long as it is read
        now += pace.look(sent, 0, now)
    assert sent / now == pytest.approx(100, rel=0.05)
