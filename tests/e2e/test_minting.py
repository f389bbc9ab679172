"""Client secrets in use: made by a backend with the official SDK, used by its client, for one call that has its id."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from openai import AsyncOpenAI
from openai.types.realtime import ClientSecretCreateResponse
from structlog.testing import capture_logs
from websockets.exceptions import InvalidStatus

from fanout import new_call_id
from relay.app import Node
from relay.demo import declare_settled
from relay.shell.node import read_claims
from tests.support.fleet import Nodes, bearer, closed, event, session_of, token, until
from tests.support.redis_server import RedisServer
from tests.support.signing import key_set, signer

POEM: Any = {"type": "realtime", "model": "sim", "instructions": "Speak in verse.", "output_modalities": ["text"]}
KEY_PROTOCOL = "openai-insecure-api-key."


def unlocked(nodes: Nodes) -> dict[str, str]:
    """Settings of a node whose agent lets clients see and change all of their session."""
    path = nodes.folder / "unlocked.toml"
    path.write_text("[agents.default]\ntranscription = false\nlocked = []\n")
    return {"CONFIG": str(path)}


async def secret_for(node: Node, **wishes: Any) -> ClientSecretCreateResponse:
    """Ask a node for a secret with the official SDK."""
    async with AsyncOpenAI(api_key=token("mint"), base_url=f"{node.url}/v1", max_retries=0) as sdk:
        return await sdk.realtime.client_secrets.create(**wishes)


def call_of(secret: ClientSecretCreateResponse) -> str:
    """The call that a secret is for."""
    return str((secret.model_extra or {})["call_id"])


async def refused(nodes: Nodes, node: Node, key: str, path: str = "/v1/realtime?model=sim") -> tuple[int, str]:
    """Status and code with which a node refuses to begin a call."""
    handshake = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    headers = handshake | bearer(key) | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    async with nodes.http.get(node.url + path, headers=headers) as response:
        return response.status, (await response.json())["error"]["code"]


async def state(nodes: Nodes, node: Node, call_id: str) -> str:
    """Of a call, as any node tells it."""
    return str((await nodes.get(node, f"/v1/realtime/calls/{call_id}"))[1].get("state"))


async def test_the_call_has_the_id_that_its_backend_was_told(nodes: Nodes) -> None:
    """On another node than the one that made the secret: the backend can act on the call before anybody connects."""
    node, other = await nodes.add("a"), await nodes.add("b")
    async with AsyncOpenAI(api_key=token("mint"), base_url=f"{node.url}/v1") as sdk:
        answer = await sdk.realtime.client_secrets.with_raw_response.create(session=POEM)
    secret = answer.parse()
    assert answer.headers["X-Call-Id"] == call_of(secret)
    client = await nodes.connect(other, headers=bearer(secret.value))
    assert client._response.headers["X-Call-Id"] == call_of(secret)
    await event(client, "session.created")
    assert await state(nodes, node, call_of(secret)) == "live"
    await client.close()


async def test_the_official_sdk_begins_the_call_with_the_session_that_was_asked_for(nodes: Nodes) -> None:
    """The first event shows it, so that a browser need not know what the backend wants; it may still change it."""
    node = await nodes.add(**unlocked(nodes))
    secret = await secret_for(node, session=POEM)
    async with (
        AsyncOpenAI(api_key=secret.value, base_url=f"{node.url}/v1") as sdk,
        sdk.realtime.connect() as connection,  # the model is the secret's
    ):
        first = await connection.recv()
        assert first.type == "session.created"
        session: Any = first.to_dict()["session"]
        assert {key: session[key] for key in POEM} == POEM
        await connection.session.update(session={"type": "realtime", "instructions": "Speak in prose."})
        second: Any = (await connection.recv()).to_dict()
        assert (second["type"], second["session"]["instructions"]) == ("session.updated", "Speak in prose.")
    assert (await nodes.session())["query"]["model"] == "sim"


@pytest.mark.parametrize("path", ["/v1/realtime", "/voice"])
async def test_a_page_uses_it_as_a_subprotocol(nodes: Nodes, path: str) -> None:
    """Browsers can set no header; the protocol that is selected is never the one with the key."""
    node = await nodes.add(**unlocked(nodes))
    secret = await secret_for(node, session=POEM)
    protocols = ("realtime", KEY_PROTOCOL + secret.value)
    client = await nodes.http.ws_connect(node.url + path, protocols=protocols)
    assert (client.protocol, client._response.headers["X-Call-Id"]) == ("realtime", call_of(secret))
    session = (await event(client, "session.created"))["session"]
    assert (session["instructions"], session["output_modalities"]) == ("Speak in verse.", ["text"])
    await client.close()


async def test_its_session_is_laid_over_the_agents(nodes: Nodes) -> None:
    """A /voice call has the agent's session; what the backend asked for goes first."""
    agents = nodes.folder / "agents.toml"
    agents.write_text('[agents.default]\nmodel = "sim"\nvoice = "cedar"\ninstructions = "Be brief."\nlocked = []\n')
    node = await nodes.add(CONFIG=str(agents))
    secret = await secret_for(node, session={"type": "realtime", "instructions": "Speak in verse."})
    client = await nodes.connect(node, "/voice", headers=bearer(secret.value))
    session = (await event(client, "session.created"))["session"]
    assert (session["instructions"], session["audio"]["output"]["voice"]) == ("Speak in verse.", "cedar")
    await client.close()


async def test_without_a_session_the_call_begins_as_any(nodes: Nodes) -> None:
    """And nothing is asked of the model that the client did not ask."""
    node = await nodes.add()
    secret = await secret_for(node)
    client = await nodes.connect(node, headers=bearer(secret.value))
    await event(client, "session.created")
    assert (await nodes.session())["received"] == {}
    await client.close()


async def test_a_transcription_session_needs_no_model(nodes: Nodes) -> None:
    """OpenAI's servers take an intent in its place; the simulator knows none and says so."""
    node = await nodes.add()
    secret = await secret_for(node, session={"type": "transcription"})
    assert secret.session.type == "transcription"
    client = await nodes.connect(node, "/v1/realtime", headers=bearer(secret.value))
    assert (await event(client, "error"))["error"]["code"] == "missing_model"
    assert (await nodes.session())["query"] == {"intent": "transcription"}


async def test_a_session_that_the_model_refuses_leaves_the_call_without_it(nodes: Nodes) -> None:
    """The client asked for nothing wrong: it gets a call, and no error about what it never sent."""
    node = await nodes.add()
    secret = await secret_for(node, session={"type": "realtime", "colour": "red"})
    client = await nodes.connect(node, headers=bearer(secret.value))
    first = await client.receive_json()
    assert (first["type"], first["session"]["instructions"]) == (
        "session.created",
        "You are a simulated voice model: you say back what you hear.",
    )
    await client.send_str('{"type": "input_audio_buffer.clear"}')
    assert (await client.receive_json())["type"] == "input_audio_buffer.cleared"
    await client.close()


async def test_it_is_for_one_client_at_a_time_and_for_one_call(nodes: Nodes) -> None:
    """Who comes later goes on with the call, here or on another node, and the one before is told: 4009. 410 after."""
    node, other = await nodes.add("a"), await nodes.add("b")
    secret = await secret_for(node)
    client = await nodes.connect(node, headers=bearer(secret.value))
    await event(client, "session.created")
    for each in (node, other):
        again = await nodes.connect(each, headers=bearer(secret.value))
        await event(again, "session.created")
        assert (await closed(client))[0] == 4009
        client = again
    await client.send_str('{"type": "input_audio_buffer.clear"}')
    await event(client, "input_audio_buffer.cleared")
    await client.close()

    async def is_over() -> bool:
        return await state(nodes, other, call_of(secret)) == "ended"

    await until(is_over)
    for each in (node, other):
        assert await refused(nodes, each, secret.value) == (410, "call_ended")


async def test_two_clients_at_once_are_one_call(nodes: Nodes) -> None:
    """Both find it reserved; one of them has it, the other is told and leaves nothing at the model."""
    node, other = await nodes.add("a"), await nodes.add("b")
    secret = await secret_for(node)
    await nodes.fault(slow_open=0.2)
    await nodes.fault(slow_open=0.2)
    headers = bearer(secret.value)
    clients = await asyncio.gather(nodes.connect(node, headers=headers), nodes.connect(other, headers=headers))
    firsts = [await each.receive() for each in clients]
    told = [json.loads(each.data)["type"] if each.type is aiohttp.WSMsgType.TEXT else each.data for each in firsts]
    assert sorted(map(str, told)) == ["4009", "session.created"]

    async def is_one() -> bool:
        return (await nodes.sim_health())["open_sessions"] == 1

    await until(is_one)
    for each in clients:
        await each.close()


async def test_connections_at_once_to_one_node_are_one_call(nodes: Nodes) -> None:
    """All find it reserved; as with any that come later, the last one has it and the others are told."""
    node = await nodes.add()
    headers = bearer((await secret_for(node)).value)
    with capture_logs() as logs:
        clients = await asyncio.gather(*(nodes.connect(node, headers=headers) for _ in range(3)))
        firsts = [await each.receive() for each in clients]
        told = [json.loads(each.data)["type"] if each.type is aiohttp.WSMsgType.TEXT else each.data for each in firsts]
        assert sorted(map(str, told)) == ["4009", "4009", "session.created"]
        for each in clients:
            await each.close()
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_a_key_whose_calls_end_cannot_be_written_yet_opens_nothing(doomed: tuple[RedisServer, Nodes]) -> None:
    """Its id still stands for the call that was; without Redis nobody can say so, and the client may come again."""
    server, nodes = doomed
    node = await nodes.add(BUS_SOCKET_TIMEOUT="0.3")
    headers = bearer((await secret_for(node)).value)
    client = await nodes.connect(node, headers=headers)
    await event(client, "session.created")
    call = session_of(client._response.headers["X-Call-Id"])
    server.kill()
    await client.close()
    await until(lambda: call.is_over and not call._hands.owned)
    with capture_logs() as logs:
        code, events = await closed(await nodes.connect(node, headers=headers))
    assert (code, [each["error"]["code"] for each in events]) == (1013, ["region_unreachable"])
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_the_sdk_is_told_why_its_key_opens_nothing(nodes: Nodes) -> None:
    """An expired key is 401, as any; one whose call is not reserved any more 404."""
    node = await nodes.add()
    expired = f"ek_{token('call', seconds=-60, call=call_of(await secret_for(node)))}"
    forgotten = f"ek_{token('call', call=new_call_id('iad'))}"
    for key, status, code in ((expired, 401, "invalid_api_key"), (forgotten, 404, "call_not_found")):
        async with AsyncOpenAI(api_key=key, base_url=f"{node.url}/v1") as sdk:
            with pytest.raises(InvalidStatus) as error:
                async with sdk.realtime.connect(model="sim"):
                    pass
        answer = error.value.response
        assert (answer.status_code, json.loads(answer.body)["error"]["code"]) == (status, code)


async def test_another_tenants_token_does_not_open_the_call(nodes: Nodes) -> None:
    """Who can sign tokens for one tenant must not learn of another's calls."""
    node = await nodes.add()
    call_id = call_of(await secret_for(node))
    foreign = f"ek_{token('call', tenant='evil', call=call_id)}"
    assert await refused(nodes, node, foreign) == (404, "call_not_found")
    assert await state(nodes, node, call_id) == "reserved"


async def test_the_key_is_good_for_nothing_but_its_call(nodes: Nodes) -> None:
    """A page shows it to everybody who looks: it cannot attach, read, put, hang up, or make another."""
    node = await nodes.add()
    secret = await secret_for(node)
    call_id = call_of(secret)
    path = f"/v1/realtime/calls/{call_id}"
    assert await refused(nodes, node, secret.value, f"/v1/realtime?call_id={call_id}") == (403, "missing_scope")
    for method, each in (
        ("GET", path),
        ("GET", f"{path}/events"),
        ("POST", f"{path}/items"),
        ("POST", f"{path}/hangup"),
        ("POST", "/v1/realtime/client_secrets"),
    ):
        async with nodes.http.request(method, node.url + each, headers=bearer(secret.value), data=b"{}") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "missing_scope")


async def test_its_time_is_what_was_asked_for(nodes: Nodes) -> None:
    """Ten seconds to two hours, as OpenAI has it; ten minutes if nothing was said."""
    node = await nodes.add()
    for seconds in (10, 7200):
        secret = await secret_for(node, expires_after={"anchor": "created_at", "seconds": seconds})
        assert seconds - 5 < secret.expires_at - time.time() <= seconds
    assert 595 < (await secret_for(node)).expires_at - time.time() <= 600


# What it is bound to

RULES = """\
[agents.default]
transcription = false
[agents.sales]
model = "sales-model"
transcription = false
[agents.insiders]
tenants = ["inside"]
[plans.gold]
concurrent_calls = 10
"""


@pytest.fixture
def rules(nodes: Nodes) -> dict[str, str]:
    """Settings of a node with agents and a plan."""
    path = nodes.folder / "rules.toml"
    path.write_text(RULES)
    return {"CONFIG": str(path)}


async def asked(nodes: Nodes, node: Node, credentials: str, **body: Any) -> tuple[int, dict[str, Any]]:
    """Ask for a secret without an SDK."""
    url = f"{node.url}/v1/realtime/client_secrets"
    async with nodes.http.post(url, json=body, headers=bearer(credentials)) as response:
        return response.status, await response.json()


async def test_a_secret_is_bound_to_tenant_agent_plan_call_and_its_own_id(nodes: Nodes, rules: dict[str, str]) -> None:
    """The page that has it can make nothing else of it; the answer has the id by which it is revoked."""
    node = await nodes.add(**rules)
    status, answer = await asked(nodes, node, token("mint", plan="gold"), agent="sales")
    assert (status, answer["session"]["model"]) == (200, "sales-model")
    claims = read_claims(answer["value"]) or {}
    names = ("tenant", "scope", "agent", "plan", "call", "jti", "origin")
    assert {name: claims.get(name) for name in names} == {
        "tenant": "test",
        "scope": ["call"],
        "agent": "sales",
        "plan": "gold",
        "call": answer["call_id"],
        "jti": answer["jti"],
        "origin": None,
    }
    client = await nodes.connect(node, "/v1/realtime?model=sim", headers=bearer(answer["value"]))
    await event(client, "session.created")
    _, call = await nodes.get(node, f"/v1/realtime/calls/{answer['call_id']}")
    assert call["agent"] == "sales"
    await client.close()
    again = await asked(nodes, node, token("mint"))
    assert again[1]["jti"] != answer["jti"]


@pytest.mark.parametrize(
    ("claims", "body", "status", "code"),
    [
        ({}, {}, 200, ""),
        ({"agent": "sales"}, {}, 200, ""),
        ({"agent": "sales"}, {"agent": "sales"}, 200, ""),
        ({"agent": "sales"}, {"agent": "default"}, 403, "agent_not_allowed"),
        ({}, {"agent": "nobody"}, 403, "unknown_agent"),
        ({}, {"agent": "insiders"}, 403, "unknown_agent"),
        ({"agent": "insiders"}, {}, 403, "unknown_agent"),
        ({"tenant": "inside"}, {"agent": "insiders"}, 200, ""),
        ({"plan": "silver"}, {}, 403, "unknown_plan"),
        ({}, {"agent": ""}, 422, "invalid_value"),
        ({}, {"origin": "https://shop.example/path"}, 422, "invalid_value"),
        ({}, {"plan": "gold"}, 422, "invalid_value"),
    ],
)
async def test_nobody_makes_keys_for_more_than_their_own_token_is_for(
    nodes: Nodes, rules: dict[str, str], claims: dict[str, str], body: dict[str, str], status: int, code: str
) -> None:
    """An agent of the token's is the only one; another tenant's is as unknown as none; the plan is the token's."""
    got, answer = await asked(nodes, await nodes.add(**rules), token("mint", **claims), **body)
    assert (got, answer.get("error", {}).get("code", "")) == (status, code)


async def test_a_secret_for_one_origin_opens_its_call_for_no_other_page(nodes: Nodes, rules: dict[str, str]) -> None:
    """Who copies it out of a page cannot use it in another, though the node allows both."""
    mine, other = "https://shop.example", "https://other.example"
    node = await nodes.add(ALLOWED_ORIGINS=f"{mine},{other}", **rules)
    _, answer = await asked(nodes, node, token("mint"), origin=f"{mine}:443")
    key = answer["value"]
    for headers in ({"Origin": other}, {}):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await nodes.connect(node, headers=bearer(key) | headers)
        assert caught.value.status == 403
    client = await nodes.connect(node, headers=bearer(key) | {"Origin": mine})
    await event(client, "session.created")
    await client.close()


async def test_a_node_that_has_no_secret_makes_no_keys(nodes: Nodes, rules: dict[str, str]) -> None:
    """Tokens are signed elsewhere then, with keys that are only checked here."""
    elsewhere = signer("k1")

    async def keys(_: web.Request) -> web.Response:
        return web.Response(body=key_set(elsewhere.public()), content_type="application/json")

    app = web.Application()
    app.router.add_get("/keys", keys)
    async with TestServer(app) as server:
        node = await nodes.add(JWT_SECRET="", JWKS_URL=str(server.make_url("/keys")), **rules)
        status, answer = await asked(nodes, node, elsewhere.sign(tenant="test", scope=["mint"]))
        assert (status, answer["error"]["code"]) == (501, "minting_not_configured")


# Two regions


@asynccontextmanager
async def two_regions(nodes: Nodes, **env: str) -> AsyncIterator[tuple[Node, Node, RedisServer]]:
    """A node in each, and the Redis of the second."""
    there = RedisServer().start()
    try:
        await declare_settled(there.url, nodes.prefix)
        regions = {"REGIONS": f"iad={nodes._redis_url},lhr={there.url}", **env}
        async with nodes.node("iad-1", **regions) as near, nodes.node("lhr-1", REGION="lhr", **regions) as far:
            yield near, far, there
    finally:
        there.stop()


async def test_a_key_made_in_one_region_opens_its_call_in_another(nodes: Nodes) -> None:
    """The backend is where it is, the person is elsewhere; the call's home is the backend's region."""
    async with two_regions(nodes, **unlocked(nodes)) as (near, far, _):
        secret = await secret_for(far, session=POEM)
        assert call_of(secret).startswith("rtc_lhr_")
        client = await nodes.connect(near, headers=bearer(secret.value))
        assert (await event(client, "session.created"))["session"]["instructions"] == "Speak in verse."
        _, call = await nodes.get(far, f"/v1/realtime/calls/{call_of(secret)}")
        assert (call["state"], call["region"], call["node"]) == ("live", "iad", "iad-1")
        await client.close()


async def test_a_call_begins_though_the_redis_of_its_key_is_gone(nodes: Nodes) -> None:
    """Unless its session is there and nowhere else: a call with another one than was promised is worse than none."""
    async with two_regions(nodes, BUS_SOCKET_TIMEOUT="0.6", REGISTER_SECONDS="0.1") as (near, far, there):
        plain, promised = await secret_for(far), await secret_for(far, session=POEM)
        there.stop()
        assert await refused(nodes, near, promised.value) == (503, "region_unreachable")
        client = await nodes.connect(near, headers=bearer(plain.value))
        assert client._response.headers["X-Call-Id"] == call_of(plain)
        await event(client, "session.created")
        await client.close()
