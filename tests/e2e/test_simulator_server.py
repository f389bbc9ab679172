"""The simulator on a socket: admission as OpenAI does it, faults on demand, what it remembers and leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ops.simulator.connection import OUTBOX_BYTES
from ops.simulator.server import Settings, Simulator, serve

KEY = {"Authorization": "Bearer sk-test"}


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with serve(Settings()) as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def read_all(ws: ClientWebSocketResponse) -> list[dict[str, Any]]:
    """Every event until the server closes."""
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while (message := await ws.receive()).type is WSMsgType.TEXT:
            events.append(json.loads(message.data))
    return events


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


# -- admission -------------------------------------------------------------------------------------------------------


async def test_without_a_key_the_upgrade_is_refused_in_openais_shape(simulator: Simulator, http: aiohttp.ClientSession):
    async with http.get(f"{simulator.http_url}/v1/realtime?model=sim") as answer:
        assert answer.status == 401
        assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("path", "headers", "code", "close"),
    [
        ("?model=sim", {"Authorization": "Bearer wrong"}, "invalid_api_key", 3000),
        ("?model=sim", {**KEY, "OpenAI-Beta": "realtime=v1"}, "beta_api_shape_disabled", 4000),
        ("", KEY, "missing_model", 4000),
    ],
    ids=["wrong key", "beta", "no model"],
)
async def test_a_bad_caller_is_told_after_the_upgrade(
    http: aiohttp.ClientSession, path: str, headers: dict[str, str], code: str, close: int
):
    async with (
        serve(Settings(key="sk-test")) as simulator,
        http.ws_connect(simulator.url + path, headers=headers) as ws,
    ):
        (event,) = await read_all(ws)
        assert event["error"]["code"] == code
        assert ws.close_code == close
        await wait_until(lambda: simulator.ledger.open_count == 0)


async def test_a_browser_brings_its_key_as_a_subprotocol_and_only_realtime_is_echoed(
    simulator: Simulator, http: aiohttp.ClientSession
):
    protocols = ("realtime", "openai-insecure-api-key.ek_1", "openai-agents-sdk.0.20.0")
    async with http.ws_connect(f"{simulator.url}?model=sim", protocols=protocols) as ws:
        assert ws.protocol == "realtime"
        assert (await ws.receive_json())["type"] == "session.created"
    async with http.ws_connect(f"{simulator.url}?model=sim", headers=KEY, compress=15) as ws:
        assert ws.protocol is None
        assert ws.compress == 0


async def test_a_ping_is_answered(simulator: Simulator, http: aiohttp.ClientSession):
    async with http.ws_connect(f"{simulator.url}?model=sim", headers=KEY, autoping=False) as ws:
        await ws.receive()
        await ws.ping(b"hello")
        message = await ws.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.PONG, b"hello")


async def test_it_speaks_tls(http: aiohttp.ClientSession, tmp_path: Path):
    certificate, key = certificate_for_localhost(tmp_path)
    trust = ssl.create_default_context(cafile=certificate)
    async with serve(Settings(host="localhost", certfile=certificate, keyfile=key)) as simulator:
        assert simulator.url.startswith("wss://localhost:")
        async with http.ws_connect(f"{simulator.url}?model=sim", headers=KEY, ssl=trust) as ws:
            assert (await ws.receive_json())["type"] == "session.created"


def certificate_for_localhost(folder: Path) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    return str(folder / "cert.pem"), str(folder / "key.pem")


async def test_words_make_it_speak_and_call_two_tools_in_one_response(
    simulator: Simulator, http: aiohttp.ClientSession
):
    """What a backend that serves tool calls has to cope with; its conversation shows up at the control endpoint."""
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("look_up", "hang_up")]
    content = [{"type": "input_text", "text": "first say something, talk for 1 second, then look up and hang up"}]
    async with http.ws_connect(f"{simulator.url}?model=sim", headers=KEY) as ws:
        session_id = (await ws.receive_json())["session"]["id"]
        await ws.send_json({"type": "session.update", "session": {"type": "realtime", "tools": tools}})
        item = {"type": "message", "role": "user", "content": content}
        await ws.send_json({"type": "conversation.item.create", "item": item})
        await ws.send_json({"type": "response.create"})
        while (event := await ws.receive_json(timeout=5))["type"] != "response.done":
            pass
        async with http.get(f"{simulator.http_url}/sim/sessions/{session_id}") as answer:
            kept = (await answer.json())["items"][1:]
    output = event["response"]["output"]
    assert [item.get("name") for item in output] == [None, "look_up", "hang_up"]
    assert [(item["id"], item["call_id"]) for item in kept] == [(item["id"], item.get("call_id")) for item in output]
    assert [item["audio_ms"] for item in kept] == [1000, 0, 0]


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["model", "query", "control"])
async def test_a_fault_comes_by_model_name_by_query_or_by_control(
    simulator: Simulator, http: aiohttp.ClientSession, where: str
):
    """A relay doesn't pass its client's query on, but it does pass the model's name."""
    query = {"model": "sim;close=4002,reason=bye" if where == "model" else "sim"}
    if where == "query":
        query["sim"] = "close=4002,reason=bye"
    if where == "control":
        body = {"count": 1, "close": 4002, "reason": "bye"}
        async with http.post(f"{simulator.http_url}/sim/faults", json=body) as answer:
            assert await answer.json() == {"pending_faults": 1}
    async with http.ws_connect(simulator.url, params=query, headers=KEY) as ws:
        message = await ws.receive(timeout=5)
        while message.type is WSMsgType.TEXT:
            message = await ws.receive(timeout=5)
        assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4002, "bye")
    await wait_until(lambda: simulator.ledger.open_count == 0)
    (record,) = simulator.ledger
    assert (record.close_code, record.closed_by) == (4002, "server")


async def connect(http: aiohttp.ClientSession, simulator: Simulator, fault: str) -> ClientWebSocketResponse:
    return await http.ws_connect(simulator.url, params={"model": "sim", "sim": fault}, headers=KEY)


async def test_a_refusal_has_the_status_and_the_body_asked_for(simulator: Simulator, http: aiohttp.ClientSession):
    await http.post(f"{simulator.http_url}/sim/faults", json={"count": 2, "refuse": 429, "body": "slow down"})
    for _ in range(2):
        async with http.get(f"{simulator.http_url}/v1/realtime?model=sim", headers=KEY) as answer:
            assert (answer.status, await answer.text()) == (429, "slow down")
    with pytest.raises(WSServerHandshakeError) as caught:
        await connect(http, simulator, "refuse=503")
    assert caught.value.status == 503


async def test_a_close_after_n_events_comes_after_exactly_n(simulator: Simulator, http: aiohttp.ClientSession):
    ws = await connect(http, simulator, "close=1011,events=4")
    await ws.send_json({"type": "response.create"})
    assert len(await read_all(ws)) == 4
    assert ws.close_code == 1011


async def test_a_slow_open_is_slow_and_a_late_close_is_late(simulator: Simulator, http: aiohttp.ClientSession):
    start = asyncio.get_running_loop().time()
    ws = await connect(http, simulator, "slow_open=0.2,close=4000,after=0.2")
    assert asyncio.get_running_loop().time() - start >= 0.2
    await read_all(ws)
    assert asyncio.get_running_loop().time() - start >= 0.4


async def test_a_reset_is_no_clean_end(simulator: Simulator, http: aiohttp.ClientSession):
    ws = await connect(http, simulator, "reset,events=1")
    await ws.receive_json()
    message = await ws.receive(timeout=5)
    assert message.type in (WSMsgType.CLOSED, WSMsgType.ERROR, WSMsgType.CLOSING)
    assert ws.close_code == 1006
    await wait_until(lambda: simulator.ledger.open_count == 0)


@pytest.mark.parametrize("kind", ["opcode", "rsv"])
async def test_a_malformed_frame_breaks_the_protocol(simulator: Simulator, http: aiohttp.ClientSession, kind: str):
    ws = await connect(http, simulator, f"malformed={kind},events=1")
    await ws.receive_json()
    assert (await ws.receive(timeout=5)).type is WSMsgType.ERROR
    await ws.close()


@pytest.mark.parametrize("kind", ["utf8", "length", "continuation"])
async def test_other_malformed_frames_arrive_as_written(simulator: Simulator, kind: str):
    """Seen on a plain socket, as clients differ in what they say to it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    head = f"GET /v1/realtime?model=sim;malformed={kind},events=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n"
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    writer.write(f"{head}{upgrade}Sec-WebSocket-Key: {b64encode(bytes(16)).decode()}\r\n\r\n".encode())
    first_byte = {"utf8": b"\x81\x02\xff\xfe", "length": b"\x81\xff\xff", "continuation": b"\x80\x02{}"}[kind]
    async with asyncio.timeout(5):
        await reader.readuntil(first_byte)
    writer.close()
    await writer.wait_closed()
    await wait_until(lambda: simulator.ledger.open_count == 0)


async def test_garbage_and_error_events_do_not_end_the_session(simulator: Simulator, http: aiohttp.ClientSession):
    ws = await connect(http, simulator, "garbage,error=server_error,events=1")
    await ws.receive_json()
    error = await ws.receive_json()
    assert (error["error"]["code"], error["error"]["type"]) == ("server_error", "server_error")
    with pytest.raises(json.JSONDecodeError):
        await ws.receive_json()
    await ws.send_json({"type": "input_audio_buffer.clear"})
    assert (await ws.receive_json())["type"] == "input_audio_buffer.cleared"
    await ws.close()


async def test_an_early_expiry(simulator: Simulator, http: aiohttp.ClientSession):
    ws = await connect(http, simulator, "expire=0.1")
    events = await read_all(ws)
    assert [event["type"] for event in events] == ["session.created", "error"]
    assert ws.close_code == 1001


async def test_a_stalled_server_reads_nothing_but_goes_on_talking(simulator: Simulator, http: aiohttp.ClientSession):
    ws = await connect(http, simulator, "stall,after=0.2")
    await ws.send_json({"type": "response.create"})
    (record,) = simulator.ledger
    await asyncio.sleep(0.3)  # the stall has no sign of its own
    await ws.send_json({"type": "input_audio_buffer.clear"})
    while (await ws.receive_json(timeout=5))["type"] != "response.done":
        pass
    assert record.received["input_audio_buffer.clear"] == 0
    ws._response.connection.transport.abort()  # type: ignore[union-attr]


async def test_a_hanging_server_says_nothing_and_lets_go_with_the_client(
    simulator: Simulator, http: aiohttp.ClientSession
):
    before = len(asyncio.all_tasks())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await connect(http, simulator, "hang")
    await wait_until(lambda: len(asyncio.all_tasks()) <= before)


async def test_a_fault_with_a_typo_is_refused(simulator: Simulator, http: aiohttp.ClientSession):
    with pytest.raises(WSServerHandshakeError) as caught:
        await connect(http, simulator, "clsoe=4000")
    assert caught.value.status == 400
    async with http.post(f"{simulator.http_url}/sim/faults", json={"count": 0, "hang": True}) as answer:
        assert answer.status == 400


async def test_items_are_refused_and_transcripts_are_late_on_request(simulator: Simulator, http: aiohttp.ClientSession):
    ws = await connect(http, simulator, "refuse_items=1,transcription_ms=300")
    session = {"type": "realtime", "audio": {"input": {"transcription": {"model": "whisper-1"}}}}
    await ws.send_json({"type": "session.update", "session": session})
    text = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    await ws.send_json({"type": "conversation.item.create", "item": text})
    await ws.send_json({"type": "conversation.item.create", "item": text})
    await ws.send_json({"type": "input_audio_buffer.append", "audio": b64encode(bytes(9600)).decode()})
    await ws.send_json({"type": "input_audio_buffer.commit"})
    got = [await ws.receive_json() for _ in range(8)]
    assert [event["type"] for event in got[:2]] == ["session.created", "session.updated"]
    assert got[2]["error"]["type"] == "server_error"
    assert [event["type"] for event in got[3:]] == [
        *["conversation.item.added", "conversation.item.done", "input_audio_buffer.committed"],
        *["conversation.item.added", "conversation.item.done"],
    ]
    loop = asyncio.get_running_loop()
    committed_at = loop.time()
    assert (await ws.receive_json())["type"] == "conversation.item.input_audio_transcription.delta"
    assert 0.2 < loop.time() - committed_at < 2
    await ws.close()


# -- what it remembers, what it leaves behind ------------------------------------------------------------------------


async def test_a_session_can_be_looked_at_while_it_runs_and_after(simulator: Simulator, http: aiohttp.ClientSession):
    ws = await http.ws_connect(f"{simulator.url}?model=sim", headers=KEY)
    session_id = (await ws.receive_json())["session"]["id"]
    await ws.send_json({"type": "input_audio_buffer.append", "audio": b64encode(bytes(4800)).decode()})
    text = {"type": "message", "role": "user", "id": "mine", "content": [{"type": "input_text", "text": "hi"}]}
    await ws.send_json({"type": "conversation.item.create", "item": text})
    await ws.receive_json()
    async with http.get(f"{simulator.http_url}/sim/sessions?open=1") as answer:
        (summary,) = (await answer.json())["data"]
    assert (summary["id"], summary["open"], summary["audio_ms_received"]) == (session_id, True, 100)
    await ws.close(code=1000)
    await wait_until(lambda: simulator.ledger.open_count == 0)
    async with http.get(f"{simulator.http_url}/sim/sessions/{session_id}") as answer:
        detail = await answer.json()
    assert (detail["open"], detail["close_code"], detail["closed_by"]) == (False, 1000, "client")
    assert [(item["id"], item["role"], item["text"]) for item in detail["items"]] == [("mine", "user", "hi")]
    assert detail["headers"]["Authorization"].startswith("sha256:")
    assert [event["type"] for event in detail["events"]] == ["input_audio_buffer.append", "conversation.item.create"]
    assert detail["events"][0]["audio"] == 4800
    async with http.delete(f"{simulator.http_url}/sim/sessions") as answer:
        assert await answer.json() == {"forgotten": 1}
    async with http.get(f"{simulator.http_url}/sim/sessions/{session_id}") as answer:
        assert answer.status == 404


async def test_calls_leave_no_task_and_no_socket_behind(simulator: Simulator, http: aiohttp.ClientSession):
    """However they end: closed, dropped in the middle of an answer, or cut by the server."""

    async def health() -> dict[str, Any]:
        async with http.get(f"{simulator.http_url}/sim/health") as answer:
            return dict(await answer.json())

    before = await health()
    for number in range(60):
        ws = await connect(http, simulator, "close=4000,after=0.01" if number % 3 == 0 else "")
        await ws.receive_json()
        await ws.send_json({"type": "response.create"})
        if number % 3 == 1:
            ws._response.connection.transport.abort()  # type: ignore[union-attr]
        else:
            await ws.close()
    await wait_until(lambda: simulator.ledger.open_count == 0)
    async with asyncio.timeout(5):
        while (after := await health())["tasks"] > before["tasks"]:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    assert after["ended_sessions"] == 60
    if before["file_descriptors"] is not None:
        assert after["file_descriptors"] <= before["file_descriptors"] + 1


async def test_a_peer_that_does_not_read_costs_a_constant(simulator: Simulator, http: aiohttp.ClientSession):
    """It asks for far more than it takes: the simulator stops reading it instead of hoarding the answers."""
    ws = await http.ws_connect(f"{simulator.url}?model=sim", headers=KEY, max_msg_size=0)
    await ws.receive_json()
    audio = b64encode(bytes(768 * 1024)).decode()
    content = [{"type": "input_audio", "audio": audio}]
    await ws.send_json(
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "user", "id": "big", "content": content},
        }
    )
    for _ in range(40):
        await ws.send_json({"type": "conversation.item.retrieve", "item_id": "big"})
    (connection,) = simulator._connections
    retrieved = 0
    while retrieved < 40:
        assert connection._outbox_bytes < OUTBOX_BYTES + 2 * len(audio)
        retrieved += (await ws.receive_json(timeout=5))["type"] == "conversation.item.retrieved"
    await ws.close()


# -- the process -----------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


async def start_process(ready: Path, *options: str) -> tuple[asyncio.subprocess.Process, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ops.simulator", "--ready-file", str(ready), *options
    )
    await wait_until(ready.exists)
    return process, read(ready)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
async def test_the_process_says_where_it_is_and_ends_within_a_second(
    http: aiohttp.ClientSession, tmp_path: Path, number: signal.Signals
):
    process, ready = await start_process(tmp_path / "ready.json", "--key", "k", "--parent-death")
    assert ready["pid"] == process.pid
    ws = await http.ws_connect(f"{ready['url']}?model=sim", headers={"Authorization": "Bearer k"})
    assert (await ws.receive_json())["type"] == "session.created"
    start = asyncio.get_running_loop().time()
    process.send_signal(number)
    await read_all(ws)
    assert ws.close_code == 1001
    assert await process.wait() == 0
    assert asyncio.get_running_loop().time() - start < 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
async def test_the_process_ends_with_its_parent(tmp_path: Path):
    """A test run that is killed must not leave simulators behind."""
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "ops.simulator", "--parent-death", "--ready-file", str(ready)]
    script = f"import subprocess, time; subprocess.Popen({command!r}); time.sleep(60)"
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    await wait_until(ready.exists)
    pid = read(ready)["pid"]
    parent.kill()
    await parent.wait()
    await wait_until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False
