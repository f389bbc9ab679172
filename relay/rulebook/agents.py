"""Agents: who answers a call, with what session, and what a browser's client may say to it. Pure."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from relay.rulebook.fields import Table

DEFAULT: Final = "default"
LOCKED: Final = frozenset({"instructions", "prompt", "tools", "model", "max_output_tokens"})

_TRANSCRIPTION: Final = MappingProxyType({"model": "gpt-4o-mini-transcribe"})
_KEYS: Final = frozenset(
    {
        *("model", "upstream", "upstreams", "voice", "instructions", "tools", "turn_detection", "transcription"),
        *("max_output_tokens", "session", "locked", "events", "tenants"),
    }
)
# Fields of a session in the Realtime API (GA) that can be locked.
_FIELDS: Final = frozenset(
    {
        *("audio", "audio.input", "audio.output", "include", "instructions", "max_output_tokens", "model"),
        *("output_modalities", "parallel_tool_calls", "prompt", "reasoning", "tool_choice", "tools", "tracing"),
        *("truncation", "temperature"),
        *(f"audio.input.{name}" for name in ("format", "noise_reduction", "transcription", "turn_detection")),
        *(f"audio.output.{name}" for name in ("format", "speed", "voice")),
    }
)
_EVENT: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")


@dataclass(frozen=True, slots=True)
class Agent:
    """Who answers: the model, where it is asked for, and the session that a call begins with."""

    name: str
    model: str | None = None
    upstreams: tuple[str, ...] = (DEFAULT,)  # names, in the order in which they are tried
    session: Mapping[str, Any] = field(default_factory=dict, repr=False)  # body of the session.update
    transcription: Mapping[str, Any] | None = field(  # of what people say, for the call's memory; None: none
        default_factory=lambda: dict(_TRANSCRIPTION)
    )
    locked: frozenset[str] = LOCKED  # fields of the session that are the server's, whatever a browser says
    events: frozenset[str] | None = None  # types of events that a browser may send; None: all
    tenants: frozenset[str] | None = None  # who may use it; None: all


def parse_agents(document: Table, upstreams: Collection[str]) -> Mapping[str, Agent]:
    """Read the ``[agents.*]`` tables; ``upstreams`` are the names to which they may be routed.

    ``voice``, ``instructions``, ``turn_detection``, ``transcription``, ``tools`` and ``max_output_tokens`` are put
    where the Realtime API (GA) has them; ``session`` is laid over that as it stands, for servers whose session has
    another shape. There is always an agent "default".

    Raises:
        Mistake: an unknown key, a wrong type or an unknown upstream.
    """
    agents = {DEFAULT: Agent(DEFAULT)}
    for name, table in document.tables("agents"):
        table.only(_KEYS)
        session, events, tenants = _session(table), table.texts("events"), table.texts("tenants")
        if not all(_EVENT.fullmatch(event) for event in events or ()):
            raise table.mistake("events", "must be types of client events, such as response.create")
        agents[name] = Agent(
            name,
            model=table.text("model"),
            upstreams=_upstreams(table, upstreams),
            session=MappingProxyType(session),
            transcription=_transcription(table),
            locked=_locked(table, session),
            events=None if events is None else frozenset(events),
            tenants=None if tenants is None else frozenset(tenants),
        )
    return MappingProxyType(agents)


def _upstreams(table: Table, known: Collection[str]) -> tuple[str, ...]:
    one, several = table.text("upstream"), table.texts("upstreams")
    key, names = ("upstream", (one,)) if one is not None else ("upstreams", several)
    if one is not None and several is not None:
        raise table.mistake("upstreams", "cannot stand beside upstream")
    if names is None:
        key, names = "upstream", (DEFAULT,)
    if not names or len(set(names)) < len(names):
        raise table.mistake(key, "must name upstreams, each once")
    if not set(names) <= set(known):
        raise table.mistake(key, f"no such upstream; there are: {', '.join(sorted(known))}")
    return names


def _locked(table: Table, session: Mapping[str, Any]) -> frozenset[str]:
    names = table.texts("locked")
    if names is None:
        return LOCKED
    for name in names:
        # A lock that is misspelt locks nothing, so what is no field of the API must at least be one of this agent's.
        if name not in _FIELDS and name.partition(".")[0] not in (set(session) | _FIELDS) - {"audio", "type"}:
            raise table.mistake("locked", f"{name!r} is no field of a session that can be locked")
    return frozenset(names)


def _transcription(table: Table) -> Mapping[str, Any] | None:
    value = table.json("transcription")
    if value is False:
        return None
    if value is not None and not isinstance(value, Mapping):
        raise table.mistake("transcription", "must be a table, or false")
    return dict(_TRANSCRIPTION if value is None else value)


def _session(table: Table) -> dict[str, Any]:
    session: dict[str, Any] = {}
    instructions, tools = table.text("instructions", empty=True), table.json("tools")
    if instructions is not None:
        session["instructions"] = instructions
    if tools is not None:
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            raise table.mistake("tools", "must be a list of tables")
        session["tools"] = tools
    most = _max_output_tokens(table)
    if most is not None:
        session["max_output_tokens"] = most
    audio = {key: value for key, value in (("input", _input(table)), ("output", _output(table))) if value}
    if audio:
        session["audio"] = audio
    over = table.table("session")
    if over is not None:
        session.update(table.json("session"))
    return {"type": "realtime", **session} if session else {}


def _max_output_tokens(table: Table) -> int | str | None:
    if table.values.get("max_output_tokens") == "inf":
        return "inf"
    try:
        return table.whole("max_output_tokens")
    except ValueError:
        raise table.mistake("max_output_tokens", 'must be a whole number from 1 up, or "inf"') from None


def _input(table: Table) -> dict[str, Any]:
    audio: dict[str, Any] = {}
    detection, transcription = table.json("turn_detection"), table.json("transcription")
    if detection is not None:
        if detection is not False and not isinstance(detection, Mapping):
            raise table.mistake("turn_detection", "must be a table, or false")
        audio["turn_detection"] = detection or None  # false: the client says when a turn is over
    if isinstance(transcription, Mapping):
        audio["transcription"] = transcription
    return audio


def _output(table: Table) -> dict[str, Any]:
    voice = table.text("voice")
    return {} if voice is None else {"voice": voice}
