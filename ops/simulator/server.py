"""The simulator on a socket: listens, admits a WebSocket as OpenAI would, and hands it to a `Connection`.

`async with serve(Settings()) as server:` runs one in the current loop; `server.url` is where.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from aiohttp import web

from ops.simulator.connection import Connection
from ops.simulator.control import Control, refusal
from ops.simulator.faults import HANG_SECONDS, NO_FAULT, Fault, FaultError, read_text, split_model
from ops.simulator.ledger import Ledger, Record
from ops.simulator.session import Behaviour, Close, Session

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
CLOSE_SECONDS = 2.0  # for the peer's close frame
STOP_SECONDS = 0.3
_KEY_PROTOCOL = "openai-insecure-api-key."


@dataclass(frozen=True, slots=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 0
    key: str | None = None  # None: any key is good
    certfile: str | None = None
    keyfile: str | None = None
    behaviour: Behaviour = field(default_factory=Behaviour)
    wall_clock: Callable[[], float] = time.time  # noqa: TID251 - the simulator's own composition root


@dataclass(frozen=True, slots=True)
class _TurnedAway:
    """Why a connection gets no session: told after the upgrade, as OpenAI does."""

    code: str
    message: str
    close: Close


class Simulator:
    def __init__(self, settings: Settings) -> None:
        self.ledger = Ledger()
        self.control = Control(self.ledger)
        self.port = 0
        self._settings = settings
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/realtime", self._realtime, allow_head=False)
        app.router.add_routes(self.control.routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS)

    @property
    def url(self) -> str:
        return f"ws{self._s}://{self._settings.host}:{self.port}/v1/realtime"

    @property
    def http_url(self) -> str:
        return f"http{self._s}://{self._settings.host}:{self.port}"

    @property
    def _s(self) -> str:
        return "s" if self._settings.certfile else ""

    async def start(self) -> None:
        context = None
        if self._settings.certfile is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._settings.certfile, self._settings.keyfile)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.host, self._settings.port, ssl_context=context, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close every connection with 1001; cut those that don't answer at once."""
        self._empty.clear()
        for connection in self._connections:
            connection.stop(Close(1001, "The simulator is stopping."))
        if self._connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self._empty.wait()
        for connection in self._connections:
            connection.abort()
        await self._runner.cleanup()

    # -- one connection ----------------------------------------------------------------------------------------------

    async def _realtime(self, request: web.Request) -> web.StreamResponse:
        try:
            fault = self._fault(request)
        except FaultError as error:
            return refusal(400, "bad_fault", str(error))
        await asyncio.sleep(fault.slow_open)
        if fault.hang:
            await _wait_disconnect(request)
        if fault.refuse is not None:
            return _refused(fault.refuse, fault.body)
        key = _key(request)
        if key is None:
            message = "You didn't provide an API key. Provide it in an Authorization header (Bearer auth)."
            return refusal(401, None, message)
        ws = web.WebSocketResponse(
            protocols=("realtime",), max_msg_size=MAX_MESSAGE_BYTES, compress=False, timeout=CLOSE_SECONDS
        )
        transport = request.transport
        if not ws.can_prepare(request).ok or transport is None:
            return refusal(400, "websocket_upgrade_required", "This endpoint speaks WebSocket only.")
        await ws.prepare(request)
        turned_away = self._turned_away(request, key)
        if turned_away is not None:
            await self._turn_away(request, ws, turned_away)
        else:
            await self._converse(request, ws, transport, fault)
        return ws

    def _fault(self, request: web.Request) -> Fault:
        """From the URL (`sim=…`, or behind the model's name), else the next one that was asked for."""
        texts = [split_model(request.query.get("model", ""))[1], *request.query.getall("sim", ())]
        text = ",".join(filter(None, texts))
        return read_text(text) if text else self.control.next_fault() or NO_FAULT

    def _turned_away(self, request: web.Request, key: str) -> _TurnedAway | None:
        def because(code: str, message: str, close: int) -> _TurnedAway:
            return _TurnedAway(code, message, Close(close, f"invalid_request_error.{code}"))

        if self._settings.key not in (None, key):
            return because("invalid_api_key", f"Incorrect API key provided: {key[:3]}***.", 3000)
        if "OpenAI-Beta" in request.headers:
            message = "The Realtime Beta API is no longer supported. Please use /v1/realtime for the GA API."
            return because("beta_api_shape_disabled", message, 4000)
        if not request.query.get("model"):
            return because("missing_model", "You must provide a model parameter.", 4000)
        return None

    async def _turn_away(self, request: web.Request, ws: web.WebSocketResponse, why: _TurnedAway) -> None:
        record = self._record(request, None)
        error = {"type": "invalid_request_error", "code": why.code, "message": why.message, "param": None}
        event = {"type": "error", "event_id": _new_id("event"), "error": {**error, "event_id": None}}
        record.sent["error"] += 1
        with contextlib.suppress(ConnectionError):
            await ws.send_str(msgspec.json.encode(event).decode())
            await ws.close(code=why.close.code, message=why.close.reason.encode())
        record.on_closed(asyncio.get_running_loop().time(), why.close.code, why.close.reason, "server")
        self.ledger.end(record)

    async def _converse(
        self, request: web.Request, ws: web.WebSocketResponse, transport: asyncio.Transport, fault: Fault
    ) -> None:
        behaviour = self._settings.behaviour
        if fault.expire is not None:
            behaviour = replace(behaviour, session_seconds=fault.expire)
        behaviour = replace(
            behaviour,
            fail_code=fault.fail or behaviour.fail_code,
            anonymous_errors=fault.null_ids or behaviour.anonymous_errors,
            refuse_items=fault.refuse_items or behaviour.refuse_items,
            transcription_ms=fault.transcription_ms or behaviour.transcription_ms,
        )
        now, wall = asyncio.get_running_loop().time(), self._settings.wall_clock()
        session = Session(request.query["model"], behaviour, _new_id, now=now, wall=wall)
        record = self._record(request, session)
        connection = Connection(ws, transport, session, fault, record)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self.ledger.end(record)
            if not self._connections:
                self._empty.set()

    def _record(self, request: web.Request, session: Session | None) -> Record:
        record_id = session.id if session is not None else _new_id("sess")
        now = asyncio.get_running_loop().time()
        wall = self._settings.wall_clock()
        record = Record(record_id, session, headers=request.headers, query=request.query, now=now, wall=wall)
        self.ledger.add(record)
        return record


@contextlib.asynccontextmanager
async def serve(settings: Settings | None = None) -> AsyncIterator[Simulator]:
    """A simulator that listens inside the block."""
    simulator = Simulator(settings or Settings())
    await simulator.start()
    try:
        yield simulator
    finally:
        await simulator.stop()


def _key(request: web.Request) -> str | None:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    offered = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ())).split(",")
    for protocol in (each.strip() for each in offered):
        if protocol.startswith(_KEY_PROTOCOL) and len(protocol) > len(_KEY_PROTOCOL):
            return protocol.removeprefix(_KEY_PROTOCOL)
    return None


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(10)}"


def _refused(status: int, body: str | None) -> web.Response:
    if body is None:
        return refusal(status, "simulated_refusal", "The simulator was told to refuse this connection.")
    kind: dict[str, Any] = {"content_type": "application/json" if body.lstrip()[:1] in ("{", "[") else "text/plain"}
    return web.Response(text=body, status=status, **kind)


async def _wait_disconnect(request: web.Request) -> None:
    """Say nothing until the peer goes, or for `HANG_SECONDS`; aiohttp has no event for it that cancels nothing."""
    deadline = asyncio.get_running_loop().time() + HANG_SECONDS
    while request.transport is not None and not request.transport.is_closing():
        if asyncio.get_running_loop().time() >= deadline:
            request.transport.close()
            return
        await asyncio.sleep(0.1)
