"""What a call knows of its conversation: each fact as it changes, nothing that has not; and known again elsewhere."""

import json
import random
from typing import Any

import pytest

from relay.core.memory import Fact, Memory

WALL = 1_700_000_000.12345


class Reader:
    """A reader that keeps the facts, as the call's home does; the ids of what went are of no interest to it."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.kept: dict[str, bytes] = {}

    def note(self, facts: list[Fact]) -> int:
        """Keep what changed; returns how many facts did."""
        for name, value in facts:
            if value is None:
                self.kept.pop(name, None)
            else:
                self.kept[name] = value
        return sum(name != "gone" for name, _ in facts)

    @property
    def facts(self) -> dict[str, Any]:
        return {name: json.loads(value) for name, value in self.kept.items() if name != "gone"}

    @property
    def order(self) -> list[str]:
        """The items' ids as a reader sees them."""
        return [entry["id"] for name, entry in sorted(self.facts.items()) if name.startswith("item.")]

    def elsewhere(self) -> "Reader":
        """Another node, which knows what is kept."""
        other = Reader()
        other.kept = dict(self.kept)
        other.note(other.memory.restore(self.kept))
        return other

    def item(self, item_id: Any = "a", **fields: Any) -> int:
        return self.note(self.memory.on_item({"id": item_id, "type": "message", **fields}, WALL))

    def done(self, **response: Any) -> int:
        return self.note(self.memory.on_response_done(response, WALL))

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
    assert reader.memory.on_session({"model": "m"}) == [("session", b'{"model":"m"}')]


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
        ({"content": None, "name": None, "role": 7}, {"type": "message"}),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:"}, {"text": "this"}]},
            {"type": "message", "role": "user", "text": "(a picture) this"},
        ),
    ],
    ids=["user", "assistant", "no words", "tool call", "result", "bare", "picture"],
)
def test_an_entry_has_what_a_reader_needs_of_an_item(reader, item, entry):
    """And none of its audio; when it came is the reader's only clock."""
    reader.item(**item)
    assert reader.facts == {"item.00000000": {"id": "a", **entry, "at": 1_700_000_000.123}}


@pytest.mark.parametrize("item_id", [None, 7, [], {}, ""], ids=repr)
def test_an_item_without_an_id_is_overlooked(reader, item_id):
    """Nothing could ever be said of it again."""
    assert reader.item(item_id) == 0


def test_items_have_names_in_the_order_in_which_they_came(reader):
    """A reader sorts by them; a name is not used twice."""
    for item_id in "ab":
        reader.item(item_id)
    reader.note(reader.memory.on_deleted("a"))
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
    assert reader.note(reader.memory.on_transcribed({"item_id": "a", "transcript": "hello"})) == 1
    assert reader.item(role="user", content=[{"type": "input_audio", "transcript": None}]) == 0
    assert reader.entry["text"] == "hello"


def test_a_transcript_that_comes_again_counts_as_it_is_now(reader):
    """Some servers send it as it grows."""
    reader.item()
    for words in ("hel", "hello"):
        reader.note(reader.memory.on_transcribed({"item_id": "a", "transcript": words}))
    assert reader.entry["text"] == "hello"
    reader.note(reader.memory.on_transcribed({"item_id": "a", "transcript": None}))
    assert reader.entry["text"] == ""


def test_an_answer_that_was_cut_says_where(reader):
    """What its text says beyond that was never heard."""
    reader.item(role="assistant", content=[{"transcript": "long"}])
    assert reader.note(reader.memory.on_truncated({"item_id": "a", "audio_end_ms": 1500})) == 1
    assert (reader.entry["text"], reader.entry["truncated_ms"]) == ("long", 1500)
    assert reader.note(reader.memory.on_truncated({"item_id": "a", "audio_end_ms": 1500})) == 0


@pytest.mark.parametrize("heard_ms", [None, "1500"], ids=repr)
def test_an_answer_that_was_cut_nobody_knows_where_is_as_it_was(reader, heard_ms):
    """Whatever a server sends, the facts are what another node can read."""
    reader.item(role="assistant")
    assert reader.note(reader.memory.on_truncated({"item_id": "a", "audio_end_ms": heard_ms})) == 0


def test_how_long_an_answer_is_belongs_to_it(reader):
    """Of one that was cut off it tells which words were heard."""
    reader.item(role="assistant")
    assert reader.note(reader.memory.on_audio("a", 2500)) == 1
    assert reader.note(reader.memory.on_audio("a", 2500)) == 0
    assert reader.entry["audio_ms"] == 2500


def test_a_hidden_item_says_so_for_good(reader):
    """Another node must keep it from the client, too."""
    reader.note(reader.memory.on_item({"id": "a", "type": "message"}, WALL, hidden=True))
    reader.item(role="system")
    assert reader.entry["hidden"] is True


@pytest.mark.parametrize("item_id", ["unknown", None, ["a"]], ids=repr)
def test_what_is_said_of_an_unknown_item_is_overlooked(reader, item_id):
    """It may have been dropped, or deleted."""
    reader.item()
    assert reader.note(reader.memory.on_transcribed({"item_id": item_id, "transcript": "x"})) == 0
    assert reader.note(reader.memory.on_truncated({"item_id": item_id, "audio_end_ms": 1})) == 0
    assert reader.note(reader.memory.on_deleted(str(item_id))) == 0


def test_a_deleted_item_is_no_longer_told(reader):
    """It is no longer in the conversation."""
    reader.item()
    assert reader.note(reader.memory.on_deleted("a")) == 1
    assert reader.facts == {}


def test_the_oldest_items_are_dropped_and_counted(reader):
    """The limit protects the call's home; a reader must know that something is missing."""
    for number in range(1002):
        reader.item(f"i{number}")
    assert reader.facts["dropped"] == reader.memory.dropped == 2
    assert len(reader.order) == 1000
    assert "item.00000001" not in reader.facts
    assert (reader.order[0], reader.order[-1], reader.memory.last_id) == ("i2", "i1001", "i1001")


def test_the_bytes_of_the_items_are_bounded(reader):
    """A tool's results may be documents, and the call's home has so much room and no more."""
    for number in range(12):
        reader.item(f"i{number}", output="é" * 100_000)
    assert reader.order == [f"i{number}" for number in range(2, 12)]
    assert reader.facts["dropped"] == 2
    assert sum(len(value) for name, value in reader.kept.items() if name.startswith("item.")) <= 2 * 1024 * 1024
    reader.note(reader.memory.on_deleted("i2"))
    reader.item("small")
    assert reader.facts["dropped"] == 2


def test_an_item_that_alone_is_too_large_is_dropped(reader):
    """Whatever a server sends, what is kept stays bounded."""
    reader.item("a")
    reader.item("b", **dict.fromkeys(("arguments", "output"), "\x01" * 256000))
    assert (reader.order, reader.facts["dropped"], reader.memory.last_id) == ([], 2, None)


def test_a_home_without_room_has_the_oldest_dropped(reader):
    """What the conversation goes on from is its end."""
    for item_id in "ab":
        reader.item(item_id)
    reader.note(reader.memory.drop_oldest())
    assert (reader.order, reader.facts["dropped"]) == (["b"], 1)
    reader.note(reader.memory.drop_oldest())
    assert reader.memory.drop_oldest() == []
    assert reader.facts["dropped"] == 2


@pytest.mark.parametrize("field", ["text", "arguments", "output", "transcript"])
def test_long_words_are_cut_with_a_mark(reader, field):
    """A tool's result may be a document; the model takes back so much and no more, the mark included."""
    words = "é" * 256_001
    if field == "transcript":
        reader.item()
        reader.note(reader.memory.on_transcribed({"item_id": "a", "transcript": words}))
    else:
        reader.item(**({"content": [{"text": words}]} if field == "text" else {field: words}))
    assert reader.entry["text" if field == "transcript" else field] == "é" * 255_999 + "…"


def test_words_of_just_the_limit_are_not_cut(reader):
    """The mark says that something is missing."""
    reader.item(output="x" * 256_000)
    assert reader.entry["output"] == "x" * 256_000


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


# Where an item stands


def test_an_item_stands_behind_the_one_that_its_event_names(reader):
    """Readers sort by the names: those behind it move up."""
    for item_id in "abc":
        reader.item(item_id)
    assert reader.note(reader.memory.on_item({"id": "x"}, WALL, "a")) == 3
    assert reader.order == [entry["id"] for entry in reader.memory.entries] == ["a", "x", "b", "c"]
    reader.item("d")
    assert reader.order == ["a", "x", "b", "c", "d"]


def test_an_item_takes_the_place_of_one_that_went(reader):
    """Then nothing needs to move."""
    for item_id in "abc":
        reader.item(item_id)
    reader.note(reader.memory.on_deleted("b"))
    assert reader.note(reader.memory.on_item({"id": "x"}, WALL, "a")) == 1
    assert reader.order == ["a", "x", "c"]


@pytest.mark.parametrize("after", [None, "unknown", "c", 7, ["a"]], ids=repr)
def test_an_item_whose_place_is_not_known_stands_at_the_end(reader, after):
    """Servers say nothing of the first, and some never say anything."""
    for item_id in "abc":
        reader.item(item_id)
    reader.note(reader.memory.on_item({"id": "x"}, WALL, after))
    assert reader.order == ["a", "b", "c", "x"]


def test_an_answer_without_a_word_makes_room_for_itself(reader):
    """It is not written yet; what stood in its place must not be found twice."""
    for item_id in "ab":
        reader.item(item_id)
    answer = {"id": "x", "type": "message", "role": "assistant", "status": "in_progress"}
    reader.note(reader.memory.on_item(answer, WALL, "a"))
    assert reader.order == ["a", "b"]
    reader.item("x", role="assistant", status="completed", content=[{"transcript": "hi"}])
    assert reader.order == ["a", "x", "b"]


def test_half_of_a_move_loses_nothing(reader):
    """The writes for it may be cut anywhere: another node finds an item twice at worst, and keeps it once."""
    for item_id in "abcd":
        reader.item(item_id)
    before = dict(reader.kept)
    facts = reader.memory.on_item({"id": "x"}, WALL, "a")
    for written in range(len(facts) + 1):
        reader.kept = dict(before)
        reader.note(facts[:written])
        other = reader.elsewhere()
        assert [each for each in other.order if each != "x"] == ["a", "b", "c", "d"]
        assert other.order == [entry["id"] for entry in other.memory.entries]
    assert other.order == ["a", "x", "b", "c", "d"]


def test_a_random_conversation_is_told_and_known_again_in_its_order():
    """Whatever comes, goes and stands between."""
    for seed in range(40):
        rng, reader, order = random.Random(seed), Reader(), []
        for number in range(60):
            if order and rng.random() < 0.2:
                gone = rng.choice(order)
                order.remove(gone)
                reader.note(reader.memory.on_deleted(gone))
                continue
            after = rng.choice([None, *order])
            order.insert(order.index(after) + 1 if after else len(order), f"i{number}")
            reader.note(reader.memory.on_item({"id": f"i{number}", "type": "message"}, WALL, after))
            if rng.random() < 0.1:
                reader = reader.elsewhere()
        assert reader.order == order
        assert [entry["id"] for entry in reader.elsewhere().memory.entries] == order


# Words under way


def say(reader: Reader, item_id: str, *words: str) -> None:
    for word in words:
        reader.memory.on_words(item_id, word)


def test_words_under_way_are_no_facts(reader):
    """There are many of them, and the whole comes soon."""
    reader.item(role="assistant", status="in_progress", content=[])
    say(reader, "a", "Good", " day")
    assert reader.facts == {}, "an answer without a word is not worth a write either"
    assert reader.memory.under_way == ["a"]
    reader.item(role="assistant", status="completed", content=[{"transcript": "Good day!"}])
    assert (reader.entry["text"], reader.memory.under_way) == ("Good day!", [])


def test_an_answer_that_is_cut_off_has_the_words_so_far(reader):
    """The model that would have said the rest is gone."""
    reader.item(role="assistant", status="in_progress", content=[])
    say(reader, "a", "Good", " day")
    assert reader.note(reader.memory.on_interrupted(["a"])) == 1
    assert (reader.entry["text"], reader.entry["status"]) == ("Good day", "incomplete")
    assert reader.note(reader.memory.on_interrupted(["a"])) == 0


def test_an_answer_that_is_cut_off_keeps_the_words_that_it_had(reader):
    """A server may say them with the item, as far as they are."""
    reader.item(role="assistant", status="in_progress", content=[{"text": "Good"}])
    reader.note(reader.memory.on_interrupted(["a"]))
    assert (reader.entry["text"], reader.entry["status"]) == ("Good", "incomplete")


def test_an_item_that_ends_without_its_words_has_those_that_came(reader):
    """A server may leave them out of an item that it cut off."""
    reader.item(role="assistant", status="in_progress", content=[])
    say(reader, "a", "Good", " day")
    reader.item(role="assistant", status="incomplete", content=[{"type": "output_audio", "transcript": None}])
    assert reader.entry["text"] == "Good day"


@pytest.mark.parametrize(
    "item",
    [
        {"type": "message", "role": "assistant"},
        {"type": "function_call", "name": "f", "call_id": "c", "arguments": '{"x'},
    ],
    ids=["no words", "tool call"],
)
def test_what_is_cut_off_before_it_means_anything_goes(reader, item):
    """A tool call that is not whole can be answered by nobody."""
    reader.item(**item, status="in_progress")
    say(reader, "a", "odd" if item["type"] == "function_call" else "")
    reader.note(reader.memory.on_interrupted(["a", "unknown"]))
    assert reader.order == []


def test_a_tool_call_that_ends_has_no_words(reader):
    """Its arguments are its own."""
    for status in ("in_progress", "completed"):
        reader.item(type="function_call", status=status, arguments="{}")
    assert "text" not in reader.entry


def test_what_was_finished_is_not_cut_off(reader):
    """A tool call that is whole may be answered yet."""
    reader.item(type="function_call", status="completed", arguments="{}")
    reader.item("b", role="assistant", status="incomplete", content=[{"text": "So"}])
    assert reader.note(reader.memory.on_interrupted(["a", "b"])) == 0


def test_the_words_of_a_person_replace_those_under_way(reader):
    """They were collected in case that the model is lost."""
    reader.item(role="user", status="completed")
    say(reader, "a", "hel")
    reader.note(reader.memory.on_transcribed({"item_id": "a", "transcript": "hello"}))
    reader.item(role="user", status="completed", content=[{"transcript": None}])
    assert reader.entry["text"] == "hello"


def test_words_under_way_are_bounded(reader):
    """Whatever a server sends; and room comes back when an item ends, however it does."""
    for item_id in "abcd":
        reader.item(item_id, role="assistant", status="in_progress")
    say(reader, "unknown", "x" * 256_000)
    say(reader, "a", "x" * 255_999, "yy", "z")
    say(reader, "b", "let go")
    reader.note(reader.memory.on_interrupted(["b", "a"]))
    assert [(entry["id"], entry.get("text")) for entry in reader.memory.entries][:2] == [
        ("a", "x" * 255_999 + "…"),
        ("c", None),
    ]
    say(reader, "c", "x" * 256_000)
    reader.note(reader.memory.on_deleted("c"))
    say(reader, "d", "said")
    reader.note(reader.memory.on_interrupted(["d"]))
    assert reader.memory.entry("d")["text"] == "said"


# Another node


def test_another_node_knows_the_conversation_again(reader):
    """All of it, and it goes on where the first left off."""
    reader.note(reader.memory.on_session({"model": "m"}))
    for item_id in "abc":
        reader.item(item_id, role="user", content=[{"text": item_id}])
    reader.note(reader.memory.on_deleted("a"))
    reader.note(reader.memory.drop_oldest())
    reader.done(usage={"total_tokens": 10})
    other = reader.elsewhere()
    assert other.kept == reader.kept
    assert other.memory.session == {"model": "m"}
    assert other.memory.entries == reader.memory.entries
    assert (other.memory.dropped, other.memory.unreadable) == (1, 0)
    assert other.memory.usage == {"total_tokens": 10, "responses": 1}
    assert other.memory.has("c")
    assert not other.memory.has("b")
    assert other.memory.entry("b") is None
    for each in (reader, other):
        each.done(usage={"total_tokens": 5})
        each.item("d")
    assert other.facts == reader.facts


def test_nothing_is_known_of_a_call_without_facts(reader):
    """One that ended before it began."""
    assert reader.memory.restore({}) == []
    assert (reader.memory.session, reader.memory.entries, reader.memory.usage) == ({}, [], {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("item.00000001", b"sealed"),
        ("item.00000001", b"\xff"),
        ("item.00000001", b'{"type":"message"}'),
        ("item.00000001", b'{"id":"b","text":7}'),
        ("item.x", b'{"id":"b"}'),
        ("item.\u0661", b'{"id":"b"}'),
        ("session", b"[]"),
        ("usage", b"7"),
        ("dropped", b'"many"'),
        ("gone", b"[7]"),
    ],
)
def test_what_cannot_be_read_is_left_out_and_counted(reader, name, value):
    """A key that is gone must not cost the call; and what is written later must not stand where it was."""
    reader.item("a")
    reader.kept[name] = value
    other = Reader()
    assert other.memory.restore(reader.kept) == []
    assert other.memory.unreadable == 1
    assert [entry["id"] for entry in other.memory.entries] == ["a"]
    assert name not in dict(other.memory.on_item({"id": "c"}, WALL))


def test_a_count_of_responses_that_is_none_is_overlooked(reader):
    """Facts are another node's, of another version perhaps."""
    reader.memory.restore({"usage": b'{"total_tokens":1,"responses":"two"}'})
    assert reader.memory.usage == {}


def test_more_than_is_kept_is_not_taken_over(reader):
    """The bounds are this node's."""
    kept = {f"item.{number:08d}": json.dumps({"id": f"i{number}"}).encode() for number in range(1001)}
    reader.kept = dict(kept)
    reader.note(reader.memory.restore(kept))
    assert reader.facts["dropped"] == 1
    assert reader.order == [entry["id"] for entry in reader.memory.entries] == [f"i{n}" for n in range(1, 1001)]


# What backends put in


def put(item_id: str, text: str) -> dict[str, Any]:
    return {"id": item_id, "type": "message", "role": "system", "content": [{"type": "input_text", "text": text}]}


def adopted(reader: Reader, *items: dict[str, Any]) -> list[str]:
    reader.note(reader.memory.adopt(list(items), WALL))
    return [entry["id"] for entry in reader.memory.entries]


def test_what_a_backend_put_in_and_was_not_written_stands_at_the_end(reader):
    """It was told that the item is in the conversation."""
    reader.item("a")
    reader.note(reader.memory.on_item(put("b1", "one"), WALL))
    assert adopted(reader, put("b1", "one"), put("b2", "two")) == ["a", "b1", "b2"]
    assert reader.order == ["a", "b1", "b2"]
    assert reader.memory.entry("b2")["text"] == "two"


def test_what_a_backend_put_in_is_known_in_full(reader):
    """What is kept apart is exact."""
    reader.item("b1", type="message", content=[])
    assert adopted(reader, put("b1", "one")) == ["b1"]
    assert reader.memory.entry("b1")["text"] == reader.facts["item.00000000"]["text"] == "one"
    assert reader.note(reader.memory.adopt([put("b1", "one")], WALL)) == 0


def test_what_a_backend_put_in_and_was_deleted_stays_away(reader):
    """On this node or on the one before."""
    reader.item("b1")
    reader.note(reader.memory.on_deleted("b1"))
    assert adopted(reader.elsewhere(), put("b1", "one")) == []


def test_what_a_backend_put_in_long_ago_stays_away(reader):
    """It was among the oldest, which were let go; what came after one that is known was not."""
    for number in range(1400):
        reader.item(f"i{number}")
    ids = adopted(reader.elsewhere(), *(put(each, "x") for each in ("b1", "i500", "b2", "i1399", "b3", "b4")))
    assert ids[-3:] == ["i1399", "b3", "b4"]
    assert not {"b1", "b2"} & {*ids}
    reader.item("b6")
    reader.note(reader.memory.on_deleted("b6"))
    assert adopted(reader.elsewhere(), put("b5", "x"), put("b6", "x"))[-1] == "i1399"


def test_what_a_backend_put_in_is_missed_wherever_it_stood(reader):
    """Nothing of this conversation was let go, so that it should be there."""
    reader.item("a")
    assert adopted(reader, put("b1", "one"), put("a", "two")) == ["a", "b1"]


def test_an_item_that_went_may_come_again(reader):
    """Clients replace items so."""
    reader.item("a")
    reader.note(reader.memory.on_deleted("a"))
    reader.item("a")
    reader.note(reader.memory.on_deleted("b"))
    assert json.loads(reader.kept["gone"]) == []
    assert adopted(reader, put("a", "one")) == ["a"]


def test_a_backends_item_that_has_no_id_is_overlooked(reader):
    """There is nothing that it could be."""
    assert adopted(reader, {"type": "message"}) == []


def test_only_so_many_that_went_are_remembered(reader):
    """Nobody speaks of the others any more."""
    for number in range(300):
        reader.item(f"i{number}")
        reader.note(reader.memory.on_deleted(f"i{number}"))
    assert json.loads(reader.kept["gone"]) == [f"i{number}" for number in range(44, 300)]
