"""Tenant by scope by route: what every kind of token gets from every route of the table, and nothing else.

What a route asks for is read from the table; ``ASKS`` says only how to ask well, so that a new route fails here until
that is said. A tenant's call is to others as one that was never there: by HTTP, streams, WebSockets and the bus.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Any, NamedTuple

import aiohttp
import jwt
import pytest
from aiohttp import hdrs
from structlog.testing import capture_logs

from fanout import (
    BusSettings,
    CallNotFound,
    CallRecord,
    CallTaken,
    Fanout,
    Message,
    Reservation,
    Status,
    new_call_id,
)
from fanout.client import Publisher
from relay.api.routes import ROUTES, Kind
from relay.app import Node
from relay.tokens import SCOPES, mint
from tests.support.fleet import SECRET, Nodes, bearer, closed, event, system_message, until
from tests.support.redis_server import RedisServer

OWN, FOREIGN = "test", "evil"
REVOKED = "a-token-that-holds-no-more"
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
ITEM = system_message("what only its tenant may know")
SESSION = {"type": "realtime", "instructions": "what no other tenant may read"}
_VARIES = {"Date", "Content-Length"}  # of the last the body is part of what is compared


@dataclass(frozen=True)
class Ask:
    """A good request to a route, and what it is answered with."""

    route: str
    query: str = ""
    body: Any = None
    status: int = 200
    scope: str | None = None  # where it is not the route's
    names_call: bool = False  # in its query
    ends_call: bool = False

    @property
    def id(self) -> str:
        return self.route + ("_to_attach" if self.names_call else "")


ASKS = (
    Ask("realtime", "model=sim", status=101),
    Ask("realtime", "call_id={call_id}", status=101, scope="control", names_call=True),
    Ask("voice", "model=sim", status=101),
    Ask("create_client_secret", body={}),
    Ask("refuse_webrtc", body={}, status=501),
    Ask("list_calls"),
    Ask("show_call"),
    Ask("show_transcript"),
    Ask("watch_events"),
    Ask("hang_up", ends_call=True),
    Ask("put_item", "wait=applied", body={"item": ITEM}),
    Ask("put_event", "wait=applied", body={"type": "session.update", "session": {"type": "realtime"}}),
    Ask("show_receipt"),
    Ask("show_usage"),
    Ask("revoke_token", body={"jti": "another-one"}),
    Ask("show_openapi"),
    Ask("show_docs"),
)
TABLE = {route.name: route for route in ROUTES}
OF_CALLS = [ask for ask in ASKS if ask.names_call or "{call_id}" in TABLE[ask.route].path]
LIST, OPEN, MAKE_KEY = (
    next(ask for ask in ASKS if ask.route == name) for name in ("list_calls", "realtime", "create_client_secret")
)
BY_ROUTE = pytest.mark.parametrize("ask", ASKS, ids=lambda ask: ask.id)
IN_EACH_STATE = pytest.mark.parametrize("state", ["live", "reserved", "ended"])


class Answer(NamedTuple):
    """What came back, with the call's id taken out: two answers are the same if nobody can tell them apart."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str

    @property
    def code(self) -> str | None:
        """Of the error."""
        return json.loads(self.body)["error"]["code"] if self.status >= 400 and self.body else None


class Bearer(NamedTuple):
    """Somebody with a token; ``refused`` is what they hear whatever they ask for."""

    name: str
    text: str | None
    scopes: frozenset[str] = frozenset()
    refused: str | None = None
    call: str | None = None  # that it is for alone


def signed(tenant: str, scopes: Any, *, secret: str = SECRET, seconds: float = 600, **claims: Any) -> str:
    """A token with exactly these scopes."""
    return mint(secret, tenant=tenant, scope=scopes, expires_at=time.time() + seconds, **claims)


def oauth(tenant: str, scope: str) -> str:
    """A token with its scopes in one string (RFC 8693, section 4.2)."""
    return jwt.encode({"tenant": tenant, "scope": scope, "exp": int(time.time()) + 600}, SECRET, algorithm="HS256")


def bearers(tenant: str, call_id: str) -> list[Bearer]:
    """Every kind of token, for a tenant and, of those that are for one call, for this one."""
    every = sorted(SCOPES)
    odd = ["*", "admin", "CALL", " read", "call control", "readcontrol", ""]
    return [
        Bearer("nothing", None, refused="missing_token"),
        Bearer("no token", "nonsense", refused="invalid_api_key"),
        Bearer("another's signature", signed(tenant, every, secret="x" * 32), refused="invalid_api_key"),
        Bearer("expired", signed(tenant, every, seconds=-60), refused="invalid_api_key"),
        Bearer("expired, for a call", signed(tenant, every, seconds=-60, call=call_id), refused="invalid_api_key"),
        Bearer("revoked", signed(tenant, every, jti=REVOKED), refused="token_revoked"),
        Bearer("revoked, of a browser", "ek_" + signed(tenant, every, jti=REVOKED), refused="token_revoked"),
        Bearer("no scope", signed(tenant, [])),
        Bearer("scopes that are none", signed(tenant, odd)),
        *(Bearer(scope, signed(tenant, [scope]), frozenset({scope})) for scope in every),
        Bearer("two, as OAuth writes them", oauth(tenant, "control  read"), frozenset({"control", "read"})),
        Bearer("all", signed(tenant, every), SCOPES),
        Bearer("all, of a browser", "ek_" + signed(tenant, every, browser=True), SCOPES),
        Bearer("all, for the call", signed(tenant, every, call=call_id), SCOPES, call=call_id),
        Bearer("all, for the call, of a browser", "ek_" + signed(tenant, every, call=call_id), SCOPES, call=call_id),
    ]


def asks_for_call(ask: Ask) -> bool:
    """Whether the request names a call, in its path or its query."""
    return ask in OF_CALLS


def expected(ask: Ask, who: Bearer, *, is_theirs: bool) -> tuple[int, str | None]:
    """Status and code that the table has for this; ``is_theirs``: whether the call that is named is their tenant's."""
    route = TABLE[ask.route]
    scope = ask.scope or route.scope
    if scope is None:
        return ask.status, "webrtc_not_supported" if ask.status == 501 else None
    if who.refused is not None:
        return 401, who.refused
    if scope not in who.scopes:
        return 403, "missing_scope"
    if not asks_for_call(ask) and route.kind is not Kind.UPGRADE:
        return (403, "token_for_one_call") if who.call is not None else (ask.status, None)
    if not is_theirs and (asks_for_call(ask) or who.call is not None):
        return 404, "call_id_not_found" if ask.names_call else "call_not_found"
    return ask.status, None


class Stage:
    """Two nodes, a call of the tenant OWN on one of them, and whoever asks the other."""

    def __init__(self, nodes: Nodes, owner: Node, other: Node) -> None:
        self.nodes, self.owner, self.other = nodes, owner, other
        self._client: aiohttp.ClientWebSocketResponse | None = None

    async def call(self) -> str:
        """A call that lives, with one message in it, ``m1``."""
        if self._client is None:
            self._client = await self.nodes.connect(self.owner)
            await event(self._client, "session.created")
            put = await self.nodes.put(self.other, self._id, {"id": "m1", "item": ITEM})
            assert put[0] == 200
            await event(self._client, "conversation.item.done")
        return self._id

    async def call_that_is(self, state: str) -> str:
        """A call in this state."""
        if state == "reserved":
            made = await self.ask(replace(MAKE_KEY, body={"session": SESSION}), "", signed(OWN, ["mint"]))
            return str(json.loads(made.body)["call_id"])
        call_id = await self.call()
        if state == "ended":
            await self.drop()

            async def is_over() -> bool:
                found = await self.nodes.get(self.other, f"/v1/realtime/calls/{call_id}")
                return bool(found[1]["state"] == "ended")

            await until(is_over)
        return call_id

    @property
    def _id(self) -> str:
        assert self._client is not None
        return self._client._response.headers["X-Call-Id"]

    async def drop(self) -> None:
        """What was asked may have ended the call."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def settle(self) -> None:
        """Until the client has heard of all that happened so far."""
        assert self._client is not None
        await self._client.send_json({"type": "input_audio_buffer.clear"})
        await event(self._client, "input_audio_buffer.cleared")

    async def is_untouched(self) -> bool:
        """Whether the call has gone on since, without anything's having happened in it."""
        assert self._client is not None
        await self._client.send_json({"type": "input_audio_buffer.clear"})
        message = await self._client.receive_json()
        return bool(message["type"] == "input_audio_buffer.cleared")

    async def ask(self, ask: Ask, call_id: str, text: str | None, *, node: Node | None = None, **how: str) -> Answer:
        """Make the request; of a stream only its head is read."""
        route = TABLE[ask.route]
        path = how.get("path", route.path).format(call_id=call_id, message_id="m1")
        url = f"{(node or self.other).url}{path}?{ask.query.format(call_id=call_id)}"
        headers = (HANDSHAKE if route.kind is Kind.UPGRADE else {}) | (bearer(text) if text is not None else {})
        data = None if ask.body is None else json.dumps(ask.body)
        async with self.nodes.http.request(how.get("method", route.method), url, data=data, headers=headers) as got:
            is_whole = got.status >= 400 or route.kind is Kind.PLAIN
            body = nameless(await got.text(), call_id) if is_whole else ""
            told = [(name, nameless(value, call_id)) for name, value in got.headers.items()]
        return Answer(got.status, tuple(sorted(each for each in told if each[0] not in _VARIES)), body)


def nameless(text: str, call_id: str) -> str:
    """What was said, without the call's id."""
    return text.replace(call_id, "<call>") if call_id else text


def bus_of(nodes: Nodes, name: str = "beside") -> Any:
    """A node of the bus alone."""
    settings = BusSettings(node=name, region="iad", regions={"iad": nodes._redis_url}, prefix=nodes.prefix)
    return Fanout.running(settings, clock=time.time)


@pytest.fixture
async def stage(nodes: Nodes) -> AsyncIterator[Stage]:
    """Nodes that know which tokens are revoked: those of both tenants."""
    async with bus_of(nodes) as bus:
        for tenant in (OWN, FOREIGN):
            assert await bus.accounts.revoke(tenant, REVOKED, time.time() + 600) == []
    stage = Stage(nodes, await nodes.add("a"), await nodes.add("b"))

    async def all_know() -> bool:
        asked = [await stage.ask(LIST, "", signed(OWN, ["read"], jti=REVOKED), node=node) for node in stage_nodes]
        return [answer.status for answer in asked] == [401, 401]

    stage_nodes = (stage.owner, stage.other)
    await until(all_know)
    yield stage
    await stage.drop()


def test_every_route_of_the_table_is_asked() -> None:
    """A route that is new has its rows in the matrix before it has callers."""
    assert {ask.route for ask in ASKS} == set(TABLE)


@BY_ROUTE
async def test_each_token_gets_what_the_table_says_and_no_more(stage: Stage, ask: Ask) -> None:
    """Own call, another tenant's and none at all; the last two can't be told apart, by anybody."""
    route, wrong = TABLE[ask.route], []
    for place in range(len(bearers(OWN, ""))):
        call_id, nobodys = await stage.call(), new_call_id("iad")
        cases = {
            "own": (call_id, bearers(OWN, call_id)[place]),
            "foreign": (call_id, bearers(FOREIGN, call_id)[place]),
            "nobody's": (nobodys, bearers(FOREIGN, nobodys)[place]),
        }
        answers = {}
        await stage.settle()
        for name in ("foreign", "nobody's", "own"):
            asked_for, who = cases[name]
            answers[name] = got = await stage.ask(ask, asked_for, who.text)
            wanted = expected(ask, who, is_theirs=name == "own")
            if (got.status, got.code) != wanted:
                wrong.append(f"{who.name}, {name}: {got.status} {got.code} instead of {wanted}")
            assert got.status in route.answers
            assert got.code is None or got.code in route.answers[got.status].codes
            if name == "nobody's":
                assert await stage.is_untouched(), f"{who.name} reached another tenant's call"
        if answers["foreign"].status >= 400 and answers["foreign"] != answers["nobody's"]:
            wrong.append(f"{who.name}: another tenant's call is not answered as one that isn't there")
        if answers["own"].status < 400 and (ask.ends_call or who.call is not None):
            await stage.drop()
    assert wrong == []


@BY_ROUTE
async def test_other_ways_to_a_route_have_the_same_doors(stage: Stage, ask: Ask) -> None:
    """HEAD where there is GET, the other path of /voice; and no method that the table doesn't have."""
    route, call_id, token_of_all = TABLE[ask.route], await stage.call(), signed(FOREIGN, sorted(SCOPES))
    ways = [{"path": route.also}] if route.also else []
    ways += [{"method": hdrs.METH_HEAD}] if route.method == "GET" and route.kind is Kind.PLAIN else []
    for way in ways:
        for text in (None, "nonsense", signed(OWN, []), token_of_all):
            plain, other = await stage.ask(ask, call_id, text), await stage.ask(ask, call_id, text, **way)
            assert other.status == plain.status
    here = {each.method for each in ROUTES if each.path == route.path}
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"} - here:
        answer = await stage.ask(ask, call_id, token_of_all, method=method)
        assert (answer.status, answer.code) == (405, "method_not_allowed")


@IN_EACH_STATE
async def test_another_tenants_call_is_404_in_whatever_state_it_is(stage: Stage, state: str) -> None:
    """409 and 410 would tell that there was one."""
    call_id, wrong = await stage.call_that_is(state), []
    text = signed(FOREIGN, sorted(SCOPES))
    for ask in OF_CALLS:
        for node in (stage.owner, stage.other):
            found = await stage.ask(ask, call_id, text, node=node)
            nothing = await stage.ask(ask, new_call_id("iad"), text, node=node)
            if found.status != 404 or found != nothing:
                wrong.append((ask.id, found, nothing))
    assert wrong == []


@pytest.mark.parametrize("prefix", ["ek_", ""], ids=["with its prefix", "without"])
async def test_a_clients_key_opens_its_call_and_nothing_else(stage: Stage, prefix: str) -> None:
    """What a page holds, anybody may hold."""
    for ask in ASKS:
        made = json.loads((await stage.ask(MAKE_KEY, "", signed(OWN, ["mint"]))).body)
        answer = await stage.ask(ask, made["call_id"], prefix + made["value"].removeprefix("ek_"))
        if (ask.scope or TABLE[ask.route].scope) in {None, "call"}:
            assert answer.status == ask.status, ask.id
        else:
            assert (answer.status, answer.code) == (403, "missing_scope"), ask.id


async def test_what_is_read_of_a_tenant_has_nothing_of_another(stage: Stage) -> None:
    """Lists and sums name no call, so there is no 404 to hide behind."""
    call_id = await stage.call()
    read = {tenant: signed(tenant, ["read"]) for tenant in (OWN, FOREIGN)}

    async def listed(tenant: str) -> list[str]:
        return [each["id"] for each in json.loads((await stage.ask(LIST, "", read[tenant])).body)["data"]]

    assert (await listed(OWN), await listed(FOREIGN)) == ([call_id], [])
    pages = [replace(LIST, query=f"after={after}") for after in (call_id, new_call_id("iad"))]
    answers = [await stage.ask(page, page.query.partition("=")[2], read[FOREIGN]) for page in pages]
    assert (answers[0].status, answers[0].code) == (404, "call_not_found")
    assert answers[0] == answers[1]
    for narrowed in ("node=a", "agent=default", "region=iad", "state=live"):
        assert json.loads((await stage.ask(replace(LIST, query=narrowed), "", read[FOREIGN])).body)["data"] == []
    await stage.drop()
    usage = next(ask for ask in ASKS if ask.route == "show_usage")

    async def is_counted() -> bool:
        return len(json.loads((await stage.ask(usage, "", read[OWN])).body)["data"]) == 1

    await until(is_counted)
    assert json.loads((await stage.ask(usage, "", read[FOREIGN])).body)["data"] == []


# Bringing a call back


@pytest.mark.parametrize("path", ["/v1/realtime", "/voice", "/ws"])
@pytest.mark.parametrize("place", ["on the call's node", "on another"])
async def test_a_call_is_not_brought_back_by_another_tenant(stage: Stage, place: str, path: str) -> None:
    """Its token names the call, and is signed well: the claim alone is no right to it. The client notices nothing."""
    call_id, nobodys = await stage.call(), new_call_id("iad")
    node = stage.owner if place == "on the call's node" else stage.other
    claims: list[dict[str, Any]] = [
        {},
        {"browser": True},
        {"session": True},
        {"resume_seconds": 600},
        {"resume_seconds": 600, "seconds": -60},
        {"resume_seconds": 600, "seconds": -60, "session": True, "browser": True},
    ]
    for more in claims:
        answers = [
            await stage.ask(OPEN, each, signed(FOREIGN, ["call"], call=each, **more), node=node, path=path)
            for each in (call_id, nobodys)
        ]
        is_expired = "seconds" in more
        wanted = (401, "invalid_api_key") if is_expired else (404, "call_not_found")
        assert (answers[0].status, answers[0].code) == wanted
        assert answers[0] == answers[1]
        assert await stage.is_untouched()
    good = await stage.ask(OPEN, call_id, signed(OWN, ["call"], call=call_id), node=node, path=path)
    assert good.status == 101


async def test_a_call_is_not_brought_back_by_another_tenant_while_redis_is_away(
    doomed: tuple[RedisServer, Nodes],
) -> None:
    """Nobody can be asked then whose it is, and a call begins without Redis: not this one, and it goes on."""
    server, nodes = doomed
    node = await nodes.add(BUS_SOCKET_TIMEOUT="0.3", REGISTER_SECONDS="0.5")
    client = await nodes.connect(node)
    await event(client, "session.created")
    call_id = client._response.headers["X-Call-Id"]
    await until(lambda: _is_known(nodes, node, call_id))
    server.kill()
    text = signed(FOREIGN, ["call"], call=call_id)
    with capture_logs() as logs:
        assert await _knocked(nodes, node, text) in {404, 503, 1008, 1013}
    assert [entry for entry in logs if entry["log_level"] == "error"] == []
    await client.send_json({"type": "input_audio_buffer.clear"})
    assert (await client.receive_json())["type"] == "input_audio_buffer.cleared"


async def _knocked(nodes: Nodes, node: Node, text: str) -> int:
    """The status with which somebody is refused, or the code with which they are closed."""
    try:
        client = await nodes.http.ws_connect(f"{node.url}/v1/realtime?model=sim", headers=bearer(text))
    except aiohttp.WSServerHandshakeError as refused:
        return refused.status
    return (await closed(client))[0]


async def _is_known(nodes: Nodes, node: Node, call_id: str) -> bool:
    return (await nodes.get(node, f"/v1/realtime/calls/{call_id}"))[0] == 200


# The bus


Question = Callable[[Fanout, str, str], Coroutine[Any, Any, Any]]


async def _watch(bus: Fanout, call_id: str, tenant: str) -> None:
    async with bus.watch(call_id, tenant, lambda entry: None, audio=True):
        pass


async def _watch_from_start(bus: Fanout, call_id: str, tenant: str) -> None:
    async with bus.watch(call_id, tenant, lambda entry: None, after="0-0"):
        pass


async def _put(bus: Fanout, call_id: str, tenant: str) -> Any:
    message = Message(id="m2", item=b'{"type":"message"}', expires_at=time.time() + 60)
    return await bus.put(call_id, tenant, message, wait=Status.ACCEPTED, timeout=5.0)


async def _take(bus: Fanout, call_id: str, tenant: str) -> Any:
    async with asyncio.timeout(5):
        return await bus.take(record(call_id, tenant), lambda message: None)


QUESTIONS: dict[str, Question] = {
    "put": _put,
    "facts": lambda bus, call_id, tenant: bus.facts(call_id, tenant),
    "watch": _watch,
    "watch from its start": _watch_from_start,
    "receipt": lambda bus, call_id, tenant: bus.receipt(call_id, tenant, "m1"),
    "find": lambda bus, call_id, tenant: bus.find(call_id, tenant),
    "call": lambda bus, call_id, tenant: bus.call(call_id, tenant),
    "calls": lambda bus, call_id, tenant: bus.calls(tenant),
    "calls after": lambda bus, call_id, tenant: bus.calls(tenant, after=call_id),
    "reservation": lambda bus, call_id, tenant: bus.reservation(call_id, tenant),
    "take": _take,
}


def record(call_id: str, tenant: str, node: str = "beside") -> CallRecord:
    return CallRecord(
        id=call_id, tenant=tenant, node=node, region="iad", agent="default", model="sim", started_at=time.time()
    )


async def told(question: Question, bus: Fanout, call_id: str, tenant: str) -> str:
    """What the bus says, whatever it is, without the call's id."""
    try:
        found = await question(bus, call_id, tenant)
    except CallNotFound as error:
        return nameless(repr(error), call_id)
    return nameless(repr(found), call_id)


@IN_EACH_STATE
async def test_the_bus_tells_of_another_tenants_call_what_it_tells_of_none(stage: Stage, state: str) -> None:
    """Every way in goes through it: what it doesn't tell, no route can."""
    call_id, wrong = await stage.call_that_is(state), []
    async with bus_of(stage.nodes) as bus:
        before = await bus.find(call_id, OWN)
        for name, question in QUESTIONS.items():
            found = await told(question, bus, call_id, FOREIGN)
            nothing = await told(question, bus, new_call_id("iad"), FOREIGN)
            if found != nothing or SESSION["instructions"] in found:
                wrong.append((name, found, nothing))
        assert wrong == []
        assert await bus.find(call_id, OWN) == before
        assert await bus.receipt(call_id, OWN, "m2") is None
    if state == "live":
        assert await stage.is_untouched()


async def test_a_call_id_in_use_can_be_neither_reserved_nor_owned_by_another_tenant(stage: Stage) -> None:
    """Whatever it does, the call has the node, the tenant and the messages that it had."""
    call_id, reserved = await stage.call(), new_call_id("iad")
    async with bus_of(stage.nodes) as bus:
        await bus.reserve(reserved, OWN, seconds=60, session=b"{}")
        before = await bus.call(call_id, OWN)
        for each in (call_id, reserved):
            with pytest.raises(CallTaken):
                await bus.reserve(each, FOREIGN, seconds=60, session=b'{"model":"theirs"}')
            owned = bus.own(record(each, FOREIGN), lambda message: None)
            with pytest.raises(CallTaken):
                async with asyncio.timeout(5):
                    await owned.wait_registered()
            owned.hand_over()
            assert await bus.find(each, FOREIGN) is None
        assert await bus.call(call_id, OWN) == before
        assert await bus.find(reserved, OWN) == Reservation(call_id=reserved, session=b"{}")
        assert await stage.is_untouched()


async def test_a_publisher_of_another_tenant_finds_nothing(stage: Stage) -> None:
    """It stands beside the nodes and asks Redis itself."""
    call_id = await stage.call()
    regions = {"iad": stage.nodes._redis_url}
    async with Publisher(regions, tenant=FOREIGN, prefix=stage.nodes.prefix) as publisher:
        assert (await publisher.calls()).calls == []
        assert await publisher.call(call_id) is None
        for ask in (
            lambda: publisher.put(call_id, ITEM),
            lambda: publisher.send_event(call_id, {"type": "response.create"}),
            lambda: publisher.hangup(call_id),
            lambda: publisher.receipt(call_id, "m1"),
            lambda: anext(aiter(publisher.events(call_id))),
        ):
            with pytest.raises(CallNotFound):
                await ask()
    assert await stage.is_untouched()


# Names that are alike

ALIKE = (OWN, FOREIGN, "a", "a:b", "a:", ":b", "{a}", "a*", "ab", "A", "a ", "a|b", "a%3Ab", "ａ", "\\x61")


async def test_a_revocation_holds_for_its_tenants_token_and_no_other(nodes: Nodes) -> None:
    """Ids of tokens are the tenants' own to choose, and so may be their names."""
    node = await nodes.add()
    ids = ("one", "b:one", ":one", "one:", "a:one", "b", "ONE")
    every = list(product(ALIKE, ids))
    revoked = Random(6).sample(every, len(every) // 2)
    kept = next(each for each in every if each not in revoked)
    client = await nodes.connect(node, headers=bearer(signed(kept[0], ["call"], jti=kept[1])))
    await event(client, "session.created")
    for tenant, jti in revoked:
        url, headers = f"{node.url}/v1/tokens/revoke", bearer(signed(tenant, ["mint"]))
        async with nodes.http.post(url, json={"jti": jti}, headers=headers) as response:
            assert response.status == 200

    async def refused() -> set[tuple[str, str]]:
        found = set()
        for tenant, jti in every:
            headers = bearer(signed(tenant, ["read"], jti=jti))
            async with nodes.http.get(f"{node.url}/v1/realtime/calls", headers=headers) as response:
                found |= {(tenant, jti)} if response.status == 401 else set()
        return found

    async def all_are() -> bool:
        return len(await refused()) >= len(revoked)

    await until(all_are)
    assert await refused() == set(revoked)
    await client.send_json({"type": "input_audio_buffer.clear"})
    await event(client, "input_audio_buffer.cleared")
    await client.close()


async def test_tenants_whose_names_are_alike_share_nothing(nodes: Nodes) -> None:
    """Their names are in the keys of lists and accounts."""
    node = await nodes.add()
    clients = {}
    for tenant in ALIKE:
        clients[tenant] = await nodes.connect(node, headers=bearer(signed(tenant, ["call"])))
        await event(clients[tenant], "session.created")

    async def data(path: str, tenant: str) -> list[dict[str, Any]]:
        async with nodes.http.get(node.url + path, headers=bearer(signed(tenant, ["read"]))) as response:
            return list((await response.json())["data"])

    for tenant, client in clients.items():
        ids = [each["id"] for each in await data("/v1/realtime/calls", tenant)]
        assert ids == [client._response.headers["X-Call-Id"]], tenant
    for client in clients.values():
        await client.close()

    async def are_counted() -> bool:
        return all([await data("/v1/usage", tenant) for tenant in ALIKE])

    await until(are_counted)
    for tenant in ALIKE:
        assert [each["calls"] for each in await data("/v1/usage", tenant)] == [1], tenant
