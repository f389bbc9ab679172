"""What a node writes, to its log or anywhere, has no key, no token, and nothing of what was said: all is marked here,
calls are made in which each mark passes every place that might tell of it, and the marks are looked for.
"""

import asyncio
import base64
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from relay.api import transcript
from relay.app import running
from relay.config import Settings
from tests.e2e.test_call import SILENCE
from tests.e2e.test_front import get, peer, upgrade
from tests.support.fleet import Nodes, bearer, closed, event, token, until

KEY = "sk-markofthekey4711"
SECRETS = ("markofthefirstsecret" * 2, "markofthesecondsecret" * 2)
WORDS = {
    what: f"markof{what}4711"
    for what in (
        "instructions",
        "question",
        "injected",
        "hidden",
        "toolresult",
        "toolname",
        "refused",
        "header",
        "query",
    )
}
SOUND = bytes(range(7, 247)) * 40  # loud, and like nothing else
BUG = "a bug of ours, which says nothing"
TOOL = {"type": "function", "name": WORDS["toolname"], "parameters": {"type": "object", "properties": {}}}
# A node whose own code fails where it has a conversation at hand.
BROKEN_NODE = f"""
import re
from relay.api import transcript
def fail(call_id, facts):
    said = re.findall(rb"markof[a-z]+4711", b"".join(facts.values.values()))
    assert said
    raise RuntimeError({BUG!r})
transcript.as_json = fail
from relay.cli import main
raise SystemExit(main())
"""


class Site:
    """A node, however it runs, its simulator, and every token that was used."""

    def __init__(self, nodes: Nodes, url: str, ops_url: str) -> None:
        self.nodes, self.url, self.ops_url = nodes, url, ops_url
        self.tokens: list[str] = []

    def token(self, *scope: str, **claims: Any) -> str:
        """A token, which is a secret from now on."""
        made = token(*scope, **{"secret": SECRETS[0]} | claims)
        self.tokens.append(made)
        return made

    async def post(self, path: str, body: Any, *scope: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.nodes.http.post(self.url + path, data=data, headers=bearer(self.token(*scope))) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> int:
        async with self.nodes.http.get(self.url + path, headers=bearer(self.token("read"))) as response:
            await response.read()
            return response.status

    async def connect(self, path: str = "/v1/realtime?model=sim", **options: Any) -> aiohttp.ClientWebSocketResponse:
        headers = {**bearer(self.token("call", "control")), **options.pop("headers", {})}
        return await self.nodes.http.ws_connect(self.url + path, headers=headers, max_msg_size=0, **options)

    @property
    def port_of_node(self) -> Any:
        """What ``peer`` asks of a node."""
        return self


class Quoting:
    """A model's server that quotes what it was sent, and the key, in all that it says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def serve(self, request: web.Request) -> web.StreamResponse:
        quoted = f"{request.headers.get('Authorization')} {WORDS['instructions']} {WORDS['question']}"
        model = request.query["model"]
        if model == "refuses":
            return web.Response(status=401, text=quoted, headers={"X-Quoted": quoted})
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.said.append(quoted)
        if model == "bad_key":
            error = {"type": "x", "code": "invalid_api_key", "message": f"Incorrect key: {quoted}", "param": quoted}
            await socket.send_json({"type": "error", "event_id": "e", "error": error})
            await socket.close(code=3000, message=quoted.encode()[:120])
            return socket
        await socket.send_json({"type": "session.created", "event_id": "s", "session": {"type": "realtime", "id": "s"}})
        async for message in socket:
            cause = json.loads(message.data).get("event_id")
            error = {"type": "x", "code": "invalid_value", "message": f"{quoted} {message.data}", "event_id": cause}
            await socket.send_json({"type": "error", "event_id": "e", "error": error | {"param": "session"}})
        return socket


async def conversation(site: Site) -> None:
    """A call with all that calls have: speech, text, tools, messages of backends, a side leg, a key for its client."""
    wanted = {"type": "realtime", "model": "sim", "instructions": WORDS["instructions"], "tools": [TOOL]}
    status, made = await site.post("/v1/realtime/client_secrets", {"session": wanted}, "mint")
    assert status == 200
    site.tokens.append(made["value"])
    call_id = made["call_id"]
    protocols = ("realtime", f"openai-insecure-api-key.{made['value']}")
    client = await site.nodes.http.ws_connect(f"{site.url}/v1/realtime?model=sim", protocols=protocols)
    await event(client, "session.created")
    side = await site.connect(f"/v1/realtime?call_id={call_id}&audio=1")
    await event(side, "session.created")
    for audio in (SOUND * 2, SOUND * 2, base64.b64decode(SILENCE), base64.b64decode(SILENCE)):
        await client.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(audio).decode()})
    await event(client, "response.done")
    content = [{"type": "input_text", "text": f"{WORDS['question']}, use {WORDS['toolname']}"}]
    await client.send_json({"type": "conversation.item.create", "item": _message("user", content)})
    await client.send_json({"type": "response.create"})
    call = await event(client, "response.function_call_arguments.done")
    await event(client, "response.done")
    path = f"/v1/realtime/calls/{call_id}"
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": WORDS["toolresult"]}
    bodies: list[dict[str, Any]] = [
        {"item": result},
        {"item": _message("system", [{"type": "input_text", "text": WORDS["injected"]}]), "id": "m1"},
        {"item": _message("system", [{"type": "input_text", "text": WORDS["hidden"]}]), "visible": False},
    ]
    for body in bodies:
        assert (await site.post(f"{path}/items?wait=applied", body, "control"))[0] == 200
    refused = {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": WORDS["refused"]}]}
    for body in (
        {"item": result},
        {"item": refused},
        {"item": _message(WORDS["refused"], [])},
        {"item": {**bodies[1]["item"], "id": WORDS["refused"]}, "id": "m1"},
    ):
        assert (await site.post(f"{path}/items?wait=applied", body, "control"))[0] in {200, 409, 422}
    for sent in (
        {"type": WORDS["refused"]},
        {"type": "session.update", "session": {"instructions": 5, "x": WORDS["refused"]}},
    ):
        await site.post(f"{path}/events?wait=applied", sent, "control")
        await side.send_json(sent)
        await client.send_json(sent)
    await client.send_str(f'{{"{WORDS["refused"]}')
    await side.send_str(f'{{"{WORDS["refused"]}')
    assert await site.get(f"{path}/transcript") == 500  # our bug, with all that was said at hand
    assert await site.get(path) == 200
    await client.close(code=4321, message=WORDS["question"].encode())
    await closed(side)


def _message(role: str, content: list[Any]) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


async def refusals(site: Site) -> None:
    """Requests, handshakes and frames that are no good, with secrets where they don't belong, and where they do."""
    good, forged = site.token("read", "call"), site.token("call", secret="x" * 40)
    site.token("call", seconds=-60)
    for text in (forged, site.tokens[-1], good[:-9], f"{good}x", SECRETS[0], KEY):
        async with site.nodes.http.get(f"{site.url}/v1/realtime/calls", headers=bearer(text)) as response:
            assert response.status == 401
        async with peer(site.port_of_node) as one:
            assert (await one.ask(upgrade(f"Sec-WebSocket-Protocol: openai-insecure-api-key.{text}"))).status == 401
    for request in (
        get(f"/v1/realtime/calls?{WORDS['query']}=1&token={good}", f"Authorization: Bearer {good}"),
        get(f"/{WORDS['query']}/{good}"),
        get("/v1/realtime/calls", f"X-{WORDS['header']}: {WORDS['header']}", f"Cookie: {good}", f"Origin: {good}"),
        get(f"/v1/realtime/calls/{WORDS['query']}", f"Authorization: Bearer {good}", f"Last-Event-ID: {good}"),
        f"{WORDS['header']} {good}\r\n\r\n".encode(),
        get("/", f"Authorization : Bearer {good}"),
        get("/", f"Authorization: Bearer {good}\0{WORDS['header']}"),
        get("/" + good * 80),
        get("/", f"Authorization: Bearer {good * 80}"),
        upgrade(f"Authorization: Bearer {good}").replace(b"-Key: ", f"-Key: {good}".encode()),
    ):
        async with peer(site.port_of_node) as one:
            assert 400 <= (await one.ask(request)).status < 500
    for body in (WORDS["refused"].encode(), {WORDS["refused"]: 1}, {"session": {"type": WORDS["refused"]}}):
        assert (await site.post("/v1/realtime/client_secrets", body, "mint"))[0] in {400, 422}
    for sent in (b"\xff" + WORDS["question"].encode(), WORDS["question"].encode()):
        client = await site.connect()
        await event(client, "session.created")
        if sent[0] == 0xFF:
            await client.send_frame(sent, aiohttp.WSMsgType.TEXT)
        else:
            await client.send_bytes(sent)
        assert (await closed(client))[0] in {1003, 1007}
    assert (await site.post("/v1/tokens/revoke", {"jti": "markofjti4711"}, "mint"))[0] == 200


async def upstream_errors(site: Site) -> None:
    """The model refuses, fails and complains, and quotes what it was sent, the key too."""
    for model in ("refuses", "bad_key"):
        client = await site.connect(f"/v1/realtime?model={model}&agent=quoting")
        code, events = await closed(client)
        assert code == 1008
        assert KEY not in json.dumps(events)
    client = await site.connect("/v1/realtime?model=complains&agent=quoting")
    await event(client, "session.created")  # without the opening, of which the server says what it thinks
    await client.send_json({"type": "response.create"})
    await event(client, "error")
    await client.close()
    for fault in (
        {"refuse": 503, "body": f"{KEY} {WORDS['instructions']}"},
        {"close": 4000, "reason": f"{KEY} {WORDS['instructions']}"},
        {"garbage": True},
        {"malformed": "utf8"},
        {"error": WORDS["instructions"]},
    ):
        await site.nodes.fault(**fault)
        client = await site.connect()
        if "error" in fault:
            await event(client, "error")
            await client.close()
        elif "garbage" in fault or "malformed" in fault:  # the call goes on
            await client.receive()
            await client.close()
        else:
            await closed(client)


def rulebook(model_url: str) -> str:
    """With an agent whose upstream quotes, and what it is told at first."""
    return f"""
[agents.default]
transcription = false
locked = []
[agents.quoting]
upstream = "quoting"
transcription = false
instructions = "{WORDS["instructions"]}"
[upstreams.quoting]
url = "{model_url}"
key_env = "QUOTED_KEY"
headers = {{Authorization = "Bearer {{key}}"}}
"""


Reload = Callable[[], Awaitable[None]]


async def run_all(site: Site, config: Path, reload: Reload) -> None:
    """All of it; at last the operator writes a key where it doesn't belong."""
    await conversation(site)
    await refusals(site)
    await upstream_errors(site)
    for wrong in (f'[upstreams.x]\nkey = "{KEY}"\n', f'[agents.x]\nvoice = ["{WORDS["instructions"]}"]\n', f"{KEY} ="):
        _add_to(config, wrong)
        await reload()


def _add_to(config: Path, text: str) -> None:
    config.write_text(config.read_text() + text)


def marks(site: Site) -> set[str]:
    """What may stand nowhere."""
    parts = {part for text in site.tokens for part in text.removeprefix("ek_").split(".")}
    same = {text.partition(".")[0].removeprefix("ek_") for text in site.tokens}  # the head, which is no secret
    sound = {base64.b64encode(SOUND)[start : start + 24].decode() for start in (0, 4, 8)}
    return {KEY, *SECRETS, *WORDS.values(), *sound, repr(SOUND)[2:40]} | (parts - same) | {"markofjti4711"}


@asynccontextmanager
async def quoting_model() -> AsyncIterator[str]:
    """A server that quotes."""
    app, model = web.Application(), Quoting()
    app.router.add_get("/v1/realtime", model.serve)
    async with TestServer(app) as server:
        yield f"ws://127.0.0.1:{server.port}/v1/realtime"


def environment(nodes: Nodes, config: Path) -> dict[str, str]:
    own = nodes.environment(
        "a",
        JWT_SECRET=",".join(SECRETS),
        UPSTREAM_KEY=KEY,
        CONFIG=str(config),
        ALLOWED_ORIGINS="https://app.example",
        REDIAL_SECONDS="1",
        DIAL_SECONDS="1",
    )
    return own | {"QUOTED_KEY": KEY, "RELAY_LOG_LEVEL": "DEBUG"}


def found(written: str, site: Site) -> list[str]:
    """The marks that were written, and the lines."""
    lines = written.splitlines()
    return [line for line in lines if any(mark in line for mark in marks(site))]


async def test_a_process_writes_nothing_secret(nodes: Nodes, tmp_path: Path) -> None:
    """Standard error and output of ``relay serve``, at its most talkative; it fails, too, with a traceback."""
    config, ready, log = tmp_path / "rulebook.toml", tmp_path / "ready.json", tmp_path / "log"
    async with quoting_model() as url:
        config.write_text(rulebook(url))
        env = environment(nodes, config) | {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", BROKEN_NODE, "serve", "--ready-file", str(ready)]
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output, env=env)
        try:
            await until(lambda: ready.exists() or process.returncode is not None, 30)
            assert ready.exists(), log.read_text()
            at = json.loads(ready.read_text())
            site = Site(nodes, at["url"], at["ops_url"])
            loads = 0

            async def reload() -> None:
                nonlocal loads
                loads += 1
                process.send_signal(1)
                await until(lambda: log.read_text().count("rulebook_refused") >= loads)

            await run_all(site, config, reload)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
        written = log.read_text()
    entries = [json.loads(line) for line in written.splitlines()]
    kinds = {entry["event"] for entry in entries}
    assert {"call_ended", "side_leg_ended", "request_failed", "rulebook_refused", "model_refused_ours"} <= kinds
    assert BUG in written
    assert found(written, site) == []


async def test_what_people_read_has_nothing_secret(
    nodes: Nodes,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """structlog's renderer for a terminal, and whatever the libraries say, down to the last detail."""

    def fail(call_id: str, facts: Any) -> None:
        said = re.findall(rb"markof[a-z]+4711", b"".join(facts.values.values()))
        assert said
        raise RuntimeError(BUG)

    monkeypatch.setattr(transcript, "as_json", fail)
    caplog.set_level(logging.DEBUG)
    config = tmp_path / "rulebook.toml"
    async with quoting_model() as url:
        config.write_text(rulebook(url))
        async with running(Settings.from_env(environment(nodes, config))) as node:
            site = Site(nodes, node.url, node.ops_url)
            seen = ""

            async def reload() -> None:
                nonlocal seen
                before = seen.count("rulebook_refused")
                node.reload()

                def is_refused() -> bool:
                    nonlocal seen
                    seen += "".join(capfd.readouterr())
                    return seen.count("rulebook_refused") > before

                await until(is_refused)

            await run_all(site, config, reload)
    written = seen + "".join(capfd.readouterr()) + caplog.text
    for kind in ("call_ended", "side_leg_ended", "request_failed", "rulebook_refused", "model_refused_ours", BUG):
        assert kind in written
    assert found(written, site) == []
