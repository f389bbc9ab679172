"""A person in a call and a client that resumes by itself: speaks in turns in real time, listens, notes all it gets.

Two tasks for as long as ``Talker.talk`` runs: the person, who sends a frame every 20 ms whatever the line does, and the
line, which connects, reads, and connects again through a load balancer's choice of nodes (``Doors``).
"""

import asyncio
import base64
import json
import random
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import aiohttp

from ops.simulator.speech import tone
from tests.support.doors import Doors
from tests.support.hearing import MAX_NOTES, Playout, View
from tests.support.notes import Connection, Notes

COME_BACK: Final = frozenset({1001, 1006, 1011, 1012, 1013})
_FRAME_SECONDS: Final = 0.02
_FRAME_BYTES: Final = 960
_HOLD_SECONDS: Final = 2.0  # of speech, while there is no connection; then the oldest is dropped
_DIAL_SECONDS: Final = 5.0
_FIRST_DELAY: Final = 0.05
_LONGEST_DELAY: Final = 1.0
_SEEN: Final = 4096  # event ids that a repeat is known by
_AGAIN: Final = "again_"  # event ids of what is sent once more on a new connection


@dataclass(frozen=True, slots=True)
class Turn:
    """What the person does next: speaks, or writes where there is a text, and listens to the answer."""

    seconds: float = 1.5  # of speech
    pause: float = 0.3  # the model has been silent for so long before the person goes on
    text: str = ""
    hears: float | None = None  # how much of the answer is listened to before the next turn begins; None: all


def spoken_turns(chance: random.Random, count: int, seconds: tuple[float, float] = (1, 3)) -> list[Turn]:
    """Return turns of one to three seconds, or so many, with pauses between."""
    return [Turn(round(chance.uniform(*seconds), 2), round(chance.uniform(0.3, 1), 2)) for _ in range(count)]


class Talker:
    """One call."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        doors: Doors,
        token: str,
        *,
        relay_events: bool = False,
        path: str = "/v1/realtime?model=sim",
        session: Mapping[str, Any] | None = None,
        tool_seconds: float | None = None,
        patience: float = 8.0,
        resume_seconds: float = 30.0,
        heartbeat: float | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare a call; nothing happens before ``talk``.

        Args:
            http: opens the sockets.
            doors: choose the node, at the beginning and at each resume.
            token: a bearer token; with a ``call`` claim the call is resumed by it.
            relay_events: offer ``relay.events.v1``; then ``relay.started`` says how to resume.
            path: of the first connection, and of all without ``relay_events``.
            session: for ``session.update``; without ``audio`` in it the input's transcription is asked for.
            tool_seconds: how long a tool takes that the model calls; None: nobody answers it.
            patience: seconds until the person stops waiting for an answer.
            resume_seconds: how long it tries to come back.
            heartbeat: seconds between pings; a connection without a pong for half as long is lost. None: it waits.
            seed: of the jitter between attempts.
        """
        self.notes = Notes()
        self.playout = Playout()
        self.view = View()
        self.call_id = ""
        self.ended: str | None = None  # why, once the call is over
        self._http, self._doors, self._token = http, doors, token
        self._relay_events, self._path = relay_events, path
        transcription = {"audio": {"input": {"transcription": {"model": "gpt-4o-mini-transcribe"}}}}
        self._session = {"type": "realtime", **transcription, **(session or {})}
        self._tool_seconds, self._patience, self._resume_seconds = tool_seconds, patience, resume_seconds
        self._heartbeat = heartbeat
        self._chance = random.Random(seed)
        self._socket: aiohttp.ClientWebSocketResponse | None = None  # once its session was created
        self._resume: dict[str, Any] | None = None
        self._last_event_id = ""
        self._seen: dict[str, None] = {}
        self._held: deque[str] = deque(maxlen=int(_HOLD_SECONDS / _FRAME_SECONDS))
        self._asked_at: float | None = None  # end of the turn that no audio has answered yet
        self._heard_at: float | None = None  # first audio of the answer
        self._cut: set[str] = set()  # responses whose audio is not played any more
        self._response = ""  # the last one that began
        self._under_way = ""  # the same, until it is done
        self._tool_calls: deque[tuple[float, str]] = deque(maxlen=MAX_NOTES)
        self._results: dict[str, dict[str, Any]] = {}  # by item id, until the model has them
        self._delay, self._give_up_at = _FIRST_DELAY, 0.0
        self._due = 0.0
        self._called: set[str] = set()  # tool calls that were seen
        self._answered = asyncio.Event()  # the call was begun
        self._wants_to_leave = self._has_left = False

    @property
    def is_connected(self) -> bool:
        """Whether there is a socket whose session was created."""
        return self._socket is not None

    async def wait_answered(self) -> None:
        """Until the call was begun."""
        await self._answered.wait()

    async def talk(self, turns: Iterable[Turn]) -> None:
        """Call, say all turns, hang up. Returns earlier where the call ends; ``ended`` says why."""
        async with asyncio.TaskGroup() as tasks:
            line = tasks.create_task(self._line())
            person = tasks.create_task(self._person(turns))
            await asyncio.wait((line, person), return_when=asyncio.FIRST_COMPLETED)
            if line.done():
                person.cancel()
            elif self._socket is None:
                line.cancel()
                self.ended = "the person left while there was no connection"

    def leave(self) -> None:
        """Let the person hang up after this turn."""
        self._wants_to_leave = True

    def drop(self) -> None:
        """Lose the connection without a word, as a phone that leaves the Wi-Fi does."""
        if self._socket is not None and (connection := self._socket._response.connection) is not None:
            assert connection.transport is not None
            connection.transport.abort()

    # -- the line ----------------------------------------------------------------------------------------------------

    async def _line(self) -> None:
        self._give_up_at = _now() + self._resume_seconds
        while (socket := await self._dial()) is not None:
            connection = self.notes.connections[-1]
            try:
                connection.code, connection.reason = await self._read(socket, connection)
            finally:
                self._socket = None
                connection.closed_at = _now()
                connection.response = self._under_way
            if self._has_left:
                connection.code, self.ended = 1000, "hung up"
                return
            if connection.code not in COME_BACK:
                self.ended = f"{connection.code} {connection.reason}".strip()
                return
            if connection.created_at is None:
                await self._back_off()
            else:
                self._delay, self._give_up_at = _FIRST_DELAY, connection.closed_at + self._resume_seconds

    async def _dial(self) -> aiohttp.ClientWebSocketResponse | None:
        """Until a node has taken the connection, or the time to try is over; ``ended`` says why there is none."""
        while _now() < self._give_up_at:
            url = await self._doors.choose()
            try:
                if url is not None:
                    return await self._open(url)
                self.notes.unreachable += 1
            except aiohttp.WSServerHandshakeError as refused:
                self.notes.refusals.append(refused.status)
                if refused.status < 500 and refused.status not in {409, 429}:
                    self.ended = f"refused with {refused.status}"
                    return None
            except (aiohttp.ClientError, TimeoutError, OSError):
                self.notes.unreachable += 1
            await self._back_off()
        self.ended = f"gave up after {self._resume_seconds:g} s"
        return None

    async def _back_off(self) -> None:
        await asyncio.sleep(self._delay * self._chance.uniform(0.5, 1))
        self._delay = min(2 * self._delay, _LONGEST_DELAY)

    async def _open(self, url: str) -> aiohttp.ClientWebSocketResponse:
        token, path = self._token, self._path
        if self._resume is not None:
            token, asked = self._resume["token"], urlsplit(self._resume["url"])
            query = "&".join(filter(None, (asked.query, urlencode({"last_event_id": self._last_event_id}))))
            path = f"{asked.path}?{query}"
        async with asyncio.timeout(_DIAL_SECONDS):
            socket = await self._http.ws_connect(
                url + path,
                headers={"Authorization": f"Bearer {token}"},
                protocols=(("relay.events.v1",) if self._relay_events else ()) + ("realtime",),
                max_msg_size=0,
                heartbeat=self._heartbeat,
            )
        headers = socket._response.headers
        self.call_id = self.call_id or headers.get("X-Call-Id", "")
        self.notes.connections.append(Connection(headers.get("X-Relay-Node", ""), _now()))
        return socket

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, connection: Connection) -> tuple[int, str]:
        while True:
            message = await socket.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                if event["type"] == "session.created" and connection.created_at is None:
                    connection.created_at = _now()
                    await self._greet(socket)
                await self._on_event(event, connection)
            elif message.type is aiohttp.WSMsgType.CLOSE:
                return int(message.data or 1005), str(message.extra or "")
            else:
                return int(socket.close_code or 1006), ""

    async def _greet(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Say first what an SDK says, then what was spoken meanwhile and what may not have arrived."""
        is_first = len([each for each in self.notes.connections if each.created_at is not None]) == 1
        self._socket = socket
        self._answered.set()
        if is_first or not self._relay_events:
            await self._send({"type": "session.update", "session": self._session})
        held, self._held = list(self._held), deque(maxlen=self._held.maxlen)
        for frame in held:
            await self._send_text(frame)
        for item in list(self._results.values()):
            self.notes.again += 1
            await self._send_result(item, f"{_AGAIN}{self.notes.again}")

    # -- what comes in -----------------------------------------------------------------------------------------------

    async def _on_event(self, event: dict[str, Any], connection: Connection) -> None:
        self.notes.events[event["type"]] += 1
        self._note_id(event.get("event_id", ""))
        self.view.apply(event)
        match event["type"]:
            case "response.created":
                self._response = self._under_way = event["response"]["id"]
            case "response.done":
                self.notes.responses[event["response"]["status"]] += 1
                self._cut.discard(event["response"]["id"])
                self._under_way = ""
            case "response.output_audio.delta" if event["response_id"] not in self._cut:
                self._hear(event, connection)
            case "input_audio_buffer.speech_started":
                await self._be_interrupted()
            case "output_audio_buffer.cleared":
                self._cut.add(self._response)
                self.playout.stop(_now())
            case "response.output_item.done" if event["item"]["type"] == "function_call":
                self._call_tool(event["item"])
            case "conversation.item.added":
                self._results.pop(event["item"]["id"], None)
            case "error":
                self._note_error(event["error"])
            case "relay.started" | "relay.resumed" | "relay.moving":
                self._resume = event.get("resume") or self._resume
                self.notes.relay_events.append(event)

    def _note_id(self, event_id: str) -> None:
        if not event_id:
            return
        self.notes.repeated += event_id in self._seen
        self._seen[event_id] = None
        self._last_event_id = event_id
        if len(self._seen) > _SEEN:
            del self._seen[next(iter(self._seen))]

    def _note_error(self, error: dict[str, Any]) -> None:
        if str(error.get("event_id")).startswith(_AGAIN):
            self.notes.again_refused += 1
        else:
            self.notes.errors.append(error)

    def _hear(self, event: Mapping[str, Any], connection: Connection) -> None:
        now = _now()
        if connection.heard_at is None:
            connection.heard_at = now
        if self._asked_at is not None:
            self.notes.waits.append(now - self._asked_at)
            self._asked_at, self._heard_at = None, now
        delta = event["delta"]
        self.playout.hear(event["item_id"], len(delta) * 3 // 4 - delta[-2:].count("="), now)

    async def _be_interrupted(self) -> None:
        self._cut.add(self._response)
        cut = self.playout.stop(_now())
        if cut is not None:
            item_id, heard_ms = cut
            place = {"item_id": item_id, "content_index": 0, "audio_end_ms": heard_ms}
            await self._send({"type": "conversation.item.truncate", **place})

    def _call_tool(self, item: Mapping[str, Any]) -> None:
        call_id = item["call_id"]
        if self._tool_seconds is None or item.get("status") != "completed" or call_id in self._called:
            return
        self._called.add(call_id)
        self._tool_calls.append((_now() + self._tool_seconds, call_id))

    # -- the person --------------------------------------------------------------------------------------------------

    async def _person(self, turns: Iterable[Turn]) -> None:
        await self._answered.wait()
        self._due = _now()
        for turn in turns:
            await self._say(turn)
            if self._wants_to_leave:
                break
        self._has_left = True
        if self._socket is not None:
            await self._socket.close()

    async def _say(self, turn: Turn) -> None:
        self.notes.turns += 1
        if turn.text:
            content = [{"type": "input_text", "text": turn.text}]
            await self._send(
                {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}
            )
            await self._send({"type": "response.create"})
        else:
            for place in range(round(turn.seconds / _FRAME_SECONDS)):
                await self._tick(_voice()[place % len(_voice())])
        asked_at = self._asked_at = _now()
        self._heard_at = None
        while not self._is_answered(turn, _now()):
            if not self._is_heard and _now() - asked_at > self._patience:
                self.notes.unanswered += 1
                self._asked_at = None
                return
            await self._tick(_silence())

    @property
    def _is_heard(self) -> bool:
        return self._heard_at is not None

    def _is_answered(self, turn: Turn, now: float) -> bool:
        if self._heard_at is None:
            return False
        if turn.hears is not None and now >= self._heard_at + turn.hears:
            return True
        return now >= self.playout.until + turn.pause

    async def _tick(self, frame: str) -> None:
        """Send 20 ms of microphone and wait until the next are due; a connection that took none for long loses some."""
        self._due += _FRAME_SECONDS
        if _now() > self._due + _HOLD_SECONDS:
            self._due = _now()
            self.notes.dropped_frames += int(_HOLD_SECONDS / _FRAME_SECONDS)
        if not await self._send_text(frame):
            self.notes.dropped_frames += len(self._held) == self._held.maxlen
            self._held.append(frame)
        await self._answer_tools()
        await asyncio.sleep(max(0.0, self._due - _now()))

    async def _answer_tools(self) -> None:
        while self._tool_calls and self._tool_calls[0][0] <= _now():
            _, call_id = self._tool_calls.popleft()
            item = {"id": f"out_{call_id}"[:32], "type": "function_call_output", "call_id": call_id}
            item["output"] = f"the result of {call_id}"
            self._results[item["id"]] = item
            await self._send_result(item, f"tool_{call_id}")

    async def _send_result(self, item: Mapping[str, Any], event_id: str) -> None:
        await self._send({"type": "conversation.item.create", "event_id": event_id, "item": item})
        await self._send({"type": "response.create"})

    async def _send(self, event: Mapping[str, Any]) -> bool:
        return await self._send_text(json.dumps(event))

    async def _send_text(self, text: str) -> bool:
        """Return whether there was a connection that took it."""
        if self._socket is None or self._socket.closed:
            return False
        try:
            await self._socket.send_str(text)
        except (ConnectionError, aiohttp.ClientError):
            return False
        return True


def _now() -> float:
    return asyncio.get_running_loop().time()


@cache
def _voice() -> tuple[str, ...]:
    """One second of speech as events; a whole number of periods, so that it can be repeated."""
    return _frames(tone(1.0))


@cache
def _silence() -> str:
    return _frames(bytes(_FRAME_BYTES))[0]


def _frames(pcm: bytes) -> tuple[str, ...]:
    pieces = (pcm[at : at + _FRAME_BYTES] for at in range(0, len(pcm), _FRAME_BYTES))
    return tuple(
        json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(each).decode()}) for each in pieces
    )
