"""The backends of calls that move: each puts numbered messages into one call, through whichever node is ready.

A message is repeated under its id until it has its end, through other nodes if need be, and only then comes the next:
so that it has an order, and that whatever becomes of a node is met by the one promise that a message is one message.
"""

import asyncio
import time
from typing import Final

from tests.drills.publishers import TERMINAL, Desk, Plan, Sending
from tests.drills.verdict import is_honest
from tests.support.doors import Doors

_PAUSE_SECONDS: Final = 0.2  # where no node is ready


class Backend:
    """Sends one message after the other into one call."""

    def __init__(self, desk: Desk, plan: Plan, doors: Doors, call: int, call_id: str) -> None:
        self._desk = desk
        self._plan = plan
        self._doors = doors
        self._call = call
        self._path = f"/v1/realtime/calls/{call_id}/items?wait=applied&timeout_ms={plan.timeout_ms}"
        self._next = 0

    async def run(self, first_seconds: float) -> None:
        """Send until told to stop; the message under way is brought to its end."""
        async for _ in self._desk.beats(first_seconds, self._plan.period_seconds):
            await self._send(self._make())

    def _make(self) -> Sending:
        number, self._next = self._next, self._next + 1
        message_id = f"m{self._call}-{number}"
        sending = Sending(
            message_id, self._call, "backend", number, "near", "", [f"{message_id} for the model"], time.time()
        )
        self._desk.sendings.append(sending)
        return sending

    async def _send(self, sending: Sending) -> None:
        content = [{"type": "input_text", "text": part} for part in sending.parts]
        body = {"id": sending.id, "item": {"type": "message", "role": "system", "content": content}, "response": False}
        while True:
            url = await self._doors.choose()
            pause: float | None = _PAUSE_SECONDS
            if url is not None:
                pause = await self._put(sending, url + self._path, body)
            if pause is None:
                return
            await asyncio.sleep(pause)

    async def _put(self, sending: Sending, url: str, body: object) -> float | None:
        """One request; returns the pause before the next, None where there shall be none."""
        answer, found, pause = await self._desk.request("POST", url, body)
        self._desk.answers[answer] += 1
        if answer in {"200", "202"}:
            sending.accepted = True
            sending.note_receipt(found)
            return None if found["status"] in TERMINAL else pause
        return pause if is_honest(answer) or not answer[:1].isdigit() else None
