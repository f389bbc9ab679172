"""Warm upstream connections on real sockets: whoever takes one gets one that works, and a server sees few of them."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from websockets.asyncio.server import Request, ServerConnection
from websockets.asyncio.server import serve as serve_websocket

from ops.simulator.faults import Fault
from ops.simulator.server import Simulator, serve
from relay.core.frames import Close
from relay.legs import Leg
from relay.rulebook.upstreams import UpstreamConfig
from relay.spares import Spare, Spares
from relay.upstream import Target, Upstreams
from tests.support.fleet import until

ONE, TWO = Target("sim-one"), Target("sim-two")
CREATED: Final = '{"type":"session.created","event_id":"event_1","session":{"id":"sess_1"}}'


class Taker:
    """The next owner of a leg: keeps what it is told."""

    def __init__(self, spare: Spare) -> None:
        self.leg = spare.leg
        self.events = [json.loads(message) for message in spare.messages]
        self.lost = False
        spare.leg.give(self, lambda message: self.events.append(json.loads(message)))

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None: ...

    def on_leg_violation(self, leg: Leg, violation: Any) -> None: ...

    def on_leg_close(self, leg: Leg, close: Close) -> None:
        leg.close(close)
        leg.disconnect()

    def on_leg_lost(self, leg: Leg) -> None:
        self.lost = True

    def on_leg_blocked(self, leg: Leg, blocked: bool) -> None: ...

    def on_leg_failed(self, leg: Leg, error: Exception) -> None:
        raise error


class Model:
    """A server that is told what to say first, and counts what is open."""

    def __init__(self) -> None:
        self.first: list[str | bytes] = [CREATED]
        self.models: list[str] = []  # of each connection that was asked for
        self.open: list[ServerConnection] = []
        self.most_open = self.handshakes = self.most_handshakes = 0
        self.closes: list[int | None] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator["Model"]:
        model = cls()
        async with serve_websocket(model._talk, "127.0.0.1", 0, process_request=model._admit) as server:
            model.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/realtime"
            yield model

    async def _admit(self, _: ServerConnection, request: Request) -> None:
        self.models.append(request.path.partition("model=")[2])
        self.handshakes += 1
        self.most_handshakes = max(self.most_handshakes, self.handshakes)
        await self.go_on.wait()
        await asyncio.sleep(0.02)
        self.handshakes -= 1

    async def _talk(self, ws: ServerConnection) -> None:
        self.open.append(ws)
        self.most_open = max(self.most_open, len(self.open))
        with contextlib.suppress(OSError):
            for message in self.first:
                await ws.send(message)
        await ws.wait_closed()
        self.open.remove(ws)
        self.closes.append(ws.close_code)


def config_of(url: str, name: str = "default") -> UpstreamConfig:
    return UpstreamConfig(name, url, headers=(("Authorization", "Bearer key"),))


def upstreams_of(configs: Mapping[str, UpstreamConfig], dial_seconds: float = 5.0) -> Upstreams:
    return Upstreams(
        lambda: configs,
        dial_seconds=dial_seconds,
        max_message=1 << 20,
        context=ssl.create_default_context(),
        user_agent="relay",
    )


@asynccontextmanager
async def spares_of(url: str, number: int, *, dial_seconds: float = 5.0, **options: Any) -> AsyncIterator[Spares]:
    upstreams = upstreams_of({"default": config_of(url)}, dial_seconds)
    async with Spares.running(upstreams, number, write_bytes=65_536, socket_bytes=65_536, **options) as spares:
        yield spares


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with serve() as running:
        yield running


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    async with Model.running() as running:
        yield running


async def ready(spares: Spares, number: int) -> None:
    await until(lambda: spares.ready == number)


def taken(spares: Spares, target: Target = ONE) -> Spare:
    spare = spares.take(target)
    assert spare is not None
    return spare


async def test_who_takes_one_can_talk_at_once(simulator):
    """What the server said before it was taken comes with it, all later messages come to the taker."""
    async with spares_of(simulator.url, 1) as spares:
        assert spares.take(ONE) is None
        await ready(spares, 1)
        taker = Taker(taken(spares))
        assert taker.types() == ["session.created"]
        assert taker.events[0]["session"]["model"] == ONE.model
        taker.leg.send(b'{"type":"response.create"}')
        await until(lambda: "response.done" in taker.types())
        await ready(spares, 1)
        assert (spares.counts.dialled, spares.counts.taken, spares.counts.missed) == (2, 1, 1)
    assert not taker.lost, "it belongs to its taker"
    taker.leg.abort()
    await until(lambda: simulator.ledger.open_count == 0)


async def test_there_is_none_before_anybody_asked_and_without_a_number(simulator):
    """The model's name comes with a call; a node that is not told to keep any opens none."""
    async with spares_of(simulator.url, 1), spares_of(simulator.url, 0) as none:
        for _ in range(3):
            assert none.take(ONE) is None
        await asyncio.sleep(0.1)
    assert simulator.ledger.ended_count == simulator.ledger.open_count == 0


ENDS: dict[str, Callable[[ServerConnection], Any]] = {
    "closes": lambda ws: ws.close(1001),
    "resets": lambda ws: ws.transport.abort(),
    "sends what is no frame": lambda ws: ws.transport.write(b"\xc1\x02{}"),
    "sends binary": lambda ws: ws.send(b"audio"),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_one_that_ended_is_not_handed_out_and_is_replaced(model, end):
    """A call that took it would have to dial after all, and later than it could have."""
    async with spares_of(model.url, 1) as spares:
        spares.take(ONE)
        await ready(spares, 1)
        (ws,) = model.open
        done = end(ws)
        if done is not None:
            await done
        await until(lambda: spares.counts.failed == 1)
        assert spares.take(ONE) is None
        await until(lambda: len(model.models) == 2)
        await ready(spares, 1)
        assert model.most_open == 1
        Taker(taken(spares)).leg.abort()


async def test_one_whose_server_answers_no_ping_is_thrown_away(simulator):
    """A way that swallows everything looks like a server that has nothing to say."""
    simulator.control.add_fault(Fault(stall=True))
    async with spares_of(simulator.url, 1, seconds=1.8) as spares:
        spares.take(ONE)
        await ready(spares, 1)
        await until(lambda: spares.counts.failed == 1)
        assert spares.take(ONE) is None, "it is being closed, which takes two seconds with such a server"
        await until(lambda: spares.counts.dialled == 2)


FLOODS = {
    "messages": [CREATED, *['{"type":"rate_limits.updated"}'] * 64],
    "bytes": [CREATED, json.dumps({"type": "noise", "text": "x" * 262_144})],
}


@pytest.mark.parametrize("first", FLOODS.values(), ids=FLOODS)
async def test_one_whose_server_says_too_much_is_thrown_away(model, first):
    """Nobody bounds what is kept for a taker who may never come but this."""
    model.first = first
    async with spares_of(model.url, 1) as spares:
        spares.take(ONE)
        await until(lambda: spares.counts.failed == 1)
        assert spares.take(ONE) is None
        await until(lambda: not model.open)


async def test_all_that_was_said_is_kept_up_to_the_limit(model):
    """In order, also what came before `session.created`."""
    model.first = ['{"type":"rate_limits.updated"}'] * 63 + [CREATED]
    async with spares_of(model.url, 1) as spares:
        spares.take(ONE)
        await ready(spares, 1)
        spare = taken(spares)
        assert [message.decode() for message in spare.messages] == model.first
        Taker(spare).leg.abort()


async def test_they_are_replaced_before_their_sessions_are_old(model):
    """Their clocks run from the connect; the server reads a farewell."""
    async with spares_of(model.url, 2, seconds=0.6) as spares:
        spares.take(ONE)
        await until(lambda: len(model.models) >= 6)
        assert spares.counts.failed == 0
        assert model.most_open <= 2
        assert set(model.closes) == {1000}


async def test_one_that_was_taken_is_left_alone(model):
    """It is as old as its call from now on."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with spares_of(model.url, 1, seconds=0.6) as spares:
        spares.take(ONE)
        await ready(spares, 1)
        taker = Taker(taken(spares))
        await until(lambda: 1000 in model.closes)  # the next one was old
        assert not taker.leg.closing
        assert taker.types() == ["session.created"]
    assert not taker.leg.closing
    taker.leg.abort()
    assert failures == []


async def test_targets_that_were_asked_for_share_the_number_the_last_one_first(model):
    """One model's calls must not leave another's without any."""
    async with spares_of(model.url, 3) as spares:
        spares.take(ONE)
        await ready(spares, 3)
        Taker(taken(spares)).leg.abort()
        spares.take(TWO)
        await ready(spares, 3)
        assert model.models == ["sim-one"] * 3 + ["sim-two"]
        Taker(taken(spares)).leg.abort()
        Taker(taken(spares)).leg.abort()
        await ready(spares, 3)
        assert model.models[4:] == ["sim-one", "sim-one"], "fewest, then asked for last"
        await until(lambda: len(model.open) == 3)


async def test_only_four_targets_are_remembered(model):
    """A client names the model: it must not fill a table with names."""
    async with spares_of(model.url, 6) as spares:
        for number in range(6):
            spares.take(Target(f"model-{number}"))
        await ready(spares, 6)
        assert model.models == [f"model-{number}" for number in (5, 4, 3, 2, 5, 4)]


async def test_one_is_dialled_at_a_time(model):
    """A node that starts, or a server that comes back, is not met by all of them at once."""
    model.go_on.clear()
    async with spares_of(model.url, 4) as spares:
        spares.take(ONE)
        await until(lambda: model.handshakes == 1)
        assert spares.take(ONE) is None
        model.go_on.set()
        await ready(spares, 4)
        assert model.most_handshakes == 1


async def test_a_server_that_refuses_is_asked_more_and_more_seldom(simulator):
    """Half a second at first, and twice as long each time, less some chance."""
    simulator.control.add_fault(Fault(refuse=503), 3)
    began = asyncio.get_running_loop().time()
    async with spares_of(simulator.url, 4) as spares:
        spares.take(ONE)
        await ready(spares, 4)
        assert spares.counts.failed == 3
    assert asyncio.get_running_loop().time() - began >= 0.25 + 0.5 + 1.0


async def test_a_server_that_says_nothing_is_left_in_time(model):
    """A connection without a session is none."""
    model.first = []
    async with spares_of(model.url, 1, dial_seconds=0.2) as spares:
        spares.take(ONE)
        await until(lambda: spares.counts.failed == 1)
        await until(lambda: not model.open)
        assert spares.take(ONE) is None


async def test_a_node_that_drains_closes_them_and_makes_no_more(model):
    """The calls that it still has go elsewhere."""
    async with spares_of(model.url, 2) as spares:
        spares.take(ONE)
        await ready(spares, 2)
        spares.stop()
        assert spares.take(ONE) is None
        await until(lambda: not model.open)
        await asyncio.sleep(0.1)
        assert len(model.models) == 2
        assert model.closes == [1000, 1000]


async def fail_at(moment: str, model: Model) -> None:
    """Leave the block with an error when the one spare has come so far."""
    async with spares_of(model.url, 1) as spares:
        come_to = {
            "handshake": lambda: model.handshakes == 1,
            "no session yet": lambda: len(model.open) == 1,
            "ready": lambda: spares.ready == 1,
        }
        spares.take(ONE)
        await until(come_to[moment])
        raise LookupError


@pytest.mark.parametrize("moment", ["handshake", "no session yet", "ready"])
async def test_at_the_end_all_are_closed(model, moment):
    """Whatever they wait for, and when the block ends with an error."""
    if moment == "handshake":
        model.go_on.clear()
    if moment == "no session yet":
        model.first = []
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await fail_at(moment, model)
    model.go_on.set()
    await until(lambda: not model.open and not model.handshakes)


async def test_a_server_that_answers_no_close_holds_up_the_end_for_two_seconds_at_most(simulator):
    """A node that stops must not wait for a server."""
    simulator.control.add_fault(Fault(stall=True))
    async with spares_of(simulator.url, 1) as spares:
        spares.take(ONE)
        await ready(spares, 1)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 4.0
    assert spares._held == []


async def test_one_of_another_upstream_is_none(simulator, model):
    """A call that was given to a server must not end up at another, under another name and at another price."""
    configs = {"one": config_of(simulator.url, "one"), "two": config_of(model.url, "two")}
    async with Spares.running(upstreams_of(configs), 2, write_bytes=65_536, socket_bytes=65_536) as spares:
        assert spares.take(ONE._replace(upstream="one")) is None
        await ready(spares, 2)
        assert spares.take(ONE._replace(upstream="two")) is None
        assert model.models == []
        Taker(taken(spares, ONE._replace(upstream="one"))).leg.abort()
        await ready(spares, 2)
        assert model.models == ["sim-one"]
        taker = Taker(taken(spares, ONE._replace(upstream="two")))
        assert taker.events == [json.loads(CREATED)]
        taker.leg.abort()


async def test_one_that_was_dialled_with_a_key_of_before_is_not_handed_out(model):
    """A rulebook that is read again says where calls go from now on."""
    configs = {"default": config_of(model.url)}
    async with Spares.running(upstreams_of(configs), 1, write_bytes=65_536, socket_bytes=65_536) as spares:
        spares.take(ONE)
        await ready(spares, 1)
        configs["default"] = UpstreamConfig("default", model.url, headers=(("Authorization", "Bearer new"),))
        assert spares.take(ONE) is None
        await ready(spares, 1)
        Taker(taken(spares)).leg.abort()
        del configs["default"]
        assert spares.take(ONE) is None


async def test_an_upstream_that_fails_keeps_no_other_waiting(model):
    """While one is asked more and more seldom, the other's spares come at once."""
    configs = {"down": config_of("ws://127.0.0.1:1/", "down"), "up": config_of(model.url, "up")}
    async with Spares.running(upstreams_of(configs), 2, write_bytes=65_536, socket_bytes=65_536) as spares:
        spares.take(ONE._replace(upstream="down"))
        await until(lambda: spares.counts.failed == 2)
        began = asyncio.get_running_loop().time()
        spares.take(ONE._replace(upstream="up"))
        await ready(spares, 2)
        assert asyncio.get_running_loop().time() - began < 0.4
        assert spares.counts.failed == 2
