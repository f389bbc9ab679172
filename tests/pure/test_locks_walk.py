"""Walks of a hostile browser with a lax model: whatever it says, the server's settings stay, and it never sees them.

The model reads JSON as laxly as any server does, and worse: names by their letters in any case, every one of several
keys with one name, every event for whatever type it could be. Whatever a message could mean to some server it means to
this one.
"""

import json
from itertools import count
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.actions import Note, Send, Side
from relay.core.bridge import Bridge, Phase, Rules
from relay.core.conversation import opening_update
from relay.core.locks import Locks, lock
from relay.core.messages import Injection

NOW, WALL = 50.0, 1_700_000_000.0
SERVERS: dict[str, Any] = {
    "instructions": "secret-words",
    "tools": ["secret-tool"],
    "max_output_tokens": "secret-most",
    "voice": "secret-voice",
}
OPENING = {
    "type": "realtime",
    **{key: value for key, value in SERVERS.items() if key != "voice"},
    "audio": {"output": {"voice": SERVERS["voice"]}},
}
LOCKED = frozenset({"instructions", "prompt", "tools", "model", "max_output_tokens", "audio.output.voice"})
OLD_NAMES = {"prompt": "instructions", "maxresponseoutputtokens": "maxoutputtokens"}


def letters(name: object) -> str:
    return "".join(each for each in str(name).casefold() if each.isalnum())


class Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands, with all its keys."""

    def all(self, name: str) -> list[Any]:
        return [value for key, value in self if letters(key) == letters(name)]


class LaxModel:
    """A model's server with one session; ``voice`` stands for the place that it has in the GA shape, too."""

    def __init__(self, session: dict[str, Any] | None = None) -> None:
        self.session = dict(session or {"type": "realtime", "id": "s", "model": "m"})
        self.instructed: list[str] = []  # what it was told by items and responses beside its session

    def hears(self, message: bytes) -> list[bytes]:
        event = json.loads(message, object_pairs_hook=Pairs)
        kinds = {letters(kind) for kind in event.all("type")}
        answers = []
        for session in event.all("session"):
            self._set(session)
        for response in event.all("response"):
            self._respond(response)
            answers.append({"type": "response.created", "response": {"id": "r", **self.session}})
        for item in event.all("item"):
            self._item(item)
        if kinds & {"sessionupdate", "transcriptionsessionupdate"}:
            answers.append({"type": "session.updated", "session": self.session})
        return [json.dumps(answer).encode() for answer in answers]

    def _set(self, session: Any) -> None:
        if not isinstance(session, Pairs):
            self.instructed.append(str(session))  # whatever it is
            return
        for key, value in session:
            name = OLD_NAMES.get(letters(key), letters(key))
            self.session |= {known: value for known in SERVERS if letters(known) == name}
            if name in {"type", "model"}:
                self.session[name] = value
        for audio in session.all("audio"):
            for output in audio.all("output") if isinstance(audio, Pairs) else [None]:
                voices = output.all("voice") if isinstance(output, Pairs) else [None]
                for voice in voices:
                    self.session["voice"] = voice

    def _respond(self, response: Any) -> None:
        if not isinstance(response, Pairs):
            self.instructed += [] if response is None else [str(response)]
            return
        for name in (*SERVERS, *OLD_NAMES, "model"):
            self.instructed += map(str, response.all(name))
        for audio in response.all("audio"):
            self.instructed += [] if isinstance(audio, Pairs) and not audio.all("output") else [str(audio)]
        for given_ in response.all("input"):
            for item in given_ if isinstance(given_, list) and not isinstance(given_, Pairs) else [given_]:
                self._item(item)

    def _item(self, item: Any) -> None:
        kinds, roles = (item.all("type"), item.all("role")) if isinstance(item, Pairs) else ([], [])
        is_said = (kinds == ["message"] and roles in (["user"], ["assistant"])) or (
            kinds == ["function_call_output"] and roles in ([], [None])
        )
        if not is_said:
            self.instructed.append(str(item))


class Walk:
    """One call, its browser and its model; now and then a backend's client is there in the browser's place."""

    def __init__(self) -> None:
        self.model = LaxModel()
        self.kept: dict[str, bytes] = {}
        self.ids = count(1)
        self.is_browser = True
        self.browser = Locks(lock(LOCKED, OPENING), lockable=LOCKED)
        self.bridge = self.new_bridge(self.browser)
        self.act(self.bridge.on_model_opened(opening_update(OPENING), NOW))
        self.act(self.bridge.on_announced((), NOW, WALL))

    def new_bridge(self, locks: Locks | None) -> Bridge:
        return Bridge(Rules(locks=locks), lambda: f"event_{next(self.ids)}")

    def act(self, actions: Any) -> None:
        for each in actions:
            if isinstance(each, Note) and each.value is not None:
                self.kept[each.name] = each.value
            elif isinstance(each, Send) and each.side is Side.MODEL:
                for answer in self.model.hears(each.payload):
                    self.act(self.bridge.on_model_text(answer, NOW, WALL))
            elif isinstance(each, Send) and self.is_browser:
                assert b"secret" not in each.payload

    @property
    def session(self) -> dict[str, Any]:
        return self.bridge.conversation.memory.session

    def greeting(self) -> list[bytes]:
        self.bridge.conversation.view.is_resumed = True
        return [self.bridge.conversation.view.created(self.session)]

    # What happens

    def say(self, message: bytes) -> None:
        if self.is_browser and self.bridge.phase not in {Phase.AWAY, Phase.ALONE}:
            self.act(self.bridge.on_client_text(message, NOW))

    def lose_model(self) -> None:
        if self.bridge.phase.has_model:
            self.act(self.bridge.on_model_lost(NOW).follows)

    def have_model(self) -> None:
        self.model.session = dict(self.session)
        self.act(self.bridge.on_model_changed(self.session, [], None, NOW, WALL))

    def lose_client(self) -> None:
        if self.bridge.phase in {Phase.OPEN, Phase.REDIALLING}:
            self.bridge.on_client_lost()

    def come(self, *, is_browser: bool) -> None:
        self.lose_client()
        self.is_browser = is_browser
        rules = Rules(locks=Locks(frozenset(), lockable=LOCKED) if is_browser else None)
        self.act(self.bridge.on_client_back(rules, self.greeting(), NOW, WALL))

    def move(self, *, is_browser: bool) -> None:
        self.act(self.bridge.conversation.state())
        self.is_browser = is_browser
        self.bridge = self.new_bridge(Locks(frozenset(), lockable=LOCKED) if is_browser else None)
        gone = self.bridge.restore(dict(self.kept), [], WALL)
        self.act(gone.follows)
        self.have_model()
        self.act(self.bridge.on_announced([*self.greeting(), *gone.to_client], NOW, WALL))

    def inject(self) -> None:
        body = {"type": "session.update", "session": {"type": "realtime", "instructions": SERVERS["instructions"]}}
        self.act(self.bridge.inject(Injection("m", "", body, None, WALL + 60), NOW, WALL))

    def step(self, step: Any) -> None:
        match step:
            case bytes():
                self.say(step)
            case "lose model":
                self.lose_model()
            case "have model" if not self.bridge.phase.has_model:
                self.have_model()
            case "lose client":
                self.lose_client()
            case ("come", is_browser):
                self.come(is_browser=is_browser)
            case ("move", is_browser):
                self.move(is_browser=is_browser)
            case "backend":
                self.inject()

    def check(self) -> None:
        assert {key: self.model.session[key] for key in SERVERS} == SERVERS
        assert (self.model.session["type"], self.model.session["model"]) == ("realtime", "m")
        assert self.model.instructed == []


# What a browser says: events in all the shapes that they must not have

NAMES = st.sampled_from(
    [
        *("instructions", "Instructions", "in\u017ftructions", "prompt", "tools", "TOOLS", "tool\u017f", "model"),
        *("max_output_tokens", "max_response_output_tokens", "MaxOutputTokens", "voice", "Voice", "audio", "Audio"),
        *("output", "Output", "input", "INPUT", "type", "Type", "role", "Role", "content", "metadata", "speed"),
    ]
)
TYPES = [
    *("session.update", "transcription_session.update", "response.create", "conversation.item.create"),
    *("session.instructions.append", "Session.Update", "input_audio_buffer.append", "response.cancel"),
]
ROLES = ["user", "assistant", "system", "System", "developer", "message", "function_call_output", "realtime"]


def render(pairs: Any) -> str:
    """An object with all its keys; what is not a list of pairs is JSON already."""
    return "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in pairs) + "}"


LEAVES = st.sampled_from([*map(json.dumps, ROLES), "null", "5", "[]", "{}", '"evil"', '[{"type":"function"}]', "true"])
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(st.tuples(NAMES, inner), max_size=4).map(render)
        | st.lists(inner, max_size=2).map(lambda each: f"[{','.join(each)}]")
    ),
    max_leaves=8,
)
ITEMS = (
    st.lists(st.tuples(st.sampled_from(["type", "role", "Type", "Role", "content"]), LEAVES), max_size=5).map(render)
    | OBJECTS
)
BODIES = st.tuples(st.sampled_from(["session", "response", "Session", "Response", "sess_ion"]), OBJECTS) | st.tuples(
    st.sampled_from(["item", "Item"]), ITEMS
)
RESPONSES = st.tuples(
    st.just("response"),
    st.lists(
        st.tuples(st.sampled_from(["input", "Input"]), st.lists(ITEMS, max_size=2).map(lambda i: f"[{','.join(i)}]"))
    ).map(render),
)
KINDS = st.tuples(
    st.sampled_from(["type", "type", "type", "Type"]), st.sampled_from([json.dumps(each) for each in TYPES])
)
PLAIN = st.tuples(st.sampled_from(TYPES[:4]), BODIES | RESPONSES).map(
    lambda each: render([("type", json.dumps(each[0])), each[1]])
)
MESSAGES = (PLAIN | st.lists(KINDS | BODIES | RESPONSES, max_size=5).map(render)).map(str.encode)
ATTACKS = st.sampled_from(
    [
        b'{"type":"session.update","session":{"type":"realtime","instructions":"evil","speed":2}}',
        b'{"type":"session.update","session":{"type":"realtime","audio":null}}',
        b'{"type":"session.update","session":{"Type":"transcription"}}',
        b'{"type":"session.update","session":{"tools":[]},"session":{}}',
        b'{"type":"response.create","response":{"conversation":"none","instructions":"evil"}}',
        b'{"type":"conversation.item.create","item":{"type":"message","role":"user","Role":"system"}}',
        b'{"type":"conversation.item.create","item":{"type":"message","role":"system"}}',
    ]
)
TURNS = st.sampled_from(
    [
        *("lose model", "lose model", "have model", "lose client", "backend"),
        *(("come", True), ("come", False), ("move", True), ("move", False)),
    ]
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(ATTACKS | MESSAGES | TURNS, min_size=1, max_size=16))
def test_no_walk_of_a_browser_changes_or_shows_what_is_locked(steps):
    """However events, clients, model legs and nodes come and go."""
    walk = Walk()
    walk.check()
    for step in steps:
        walk.step(step)
        walk.check()
    if not walk.bridge.phase.has_model:
        walk.have_model()
        walk.check()
