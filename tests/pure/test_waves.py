"""The order in which a node that drains lets its calls go."""

from collections.abc import Callable

import pytest

from relay.core.waves import Waves

TICK = 0.05
TIME = 300.0


class Call:
    """One that can move, between two turns, unless said otherwise; a move takes ``seconds``."""

    def __init__(
        self,
        *,
        can_move: bool | Callable[[float], bool] = True,
        moment: Callable[[float], bool] = lambda _: True,
        seconds: float = 0.0,
    ) -> None:
        self._can_move = can_move
        self._moment = moment
        self.seconds = seconds
        self.looks = 0
        self.now = 0.0

    @property
    def can_move(self) -> bool:
        return self._can_move if isinstance(self._can_move, bool) else self._can_move(self.now)

    def moment(self, now: float) -> bool:
        self.looks += 1
        return self._moment(now)


class Node:
    """The calls of a node, tick by tick; ``begun`` is when which call's move began."""

    def __init__(self, calls: list[Call], *, seconds: float = TIME, every: float = TICK, **limits: float) -> None:
        self.waves: Waves[Call] = Waves(started=0.0, seconds=seconds, **limits)
        self.live = dict.fromkeys(calls)
        self._every = every
        self.begun: list[tuple[float, Call]] = []
        self.now = 0.0
        self.most_moving = 0

    def tick(self) -> list[Call]:
        """One tick; returns whose move began."""
        for at, call in self.begun:
            if self.now >= at + call.seconds:
                self.live.pop(call, None)
        for call in self.live:
            call.now = self.now
        begun = list(self.waves.on_tick(self.now, list(self.live)))
        self.begun += [(self.now, call) for call in begun]
        self.most_moving = max(self.most_moving, self.waves.moving)
        self.now = round(self.now + self._every, 6)
        return begun

    def run(self, until: float) -> None:
        """All ticks before a time."""
        while self.now < until:
            self.tick()

    def times(self) -> list[float]:
        return [at for at, _ in self.begun]


def busiest_second(times: list[float]) -> int:
    return max(sum(start <= at < start + 1.0 for at in times) for start in times)


def test_moves_are_begun_at_the_rate_and_no_faster():
    """Each of them is a resume and a new model leg on the nodes that are left."""
    node = Node([Call() for _ in range(200)])
    node.run(until=20.0)
    assert len(node.begun) == 200
    assert busiest_second(node.times()) <= 22  # and what a tick that comes late may make up for
    assert node.times()[-1] == pytest.approx(10.0, abs=0.2)


def test_a_node_with_many_calls_moves_them_faster_so_that_half_of_the_time_is_enough():
    """The deadline is for those that find no boundary, not for those that stood in line."""
    node = Node([Call() for _ in range(900)], seconds=30.0)
    node.run(until=15.1)
    assert len(node.begun) == 900
    assert busiest_second(node.times()) <= 67


def test_ticks_that_come_late_do_not_slow_the_pace():
    """A node that ends hundreds of calls is a busy one."""
    node = Node([Call() for _ in range(200)], every=0.09)
    node.run(until=4.5)
    assert len(node.begun) == pytest.approx(4.5 * 20, abs=3)


def test_a_quiet_time_is_not_made_up_for_at_once():
    """Else a pause in which nobody could be moved ends with a flood."""
    node = Node([Call(moment=lambda now: now >= 10.0) for _ in range(100)])
    node.run(until=30.0)
    assert node.times()[0] == 10.0
    assert busiest_second(node.times()) <= 22


def test_no_more_than_so_many_are_under_way():
    """While the bus is away no call can be handed over, and nobody should be cut off for nothing."""
    node = Node([Call(seconds=1e9) for _ in range(100)])
    node.run(until=100.0)
    assert (node.most_moving, len(node.begun)) == (32, 32)
    assert (node.waves.moving, node.waves.waiting, node.waves.moved) == (32, 68, 0)


def test_the_next_goes_when_one_is_gone():
    """Slow ends slow the drain down, they do not stop it."""
    node = Node([Call(seconds=1.0) for _ in range(5)], at_once=2)
    node.run(until=10.0)
    assert node.times() == pytest.approx([0.0, 0.05, 1.0, 1.05, 2.0], abs=0.06)
    assert (node.waves.moved, node.waves.moving, node.live) == (5, 0, {})


def test_a_call_goes_at_its_turn_boundary():
    """Before it somebody would be cut short."""
    talks, listens = Call(moment=lambda now: 7.0 <= now < 7.3), Call()
    node = Node([talks, listens])
    node.run(until=20.0)
    assert node.begun == [(0.0, listens), (7.0, talks)]


def test_in_the_last_quarter_nobody_waits_for_a_boundary():
    """A sentence that is interrupted is better than a call that is ended."""
    talks = Call(moment=lambda _: False)
    node = Node([talks], seconds=100.0)
    node.run(until=100.0)
    assert node.begun == [(75.0, talks)]


def test_those_that_never_stopped_talking_all_go_in_the_last_quarter():
    """At the rate of the start there would not be the time."""
    node = Node([Call(moment=lambda _: False) for _ in range(2000)])
    node.run(until=TIME)
    assert len(node.begun) == 2000
    assert TIME * 3 / 4 <= node.times()[0] < node.times()[-1] <= TIME * 7 / 8 + TICK


def test_a_call_that_cannot_move_stays_until_the_deadline():
    """Its person would have to begin anew: as late as can be, and they may be done by then."""
    pinned = Call(can_move=False)
    node = Node([pinned], seconds=10.0)
    node.run(until=10.0)
    assert (node.begun, pinned.looks, node.waves.pinned, node.waves.waiting) == ([], 0, 1, 0)
    assert node.waves.rest(node.live) == ([], [pinned])
    assert node.waves.ended == 1


def test_calls_that_stay_do_not_hasten_the_others():
    """The pace is for those that can move."""
    node = Node([Call() for _ in range(50)] + [Call(can_move=False) for _ in range(2000)], seconds=30.0)
    node.run(until=30.0)
    assert len(node.begun) == 50
    assert busiest_second(node.times()) <= 22


def test_a_call_that_is_announced_during_the_drain_is_moved_then():
    """It was admitted just before: its client learns only now how to resume."""
    call = Call(can_move=lambda now: now >= 3.0)
    node = Node([call])
    node.run(until=1.0)
    assert node.waves.pinned == 1
    node.run(until=10.0)
    assert node.begun == [(3.0, call)]


def test_a_call_that_comes_during_the_drain_is_seen():
    """A request may be past all checks when the drain begins."""
    node = Node([])
    node.tick()
    late = Call()
    node.live[late] = None
    assert node.tick() == [late]


def test_a_call_that_ends_by_itself_is_neither_moved_nor_ended():
    """Its person hung up."""
    node = Node([Call(moment=lambda _: False), Call(can_move=False)])
    node.tick()
    node.live.clear()
    node.tick()
    waves = node.waves
    assert (waves.moved, waves.ended, waves.moving, waves.waiting, waves.pinned) == (0, 0, 0, 0, 0)


def test_a_tick_looks_at_no_more_than_a_part_of_the_calls():
    """Thousands of looks at once would hold up everybody's audio; in turn all are looked at."""
    calls = [Call(moment=lambda _: False) for _ in range(1000)]
    node = Node(calls)
    node.tick()
    assert sum(call.looks for call in calls) == 256
    for _ in range(3):
        node.tick()
    assert {call.looks for call in calls} == {1, 2}


def test_at_the_deadline_all_that_can_move_is_moved_and_the_rest_ended():
    """Also where the time is zero; who is on the way already is left alone."""
    going, talks, pinned = Call(seconds=1e9), Call(moment=lambda _: False), Call(can_move=False)
    node = Node([going, talks, pinned])
    node.tick()
    moved, ended = node.waves.rest(node.live)
    assert (moved, ended) == ([talks], [pinned])
    assert (node.waves.moving, node.waves.waiting, node.waves.ended) == (2, 0, 1)


def test_a_move_that_takes_too_long_is_an_end():
    """It must not be counted as moved afterwards."""
    slow, quick = Call(), Call()
    waves: Waves[Call] = Waves(started=0.0, seconds=0.0)
    assert set(waves.rest([slow, quick])[0]) == {slow, quick}
    assert waves.overdue([slow]) == [slow]
    waves.note([])
    assert (waves.moved, waves.ended, waves.moving) == (1, 1, 0)
