"""Whatever ends a call closes both legs, with the code of the table of endings; nobody hangs."""

import asyncio
import json
import socket as sockets
from pathlib import Path

import aiohttp
import pytest

from tests.support.fleet import Nodes, bearer, closed, event, session_of, token, until
from tests.support.redis_server import RedisServer


async def ended_at_model(nodes: Nodes) -> int | None:
    """Until the simulator's side is closed too (an upstream session that outlives its client bills)."""

    async def none_open() -> bool:
        return (await nodes.sim_health())["open_sessions"] == 0

    await until(none_open)
    code: int | None = (await nodes.session())["close_code"]
    return code


async def why(nodes: Nodes, node: object, call_id: str) -> str:
    """Until the tombstone is there; returns its reason."""

    async def is_over() -> bool:
        return (await nodes.get(node, f"/v1/realtime/calls/{call_id}"))[1].get("state") == "ended"  # type: ignore[arg-type]

    await until(is_over)
    return str((await nodes.get(node, f"/v1/realtime/calls/{call_id}"))[1]["why"])  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [1000, 1001, 3005, 4321], ids=str)
async def test_the_clients_close_is_answered_and_ends_the_model_leg(nodes: Nodes, code: int) -> None:
    """RFC 6455 has the code come back; the model gets a normal close."""
    node = await nodes.add()
    client = await nodes.connect(node)
    await event(client, "session.created")
    await client.close(code=code)
    assert client.close_code == code
    assert await ended_at_model(nodes) == 1000
    assert await why(nodes, node, client._response.headers["X-Call-Id"]) == "client_closed"


async def test_a_client_that_vanishes_ends_the_model_leg(nodes: Nodes) -> None:
    """A reset connection has no close frame, and the session must not go on billing."""
    node = await nodes.add()
    client = await nodes.connect(node)
    await event(client, "session.created")
    transport = client._response.connection.transport
    transport.abort()
    await ended_at_model(nodes)
    assert await why(nodes, node, client._response.headers["X-Call-Id"]) == "client_lost"


@pytest.mark.parametrize(
    ("fault", "code", "label"),
    [
        ({"close": 1000}, 1000, "model_closed"),
        ({"close": 1001}, 1001, "model_expired"),
        ({"close": 4000, "reason": "invalid_request_error.missing_model"}, 4000, "model_closed"),
        ({"close": 3000, "reason": "invalid_request_error.invalid_api_key"}, 1008, "model_key"),
        ({"close": 1009}, 1011, "model_lost"),
        ({"reset": True}, 1011, "model_lost"),
        ({"malformed": "opcode"}, 1011, "model_protocol"),
        ({"malformed": "utf8"}, 1011, "model_protocol"),
        ({"malformed": "rsv"}, 1011, "model_protocol"),
        ({"malformed": "length"}, 1011, "model_protocol"),
        ({"malformed": "continuation"}, 1011, "model_protocol"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else str(value),
)
async def test_the_models_end_reaches_the_client(nodes: Nodes, fault: dict[str, object], code: int, label: str) -> None:
    """Carried over where the code means the same to the client; else the model was lost."""
    await nodes.fault(**fault, events=1)
    node = await nodes.add()
    client = await nodes.connect(node)
    assert (await closed(client))[0] == code
    assert await why(nodes, node, client._response.headers["X-Call-Id"]) == label


async def test_session_expiry_comes_with_its_error_event(nodes: Nodes) -> None:
    """SDKs tell the cap from a fault by the event before the close."""
    await nodes.fault(expire=0.1)
    client = await nodes.connect(await nodes.add())
    code, events = await closed(client)
    assert code == 1001
    assert events[-1]["error"]["code"] == "session_expired"


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        ({"refuse": 401}, "upstream_credentials_refused", 1008),
        ({"refuse": 404}, "upstream_refused", 1008),
        ({"refuse": 429}, "upstream_busy", 1013),
        ({"refuse": 503}, "upstream_failed", 1013),
        ({"hang": True}, "upstream_timeout", 1013),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else str(value),
)
async def test_a_model_that_cannot_be_had_is_told_in_words(
    nodes: Nodes, fault: dict[str, object], error: str, code: int
) -> None:
    """An error event that a person can act on, then the close code; never a hang."""
    await nodes.fault(**fault)
    client = await nodes.connect(await nodes.add(DIAL_SECONDS="0.5"))
    got, events = await closed(client)
    assert (got, [event["error"]["code"] for event in events]) == (code, [error])


async def test_what_the_model_says_before_it_closes_is_told_though_the_call_is_not_registered_yet(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """OpenAI refuses a key by an error event and a close behind it; the text that quotes the key is replaced."""
    async with Nodes.running(redis_server.url, tmp_path, key="another-key") as nodes:
        node = await nodes.add(REGIONS="iad=redis://127.0.0.1:1", REGISTER_SECONDS="60")
        code, events = await closed(await nodes.connect(node))
        assert (code, [event["error"]["code"] for event in events]) == (1008, ["invalid_api_key"])
        assert "upstream-key" not in json.dumps(events)


async def test_an_unreachable_model_is_told_in_words(nodes: Nodes) -> None:
    """Nobody listens there."""
    client = await nodes.connect(await nodes.add(UPSTREAM_URL="ws://127.0.0.1:1/v1/realtime"))
    code, events = await closed(client)
    assert (code, events[0]["error"]["code"]) == (1013, "upstream_unreachable")


async def test_a_client_that_leaves_while_the_model_is_dialled_leaves_no_socket_there(nodes: Nodes) -> None:
    """The handshake may take seconds; its socket must not be kept for a client that is gone."""
    await nodes.fault(hang=True)
    before = (await nodes.sim_health())["file_descriptors"]
    client = await nodes.connect(await nodes.add())

    async def dialling() -> bool:
        return int((await nodes.sim_health())["file_descriptors"]) > before

    await until(dialling)
    await client.close()
    await until(lambda: _established(nodes.model.port) == 1)  # our own connection to its control port


def _established(port: int) -> int:
    """Count this process's established TCP connections to a port of 127.0.0.1."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(row[2] == f"0100007F:{port:04X}" and row[3] == "01" for row in rows)


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/v1/realtime?model=sim", {}, 401, "missing_token"),
        ("/v1/realtime?model=sim", bearer("nonsense"), 401, "invalid_api_key"),
        ("/v1/realtime?model=sim", bearer(token(secret="x" * 32)), 401, "invalid_api_key"),
        ("/v1/realtime?model=sim", bearer(token(seconds=-60)), 401, "invalid_api_key"),
        ("/v1/realtime?model=sim", bearer(token("read")), 403, "missing_scope"),
        ("/v1/realtime?model=sim", bearer(token(agent="nobody")), 403, "unknown_agent"),
        ("/v1/realtime?model=sim", bearer(token()) | {"Origin": "https://evil.example"}, 403, "origin_not_allowed"),
        ("/v1/realtime", bearer(token()), 400, "missing_model"),
        ("/voice?call_id=rtc_x", bearer(token()), 400, "call_id_not_supported"),
        ("/nowhere", bearer(token()), 404, "not_found"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_refused_upgrade_says_why(
    nodes: Nodes, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    """Before the upgrade it is an HTTP status, in OpenAI's error shape."""
    node = await nodes.add()
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    async with nodes.http.get(node.url + path, headers=handshake | headers) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (status, code)


async def test_a_request_without_an_upgrade_gets_426(nodes: Nodes) -> None:
    """Somebody opened the URL in a browser."""
    node = await nodes.add()
    async with nodes.http.get(node.url + "/v1/realtime?model=sim") as response:
        assert (response.status, response.headers["Upgrade"]) == (426, "websocket")
        assert (await response.json())["error"]["code"] == "upgrade_required"


async def test_webrtc_is_told_what_to_use_instead(nodes: Nodes) -> None:
    """It is the Agents SDK's default in browsers."""
    node = await nodes.add()
    async with nodes.http.post(node.url + "/v1/realtime/calls", data="v=0") as response:
        assert response.status == 501
        assert "OpenAIRealtimeWebSocket" in (await response.json())["error"]["message"]


async def test_a_full_node_refuses(nodes: Nodes) -> None:
    """Admission is by count, before any work."""
    node = await nodes.add(MAX_CALLS="1")
    client = await nodes.connect(node)
    await event(client, "session.created")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await nodes.connect(node)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "2")
    await client.close()


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x83\x80\0\0\0\0", 1002),  # a reserved opcode
        (b"\xc1\x80\0\0\0\0", 1002),  # a reserved bit
        (b"\x80\x80\0\0\0\0", 1002),  # continues nothing
        (b"\x81\x01x", 1002),  # not masked
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),  # not UTF-8
        (b"\x82\x82\0\0\0\0hi", 1003),  # binary belongs to /voice
        (b"\x81\xff\0\0\0\0\x02\0\0\0\0\0\0\0", 1009),  # 32 MiB announced
        (b"\x88\x82\0\0\0\0\x03\xee", 1002),  # close code 1006
    ],
    ids=["opcode", "rsv", "continuation", "unmasked", "utf8", "binary", "too-big", "close-code"],
)
async def test_a_malformed_frame_gets_the_right_close_code(nodes: Nodes, frame: bytes, code: int) -> None:
    """RFC 6455, section 7.4.1; and the model leg ends with it."""
    node = await nodes.add()
    client = await nodes.connect(node)
    await event(client, "session.created")
    client._response.connection.transport.write(frame)
    assert (await closed(client))[0] == code
    await ended_at_model(nodes)


async def test_what_is_not_json_is_answered_and_the_call_goes_on(nodes: Nodes) -> None:
    """Most errors of the Realtime API are recoverable, and so is this one."""
    client = await nodes.connect(await nodes.add())
    await event(client, "session.created")
    for bad in ("{", "[]", '{"no": "type"}', '{"type": 7}', "[" * 5000):
        await client.send_str(bad)
        assert (await event(client, "error"))["error"]["code"] == "invalid_json"
    await client.send_str('{"type": "input_audio_buffer.clear"}')
    await event(client, "input_audio_buffer.cleared")


async def test_a_client_that_reads_nothing_is_ended_and_costs_bounded_memory(nodes: Nodes) -> None:
    """The model is paused meanwhile, so what waits for the client is bounded."""
    node = await nodes.add(STALL_SECONDS="1", WRITE_BUFFER_BYTES="32768")
    client = await nodes.connect(node)
    await event(client, "session.created")
    client._response.connection.transport.pause_reading()
    audio = "AAAA" * 50_000
    item = {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": audio}], "id": "big"}
    await client.send_str(json.dumps({"type": "conversation.item.create", "item": item}))
    session = session_of(client._response.headers["X-Call-Id"])
    for _ in range(200):  # 40 MB of answers
        await client.send_str('{"type": "conversation.item.retrieve", "item_id": "big"}')
    assert await why(nodes, node, client._response.headers["X-Call-Id"]) == "client_slow"
    assert 32_768 < session.client.leg.largest_buffer < 2_000_000
    await ended_at_model(nodes)


async def test_a_model_that_reads_nothing_ends_the_call(nodes: Nodes) -> None:
    """The client is paused meanwhile: its audio piles up in its own buffers, not on the node."""
    await nodes.fault(stall=True, events=1)
    node = await nodes.add(STALL_SECONDS="1", WRITE_BUFFER_BYTES="32768")
    client = await nodes.connect(node)
    await event(client, "session.created")
    append = '{"type":"input_audio_buffer.append","audio":"' + "AAAA" * 16_000 + '"}'
    session = session_of(client._response.headers["X-Call-Id"])

    async def flood() -> None:
        while True:
            await client.send_str(append)

    flooding = asyncio.get_running_loop().create_task(flood())
    code, events = await closed(client)
    flooding.cancel()
    assert (code, [event["error"]["code"] for event in events]) == (1013, ["model_slow"])
    assert 32_768 < session.model.leg.largest_buffer < 2_000_000


async def test_a_silent_client_is_noticed(nodes: Nodes) -> None:
    """A half-open connection answers no ping."""
    node = await nodes.add(PING_SECONDS="0.6", PONG_SECONDS="0.6", STALL_SECONDS="1")
    client = await nodes.connect(node, autoping=False)
    await event(client, "session.created")
    assert await why(nodes, node, client._response.headers["X-Call-Id"]) == "client_silent"
    await ended_at_model(nodes)


async def test_a_node_that_stops_tells_its_calls_to_come_back(nodes: Nodes) -> None:
    """1012 makes SDKs reconnect; the model legs are closed, the calls are gone from the list."""
    async with nodes.node() as node:
        client = await nodes.connect(node)
        await event(client, "session.created")
        leaving = asyncio.get_running_loop().create_task(closed(client))
    assert (await leaving)[0] == 1012
    await ended_at_model(nodes)
    other = await nodes.add("b")
    assert (await nodes.get(other, "/v1/realtime/calls"))[1]["data"] == []


async def test_a_draining_node_lets_its_calls_finish(nodes: Nodes) -> None:
    """It is not ready at once and takes no new call, but the live one goes on."""
    node = await nodes.add(DRAIN_SECONDS="60")
    client = await nodes.connect(node)
    await event(client, "session.created")
    async with nodes.http.post(node.ops_url + "/drain") as response:
        assert response.status == 202
    async with nodes.http.get(node.ops_url + "/readyz") as response:
        assert (response.status, await response.text()) == (503, "draining\n")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await nodes.connect(node)
    assert refused.value.status == 503
    await client.send_str('{"type": "input_audio_buffer.clear"}')
    await event(client, "input_audio_buffer.cleared")
    drained = asyncio.get_running_loop().create_task(node.wait_drained())
    await client.close()
    await asyncio.wait_for(drained, 5)


async def test_firefox_can_connect(nodes: Nodes) -> None:
    """Its upgrade request says ``Connection: keep-alive, Upgrade``."""
    node = await nodes.add()
    with sockets.create_connection(("127.0.0.1", int(node.url.rsplit(":", 1)[1]))) as raw:
        raw.sendall(
            f"GET /v1/realtime?model=sim HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n"
            "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n".encode()
        )
        raw.setblocking(False)
        head = await asyncio.get_running_loop().sock_recv(raw, 4096)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"permessage-deflate" not in head
