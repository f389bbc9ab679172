"""Random walks through a call whose model legs die, each the same every time: nothing is missed, nothing said twice.

A person, a client and backends do what they like; the model leg is lost at any moment, or replaced while it lives, and
another one gets the conversation as in life (``relay.core.rebuild``); the client goes away and comes back. The client
is as strict as an SDK: what it could not make sense of fails at once.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import pytest

from relay.core.actions import Note, Send, Side
from relay.core.bridge import Bridge, Phase, Rules
from relay.core.conversation import opening_update
from relay.core.messages import WHEN, Injection, Settled
from relay.core.realtime import encode
from relay.core.rebuild import ANCHOR, Rebuild
from tests.support.mortal_model import Answer, MortalModel
from tests.support.small_model import Clock

APPLY_SECONDS = 4.0
SECONDS = 20.0  # of a walk
LATE_SECONDS = 2.0  # after which a leg that lives is replaced in any pause
WALKS = 25
ENDS = {"answered", "failed", "expired", "rejected"}
RULES = {
    "plain": Rules(apply_seconds=APPLY_SECONDS, redials=True),
    "opening": Rules(apply_seconds=APPLY_SECONDS, redials=True, expects_opening=True),
    "transcription": Rules(apply_seconds=APPLY_SECONDS, redials=True, transcription={"model": "t"}, told_to_clear=True),
}
OPENING = opening_update({"type": "realtime", "instructions": "agent"})


class Client:
    """An SDK: it knows what it has seen, and every event must fit to that."""

    def __init__(self) -> None:
        self.session: dict[str, Any] | None = None
        self.items: list[str] = []
        self.seen: list[str] = []  # items ever, as they came
        self.done: set[str] = set()
        self.open: str | None = None  # the response of the conversation that is under way
        self.asides: set[str] = set()
        self.ended: set[str] = set()
        self.got: list[dict[str, Any]] = []
        self.calls: list[str] = []  # tool calls to be run

    def take(self, event: dict[str, Any]) -> None:
        self.got.append(event)
        kind = event["type"]
        if kind == "session.created":
            assert self.session is None, "a second session.created"
            self.session = event["session"]
        elif kind == "session.updated":
            assert self.session is not None, "session.updated before session.created"
            self.session = event["session"]
        elif kind == "response.created":
            self._on_created(event["response"])
        elif kind == "response.done":
            self._on_done(event["response"])
        elif kind.startswith("conversation.item.") and "item" in event:
            self._on_item(kind, event)
        elif kind == "conversation.item.deleted":
            self.items.remove(event["item_id"])
        elif kind == "response.output_item.done":
            item = event["item"]
            if item["type"] == "function_call" and item["status"] == "completed":
                assert item["call_id"] not in self.calls
                self.calls.append(item["call_id"])
        if "response_id" in event and kind.startswith("response."):
            assert event["response_id"] in {self.open, *self.asides}, "of a response that is not under way"

    def _on_created(self, response: dict[str, Any]) -> None:
        assert response["id"] not in {self.open, *self.asides, *self.ended}
        if response["conversation_id"] is None:
            self.asides.add(response["id"])
        else:
            assert self.open is None, "two responses at once"
            self.open = response["id"]

    def _on_done(self, response: dict[str, Any]) -> None:
        assert response["id"] in {self.open, *self.asides}, "the end of a response that is not under way"
        self.ended.add(response["id"])
        self.asides.discard(response["id"])
        self.open = None if self.open == response["id"] else self.open

    def _on_item(self, kind: str, event: dict[str, Any]) -> None:
        item_id = event["item"]["id"]
        before = event.get("previous_item_id")
        assert not item_id.startswith((ANCHOR, "hidden")), "not for the client's eyes"
        assert before is None or not before.startswith((ANCHOR, "hidden"))
        if kind.endswith(".added"):
            assert item_id not in self.seen, "an item came twice"
            self.seen.append(item_id)
            self.items.append(item_id)
        elif kind.endswith(".done"):
            assert item_id in self.seen, "the end of an unknown item"
            assert item_id not in self.done, "an item ended twice"
            self.done.add(item_id)

    def count(self, kind: str) -> int:
        return sum(each["type"] == kind for each in self.got)


@dataclass
class Fate:
    """A message, and what became of it."""

    injection: Injection
    statuses: list[str] = field(default_factory=list)

    @property
    def is_ended(self) -> bool:
        injection = self.injection
        is_answered_for = injection.response is not None and injection.wants_answer
        return not {*self.statuses}.isdisjoint(ENDS if is_answered_for else {*ENDS, "applied"})


class Walk:
    """One call. ``name`` of a message is also the instructions of the response that it asks for."""

    def __init__(self, seed: int, rules: Rules) -> None:
        self.random = Random(seed)
        self.rules = rules
        self.clock = Clock()
        self.answers: list[Answer] = []
        self.client = Client()
        self.fates: dict[str, Fate] = {}
        self.asked: dict[str, dict[str, Any]] = {}  # the client's events by their ids
        self.asked_at: dict[str, float] = {}
        self._last_asked, self._created_then = "", 0
        self.commits: list[float] = []  # what the person said, when the relay heard of it
        self.losses: list[Any] = []
        self.rolls = 0
        self.cuts: list[dict[str, Any]] = []  # what the relay itself had cut
        self.begun: set[str] = set()  # items of responses whose leg died
        self.facts: dict[str, bytes] = {}
        self.rebuild: Rebuild | None = None
        self._legs = 0
        self._alarm = 0
        self._arrival: dict[Any, float] = {}
        ids = iter(range(1 << 30))
        self.bridge = Bridge(rules, lambda: f"event_{next(ids)}")
        self.model = self._new_model(self._to_bridge)
        self.model.open()
        self.clock.run(self.random.choice((0.0, 0.0, 0.3)))
        self._act(self.bridge.on_model_opened(OPENING if rules.expects_opening else None, self.clock.now))
        self.clock.after(self.random.choice((0.0, 0.02, 0.5)), self._announce)

    # The legs

    def _new_model(self, say: Any) -> MortalModel:
        self._legs += 1
        leg = self._legs
        return MortalModel(
            self.clock,
            self.random,
            leg,
            self.answers,
            lambda event: self._carry(("down", leg), partial(say, leg, event)),
        )

    def _carry(self, way: Any, act: Any) -> None:
        self._arrival[way] = max(
            self._arrival.get(way, 0.0), self.clock.now + self.random.choice((0.0, 0.001, 0.02, 0.2))
        )
        self.clock.at(self._arrival[way], act)

    def _to_bridge(self, leg: int, event: dict[str, Any]) -> None:
        if leg != self.model.leg or self.model.is_dead:
            return
        self._on_told(event)
        self._act(self.bridge.on_model_text(encode(event), self.clock.now, self.clock.now))
        self._set_alarm()

    def _on_told(self, event: dict[str, Any]) -> None:
        """What the relay knows now."""
        if event["type"] == "response.done":
            next(each for each in self.answers if each.id == event["response"]["id"]).is_told = True
        elif event["type"] == "response.output_item.done" and event["item"]["type"] == "function_call":
            if event["item"]["status"] == "completed":
                answer = next(each for each in self.answers if each.id == event["response_id"])
                answer.calls.append(event["item"]["call_id"])
        elif event["type"] == "input_audio_buffer.committed":
            self.commits.append(self.clock.now)

    def _announce(self) -> None:
        if self.bridge.phase is Phase.ANNOUNCING:
            self._act(self.bridge.on_announced((), *self._times))
        else:
            self.clock.after(0.1, self._announce)

    def lose(self) -> None:
        """The model leg dies, with all that was under way on it."""
        if not self.bridge.phase.has_model:
            return
        self.model.is_dead = True
        self.begun |= {item["id"] for each in self.answers if not each.is_told for item in each.output}
        gone = self.bridge.on_model_lost(self.clock.now)
        self.losses.append(gone)
        self._act(gone.follows)
        self.clock.after(self.random.choice((0.0, 0.1, 1.0)), self._build)

    def roll_over(self) -> None:
        """Another leg is made ready while this one lives."""
        if self.rebuild is None and self.bridge.phase is Phase.OPEN:
            self._build()

    def _build(self) -> None:
        rebuild = Rebuild(self.bridge.conversation.memory, self.bridge.new_event_id, self._legs, APPLY_SECONDS)
        self.rebuild = rebuild
        self.is_behind = False
        model = self._new_model(lambda leg, event: self._to_rebuild(rebuild, model, leg, event))
        model.open()
        self._tell(model, rebuild.start(self.clock.now))
        self._look(rebuild, model, self.clock.now)
        if self.random.random() < 0.2:  # it dies before it is used
            self.clock.after(self.random.random() * 0.3, partial(self._fail, rebuild, model))

    def _fail(self, rebuild: Rebuild, model: MortalModel) -> None:
        if self.rebuild is rebuild:
            model.is_dead = True
            self.rebuild = None
            self._build()

    def _to_rebuild(self, rebuild: Rebuild, model: MortalModel, leg: int, event: dict[str, Any]) -> None:
        if self.model is model:
            self._to_bridge(leg, event)
        elif not model.is_dead:
            self._tell(model, rebuild.on_message(encode(event), self.clock.now))

    def _tell(self, model: MortalModel, events: list[bytes]) -> None:
        for event in events:
            self._carry(("up", model.leg), partial(model.take, json.loads(event)))

    def _look(self, rebuild: Rebuild, model: MortalModel, since: float) -> None:
        """As ``relay.modelside``: with everything told, at a quiet moment; in any pause if it is late."""
        if self.rebuild is not rebuild:
            return
        is_lost = self.model.is_dead
        is_late = self.clock.now > since + LATE_SECONDS and self.bridge.may_be_cut(self.clock.now)
        if is_lost or is_late or self.bridge.is_quiet(self.clock.now):
            if self.is_behind:
                self.is_behind = False
                self._tell(model, rebuild.catch_up(self.clock.now))
            if rebuild.is_ready:
                self.rebuild = None
                self.rolls += not is_lost
                self.model.is_dead, self.model = True, model
                changed = self.bridge.on_model_changed(
                    rebuild.session, rebuild.restored, rebuild.anchor_id, *self._times
                )
                assert rebuild.skipped == [], rebuild.skipped
                self._act(changed)
                self._set_alarm()
                return
        self.clock.after(0.05, partial(self._look, rebuild, model, since))

    @property
    def _times(self) -> tuple[float, float]:
        return self.clock.now, self.clock.now

    def _act(self, actions: Any) -> None:
        for action in actions:
            match action:
                case Send(Side.MODEL, payload):
                    assert self.bridge.phase not in {Phase.REDIALLING, Phase.ALONE}
                    event = json.loads(payload)
                    self._on_sent(event)
                    self._carry(("up", self.model.leg), partial(self.model.take, event))
                case Send(Side.CLIENT, payload):
                    assert self.bridge.phase not in {Phase.AWAY, Phase.ALONE, Phase.DIALLING, Phase.ANNOUNCING}
                    self.client.take(json.loads(payload))
                case Settled(name, _, status):
                    self._settle(self.fates[name], status)
                case Note(name, value):
                    self.is_behind = True
                    self.facts = {**self.facts, name: value} if value is not None else self.facts
                    if value is None:
                        self.facts.pop(name, None)
        self._set_alarm()

    def _on_sent(self, event: dict[str, Any]) -> None:
        if event["type"] == "conversation.item.truncate" and event["event_id"].startswith("r."):
            self.cuts.append(event)
        elif event["type"] == "response.cancel":  # whether it comes there or not: nobody wants to hear more of it
            for each in self.answers:
                each.was_cancelled |= each.leg == self.model.leg and not each.is_told

    def _settle(self, fate: Fate, status: str) -> None:
        assert not fate.is_ended, (fate, status)
        assert status not in fate.statuses
        fate.statuses.append(status)

    def _set_alarm(self) -> None:
        due = self.bridge.due(*self._times)
        self._alarm += 1
        if due is not None:
            self.clock.at(max(due, self.clock.now + 0.01), partial(self._tick, self._alarm))

    def _tick(self, alarm: int) -> None:
        if alarm == self._alarm:
            self._act(self.bridge.on_tick(*self._times))

    # What people and programs do

    def go(self) -> None:
        doings = [
            *(self._put, self._put, self._put_result, self._put_result, self._ask, self._ask, self._say, self._say),
            *(
                self._speak,
                self._run_tools,
                self._touch,
                self._touch,
                self.lose,
                self.roll_over,
                self._leave,
                self._cancel,
            ),
        ]
        while self.clock.now < SECONDS:
            self.clock.run(self.clock.now + self.random.choice((0.0, 0.01, 0.05, 0.1, 0.3, 1.0)))
            self.random.choice(doings)()
        self.clock.run(SECONDS + 60.0)

    def _client_says(self, kind: str, **fields: Any) -> str | None:
        if self.bridge.phase in {Phase.AWAY, Phase.ALONE}:
            return None
        event_id = f"e{len(self.asked)}"
        event = {"type": kind, "event_id": event_id, **fields}
        self.asked[event_id], self.asked_at[event_id] = event, self.clock.now
        self._act(self.bridge.on_client_text(json.dumps(event).encode(), self.clock.now))
        return event_id

    def _say(self) -> None:
        if self.random.random() < 0.5:
            self._client_says("session.update", session={"type": "realtime", "instructions": f"u{len(self.asked)}"})
            return
        item: dict[str, Any] = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}
        if self.random.random() < 0.5:
            item["id"] = f"mine_{len(self.asked)}"
        self._client_says("conversation.item.create", item=item)

    def _ask(self) -> None:
        """The client wants an answer, of the conversation or beside it; as SDKs do, not while one is under way."""
        aside = {"conversation": "none"} if self.random.random() < 0.2 else {}
        if aside or (self.client.open is None and not self._has_asked):
            event_id = self._client_says("response.create", response={"instructions": f"q{len(self.asked)}", **aside})
            if event_id is not None and not aside:
                self._last_asked, self._created_then = event_id, self.client.count("response.created")

    @property
    def _has_asked(self) -> bool:
        refused = {each["error"]["event_id"] for each in self.client.got if each["type"] == "error"}
        return self._last_asked not in {"", *refused} and self._created_then == self.client.count("response.created")

    def questions(self) -> dict[str, str]:
        return {
            event_id: event["response"]["instructions"]
            for event_id, event in self.asked.items()
            if event["type"] == "response.create"
        }

    def _cancel(self) -> None:
        if self.client.open is not None:
            self._client_says("response.cancel")

    def _touch(self) -> None:
        kind = self.random.choice(("delete", "retrieve", "truncate"))
        wanted = {"truncate": ("said_",), "delete": ("said_", "mine_", "item_", "heard_")}.get(kind, ("",))
        items = [each for each in self.client.items if each.startswith(wanted)]
        touched = {each.get("item_id") for each in self.asked.values() if each["type"].endswith("delete")}
        items = [each for each in items if each not in touched and each in self.client.done]
        if items:
            place = {"content_index": 0, "audio_end_ms": 100} if kind == "truncate" else {}
            self._client_says(f"conversation.item.{kind}", item_id=self.random.choice(items[-3:]), **place)

    def _run_tools(self) -> None:
        for call in self.client.calls[-2:]:
            if call not in self._results and self.random.random() < 0.3:
                item = {"id": f"ran_{call}", "type": "function_call_output", "call_id": call, "output": "{}"}
                self._client_says("conversation.item.create", item=item)

    @property
    def _results(self) -> set[str]:
        theirs = [each["item"] for each in self.asked.values() if "item" in each]
        ours = [each.injection.item or {} for each in self.fates.values()]
        return {str(item.get("call_id")) for item in [*theirs, *ours]}

    def _leave(self) -> None:
        """The client goes away, and comes back."""
        if self.bridge.phase in {Phase.OPEN, Phase.REDIALLING}:
            self.bridge.on_client_lost()
            self.clock.after(self.random.choice((0.0, 0.2, 2.0)), self._come_back)

    def _come_back(self) -> None:
        self._act(self.bridge.on_client_back(self.rules, (), *self._times))

    def _speak(self) -> None:
        if not self.model.is_dead and self.bridge.is_announced:
            self.model.hear(self.random.choice((0.05, 0.5, 1.0)))

    def _inject(self, item: dict[str, Any] | None, *, wants: bool, **changes: Any) -> None:
        name = f"m{len(self.fates)}"
        event = None
        if item is not None:
            item["id"] = f"{'hidden' if not changes.get('visible', True) else 'item'}_{name}"
            event = {"type": "conversation.item.create", "item": item}
        expires_at = self.clock.now + self.random.choice((0.5, 20.0, 20.0))
        response = {"instructions": name} if wants else None
        injection = Injection(name, (item or {}).get("id", ""), event, response, expires_at)._replace(**changes)
        self.fates[name] = Fate(injection)
        self._act(self.bridge.inject(injection, *self._times))

    def _put(self) -> None:
        if self.random.random() < 0.2:
            self._inject(None, wants=True, wants_answer=self.random.random() < 0.5)
            return
        item = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "x"}]}
        changes = {"when": self.random.choice(WHEN), "visible": self.random.random() < 0.7}
        self._inject(item, wants=self.random.random() < 0.6, **changes)

    def _put_result(self) -> None:
        calls = [call for answer in self.answers[-3:] for call in answer.calls if call not in self._results]
        for call in calls:
            if self.random.random() < 0.7:
                item = {"type": "function_call_output", "call_id": call, "output": "{}"}
                self._inject(item, wants=self.random.random() < 0.8, when=self.random.choice(WHEN))

    # What came of it

    @property
    def gone(self) -> set[str]:
        """Items that the model may lack: their response died with a leg, or nobody heard anything of them."""
        unheard = {each["item_id"] for each in self.client.got if each["type"].endswith("truncated")}
        items = [each["item"] for each in self.client.got if each["type"] == "conversation.item.done"]
        return self.begun | unheard | {item["id"] for item in items if item.get("status") == "incomplete"}

    def whole(self, label: str) -> list[Answer]:
        """The responses with this label whose end the relay was told, and not a leg's death."""
        return [each for each in self.answers if each.label == label and each.is_told]

    def is_doubtful(self, name: str) -> bool:
        """Whether the server began a response by itself just when the client asked for one.

        The relay cannot tell which is which: if the leg dies then, the client's is asked for again without its fields,
        or taken for answered.
        """
        return any(abs(each.begun_at - self.asked_at[name]) < 0.5 for each in self.answers if each.label == "")

    def halves(self, label: str) -> list[Answer]:
        """Those that were interrupted by a leg's death, and not to be asked for again."""
        return [
            each
            for each in self.answers
            if each.label == label and not each.is_told and (each.calls or each.was_cancelled or each.is_aside)
        ]


@pytest.fixture(scope="module", params=RULES.items(), ids=lambda param: param[0])
def walks(request) -> list[Walk]:
    """Walks with one kind of call; they are the same in every run."""
    done = []
    for seed in range(WALKS):
        walk = Walk(seed, request.param[1])
        walk.go()
        done.append(walk)
    return done


def test_every_message_has_its_end_and_none_twice(walks):
    """A publisher waits for it."""
    for walk in walks:
        assert [fate for fate in walk.fates.values() if not fate.is_ended] == []


def test_what_was_told_applied_is_in_the_conversation_that_survives_and_nothing_else(walks):
    """Once and where the person's model is; of a message that came to nothing the model knows nothing."""
    for walk in walks:
        deleted = {each["item_id"] for each in walk.client.got if each["type"] == "conversation.item.deleted"}
        for fate in walk.fates.values():
            item_id = fate.injection.item_id
            if item_id and item_id not in deleted:
                assert (item_id in walk.model.items) == ("applied" in fate.statuses), fate


def test_the_client_and_the_model_know_the_same_conversation(walks):
    """In the same order; but for what is hidden, and what was begun and died with its leg."""
    for walk in walks:
        theirs = [each for each in walk.model.items if not each.startswith(("hidden", ANCHOR))]
        assert [each for each in walk.client.items if each in walk.model.items] == theirs
        lost = {each for each in walk.client.items if each not in walk.model.items}
        assert lost <= walk.gone, lost


def test_messages_of_one_kind_keep_their_order(walks):
    """In the conversation that survives, whatever leg took them first."""
    for walk in walks:
        for when in WHEN:
            wanted = [fate.injection.item_id for fate in walk.fates.values() if fate.injection.when == when]
            assert [each for each in walk.model.items if each in {*wanted}] == [
                each for each in wanted if each in walk.model.items
            ]


def test_the_session_is_as_the_client_wanted_it_last(walks):
    """With each of its updates answered once; where it wanted nothing it is the agent's."""
    for walk in walks:
        wanted = [each["session"]["instructions"] for each in walk.asked.values() if each["type"] == "session.update"]
        first = "agent" if walk.rules.expects_opening else "default"
        assert walk.model.session["instructions"] == [first, *wanted][-1]
        assert walk.client.session is not None
        assert walk.client.session["instructions"] == walk.model.session["instructions"]
        assert walk.client.count("session.updated") == len(wanted)
        created = next(each for each in walk.client.got if each["type"] == "session.created")
        assert created["session"]["instructions"] == first


def test_what_the_client_asks_for_has_one_answer(walks):
    """What it deleted is gone, what it asked for was shown, what it put in is there: once, or it was refused."""
    answers = {"create": "added", "delete": "deleted", "retrieve": "retrieved", "truncate": "truncated"}
    for walk in walks:
        refused = {each["error"]["event_id"] for each in walk.client.got if each["type"] == "error"}
        for verb, answer in answers.items():
            kind = f"conversation.item.{verb}"
            sent = [each for event_id, each in walk.asked.items() if each["type"] == kind and event_id not in refused]
            got = [each for each in walk.client.got if each["type"] == f"conversation.item.{answer}"]
            if verb == "create":
                theirs = [each["item"]["id"] for each in sent if "id" in each["item"]]
                assert {*theirs} <= {*walk.client.seen}
            else:
                asked = Counter(each["item_id"] for each in sent)
                answered = Counter((each.get("item") or {"id": each.get("item_id")})["id"] for each in got)
                cut = Counter(each["item_id"] for each in walk.cuts)
                assert answered - asked - (cut if verb == "truncate" else Counter()) == Counter(), verb
                assert asked - answered == Counter(), verb


def test_the_client_is_refused_only_what_any_model_would_refuse(walks):
    """It never did anything that a conversation on one leg would not allow."""
    for walk in walks:
        for error in (each["error"] for each in walk.client.got if each["type"] == "error"):
            event = walk.asked.get(error["event_id"])
            allowed = {"response_cancel_not_active", "conversation_already_has_active_response"}
            lost = event is not None and event.get("item_id") in walk.gone
            assert error["code"] in allowed or lost, (error, event)


def test_what_is_asked_for_is_answered_once(walks):
    """The leg that began to answer may be gone: then another one does, unless that had said what there was to say."""
    for walk in walks:
        labels = {**{name: name for name in walk.fates}, **walk.questions()}
        refused = {each["error"]["event_id"] for each in walk.client.got if each["type"] == "error"}
        for name, label in labels.items():
            assert len(walk.whole(label)) <= 1, label
            if name in walk.fates:
                fate = walk.fates[name]
                assert (
                    "answered" not in fate.statuses
                    or walk.whole(label)
                    or walk.halves(label)
                    or fate.injection.tool_call_id
                ), fate
            elif name not in refused:
                assert walk.whole(label) or walk.halves(label) or walk.is_doubtful(name), (name, label)


def test_what_a_person_said_is_answered(walks):
    """By a response that began after it; and nothing is answered that nobody said."""
    for walk in walks:
        whole = [
            each for each in walk.answers if not each.is_aside and (each.is_told or each in walk.halves(each.label))
        ]
        for at in walk.commits:
            assert any(each.begun_at >= at - 1.5 for each in whole), at
        doubtful = [name for name in walk.questions() if walk.is_doubtful(name)]
        assert len(walk.whole("")) <= len(walk.commits) + len(doubtful)


def test_the_client_waits_for_nothing_when_everything_is_quiet(walks):
    """A response without an end blocks an SDK for ever."""
    for walk in walks:
        assert (walk.client.open, walk.client.asides) == (None, set())
        missing = {*walk.client.items} - walk.client.done - walk.begun
        assert len(missing) <= len(walk.losses), missing  # one whose leg died between its two events
        assert walk.bridge.due(walk.clock.now, walk.clock.now) is None
        assert walk.bridge.phase is Phase.OPEN
        assert walk.bridge.is_quiet(walk.clock.now)


def test_the_walks_go_where_it_is_interesting(walks):
    """Else the rules above would say nothing."""
    statuses = {status for walk in walks for fate in walk.fates.values() for status in fate.statuses}
    assert {"applied", "answered", "expired"} <= statuses
    assert sum(len(walk.losses) for walk in walks) > 3 * WALKS
    assert sum(walk.rolls for walk in walks) > 0
    assert sum(gone.turn is not None for walk in walks for gone in walk.losses) > 0
    assert sum(gone.response is not None for walk in walks for gone in walk.losses) > WALKS / 5
    assert sum(len(walk.halves(each.label)) for walk in walks for each in walk.answers) > 0
    assert sum(walk.client.count("output_audio_buffer.cleared") for walk in walks) == 0 or walks[0].rules.told_to_clear
