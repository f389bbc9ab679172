"""The rulebook's text: a book or a BookError, and a book that can be used; no error and no book says a secret."""

import tomllib
from typing import Any

import msgspec
from hypothesis import strategies as st

from relay.core.locks import Locks, lock
from relay.rulebook.book import BookError, Defaults, Rulebook, parse_rulebook
from relay.rulebook.upstreams import UpstreamConfig
from tests.fuzz.target import Target

KEY = "KEY-OF-AN-UPSTREAM"
REGIONS = frozenset({"iad", "lhr"})
_DEFAULTS = Defaults(UpstreamConfig("default", "wss://models.example/v1"), (), REGIONS)


def _secret(kind: str, name: str) -> str:
    if name in {"blank", ""}:
        raise ValueError("no such variable is set")
    return f"{KEY} {name}" if name == "spaced" else KEY


def check_rulebook(data: bytes) -> None:
    """Text is a rulebook or is refused, with its line."""
    text = data.decode(errors="replace")
    book = _book_or_error(text)
    if isinstance(book, BookError):
        assert book.line is None or 1 <= book.line <= text.count("\n") + 1
        assert KEY not in str(book)
        return
    _check_book(book)
    raw = tomllib.loads(text)
    assert set(raw.get("agents", {})) | {"default"} == set(book.agents)
    assert set(raw.get("plans", {})) | {"default"} == set(book.plans)
    assert {name: table["plan"] for name, table in raw.get("tenants", {}).items()} == dict(book.tenants)


def _book_or_error(text: str) -> Rulebook | BookError:
    try:
        return parse_rulebook(text, _secret, _DEFAULTS)
    except BookError as error:
        return error


def _check_book(book: Rulebook) -> None:
    assert KEY not in repr(book)
    for agent in book.agents.values():
        sent: Any = msgspec.json.decode(msgspec.json.encode(dict(agent.session)))
        assert sent == agent.session
        msgspec.json.encode(agent.transcription)
        assert agent.upstreams
        assert set(agent.upstreams) <= set(book.upstreams)
        Locks(lock(agent.locked, agent.session), agent.events, lockable=agent.locked)
    for plan in book.plans.values():
        numbers = [value for key in plan.__slots__ if key != "name" and (value := getattr(plan, key)) is not None]
        assert all(0 < number <= 10**9 for number in numbers)
    for upstream in book.upstreams.values():
        assert upstream.url.lower().startswith(("ws://", "wss://"))
        text = upstream.url + "".join(map("".join, upstream.headers))
        assert not set(text) & set("\r\n\0")
    assert all(0 < book.share(region) <= 1 for region in REGIONS)
    assert sum(map(book.share, REGIONS)) <= 1 + 1e-6
    assert book.plan_for("nobody", None) is not None
    assert book.agent_for("default", "acme") is None or book.agents["default"].name == "default"


# Shapes

_FULL = b"""
[agents.default]
model = "gpt-realtime"
voice = "ash"
upstreams = ["default", "other"]
instructions = '''
Be kind.'''
turn_detection = { type = "server_vad", threshold = 0.5 }
tools = [{ type = "function", name = "refund", parameters = { type = "object" } }]
max_output_tokens = "inf"
locked = ["instructions", "audio.output.voice"]
events = ["response.create"]
tenants = ["acme"]

[agents.default.session]
include = ["item.input_audio_transcription.logprobs"]

[plans.gold]
concurrent_calls = 10
call_minutes_per_day = 100.5
[tenants.acme]
plan = "gold"
[upstreams.other]
url = "wss://other.example/v1"
key_env = "OTHER_KEY"
headers = { api-key = "{key}" }
models = { "gpt-realtime" = "theirs" }
[shares]
iad = 0.6
"""
_TABLES = st.sampled_from(
    [
        *(
            "agents",
            "agents.a",
            "agents.default",
            "agents.a.session",
            "agents.a.turn_detection",
            "plans",
            "plans.default",
        ),
        *("plans.gold", "tenants.acme", "upstreams.other", "upstreams.default", "upstreams.other.headers", "shares"),
        *("upstreams.other.models", "tenants.'a b'", "agents.''", "[agents.a.tools]", "x", "agents.a.session.x.y"),
    ]
)
_KEYS = st.sampled_from(
    [
        *("model", "upstream", "upstreams", "voice", "instructions", "tools", "turn_detection", "transcription"),
        *("max_output_tokens", "session", "locked", "events", "tenants", "concurrent_calls", "call_starts_per_minute"),
        *("call_minutes_per_day", "longest_call_seconds", "messages_per_second", "client_bytes_per_second", "plan"),
        *(
            "url",
            "key_env",
            "key_file",
            "headers",
            "model_parameter",
            "models",
            "iad",
            "lhr",
            "x",
            "session.audio.output",
        ),
    ]
)
_VALUES = st.sampled_from(
    [
        *("1", "0", "-1", "0.5", "1e400", "nan", "inf", "true", "false", "''", "'gold'", "'default'", "'other'", "[]"),
        *("{}", "'inf'", "['default']", "['default', 'default']", "[1, 'a']", "{ type = 'x', n = 1e3 }", "[{}, {}]"),
        *(
            "'wss://other.example'",
            "'ws://'",
            "'spaced'",
            "'blank'",
            "'OTHER'",
            "{ A = 'x {key}' }",
            "{ 'A\tb' = '{key}' }",
        ),
        *("1979-05-27", "07:32:00", "0xffffffffffffffffff", "['instructions']", "['audio.input']", "['nothing']"),
        *(
            "['response.create']",
            "['Bad']",
            '"\\u0000"',
            '"\\r\\nX: y"',
            "'''\n[a]\nb = 1\n'''",
            "[\n1,\n2]",
            "1000000001",
        ),
    ]
)
_LINES = st.one_of(
    st.builds("{} = {}".format, _KEYS, _VALUES),
    st.builds("{} = {}".format, _KEYS, _VALUES),
    st.builds("[{}]".format, _TABLES),
    st.sampled_from(["# a comment", "", "'", "[[agents]]", "agents.b.voice = 'ash'"]),
)

TARGET = Target(
    "rulebook",
    check_rulebook,
    (
        _FULL,
        *(b"[" + each for each in _FULL.split(b"\n[")[1:]),
        b"[agents.a]\nsession.a.a = 1",
        b"[agents.a.session.a.a]\ntools = 1",
        b"[agents.a]\nsession" + b".a" * 1500 + b" = 1",
        b"[plans.a]\ncall_minutes_per_day = 1\nconcurrent_calls = 1",
        b"[plans.a]\nconcurrent_calls = 99999999999999999999",
        b"[upstreams.a]\nurl = 'ws://h'\nkey_file = 'k'\nheaders = { A = \"{key}\\r\\nX: y\" }",
        b"[upstreams.a]\nurl = 'ws://h'\nkey_file = 'k'\nheaders = { A = \"x {key}\" }",
    ),
    tuple(
        word.encode()
        for word in (
            *("[agents.a]\n", "[plans.a]\n", "[tenants.a]\n", "[upstreams.a]\n", "[shares]\n", "session.a.a.a = 1\n"),
            *("= 1\n", "= 'x'\n", "= [", "]", "{", "}", "'''", '"""', "\n", ".", "nan", "inf", "1e400", "9999999999"),
            *(
                "1979-05-27",
                "\\r\\n",
                "key_env = 'x'\n",
                "{key}",
                "wss://h/",
                "\\u0000",
                "locked",
                "events",
                "voice = 'ash'\n",
                "'",
                '"',
                "#",
            ),
        )
    ),
    st.lists(_LINES, max_size=8).map(lambda lines: "\n".join(lines).encode()),
)
