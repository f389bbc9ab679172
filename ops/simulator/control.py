"""`/sim/…`: asks the simulator what it has seen, and tells it what to do wrong next."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Any

import msgspec
from aiohttp import web

from ops.simulator.faults import Fault, FaultError, read_fields, read_text
from ops.simulator.ledger import Ledger

MAX_PENDING_FAULTS = 10_000


class Control:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._faults: deque[tuple[int, Fault]] = deque()  # for how many connections, what

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/sim/health", self._health),
            web.get("/sim/sessions", self._sessions),
            web.get("/sim/sessions/{id}", self._session),
            web.delete("/sim/sessions", self._forget),
            web.post("/sim/faults", self._add_fault),
            web.delete("/sim/faults", self._clear_faults),
        ]

    def next_fault(self) -> Fault | None:
        """The fault that the next connection is to have; using it up."""
        if not self._faults:
            return None
        count, fault = self._faults.popleft()
        if count > 1:
            self._faults.appendleft((count - 1, fault))
        return fault

    def add_fault(self, fault: Fault, count: int = 1) -> None:
        """For the next `count` connections, behind what was asked for before."""
        if len(self._faults) >= MAX_PENDING_FAULTS:
            raise FaultError("too many faults are pending")
        self._faults.append((count, fault))

    async def _health(self, request: web.Request) -> web.Response:
        return answer(
            {
                "status": "ok",
                "open_sessions": self._ledger.open_count,
                "ended_sessions": self._ledger.ended_count,
                "pending_faults": sum(count for count, _ in self._faults),
                "tasks": len(asyncio.all_tasks()),
                "file_descriptors": _open_files(),
                "pid": os.getpid(),
            }
        )

    async def _sessions(self, request: web.Request) -> web.Response:
        only_open = request.query.get("open") in ("1", "true")
        data = [record.summary() for record in self._ledger if record.is_open or not only_open]
        return answer({"object": "list", "data": data})

    async def _session(self, request: web.Request) -> web.Response:
        record = self._ledger.get(request.match_info["id"])
        if record is None:
            return refusal(404, "session_not_found", "No such session, or it was forgotten.")
        return answer(record.detail())

    async def _forget(self, request: web.Request) -> web.Response:
        return answer({"forgotten": self._ledger.forget_ended()})

    async def _add_fault(self, request: web.Request) -> web.Response:
        try:
            wanted = msgspec.json.decode(await request.read())
            if not isinstance(wanted, dict):
                raise FaultError("send a JSON object")
            count = wanted.pop("count", 1)
            if not isinstance(count, int) or not 1 <= count <= MAX_PENDING_FAULTS:
                raise FaultError(f"count is between 1 and {MAX_PENDING_FAULTS}")
            text = wanted.pop("fault", None)
            self.add_fault(read_fields(wanted) if text is None else read_text(str(text)), count)
        except (msgspec.DecodeError, FaultError) as error:
            return refusal(400, "bad_fault", str(error))
        return answer({"pending_faults": sum(each for each, _ in self._faults)})

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return answer({"pending_faults": 0})


def answer(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def refusal(status: int, code: str | None, message: str) -> web.Response:
    """An HTTP error in OpenAI's shape."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return answer({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


def _open_files() -> int | None:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return None
