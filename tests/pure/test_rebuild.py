"""A conversation that a new model leg gets: piped from one session of the simulated model into another.

Expected is what the first session itself knows, item by item; so nothing here says twice what the code says.
"""

import copy
import itertools
import json
import random
from typing import Any

import pytest

from ops.simulator.conversation import Item
from relay.core import rebuild
from relay.core.memory import Memory
from relay.core.rebuild import ANCHOR, FATAL, SESSION, UNSPOKEN, Rebuild, anchor_text, plan
from tests.pure.test_simulator_session import SPOKEN_TURN, TOOL, Talk

WALL = 1_700_000_000.0
APPLY = 5.0
BYTES_PER_MS = 48


class Call:
    """A session of the model whose events a memory goes by, as a call's does."""

    def __init__(self, **behaviour: Any) -> None:
        self.talk = Talk(**behaviour)
        self.memory = Memory()
        self.said_ms: dict[str, int] = {}
        self.taken = 0

    def follow(self) -> None:
        """Remember what the model has said since."""
        for event in self.talk.all[self.taken :]:
            self._remember(event)
        self.taken = len(self.talk.all)

    def _remember(self, event: dict[str, Any]) -> None:
        memory, item_id = self.memory, str(event.get("item_id"))
        match event["type"]:
            case "session.created" | "session.updated":
                memory.on_session(event["session"])
            case "conversation.item.added" | "conversation.item.done":
                memory.on_item(event["item"], WALL, event["previous_item_id"])
            case "conversation.item.deleted":
                memory.on_deleted(item_id)
            case "conversation.item.truncated":
                memory.on_truncated(event)
            case "conversation.item.input_audio_transcription.completed":
                memory.on_transcribed(event)
            case "response.output_audio_transcript.delta" | "response.output_text.delta":
                memory.on_words(item_id, event["delta"])
            case "response.output_audio.delta":
                self.said_ms[item_id] = self.said_ms.get(item_id, 0) + len(event["delta"]) * 3 // 4 // BYTES_PER_MS
            case "response.output_audio.done":
                memory.on_audio(item_id, self.said_ms.get(item_id, 0))
            case "response.done":
                memory.on_response_done(event["response"], WALL)

    @property
    def items(self) -> list[Item]:
        return list(self.talk.session.conversation)


class Leg:
    """A new session, and the rebuild that it gets. ``deaf``: it answers nothing until it hears again."""

    def __init__(self, memory: Memory, anchor: int = 1, window: int = 64, **behaviour: Any) -> None:
        self.talk = Talk(**behaviour)
        ids = itertools.count(1)
        self.rebuild = Rebuild(memory, lambda: f"r.{next(ids)}", anchor, APPLY, window)
        self.sent: list[dict[str, Any]] = []
        self.most = 0  # that was under way at a time
        self.refusing: dict[str, dict[str, Any]] = {}  # by item id: errors, in place of an item that is created
        self.silent_about: set[str] = set()  # item ids
        self.now = 0.0
        self.waiting: list[bytes] = []
        self.tell(self.talk.all)

    def tell(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            self.waiting += self.rebuild.on_message(json.dumps(event).encode(), self.now)

    def build(self, *, catch_up: bool = False) -> "Leg":
        self.waiting += self.rebuild.catch_up(self.now) if catch_up else self.rebuild.start(self.now)
        self.pump()
        return self

    def pump(self) -> None:
        while self.waiting:
            self.most = max(self.most, len(self.waiting))
            message = self.waiting.pop(0)
            event = json.loads(message)
            self.sent.append(event)
            self.tell(self.answer(message, event))

    def answer(self, message: bytes, event: dict[str, Any]) -> list[dict[str, Any]]:
        item_id = event.get("item", {}).get("id")
        if item_id in self.silent_about:
            return []
        if item_id in self.refusing:
            error = {"event_id": event["event_id"], "message": "", "param": None, **self.refusing[item_id]}
            return [{"type": "error", "event_id": "e", "error": error}]
        return self.talk.send_raw(message)

    def let_pass(self, seconds: float) -> None:
        self.now += seconds
        self.waiting += self.rebuild.on_tick(self.now)
        self.pump()

    @property
    def items(self) -> list[Item]:
        return [item for item in self.talk.session.conversation if not item.id.startswith(ANCHOR)]

    @property
    def ids(self) -> list[str]:
        return [item.id for item in self.talk.session.conversation]

    @property
    def anchor(self) -> str:
        """The words of the only anchor, which stands last."""
        anchors = [item for item in self.talk.session.conversation if item.id.startswith(ANCHOR)]
        assert [anchors[0].id] == [item.id for item in anchors] == self.ids[-1:] == [self.rebuild.anchor_id]
        return anchors[0].text()


def told(item: Item) -> tuple[Any, ...]:
    """What two sessions must agree on; the words apart."""
    body = item.body
    return (item.id, item.kind, *(body.get(key) for key in ("name", "call_id", "arguments", "output")))


def check(call: Call, leg: Leg) -> None:
    """The new session knows what the first one does."""
    call.follow()
    expected = [item for item in call.items if item.kind != "assistant" or call.memory.entry(item.id)["text"]]
    found = {item.id: item for item in leg.items}
    heard = [item for item in expected if item.id in found]
    assert [told(item) for item in leg.items] == [told(item) for item in heard]
    for item in expected:
        words, entry = item.text(), call.memory.entry(item.id)
        if item.kind == "assistant" and not words:  # cut off: the first session does not know any more what was said
            share = entry["truncated_ms"] / entry["audio_ms"]
            restored = found[item.id].text().removesuffix("…") if item.id in found else ""
            assert entry["text"].startswith(restored)
            assert len(restored) <= share * len(entry["text"])
            assert len(restored) >= share * len(entry["text"]) - 26
        else:
            assert found[item.id].text() == (words or UNSPOKEN)
    for item in leg.items:
        kinds = {part["type"] for part in item.body.get("content", ())}
        assert kinds <= ({"output_text"} if item.kind == "assistant" else {"input_text"})
    assert leg.rebuild.restored == found.keys()
    assert leg.rebuild.is_ready


def conversation(**behaviour: Any) -> Call:
    """One of each: text, speech, a spoken answer, one that was cut off, tools, items in the middle, and gone ones."""
    call = Call(**behaviour)
    talk = call.talk
    talk.update(instructions="Be brief.", tools=[TOOL], audio={"output": {"voice": "cedar"}})
    talk.say("Be nice.", "system", id="rule")
    talk.say("Hello", id="hello")
    talk.answer(output_modalities=["text"])
    talk.update(tool_choice="none", audio={"input": {"transcription": {"model": "gpt-4o-mini-transcribe"}}})
    talk.hear(SPOKEN_TURN)
    talk.wait()
    talk.update(audio={"input": {"transcription": None}})
    talk.hear(SPOKEN_TURN)
    talk.wait()
    last = call.items[-1]
    talk.send("conversation.item.truncate", item_id=last.id, content_index=0, audio_end_ms=last.clips[0].ms // 2)
    talk.update(tool_choice="auto")
    talk.say("get weather", id="ask")
    talk.answer()
    made = call.items[-1]
    output = {"type": "function_call_output", "call_id": made.body["call_id"], "output": '{"sun":true}', "id": "result"}
    talk.send("conversation.item.create", item=output)
    talk.answer()
    talk.say("between", "system", id="between")
    talk.send(
        "conversation.item.create",
        previous_item_id="hello",
        item={"type": "message", "role": "system", "id": "x", "content": [{"type": "input_text", "text": "behind"}]},
    )
    talk.say("gone", id="gone")
    talk.send("conversation.item.delete", item_id="gone")
    talk.say("get weather again", id="again")
    talk.answer()  # a tool call without its result
    call.follow()
    return call


def text_call(*texts: str) -> Call:
    call = Call()
    for number, text in enumerate(texts):
        call.talk.say(text, id=f"t{number}")
    call.follow()
    return call


# Whole conversations


@pytest.mark.parametrize("window", [1, 3, 64])
def test_a_new_session_knows_the_conversation_item_by_item(window):
    """And its settings are those of the first; its own id and end are its own."""
    call = conversation()
    leg = Leg(call.memory, window=window, session_seconds=1800.0).build()
    check(call, leg)
    assert leg.rebuild.skipped == []
    assert leg.most <= window
    mine, first = leg.rebuild.session, call.talk.session.config
    assert {**mine, "id": 0, "expires_at": 0} == {**first, "id": 0, "expires_at": 0}
    assert leg.rebuild.expires_at == 1_001_800.0


def test_the_settings_come_first():
    """The voice cannot be changed after the first audio, and the items belong to their session."""
    leg = Leg(conversation().memory).build()
    assert leg.sent[0]["type"] == "session.update"
    assert {event["type"] for event in leg.sent[1:]} == {"conversation.item.create"}


def test_a_new_session_can_go_on():
    """It answers a tool's result whose call it never made."""
    call = conversation()
    leg = Leg(call.memory).build()
    made = next(item for item in reversed(call.items) if item.kind == "function_call")
    output = {"type": "function_call_output", "call_id": made.body["call_id"], "output": "42"}
    leg.talk.send("conversation.item.create", item=output)
    assert "The tool said: 42" in json.dumps(leg.talk.answer())


@pytest.mark.parametrize("seed", range(12))
def test_a_random_conversation_is_known_again(seed):
    """In the middle of it, too, and by a third session that knows only what the second one says it has."""
    rng, call = random.Random(seed), Call()
    random_talk(rng, call, "a")
    leg = Leg(call.memory, window=rng.choice([1, 4, 64])).build()
    check(call, leg)
    for part in "bc":
        random_talk(rng, call, part)
        check(call, leg.build(catch_up=True))
        assert not call.items or leg.anchor
    other = Memory()
    other.restore(facts_of(call.memory))
    check(call, Leg(other).build())


@pytest.mark.parametrize("anonymous", [False, True], ids=["named", "unnamed"])
@pytest.mark.parametrize("seed", range(6))
def test_what_a_new_session_refuses_at_random_is_all_that_it_lacks(seed, anonymous):
    """Refused by name or without, or not answered at all; and told as lacking."""
    rng, call = random.Random(seed), Call()
    random_talk(rng, call, "a")
    leg = Leg(call.memory, window=rng.choice([1, 4, 64]), anonymous_errors=anonymous)
    unwanted = {item.id for item in call.items if rng.random() < 0.3}
    leg.silent_about = {item_id for item_id in unwanted if rng.random() < 0.3}
    cause = {"event_id": None} if anonymous else {}
    leg.refusing = {each: {"code": "bad", "message": f"No '{each}'.", **cause} for each in unwanted - leg.silent_about}
    for part in "bc":
        leg.build(catch_up=part == "c")
        while (due := leg.rebuild.due()) is not None:
            leg.let_pass(due - leg.now)
        told_of = [item_id for item_id, _ in plan(call.memory).items]
        lacking = dict(leg.rebuild.skipped)
        calls = {item.body["call_id"] for item in call.items if item.kind == "function_call" and item.id in lacking}
        orphans = {item.id for item in call.items if item.kind != "function_call" and item.body.get("call_id") in calls}
        assert {*told_of} & {*lacking} == {*told_of} & (unwanted | orphans)
        assert [item.id for item in leg.items] == [item_id for item_id in told_of if item_id not in lacking]
        assert leg.rebuild.restored == {item.id for item in leg.items}
        assert leg.rebuild.is_ready
        random_talk(rng, call, part)


def random_talk(rng: random.Random, call: Call, name: str) -> None:
    """So many steps of a conversation; no two talks of a call have the same name."""
    for step in range(12):
        random_step(rng, call, f"{name}{step}")
    call.follow()


def facts_of(memory: Memory) -> dict[str, bytes]:
    """What a home would have of it."""
    facts = {f"item.{at:08d}": json.dumps(entry).encode() for at, entry in enumerate(memory.entries)}
    return {**facts, "session": json.dumps(memory.session).encode()}


def random_step(rng: random.Random, call: Call, step: str) -> None:
    talk, ids = call.talk, [item.id for item in call.items]
    kinds = ["say", "say", "system", "speak", "answer", "tool", "delete", "between", "truncate", "update"]
    match rng.choice(kinds):
        case "say":
            talk.say(rng.choice(["hello", "get weather", "ça va? 你好", "x" * 300]), id=f"s{step}")
        case "system":
            talk.say("note", "system", id=f"n{step}")
        case "speak":
            talk.hear(SPOKEN_TURN)
            talk.wait()
        case "answer":
            talk.answer()
        case "tool":
            made = [item.body["call_id"] for item in call.items if item.kind == "function_call"]
            if made:
                item = {"type": "function_call_output", "call_id": rng.choice(made), "output": "ok", "id": f"o{step}"}
                talk.send("conversation.item.create", item=item)
        case "delete":
            calls = {item.body.get("call_id") for item in call.items if item.kind == "function_call_output"}
            alone = [
                item.id for item in call.items if item.body.get("call_id") not in calls or item.kind != "function_call"
            ]
            if alone:
                talk.send("conversation.item.delete", item_id=rng.choice(alone))
        case "between":
            if ids:
                item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "in"}]}
                talk.send("conversation.item.create", item={**item, "id": f"b{step}"}, previous_item_id=rng.choice(ids))
        case "truncate":
            spoken = [item for item in call.items if item.kind == "assistant" and 0 in item.clips]
            if spoken:
                item = rng.choice(spoken)
                end = rng.randrange(item.clips[0].ms + 1)
                talk.send("conversation.item.truncate", item_id=item.id, content_index=0, audio_end_ms=end)
        case "update":
            transcription = rng.choice([None, {"model": "whisper-1"}])
            talk.update(instructions=f"Be {step}.", tools=[TOOL], audio={"input": {"transcription": transcription}})


def test_an_empty_conversation_has_no_anchor():
    """There is nothing to go on from."""
    call = Call()
    call.follow()
    leg = Leg(call.memory).build()
    assert (leg.ids, leg.rebuild.anchor_id, leg.rebuild.is_ready) == ([], None, True)
    assert [event["type"] for event in leg.sent] == ["session.update"]


def test_a_leg_is_not_ready_before_it_has_begun():
    """Nor before it has said of everything what became of it."""
    call = text_call("a")
    build = Rebuild(call.memory, lambda: "r", 1, APPLY)
    assert not build.is_ready
    assert build.expires_at is None
    build.start(0.0)
    assert not build.is_ready


@pytest.mark.parametrize("message", [b"", b"{", b"[]", b'{"type":"error"}', b'{"type":"error","error":7}'])
def test_whatever_a_new_leg_says_the_rebuild_goes_on(message):
    """And what it says of other things is not looked at."""
    leg = Leg(text_call("a").memory)
    assert leg.rebuild.on_message(message, 0.0) == []
    assert leg.rebuild.on_message(b'{"type":"conversation.item.added","item":null}', 0.0) == []
    assert leg.rebuild.on_message(b'{"type":"conversation.item.added"', 0.0) == []
    assert leg.rebuild.on_message(b'{"type":"rate_limits.updated","rate_limits":[]}', 0.0) == []
    assert leg.rebuild.on_message(b'{"type":"session.updated","session":null}', 0.0) == []
    leg.build()
    assert leg.ids[:-1] == ["t0"]


def test_items_of_the_new_leg_that_are_not_ours_are_none_of_ours():
    """Its turn detection may put some in."""
    leg = Leg(text_call("a").memory).build()
    leg.talk.say("other", id="other")
    leg.tell(leg.talk.all[-2:])
    assert leg.rebuild.restored == {"t0"}


# What is told of an item


def planned(**entry: Any) -> list[dict[str, Any]]:
    memory = Memory()
    memory.restore({"item.00000000": json.dumps({"id": "a", "type": "message", **entry}).encode()})
    return [event["item"] for _, event in plan(memory).items]


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        ({"role": "user", "text": "hi"}, [{"type": "input_text", "text": "hi"}]),
        ({"role": "user", "text": ""}, [{"type": "input_text", "text": UNSPOKEN}]),
        ({"role": "user"}, [{"type": "input_text", "text": UNSPOKEN}]),
        ({"role": "system", "text": "be"}, [{"type": "input_text", "text": "be"}]),
        ({"role": "assistant", "text": "yes"}, [{"type": "output_text", "text": "yes"}]),
    ],
)
def test_a_message_is_told_in_words(entry, content):
    """An answer's audio cannot be given back; a person's was not kept."""
    (item,) = planned(**entry)
    assert item == {"id": "a", "type": "message", "role": entry["role"], "content": content}


@pytest.mark.parametrize(
    "entry",
    [
        {"role": "assistant", "text": ""},
        {"role": "assistant", "status": "in_progress"},
        {"role": "system", "text": ""},
        {"type": "function_call", "status": "in_progress", "call_id": "c"},
        {"type": "mcp_list_tools"},
    ],
    ids=repr,
)
def test_what_says_nothing_is_not_told(entry):
    """Nor is it missed: a new session lists the tools of its servers itself."""
    memory = Memory()
    memory.restore({"item.00000000": json.dumps({"id": "a", "type": "message", **entry}).encode()})
    assert plan(memory) == ([], [])


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ({"id": "x" * 33, "role": "user"}, "string_above_max_length"),
        ({"type": "function_call_output", "call_id": "c", "output": "1"}, "invalid_tool_call_id"),
        ({"type": "function_call_output", "output": "1"}, "invalid_tool_call_id"),
        ({"type": "mcp_call"}, "unsupported_item"),
        ({"role": "judge", "text": "x"}, "unsupported_item"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_session_would_refuse_is_left_out_and_counted(entry, code):
    """To ask it anyway would cost the person a moment."""
    call = text_call("hello")
    memory = Memory()
    memory.restore(
        {**facts_of(call.memory), "item.00000007": json.dumps({"id": "a", "type": "message", **entry}).encode()}
    )
    leg = Leg(memory).build()
    assert leg.rebuild.skipped == [(entry.get("id", "a"), code)]
    assert [event["item"]["id"] for event in leg.sent[1:]] == ["t0", leg.rebuild.anchor_id]
    assert leg.ids[:-1] == ["t0"]
    assert leg.rebuild.is_ready


def test_a_result_is_told_behind_its_call_only():
    """A session refuses it before."""
    call = Call()
    call.talk.send(
        "conversation.item.create",
        item={"id": "f", "type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
    )
    call.talk.send(
        "conversation.item.create", item={"id": "o", "type": "function_call_output", "call_id": "c", "output": "1"}
    )
    call.follow()
    entries = call.memory.entries
    backwards = {f"item.{at:08d}": json.dumps(entry).encode() for at, entry in enumerate(reversed(entries))}
    memory = Memory()
    memory.restore(backwards)
    leg = Leg(memory).build()
    assert leg.ids[:-1] == ["f"]
    assert leg.rebuild.skipped == [("o", "invalid_tool_call_id")]


def test_an_id_of_the_greatest_length_is_told():
    """Clients may choose their items' ids."""
    assert planned(id="x" * 32, role="user", text="hi")[0]["id"] == "x" * 32


def test_a_tool_call_without_an_id_is_told_as_it_is():
    """The session gives it one; no result can belong to it."""
    (item,) = planned(type="function_call", name="f", arguments="{}")
    assert item == {"id": "a", "type": "function_call", "name": "f", "arguments": "{}"}
    memory = Memory()
    for item_id, kind in (("a", "function_call"), ("b", "function_call_output")):
        memory.on_item({"id": item_id, "type": kind}, WALL)
    assert plan(memory).left_out == [("b", "invalid_tool_call_id")]


@pytest.mark.parametrize(
    ("text", "heard", "whole", "told_as"),
    [
        ("one two three four", 500, 1000, "one two…"),
        ("one two three four", 400, 1000, "one two…"),
        ("one two three four", 100, 1000, "o…"),
        ("one two three four", 1000, 1000, "one two three four"),
        ("one two three four", 1500, 1000, "one two three four"),
        ("one two three four", 500, None, "one two three four"),
        ("one two three four", 500, 0, "one two three four"),
        ("一二三四五六七八九十", 500, 1000, "一二三四五…"),
        ("x" * 100, 500, 1000, "x" * 50 + "…"),
        ("one " + "x" * 100, 500, 1000, "one " + "x" * 48 + "…"),
    ],
)
def test_an_answer_that_was_cut_is_told_as_far_as_it_was_heard(text, heard, whole, told_as):
    """About: up to the end of a word, where the language has such."""
    audio = {} if whole is None else {"audio_ms": whole}
    (item,) = planned(role="assistant", text=text, truncated_ms=heard, **audio)
    assert item["content"][0]["text"] == told_as


@pytest.mark.parametrize("heard", [0, -5])
def test_an_answer_of_which_nothing_was_heard_is_not_told(heard):
    """To the person it was never given."""
    assert planned(role="assistant", text="one two", truncated_ms=heard, audio_ms=1000) == []


# The anchor


def test_the_anchor_is_told_last():
    """Without it models greet again, or change their language."""
    leg = Leg(text_call("a", "b").memory, anchor=7).build()
    assert leg.rebuild.anchor_id == "relay_anchor_7"
    assert "aloud" in leg.anchor
    assert "cut off" not in leg.anchor
    assert "left out" not in leg.anchor


@pytest.mark.parametrize(
    "last",
    [
        {"type": "message", "role": "assistant", "status": "completed", "content": [{"text": "Done."}]},
        {"type": "function_call", "status": "incomplete", "name": "f", "call_id": "c", "arguments": "{"},
    ],
    ids=["whole answer", "tool call"],
)
def test_the_anchor_speaks_only_of_an_answer_that_was_cut_off(last):
    """The model would say again what it said already."""
    call = text_call("a")
    call.memory.on_item({"id": "z", **last}, WALL)
    assert "cut off" not in anchor_text(call.memory)


def test_the_anchor_says_what_the_new_session_cannot_know():
    """That it was cut off, that there was more, that it is to write."""
    call = text_call("a", "b")
    call.memory.drop_oldest()
    call.memory.on_session({"output_modalities": ["text"]})
    call.memory.on_item({"id": "z", "type": "message", "role": "assistant", "status": "in_progress"}, WALL)
    call.memory.on_words("z", "So far")
    call.memory.on_interrupted(["z"])
    text = anchor_text(call.memory)
    assert "aloud" not in text
    assert "cut off" in text
    assert "left out" in text
    call.memory.on_item({"id": "so", "type": "message", "role": "user"}, WALL)
    assert "cut off" not in anchor_text(call.memory)


# What changes meanwhile


def test_what_came_meanwhile_is_told_before_the_leg_is_used():
    """The old leg went on; the anchor stays last, and is not told twice."""
    call = text_call("a", "b")
    leg = Leg(call.memory).build()
    for number in (2, 3):
        call.talk.say("later", id=f"t{number}")
    call.follow()
    assert leg.build(catch_up=True).ids[:-1] == ["t0", "t1", "t2", "t3"]
    assert leg.anchor
    assert len({event["item"]["id"] for event in leg.sent if "item" in event}) == 6  # no id of a deleted anchor again
    check(call, leg)


def test_nothing_is_told_where_nothing_changed():
    """A roll-over waits for a turn's end, and may look often."""
    leg = Leg(conversation().memory).build()
    before = len(leg.sent)
    leg.build(catch_up=True)
    assert (len(leg.sent), leg.rebuild.is_ready) == (before, True)


def test_words_that_came_meanwhile_replace_what_stood_for_them():
    """A transcript is often later than the answer; and the item keeps its place."""
    call = Call()
    call.talk.hear(SPOKEN_TURN)
    call.talk.wait()
    call.talk.say("more", id="more")
    call.follow()
    leg = Leg(call.memory).build()
    speech = call.items[0]
    assert leg.items[0].text() == UNSPOKEN
    call.memory.on_transcribed({"item_id": speech.id, "transcript": "hello"})
    order = leg.ids
    leg.build(catch_up=True)
    assert leg.items[0].text() == "hello"
    assert leg.ids == order
    assert leg.rebuild.restored == {*order[:-1]}


def test_what_went_and_what_stands_between_is_told_too():
    """Wherever in the conversation, and the first item too."""
    call = text_call("a", "b", "c", "d")
    leg = Leg(call.memory).build()
    call.talk.send("conversation.item.delete", item_id="t0")
    between = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "in"}]}
    for item_id, after in (("x", "t1"), ("y", "x"), ("z", "t3")):
        call.talk.send("conversation.item.create", item={**between, "id": item_id}, previous_item_id=after)
    call.follow()
    leg.build(catch_up=True)
    assert leg.ids[:-1] == ["t1", "x", "y", "t2", "t3", "z"]
    check(call, leg)


def test_a_first_item_that_changed_stands_first_again():
    """There is none before it to stand behind."""
    call = text_call("a", "b")
    leg = Leg(call.memory).build()
    call.memory.on_item({"id": "t0", "type": "message", "role": "user", "content": [{"text": "A"}]}, WALL)
    leg.build(catch_up=True)
    assert [item.text() for item in leg.items] == ["A", "b"]


def test_a_conversation_that_went_whole_leaves_nothing():
    """Not even the anchor."""
    call = text_call("a", "b")
    leg = Leg(call.memory).build()
    for item_id in ("t0", "t1"):
        call.memory.on_deleted(item_id)
    leg.build(catch_up=True)
    assert (leg.ids, leg.rebuild.anchor_id, leg.rebuild.restored) == ([], None, set())


def test_settings_that_changed_meanwhile_are_told():
    """The client may say so at any time; what did not change is not said again."""
    call = text_call("a")
    leg = Leg(call.memory).build()
    call.talk.update(instructions="Be loud.")
    call.follow()
    leg.build(catch_up=True)
    assert leg.rebuild.session["instructions"] == "Be loud."
    assert [event["type"] for event in leg.sent].count("session.update") == 2


def test_a_leg_can_catch_up_before_it_is_ready():
    """What was not told yet is told as it is by then, once."""
    call = text_call("a", "b", "c", "d")
    leg = Leg(call.memory, window=2)
    leg.waiting += leg.rebuild.start(0.0)
    call.memory.on_deleted("t0")
    call.memory.on_deleted("t2")
    call.talk.say("later", id="t4")
    call.follow()
    leg.waiting += leg.rebuild.catch_up(0.0)
    leg.pump()
    assert leg.ids[:-1] == ["t1", "t3", "t4"]
    assert leg.rebuild.restored == {"t1", "t3", "t4"}
    assert leg.rebuild.skipped == []
    assert leg.anchor
    assert leg.rebuild.is_ready


def test_an_item_that_is_made_again_at_once_is_waited_for():
    """The answer to its first making is not that to its second."""
    call = text_call("a")
    leg = Leg(call.memory)
    first = leg.rebuild.start(0.0)
    call.memory.on_item({"id": "t0", "type": "message", "role": "user", "content": [{"text": "A"}]}, WALL)
    again = leg.rebuild.catch_up(0.0)
    answers = [event for message in first for event in leg.talk.send_raw(message)]
    leg.tell(answers)
    leg.tell(answers)  # added and done: each says that it is there
    assert not leg.rebuild.is_ready
    leg.waiting = again
    leg.pump()
    assert leg.rebuild.is_ready
    assert [item.text() for item in leg.items] == ["A"]
    assert leg.rebuild.restored == {"t0"}


def test_a_refusal_of_what_is_made_again_counts_for_that_alone():
    """The first making was refused, the second was not."""
    call = text_call("a")
    leg = Leg(call.memory)
    leg.refusing = {"t0": {"code": "bad"}}
    leg.waiting = leg.rebuild.start(0.0)
    call.memory.on_item({"id": "t0", "type": "message", "role": "user", "content": [{"text": "A"}]}, WALL)
    again = leg.rebuild.catch_up(0.0)
    leg.pump()
    assert leg.rebuild.skipped == []
    leg.refusing = {}
    leg.waiting = again
    leg.pump()
    assert (leg.rebuild.skipped, leg.rebuild.restored, leg.rebuild.is_ready) == ([], {"t0"}, True)


# Refusals


@pytest.mark.parametrize("anonymous", [False, True], ids=["named", "unnamed"])
def test_an_item_that_is_refused_is_skipped_and_counted(anonymous):
    """The rest is told; an error that names no event names the item in words."""
    leg = Leg(text_call("a", "b", "c").memory)
    error = {"code": "bad", "message": "Item 't1' is bad."}
    leg.refusing["t1"] = {**error, "event_id": None} if anonymous else error
    leg.build()
    assert leg.rebuild.skipped == [("t1", "bad")]
    assert leg.rebuild.restored == {"t0", "t2"}
    assert leg.rebuild.is_ready


def test_what_was_refused_is_not_told_again_unless_it_changed():
    """It would be refused again; what follows it finds its place without it."""
    call = text_call("a", "b", "c")
    leg = Leg(call.memory)
    leg.refusing["t1"] = {"code": "bad"}
    leg.build()
    call.talk.send(
        "conversation.item.create",
        item={"type": "message", "role": "user", "id": "x", "content": [{"type": "input_text", "text": "x"}]},
        previous_item_id="t1",
    )
    call.follow()
    leg.build(catch_up=True)
    assert (leg.ids[:-1], leg.rebuild.skipped) == (["t0", "x", "t2"], [("t1", "bad")])
    leg.refusing.clear()
    call.memory.on_item({"id": "t1", "type": "message", "role": "user", "content": [{"text": "B"}]}, WALL)
    leg.build(catch_up=True)
    assert (leg.ids[:-1], leg.rebuild.skipped) == (["t0", "t1", "x", "t2"], [])


def test_what_was_refused_and_went_is_not_missed():
    """Nobody lacks it."""
    call = text_call("a", "b")
    leg = Leg(call.memory)
    leg.refusing["t1"] = {"code": "bad"}
    leg.build()
    call.memory.on_deleted("t1")
    leg.build(catch_up=True)
    assert leg.rebuild.skipped == []


def test_a_result_whose_call_is_refused_without_a_word_is_skipped_at_once():
    """The error about the result names the call, not the item."""
    call = Call()
    made = {"id": "f", "type": "function_call", "name": "f", "arguments": "{}", "call_id": "call_7"}
    call.talk.send("conversation.item.create", item=made)
    call.talk.send(
        "conversation.item.create", item={"id": "o", "type": "function_call_output", "call_id": "call_7", "output": "1"}
    )
    call.follow()
    leg = Leg(call.memory, anonymous_errors=True)
    leg.refusing["f"] = {"code": "bad", "message": "'f' is bad.", "event_id": None}
    leg.build()
    assert leg.rebuild.skipped == [("f", "bad"), ("o", "invalid_tool_call_id")]
    assert leg.rebuild.is_ready


@pytest.mark.parametrize("anonymous", [False, True])
def test_an_item_that_is_there_already_is_there(anonymous):
    """An earlier try got so far."""
    leg = Leg(text_call("a", "b").memory, anonymous_errors=anonymous)
    leg.talk.say("a", id="t0")
    leg.build()
    assert leg.rebuild.restored == {"t0", "t1"}
    assert (leg.rebuild.skipped, leg.rebuild.is_ready) == ([], True)


def test_an_item_that_is_gone_already_is_gone():
    """Whoever deleted it."""
    call = text_call("a", "b")
    leg = Leg(call.memory).build()
    leg.talk.send("conversation.item.delete", item_id="t0")
    call.memory.on_deleted("t0")
    leg.build(catch_up=True)
    assert (leg.rebuild.restored, leg.rebuild.is_ready) == ({"t1"}, True)


def test_an_anchor_that_is_refused_is_done_without():
    """It is no part of the conversation, and tried again when there is news."""
    call = text_call("a")
    leg = Leg(call.memory)
    leg.refusing["relay_anchor_1"] = {"code": "bad"}
    leg.build()
    assert (leg.rebuild.anchor_id, leg.rebuild.skipped, leg.rebuild.is_ready) == (None, [], True)
    call.talk.say("b", id="t1")
    call.follow()
    leg.build(catch_up=True)
    assert (leg.ids[:-1], leg.rebuild.anchor_id) == (["t0", "t1"], "relay_anchor_1_1")


def test_what_has_no_answer_in_time_is_skipped_and_counted():
    """A person waits."""
    leg = Leg(text_call("a", "b").memory)
    leg.silent_about = {"t0"}
    leg.build()
    assert (leg.rebuild.is_ready, leg.rebuild.due()) == (False, APPLY)
    leg.let_pass(APPLY - 0.1)
    assert not leg.rebuild.is_ready
    leg.let_pass(0.1)
    assert (leg.rebuild.skipped, leg.rebuild.restored) == ([("t0", "timeout")], {"t1"})
    assert (leg.rebuild.is_ready, leg.rebuild.due()) == (True, None)


def test_an_answer_that_comes_late_counts_after_all():
    """The item is there, and must not be missed, nor told again."""
    call = text_call("a", "b")
    leg = Leg(call.memory)
    leg.silent_about = {"t0"}
    leg.build()
    leg.let_pass(APPLY)
    leg.silent_about.clear()
    leg.tell(leg.talk.say("a", id="t0"))
    assert (leg.rebuild.skipped, leg.rebuild.restored) == ([], {"t0", "t1"})
    before = len(leg.sent)
    leg.build(catch_up=True)
    assert len(leg.sent) == before


def test_a_window_that_has_no_answer_makes_room_in_the_end():
    """The rest is told."""
    leg = Leg(text_call("a", "b", "c").memory, window=1)
    leg.silent_about = {"t1"}
    leg.build()
    assert not leg.rebuild.is_ready
    leg.let_pass(APPLY)
    assert leg.rebuild.is_ready
    assert leg.ids[:-1] == ["t0", "t2"]


@pytest.mark.parametrize("code", sorted(FATAL))
def test_some_errors_leave_no_use_in_trying(code):
    """No further leg would fare better: the call ends, and says why."""
    leg = Leg(text_call("a", "b", "c").memory, window=1)
    leg.refusing["t0"] = {"code": code, "event_id": None}
    leg.build()
    assert (leg.rebuild.failed, leg.rebuild.is_ready) == (code, False)
    leg.let_pass(APPLY)
    assert not leg.rebuild.is_ready
    assert len(leg.sent) == 2


def test_a_setting_that_names_another_model_is_no_end():
    """That of the transcription, say; the call can do without."""
    call = settings_call()
    call.memory.session["audio"]["input"]["transcription"] = {"model": "gone"}
    leg = Leg(call.memory)
    leg.waiting = leg.rebuild.start(0.0)
    rest = leg.waiting[1:]
    refuse_update(leg, code="model_not_found", param="session.audio.input.transcription.model")
    leg.waiting += rest
    leg.pump()
    assert (leg.rebuild.failed, leg.rebuild.is_ready) == (None, True)


def test_an_error_about_nothing_of_ours_changes_nothing():
    """Its cause is another's."""
    leg = Leg(text_call("a").memory)
    leg.waiting = leg.rebuild.start(0.0)
    for cause in ("other", None):
        leg.tell([{"type": "error", "error": {"code": "x", "message": "Something else.", "event_id": cause}}])
    leg.pump()
    assert (leg.rebuild.skipped, leg.rebuild.is_ready) == ([], True)


# Settings that are refused


def settings_call(**session: Any) -> Call:
    call = text_call("a")
    call.memory.on_session(copy.deepcopy({**call.talk.session.config, **session}))
    return call


@pytest.mark.parametrize("anonymous", [False, True], ids=["named", "unnamed"])
def test_a_setting_that_is_refused_is_done_without(anonymous):
    """Servers show settings that they do not take back; the others must not be lost for it."""
    call = settings_call(instructions="Be kind.", colour="red", mood={"x": 1})
    call.memory.session["audio"]["input"]["gain"] = 3
    leg = Leg(call.memory, anonymous_errors=anonymous).build()
    assert leg.rebuild.session["instructions"] == "Be kind."
    assert (leg.rebuild.skipped, leg.rebuild.is_ready) == ([], True)
    assert leg.items[0].id == "t0"


def refuse_update(leg: Leg, **error: Any) -> dict[str, Any]:
    """Refuse the settings that were sent last; returns them."""
    (update,) = (event for event in map(json.loads, leg.waiting) if event["type"] == "session.update")
    leg.waiting = []
    leg.tell([{"type": "error", "error": {"code": "bad", "message": "", "event_id": update["event_id"], **error}}])
    return dict(update["session"])


def test_the_way_to_a_refused_setting_may_lead_through_lists():
    """One key of one tool is not worth the tool."""
    call = settings_call(tools=[TOOL, {**TOOL, "strict": True}, {"type": "odd"}])
    leg = Leg(call.memory)
    leg.waiting = leg.rebuild.start(0.0)
    refuse_update(leg, param="session.tools[1].strict")
    refuse_update(leg, param="session.tools[2]")
    leg.pump()
    assert leg.sent[-1]["session"]["tools"] == [TOOL, TOOL]


@pytest.mark.parametrize(
    "param",
    [
        *(None, 7, "", "session", "session.type", "item.instructions", "session.nothing", "session.nothing.at.all"),
        *("session.tools[9]", "session.tools[9].name", "session.tools.x", "session.audio[0]", "session.instructions.a"),
    ],
)
def test_settings_that_cannot_be_mended_are_done_without_and_counted(param):
    """The conversation goes on with the settings that the server has by itself."""
    leg = Leg(settings_call().memory)
    leg.waiting = leg.rebuild.start(0.0)
    rest = leg.waiting[1:]
    refuse_update(leg, param=param)
    assert leg.waiting == []
    leg.waiting = rest
    leg.pump()
    assert leg.rebuild.skipped == [(SESSION, "bad")]
    assert leg.rebuild.is_ready


def test_settings_are_mended_only_so_often():
    """A server that refuses everything must not hold up the call."""
    leg = Leg(settings_call(**{f"x{n}": n for n in range(20)}).memory)
    leg.waiting = leg.rebuild.start(0.0)
    for number in range(9):
        assert leg.rebuild.skipped == []
        refuse_update(leg, param=f"session.x{number}")
    assert leg.waiting == []
    assert leg.rebuild.skipped == [(SESSION, "bad")]


def test_what_no_browser_sets_is_kept_though_the_rest_is_refused():
    """What a browser may set must not be how it gets rid of its server's settings: it waits for the next leg."""
    call = settings_call(instructions="Be kind.", **{f"x{n}": n for n in range(20)})
    call.memory.locked = frozenset({"instructions", "tools"})
    leg = Leg(call.memory)
    leg.waiting = leg.rebuild.start(0.0)
    rest = leg.waiting[1:]
    for number in range(9):
        refuse_update(leg, param=f"session.x{number}")
    leg.pump()
    assert leg.sent[-1]["session"] == {"type": "realtime", "instructions": "Be kind.", "tools": []}
    leg.waiting = rest
    leg.pump()
    assert leg.rebuild.session["instructions"] == "Be kind."
    assert (leg.rebuild.skipped, leg.rebuild.is_ready) == ([], True)


@pytest.mark.parametrize(("locked", "tries"), [({"instructions"}, 2), ({"model"}, 1), (set(), 1), (None, 1)], ids=str)
def test_settings_that_are_refused_whole_are_cut_down_once(locked, tries):
    """To what is the server's, if there is anything of that."""
    call = settings_call(instructions="Be kind.")
    call.memory.locked = None if locked is None else frozenset(locked)
    leg = Leg(call.memory)
    leg.waiting = leg.rebuild.start(0.0)
    for _ in range(tries):
        assert leg.rebuild.skipped == []
        refuse_update(leg, param=None)
    assert (leg.rebuild.skipped, leg.waiting) == ([(SESSION, "bad")], [])


def test_new_settings_have_their_own_tries():
    """What was refused was another's."""
    call = settings_call()
    leg = Leg(call.memory)
    leg.waiting = leg.rebuild.start(0.0)
    rest = leg.waiting[1:]
    refuse_update(leg, param=None)
    leg.waiting = rest
    leg.pump()
    call.talk.update(instructions="Be new.")
    call.follow()
    leg.build(catch_up=True)
    assert (leg.rebuild.skipped, leg.rebuild.session["instructions"]) == ([], "Be new.")


def test_settings_without_an_answer_are_counted_until_it_comes():
    """The server may be slow."""
    leg = Leg(settings_call().memory)
    (update, *rest) = leg.rebuild.start(0.0)
    leg.waiting = rest
    leg.pump()
    leg.let_pass(APPLY)
    assert leg.rebuild.skipped == [(SESSION, "timeout")]
    leg.tell(leg.talk.send_raw(update))
    assert leg.rebuild.skipped == []


def test_a_call_whose_session_is_not_known_is_told_without_settings():
    """The model was lost before it said any."""
    call = text_call("a")
    call.memory.session = {}
    leg = Leg(call.memory).build()
    assert [event["type"] for event in leg.sent] == ["conversation.item.create"] * 2
    assert leg.rebuild.is_ready


def test_the_anchor_ids_cannot_be_too_long():
    """Of however many legs."""
    assert len(f"{rebuild.ANCHOR}{10**9}_{10**6}") <= 32


def test_settings_are_no_item_that_is_skipped():
    """The count is of what the model no longer knows of the conversation."""
    rebuild = Rebuild(memory := Memory(), lambda: "r.1", 1, 10.0)
    memory.on_session({"type": "realtime", "instructions": "Hi"})
    memory.on_item({"id": "x" * 33, "type": "message", "role": "user"}, 0.0)
    rebuild.start(0.0)
    rebuild.on_tick(10.0)
    assert [code for _, code in rebuild.skipped] == ["timeout", "string_above_max_length"]
    assert rebuild.items_skipped == 1
