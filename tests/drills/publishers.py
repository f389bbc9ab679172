"""The backends of the drills: publishers that put numbered messages into calls and note what they are told.

A publisher is one (node, call) pair and sends one message after the other, so that it has an order. A message that
meets an honest refusal is sent again with its id until it is taken, as a backend would do it.
"""

import asyncio
import contextlib
import time
import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from tests.drills.verdict import Message, is_honest

_ANSWER_SLACK_SECONDS: Final = 15.0  # beyond the timeout that the relay is given: longer than any node is frozen
_PAUSE_SECONDS: Final = 0.3  # before a repeat, where the answer has no Retry-After
_RECEIPT_PAUSE_SECONDS: Final = 0.2
_PART_LETTERS: Final = 100_000  # of a big message: a part may have 256,000
_READERS: Final = 16  # of receipts, at a time
TERMINAL: Final = frozenset({"applied", "answered", "failed", "expired", "rejected"})


@dataclass(frozen=True, slots=True)
class Plan:
    """How all publishers of a drill behave."""

    period_seconds: float  # between a publisher's messages
    timeout_ms: int  # that the relay is given to have a message applied
    copies: int = 1  # of each request, at the same time


@dataclass(slots=True)
class Sending:
    """One message and what is known of it."""

    id: str
    call: int
    publisher: str
    number: int
    lane: str
    node: str
    parts: list[str]  # of the text: one may have so many letters only
    first_wall: float = 0.0
    accepted: bool = False
    receipt: str | None = None
    error: str | None = None
    applied_ms: float | None = None

    def note_receipt(self, receipt: dict[str, Any]) -> None:
        """Take a receipt, whoever gave it."""
        self.receipt = str(receipt["status"])
        self.error = (receipt.get("error") or {}).get("code")
        applied = (receipt.get("reached") or {}).get("applied")
        if applied is not None and self.applied_ms is None:
            self.applied_ms = (applied - self.first_wall) * 1000

    def told(self) -> Message:
        """The message for the verdict."""
        named = {
            name: getattr(self, name) for name in ("id", "call", "publisher", "number", "lane", "receipt", "error")
        }
        checksum = zlib.crc32(" ".join(self.parts).encode())
        return Message(**named, checksum=checksum, accepted=self.accepted, applied_ms=self.applied_ms)


@dataclass(slots=True)
class Desk:
    """What all publishers share: the client, the token, the list of what was sent, the count of answers."""

    http: aiohttp.ClientSession
    headers: dict[str, str]
    sendings: list[Sending] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    longest_answer_ms: float = 0.0
    stop: asyncio.Event = field(default_factory=asyncio.Event)  # no new messages

    async def beats(self, first_seconds: float, period_seconds: float) -> AsyncIterator[None]:
        """The moments at which somebody sends, until told to stop; whoever takes longer sends the next one at once."""
        due = time.monotonic() + first_seconds
        while not self.stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self.stop.wait()
                    return
            due = max(due + period_seconds, time.monotonic())
            yield

    async def request(self, method: str, url: str, body: Any = None) -> tuple[str, dict[str, Any], float]:
        """Make a request; returns the answer's key, its JSON and the seconds after which to try again."""
        began = time.monotonic()
        pause = _PAUSE_SECONDS
        found: dict[str, Any] = {}
        try:
            async with self.http.request(method, url, json=body, headers=self.headers) as response:
                found = await response.json()
                pause = float(response.headers.get("Retry-After", pause))
                answer = str(response.status)
                if response.status >= 400:
                    answer += f" {(found.get('error') or {}).get('code')}"
        except TimeoutError:
            answer = "no answer"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            answer = f"broken ({type(error).__name__})"
        self.longest_answer_ms = max(self.longest_answer_ms, (time.monotonic() - began) * 1000)
        return answer, found, pause


class Publisher:
    """Sends one message after the other into one call through one node."""

    def __init__(
        self, desk: Desk, plan: Plan, *, name: str, node: str, call: int, url: str, lane: str, size: int = 0
    ) -> None:
        self._desk = desk
        self._plan = plan
        self._name = name
        self._node = node
        self._call = call
        self._url = url  # of the call's items
        self._lane = lane
        self._filling = ["x" * _PART_LETTERS] * (size // _PART_LETTERS)
        self._next = 0

    async def run(self, first_seconds: float) -> None:
        """Send until told to stop; the message under way is brought to its end."""
        async for _ in self._desk.beats(first_seconds, self._plan.period_seconds):
            await self._send(self._make())

    async def run_until_applied(self) -> None:
        """Send one message after the other until one was answered as applied."""
        applied_ms = None
        while applied_ms is None:
            sending = self._make()
            await self._send(sending)
            applied_ms = sending.applied_ms

    def _make(self) -> Sending:
        number, self._next = self._next, self._next + 1
        message_id = f"m{self._call}-{self._name}-{number}"
        parts = [f"{message_id} for the model", *self._filling]
        sending = Sending(message_id, self._call, self._name, number, self._lane, self._node, parts, time.time())
        self._desk.sendings.append(sending)
        return sending

    async def _send(self, sending: Sending) -> None:
        content = [{"type": "input_text", "text": part} for part in sending.parts]
        item = {"type": "message", "role": "system", "content": content}
        body = {"id": sending.id, "item": item, "response": False}
        url = f"{self._url}?wait=applied&timeout_ms={self._plan.timeout_ms}"
        while True:
            async with asyncio.TaskGroup() as tasks:
                copies = [tasks.create_task(self._put(sending, url, body)) for _ in range(self._plan.copies)]
            pauses = [pause for pause in (copy.result() for copy in copies) if pause is not None]
            if sending.accepted or not pauses:
                return
            await asyncio.sleep(min(pauses))

    async def _put(self, sending: Sending, url: str, body: dict[str, Any]) -> float | None:
        """One request; returns the pause before the next, None where there shall be none."""
        answer, found, pause = await self._desk.request("POST", url, body)
        self._desk.answers[answer] += 1
        if answer in {"200", "202"}:
            sending.accepted = True
            if answer == "200" and found["status"] == "applied" and sending.applied_ms is None:
                sending.applied_ms = (time.time() - sending.first_wall) * 1000
            return None
        return pause if is_honest(answer) or not answer[:1].isdigit() else None


class Readers:
    """Reads the receipts of what was taken, through another node, until each is terminal."""

    def __init__(self, desk: Desk, urls: dict[str, str]) -> None:
        self._desk = desk
        self._urls = urls  # of the receipts, by message id

    async def run(self, seconds: float) -> int:
        """Read for at most so long; returns how many are still open."""
        waiting = deque(sending for sending in self._desk.sendings if sending.accepted)
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_READERS):
                tasks.create_task(self._read(waiting, until))
        return len(waiting)

    async def _read(self, waiting: deque[Sending], until: float) -> None:
        while waiting and time.monotonic() < until:
            sending = waiting.popleft()
            answer, found, _ = await self._desk.request("GET", self._urls[sending.id])
            if answer == "200":
                sending.note_receipt(found)
            else:
                sending.receipt = f"asked for it: {answer}"
            if sending.receipt not in TERMINAL:
                waiting.append(sending)
                await asyncio.sleep(_RECEIPT_PAUSE_SECONDS)


def client_timeout(plan: Plan) -> aiohttp.ClientTimeout:
    """How long a publisher waits for an answer: longer than a promise of never being silent allows."""
    return aiohttp.ClientTimeout(total=plan.timeout_ms / 1000 + _ANSWER_SLACK_SECONDS)


def stagger(count: int, period_seconds: float, shuffle: Iterator[float]) -> list[float]:
    """When each of so many publishers sends its first message: spread over a period, with some chance."""
    return [(place + next(shuffle)) * period_seconds / count for place in range(count)]
