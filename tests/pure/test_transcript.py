"""What the readers of a call are told: each fact as it changes, and nothing that has not changed."""

import json
from typing import Any

import pytest

from relay.core.transcript import Fact, Transcript

WALL = 1_700_000_000.12345


class Reader:
    """A reader that keeps the facts, as the call's home does."""

    def __init__(self) -> None:
        self.transcript = Transcript()
        self.facts: dict[str, Any] = {}

    def note(self, facts: list[Fact]) -> int:
        """Keep what changed; returns how many facts did."""
        for name, value in facts:
            if value is None:
                del self.facts[name]
            else:
                self.facts[name] = json.loads(value)
        return len(facts)

    def item(self, item_id: Any = "a", **fields: Any) -> int:
        return self.note(self.transcript.on_item({"id": item_id, "type": "message", **fields}, WALL))

    def done(self, **response: Any) -> int:
        return self.note(self.transcript.on_response_done(response, WALL))

    @property
    def entry(self) -> dict[str, Any]:
        """The only item."""
        (entry,) = (value for name, value in self.facts.items() if name.startswith("item."))
        return entry


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_the_session_is_a_fact(reader):
    """Who attaches is greeted with it."""
    assert reader.transcript.on_session({"model": "m"}) == [("session", b'{"model":"m"}')]


@pytest.mark.parametrize(
    ("item", "entry"),
    [
        (
            {"type": "message", "role": "user", "object": "realtime.item", "content": [{"transcript": "hi"}]},
            {"type": "message", "role": "user", "text": "hi"},
        ),
        (
            {"role": "assistant", "status": "completed", "content": [{"text": "a"}, {"text": ""}, {"transcript": "b"}]},
            {"type": "message", "role": "assistant", "status": "completed", "text": "a b"},
        ),
        ({"content": [None, "x", {"audio": "QUJD"}, {"text": None}]}, {"type": "message", "text": ""}),
        (
            {"type": "function_call", "name": "f", "call_id": "c", "arguments": '{"x":1}', "status": "completed"},
            {"type": "function_call", "name": "f", "call_id": "c", "arguments": '{"x":1}', "status": "completed"},
        ),
        (
            {"type": "function_call_output", "call_id": "c", "output": ""},
            {"type": "function_call_output", "call_id": "c", "output": ""},
        ),
        ({"content": None, "name": None}, {"type": "message"}),
    ],
    ids=["user", "assistant", "no words", "tool call", "result", "bare"],
)
def test_an_entry_has_what_a_reader_needs_of_an_item(reader, item, entry):
    """And none of its audio; when it came is the reader's only clock."""
    reader.item(**item)
    assert reader.facts == {"item.00000000": {"id": "a", **entry, "at": 1_700_000_000.123}}


@pytest.mark.parametrize("item_id", [None, 7, [], {}], ids=repr)
def test_an_item_without_an_id_is_overlooked(reader, item_id):
    """Nothing could ever be said of it again."""
    assert reader.item(item_id) == 0


def test_items_have_names_in_the_order_in_which_they_came(reader):
    """A reader sorts by them; a name is not used twice."""
    for item_id in "ab":
        reader.item(item_id)
    reader.note(reader.transcript.on_deleted("a"))
    reader.item("c")
    assert {name: entry["id"] for name, entry in reader.facts.items()} == {"item.00000001": "b", "item.00000002": "c"}


def test_an_item_that_comes_again_unchanged_is_no_news(reader):
    """``added`` and ``done`` say the same of most items; each fact costs a write."""
    assert reader.item(role="user") == 1
    assert reader.item(role="user") == 0
    assert reader.item(role="user", status="completed") == 1
    assert reader.entry["status"] == "completed"


def test_words_that_are_known_stay_known(reader):
    """The transcript may come before the item does a second time, without it."""
    reader.item(role="user", content=[{"type": "input_audio", "transcript": None}])
    assert reader.note(reader.transcript.on_transcribed({"item_id": "a", "transcript": "hello"})) == 1
    assert reader.item(role="user", content=[{"type": "input_audio", "transcript": None}]) == 0
    assert reader.entry["text"] == "hello"


def test_a_transcript_that_comes_again_counts_as_it_is_now(reader):
    """Some servers send it as it grows."""
    reader.item()
    for words in ("hel", "hello"):
        reader.note(reader.transcript.on_transcribed({"item_id": "a", "transcript": words}))
    assert reader.entry["text"] == "hello"
    reader.note(reader.transcript.on_transcribed({"item_id": "a", "transcript": None}))
    assert reader.entry["text"] == ""


def test_an_answer_that_was_cut_says_where(reader):
    """What its text says beyond that was never heard."""
    reader.item(role="assistant", content=[{"transcript": "long"}])
    assert reader.note(reader.transcript.on_truncated({"item_id": "a", "audio_end_ms": 1500})) == 1
    assert (reader.entry["text"], reader.entry["truncated_ms"]) == ("long", 1500)
    assert reader.note(reader.transcript.on_truncated({"item_id": "a", "audio_end_ms": 1500})) == 0


@pytest.mark.parametrize("item_id", ["unknown", None, ["a"]], ids=repr)
def test_what_is_said_of_an_unknown_item_is_overlooked(reader, item_id):
    """It may have been dropped, or deleted."""
    reader.item()
    assert reader.note(reader.transcript.on_transcribed({"item_id": item_id, "transcript": "x"})) == 0
    assert reader.note(reader.transcript.on_truncated({"item_id": item_id, "audio_end_ms": 1})) == 0
    assert reader.note(reader.transcript.on_deleted(str(item_id))) == 0


def test_a_deleted_item_is_no_longer_told(reader):
    """It is no longer in the conversation."""
    reader.item()
    assert reader.note(reader.transcript.on_deleted("a")) == 1
    assert reader.facts == {}


def test_the_oldest_items_are_dropped_and_counted(reader):
    """The limit protects the call's home; a reader must know that something is missing."""
    for number in range(1002):
        reader.item(f"i{number}")
    assert reader.facts.pop("dropped") == 2
    assert len(reader.facts) == 1000
    assert min(reader.facts) == "item.00000002"


@pytest.mark.parametrize("field", ["text", "arguments", "output", "transcript"])
def test_long_words_are_cut_with_a_mark(reader, field):
    """A tool's result may be a document; a reader sees that there was more."""
    words = "é" * 20_001
    if field == "transcript":
        reader.item()
        reader.note(reader.transcript.on_transcribed({"item_id": "a", "transcript": words}))
    else:
        reader.item(**({"content": [{"text": words}]} if field == "text" else {field: words}))
    assert reader.entry["text" if field == "transcript" else field] == "é" * 20_000 + "…"


def test_words_of_just_the_limit_are_not_cut(reader):
    """The mark says that something is missing."""
    reader.item(output="x" * 20_000)
    assert reader.entry["output"] == "x" * 20_000


def test_a_result_that_is_no_text_is_told_as_one(reader):
    """The model refuses it; the transcript must not."""
    reader.item(output=7, arguments=["x"])
    assert (reader.entry["output"], reader.entry["arguments"]) == ("7", "['x']")


# What a response leaves


def test_a_finished_response_completes_its_items(reader):
    """Its output has the words that the items lacked when they were added."""
    reader.item(role="assistant", status="in_progress", content=[])
    words = [{"type": "output_audio", "transcript": "Good day"}]
    assert reader.done(output=[{"id": "a", "role": "assistant", "status": "completed", "content": words}]) == 1
    assert (reader.entry["text"], reader.entry["status"]) == ("Good day", "completed")


@pytest.mark.parametrize("output", [None, "x", [], [None], [{"id": "aside"}], [{"id": []}], [{}]], ids=repr)
def test_a_response_outside_the_conversation_adds_no_items(reader, output):
    """Its output is in no conversation; and whatever a server sends, the call goes on."""
    reader.item()
    assert reader.done(output=output) == 0


def test_usage_is_added_up_over_the_responses(reader):
    """Whatever kinds of tokens a model names, however deep."""
    usage = {
        "total_tokens": 10,
        "input_token_details": {"text_tokens": 4, "cached_tokens_details": {"audio_tokens": 1}},
    }
    reader.done(usage=usage)
    assert reader.facts["usage"] == {**usage, "responses": 1}
    reader.done(usage={**usage, "output_tokens": 2.5})
    assert reader.facts["usage"] == {
        "total_tokens": 20,
        "input_token_details": {"text_tokens": 8, "cached_tokens_details": {"audio_tokens": 2}},
        "output_tokens": 2.5,
        "responses": 2,
    }


@pytest.mark.parametrize("usage", [None, 7, []], ids=repr)
def test_a_response_without_usage_costs_nothing(reader, usage):
    """One that failed, or another server's."""
    assert reader.done(usage=usage) == 0


def test_a_usage_that_changes_its_shape_keeps_what_it_had(reader):
    """Whatever a server sends, the call goes on; what is no count is not added up."""
    reader.done(usage={"a": 1, "b": {"c": 1}, "d": True, "e": "x", "f": None})
    reader.done(usage={"a": {"c": 1}, "b": 5})
    assert reader.facts["usage"] == {"a": 1, "b": {"c": 1}, "responses": 2}


def test_usage_that_a_server_names_like_the_count_of_responses_is_no_trouble(reader):
    """Whatever a server sends, the call goes on, and the count is ours."""
    for _ in range(2):
        reader.done(usage={"responses": {"x": 1}, "total_tokens": 1})
    assert reader.facts["usage"] == {"responses": 2, "total_tokens": 2}
