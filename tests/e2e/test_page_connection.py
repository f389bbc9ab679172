"""How the page's connection comes back, against a server that plays a relay word for word."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

SCRIPT = Path(__file__).parent / "browser" / "connection.mjs"

Play = Callable[[web.Request, int], Awaitable[web.StreamResponse]]  # a request and how many came before it

pytestmark = pytest.mark.needs("node")


@asynccontextmanager
async def relay(play: Play) -> AsyncIterator[str]:
    """A server whose requests are answered by ``play``; gives its origin."""
    seen = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal seen
        seen += 1
        return await play(request, seen - 1)

    app = web.Application()
    app.router.add_get("/v1/realtime", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def run(*origins: str) -> dict[str, Any]:
    """Run the page's connection until it has something to report."""
    process = await asyncio.create_subprocess_exec(
        "node", str(SCRIPT), json.dumps(origins), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    report: dict[str, Any] = json.loads(out)
    return report


async def begin(request: web.Request, resume: dict[str, Any] | None) -> web.WebSocketResponse:
    """Take a new call."""
    socket = web.WebSocketResponse(protocols=("relay.events.v1",))
    await socket.prepare(request)
    started = {"type": "relay.started", "event_id": "event_1", "call_id": "rtc_1", "node": "a", "region": "iad"}
    await socket.send_json(started if resume is None else started | {"resume": resume})
    await socket.send_json({"type": "session.created", "event_id": "event_2", "session": {}})
    return socket


def key(request: web.Request) -> str:
    """The token that a browser brings as a subprotocol."""
    return request.headers["Sec-WebSocket-Protocol"].rpartition("openai-insecure-api-key.")[2]


def plays_until_close(code: int, *, resume: dict[str, Any] | None = None) -> Play:
    """A relay that begins each call and closes it."""

    async def play(request: web.Request, before: int) -> web.StreamResponse:
        assert before == 0, "the page came back"
        socket = await begin(request, resume)
        await socket.close(code=code)
        return socket

    return play


RESUME = {"url": "ws://127.0.0.1:1/v1/realtime", "token": "ek_next", "expires_at": 4e9}


@pytest.mark.parametrize("code", [1000, 1008, 3000, 4009], ids=["done", "refused", "key", "replaced"])
async def test_a_close_that_does_not_invite_ends_the_call(code: int) -> None:
    """Above all 4009: two tabs that took the call from each other would never stop."""
    async with relay(plays_until_close(code, resume=RESUME)) as origin:
        report = await run(origin)
    assert [what for what, _ in report["told"]] == ["relay.started", "session.created", f"closed {code}"]


async def test_without_a_way_to_resume_every_close_ends_the_call() -> None:
    """A new call in the place of one that was lost would know nothing of it."""
    async with relay(plays_until_close(1012)) as origin:
        report = await run(origin)
    assert report["told"][-1][0] == "closed 1012"


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013])
async def test_it_comes_back_through_the_first_node_that_takes_it(code: int) -> None:
    """Its own origin refuses, the one that the relay named is dead, the next takes it: by the relay's token."""
    asked: list[tuple[str, str, str | None]] = []
    spoken: list[int] = []

    async def own(request: web.Request, before: int) -> web.StreamResponse:
        asked.append(("own", key(request), request.query.get("last_event_id")))
        if before > 0:
            return web.Response(status=503)
        socket = await begin(request, RESUME)
        await socket.close(code=code)
        return socket

    async def other(request: web.Request, _: int) -> web.StreamResponse:
        asked.append(("other", key(request), request.query.get("last_event_id")))
        socket = web.WebSocketResponse(protocols=("relay.events.v1",))
        await socket.prepare(request)
        await socket.send_json({"type": "session.created", "event_id": "event_3", "session": {}})
        await socket.send_json({"type": "relay.resumed", "event_id": "event_4", "resume": RESUME})
        async for message in socket:
            pcm = b64decode(json.loads(message.data)["audio"])
            spoken.append(int.from_bytes(pcm, "little"))
        return socket

    async with relay(own) as first, relay(other) as second:
        report = await run(first, second)
    assert asked == [("own", "first", None), ("own", "ek_next", "event_2"), ("other", "ek_next", "event_2")]
    whats = [what for what, _ in report["told"]]
    assert whats == ["relay.started", "session.created", "lost", "session.created", "relay.resumed"]
    (lost_at, back_at) = (report["told"][place][1] for place in (2, 3))
    assert 100 + 200 + 400 <= back_at - lost_at + 10 < 200 + 400 + 800 + 500  # half to all of each delay
    assert (report["resumes"], report["droppedChunks"]) == (1, 50)
    assert spoken == list(range(50, 150)), "two seconds are kept, the oldest went first"
