"""What a browser may not say of its call, and is not shown of it: the fields that its server has set. Pure.

It judges whole events: a client's before anything else reads them, the model's after everything else has. It does not
know the server's values. The relay's own first ``session.update`` sets them, and they stay because no other words for
them go on. Servers read JSON less strictly than this relay (some take "Instructions" for "instructions", of two keys
with one name some take the first): so names are compared by their letters alone, and what was judged is written anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from relay.core.realtime import ClientEvent, NotAnEvent, decode, encode, event_type, is_whole_append

_APPEND: Final = "input_audio_buffer.append"
_LETTERS: Final = 64  # of a client's words in an error
# The client events of the Realtime API (GA, and what of the beta servers still take), and their fields.
_EVENTS: Final[dict[str, frozenset[str]]] = {
    kind: frozenset({"type", "event_id", *fields.split()})
    for kind, fields in (
        ("session.update", "session"),
        ("transcription_session.update", "session"),
        ("session.close", ""),
        (_APPEND, "audio"),
        ("input_audio_buffer.commit", ""),
        ("input_audio_buffer.clear", ""),
        ("conversation.item.create", "item previous_item_id"),
        ("conversation.item.delete", "item_id"),
        ("conversation.item.retrieve", "item_id"),
        ("conversation.item.truncate", "item_id content_index audio_end_ms"),
        ("response.create", "response"),
        ("response.cancel", "response_id"),
        ("output_audio_buffer.clear", ""),
    )
}
# Of an event that is not among them, and that an operator allows: what else could have the meaning of one of these.
_JUDGED: Final = ("type", "event_id", "session", "response", "item")
# The items that say nothing but what was said, and the roles that they have.
_ITEMS: Final[dict[str, tuple[str | None, ...]]] = {
    "message": ("user", "assistant"),
    **dict.fromkeys(("function_call", "function_call_output", "mcp_approval_response", "item_reference"), (None,)),
}
# Names of one thing: in the GA shape, in the beta's, and what can stand for each other.
_SAME: Final = (
    ("instructions", "prompt"),
    ("max_output_tokens", "max_response_output_tokens"),
    ("output_modalities", "modalities"),
    ("audio.input.format", "input_audio_format"),
    ("audio.input.noise_reduction", "input_audio_noise_reduction"),
    ("audio.input.transcription", "input_audio_transcription"),
    ("audio.input.turn_detection", "turn_detection"),
    ("audio.output.format", "output_audio_format"),
    ("audio.output.speed", "speed"),
    ("audio.output.voice", "voice"),
)
_INSTRUCTIONS: Final = "A browser's key may only put in what the user or the assistant said, and results of tools."

# Locked fields: by their letters, an empty tree for what is locked whole.
_Tree = dict[str, "_Tree"]


@dataclass(frozen=True, slots=True)
class Locks:
    """What the client of one call may not say. ``names`` are fields of the session, dotted where they stand deeper.

    ``events`` are the types of the events that it may send; None: all of the Realtime API. ``lockable`` are the fields
    that are locked as soon as a backend sets them. A field is locked in every shape that it has, and no deeper than
    servers replace it: ``audio.input.turn_detection.type`` locks turn detection.
    """

    names: frozenset[str]
    events: frozenset[str] | None = None
    lockable: frozenset[str] = frozenset()
    _unsaid: _Tree = field(init=False, repr=False, compare=False)
    _unshown: _Tree = field(init=False, repr=False, compare=False)
    _roles: tuple[str | None, ...] | None = field(init=False, repr=False, compare=False)  # None: any item may be put in

    def __post_init__(self) -> None:
        names = _spelled_out(self.names)
        object.__setattr__(self, "_unsaid", _tree(names))
        object.__setattr__(self, "_unshown", _tree(names - {"model"}))
        system = () if "instructions" in names else ("system",)
        judges_items = not system or "tools" in names  # a list of tools is an item, too
        object.__setattr__(self, "_roles", (*_ITEMS["message"], *system) if judges_items else None)

    # What the client says

    @property
    def allows_audio(self) -> bool:
        """Whether it may send audio."""
        return self.events is None or _APPEND in self.events

    def judge(self, event: ClientEvent, session_type: object) -> str | None:
        """Take what is locked out of an event; returns why it may not be sent at all, None if it may.

        ``session_type`` is the session's, if it is known: one of another type would begin with its own settings.
        """
        if event.type not in (_EVENTS if self.events is None else self.events):
            return f"This key may not send {event.type[:_LETTERS]!r} events."
        known = _EVENTS.get(event.type)
        event.keep(known if known is not None else _without_doubles(event.keys, _JUDGED))
        try:
            return self._judge_session(event, session_type) or self._judge_response(event) or self._judge_item(event)
        except NotAnEvent as wrong:
            return str(wrong)

    def passed(self, message: bytes, session_type: object) -> bytes | None:
        """Return what of a client's message may go on, None if nothing may."""
        if is_whole_append(message):
            return message if self.allows_audio else None
        try:
            event = ClientEvent(message)
        except NotAnEvent:
            return None
        return event.encoded() if self.judge(event, session_type) is None else None

    def _judge_session(self, event: ClientEvent, session_type: object) -> str | None:
        if "session" not in event.keys:
            return None
        session = event.value("session")
        if not isinstance(session, dict):
            return "The session must be an object."
        if session_type is not None and session.get("type", session_type) != session_type:
            return "The session's type is its server's to set."
        session = {key: session[key] for key in _without_doubles(session, ("type",))}
        event.put("session", _without(session, self._unsaid))
        return None

    def _judge_response(self, event: ClientEvent) -> str | None:
        response = event.value("response")
        if response is None:
            return None
        if not isinstance(response, dict):
            return "The response must be an object."
        response = _without(response, self._unsaid)
        given = response.get("input")
        if self._roles is not None:
            response = {key: response[key] for key in _without_doubles(response, ("input",))}
            if isinstance(given, list):
                response["input"] = [_plain_item(item) for item in given]
                if not all(map(self._is_allowed, response["input"])):
                    return _INSTRUCTIONS
            elif given is not None:
                return "The response's input must be a list of items."
        event.put("response", response)
        return None

    def _judge_item(self, event: ClientEvent) -> str | None:
        if self._roles is None or "item" not in event.keys:
            return None
        item = _plain_item(event.value("item"))
        if not self._is_allowed(item):
            return _INSTRUCTIONS
        event.put("item", item)
        return None

    def _is_allowed(self, item: Any) -> bool:
        """Whether an item is one that can instruct nobody: what cannot be told from one that does is none."""
        kind = item.get("type") if isinstance(item, dict) else None
        if not isinstance(kind, str) or kind not in _ITEMS:
            return False
        return item.get("role") in (self._roles or () if kind == "message" else _ITEMS[kind])

    # What the client is shown

    def shown(self, message: bytes) -> bytes | None:
        """Return what the client is shown of an event of the model's, None if nothing is.

        The model itself is no secret: it stands in the URL of the SDKs.
        """
        if not self._unshown or event_type(message) == "conversation.item.retrieved":  # which may be megabytes
            return message
        if b'"session"' not in message and b'"response"' not in message:
            return message
        try:
            event = decode(message)
        except NotAnEvent:
            return None
        held = {key: event[key] for key in ("session", "response") if event.get(key) is not None}
        if not all(isinstance(value, dict) for value in held.values()):
            return None
        shown = {key: _without(value, self._unshown) for key, value in held.items()}
        return message if shown == held else encode({**event, **shown})

    # What is the server's

    def only(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of a session's settings is locked, in an update for another session."""
        kind = {"type": settings["type"]} if "type" in settings else {}
        return kind | _within(settings, self._unsaid)


def lock(agent_locked: frozenset[str], opening: Mapping[str, Any]) -> frozenset[str]:
    """Return which of the fields that an agent locks are locked in a call that begins with this session.

    Those that it has a value for: what the server does not set is the client's to set. The model always.
    """
    return frozenset(name for name in agent_locked if name == "model" or _has_value(name, opening))


def _has_value(name: str, opening: Mapping[str, Any]) -> bool:
    return any(_is_set(each.split("."), opening) for each in _spelled_out({name}))


def _is_set(path: list[str], settings: Any) -> bool:
    for step in path:
        if not isinstance(settings, Mapping) or step not in settings:
            return False
        settings = settings[step]
    return settings is not None or path[-1] == "turn_detection"  # without it the client says when a turn is over


def _spelled_out(names: frozenset[str] | set[str]) -> set[str]:
    """The fields that are locked: each as servers replace it, by all its names."""
    found: set[str] = set()
    for name in names:
        steps = name.split(".")
        whole = ".".join(steps[:3] if steps[0] == "audio" else steps[:1])
        found.add(whole)
        for group in _SAME:
            if any(each == whole or each.startswith(f"{whole}.") for each in group):
                found.update(group)
    return found


def _tree(names: set[str]) -> _Tree:
    root: _Tree = {}
    for name in sorted(names, key=len):  # what is locked whole comes before what stands in it
        tree, steps = root, [_letters(step) for step in name.split(".")]
        for step in steps[:-1]:
            if tree.get(step) == {}:
                break
            tree = tree.setdefault(step, {})
        else:
            tree[steps[-1]] = {}
    return root


def _letters(key: str) -> str:
    return "".join(letter for letter in key.casefold() if letter.isalnum())


def _without(settings: Mapping[str, Any], tree: _Tree) -> dict[str, Any]:
    """The settings without those that are locked; an object goes with the last that it had."""
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        inner = tree.get(_letters(key))
        if inner is None:
            kept[key] = value
        elif inner and isinstance(value, dict):  # null would set back what is in it
            within = _without(value, inner)
            if within or not value:
                kept[key] = within
    return kept


def _within(settings: Mapping[str, Any], tree: _Tree) -> dict[str, Any]:
    """The settings that are locked."""
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        inner = tree.get(_letters(key))
        if inner == {}:
            kept[key] = value
        elif inner and isinstance(value, dict) and (within := _within(value, inner)):
            kept[key] = within
    return kept


def _without_doubles(keys: Any, names: tuple[str, ...]) -> list[str]:
    """The keys without those that could be taken for one of these names and are none."""
    doubles = {_letters(name) for name in names}
    return [key for key in keys if key in names or _letters(key) not in doubles]


def _plain_item(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return {key: item[key] for key in _without_doubles(item, ("type", "role"))}
