"""Random walks through the turn gate, each the same every time: whatever happens, every message has its end.

A person, a client and backends do what they like with a small model (``tests.support.small_model``) over a network with
delays. Time passes only from event to event, and the bridge is woken only when it asks to be: what would never be asked
again shows as a message without an end.
"""

import json
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import pytest

from relay.core.actions import Send, Side
from relay.core.bridge import Bridge, Rules
from relay.core.messages import WHEN, Injection, Settled
from tests.support.small_model import Clock, Faults, SmallModel

APPLY_SECONDS = 4.0
LONGEST = 3.5  # seconds that a response takes, with the way there and back
SECONDS = 30.0  # of a walk
ENDS = {"answered", "failed", "expired", "rejected"}
LAST_LOOK = 0.02  # between a deadline and the alarm for it
WALKS = 25

FAULTS = {
    "none": Faults(),
    "drops metadata": Faults(keeps_metadata=False),
    "nameless errors": Faults(names_causes=False),
    "refuses": Faults(refuses=0.1),
    "forgets": Faults(forgets=0.05),
    "all": Faults(keeps_metadata=False, names_causes=False, refuses=0.05, forgets=0.03),
}


@dataclass
class Fate:
    """A message, and what became of it."""

    injection: Injection
    at: float
    statuses: list[str]
    ended_at: float | None = None

    @property
    def wants_answer(self) -> bool:
        return self.injection.response is not None and self.injection.wants_answer


class Walk:
    """One call. ``name`` of a message is also the instructions of the response that it asks for."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.random = Random(seed)
        self.faults = faults
        self.clock = Clock()
        self.model = SmallModel(self.clock, self.random, faults, self._down)
        self.bridge = Bridge(Rules(apply_seconds=APPLY_SECONDS), lambda: "event_x")
        self.fates: dict[str, Fate] = {}
        self.client_got: list[dict[str, Any]] = []
        self.client_asked: list[str] = []
        self.sent: list[tuple[float, dict[str, Any]]] = []
        self.idle_ticks = 0  # in a row
        self._arrival = {Side.MODEL: 0.0, Side.CLIENT: 0.0}
        self._alarm = 0
        self._act(self.bridge.on_model_opened(None, 0.0))
        self._act(self.bridge.on_announced((), 0.0, 0.0))

    def _delay(self, way: Side) -> float:
        self._arrival[way] = max(self._arrival[way], self.clock.now + self.random.choice((0.0, 0.001, 0.02, 0.2)))
        return self._arrival[way]

    def _down(self, message: bytes) -> None:
        self.clock.at(self._delay(Side.CLIENT), lambda: self._act(self.bridge.on_model_text(message, *self._times())))

    def _times(self) -> tuple[float, float]:
        return self.clock.now, self.clock.now

    def _act(self, actions: list[Any]) -> None:
        now = self.clock.now
        for action in actions:
            match action:
                case Send(Side.MODEL, payload):
                    event = json.loads(payload)
                    self.sent.append((now, event))
                    self.clock.at(self._delay(Side.MODEL), partial(self._take, event))
                case Send(Side.CLIENT, payload):
                    self.client_got.append(json.loads(payload))
                case Settled(name, _, status):
                    self._settle(self.fates[name], status)
        self._set_alarm()

    def _take(self, event: dict[str, Any]) -> None:
        label = (event.get("response") or {}).get("instructions", "")
        fate = self.fates.get(label)
        if event["type"] == "response.create" and fate is not None and fate.injection.tool_call_id is not None:
            made_by = self.model.calls[fate.injection.tool_call_id]
            assert self.model.active is not made_by
            assert set(made_by.calls) <= self.model.results, "asked before the last result was there"
        self.model.take(event)

    def _settle(self, fate: Fate, status: str) -> None:
        fate.statuses.append(status)
        if status in ENDS or not fate.wants_answer:
            assert fate.ended_at is None, "ended twice"
            fate.ended_at = self.clock.now

    def _set_alarm(self) -> None:
        due = self.bridge.due(*self._times())
        self._alarm += 1
        if due is not None:
            self.clock.at(max(due, self.clock.now + 0.01), partial(self._tick, self._alarm))

    def _tick(self, alarm: int) -> None:
        if alarm == self._alarm:
            actions = self.bridge.on_tick(*self._times())
            self.idle_ticks = 0 if actions else self.idle_ticks + 1
            assert self.idle_ticks < 50, "it looks again and again, and nothing ever comes of it"
            self._act(actions)

    # What people and programs do

    def go(self) -> None:
        doings = [self._put, self._put, self._put, self._put_result, self._put_event, self._ask, self._say, self._speak]
        while self.clock.now < SECONDS:
            self.clock.run(self.clock.now + self.random.choice((0.0, 0.01, 0.1, 0.3, 1.0)))
            self.random.choice(doings)()
        self.clock.run(SECONDS + 60.0)

    def _deadline(self) -> float:
        return self.clock.now + self.random.choice((0.05, 1.0, 5.0, 20.0))

    def _inject(self, event: dict[str, Any] | None, response: dict[str, Any] | None, **changes: Any) -> None:
        name = f"m{len(self.fates)}"
        if event is not None and event["type"] == "conversation.item.create":
            event["item"]["id"] = f"item_{name}"
            changes["item_id"] = f"item_{name}"
        if response is not None:
            response = {"instructions": name, **response}
        injection = Injection(message_id=name, event=event, response=response, **{"item_id": "", **changes})
        self.fates[name] = Fate(injection, self.clock.now, [])
        self._act(self.bridge.inject(injection, *self._times()))

    def _put(self) -> None:
        item = {"type": "message", "role": "system"}
        response = self.random.choice((None, {}, {}))
        event = {"type": "conversation.item.create", "item": item}
        visible = self.random.random() < 0.8
        self._inject(event, response, expires_at=self._deadline(), when=self.random.choice(WHEN), visible=visible)

    def _put_result(self) -> None:
        open_calls = [call for call in self.model.calls if call not in self.model.results]
        for call in self.random.sample(open_calls, self.random.randint(0, len(open_calls))):
            item = {"type": "function_call_output", "call_id": call, "output": "{}"}
            if self.random.random() < 0.2:
                self._client(
                    {"type": "conversation.item.create", "item": {**item, "id": f"theirs_{len(self.sent)}_{call}"}}
                )
                continue
            response = self.random.choice((None, {}, {}))
            when = self.random.choice(WHEN)
            event = {"type": "conversation.item.create", "item": item}
            self._inject(event, response, expires_at=self._deadline(), when=when)

    def _put_event(self) -> None:
        """What side legs send."""
        expires_at = self.clock.now + 20.0
        kind = self.random.choice(("response.create", "response.create", "response.cancel", "session.update", "x.new"))
        if kind == "response.create":
            self._inject(None, {}, expires_at=expires_at, wants_answer=False)
        else:
            self._inject({"type": kind}, None, expires_at=expires_at)

    def _ask(self) -> None:
        """The client wants an answer, of the conversation or beside it."""
        if not self.faults.names_causes and self._has_asked:
            return  # as the SDKs do; of two refusals without a name nobody can tell whose they are
        name = f"q{len(self.client_asked)}"
        self.client_asked.append(name)
        aside = {"conversation": "none"} if self.random.random() < 0.2 else {}
        self._client({"type": "response.create", "event_id": name, "response": {"instructions": name, **aside}})

    @property
    def _has_asked(self) -> bool:
        settled = {*self.model.refused, *self.model.forgotten, *(each.cause for each in self.model.responses)}
        return any(f"c.{name}" not in settled for name in self.client_asked)

    def _say(self) -> None:
        kind = self.random.choice(("session.update", "conversation.item.retrieve", "response.cancel"))
        self._client({"type": kind, "item_id": "x"})

    def _speak(self) -> None:
        self.model.hear(self.random.choice((0.05, 0.5, 2.0)))

    def _client(self, event: dict[str, Any]) -> None:
        self._act(self.bridge.on_client_text(json.dumps(event).encode(), self.clock.now))

    def made(self, label: str) -> int:
        return sum(response.label == label for response in self.model.responses)


@pytest.fixture(scope="module", params=FAULTS.items(), ids=lambda param: param[0])
def walks(request) -> list[Walk]:
    """Walks with one kind of server; they are the same in every run."""
    done = []
    for seed in range(WALKS):
        walk = Walk(seed, request.param[1])
        walk.go()
        done.append(walk)
    return done


def test_every_message_has_its_end_in_time(walks):
    """By its deadline, or when the model has had its time to take it, or when its answer is done: never silence."""
    for walk in walks:
        for fate in walk.fates.values():
            latest = fate.injection.expires_at + APPLY_SECONDS + LAST_LOOK
            if fate.wants_answer and (walk.made(fate.injection.message_id) or not walk.faults.keeps_metadata):
                latest += LONGEST
            assert fate.ended_at is not None, fate
            if fate.injection.tool_call_id is None:
                assert fate.ended_at <= latest, fate


def test_no_message_is_in_the_conversation_twice_or_answered_twice(walks):
    """Once in the conversation, whatever races it loses."""
    for walk in walks:
        assert len(walk.model.items) == len(set(walk.model.items))
        creates = [event["item"]["id"] for _, event in walk.sent if event["type"] == "conversation.item.create"]
        assert len(creates) == len(set(creates))
        assert all(walk.made(name) <= 1 for name in walk.fates)


def test_nothing_is_sent_after_its_deadline(walks):
    """Neither the item nor the question that follows it."""
    for walk in walks:
        deadlines = {fate.injection.item_id: fate.injection.expires_at for fate in walk.fates.values()}
        for at, event in walk.sent:
            if event["type"] == "conversation.item.create":
                assert at <= deadlines.get(event["item"]["id"], at)
            label = (event.get("response") or {}).get("instructions", "")
            if label in walk.fates and walk.fates[label].injection.tool_call_id is None:
                assert at <= walk.fates[label].injection.expires_at


def test_messages_of_one_kind_keep_their_order(walks):
    """The promise to a publisher."""
    for walk in walks:
        creates = [event["item"]["id"] for _, event in walk.sent if event["type"] == "conversation.item.create"]
        for when in WHEN:
            wanted = [fate.injection.item_id for fate in walk.fates.values() if fate.injection.when == when]
            sent = [item_id for item_id in creates if item_id in set(wanted)]
            assert sent == [item_id for item_id in wanted if item_id in set(sent)]


def test_what_the_client_asks_for_is_made_once_or_refused(walks):
    """Its SDK waits for the one or the other before it asks again."""
    for walk in walks:
        told = {each["error"]["event_id"] for each in walk.client_got if each["type"] == "error"}
        for name in walk.client_asked:
            lost = f"c.{name}" in walk.model.forgotten or (None in told and f"c.{name}" in walk.model.refused)
            assert walk.made(name) == 1 or (walk.made(name) == 0 and (name in told or lost)), name


def test_the_client_sees_each_response_and_no_foreign_error(walks):
    """SDKs count responses as they begin and end, and raise on errors that they did not cause."""
    for walk in walks:
        for step in ("created", "done"):
            seen = [each["response"]["id"] for each in walk.client_got if each["type"] == f"response.{step}"]
            assert sorted(seen) == sorted(response.id for response in walk.model.responses)
        for each in walk.client_got:
            if each["type"] == "error" and each["error"]["event_id"] is not None:
                assert each["error"]["event_id"] in walk.client_asked


def test_what_was_answered_was_asked(walks):
    """A receipt that says so while the model never heard the question would be worse than none."""
    for walk in walks:
        questions = [event for _, event in walk.sent if event["type"] == "response.create"]
        labels = {(event.get("response") or {}).get("instructions") for event in questions}
        for name, fate in walk.fates.items():
            if "answered" in fate.statuses and fate.injection.tool_call_id is None:
                assert name in labels


def test_nothing_is_left_when_everything_is_quiet(walks):
    """What stays behind would be asked at the worst moment, or hold up what comes after it."""
    for walk in walks:
        assert walk.bridge.due(walk.clock.now, walk.clock.now) is None


def test_the_walks_go_where_it_is_interesting(walks):
    """Else the rules above would say nothing."""
    statuses = {status for walk in walks for fate in walk.fates.values() for status in fate.statuses}
    assert {"applied", "answered", "expired", "failed"} <= statuses
    assert sum(len(walk.model.refused) for walk in walks) > WALKS
    assert sum(len(walk.model.results) for walk in walks) > WALKS
