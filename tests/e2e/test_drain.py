"""A node that drains: what goes first, what stays until the deadline, and how its process ends."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio as redis

from relay.app import Node
from relay.calls import Lives
from relay.config import Settings
from relay.core.endings import Ending, Why
from relay.demo import declare_settled
from relay.draining import Draining
from relay.sideband import SideLeg
from tests.e2e.test_resume import ASK, connect, minted, say, talk
from tests.support.fleet import Nodes, bearer, closed, event, token, until
from tests.support.redis_server import RedisServer

Socket = aiohttp.ClientWebSocketResponse
NO_DRAIN = {"moving": 0.0, "pinned": 0.0, "waiting": 0.0}


async def pinned_call(nodes: Nodes, node: Node) -> Socket:
    """A call whose client cannot resume it: its token names no call, and it takes no events of the relay's."""
    client = await nodes.connect(node)
    await event(client, "session.created")
    return client


def id_of(client: Socket) -> str:
    return client._response.headers["X-Call-Id"]


async def status(nodes: Nodes, node: Node) -> Any:
    """What the node says of its drain."""
    async with nodes.http.get(node.ops_url + "/status") as response:
        return (await response.json())["drain"]


async def metrics(nodes: Nodes, node: Node) -> dict[str, float]:
    """The samples of the drain."""
    async with nodes.http.get(node.ops_url + "/metrics") as response:
        lines = [line.rpartition(" ") for line in (await response.text()).splitlines()]
    return {name: float(value) for name, _, value in lines if name.startswith("relay_drain")}


def samples(draining: float, moved: float, ended: float, **states: float) -> dict[str, float]:
    by_state = {f'relay_drain_calls{{state="{name}"}}': states.get(name, 0) for name in NO_DRAIN}
    return by_state | {"relay_draining": draining, "relay_drain_moved_total": moved, "relay_drain_ended_total": ended}


async def test_first_of_all_it_takes_nothing_new(nodes: Nodes) -> None:
    """A balancer, a client and a backend must each hear it, before anybody is sent away."""
    node = await nodes.add(DRAIN_SECONDS="60")
    client = await pinned_call(nodes, node)
    node.drain()
    async with nodes.http.get(node.ops_url + "/readyz") as response:
        assert (response.status, await response.text()) == (503, "draining\n")
    async with nodes.http.get(
        node.url + "/v1/realtime?model=sim",
        headers=bearer(token("call"))
        | {"Connection": "Upgrade", "Upgrade": "websocket"}
        | {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="},
    ) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert (await response.json())["error"]["code"] == "node_draining"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await nodes.http.ws_connect(f"{node.url}/v1/realtime?call_id={id_of(client)}", headers=bearer(token("control")))
    assert refused.value.status == 503
    await client.close()


async def test_side_legs_go_at_once_and_the_call_stays(nodes: Nodes) -> None:
    """They lose nothing: their backends attach through another node."""
    node = await nodes.add(DRAIN_SECONDS="60")
    client = await pinned_call(nodes, node)
    side = await nodes.http.ws_connect(
        f"{node.url}/v1/realtime?call_id={id_of(client)}", headers=bearer(token("control"))
    )
    await event(side, "session.created")
    node.drain()
    assert (await closed(side))[0] == 1012
    await client.send_str('{"type": "input_audio_buffer.clear"}')
    await event(client, "input_audio_buffer.cleared")
    await client.close()


async def test_a_call_that_cannot_be_moved_stays_until_the_deadline(nodes: Nodes) -> None:
    """Then it is told to come back, anew; the tombstone says why, and the numbers say how many."""
    node, other = await nodes.add("a", DRAIN_SECONDS="1"), await nodes.add("b")
    client = await pinned_call(nodes, node)
    assert await status(nodes, node) is None
    assert await metrics(nodes, node) == samples(draining=0, moved=0, ended=0)
    clock = asyncio.get_running_loop().time
    begun = clock()
    node.drain()
    found = await status(nodes, node)
    assert found["deadline"] - found.pop("started_at") == pytest.approx(1.0, abs=0.01)
    del found["deadline"]
    assert found == {"moved": 0, "moving": 0, "pinned": 1, "left": 1, "ended": 0}
    assert await metrics(nodes, node) == samples(draining=1, moved=0, ended=0, pinned=1)
    code, events = await closed(client)
    assert (code, events) == (1012, [])
    assert 1.0 <= clock() - begun < 3.0
    async with asyncio.timeout(10):
        await node.wait_drained()
    found = await status(nodes, node)
    assert {key: found[key] for key in ("moved", "moving", "pinned", "left", "ended")} == {
        **dict.fromkeys(("moved", "moving", "pinned", "left"), 0),
        "ended": 1,
    }
    assert await metrics(nodes, node) == samples(draining=1, moved=0, ended=1)

    async def accounted() -> bool:
        answer = await nodes.get(other, f"/v1/realtime/calls/{id_of(client)}")
        return answer[0] == 200 and answer[1].get("why") == "node_draining"

    await until(accounted)


async def test_a_drain_is_over_when_the_last_call_is(nodes: Nodes) -> None:
    """Nobody waits for a deadline that has lost its point; who hung up is counted as neither moved nor ended."""
    node = await nodes.add(DRAIN_SECONDS="60")
    clients = [await pinned_call(nodes, node) for _ in range(2)]
    node.drain()
    for client in clients:
        await client.close()
    async with asyncio.timeout(10):
        await node.wait_drained()
    assert await metrics(nodes, node) == samples(draining=1, moved=0, ended=0)


async def test_a_drain_without_calls_is_over_at_once(nodes: Nodes) -> None:
    """A rollout should not wait for an idle node."""
    node = await nodes.add(DRAIN_SECONDS="60")
    node.drain()
    async with asyncio.timeout(2):
        await node.wait_drained()


async def test_a_drain_that_is_asked_for_again_goes_on_as_it_was(nodes: Nodes) -> None:
    """A pre-stop hook and SIGTERM may both ask: the deadline is that of the first."""
    node = await nodes.add(DRAIN_SECONDS="60")
    client = await pinned_call(nodes, node)
    node.drain()
    first = await status(nodes, node)
    async with nodes.http.post(node.ops_url + "/drain") as response:
        assert (response.status, await response.json()) == (202, {"state": "draining"})
    node.drain()
    assert await status(nodes, node) == first
    assert not client.closed
    await client.close()


async def test_a_node_that_is_hurried_waits_for_nobody(nodes: Nodes) -> None:
    """Somebody at a terminal wants it gone."""
    node = await nodes.add(DRAIN_SECONDS="60")
    client = await pinned_call(nodes, node)
    node.drain()
    node.hurry()
    assert (await closed(client, 3))[0] == 1012
    async with asyncio.timeout(5):
        await node.wait_drained()


# Calls whose clients can come back


async def resumable_call(nodes: Nodes, node: Node, **options: Any) -> tuple[Socket, str]:
    """A call with a client secret, and the secret."""
    key, _ = await minted(nodes, node)
    client = await connect(nodes, node, key, **options)
    await event(client, "session.created")
    return client, key


async def test_resumable_calls_are_moved_one_by_one_each_between_two_turns(nodes: Nodes) -> None:
    """Their clients find their conversations on another node; who is being spoken to is not cut short."""
    node, other = await nodes.add("a", DRAIN_SECONDS="60"), await nodes.add("b")
    calls = [await resumable_call(nodes, node) for _ in range(3)]
    for number, (client, _) in enumerate(calls):
        await talk(client, f"This is call number {number}.")
    *idle, (busy, _) = calls
    await busy.send_json(say("talk for 2 seconds"))
    await busy.send_json(ASK)
    await event(busy, "response.output_audio.delta")
    node.drain()
    for client, _ in idle:
        assert await closed(client, 3) == (1012, [])
    found = await status(nodes, node)
    assert {key: found[key] for key in ("pinned", "left", "ended")} == {"pinned": 0, "left": 1, "ended": 0}
    assert (await metrics(nodes, node))['relay_drain_calls{state="waiting"}'] == 1
    code, events = await closed(busy)
    assert (code, events[-1]["type"], events[-1]["response"]["status"]) == (1012, "response.done", "completed")
    async with asyncio.timeout(5):
        await node.wait_drained()
    assert await metrics(nodes, node) == samples(draining=1, moved=3, ended=0)
    for number, (gone, key) in enumerate(calls):
        client = await connect(nodes, other, key)
        assert id_of(client) == id_of(gone)
        await event(client, "session.created")
        await talk(client, "And now?")
        _, transcript = await nodes.get(other, f"/v1/realtime/calls/{id_of(client)}/transcript")
        assert transcript["data"][0]["text"] == f"This is call number {number}."
        await client.close()


async def test_a_client_that_knows_relay_events_is_told_before_the_close(nodes: Nodes) -> None:
    """It can connect anew before it has let go of anything; no other client gets an event that it does not know."""
    node = await nodes.add("a", DRAIN_SECONDS="60")
    client = await nodes.connect(node, protocols=["relay.events.v1"])
    await event(client, "session.created")
    node.drain()
    code, events = await closed(client)
    assert code == 1012
    told = {"call_id": id_of(client), "node": "a", "region": "iad", "reason": "node_draining"}
    assert events[-1] == {"type": "relay.moving", "event_id": events[-1]["event_id"], **told}


async def test_in_the_last_quarter_who_is_still_spoken_to_is_moved_too(nodes: Nodes) -> None:
    """The answer is cut short, but the call is not lost."""
    node, other = await nodes.add("a", DRAIN_SECONDS="2"), await nodes.add("b")
    client, key = await resumable_call(nodes, node)
    await client.send_json(say("talk for 30 seconds"))
    await client.send_json(ASK)
    await event(client, "response.output_audio.delta")
    clock = asyncio.get_running_loop().time
    begun = clock()
    node.drain()
    code, events = await closed(client)
    assert (code, "response.done" in {each["type"] for each in events}) == (1012, False)
    assert 1.4 < clock() - begun < 2.0
    again = await connect(nodes, other, key)
    await event(again, "session.created")
    await again.close()


async def test_a_node_without_time_still_hands_over_who_can_move(nodes: Nodes) -> None:
    """And ends the others, as its clients are told by the same code."""
    other = await nodes.add("b")
    async with nodes.node("a", DRAIN_SECONDS="0") as node:
        client, key = await resumable_call(nodes, node)
        pinned = await pinned_call(nodes, node)
        await talk(client, "My name is Ada.")
        leaving = [asyncio.get_running_loop().create_task(closed(each)) for each in (client, pinned)]
    assert [(await each)[0] for each in leaving] == [1012, 1012]
    answer = await nodes.get(other, f"/v1/realtime/calls/{id_of(pinned)}")
    assert (answer[1]["state"], answer[1]["why"]) == ("ended", "node_draining")
    again = await connect(nodes, other, key)
    await event(again, "session.created")
    assert id_of(again) == id_of(client)
    await again.close()


async def test_a_node_drains_in_its_time_though_redis_does_not_answer(tmp_path: Path) -> None:
    """No call can be handed over then; the node must not wait for that, its orchestrator would kill it."""
    server = RedisServer().start()
    try:
        async with Nodes.running(server.url, tmp_path) as nodes:
            await declare_settled(server.url, nodes.prefix)
            clock = asyncio.get_running_loop().time
            async with nodes.node("a", DRAIN_SECONDS="2", CLOSE_SECONDS="0.5") as node:
                client, _ = await resumable_call(nodes, node)
                pinned = await pinned_call(nodes, node)
                await asyncio.to_thread(server.freeze)
                begun = clock()
                node.drain()
                assert (await closed(client))[0] == 1012
                assert (await closed(pinned))[0] == 1012
                await node.wait_drained()
                assert clock() - begun < 5
            assert clock() - begun < 10
    finally:
        await asyncio.to_thread(server.stop)


# The draining itself, with calls that do what is wanted of them


class Call:
    """One that can move unless it is pinned, and is gone as soon as it is told to."""

    def __init__(self, name: str, *, pinned: bool = False, hangs: bool = False, fails: bool = False) -> None:
        self.call_id = name
        self.can_move = not pinned
        self.told: list[str] = []
        self._hangs = hangs
        self._fails = fails
        self._gone = asyncio.Event()

    async def run(self) -> None:
        await self._gone.wait()

    def moment(self, now: float) -> bool:
        return True

    def move(self) -> None:
        self.told.append("move")
        if self._fails:
            raise RuntimeError("a bug")
        if not self._hangs:
            self._gone.set()

    def end(self, ending: Ending) -> None:
        assert ending.why is Why.NODE_DRAINING
        self.told.append("end")
        self._gone.set()


@asynccontextmanager
async def draining(nodes: Nodes, *calls: Call, **env: str) -> AsyncIterator[Draining]:
    """A drain of these calls, and of no side legs."""
    settings = Settings.from_env(nodes.environment("a", **env))
    lives: Lives[Call]
    legs: Lives[SideLeg]
    async with Lives.running() as lives, Lives.running() as legs:
        for call in calls:
            lives.start(call)
        drain = Draining(settings, lives, legs, wall=lambda: 1_000_000.0)
        async with drain.running():
            yield drain


async def test_calls_that_can_move_are_moved_and_counted(nodes: Nodes) -> None:
    """One after the other, each as soon as it may."""
    calls = [Call(str(number)) for number in range(3)]
    async with draining(nodes, *calls, DRAIN_SECONDS="60") as drain:
        drain.begin()
        async with asyncio.timeout(5):
            await drain.wait_over()
        assert [call.told for call in calls] == [["move"]] * 3
        assert (drain.moved, drain.ended, drain.by_state()) == (3, 0, NO_DRAIN)


async def test_a_drain_without_time_moves_who_can_move_and_ends_the_rest_at_once(nodes: Nodes) -> None:
    """As does leaving the node without a drain, in a test or by a bug."""
    moves, pinned = Call("moves"), Call("pinned", pinned=True)
    async with draining(nodes, moves, pinned, DRAIN_SECONDS="0") as drain:
        pass
    assert (moves.told, pinned.told) == (["move"], ["end"])
    assert (drain.moved, drain.ended) == (1, 1)


async def test_a_call_that_cannot_be_handed_over_is_ended_when_nobody_waits_any_longer(nodes: Nodes) -> None:
    """The bus may be away for longer than the node has."""
    hangs = Call("hangs", hangs=True)
    async with draining(nodes, hangs, DRAIN_SECONDS="0", CLOSE_SECONDS="0.1") as drain:
        drain.begin()
        await until(lambda: drain.by_state()["moving"] == 1)
        async with asyncio.timeout(5):
            await drain.wait_over()
    assert hangs.told == ["move", "end"]
    assert (drain.moved, drain.ended) == (0, 1)


@pytest.mark.parametrize("seconds", ["1", "0"])
async def test_a_call_with_a_bug_keeps_no_other(nodes: Nodes, seconds: str) -> None:
    """It is ended at last, which the node can do without its help."""
    calls = [Call("fails", fails=True), Call("moves"), Call("fails too", fails=True), Call("pinned", pinned=True)]
    async with draining(nodes, *calls, DRAIN_SECONDS=seconds, CLOSE_SECONDS="0.1") as drain:
        drain.begin()
        async with asyncio.timeout(8):
            await drain.wait_over()
    assert [call.told for call in calls] == [["move", "end"], ["move"], ["move", "end"], ["end"]]
    assert (drain.moved, drain.ended) == (1, 3)


# Its process


@asynccontextmanager
async def serving(nodes: Nodes, **env: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    """``relay serve`` as a process, and its ready file to be."""
    ready = nodes.folder / "ready.json"
    with (nodes.folder / "log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "serve", "--ready-file", str(ready)),
            env=os.environ | nodes.environment("a", **env),
            stdout=output,
            stderr=output,
        )
    try:
        yield process, ready
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def up(ready: Path) -> Node:
    """Until the process is ready."""
    await until(ready.exists, 30)
    found = json.loads(await asyncio.to_thread(ready.read_text))
    return Node(found["url"], found["ops_url"], *[None] * 4)  # type: ignore[arg-type]


async def exit_code(process: asyncio.subprocess.Process, seconds: float = 10.0) -> int:
    async with asyncio.timeout(seconds):
        return await process.wait()


async def by_signal(nodes: Nodes, node: Node, process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGTERM)


async def by_request(nodes: Nodes, node: Node, process: asyncio.subprocess.Process) -> None:
    async with nodes.http.post(node.ops_url + "/drain") as response:
        assert response.status == 202


@pytest.mark.parametrize("drain", [by_signal, by_request])
async def test_a_process_that_drained_ends_well(nodes: Nodes, drain: Callable[..., Any]) -> None:
    """Its orchestrator counts anything but 0 as a crash; the call that it had to end is accounted for by then."""
    async with serving(nodes, DRAIN_SECONDS="1") as (process, ready):
        node, other = await up(ready), await nodes.add("b")
        client = await pinned_call(nodes, node)
        await drain(nodes, node, process)
        assert (await closed(client))[0] == 1012
        assert await exit_code(process) == 0
        found = (await nodes.get(other, f"/v1/realtime/calls/{id_of(client)}"))[1]
        assert (found["state"], found["why"]) == ("ended", "node_draining")


async def test_a_second_signal_ends_the_process_at_once(nodes: Nodes) -> None:
    """Well, all the same: who can come back is handed over in the middle of a word, the others are accounted for."""
    async with serving(nodes, DRAIN_SECONDS="300") as (process, ready):
        node, other = await up(ready), await nodes.add("b")
        pinned, (busy, key) = await pinned_call(nodes, node), await resumable_call(nodes, node)
        await busy.send_json(say("talk for 30 seconds"))
        await busy.send_json(ASK)
        await event(busy, "response.output_audio.delta")
        process.send_signal(signal.SIGTERM)

        async def heard() -> bool:
            return await status(nodes, node) is not None

        await until(heard)
        process.send_signal(signal.SIGTERM)
        async with asyncio.TaskGroup() as tasks:
            codes = [tasks.create_task(closed(client, 5)) for client in (pinned, busy)]
        assert [code.result()[0] for code in codes] == [1012, 1012]
        assert await exit_code(process, 5) == 0
        assert (await nodes.get(other, f"/v1/realtime/calls/{id_of(pinned)}"))[1]["why"] == "node_draining"
        again = await connect(nodes, other, key)
        assert id_of(again) == id_of(busy)
        await event(again, "session.created")
        await again.close()


async def test_a_process_that_drained_leaves_no_key_of_its_own(nodes: Nodes, redis_server: RedisServer) -> None:
    """Nothing in Redis is waiting for a node that will not come back, and its calls are another's."""
    async with serving(nodes, NODE="leaver", DRAIN_SECONDS="60") as (process, ready):
        node, other = await up(ready), await nodes.add("b")
        keys = [key async for key in names(redis_server, nodes.prefix)]
        assert any("leaver" in key for key in keys)
        calls = [await resumable_call(nodes, node) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        again = []
        for client, key in calls:
            assert await closed(client) == (1012, [])
            again.append(await connect(nodes, other, key))
            await event(again[-1], "session.created")
        assert await exit_code(process) == 0
    keys = [key async for key in names(redis_server, nodes.prefix)]
    assert [key for key in keys if "leaver" in key] == []
    _, listed = await nodes.get(other, "/v1/realtime/calls")
    assert {call["id"]: (call["state"], call["node"]) for call in listed["data"]} == {
        id_of(client): ("live", "b") for client in again
    }
    for client in again:
        await client.close()


async def names(server: RedisServer, prefix: str) -> AsyncIterator[str]:
    """All keys under a prefix."""
    async with redis.from_url(server.url, decode_responses=True) as client:
        async for key in client.scan_iter(match=f"{prefix}:*", count=1000):
            yield key


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_signal_during_the_start_is_a_drain(nodes: Nodes) -> None:
    """A rollout that is taken back at once leaves no crash behind."""
    async with serving(nodes, DRAIN_SECONDS="300") as (process, _):

        def catches() -> bool:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
            return bool(caught >> (signal.SIGTERM - 1) & 1)

        await until(catches, 30)
        process.send_signal(signal.SIGTERM)
        assert await exit_code(process) == 0
