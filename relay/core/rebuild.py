"""How a new model leg gets the conversation that another one had: which events, in which order, and what came of each.

Pure: events of the new leg in, events for it out; time comes in as ``now``. Knows nothing of the old leg, of sockets,
or of the client, which sees none of this. The rules follow what the Realtime API takes back: an assistant's words as
text only, no audio, nothing truncated, a tool call before its result (facts: OpenAI's Realtime API, GA shape).
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from relay.core.flights import DUPLICATE
from relay.core.locks import Locks
from relay.core.memory import Memory
from relay.core.realtime import NotAnEvent, decode, encode, event_type
from relay.core.sessions import restorable

ANCHOR: Final = "relay_anchor_"  # the ids of the relay's own items begin so
# Errors after which the upstream takes nobody: to try it again is no use.
FATAL: Final = frozenset(
    {
        *("account_deactivated", "beta_api_shape_disabled", "billing_hard_limit_reached", "insufficient_quota"),
        *("invalid_api_key", "missing_model", "model_not_found"),
    }
)
ACCOUNT: Final = FATAL - {"beta_api_shape_disabled", "missing_model", "model_not_found"}  # whatever is asked for
SESSION: Final = "session"  # stands in ``Rebuild.skipped`` for settings that the new leg did not take
UNSPOKEN: Final = "(something that was not transcribed)"

_ID_LENGTH: Final = 32  # of an item; the API refuses longer ones
_UPDATES: Final = 8  # tries, each without the field that the last was refused for
_WORD_LENGTH: Final = 24  # so far back a word's beginning is looked for
_WORD: Final = re.compile(r"[A-Za-z0-9_-]+")  # of an error's message: ids are such words
_STEP: Final = re.compile(r"[^.\[\]]+")  # of the path in an error's ``param``
_CONTENT: Final = {"system": "input_text", "user": "input_text", "assistant": "output_text"}
_INTERESTING: Final = frozenset(
    {
        *("session.created", "session.updated", "error", "conversation.item.deleted"),
        *("conversation.item.added", "conversation.item.done", "conversation.item.created"),
    }
)

Planned = tuple[str, dict[str, Any]]  # an item's id, and the event that creates it, without event id and place


def refusal(error: object) -> str | None:
    """Return the code of an error by which the upstream says that it takes nobody; None of any other one."""
    if not isinstance(error, dict) or str(error.get("param")).startswith("session."):  # about a setting, as of a model
        return None
    code = error.get("code")
    return code if isinstance(code, str) and code in FATAL else None


class Plan(NamedTuple):
    """What a new leg is told of a conversation, in order, and what cannot be told: item ids, each with a code."""

    items: list[Planned]
    left_out: list[tuple[str, str]]


def plan(memory: Memory) -> Plan:
    """Say how a conversation is restored. The same memory makes the same plan."""
    items: list[Planned] = []
    left_out: list[tuple[str, str]] = []
    calls: set[str] = set()
    for entry in memory.entries:
        item = _item(entry)
        code = "" if item is None else _obstacle(item, calls)
        if code:
            left_out.append((entry["id"], code))
        elif item is not None:
            if item["type"] == "function_call":
                calls.add(item.get("call_id", ""))
            items.append((entry["id"], {"type": "conversation.item.create", "item": item}))
    return Plan(items, left_out)


def _item(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The item that stands for an entry; None where there is nothing to tell."""
    kind, common = entry.get("type"), {"id": entry["id"], "type": entry.get("type")}
    if kind == "function_call":
        if entry.get("status") == "in_progress":
            return None
        call = {"call_id": entry["call_id"]} if "call_id" in entry else {}
        return {**common, **call, "name": entry.get("name", ""), "arguments": entry.get("arguments", "")}
    if kind == "function_call_output":
        return {**common, "call_id": entry.get("call_id", ""), "output": entry.get("output", "")}
    if kind != "message":
        return None if kind == "mcp_list_tools" else common  # the new session lists them itself
    role = entry.get("role")
    words = _heard(entry) or (UNSPOKEN if role == "user" else "")
    if not words:
        return None
    return {**common, "role": role, "content": [{"type": _CONTENT.get(str(role)), "text": words}]}


def _obstacle(item: dict[str, Any], calls: set[str]) -> str:
    """Why the API would refuse an item, as far as that is known beforehand; "" if it would not."""
    if len(item["id"]) > _ID_LENGTH:
        return "string_above_max_length"
    if item["type"] == "function_call_output":
        return "" if item["call_id"] and item["call_id"] in calls else "invalid_tool_call_id"
    known = item["type"] == "function_call" or item.get("role") in _CONTENT
    return "" if known else "unsupported_item"


def _heard(entry: dict[str, Any]) -> str:
    """The words of a message; of an answer that was cut off about those that were heard, if that can be told."""
    words: str = entry.get("text", "")
    heard, whole = entry.get("truncated_ms"), entry.get("audio_ms")
    if heard is None or not whole or heard >= whole:
        return words
    length = int(len(words) * max(0.0, heard) / whole)
    if words[length : length + 1].strip():  # within a word; some languages have no spaces between them
        from_ = max(0, length - _WORD_LENGTH)
        length = max((at for at in range(from_, length) if words[at].isspace()), default=length)
    cut = words[:length].rstrip()
    return f"{cut}…" if cut else ""


def anchor_text(memory: Memory) -> str:
    """What the model is told last: without it models greet again, or change their language."""
    aloud = "" if memory.session.get("output_modalities") == ["text"] else ", aloud"
    gone = " Its beginning is left out." if memory.dropped else ""
    text = f"The connection was renewed. The conversation above is what was said so far.{gone} "
    text += f"Go on in the same language{aloud}, without greeting again."
    last = memory.entries[-1]
    if last.get("role") == "assistant" and last.get("status") == "incomplete":
        text += " Your last answer was cut off: the person heard it up to where it ends above. Go on from there."
    return text


class _Flight(NamedTuple):
    """An event without an answer so far. ``item`` is what it creates; its id is "" for the session's."""

    kind: str
    item_id: str
    item: dict[str, Any] | None
    until: float


class Rebuild:
    """The building of one new model leg, from its opening until it has everything (``is_ready``).

    ``window`` is how many events are under way at most; ``anchor`` numbers the legs of a call, for an id of its own.
    """

    def __init__(
        self,
        memory: Memory,
        new_event_id: Callable[[], str],
        anchor: int,
        apply_seconds: float,
        window: int = 64,
    ) -> None:
        self.session: dict[str, Any] = {}  # as the new leg has it
        self.failed: str | None = None  # the code of an error after which there is no use in trying
        self.anchor_id: str | None = None  # of the relay's own item, which stands last
        self.restored: set[str] = set()  # ids of the items that the new leg has, the anchor aside
        self._memory = memory
        self._new_event_id = new_event_id
        self._anchor = anchor
        self._anchors = 0
        self._apply_seconds = apply_seconds
        self._window = window
        self._queue: list[dict[str, Any]] = []  # events without ids, next first
        self._flights: dict[str, _Flight] = {}  # by event id, oldest first
        self._made: dict[str, dict[str, Any]] = {}  # what the new leg has if it refuses nothing more, by item id
        self._refused: dict[str, tuple[dict[str, Any], str]] = {}  # what it did not take, by item id, and why
        self._session_refused: str | None = None  # why
        self._left_out: list[tuple[str, str]] = []
        self._update: dict[str, Any] = {}  # settings as they were asked for
        self._wanted: dict[str, Any] = {}  # settings as they should be
        self._updates = 0
        self._is_reduced = False  # to what is locked
        self._has_begun = False
        self._has_answered = False
        self.is_mute = False  # the new leg answers nothing that it is asked

    @property
    def is_ready(self) -> bool:
        """Whether the new leg has all that it takes of what was known at the start, or the last ``catch_up``."""
        return self._has_begun and not self._queue and not self._flights and self.failed is None

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """What the new leg lacks: ids of items, each with the code of the reason; ``SESSION`` for settings."""
        session = [(SESSION, self._session_refused)] if self._session_refused is not None else []
        return [*session, *self._left_out, *((item_id, code) for item_id, (_, code) in self._refused.items())]

    @property
    def items_skipped(self) -> int:
        """How many items it lacks."""
        return sum(item_id != SESSION for item_id, _ in self.skipped)

    @property
    def expires_at(self) -> float | None:
        """When the new session ends, in seconds since the epoch, if it says so."""
        moment = self.session.get("expires_at")
        return float(moment) if isinstance(moment, int | float) else None

    def start(self, now: float) -> list[bytes]:
        """Return the first events for a leg that is open: its settings, before anything is heard, then the items."""
        self._has_begun = True
        return self.catch_up(now)

    def catch_up(self, now: float) -> list[bytes]:
        """Return what tells the new leg what has changed since: it may take part in the call again when it is ready."""
        self._queue.clear()
        self._want_session()
        planned = plan(self._memory)
        self._left_out = planned.left_out
        known = {item_id: item for item_id, item in self._made.items() if not item_id.startswith(ANCHOR)}
        known |= {item_id: item for item_id, (item, _) in self._refused.items()}
        kept = {item_id for item_id, event in planned.items if known.get(item_id) == event["item"]}
        self._queue += [_deletion(item_id) for item_id in known if item_id not in kept and item_id in self._made]
        self._refused = {item_id: refused for item_id, refused in self._refused.items() if item_id in kept}
        standing = [item_id for item_id, _ in planned.items if item_id in kept and item_id in self._made]
        before, is_end = "root", not standing
        tail: list[dict[str, Any]] = []
        for item_id, event in planned.items:
            if item_id in kept:
                is_end |= standing[-1:] == [item_id]
            elif is_end:
                tail.append(event)
            else:
                self._queue.append({**event, "previous_item_id": before})
            before = before if item_id in self._refused else item_id
        self._queue += self._anchored(tail, anchor_text(self._memory) if planned.items else None)
        return self._send(now)

    def _want_session(self) -> None:
        wanted = restorable(self._memory.session)
        if wanted != self._wanted:
            self._wanted = self._update = wanted
            self._updates = 0
            self._is_reduced = False
            self._session_refused = None
            self._queue.append({"type": "session.update", "session": wanted})

    def _anchored(self, tail: list[dict[str, Any]], text: str | None) -> list[dict[str, Any]]:
        """The items at the end, and the anchor behind them: it stays where it is if nothing comes after it."""
        events, anchor_id = tail, self.anchor_id
        if anchor_id in self._made:
            if not tail and self._made[anchor_id]["content"][0]["text"] == text:
                return []
            events = [_deletion(anchor_id), *tail]
        self.anchor_id = None
        if text is None:
            return events
        # A new id each time: whether that of a deleted item can be given again is nowhere said.
        again = f"_{self._anchors}" if self._anchors else ""
        self.anchor_id, self._anchors = f"{ANCHOR}{self._anchor}{again}", self._anchors + 1
        content = [{"type": "input_text", "text": text}]
        item = {"id": self.anchor_id, "type": "message", "role": "system", "content": content}
        return [*events, {"type": "conversation.item.create", "item": item}]

    def _send(self, now: float) -> list[bytes]:
        """As much as the window has room for."""
        messages: list[bytes] = []
        while self._queue and len(self._flights) < self._window and self.failed is None:
            event, event_id = self._queue.pop(0), self._new_event_id()
            item, item_id = event.get("item"), event.get("item_id", "")
            if item is not None:
                item_id = item["id"]
                self._made[item_id] = item
            elif item_id:
                del self._made[item_id]
            self._flights[event_id] = _Flight(event["type"], item_id, item, now + self._apply_seconds)
            messages.append(encode({**event, "event_id": event_id}))
        return messages

    # What the new leg says

    def on_message(self, message: bytes, now: float) -> list[bytes]:
        """Take one message of the new leg's; returns what to send next."""
        kind = event_type(message)
        if kind not in _INTERESTING:
            return []
        try:
            event = decode(message)
        except NotAnEvent:
            return []
        if kind.startswith("session."):
            self._on_session(kind, event)
        elif kind == "error":
            self._on_error(event.get("error"))
        elif kind == "conversation.item.deleted":
            self._on_gone(event.get("item_id"))
        else:
            item = event.get("item")
            self._on_there(item.get("id") if isinstance(item, dict) else None)
        return self._send(now)

    def _on_session(self, kind: str, event: dict[str, Any]) -> None:
        session = event.get("session")
        if isinstance(session, dict):
            self.session = session
        if kind == "session.updated":
            self._land("session.update", "")
            self._session_refused = None

    def _on_there(self, item_id: Any) -> None:
        """The new leg has an item."""
        first = next((each.kind for each in self._flights.values() if each.item_id == item_id), None)
        if first == "conversation.item.create":  # and not of one that was made before and is being deleted
            self._land(first, item_id)
        elif first is None and item_id in self._refused:  # an answer that was no longer waited for
            self._made[item_id], _ = self._refused.pop(item_id)
        if item_id in self._made and not item_id.startswith(ANCHOR):
            self.restored.add(item_id)

    def _on_gone(self, item_id: Any) -> None:
        """The new leg does not have an item any more."""
        self._land("conversation.item.delete", item_id)
        self.restored.discard(item_id)

    def _land(self, kind: str, item_id: Any) -> None:
        for event_id, flight in self._flights.items():
            if (flight.kind, flight.item_id) == (kind, item_id):
                self._has_answered = True
                del self._flights[event_id]
                return

    def _on_error(self, trouble: Any) -> None:
        if not isinstance(trouble, dict):
            return
        code, param = str(trouble.get("code")), str(trouble.get("param"))
        if refusal(trouble) is not None:
            self.failed = code
            return
        found = self._culprit(trouble)
        if found is None:
            return
        self._has_answered = True
        flight = self._flights[found]
        if flight.kind == "conversation.item.create" and code == DUPLICATE:
            self._on_there(flight.item_id)
        elif flight.kind == "conversation.item.delete":
            self._on_gone(flight.item_id)  # there is no such item, as it should be
        elif flight.kind == "session.update" and (self._drop_setting(param) or self._reduce()):
            del self._flights[found]
            self._queue.insert(0, {"type": "session.update", "session": self._update})
        else:
            del self._flights[found]
            self._skip(flight, code)

    def _culprit(self, trouble: dict[str, Any]) -> str | None:
        """The event id of what an error answers; where it names none, the item that its words name, or the session."""
        cause = trouble.get("event_id")
        if isinstance(cause, str):
            return cause if cause in self._flights else None
        if str(trouble.get("param")).startswith("session."):
            return next((key for key, each in self._flights.items() if each.kind == "session.update"), None)
        words = {*_WORD.findall(str(trouble.get("message")))} - {""}
        for key, flight in self._flights.items():
            if flight.item_id in words or (flight.item or {}).get("call_id") in words:
                return key
        return None

    def _drop_setting(self, param: str) -> bool:
        """Do without a setting that was refused; False if that does not help."""
        path: list[Any] = [int(step) if step.isdecimal() else step for step in _STEP.findall(param)]
        if path[:1] != [SESSION] or path[1:] in ([], ["type"]) or self._updates >= _UPDATES:
            return False
        without = _without(self._update, path[1:])
        if without == self._update:
            return False
        self._update = without
        self._updates += 1
        return True

    def _reduce(self) -> bool:
        """Do with what no browser sets: what one has set beside it must not be why the new leg has nothing of it."""
        locked = Locks(self._memory.locked or frozenset()).only(self._wanted)
        if self._is_reduced or not locked.keys() - {"type"}:
            return False
        self._update, self._updates, self._is_reduced = locked, 0, True
        return True

    def _skip(self, flight: _Flight, code: str) -> None:
        """Go on without it."""
        if flight.kind == "session.update":
            self._session_refused = code
        elif flight.item is not None and self._made.get(flight.item_id) is flight.item:
            del self._made[flight.item_id]
            if flight.item_id.startswith(ANCHOR):
                self.anchor_id = None
            else:
                self._refused[flight.item_id] = (flight.item, code)

    def on_tick(self, now: float) -> list[bytes]:
        """Go on without what had no answer in time; returns what to send next."""
        for event_id, flight in list(self._flights.items()):
            if now >= flight.until:
                self.is_mute = not self._has_answered
                del self._flights[event_id]
                self._skip(flight, "timeout")
        return self._send(now)

    def due(self) -> float | None:
        """When ``on_tick`` has something to do."""
        return min((flight.until for flight in self._flights.values()), default=None)


def _deletion(item_id: str) -> dict[str, Any]:
    return {"type": "conversation.item.delete", "item_id": item_id}


def _without(settings: Any, path: Iterable[Any]) -> Any:
    """The settings without what stands at the end of a path of keys and indexes; the same where nothing does."""
    step, *rest = path
    if isinstance(settings, dict) and step in settings:
        if rest:
            return {**settings, step: _without(settings[step], rest)}
        return {key: value for key, value in settings.items() if key != step}
    if isinstance(settings, list) and isinstance(step, int) and step < len(settings):
        inner = [_without(settings[step], rest)] if rest else []
        return [*settings[:step], *inner, *settings[step + 1 :]]
    return settings
