"""A response whose model is gone ends as one that is cancelled: compared with what the simulated model itself sends."""

import itertools
import json
from typing import Any

import pytest

from ops.simulator.conversation import Conversation
from ops.simulator.output import Output, Pace
from ops.simulator.reply import Call
from ops.simulator.session import Event
from relay.core.unfinished import FOLLOWED, Unfinished
from tests.pure.test_simulator_session import TOOL, Talk, check_with_the_sdk


class Listener:
    """A session of the model, and what is known of its responses."""

    def __init__(self, **session: Any) -> None:
        self.talk = Talk()
        self.talk.update(tools=[TOOL], **session)
        self.unfinished = Unfinished()
        self.taken = 0

    def ask(self, text: str, seconds: float, **response: Any) -> None:
        """Ask for an answer, and listen for so long."""
        self.talk.say(text)
        self.talk.send("response.create", response=response)
        self.talk.wait(seconds)
        self.follow()

    def follow(self) -> None:
        for event in self.talk.all[self.taken :]:
            if event["type"] in FOLLOWED:
                self.unfinished.on_event(event["type"], json.loads(json.dumps(event)))
        self.taken = len(self.talk.all)

    def close(self) -> list[Event]:
        """The end that is made up, checked against the SDK's classes."""
        ids = itertools.count(1)
        events = [json.loads(message) for message in self.unfinished.close(lambda: f"own_{next(ids)}")]
        for event in events:
            check_with_the_sdk(event)
        assert [event["event_id"] for event in events] == [f"own_{number}" for number in range(1, len(events) + 1)]
        return events

    @property
    def only(self) -> str:
        (response_id,) = self.unfinished.response_ids
        return response_id


def comparable(events: list[Event]) -> list[Event]:
    """Without ids of the events, and without the bill: nobody knows it."""
    bare = [{key: value for key, value in event.items() if key != "event_id"} for event in events]
    for event in bare:
        if "response" in event:
            event["response"] = {**event["response"], "usage": None}
    return bare


def kinds(events: list[Event]) -> list[str]:
    return [event["type"] for event in events]


@pytest.mark.parametrize("seconds", [0.0, 0.04, 0.06, 0.1, 0.3, 0.7, 1.2])
@pytest.mark.parametrize("modality", ["audio", "text"])
@pytest.mark.parametrize("aside", [False, True], ids=["in the conversation", "aside"])
def test_a_message_that_is_cut_off_ends_as_if_cancelled(modality, seconds, aside):
    """Event by event, wherever it is: an SDK cannot tell the difference."""
    listener = Listener(output_modalities=[modality])
    outside = {"conversation": "none", "metadata": {"for": "me"}} if aside else {}
    listener.ask("talk for 6 seconds " + "and on " * 60, seconds, **outside)
    response_id = listener.only
    made = listener.close()
    real = listener.talk.send("response.cancel", response_id=response_id)
    assert comparable(made) == comparable(real)
    assert made[-1]["response"]["usage"] is None


def test_a_tool_call_that_is_cut_off_ends_as_if_cancelled_but_for_what_would_run_it():
    """The conversation does not have it any more: whoever ran it would have nobody to tell."""
    said: list[Event] = []
    ids = itertools.count(1)
    output = Output(
        Call("get_weather", '{"city":"Ghent","days":1}'),
        1,
        "r",
        "item_2",
        "call_2",
        conversation=Conversation("conv"),
        pace=Pace(),
        emit=lambda kind, **fields: said.append({"type": kind, "event_id": f"event_{next(ids)}", **fields}),
    )
    output.open()
    output.step()
    first = {"type": "response.output_item.done", **AT, "item": {**ITEM, "status": "completed"}}
    unfinished = follow(CREATED, first, *said)
    assert not unfinished.made_tool_call("r")
    assert unfinished.open_items("r") == ["item_2"]
    made = ends(unfinished)
    said.clear()
    output.close("incomplete")
    assert kinds(said) == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "conversation.item.done",
    ]
    assert comparable(made[:-1]) == comparable(said)[1:2]
    assert made[0]["item"]["arguments"] == '{"city":"Ghent",'
    assert made[-1]["response"]["output"] == [first["item"], made[0]["item"]]
    check_with_the_sdk(made[0])


def test_a_tool_call_that_is_whole_is_known():
    """Somebody is about to answer it, so its response is not simply lost."""
    listener = Listener()
    listener.ask("first say something, then get weather", 0.06)
    response_id = listener.only
    events = listener.talk.wait()
    for event in events:
        if event["type"] == "response.done":
            break
        listener.unfinished.on_event(event["type"], event)
    assert listener.unfinished.made_tool_call(response_id)
    assert listener.unfinished.open_items(response_id) == []
    assert kinds(listener.close()) == ["response.done"]


def test_a_response_that_is_done_is_not_ended_again():
    """An SDK would take it for another's end."""
    listener = Listener()
    listener.ask("hello", 60.0)
    assert listener.unfinished.response_ids == []
    assert listener.close() == []


def test_every_response_under_way_is_ended_once():
    """Those outside the conversation, too; and afterwards none is known."""
    listener = Listener()
    listener.ask("talk for 5 seconds", 0.2)
    for _ in range(2):
        listener.talk.send("response.create", response={"conversation": "none"})
    listener.talk.wait(0.1)
    listener.follow()
    under_way = listener.unfinished.response_ids
    assert len(under_way) == 3
    ended = [event["response"]["id"] for event in listener.close() if event["type"] == "response.done"]
    assert ended == under_way
    assert (listener.unfinished.response_ids, listener.close()) == ([], [])


def test_nothing_is_known_of_a_response_that_is_not_there():
    """It is done, or another leg's."""
    unfinished = Unfinished()
    assert unfinished.open_items("r") == []
    assert not unfinished.made_tool_call("r")


# What a server may say besides


def follow(*events: dict[str, Any]) -> Unfinished:
    unfinished = Unfinished()
    for event in events:
        unfinished.on_event(event["type"], event)
    return unfinished


def ends(unfinished: Unfinished) -> list[Event]:
    return [json.loads(message) for message in unfinished.close(lambda: "e")]


CREATED = {"type": "response.created", "response": {"id": "r", "status": "in_progress"}}
ITEM = {"id": "i", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
AT = {"response_id": "r", "output_index": 0}
ADDED = {"type": "response.output_item.added", **AT, "item": ITEM}
PART = {**AT, "item_id": "i", "content_index": 0}
PART_ADDED = {"type": "response.content_part.added", **PART, "part": {"type": "audio", "transcript": ""}}


@pytest.mark.parametrize(
    "ended",
    [
        ["response.output_audio.done"],
        ["response.output_audio.done", "response.output_audio_transcript.done"],
        ["response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done"],
    ],
    ids=len,
)
def test_what_the_model_has_ended_is_not_ended_again(ended):
    """It was about to go on when it was lost."""
    unfinished = follow(CREATED, ADDED, PART_ADDED, *({"type": kind, **PART} for kind in ended))
    rest = ["response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done"]
    assert kinds(ends(unfinished)) == [*rest[len(ended) :], "response.output_item.done", "response.done"]


@pytest.mark.parametrize("kind", ["text", "output_text", "audio", "output_audio"])
def test_a_part_is_known_by_either_name(kind):
    """The SDK's types say ``audio`` and ``text``, other servers what the items say."""
    part = {**PART_ADDED, "part": {"type": kind}}
    name = "output_audio_transcript" if "audio" in kind else "output_text"
    delta = {"type": f"response.{name}.delta", **PART, "delta": "Hi"}
    last = ends(follow(CREATED, ADDED, part, delta))[-1]["response"]
    words = {"output_audio": "transcript", "output_text": "text"}
    name = f"output_{kind.removeprefix('output_')}"
    assert last["output"][0]["content"] == [{"type": name, words[name]: "Hi"}]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.created", "response": None},
        {"type": "response.done", "response": None},
        {"type": "response.done", "response": {"id": "other"}},
        {"type": "response.output_item.added", "response_id": "other", "output_index": 0, "item": ITEM},
        {"type": "response.output_item.added", "response_id": "r", "output_index": None, "item": ITEM},
        {"type": "response.output_item.added", "response_id": "r", "output_index": 1, "item": None},
        {"type": "conversation.item.added", "item": None},
        {"type": "conversation.item.added", "item": {"id": "other"}},
        {"type": "response.content_part.added", **PART, "content_index": "0", "part": {"type": "audio"}},
        {"type": "response.content_part.added", **PART, "content_index": 1, "part": {"type": "smell"}},
        {"type": "response.content_part.added", **PART, "content_index": 1, "part": None},
        {"type": "response.output_text.delta", **PART, "content_index": 1, "delta": "x"},
        {"type": "response.output_text.delta", **PART, "output_index": 1, "delta": "x"},
        {"type": "response.output_audio_transcript.delta", **PART, "delta": None},
        {"type": "response.function_call_arguments.delta", **PART, "output_index": 1, "delta": "x"},
        {"type": "response.content_part.done", **PART, "content_index": 1},
        {"type": "response.output_audio.delta", **PART, "delta": "AAAA"},
    ],
    ids=lambda event: event["type"],
)
def test_what_makes_no_sense_changes_nothing(event):
    """Whatever a server sends, the call goes on."""
    plain = ends(follow(CREATED, ADDED, PART_ADDED))
    assert ends(follow(CREATED, ADDED, PART_ADDED, event)) == plain


def test_an_item_of_another_kind_ends_as_incomplete():
    """Its insides are its own."""
    added = {**ADDED, "item": {"id": "i", "type": "mcp_call", "name": "f"}}
    assert ends(follow(CREATED, added))[0]["item"] == {**added["item"], "status": "incomplete"}


def test_an_item_that_comes_only_when_it_is_done_is_done():
    """Some servers say nothing before."""
    done = {"type": "response.output_item.done", **AT, "item": {**ITEM, "status": "completed"}}
    events = ends(follow(CREATED, done))
    assert kinds(events) == ["response.done"]
    assert events[0]["response"]["output"] == [done["item"]]


def test_a_cut_tool_call_is_none_that_is_whole():
    """The model said that it is not."""
    call = {"id": "i", "type": "function_call", "status": "incomplete", "call_id": "c", "name": "f", "arguments": "{"}
    unfinished = follow(CREATED, {"type": "response.output_item.done", **AT, "item": call})
    assert not unfinished.made_tool_call("r")


def test_an_item_that_stands_behind_nothing_says_so():
    """The first of a conversation."""
    added = {"type": "conversation.item.added", "previous_item_id": 7, "item": ITEM}
    (event,) = (each for each in ends(follow(CREATED, ADDED, added)) if each["type"] == "conversation.item.done")
    assert event["previous_item_id"] is None


def test_what_is_remembered_is_bounded():
    """Whatever a server sends; the oldest responses are forgotten, and more words are let go."""
    unfinished = follow(*({"type": "response.created", "response": {"id": f"r{number}"}} for number in range(70)))
    assert unfinished.response_ids == [f"r{number}" for number in range(6, 70)]
    items = [{**ADDED, "output_index": number, "item": {**ITEM, "id": f"i{number}"}} for number in range(130)]
    done = ({**item, "type": "response.output_item.done"} for item in items[120:])
    assert follow(CREATED, *items, *done).open_items("r") == [f"i{number}" for number in range(120)]
    parts = ({**PART_ADDED, "content_index": number} for number in range(130))
    events = ends(follow(CREATED, ADDED, *parts))
    assert len(events[-1]["response"]["output"][0]["content"]) == 128
    delta = {"type": "response.output_audio_transcript.delta", **PART, "delta": "x" * 200_000}
    events = ends(follow(CREATED, ADDED, PART_ADDED, delta, delta, {**delta, "delta": "y"}))
    assert events[-1]["response"]["output"][0]["content"][0]["transcript"] == "x" * 256_000
