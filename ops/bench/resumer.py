"""`python -m ops.bench.resumer`: clients whose sockets are cut, and who come back with their calls' keys.

Each call is a key of its own (a client secret), so that whoever has it may go on with the call anywhere.
"""

import asyncio
import json
import time
from typing import Final, NamedTuple

from aiohttp import ClientSession
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from ops.bench.orders import Order, run_peer

_STEP_SECONDS: Final = 20.0  # for one answer, or one connection
_WRITTEN_SECONDS: Final = 1.5  # for the calls' home to have what was said
_AWAY_SECONDS: Final = 0.1  # between a cut and the next socket: who has lost a connection needs longer to notice
_AUDIO: Final = "response.output_audio.delta"
_ASK: Final = b'{"type":"response.create"}'


class _Socket(WSListener):
    """One WebSocket of a call, which knows when the next event of a type comes."""

    def __init__(self) -> None:
        self.transport: WSTransport | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited: dict[str, asyncio.Future[float]] = {}

    def when(self, kind: str) -> asyncio.Future[float]:
        """Return what will be the monotonic time at which the next event of this type comes.

        It fails with ``RuntimeError`` if the connection ends before, or the node sends an error.
        """
        coming: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._awaited[kind] = coming
        return coming

    def send(self, event: bytes) -> None:
        """Send an event."""
        if self.transport is not None:
            self.transport.send(WSMsgType.TEXT, event)

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The handshake is done."""
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """A frame; servers here send whole messages."""
        now = time.monotonic()
        if frame.msg_type is WSMsgType.TEXT:
            event = json.loads(frame.get_payload_as_bytes())
            coming = self._awaited.pop(event["type"], None)
            if coming is not None and not coming.done():
                coming.set_result(now)
            if event["type"] == "error":
                self._fail(f"an error came: {event['error']}")
        elif frame.msg_type is WSMsgType.CLOSE:
            self._fail(f"closed with {frame.get_close_code()} {frame.get_close_message()!r}")
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The connection is gone."""
        self.transport = None
        self._fail("the connection was lost")
        if not self.lost.done():
            self.lost.set_result(None)

    def _fail(self, why: str) -> None:
        for coming in self._awaited.values():
            if not coming.done():
                coming.set_exception(RuntimeError(why))
        self._awaited.clear()


class _Call(NamedTuple):
    """A call: its key, and the socket that it has now."""

    headers: dict[str, str]
    socket: _Socket


class _Resumer:
    """What the clients are ordered to do."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    async def open(self, url: str, headers: dict[str, str], calls: int, turns: int) -> None:
        """Open calls that begin with so many turns each, and wait until all of that is written down."""
        secrets = url.replace("ws", "http", 1).partition("?")[0] + "/client_secrets"
        async with ClientSession() as session, asyncio.TaskGroup() as tasks:
            for _ in range(calls):
                tasks.create_task(self._open(session, secrets, url, headers, turns))
        await asyncio.sleep(_WRITTEN_SECONDS)

    async def _open(self, session: ClientSession, secrets: str, url: str, headers: dict[str, str], turns: int) -> None:
        async with session.post(secrets, json={}, headers=headers) as response:
            response.raise_for_status()
            key = (await response.json())["value"]
        call = _Call({"Authorization": f"Bearer {key}"}, _Socket())
        self._calls.append(call)
        async with asyncio.timeout(_STEP_SECONDS):
            created = call.socket.when("session.created")
            await ws_connect(lambda: call.socket, url, extra_headers=call.headers)
            await created
            for number in range(turns):
                await _said(call.socket, f"This is what I say in turn {number} of our conversation.")

    async def ask(self) -> list[dict[str, float]]:
        """Ask each call for an answer, one after the other; times in milliseconds from the asking."""
        found = []
        async with asyncio.timeout(_STEP_SECONDS * len(self._calls)):
            for call in self._calls:
                audio, done = call.socket.when(_AUDIO), call.socket.when("response.done")
                began = time.monotonic()
                call.socket.send(_ASK)
                found.append({"audio_ms": (await audio - began) * 1e3})
                await done
        await self._hang_up()
        return found

    async def resume(self, url: str) -> list[dict[str, float]]:
        """Cut each call's socket, go on with it there, and ask for an answer; one call after the other.

        Times are in milliseconds: to the open socket from dialling, all others from the open socket.
        """
        found = []
        async with asyncio.timeout(_STEP_SECONDS * len(self._calls)):
            for number, call in enumerate(self._calls):
                if call.socket.transport is not None:
                    call.socket.transport.disconnect(False)
                await call.socket.lost
                await asyncio.sleep(_AWAY_SECONDS)
                self._calls[number] = call = _Call(call.headers, _Socket())
                found.append(await _resumed(call, url))
        await self._hang_up()
        return found

    async def _hang_up(self) -> None:
        calls, self._calls = self._calls, []
        async with asyncio.timeout(_STEP_SECONDS):
            for call in calls:
                if call.socket.transport is not None:
                    call.socket.transport.send_close(WSCloseCode.OK)
                await call.socket.lost


async def _said(socket: _Socket, words: str) -> None:
    """Say something, in text, and hear the answer to its end."""
    content = [{"type": "input_text", "text": words}]
    item = {"type": "message", "role": "user", "content": content}
    done = socket.when("response.done")
    socket.send(json.dumps({"type": "conversation.item.create", "item": item}).encode())
    socket.send(_ASK)
    await done


async def _resumed(call: _Call, url: str) -> dict[str, float]:
    created, audio, done = (call.socket.when(kind) for kind in ("session.created", _AUDIO, "response.done"))
    began = time.monotonic()
    await ws_connect(lambda: call.socket, url, extra_headers=call.headers)
    opened = time.monotonic()
    created_at = await created
    call.socket.send(_ASK)
    audio_at = await audio
    await done
    times = {"open_ms": opened - began, "created_ms": created_at - opened, "audio_ms": audio_at - opened}
    return {name: seconds * 1e3 for name, seconds in times.items()}


def _orders() -> tuple[Order, ...]:
    resumer = _Resumer()
    return (resumer.open, resumer.ask, resumer.resume)


if __name__ == "__main__":
    run_peer(_orders)
