"""With which session a call begins, and that whoever takes it before it has goes on with that one."""

import json
from itertools import count
from typing import Any

import pytest

from relay.core.actions import Note, Send, Side
from relay.core.bridge import Bridge, Rules
from relay.core.conversation import opening_update
from relay.core.rebuild import Rebuild
from relay.core.sessions import merged
from relay.core.standing import OPENING_FACT

NOW, WALL = 50.0, 1_700_000_000.0
OPENING = {"type": "realtime", "instructions": "Be kind.", "audio": {"input": {"turn_detection": None}}}
OWN = {"id": "s", "type": "realtime", "instructions": "Default", "audio": {"input": {"turn_detection": {"type": "x"}}}}
SESSION = {**OWN, **OPENING}


def event(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode()


class Call:
    """A call that is to begin with a session; what is noted of it is what the next node knows."""

    def __init__(self, facts: dict[str, bytes] | None = None, opening: dict[str, Any] | None = OPENING) -> None:
        ids = count(1)
        self.bridge = Bridge(Rules(expects_opening=facts is None and bool(opening)), lambda: f"event_{next(ids)}")
        self.view = self.bridge.conversation.view
        self.facts: dict[str, bytes] = dict(facts or {})
        self.opening = opening or {}
        if facts is None:
            self.act(self.view.promise(self.opening))
        else:
            self.act(self.bridge.restore(dict(facts), [], WALL).follows)

    def act(self, actions: Any) -> Any:
        for each in actions:
            if isinstance(each, Note) and each.value is not None:
                self.facts[each.name] = each.value
            elif isinstance(each, Note):
                self.facts.pop(each.name, None)
        return actions

    def begin(self) -> "Call":
        self.act(self.bridge.on_model_opened(opening_update(self.opening) if self.opening else None, NOW))
        self.act(self.bridge.on_announced((), NOW, WALL))
        return self

    def model(self, kind: str, **fields: Any) -> Any:
        return self.act(self.bridge.on_model_text(event(kind, **fields), NOW, WALL))

    def told(self) -> list[Any]:
        """The settings that another model leg is given."""
        ids = count(1)
        rebuild = Rebuild(self.bridge.conversation.memory, lambda: f"own_{next(ids)}", 1, apply_seconds=5.0)
        return [json.loads(each)["session"] for each in rebuild.start(NOW)]


@pytest.mark.parametrize("moment", ["admitted", "dialled", "created"])
def test_a_call_that_moves_before_it_has_its_session_has_it_where_it_goes_on(moment: str):
    """What its model said of itself is not the call's: a page that connects twice would talk to nobody's agent."""
    call = Call()
    if moment != "admitted":
        call.begin()
    if moment == "created":
        call.model("session.created", session=OWN)
        assert json.loads(call.facts["session"])["instructions"] == "Default"
    assert Call(call.facts).told() == [OPENING]


def test_what_was_promised_is_known_until_some_model_has_it():
    """The second node may be gone as soon as the first."""
    second = Call(Call().facts)
    third = Call(second.facts)
    assert third.told() == [OPENING]
    third.act(third.bridge.on_model_changed(SESSION, [], None, NOW, WALL))
    assert OPENING_FACT not in third.facts
    assert Call(third.facts).told() == [{key: SESSION[key] for key in ("type", "instructions", "audio")}]


def test_once_the_model_has_it_the_session_is_what_the_model_says():
    """A client may have changed it since."""
    call = Call().begin()
    call.model("session.created", session=OWN)
    assert OPENING_FACT in call.facts
    call.model("session.updated", session=SESSION)
    assert OPENING_FACT not in call.facts
    call.model("session.updated", session={**SESSION, "instructions": "Be brief."})
    assert Call(call.facts).told()[0]["instructions"] == "Be brief."


@pytest.mark.parametrize("how", ["refused", "unanswered"])
def test_a_session_that_came_to_nothing_is_promised_no_more(how: str):
    """The client was shown the session as it is."""
    call = Call().begin()
    call.model("session.created", session=OWN)
    if how == "refused":
        (update,) = [json.loads(opening_update(OPENING))]
        actions = call.model("error", error={"code": "unknown_parameter", "event_id": update["event_id"]})
    else:
        actions = call.act(call.bridge.on_tick(NOW + 60, WALL))
    shown = [json.loads(each.payload) for each in actions if isinstance(each, Send) and each.side is Side.CLIENT]
    assert [each["session"]["instructions"] for each in shown] == ["Default"]
    assert OPENING_FACT not in call.facts


def test_a_model_leg_that_is_lost_before_it_answered_leaves_the_promise():
    """The next one is told the same; it is kept when that one has answered."""
    call = Call().begin()
    call.model("session.created", session=OWN)
    call.act(call.bridge.on_model_lost(NOW).follows)
    told = call.act(call.bridge.on_model_changed(OWN, [], None, NOW, WALL))
    assert [json.loads(each.payload)["session"] for each in told if isinstance(each, Send)] == [OPENING]
    assert OPENING_FACT in call.facts
    call.model("session.updated", session=SESSION)
    assert OPENING_FACT not in call.facts


def test_a_call_without_a_session_of_its_own_promises_none():
    """Nothing is written for it."""
    call = Call(opening=None).begin()
    call.model("session.created", session=OWN)
    assert OPENING_FACT not in call.facts


@pytest.mark.parametrize("fact", [b"", b"no json", b"[]", b"\xff"], ids=repr)
def test_a_promise_that_cannot_be_read_is_none(fact: bytes):
    """Another version wrote it: the session goes on as it was."""
    call = Call({OPENING_FACT: fact, "session": json.dumps(SESSION).encode()})
    assert call.told() == [{key: SESSION[key] for key in ("type", "instructions", "audio")}]


@pytest.mark.parametrize(
    ("settings", "over", "found"),
    [
        ({}, {}, {}),
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 1}, {"a": 2, "b": 3}, {"a": 2, "b": 3}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"tracing": {"x": 1}}, {"tracing": {"y": 2}}, {"tracing": {"y": 2}}),
        (
            {"audio": {"input": {"turn_detection": {"type": "a", "x": 1}}, "output": {"voice": "v"}}},
            {"audio": {"input": {"turn_detection": {"type": "b"}, "format": 1}}},
            {"audio": {"input": {"turn_detection": {"type": "b"}, "format": 1}, "output": {"voice": "v"}}},
        ),
        ({"audio": {"output": {"voice": "v"}}}, {"audio": {"output": {"speed": 2}}}, None),
        ({"audio": {"output": {"voice": "v"}}}, {"audio": None}, {"audio": None}),
        ({"audio": None}, {"audio": {"output": {"voice": "v"}}}, {"audio": {"output": {"voice": "v"}}}),
    ],
    ids=["nothing", "below", "over", "null", "whole", "audio", "output", "no audio over", "no audio below"],
)
def test_a_client_secrets_session_is_laid_over_its_agents(
    settings: dict[str, Any], over: dict[str, Any], found: dict[str, Any] | None
):
    """Setting by setting; what servers replace as one is replaced as one."""
    before = json.dumps([settings, over])
    both = {"audio": {"output": {"voice": "v", "speed": 2}}} if found is None else found
    assert merged(settings, over) == both
    assert json.dumps([settings, over]) == before
