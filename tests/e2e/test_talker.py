"""The tests' own talker: what it says and notes is what happens, or nothing that is measured with it means anything."""

import asyncio
import random

import pytest

from ops.simulator.output import Pace
from ops.simulator.session import Behaviour
from relay.app import Node
from tests.support.doors import Doors
from tests.support.fleet import Nodes, bearer, token, until
from tests.support.hearing import differences
from tests.support.redis_server import RedisServer
from tests.support.talker import Talker, Turn, spoken_turns

TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}


def doors(nodes: Nodes, **named: Node) -> Doors:
    return Doors(nodes.http, {name: (node.url, node.ops_url) for name, node in named.items()})


async def minted(nodes: Nodes, node: Node) -> str:
    url = f"{node.url}/v1/realtime/client_secrets"
    async with nodes.http.post(url, json={}, headers=bearer(token("mint"))) as response:
        return str((await response.json())["value"])


async def test_it_talks_is_answered_and_sees_the_conversation_that_the_model_has(nodes: Nodes) -> None:
    """Two turns by voice and one in writing that calls a tool, which it answers."""
    node = await nodes.add()
    talker = Talker(nodes.http, doors(nodes, a=node), token("call"), session={"tools": [TOOL]}, tool_seconds=0.1)
    await talker.talk([Turn(1.0, 0.1), Turn(text="get weather, please", pause=0.1), Turn(1.2, 0.1)])
    notes = talker.notes
    assert (talker.ended, notes.turns, notes.unanswered, list(notes.errors)) == ("hung up", 3, 0, [])
    assert notes.responses == {"completed": 5}  # the first turn by voice calls the tool as well
    assert len(notes.waits) == 3
    assert [each.node for each in notes.connections] == ["a"]
    session = await nodes.session()
    assert differences(talker.view.items(), session["items"]) == []
    assert session["audio_ms_received"] > 2_200


async def test_it_hears_an_answer_as_long_as_it_takes_to_play_it(nodes: Nodes) -> None:
    """The model sends five times faster than it speaks; the next turn waits for the loudspeaker, or cuts in."""
    node = await nodes.add()
    talker = Talker(nodes.http, doors(nodes, a=node), token("call"))
    began = asyncio.get_running_loop().time()
    await talker.talk(
        [Turn(text="talk for 3 seconds", hears=1.0), Turn(1.0), Turn(text="talk for 1 second", pause=0.1)]
    )
    took = asyncio.get_running_loop().time() - began
    assert 1 + 1 + 0.5 + 1 + 1 < took < 9
    assert talker.notes.events["conversation.item.truncated"] == 1
    assert not talker.playout.gaps


async def test_a_pause_of_the_models_is_a_gap(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """At less than real time there is one after every chunk."""
    behaviour = Behaviour(pace=Pace(speed=0.5, chunk_ms=100))
    async with Nodes.running(redis_server.url, tmp_path_factory.mktemp("slow"), behaviour=behaviour) as nodes:
        talker = Talker(nodes.http, doors(nodes, a=await nodes.add()), token("call"))
        await talker.talk([Turn(text="talk for 1 second")])
    assert len(talker.playout.gaps) == 9
    assert all(0.05 < gap.seconds < 0.2 for gap in talker.playout.gaps)


@pytest.mark.parametrize("relay_events", [False, True], ids=["plain client", "relay events"])
async def test_it_resumes_its_call_and_still_sees_what_the_model_knows(nodes: Nodes, relay_events: bool) -> None:
    """A node that drains is not ready, so that the other one gets it: by the token's claim, or as the relay told it."""
    other = await nodes.add("b")
    async with asyncio.TaskGroup() as tasks, nodes.node("a", DRAIN_SECONDS="10") as first:
        key = token("call") if relay_events else await minted(nodes, other)
        talker = Talker(nodes.http, doors(nodes, a=first, b=other), key, relay_events=relay_events)
        tasks.create_task(talker.talk(spoken_turns(random.Random(1), 2)))
        await until(lambda: bool(talker.notes.waits))
        first.drain()
        await first.wait_drained()
    assert [(each.node, each.code) for each in talker.notes.connections] == [("a", 1012), ("b", 1000)]
    assert (talker.ended, talker.notes.unanswered, talker.notes.repeated) == ("hung up", 0, 0)
    assert [each["type"] for each in talker.notes.relay_events] == (
        ["relay.started", "relay.moving", "relay.resumed"] if relay_events else []
    )
    assert len(talker.view.items()) == 4
    assert differences(talker.view.items(), (await nodes.session())["items"]) == []


async def test_a_lost_connection_is_noted_as_1006(nodes: Nodes) -> None:
    """And one that is not to be opened again ends the call."""
    node = await nodes.add("a")
    talker = Talker(nodes.http, doors(nodes, a=node), token("call"), resume_seconds=5)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(talker.talk([Turn(1.0), Turn(1.0)]))
        await until(lambda: talker.is_connected)
        talker._token = token("read")
        talker.drop()
    assert talker.ended == "refused with 403"
    assert [each.code for each in talker.notes.connections] == [1006]
