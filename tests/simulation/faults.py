"""What goes wrong in a schedule: one fault, at one time, and its end. Each returns when everything is whole again."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.redis import Server

if TYPE_CHECKING:
    from tests.simulation.schedule import Schedule

Fault = Callable[["Schedule"], float]

_UNNOTICED_MAX = 9.0  # seconds of writes that may be lost in all


def nothing(schedule: "Schedule") -> float:
    """No fault."""
    return schedule.world.now


def failover(schedule: "Schedule") -> float:
    """The primary dies, and the replica has not all that it had."""
    old = schedule.home.primary
    old.is_dead = True
    for node in schedule.nodes:
        if schedule.world.chance(0.7):
            node.later(schedule.world.now + schedule.world.between(0, 0.1), node.link.lose)
    return _promote(schedule, old, 3.0)


def failover_of_frozen(schedule: "Schedule") -> float:
    """The same, but the old primary says nothing instead of being gone."""
    old = schedule.home.primary
    old.frozen_until = math.inf
    return _promote(schedule, old, 3.0)


def failover_split(schedule: "Schedule") -> float:
    """The old primary serves who has not heard of the new one, and all of that is lost."""
    return _promote(schedule, schedule.home.primary, 6.0)


def _promote(schedule: "Schedule", old: Server, slowest: float) -> float:
    world = schedule.world
    # What a replica lags and what it takes to notice are less than a message is held, by assumption.
    lag = world.between(0, world.random.choice((0.005, 0.5, 0.5, 0.5, _UNNOTICED_MAX - slowest)))
    new = schedule.home.promote(lag)
    noticed = [world.now + (world.between(0.1, slowest) if world.chance(0.7) else 0.1) for _ in schedule.nodes]
    for node, at in zip(schedule.nodes, noticed, strict=True):
        world.at(at, _switch, schedule, node.name, new)
    world.at(max(noticed), _demote, old)
    return max(noticed) + 1


def _switch(schedule: "Schedule", name: str, server: Server) -> None:
    node = next(node for node in schedule.nodes if node.name == name)
    if node.link.server is not server or node.link.is_down:
        node.later(schedule.world.now, node.link.switch)


def _demote(server: Server) -> None:
    server.is_dead = True


def restarted_empty(schedule: "Schedule") -> float:
    """The process dies, and another has its address and nothing of its data."""
    world, home = schedule.world, schedule.home
    home.primary.is_dead = True
    is_up_at = world.now + world.between(0.1, 3)
    world.at(is_up_at, _come_up_empty, schedule)
    return is_up_at + 3


def _come_up_empty(schedule: "Schedule") -> None:
    world = schedule.world
    new = schedule.home.replace()
    for node in schedule.nodes:
        world.at(world.now + world.between(0, 2), _switch, schedule, node.name, new)


def frozen(schedule: "Schedule") -> float:
    """Redis answers nothing for a while, then everything."""
    world = schedule.world
    seconds = world.between(0.1, 8)
    schedule.home.freeze(schedule.home.primary, seconds)
    for node in schedule.nodes:
        node.link.watch_silence(world.now + seconds)
    return world.now + seconds


def feeds_dropped(schedule: "Schedule") -> float:
    """Subscribers' connections are lost, once or several times."""
    world = schedule.world
    whole_at = world.now
    for node in schedule.nodes:
        for _ in range(world.random.choice((0, 1, 1, 3))):
            at = world.now + world.between(0, 2)
            back_at = at + world.between(0.05, 1.5)
            node.later(at, node.link.lose_feed)
            node.later(back_at, node.link.open_feed)
            whole_at = max(whole_at, back_at)
    return whole_at


def bells_lost(schedule: "Schedule") -> float:
    """Of what is published much is lost, and the rest is late."""
    for node in schedule.nodes:
        node.link.bells_lost = schedule.world.between(0, 1)
        node.link.bells_late = schedule.world.between(0, 2)
    return _mend_later(schedule)


def answers_lost(schedule: "Schedule") -> float:
    """Commands are carried out, and their answers don't come."""
    for node in schedule.nodes:
        node.link.answers_lost = schedule.world.between(0, 1)
    return _mend_later(schedule)


def _mend_later(schedule: "Schedule") -> float:
    at = schedule.world.now + schedule.world.between(0.5, 6)
    schedule.world.at(at, _mend, schedule)
    return at


def _mend(schedule: "Schedule") -> None:
    for node in schedule.nodes:
        node.link.bells_lost = node.link.bells_late = node.link.answers_lost = 0.0


def node_crashed(schedule: "Schedule") -> float:
    """A node dies; another process may come in its place."""
    world = schedule.world
    node = world.random.choice(schedule.nodes)
    node.crash()
    back_at = world.now + world.between(0.2, 5)
    if world.chance(0.7):
        world.at(back_at, node.restart)
    return back_at


def node_frozen(schedule: "Schedule") -> float:
    """A node stands still, and wakes."""
    world = schedule.world
    seconds = world.between(0.1, 12)
    node = world.random.choice(schedule.nodes)
    if world.chance(0.5):
        node.freeze(seconds)
        return world.now + seconds
    # As a client comes to it: what it asks for that client may be carried out when the client is elsewhere.
    world.random.choice(schedule.clients).move(node)
    frozen_at = world.now + node.delay * world.between(0, 4)
    world.at(frozen_at, node.freeze, seconds)
    return frozen_at + seconds


def link_cut(schedule: "Schedule") -> float:
    """A node and Redis don't reach each other."""
    world = schedule.world
    seconds = world.between(0.1, 12)
    node = world.random.choice(schedule.nodes)
    world.note("link of", node.name, "is cut for", f"{seconds:.3f} s")
    node.link.cut(seconds)
    return world.now + seconds


def leg_died(schedule: "Schedule") -> float:
    """The model's connection ends, once or several times, at whoever has the call."""
    world = schedule.world
    at = world.now
    for _ in range(world.random.choice((1, 1, 2, 4))):
        at += world.between(0, 0.5)
        world.at(at, schedule.kill_legs)
    return at + 1


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        nothing,
        failover,
        failover_of_frozen,
        failover_split,
        restarted_empty,
        frozen,
        feeds_dropped,
        bells_lost,
        answers_lost,
        node_crashed,
        node_frozen,
        link_cut,
        leg_died,
    )
}
