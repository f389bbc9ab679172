"""What a person in a call hears and reads, as the tests' talker reckons it."""

from typing import Any

import pytest

from tests.support.hearing import Gap, Playout, View, differences

SECOND = 48_000  # bytes


def test_audio_that_comes_early_waits_for_what_is_before_it():
    playout = Playout()
    playout.hear("a", SECOND, now=10.0)
    playout.hear("a", SECOND, now=10.1)
    assert (playout.until, playout.seconds, list(playout.gaps)) == (12.0, 2.0, [])


def test_a_silence_inside_an_answer_is_a_gap_and_one_between_answers_is_not():
    playout = Playout()
    playout.hear("a", SECOND, now=10.0)
    playout.hear("a", SECOND, now=11.5)
    playout.hear("b", SECOND, now=20.0)
    assert list(playout.gaps) == [Gap("a", 11.0, 0.5)]


def test_what_was_heard_of_an_answer_that_is_cut_is_what_was_played():
    playout = Playout()
    playout.hear("a", SECOND, now=10.0)
    playout.hear("b", 2 * SECOND, now=10.0)
    assert playout.stop(now=11.5) == ("b", 500)
    assert playout.seconds == 1.5
    assert playout.stop(now=11.5) is None


def added(item_id: str, previous: str | None, **fields: Any) -> dict[str, Any]:
    item = {"id": item_id, "type": "message", "role": "user", "content": [], **fields}
    return {"type": "conversation.item.added", "previous_item_id": previous, "item": item}


def words(item_id: str, transcript: str) -> dict[str, Any]:
    return {"type": "response.output_audio_transcript.done", "item_id": item_id, "transcript": transcript}


@pytest.fixture
def view() -> View:
    view = View()
    for event in (added("a", None), added("c", "a", role="assistant"), added("b", "a"), words("c", "Hello.")):
        view.apply(event)
    return view


def test_items_are_in_the_conversations_order_with_their_words(view: View):
    assert [(item["id"], item["text"]) for item in view.items()] == [("a", ""), ("b", ""), ("c", "Hello.")]


def test_words_that_were_cut_are_gone(view: View):
    view.apply({"type": "conversation.item.truncated", "item_id": "c", "content_index": 0, "audio_end_ms": 10})
    assert view.items()[-1]["text"] == ""


def test_the_same_conversation_has_no_differences_but_for_re_anchor_items(view: View):
    anchor = {"id": "relay_anchor_1", "type": "message", "role": "system", "text": "Go on."}
    assert differences(view.items(), [*view.items(), anchor]) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items[:-1],
        lambda items: [*items, {"id": "d", "type": "message", "role": "user", "text": ""}],
        lambda items: items[::-1],
        lambda items: [*items[:-1], {**items[-1], "text": "Hullo."}],
    ],
    ids=["missing", "more", "order", "words"],
)
def test_a_difference_is_told(view: View, change: Any):
    assert differences(view.items(), change(view.items()))
