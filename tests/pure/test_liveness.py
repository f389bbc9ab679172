"""The clocks of a leg: when it is pinged, when it is called silent, when stalled."""

from typing import Any

import pytest

from relay.core.liveness import Liveness, Pulse

STALL, PING, PONG = 15.0, 20.0, 10.0
FINE = Pulse.FINE


def look(at: float, **seen: Any) -> tuple[float, dict[str, Any]]:
    """One look at a leg; unless said otherwise it is read, not blocked, and nothing moved."""
    return at, {"received": 0, "reading": True, "blocked": False, "taken": 0, **seen}


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        pytest.param([look(0), look(19.9)], [FINE, FINE], id="quiet for a while"),
        pytest.param([look(19.9), look(20)], [FINE, Pulse.PING], id="quiet: pinged"),
        pytest.param([look(20), look(21), look(30)], [Pulse.PING, FINE, FINE], id="pinged once, time to answer"),
        pytest.param([look(20), look(30), look(30.1)], [Pulse.PING, FINE, Pulse.SILENT], id="no answer: silent"),
        pytest.param([look(20), look(29, received=1), look(48.9, received=1)], [Pulse.PING, FINE, FINE], id="answered"),
        pytest.param(
            [look(20), look(29, received=1), look(49, received=1), look(60, received=1)],
            [Pulse.PING, FINE, Pulse.PING, Pulse.SILENT],
            id="answered once, not twice",
        ),
        pytest.param([look(n, received=n) for n in range(1, 100, 9)], [FINE] * 11, id="frames come: no pings"),
        pytest.param(
            [look(n, reading=False) for n in range(0, 200, 10)], [FINE] * 20, id="not read: silence proves nothing"
        ),
        pytest.param(
            [look(20), look(25, reading=False), look(31), look(45)],
            [Pulse.PING, FINE, FINE, Pulse.PING],
            id="paused after a ping: its answer can't be seen",
        ),
        pytest.param(
            [look(1, blocked=True), look(15, blocked=True), look(15.1, blocked=True)],
            [FINE, FINE, Pulse.STALLED],
            id="takes no byte: stalled, and not before the limit",
        ),
        pytest.param(
            [look(14, blocked=True), look(15.5, blocked=True, taken=1), look(30.5, blocked=True, taken=1, received=1)],
            [FINE, FINE, FINE],
            id="one byte is progress",
        ),
        pytest.param(
            [look(n, blocked=True, taken=n, received=n) for n in range(1, 200, 10)], [FINE] * 20, id="slow, but moving"
        ),
        pytest.param(
            [look(1, blocked=True, taken=9), look(10, blocked=True, taken=5), look(16.5, blocked=True, taken=9)],
            [FINE, FINE, Pulse.STALLED],
            id="counts that step back and return are no progress",
        ),
        pytest.param(
            [look(14, blocked=True, received=1), look(14.5, received=2), look(28, blocked=True, received=3)],
            [FINE, FINE, FINE],
            id="free in between: the clock starts again",
        ),
        pytest.param(
            [look(n, blocked=True, reading=False) for n in (5, 10, 15.5)],
            [FINE, FINE, Pulse.STALLED],
            id="blocked and not read: stalled all the same",
        ),
        pytest.param(
            [look(15.5, blocked=True, received=7)], [Pulse.STALLED], id="a peer that talks but takes nothing is stalled"
        ),
    ],
)
def test_what_each_look_at_a_leg_asks_for(looks, expected):
    """A short Wi-Fi gap must not end a call, and a dead peer must not keep one."""
    life = Liveness(stall_seconds=STALL, ping_seconds=PING, pong_seconds=PONG, now=0.0)
    assert [life.look(at, **seen) for at, seen in looks] == expected


def test_the_clocks_start_when_the_leg_is_watched():
    """A model leg opens seconds after the client's; its past is no silence."""
    life = Liveness(stall_seconds=STALL, ping_seconds=PING, pong_seconds=PONG, now=1000.0)
    at, seen = look(1019.9)
    assert life.look(at, **seen) is FINE
    at, seen = look(1020.0)
    assert life.look(at, **seen) is Pulse.PING


def test_a_leg_that_is_paused_for_its_stalled_peer_is_never_called_silent_first():
    """The stall limit is below ping plus pong, so that the blocked leg's row is the one that counts."""
    paused = Liveness(stall_seconds=STALL, ping_seconds=PING, pong_seconds=PONG, now=0.0)
    blocked = Liveness(stall_seconds=STALL, ping_seconds=PING, pong_seconds=PONG, now=0.0)
    for second in range(1, 17):
        assert paused.look(second, received=0, reading=False, blocked=False, taken=0) is FINE
        pulse = blocked.look(second, received=0, reading=True, blocked=True, taken=0)
    assert pulse is Pulse.STALLED
