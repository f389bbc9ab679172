"""What a call knows of its conversation: the session, the items with their words, the usage. Pure.

It goes by the model's events. An answer is a list of facts, name and JSON, for the call's home: out of them its readers
are told, and another node knows the conversation again; a value of None takes a fact away. No audio is among them. What
a new model is told of it is not decided here (``relay.core.rebuild``).
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Required, TypedDict

import msgspec

from relay.core.realtime import encode

_ITEMS: Final = 1000  # the oldest are dropped, and ``dropped`` says how many were
_BYTES: Final = 2 * 1024 * 1024  # of all entries as they are written: half of what the home has room for
_TEXT: Final = 256_000  # characters of one entry, as many as the model takes back; the rest is cut, with a mark
_GONE: Final = 256  # ids of items that went and are remembered as gone
_ITEM: Final = "item."

Fact = tuple[str, bytes | None]


class _Entry(TypedDict, total=False):
    """An item as it is kept; ``at`` in seconds since the epoch."""

    id: Required[str]
    type: str
    role: str
    text: str
    name: str
    call_id: str
    arguments: str
    output: str
    status: str
    at: float
    truncated_ms: float
    audio_ms: float
    hidden: bool


class _Place:
    """An item's place in the conversation."""

    __slots__ = ("entry", "number", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.entry: dict[str, Any] = {}
        self.size = 0

    @property
    def fact(self) -> str:
        """The name of its fact: names sort as the items stand."""
        return f"{_ITEM}{self.number:08d}"


class Memory:
    """The facts of one call; each method takes what the model said and returns those that changed."""

    __slots__ = (
        "_bytes",
        "_gone",
        "_next",
        "_places",
        "_responses",
        "_usage",
        "_words",
        "_words_length",
        "dropped",
        "locked",
        "session",
        "unreadable",
    )

    def __init__(self) -> None:
        self.session: dict[str, Any] = {}  # the effective session, as the model said it last
        self.locked: frozenset[str] | None = None  # what no browser sets of it; None: no browser was there
        self.dropped = 0  # how many of the oldest items were let go
        self.unreadable = 0  # facts of another node's that could not be read
        self._places: dict[str, _Place] = {}  # by item id, in the conversation's order
        self._bytes = 0
        self._next = 0
        self._gone: list[str] = []
        self._words: dict[str, list[str]] = {}  # of items that are being said, by item id
        self._words_length = 0
        self._usage: dict[str, Any] = {}
        self._responses = 0

    # What is known

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The items in the conversation's order; nobody changes them."""
        return [place.entry for place in self._places.values()]

    @property
    def last_id(self) -> str | None:
        """The id of the last item."""
        return next(reversed(self._places), None)

    @property
    def under_way(self) -> list[str]:
        """The ids of the items that the model has not finished."""
        return [item_id for item_id, place in self._places.items() if place.entry.get("status") == "in_progress"]

    @property
    def usage(self) -> dict[str, Any]:
        """What the responses cost together, and how many they were; empty before the first."""
        return {**self._usage, "responses": self._responses} if self._responses else {}

    def has(self, item_id: str) -> bool:
        """Whether an item is in the conversation."""
        return item_id in self._places

    def entry(self, item_id: str) -> dict[str, Any] | None:
        """What is known of one item."""
        place = self._places.get(item_id)
        return place.entry if place is not None else None

    # The session and the items

    def on_session(self, session: dict[str, Any]) -> list[Fact]:
        """The effective session."""
        self.session = session
        return [("session", encode(session))]

    def on_item(self, item: dict[str, Any], wall: float, after: Any = None, *, hidden: bool = False) -> list[Fact]:
        """An item is in the conversation, or has more to it than before.

        ``after`` is the event's ``previous_item_id``. An item whose predecessor is not known stands at the end: servers
        say nothing for the first, and some never say anything.
        """
        item_id = item.get("id")
        if not isinstance(item_id, str) or not item_id:
            return []
        entry = _entry(item)
        if hidden:
            entry["hidden"] = True
        place = self._places.get(item_id)
        if place is None:
            return self._add({**entry, "at": round(wall, 3)}, after)
        if entry.get("text") or entry.get("status") in _FINISHED:
            words = self._take_words(item_id)
            if words and not entry.get("text"):
                entry["text"] = words
        before = place.entry
        # What is known of words stays: an item that comes again may lack the transcript that came meanwhile.
        return self._change(place, {key: value for key, value in entry.items() if value or key not in before})

    def _add(self, entry: dict[str, Any], after: Any = None) -> list[Fact]:
        item_id = entry["id"]
        before = self._places.get(after) if isinstance(after, str) else None
        if before is None or after == self.last_id:
            place = self._places[item_id] = _Place(self._next)
            self._next += 1
            facts = self._write(place, entry)
        else:
            facts = self._insert(entry, before)
        if item_id in self._gone:
            self._gone.remove(item_id)
            facts.append(("gone", encode(self._gone)))
        return facts

    def _insert(self, entry: dict[str, Any], before: _Place) -> list[Fact]:
        """Put an item behind another one; those that follow move up by one, as far as no number is free."""
        place = _Place(before.number + 1)
        places = list(self._places.items())
        at = 1 + next(i for i, (_, each) in enumerate(places) if each is before)
        moved, number = [], place.number
        for _, each in places[at:]:
            if each.number > number:
                break
            number += 1
            each.number = number
            moved.append(each)
        self._next = max(self._next, number + 1)
        self._places = dict([*places[:at], (entry["id"], place), *places[at:]])
        # The last first: whoever reads half of it finds one of them twice, and none missing.
        facts: list[Fact] = [(each.fact, encode(each.entry)) for each in reversed(moved)]
        return facts + (self._write(place, entry) or [(place.fact, None)])

    def _write(self, place: _Place, entry: dict[str, Any]) -> list[Fact]:
        value = encode(entry)
        self._bytes += len(value) - place.size
        place.entry, place.size = entry, len(value)
        # An answer of which there is no word yet is not worth a write: who reads it would leave it out.
        facts: list[Fact] = [] if _is_bare(entry) else [(place.fact, value)]
        while len(self._places) > _ITEMS or self._bytes > _BYTES:
            facts += self.drop_oldest()
        return facts

    def _change(self, place: _Place, fields: dict[str, Any]) -> list[Fact]:
        entry = place.entry | fields
        return self._write(place, entry) if entry != place.entry else []

    def drop_oldest(self) -> list[Fact]:
        """Let the oldest item go: the call's home, or the memory, has no room for more."""
        if not self._places:
            return []
        self.dropped += 1
        return [*self.on_deleted(next(iter(self._places))), ("dropped", encode(self.dropped))]

    def on_deleted(self, item_id: str) -> list[Fact]:
        """An item is no longer in the conversation."""
        place = self._places.pop(item_id, None)
        if place is None:
            return []
        self._take_words(item_id)
        self._bytes -= place.size
        self._gone = [*self._gone[1 - _GONE :], item_id]
        return [(place.fact, None), ("gone", encode(self._gone))]

    # Words

    def on_words(self, item_id: str, delta: str) -> None:
        """More words of an item that is being said; they are no facts before it is done, or cut off."""
        if item_id in self._places and self._words_length < _TEXT:
            self._words.setdefault(item_id, []).append(delta)
            self._words_length += len(delta)

    def _take_words(self, item_id: str) -> str:
        words = "".join(self._words.pop(item_id, ()))
        self._words_length -= len(words)
        return _cut(words)

    def on_transcribed(self, event: dict[str, Any]) -> list[Fact]:
        """The words of the person's speech, which come when they are ready."""
        self._take_words(str(event.get("item_id")))
        return self._amend(event.get("item_id"), text=_cut(str(event.get("transcript") or "")))

    def on_audio(self, item_id: str, audio_ms: float) -> list[Fact]:
        """How much audio the model made of an answer."""
        return self._amend(item_id, audio_ms=audio_ms)

    def on_truncated(self, event: dict[str, Any]) -> list[Fact]:
        """The person heard only a part of an answer; what its text says beyond it was never heard."""
        heard_ms = event.get("audio_end_ms")
        return self._amend(event.get("item_id"), truncated_ms=heard_ms) if isinstance(heard_ms, int | float) else []

    def _amend(self, item_id: Any, **fields: Any) -> list[Fact]:
        place = self._places.get(item_id) if isinstance(item_id, str) else None
        return self._change(place, fields) if place is not None else []

    def on_interrupted(self, item_ids: Iterable[str]) -> list[Fact]:
        """The model is gone, and these items will never be finished: they keep the words so far.

        What has none goes, and so does a tool call, which nobody can answer.
        """
        facts: list[Fact] = []
        for item_id in item_ids:
            place = self._places.get(item_id)
            if place is None or place.entry.get("status") in _FINISHED:
                continue
            words = self._take_words(item_id) or place.entry.get("text")
            if words and place.entry.get("type") != "function_call":
                facts += self._change(place, {"text": words, "status": "incomplete"})
            else:
                facts += self.on_deleted(item_id)
        return facts

    def on_response_done(self, response: dict[str, Any], wall: float) -> list[Fact]:
        """The items as the response leaves them, and what it cost."""
        facts: list[Fact] = []
        output = response.get("output")
        for item in output if isinstance(output, list) else ():
            if isinstance(item, dict) and str(item.get("id")) in self._places:
                facts += self.on_item(item, wall)
        usage = response.get("usage")
        if isinstance(usage, dict):
            _sum(self._usage, usage)
            self._responses += 1
            facts.append(("usage", encode(self.usage)))
        return facts

    # Another node's memory

    def restore(self, facts: Mapping[str, bytes]) -> list[Fact]:
        """Know again what another node knew, before anything else; returns what the home has that is out of date.

        What cannot be read is left out, and counted.
        """
        self.session = self._read(facts, "session", _object) or {}
        self.dropped = self._read(facts, "dropped", _count) or 0
        self._gone = (self._read(facts, "gone", _ids) or [])[-_GONE:]
        self._usage = self._read(facts, "usage", _object) or {}
        responses = self._usage.pop("responses", 0)
        self._responses = responses if isinstance(responses, int) else 0
        stale: list[Fact] = []
        for name in sorted(name for name in facts if name.startswith(_ITEM)):
            number = name.removeprefix(_ITEM)
            if not (number.isascii() and number.isdecimal()):
                self.unreadable += 1
                continue
            place = _Place(int(number))
            self._next = max(self._next, place.number + 1)
            entry = self._read(facts, name, _entries)
            if entry is None:
                continue
            twice = self._places.pop(entry["id"], None)  # it moved up, and the rest of that was not written
            if twice is not None:
                stale.append((twice.fact, None))
                self._bytes -= twice.size
            self._places[entry["id"]] = place
            stale += self._write(place, dict(entry))[1:]
        return stale

    def _read(self, facts: Mapping[str, bytes], name: str, decoder: msgspec.json.Decoder[Any]) -> Any:
        if name not in facts:
            return None
        try:
            return decoder.decode(facts[name])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.unreadable += 1
            return None

    def adopt(self, items: list[dict[str, Any]], wall: float) -> list[Fact]:
        """Take over what backends put in, which is kept apart so that it is never lost; oldest first.

        An item that is known gets its full text. One that is missing was not written any more, and stands at the end;
        unless it went before.
        """
        ids = [str(item.get("id")) for item in items]
        settled = max((at for at, each in enumerate(ids) if each in self._places or each in self._gone), default=-1)
        facts: list[Fact] = []
        for at, item in enumerate(items):
            place = self._places.get(ids[at])
            if place is not None:
                facts += self._change(place, {key: value for key, value in _entry(item).items() if value})
            elif ids[at] not in self._gone and not (self.dropped and at < settled):
                facts += self.on_item(item, wall)
        return facts


def _is_bare(entry: dict[str, Any]) -> bool:
    is_answer = entry.get("role") == "assistant" or entry.get("type") == "function_call"
    return is_answer and entry.get("status") == "in_progress" and not entry.get("text")


_FINISHED: Final = frozenset({"completed", "incomplete"})
_object: Final = msgspec.json.Decoder(dict[str, Any])
_count: Final = msgspec.json.Decoder(int)
_ids: Final = msgspec.json.Decoder(list[str])
_entries: Final = msgspec.json.Decoder(_Entry)


def _sum(total: dict[str, Any], more: dict[str, Any]) -> None:
    """Add up the counts of a usage block, whatever kinds of tokens a model names."""
    for key, value in more.items():
        if isinstance(value, bool) or not isinstance(value, int | float | dict):
            continue
        if isinstance(value, dict):
            inner = total.setdefault(key, {})
            if isinstance(inner, dict):
                _sum(inner, value)
        elif isinstance(total.get(key, 0), int | float):
            total[key] = total.get(key, 0) + value


def _entry(item: dict[str, Any]) -> dict[str, Any]:
    """What is worth knowing of an item."""
    names = ("id", "type", "role", "status", "name", "call_id")
    entry = {key: item[key] for key in names if item.get(key) and isinstance(item[key], str)}
    entry |= {key: _cut(str(item[key])) for key in ("arguments", "output") if item.get(key) is not None}
    content = item.get("content")
    if isinstance(content, list):
        words = [_words(part) for part in content if isinstance(part, dict)]
        entry["text"] = _cut(" ".join(each for each in words if each))
    return entry


def _words(part: dict[str, Any]) -> str:
    words = str(part.get("text") or part.get("transcript") or "")
    return words or ("(a picture)" if part.get("type") == "input_image" else "")


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
