"""What the shell commands say: one line per event, why a call ended, and what to do about a refusal."""

from typing import Any

import pytest

from relay.core.endings import Why
from relay.shell.events import BadStream, Decoder, Narrator, Sent
from relay.shell.node import Trouble, place, read_claims, read_token
from relay.shell.words import (
    ENDINGS,
    calls,
    duration,
    entry,
    hint,
    open_tool_calls,
    plain,
    plain_lines,
    receipt,
    revoked,
    table,
    usage,
    why,
)
from relay.tokens import mint

CALL = {
    "object": "realtime.call",
    "id": "rtc_iad_1",
    "state": "live",
    "region": "iad",
    "node": "iad-1",
    "agent": "default",
    "model": "sim",
    "started_at": 1000.0,
}
TOMBSTONE = {**CALL, "state": "ended", "ended_at": 1151.4, "why": "model_lost", "fault": "model", "close_code": 1011}


def clock(at: float) -> str:
    """Seconds are enough to see which time it is."""
    return f"<{at:.0f}>"


# Text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("hello", "hello"),
        ("Grüße 👩‍👩‍👧", "Grüße 👩‍👩‍👧"),
        ("two\nlines", "two\\nlines"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
    ],
    ids=["plain", "unicode", "line", "escape", "c1", "bidi", "surrogate"],
)
def test_what_people_say_cannot_steer_the_terminal(said: str, shown: str) -> None:
    """A caller could else forge lines, or rewrite the title and the clipboard of whoever watches."""
    assert plain(said) == shown


def test_a_long_text_is_cut_and_says_how_long_it_was() -> None:
    """A tool's result may have megabytes."""
    assert plain("x" * 501) == "x" * 500 + "… (501 characters)"
    assert plain("x" * 500) == "x" * 500


def test_a_text_of_several_lines_keeps_them_and_nothing_else() -> None:
    """A transcript is whole, however long its lines are."""
    assert plain_lines("[0:01] user: \x1b[1m\n" + "x" * 600) == "[0:01] user: \\x1b[1m\n" + "x" * 600


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 ms"),
        (0.034, "34 ms"),
        (1.84, "1.8 s"),
        (151.4, "2 min 31 s"),
        (3599.7, "1 h 0 min"),
        (7260, "2 h 1 min"),
    ],
)
def test_a_duration_is_as_exact_as_anyone_reads_it(seconds: float, words: str) -> None:
    """Clocks of two machines differ: a call is never younger than nothing."""
    assert duration(seconds) == words


def test_a_table_is_aligned_without_trailing_spaces() -> None:
    """Whoever copies an id copies nothing else."""
    assert table([["ID", "AGE"], ["rtc_1", "2"], ["x", "10"]]) == ["ID     AGE", "rtc_1  2", "x      10"]


def test_calls_are_listed_with_whole_ids_and_ages() -> None:
    """The id is what the other commands want."""
    assert calls([CALL, {"id": "rtc_2", "state": "moving"}], now=1060.0) == [
        "ID         STATE   REGION  NODE   AGENT    MODEL  AGE",
        "rtc_iad_1  live    iad     iad-1  default  sim    1 min 0 s",
        "rtc_2      moving  -       -      -        -      -",
    ]
    assert calls([], now=0.0) == []


# Receipts


def test_a_receipt_says_how_far_it_came_how_fast_and_where() -> None:
    """And the ids, for whoever looks further."""
    found = {
        "id": "msg_1",
        "item_id": "item_1",
        "status": "applied",
        "reached": {"accepted": 10.0, "delivered": 10.1, "applied": 10.25},
        "node": "iad-1",
        "region": "iad",
        "error": None,
    }
    assert receipt(found) == "applied after 250 ms by iad-1 (iad), message msg_1, item item_1"


def test_a_failed_receipt_has_the_models_own_words() -> None:
    """They are what tells the backend what to change."""
    found = {"id": "m", "status": "failed", "node": "n", "region": "r", "error": {"code": "bad", "message": "No."}}
    assert receipt(found) == "failed by n (r), message m: bad: No."


# Why


ENDS = [row for row in Why if not row.goes_on]  # the others leave no tombstone


@pytest.mark.parametrize("row", ENDS, ids=lambda row: row.label)
def test_every_way_to_end_is_explained(row: Why) -> None:
    """A new row of the table of endings needs words and advice here."""
    assert ENDINGS[row.label].what
    assert ENDINGS[row.label].advice.endswith(".")


def test_no_ending_is_explained_that_does_not_exist() -> None:
    """What is no longer in the table of endings goes here too."""
    assert set(ENDINGS) == {row.label for row in ENDS}


def test_an_ended_call_says_when_where_why_whose_fault_and_what_next() -> None:
    """In words that somebody understands who has not read the table of endings."""
    assert why({**TOMBSTONE, "upstream_close_code": 1006}, clock, now=9999.0) == [
        "rtc_iad_1 ended at <1151> after 2 min 31 s on node iad-1 in iad: "
        "the connection to the model broke (model_lost).",
        "Whose doing: the model's side.",
        "Close codes: the client got 1011, the model's server sent 1006.",
        "Next: the client may connect again and gets a new call. "
        "If it happens often, look at the model provider's status.",
    ]


def test_an_ending_of_a_newer_relay_is_named() -> None:
    """The command may be older than the node."""
    first, *_, last = why({**TOMBSTONE, "why": "sun_storm", "fault": "sun"}, clock, now=0.0)
    assert first.endswith("this version of the command has no words for it (sun_storm).")
    assert last == "Next: see the table of endings in the README."


def test_a_call_that_was_lost_sight_of_says_so() -> None:
    """Its Redis came back empty: there is no tombstone."""
    assert (
        why({"id": "rtc_1", "state": "ended"}, clock, now=0.0)[0]
        == "rtc_1 ended: the relay lost sight of it (unknown)."
    )


def test_a_live_call_says_where_it_is_what_was_last_and_what_it_waits_for() -> None:
    """A call that hangs mostly hangs on a tool result."""
    transcript = [
        {"type": "message", "role": "system", "text": "be kind", "at": 1001.0},
        {"type": "message", "role": "user", "text": "", "at": 1002.0},
        {
            "type": "function_call",
            "name": "book",
            "arguments": "{}",
            "call_id": "call_1",
            "status": "completed",
            "at": 1003.0,
        },
        {"type": "function_call", "name": "look", "arguments": "{}", "call_id": "call_2", "status": "completed"},
        {"type": "function_call_output", "call_id": "call_1", "output": "done", "at": 1004.0},
    ]
    usage = {"input_tokens": 12, "output_tokens": 0, "responses": 1}
    assert why({**CALL, "age": 30.0, "usage": usage, "transcript": transcript}, clock, now=9999.0) == [
        "rtc_iad_1 lives on node iad-1 in iad, since <1000> (30.0 s); agent default, model sim.",
        "Tokens so far: 12 input, 0 output.",
        "The last that was said or done:",
        "  <1003>  tool       book({})",
        "  --:--:--  tool       look({})",
        "  <1004>  tool       book -> done",
        "It waits for the result of look: relay tool-result rtc_iad_1 call_2 JSON",
    ]


@pytest.mark.parametrize(
    ("state", "words"),
    [("reserved", "is reserved: its client has not connected yet."), ("moving", "is between nodes")],
)
def test_a_call_that_nobody_owns_yet_says_so(state: str, words: str) -> None:
    """Neither is an error."""
    assert words in why({**CALL, "state": state}, clock, now=1000.0)[0]


def test_a_tool_call_that_is_still_being_written_waits_for_nothing() -> None:
    """A result would be refused."""
    written = {"type": "function_call", "name": "f", "call_id": "c1", "status": "completed"}
    writing = {"type": "function_call", "name": "f", "call_id": "c2", "status": "in_progress"}
    with_output = {"type": "function_call", "name": "f", "call_id": "c3", "output": "", "status": "completed"}
    assert open_tool_calls([written, writing, with_output]) == {"c1": "f"}


def test_an_entry_of_a_tool_call_with_its_result_is_one_line() -> None:
    """However the node writes it."""
    one = {"type": "function_call", "name": "f", "arguments": "{}", "output": "ok"}
    assert entry(one, {}) == ("tool", "f({}) -> ok")


# Refusals


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "call_not_found", "`relay calls`"),
        (410, "call_ended", "`relay why rtc_1`"),
        (409, "unknown_tool_call", "`relay why rtc_1`"),
        (409, "tool_call_answered", "`relay transcript rtc_1`"),
        (401, "invalid_api_key", "`relay token --scope read --scope control`"),
        (403, "missing_scope", "`relay token --scope read --scope control`"),
        (503, "region_unreachable", "--id msg_1"),
        (429, "inbox_full", "--id msg_1"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, code: str, words: str) -> None:
    """The name of the error alone helps nobody at a prompt."""
    assert words in hint(status, code, call_id="rtc_1", message_id="msg_1")


def test_a_refusal_that_speaks_for_itself_gets_no_hint() -> None:
    """A wrong value is named by the node."""
    assert hint(422, "invalid_value") == ""


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://host:8080", "http://host:8080"),
        ("ws://host:8080/", "http://host:8080"),
        ("wss://host/v1/realtime", "https://host"),
        ("https://host/v1/", "https://host"),
        ("https://host/relay", "https://host/relay"),
    ],
)
def test_a_url_is_taken_as_the_sdks_have_it(given: str, url: str) -> None:
    """People copy it from a client's configuration."""
    assert place(given, " token\n") == (url, "token")


@pytest.mark.parametrize("url", ["", "host:8080", "ftp://host", "http://", "http://host:99999", "http://host?x=1"])
def test_a_url_of_no_node_is_named_with_its_variable(url: str) -> None:
    """Before anything is sent there."""
    with pytest.raises(Trouble, match="RELAY_URL") as caught:
        place(url, "token")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("token", ["", "  ", "a b", "a\nb", "tökén"])
def test_a_token_that_cannot_be_one_is_refused_without_repeating_it(token: str) -> None:
    """It would break the header, and an error goes into logs."""
    with pytest.raises(Trouble) as caught:
        place("http://host", token)
    assert not token.strip() or token not in str(caught.value)


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Any) -> None:
    """The same way as a missing token."""
    with pytest.raises(Trouble, match="--token-file"):
        read_token(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(Trouble, match="--token-file"):
        read_token(tmp_path / "binary")


# The stream


STREAM = (
    b'\xef\xbb\xbf: hello\r\n\r\nid: 5-1\r\nevent: error\r\ndata: {"a":1}\r\n\r\nid: 5-2\ndata:x\ndata: y\n\n'
    b"event: lost\n\nid: bad\0\rdata\r\rretry: 5\ndata: \xff\n\n"
)
EVENTS = [
    Sent("5-1", "error", '{"a":1}'),
    Sent("5-2", "message", "x\ny"),
    Sent("5-2", "message", ""),
    Sent("5-2", "message", "�"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_is_cut_into_events_wherever_it_breaks(size: int) -> None:
    """A line's end, a character or a number may be split between two reads."""
    decoder = Decoder()
    sent = [event for at in range(0, len(STREAM), size) for event in decoder.feed(STREAM[at : at + size])]
    assert sent == EVENTS


@pytest.mark.parametrize("piece", [b"data: xxxxxxxx\n", b"xxxxxxxx"], ids=["many lines", "one line"])
def test_an_event_has_a_limit(piece: bytes) -> None:
    """What isn't a relay may never end a line."""
    decoder = Decoder(most_bytes=100)
    for _ in range(100 // len(piece)):
        assert decoder.feed(piece) == []
    with pytest.raises(BadStream):
        decoder.feed(piece * 20)


# Events


def told(*events: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines for some events."""
    narrator = Narrator()
    return [line for event in events if (line := narrator.tell(event)) is not None]


def item(**fields: Any) -> dict[str, Any]:
    """An item that came into the conversation."""
    return {"type": "conversation.item.added", "item": fields}


TOOL = {"type": "function_call", "name": "look", "arguments": "{}", "call_id": "call_1", "status": "completed"}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            item(type="message", role="system", content=[{"type": "input_text", "text": "be kind"}]),
            ("system", "be kind"),
        ),
        (
            item(type="message", role="user", content=[{"type": "input_image"}, {"type": "input_text", "text": "see"}]),
            ("user", "see (an image)"),
        ),
        (item(type="mcp_list_tools"), ("item", "mcp_list_tools")),
        (
            {"type": "conversation.item.input_audio_transcription.completed", "transcript": " Hello. \n"},
            ("user", "Hello."),
        ),
        (
            {"type": "conversation.item.input_audio_transcription.failed", "error": {"message": "too short"}},
            ("user", "(could not be transcribed: too short)"),
        ),
        ({"type": "input_audio_buffer.committed", "item_id": "i"}, ("user", "(sent what was recorded)")),
        (
            {"type": "input_audio_buffer.timeout_triggered"},
            ("user", "(is silent for so long that the model speaks again)"),
        ),
        ({"type": "response.output_audio_transcript.done", "transcript": "Hi\x07"}, ("assistant", "Hi\\x07")),
        ({"type": "response.output_text.done", "text": "Hi"}, ("assistant", "Hi")),
        ({"type": "response.output_item.done", "item": TOOL}, ("tool", "look({}) as call_1")),
        (
            {"type": "response.output_item.done", "item": {**TOOL, "status": "incomplete"}},
            ("tool", "look({}) as call_1, cut off"),
        ),
        ({"type": "conversation.item.truncated", "audio_end_ms": 700}, ("assistant", "(was heard for 700 ms only)")),
        ({"type": "conversation.item.deleted", "item_id": "i"}, ("item", "i was deleted")),
        (
            {
                "type": "response.done",
                "response": {"status": "cancelled", "status_details": {"reason": "turn_detected"}},
            },
            ("assistant", "(cut off: turn_detected)"),
        ),
        (
            {"type": "response.done", "response": {"status": "failed", "status_details": {"error": {"code": "quota"}}}},
            ("error", "the response failed: quota"),
        ),
        (
            {"type": "response.done", "response": {"status": "incomplete", "status_details": {"reason": "max"}}},
            ("assistant", "(not finished: max)"),
        ),
        ({"type": "error", "error": {"code": "bad", "message": "No."}}, ("error", "bad: No.")),
        ({"type": "relay.gap"}, ("relay", "(events are missing here)")),
        ({"type": "brand.new"}, ("event", "brand.new")),
        ({"type": "error", "error": "what?"}, ("error", "no reason given")),
    ],
    ids=lambda each: each.get("type", "") if isinstance(each, dict) else "",
)
def test_an_event_is_a_line(event: dict[str, Any], line: tuple[str, str]) -> None:
    """Who, and what they said or did."""
    assert told(event) == [line]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.output_audio_transcript.delta", "delta": "H"},
        {"type": "response.created"},
        {"type": "response.done", "response": {"status": "completed"}},
        {"type": "response.output_audio_transcript.done", "transcript": ""},
        {"type": "response.output_item.done", "item": {"type": "message"}},
        {"type": "rate_limits.updated"},
        item(type="message", role="assistant", content=[]),
        item(type="message", role="user", content=[{"type": "input_audio", "transcript": None}]),
        item(type="function_call", name="look", arguments="", status="in_progress"),
    ],
    ids=lambda each: each["type"],
)
def test_what_comes_whole_elsewhere_has_no_line(event: dict[str, Any]) -> None:
    """Every word once."""
    assert told(event) == []


def test_a_tool_result_names_its_tool() -> None:
    """The ids alone say nothing to a person."""
    output = item(type="function_call_output", call_id="call_1", output="21")
    assert told({"type": "response.output_item.done", "item": TOOL}, output)[1] == ("tool", "look -> 21")
    assert told(output) == [("tool", "call_1 -> 21")]  # watched from later on


def test_the_names_of_tool_calls_are_bounded() -> None:
    """A call may last an hour, and a watch outlive many of them."""
    narrator = Narrator()
    for number in range(300):
        narrator.tell({"type": "response.output_item.done", "item": {**TOOL, "call_id": f"call_{number}"}})
    assert len(narrator._tools) == 256


def test_speech_has_its_length() -> None:
    """Without transcription it is all that can be said of what a person said."""
    events = [
        {"type": "input_audio_buffer.speech_started", "audio_start_ms": 200, "item_id": "i"},
        {"type": "input_audio_buffer.speech_stopped", "audio_end_ms": 2000, "item_id": "i"},
        {"type": "input_audio_buffer.committed", "item_id": "i"},
    ]
    assert told(*events) == [("user", "(starts to speak)"), ("user", "(spoke for 1.8 s)")]


def test_a_session_says_what_matters_and_later_only_what_changed() -> None:
    """Of a session with fifty fields."""
    session: dict[str, Any] = {
        "model": "sim",
        "instructions": "Be\nkind.",
        "tools": [{"type": "function", "name": "look"}],
        "audio": {"input": {"turn_detection": {"type": "server_vad"}}, "output": {"voice": "marin"}},
    }
    lines = told(
        {"type": "session.created", "session": session},
        {"type": "session.updated", "session": session},
        {"type": "session.updated", "session": {**session, "instructions": "Be brief."}},
        {"type": "session.updated", "session": {**session, "instructions": ""}},
    )
    assert lines == [
        ("session", "model sim; voice marin; tools look; turn detection server_vad; instructions “Be\\nkind.”"),
        ("session", "instructions “Be brief.”"),
        ("session", "changed"),
    ]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "session.created", "session": {"audio": [], "tools": "all", "voice": 1}},
        {"type": "conversation.item.added", "item": {"type": "message", "content": "text"}},
        {"type": "input_audio_buffer.speech_stopped", "audio_end_ms": "late"},
        {"type": "response.done", "response": None},
        {},
    ],
)
def test_an_event_of_another_shape_is_no_crash(event: dict[str, Any]) -> None:
    """Other models' servers fill the same names with other things."""
    told(event)


# Usage and revocation


DAY = {
    "day": "2026-11-21",
    "agent": "sales",
    "region": None,
    "calls": 2,
    "seconds": 125.2,
    "audio_seconds_in": 3.25,
    "audio_seconds_out": 40.0,
    "responses": 4,
    "messages": 1,
    "input_text_tokens": 10,
    "input_audio_tokens": 20,
    "input_image_tokens": 30,
    "output_text_tokens": 5,
    "output_audio_tokens": 6,
}


def test_usage_is_a_table_whose_last_row_is_the_sum() -> None:
    """Only what was grouped by has a column."""
    heading, first, second, total = usage([DAY, {**DAY, "agent": "\x1b[2Jx"}])
    assert heading.split() == [
        *("DAY", "AGENT", "CALLS", "TIME", "AUDIO-IN", "AUDIO-OUT", "RESPONSES", "MESSAGES", "TOKENS-IN", "TOKENS-OUT")
    ]
    cells = "2 2 min 5 s 3.2 s 40.0 s 4 1 60 11"
    assert " ".join(first.split()) == f"2026-11-21 sales {cells}"
    assert " ".join(second.split()) == f"2026-11-21 \\x1b[2Jx {cells}"
    assert " ".join(total.split()) == "total 4 4 min 10 s 6.5 s 1 min 20 s 8 2 120 22"


def test_a_single_sum_has_no_total_and_none_has_no_table() -> None:
    """It would only say the same again."""
    assert len(usage([{**DAY, "day": None}])) == 2
    assert usage([]) == []


def test_a_revocation_says_where_it_holds() -> None:
    """And that it takes a moment."""
    words = revoked({"jti": "abc\x1b", "regions": ["iad", "lhr"]})
    assert words == "abc\\x1b is revoked in iad, lhr: within seconds it opens nothing, and its calls end."


@pytest.mark.parametrize("prefix", ["", "ek_", " "])
def test_a_token_says_its_own_id(prefix: str) -> None:
    """Whoever found one where it should not be has the token, and nothing else."""
    token = mint("x" * 32, tenant="acme", scope=["call"], expires_at=1790000000, jti="j1")
    claims = read_claims(prefix + token + "\n")
    assert claims is not None
    assert (claims["jti"], claims["tenant"], claims["exp"]) == ("j1", "acme", 1790000000)


@pytest.mark.parametrize("text", ["", "j1", "a.b", "a.b.c", "a.!!.c", "a.W10.c", "a.bnVsbA.c", "a.4pyTIA.c", "a.b.c.d"])
def test_what_is_no_token_has_no_claims(text: str) -> None:
    """It is taken for an id."""
    assert read_claims(text) is None
