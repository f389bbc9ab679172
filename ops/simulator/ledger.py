"""What the simulator remembers of each connection, for tests and the curious: bounded, without audio, without keys."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ops.simulator.session import Session

MAX_EVENTS = 2_000
MAX_EVENT_BYTES = 512 * 1024  # per session, of the listed events
MAX_TEXT = 2_000
MAX_ENDED = 1_000


class Record:
    """One connection, from its upgrade on."""

    def __init__(
        self,
        record_id: str,
        session: Session | None,
        *,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        now: float,
        wall: float,
    ) -> None:
        self.id = record_id
        self.session = session
        self.headers = {name: _redacted(name.lower(), value) for name, value in headers.items()}
        self.query = dict(query)
        self.opened_at = now
        self._wall_offset = wall - now
        self.closed_at: float | None = None
        self.close_code: int | None = None
        self.close_reason = ""
        self.closed_by: str | None = None
        self.received: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self._events: deque[tuple[dict[str, Any], int]] = deque()
        self._event_bytes = 0
        self._final: dict[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        return self.closed_at is None

    def on_received(self, raw: str | bytes, now: float) -> None:
        try:
            event = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            event = {"type": "(not JSON)", "bytes": len(raw)}
        if not isinstance(event, dict):
            event = {"type": "(not an object)"}
        kind = str(event.get("type"))[:100]
        if kind not in self.received and len(self.received) >= 200:
            kind = "(other)"
        self.received[kind] += 1
        at = round(now - self.opened_at, 4)
        if kind == "input_audio_buffer.append":
            audio = event.get("audio")
            size = len(audio) * 3 // 4 if isinstance(audio, str) else 0
            last = self._events[-1][0] if self._events else {}
            if last.get("type") == kind:  # a run of appends is one line
                last["count"] += 1
                last["audio"] += size
                return
            event = {"type": kind, "audio": size, "count": 1}
        self._list({"at": at, **_without_audio(event)})

    def on_closed(self, now: float, code: int | None, reason: str, by: str) -> None:
        if self.closed_at is None:
            self.closed_at, self.close_code, self.close_reason, self.closed_by = now, code, reason, by
            self._final = self._conversation()
            self.session = None  # its audio goes with it

    def summary(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "open": self.is_open,
            "opened_at": self.opened_at + self._wall_offset,
            "closed_at": None if self.closed_at is None else self.closed_at + self._wall_offset,
            "close_code": self.close_code,
            "close_reason": self.close_reason,
            "closed_by": self.closed_by,
            "query": self.query,
            "received": dict(self.received),
            "sent": dict(self.sent),
            "audio_ms_received": self._conversation()["audio_ms_received"],
        }

    def detail(self) -> dict[str, Any]:
        events = [event for event, _ in self._events]
        return {**self.summary(), **self._conversation(), "headers": self.headers, "events": events}

    def _conversation(self) -> dict[str, Any]:
        if self._final is not None:
            return self._final
        if self.session is None:
            return {"audio_ms_received": 0, "session": None, "items": []}
        items = [
            {
                "id": item.id,
                "type": item.body["type"],
                "role": item.body.get("role"),
                "status": item.body["status"],
                "text": item.text()[:MAX_TEXT],
                "call_id": item.body.get("call_id"),
                "name": item.body.get("name"),
                "arguments": item.body.get("arguments"),
                "output": item.body.get("output"),
                "content": [part["type"] for part in item.body.get("content", ())],
                "audio_ms": sum(clip.ms for clip in item.clips.values()),
            }
            for item in self.session.conversation
        ]
        return {"audio_ms_received": self.session.audio_ms_received, "session": self.session.config, "items": items}

    def _list(self, event: dict[str, Any]) -> None:
        size = len(msgspec.json.encode(event))
        self._events.append((event, size))
        self._event_bytes += size
        while len(self._events) > MAX_EVENTS or self._event_bytes > MAX_EVENT_BYTES:
            self._event_bytes -= self._events.popleft()[1]


class Ledger:
    """Every open connection and the last thousand that ended."""

    def __init__(self) -> None:
        self._open: dict[str, Record] = {}
        self._ended: dict[str, Record] = {}

    def __iter__(self) -> Iterator[Record]:
        yield from self._ended.values()
        yield from self._open.values()

    @property
    def open_count(self) -> int:
        return len(self._open)

    @property
    def ended_count(self) -> int:
        return len(self._ended)

    def add(self, record: Record) -> None:
        self._open[record.id] = record

    def get(self, record_id: str) -> Record | None:
        return self._open.get(record_id) or self._ended.get(record_id)

    def end(self, record: Record) -> None:
        if self._open.pop(record.id, None) is None:
            return
        self._ended[record.id] = record
        while len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def forget_ended(self) -> int:
        count = len(self._ended)
        self._ended.clear()
        return count


def _redacted(name: str, value: str) -> str:
    if name not in ("authorization", "sec-websocket-protocol", "cookie", "api-key"):
        return value[:MAX_TEXT]
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()[:12]} ({value[:7]}…, {len(value)} characters)"


def _without_audio(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(key)[:100]: len(each) * 3 // 4 if key == "audio" and isinstance(each, str) else _without_audio(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_without_audio(each) for each in value[:1_000]]
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}… ({len(value)} characters)"
    return value
