"""Plans as their tenants meet them: so many calls, starts, minutes, messages, over all nodes of a region."""

import asyncio
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from relay.app import Node
from relay.demo import declare_settled
from relay.session import Session
from tests.drills.link import Link
from tests.support.fleet import Nodes, bearer, closed, event, session_of, system_message, token, until
from tests.support.redis_server import RedisServer

RULEBOOK = """\
[agents.default]
transcription = false
[plans.default]
concurrent_calls = 1
[plans.silver]
concurrent_calls = 2
[plans.gold]
concurrent_calls = 10
[plans.hasty]
call_starts_per_minute = 6
[plans.short]
longest_call_seconds = 1
[plans.longer]
longest_call_seconds = 3
[plans.brief]
call_minutes_per_day = 0.03
[plans.quiet]
messages_per_second = 0.01
[plans.wordy]
client_messages_per_second = 50
[plans.loud]
client_bytes_per_second = 100_000
[plans.endless]
[tenants.acme]
plan = "gold"
[tenants.shop]
plan = "silver"
"""
LEASE_SECONDS = 1.2
PATIENT = {"LEASE_SECONDS": "30", "REGISTER_SECONDS": "20", "LIMITS_AWAY": "closed"}
DAY_SECONDS = 86_400
PATH = "/v1/realtime?model=sim"


@pytest.fixture
def env(nodes: Nodes) -> dict[str, str]:
    """The settings of nodes with the plans above; leases are short, so that a lapse shows."""
    return settings(nodes)


@pytest.fixture
def patient(env: dict[str, str]) -> dict[str, str]:
    """The same where Redis alone decides, however slow the machine is: no lease lapses, no node counts for itself."""
    return env | PATIENT


def settings(nodes: Nodes, more: str = "", **env: str) -> dict[str, str]:
    path = nodes.folder / "limits.toml"
    path.write_text(RULEBOOK + more)
    return {"CONFIG": str(path), "LEASE_SECONDS": str(LEASE_SECONDS), "RESUME_SECONDS": "10", **env}


@dataclass
class Crowd:
    """People who call with one token; ``most`` is how many of them ever had a call at once."""

    nodes: Nodes
    key: str
    calls: list[aiohttp.ClientWebSocketResponse] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    waits: list[int] = field(default_factory=list)  # that refusals asked for, in seconds
    most: int = 0

    async def dial(self, node: Node) -> bool:
        """Try to begin a call; whether one did."""
        try:
            client = await self.nodes.connect(node, PATH, headers=bearer(self.key))
        except aiohttp.WSServerHandshakeError as error:
            self.refused[error.status] += 1
            self.waits.append(int((error.headers or {})["Retry-After"]))
            return False
        self.calls.append(client)
        self.most = max(self.most, len(self.calls))
        return True

    async def rush(self, nodes: Sequence[Node], people: int = 50) -> int:
        """So many call at once, on all of the nodes; returns how many got through."""
        async with asyncio.TaskGroup() as group:
            tries = [group.create_task(self.dial(nodes[place % len(nodes)])) for place in range(people)]
        return sum(each.result() for each in tries)

    async def hang_up(self, number: int | None = None) -> None:
        """Let some go, or all: from now on nobody may say that they have a call."""
        going, self.calls = self.calls[:number], self.calls[len(self.calls[:number]) :]
        async with asyncio.TaskGroup() as group:
            for client in going:
                group.create_task(_leave(client))

    async def until_through(self, node: Node) -> None:
        """Until there is a place."""

        async def is_through() -> bool:
            return await self.dial(node)

        await until(is_through)


async def _leave(client: aiohttp.ClientWebSocketResponse) -> None:
    await event(client, "session.created")
    await client.close()


async def answer(
    nodes: Nodes, node: Node, key: str, path: str = PATH, **headers: str
) -> tuple[int, str, dict[str, Any]]:
    """How an upgrade is refused: status, Retry-After and error."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    asked = {**upgrade, "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", **bearer(key), **headers}
    async with nodes.http.get(node.url + path, headers=asked) as response:
        return response.status, response.headers.get("Retry-After", ""), (await response.json())["error"]


async def used(nodes: Nodes, node: Node, tenant: str) -> dict[str, Any]:
    """What a tenant's calls used, all together."""
    headers = bearer(token("read", tenant=tenant))
    async with nodes.http.get(f"{node.url}/v1/usage?group_by=region", headers=headers) as response:
        assert response.status == 200
        rows = (await response.json())["data"]
    sums: Counter[str] = Counter()
    for row in rows:
        sums.update({name: value for name, value in row.items() if isinstance(value, int | float)})
    return dict(sums)


async def until_used(nodes: Nodes, node: Node, tenant: str, **counters: Any) -> None:
    """Until usage says this."""

    async def is_counted() -> bool:
        found = await used(nodes, node, tenant)
        return {name: found.get(name, 0) for name in counters} == counters

    await until(is_counted)


async def metric(nodes: Nodes, node: Node, name: str) -> float:
    """A sample of a node's metrics page."""
    async with nodes.http.get(node.ops_url + "/metrics") as response:
        page = await response.text()
    return next(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"{name} "))


async def minted(nodes: Nodes, node: Node, **claims: str) -> str:
    """The key of a call that can go to other nodes."""
    headers = bearer(token("mint", **claims))
    async with nodes.http.post(f"{node.url}/v1/realtime/client_secrets", json={}, headers=headers) as response:
        return str((await response.json())["value"])


async def connected(nodes: Nodes, node: Node, key: str) -> aiohttp.ClientWebSocketResponse:
    """A client leg that has its session."""
    client = await nodes.connect(node, PATH, headers=bearer(key))
    await event(client, "session.created")
    return client


def id_of(client: aiohttp.ClientWebSocketResponse) -> str:
    return client._response.headers["X-Call-Id"]


def end_of(client: aiohttp.ClientWebSocketResponse) -> float:
    """When the call is to end, by the loop's clock, as the node that has it now sees it."""
    sessions = (each for each in gc.get_objects() if isinstance(each, Session) and each.call_id == id_of(client))
    account = next(each for each in sessions if each._settings.node == node_of(client))._meter._account
    assert account is not None
    assert account._timer is not None
    return account._timer.when()


def node_of(client: aiohttp.ClientWebSocketResponse) -> str:
    return client._response.headers["X-Relay-Node"]


# Calls and their starts


async def test_fifty_starts_at_once_on_four_nodes_are_never_one_call_too_many(
    nodes: Nodes, patient: dict[str, str]
) -> None:
    """Wave after wave, while calls of the one before are just ending: places are taken again, none twice."""
    four = [await nodes.add(name, **patient) for name in "abcd"]
    crowd = Crowd(nodes, token("call", tenant="acme"))
    assert await crowd.rush(four) == 10
    assert crowd.refused == {429: 40}
    assert all(seconds >= 1 for seconds in crowd.waits)
    status, retry_after, error = await answer(nodes, four[3], crowd.key)
    assert (status, error["code"], error["type"]) == (429, "too_many_calls", "rate_limit_error")
    assert int(retry_after) >= 1
    assert "gold" in error["message"]
    had = 10

    async def is_had() -> bool:
        nonlocal had
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.hang_up(4))
            rush = group.create_task(crowd.rush(four))
        had += rush.result()
        return had >= 40

    await until(is_had, 20)
    assert crowd.most == 10
    assert sum([await metric(nodes, node, 'relay_limits_hit_total{limit="concurrent"}') for node in four]) == (
        crowd.refused[429] + 1
    )
    assert sum([await metric(nodes, node, "relay_limits_unchecked_total") for node in four]) == 0
    await crowd.hang_up()
    await until_used(nodes, four[0], "acme", calls=had)


async def test_a_tenant_that_is_at_its_limit_holds_up_no_other(nodes: Nodes, patient: dict[str, str]) -> None:
    """Though both have the same plan, and call at the same time."""
    pair = [await nodes.add(name, **patient) for name in "ab"]
    loud, calm = (Crowd(nodes, token("call", tenant=name, plan="silver")) for name in ("acme", "calm"))
    assert await loud.rush(pair, 20) == 2
    async with asyncio.TaskGroup() as group:
        again, others = group.create_task(loud.rush(pair, 20)), group.create_task(calm.rush(pair, 2))
    assert (again.result(), others.result(), calm.refused) == (0, 2, {})
    for crowd, tenant in ((loud, "acme"), (calm, "calm")):
        await crowd.hang_up()
        await until_used(nodes, pair[1], tenant, calls=2)


async def test_starts_are_counted_over_all_nodes_and_an_end_gives_none_back(
    nodes: Nodes, patient: dict[str, str]
) -> None:
    """Else who rings and hangs up at once would never be slowed down."""
    four = [await nodes.add(name, **patient) for name in "abcd"]
    crowd = Crowd(nodes, token("call", tenant="acme", plan="hasty"))
    assert await crowd.rush(four) == 6
    assert crowd.refused == {429: 44}
    assert all(1 <= seconds <= 60 for seconds in crowd.waits)
    await crowd.hang_up()
    await until_used(nodes, four[0], "acme", calls=6)
    assert await crowd.rush(four, 8) == 0
    status, retry_after, error = await answer(nodes, four[1], crowd.key)
    assert (status, error["code"]) == (429, "too_many_starts")
    assert 1 <= int(retry_after) <= 60


@pytest.mark.parametrize(
    ("shares", "here", "there"),
    [("[shares]\niad = 0.7\nlhr = 0.3\n", 7, 3), ("", 5, 5)],
    ids=["shares of the file", "equal shares"],
)
async def test_every_region_has_its_share(nodes: Nodes, shares: str, here: int, there: int) -> None:
    """They don't ask each other: what one region doesn't use is no other's."""
    other = RedisServer().start()
    try:
        await declare_settled(other.url, nodes.prefix)
        env = settings(nodes, shares, REGIONS=f"iad={nodes._redis_url},lhr={other.url}") | PATIENT
        async with (
            nodes.node("iad-1", **env) as near,
            nodes.node("iad-2", **env) as next_to,
            nodes.node("lhr-1", REGION="lhr", **env) as far,
            nodes.node("lhr-2", REGION="lhr", **env) as farther,
        ):
            crowds = [Crowd(nodes, token("call", tenant="acme")) for _ in range(2)]
            async with asyncio.TaskGroup() as group:
                regions = zip(crowds, ((near, next_to), (far, farther)), strict=True)
                rushes = [group.create_task(crowd.rush(pair, 20)) for crowd, pair in regions]
            assert [rush.result() for rush in rushes] == [here, there]
            for crowd in crowds:
                await crowd.hang_up()
            await until_used(nodes, far, "acme", calls=10)
    finally:
        await asyncio.to_thread(other.stop)


@pytest.mark.parametrize(
    ("claims", "most"),
    [({"tenant": "shop", "plan": "gold"}, 10), ({"tenant": "shop"}, 2), ({"tenant": "nobody"}, 1)],
    ids=["the token's", "the tenant's", "the default"],
)
async def test_the_tokens_plan_goes_before_the_tenants_and_that_before_the_default(
    nodes: Nodes, patient: dict[str, str], claims: dict[str, str], most: int
) -> None:
    """Whoever signs a token may give it another plan; a tenant that nobody wrote down has the plan of all others."""
    pair = [await nodes.add(name, **patient) for name in "ab"]
    crowd = Crowd(nodes, token("call", **claims))
    assert await crowd.rush(pair, 12) == most
    await crowd.hang_up()


async def test_a_plan_that_is_not_there_lets_nothing_in(nodes: Nodes, env: dict[str, str]) -> None:
    """No call, no side leg: else a limit is escaped by misspelling it."""
    node = await nodes.add(**env)
    client = await connected(nodes, node, token("call", tenant="acme"))
    key = token("call", "control", tenant="acme", plan="platinum")
    for path in (PATH, "/voice?model=sim", f"/v1/realtime?call_id={id_of(client)}"):
        status, _, error = await answer(nodes, node, key, path)
        assert (status, error["code"], error["type"]) == (403, "unknown_plan", "permission_error")
    await client.close()


# Ends


async def test_a_call_that_has_lasted_as_long_as_it_may_is_told_and_closed(nodes: Nodes, env: dict[str, str]) -> None:
    """In words before the close: the client must not take it for a fault and dial again."""
    node = await nodes.add(**env)
    client = await connected(nodes, node, token("call", tenant="acme", plan="short"))
    other = await connected(nodes, node, token("call", tenant="acme"))
    code, events = await closed(client)
    assert (code, events[-1]["type"], events[-1]["error"]["code"]) == (4008, "error", "call_too_long")
    assert events[-1]["error"]["type"] == "invalid_request_error"
    assert "1 s" in events[-1]["error"]["message"]
    assert not other.closed
    await other.close()
    await until_used(nodes, node, "acme", calls=2)

    async def is_counted_to_its_end() -> bool:
        return (await used(nodes, node, "acme"))["seconds"] >= 1

    await until(is_counted_to_its_end)


async def test_a_call_that_moves_does_not_begin_anew(nodes: Nodes, env: dict[str, str]) -> None:
    """It ends when it would have ended where it was: the clock of the plan is that of the call."""
    node, other = await nodes.add("a", **env), await nodes.add("b", **env)
    key = await minted(nodes, node, tenant="acme", plan="longer")
    client = await connected(nodes, node, key)
    ends_at, now = end_of(client), asyncio.get_running_loop().time
    await until(lambda: now() > ends_at - 2.5)
    again = await connected(nodes, other, key)
    assert (id_of(again), node_of(client), node_of(again)) == (id_of(client), "a", "b")
    assert end_of(again) == pytest.approx(ends_at, abs=0.2)
    code, events = await closed(again)
    assert (code, events[-1]["error"]["code"]) == (4008, "call_too_long")
    await until_used(nodes, other, "acme", calls=1)


async def test_a_day_that_is_spent_ends_the_calls_on_every_node_and_lets_no_new_one_in(
    nodes: Nodes, env: dict[str, str]
) -> None:
    """Those of this tenant and this plan: each is told why."""
    pair = [await nodes.add(name, **env) for name in "ab"]
    brief = token("call", tenant="acme", plan="brief")
    clients = [await connected(nodes, node, brief) for node in pair]
    others = [await connected(nodes, pair[0], token("call", **claims)) for claims in ({"tenant": "acme"}, {})]
    for client in clients:
        code, events = await closed(client)
        assert (code, events[-1]["type"], events[-1]["error"]["code"]) == (4029, "error", "minutes_spent")
    for node in pair:
        status, retry_after, error = await answer(nodes, node, brief)
        assert (status, error["code"]) == (429, "minutes_spent")
        assert 1 <= int(retry_after) <= DAY_SECONDS
    assert [client.closed for client in others] == [False, False]
    for client in others:
        await client.close()
    await until_used(nodes, pair[0], "acme", calls=3)
    assert (await used(nodes, pair[0], "acme"))["seconds"] >= 0.03 * 60


# Places


async def test_a_call_that_moves_keeps_its_place_and_has_no_second_one(nodes: Nodes, env: dict[str, str]) -> None:
    """The only one of its plan: it may come though that is taken, by itself, and nobody else may, however long."""
    node, other = await nodes.add("a", **env), await nodes.add("b", **env)
    crowd = Crowd(nodes, token("call", tenant="nobody"))
    key = await minted(nodes, node, tenant="nobody")
    await connected(nodes, node, key)
    assert await crowd.rush((node, other), 4) == 0
    again = await connected(nodes, other, key)
    assert await crowd.rush((node, other), 4) == 0

    async def has_outlived_its_first_lease() -> bool:
        assert not await crowd.dial(node)
        return (await used(nodes, node, "nobody")).get("seconds", 0) > 2 * LEASE_SECONDS

    await until(has_outlived_its_first_lease)
    assert await crowd.rush((node, other), 4) == 0
    await again.close()
    await crowd.until_through(node)
    assert await crowd.rush((node, other), 4) == 0
    await crowd.hang_up()
    await until_used(nodes, other, "nobody", calls=2)


@asynccontextmanager
async def linked(nodes: Nodes) -> AsyncIterator[Link]:
    """A way to Redis that can be cut."""
    address = urlsplit(nodes._redis_url)
    link = Link((str(address.hostname), int(address.port or 0)), 0.0)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(link.serve())
        yield link
        serving.cancel()


async def test_the_places_of_a_node_that_died_are_free_when_their_lease_is_over(
    nodes: Nodes, env: dict[str, str]
) -> None:
    """Not sooner, since its calls may live; and what it could not report any more is not held against the tenant."""
    other = await nodes.add("b", **env)
    crowd = Crowd(nodes, token("call", tenant="shop"))
    async with linked(nodes) as link:
        address = f"iad=redis://127.0.0.1:{link.port}/0"
        async with nodes.node("a", **env | {"REGIONS": address, "LEASE_SECONDS": "2"}) as node:
            clients = [await connected(nodes, node, crowd.key) for _ in range(2)]
            await until_used(nodes, other, "shop", calls=2)
            link.cut()
            assert not await crowd.dial(other)
        for client in clients:
            await closed(client)
        await crowd.until_through(other)
        await crowd.until_through(other)
        assert not await crowd.dial(other)
    await crowd.hang_up()
    await until_used(nodes, other, "shop", calls=4)


# Redis away


@pytest.mark.parametrize("policy", ["open", "closed"])
async def test_while_redis_is_away_new_calls_are_what_the_operator_said_and_live_ones_go_on(
    doomed: tuple[RedisServer, Nodes], policy: str
) -> None:
    """Open: as many on each node as the region's share. Closed: none of a limited plan; then it counts again."""
    server, nodes = doomed
    regions = {"REGIONS": f"iad={nodes._redis_url},lhr=redis://127.0.0.1:1"}
    env = settings(nodes, LIMITS_AWAY=policy, REGISTER_SECONDS="0.3", BUS_SOCKET_TIMEOUT="0.6", **regions)
    pair = [await nodes.add(name, **env) for name in "ab"]
    key = token("call", tenant="shop", plan="gold")  # ten, of which this region has five
    live = await connected(nodes, pair[0], key)
    crowd = Crowd(nodes, key)
    server.freeze()
    try:
        through = [await crowd.rush((node,), 8) for node in pair]
        assert through == ([4, 5] if policy == "open" else [0, 0])
        assert crowd.refused == ({429: 7} if policy == "open" else {503: 16})
        assert all(seconds >= 1 for seconds in crowd.waits)
        status, _, error = await answer(nodes, pair[1], key)
        assert (status, error["code"]) == ((429, "too_many_calls") if policy == "open" else (503, "limits_unknown"))
        assert await metric(nodes, pair[0], "relay_limits_unchecked_total") == 8
        await say(live, "are you there?")
        assert (await event(live, "response.done"))["response"]["status"] == "completed"
        unlimited = await connected(nodes, pair[1], token("call", tenant="shop", plan="endless"))
    finally:
        server.thaw()
    known = len(crowd.calls) + 1

    async def is_counted() -> bool:
        return (await used(nodes, pair[0], "shop")).get("calls") == known + 1

    await until(is_counted)
    if policy == "open":
        assert await crowd.rush(pair, 4) == 0
    for client in (live, unlimited):
        await client.close()
    had = known + 1
    await crowd.hang_up()
    await until_used(nodes, pair[0], "shop", calls=had)
    assert await crowd.rush(pair, 12) == 5
    await crowd.hang_up()
    await until_used(nodes, pair[0], "shop", calls=had + 5)


async def say(client: aiohttp.ClientWebSocketResponse, text: str) -> None:
    """Say something, and ask for an answer."""
    await client.send_json({"type": "conversation.item.create", "item": message(text)})
    await client.send_json({"type": "response.create"})


def message(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


# Pace


async def told(client: aiohttp.ClientWebSocketResponse, kind: str, number: int) -> list[dict[str, Any]]:
    """Until so many events of a kind have come; returns the errors on the way."""
    errors = []
    async with asyncio.timeout(20):
        while number:
            found = json.loads((await client.receive()).data)
            number -= found["type"] == kind
            errors += [found["error"]] if found["type"] == "error" else []
    return errors


async def test_who_says_more_than_its_plan_allows_is_read_more_slowly_and_loses_nothing(
    nodes: Nodes, env: dict[str, str]
) -> None:
    """Not even the order. It is told once, what the model says comes as ever, and its backends go before it."""
    node = await nodes.add(**env)
    client = await connected(nodes, node, token("call", tenant="test", plan="wordy"))
    leg = session_of(id_of(client)).client.leg
    errors: list[dict[str, Any]] = []
    waves = (150, 60)
    for wave, size in enumerate(waves):
        for number in range(size):
            await client.send_json({"type": "conversation.item.create", "item": message(f"{wave}.{number}")})
        await until(lambda: not leg.reading)
        assert (await nodes.put(node, id_of(client), {"item": system_message(f"backend {wave}")}))[0] == 200
        errors += await told(client, "conversation.item.done", size + 1)
        await until(lambda: leg.reading)
    assert [(error["code"], error["type"]) for error in errors] == [("too_fast", "rate_limit_error")]
    assert "wordy" in errors[0]["message"]
    assert await metric(nodes, node, 'relay_limits_hit_total{limit="client_rate"}') >= 2
    texts = [item["text"] for item in (await nodes.session())["items"]]
    assert [text for text in texts if "backend" not in text] == [
        f"{wave}.{number}" for wave, size in enumerate(waves) for number in range(size)
    ]
    assert [text for text in texts if "backend" in text] == ["backend 0", "backend 1"]
    await client.close()
    await until_used(nodes, node, "test", calls=1, messages=2)


async def test_audio_that_comes_too_fast_waits_at_the_client_and_is_all_heard(
    nodes: Nodes, env: dict[str, str]
) -> None:
    """It goes from leg to leg without being looked at, and is paced all the same; one without a limit is not."""
    node = await nodes.add(**env)
    frame = json.dumps({"type": "input_audio_buffer.append", "audio": "A" * 6400})  # 100 ms
    for plan, is_paced in (("loud", True), ("endless", False)):
        client = await connected(nodes, node, token("call", tenant="test", plan=plan))
        leg = session_of(id_of(client)).client.leg
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send_all(client, [frame] * 80))  # half a megabyte
            if is_paced:
                await until(lambda leg=leg: not leg.reading)
                errors = [(await event(client, "error"))["error"]["code"]]
                assert errors == ["too_fast"]
            await sending

        async def is_heard() -> bool:
            return bool((await nodes.session())["audio_ms_received"] == 8000)

        await until(is_heard)
        await until(lambda leg=leg: leg.reading)
        await client.close()
    await until_used(nodes, node, "test", calls=2, audio_seconds_in=pytest.approx(16, rel=0.01))


async def send_all(client: aiohttp.ClientWebSocketResponse, frames: Iterable[str]) -> None:
    for frame in frames:
        await client.send_str(frame)


async def test_a_backends_messages_are_one_count_by_http_on_two_nodes_and_on_a_side_leg(
    nodes: Nodes, env: dict[str, str]
) -> None:
    """Over HTTP 429 with Retry-After, on a side leg an error event that names the event; and it is not said."""
    node, other = await nodes.add("a", **env), await nodes.add("b", **env)
    client = await connected(nodes, node, token("call"))
    control = bearer(token("control", plan="quiet"))

    async def put(at: Node, text: str) -> tuple[int, int, str]:
        url = f"{at.url}/v1/realtime/calls/{id_of(client)}/items?wait=applied"
        async with nodes.http.post(url, json={"item": system_message(text)}, headers=control) as response:
            error = (await response.json()).get("error") or {"code": ""}
            return response.status, int(response.headers.get("Retry-After", 0)), error["code"]

    assert await put(node, "first") == (200, 0, "")
    for at in (node, other):
        status, retry_after, code = await put(at, "second")
        assert (status, code) == (429, "too_many_messages")
        assert 1 <= retry_after <= 100
    side = await nodes.http.ws_connect(f"{other.url}/v1/realtime?call_id={id_of(client)}", headers=control)
    await event(side, "session.created")
    wanted = {"type": "conversation.item.create", "event_id": "mine", "item": system_message("third")}
    await side.send_json(wanted)
    error = (await event(side, "error"))["error"]
    assert (error["code"], error["event_id"]) == ("too_many_messages", "mine")
    assert [item["text"] for item in (await nodes.session())["items"]] == ["first"]
    for socket in (side, client):
        assert not socket.closed
        await socket.close()
    await until_used(nodes, node, "test", calls=1, messages=1)


async def test_a_client_that_is_far_ahead_of_its_plan_is_told_and_cut(nodes: Nodes) -> None:
    """While it is not read nobody would notice that it has left; the model leg is paid for meanwhile."""
    node = await nodes.add(**settings(nodes, "[plans.slow]\nclient_bytes_per_second = 1000\n"))
    client = await connected(nodes, node, token("call", tenant="test", plan="slow"))
    await client.send_json({"type": "input_audio_buffer.append", "audio": "A" * 100_000})
    code, events = await closed(client)
    assert (code, events[-1]["error"]["code"]) == (4013, "client_too_fast")
