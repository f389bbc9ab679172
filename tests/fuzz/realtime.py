"""Appends that take the fast path, and what a locked client says: judged by readers that keep every key.

The strict reader is the standard library's, with all pairs of an object. The lax model is the one of the walks: it
takes names by their letters and all of several keys with one name.
"""

import json
from typing import Any

from hypothesis import strategies as st

from relay.core.locks import Locks, lock
from relay.core.realtime import is_whole_append
from tests.fuzz.target import Target
from tests.pure.test_locks_walk import LOCKED, MESSAGES, OPENING, SERVERS, LaxModel, Pairs

APPEND = "input_audio_buffer.append"
_APPENDS = tuple(
    json.dumps(event, separators=separators).encode()
    for separators in ((",", ":"), (", ", ": "))
    for event in ({"type": APPEND, "audio": "AAEC/+8="}, {"audio": "AAEC/+8=", "type": APPEND})
)


def check_append(data: bytes) -> None:
    """What takes the fast path is one append and nothing else, or JSON for nobody: neither strictly nor laxly read."""
    if not is_whole_append(data):
        return
    text = data.decode(errors="replace")
    for is_strict in (True, False):  # a lax reader lets line breaks and zeros stand in strings
        try:
            pairs = json.loads(text, object_pairs_hook=list, strict=is_strict)
        except ValueError:
            continue
        assert sorted(key for key, _ in pairs) == ["audio", "type"]
        assert dict(pairs)["type"] == APPEND
        assert isinstance(dict(pairs)["audio"], str)
    event, rest = json.JSONDecoder(strict=False).raw_decode(_closed(text))  # as who stops at the first value's end
    assert event["type"] == APPEND, rest


def _closed(text: str) -> str:
    """The text with backslashes as letters: what a reader sees that knows no escapes."""
    return text.replace("\\", "_")


# What a locked client says

_LOCKS = (
    Locks(lock(LOCKED, OPENING), lockable=LOCKED),
    Locks(lock(LOCKED, OPENING), frozenset({"session.update", "response.create", "session.instructions.append"})),
    Locks(lock(LOCKED | {"audio"}, OPENING), frozenset({"conversation.item.create", "x.y"})),
)


class _Model(LaxModel):
    """The walks' model; it knows more kinds of items that say nothing but what happened."""

    def _item(self, item: Any) -> None:
        kinds = item.all("type") if isinstance(item, Pairs) else []
        if kinds not in (["function_call"], ["mcp_approval_response"], ["item_reference"]) or item.all("role"):
            super()._item(item)


def check_locks(data: bytes) -> None:
    """No words of a locked client change what is locked: not for a model that reads JSON more laxly than any."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return  # a leg ends the call for it
    for locks in _LOCKS:
        for session_type in (None, "realtime"):
            model = _Model()
            model.session |= SERVERS
            passed = locks.passed(data, session_type)
            if passed is None or is_whole_append(passed):
                continue
            assert json.loads(passed, object_pairs_hook=_once)
            model.hears(passed)
            assert {key: model.session[key] for key in SERVERS} == SERVERS
            assert model.session["model"] == "m"
            assert model.instructed == []
            if session_type is not None:
                assert model.session["type"] == "realtime"
            assert locks.passed(passed, session_type) == passed  # what was judged is what is sent


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """No key stands twice: which of them counts would be the reader's choice."""
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


# Shapes

_PIECES = ['{"type":"', '{"type": "', '{"audio":"', '{"audio": "', APPEND, '"', '","', '", "', "audio", "type", '":"']
_PIECES += ['": "', '"}', "}", "{", "\\", "\\\\", '\\"', "\\u0022", ",", ":", " ", "AA=", "session.update", "\n", "\0"]
_PIECES += [
    f'{{"type":"{APPEND}","audio":"',
    f'","type":"{APPEND}"}}',
    f'", "type": "{APPEND}"}}',
    "é",
    '"event_id":"e"',
]
_APPENDED = st.lists(st.sampled_from(_PIECES), max_size=8).map(lambda pieces: "".join(pieces).encode())
_WRAPPED = st.builds(
    lambda ends, inner: ends[0] + inner + ends[1],
    st.sampled_from([(a[:-2], a[-2:]) for a in _APPENDS[::2]] + [(a[:10], a[18:]) for a in _APPENDS[1:2]]),
    _APPENDED,
)

APPENDS = Target(
    "append",
    check_append,
    _APPENDS,
    tuple(piece.encode() for piece in _PIECES),
    _APPENDED | _WRAPPED,
)
LOCKS = Target(
    "locks",
    check_locks,
    (
        *_APPENDS,
        b'{"type":"session.update","session":{"type":"realtime","instructions":"evil","tools":[],"speed":2}}',
        b'{"type":"session.update","event_id":"e","session":{"audio":{"output":{"voice":"evil","speed":1}}}}',
        b'{"type":"response.create","response":{"instructions":"evil","input":[{"type":"message","role":"system"}]}}',
        b'{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[]},"previous_item_id":"i"}',
        b'{"type":"conversation.item.create","item":{"type":"function_call_output","call_id":"c","output":"{}"}}',
        b'{"type":"session.instructions.append","session":{},"response":{},"item":{"type":"message","role":"user"}}',
        b'{"type":"x.y","Session":{"instructions":"evil"}}',
    ),
    tuple(
        word.encode()
        for word in (
            *(
                '"instructions":"evil"',
                '"Instructions":"evil"',
                '"in\\u017ftructions":"evil"',
                '"tools":[]',
                '"prompt":{}',
            ),
            *('"model":"evil"', '"type":"transcription"', '"Type":"message"', '"role":"system"', '"Role":"system"'),
            *(
                '"session":{',
                '"response":{',
                '"input":[',
                '"item":{',
                '"audio":{',
                '"output":{',
                '"voice":"evil"',
                "null",
            ),
            *(
                '"max_output_tokens":1',
                '"max_response_output_tokens":1',
                "}",
                "]",
                ",",
                ":",
                "session.update",
                "\\u0074",
            ),
            *('"response.create"', '"conversation.item.create"', '"type"', "\u017f", "\ufb01", '"audio":null'),
        )
    ),
    MESSAGES,
)
