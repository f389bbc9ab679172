"""What the shell commands say: calls, receipts, endings and refusals as plain text. Pure: times come as a function.

Whatever a person said, a model wrote or a tool returned goes through `plain`, so that it can't steer the terminal.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

Clock = Callable[[float], str]  # seconds since the epoch, as the reader's clock shows them
Json = Mapping[str, Any]

_MOST: Final = 500  # characters of one text in one line
_LAST_ENTRIES: Final = 3
_HOW_TO_SIGN: Final = (
    "make one with `relay token --scope read --scope control` (it signs with the nodes' RELAY_JWT_SECRET; "
    "`relay revoke` needs `--scope mint`)"
)
_TOKENS: Final = ("text", "audio", "image")
_USED: Final[Sequence[tuple[str, Sequence[str]]]] = (  # columns, and the counters that make them up
    ("CALLS", ("calls",)),
    ("TIME", ("seconds",)),
    ("AUDIO-IN", ("audio_seconds_in",)),
    ("AUDIO-OUT", ("audio_seconds_out",)),
    ("RESPONSES", ("responses",)),
    ("MESSAGES", ("messages",)),
    ("TOKENS-IN", [f"input_{kind}_tokens" for kind in _TOKENS]),
    ("TOKENS-OUT", [f"output_{kind}_tokens" for kind in _TOKENS]),
)


class Ending(NamedTuple):
    """What a row of the table of endings means to a person, and what to do about it."""

    what: str
    advice: str


_RECONNECT: Final = "the client may connect again and gets a new call."
_MODEL_AGAIN: Final = f"{_RECONNECT} If it happens often, look at the model provider's status."
ENDINGS: Final[Mapping[str, Ending]] = {
    "client_closed": Ending("the client closed it", "nothing to do, this is how calls end."),
    "client_lost": Ending(
        "the client's connection broke without a goodbye",
        f"{_RECONNECT} If it happens often, look at its network and at the proxies in between.",
    ),
    "node_lost": Ending(
        "the node that had it is gone, and its client did not come back in time",
        "look at that node's last log lines; clients with a key of their own resume at another node by themselves.",
    ),
    "client_silent": Ending(
        "the client stopped answering pings",
        f"{_RECONNECT} It lost its network, or its process hung or slept.",
    ),
    "client_slow": Ending(
        "the client took no byte for RELAY_STALL_SECONDS",
        f"{_RECONNECT} Its network is stuck, or its code reads the socket too rarely.",
    ),
    "client_protocol": Ending(
        "the client broke the rules of WebSocket", "mend the client: its log has the reason next to close code 1002."
    ),
    "client_binary": Ending(
        "the client sent a binary message where only JSON is taken",
        "send JSON text, or connect to /voice, which takes raw audio.",
    ),
    "client_text": Ending("the client sent text that is not UTF-8", "mend the client."),
    "client_too_big": Ending(
        "the client sent a larger message than it may",
        "send audio in smaller pieces, or raise RELAY_MAX_MESSAGE_BYTES or RELAY_MAX_BROWSER_MESSAGE_BYTES.",
    ),
    "model_closed": Ending("the model's server closed the session", f"its close code says why. {_MODEL_AGAIN}"),
    "model_expired": Ending(
        "the model's session reached the longest life that its provider allows", f"nothing to do, {_RECONNECT}"
    ),
    "model_lost": Ending("the connection to the model broke", _MODEL_AGAIN),
    "model_protocol": Ending("the model's server broke the rules of WebSocket", _MODEL_AGAIN),
    "model_slow": Ending("the model's server took no byte for RELAY_STALL_SECONDS", _MODEL_AGAIN),
    "model_silent": Ending("the model's server stopped answering pings", _MODEL_AGAIN),
    "model_unreachable": Ending(
        "the model's server could not be reached",
        "see whether RELAY_UPSTREAM_URL is right and can be reached from the node; the client may try again.",
    ),
    "model_busy": Ending(
        "the model's server had no room for it", "try again later, or ask the provider for a higher limit."
    ),
    "model_refused": Ending(
        "the model's server refused the session",
        "see whether the model's name is right and the account may use it; the node's log has the provider's answer.",
    ),
    "model_key": Ending(
        "the model's server refused the relay's own key", "give the nodes a good OPENAI_API_KEY or RELAY_UPSTREAM_KEY."
    ),
    "hung_up": Ending("a backend or an operator hung up", "nothing to do, somebody wanted this."),
    "call_too_long": Ending(
        "it lasted as long as its tenant's plan lets a call last",
        "nothing to do, or raise longest_call_seconds of the plan in the file that RELAY_CONFIG names.",
    ),
    "client_too_fast": Ending(
        "its client sent far more than its tenant's plan allows",
        "look at the client, or raise client_bytes_per_second and client_messages_per_second of the plan.",
    ),
    "minutes_spent": Ending(
        "its tenant has used up its plan's minutes of the day",
        "wait for midnight UTC, or raise call_minutes_per_day of the plan; `relay usage` shows what used them.",
    ),
    "token_revoked": Ending(
        "the token with which it was begun was revoked", "nothing to do, somebody wanted this; mint another token."
    ),
    "node_draining": Ending("its node was shut down", f"nothing to do, {_RECONNECT}"),
    "node_failed": Ending(
        "a bug of the relay ended it", "look for the call's id in the node's log and report what stands there."
    ),
}

_FAULTS: Final = {
    "client": "the client",
    "model": "the model's side",
    "bus": "the bus, which is Redis",
    "node": "the relay",
    "policy": "a rule, a backend or an operator that wanted it",
}


def plain(text: str, most: int = _MOST) -> str:
    """Return the text on one line, without anything that a terminal would obey; what is too long is cut."""
    shown = "".join(_visible(character) for character in text[:most])
    return shown if len(text) <= most else f"{shown}… ({len(text)} characters)"


def plain_lines(text: str) -> str:
    """Like `plain`, but of a text of several lines, and whole."""
    return "\n".join(plain(line, len(line)) for line in text.splitlines())


def _visible(character: str) -> str:
    if character.isprintable() or character == "\u200d":  # joins emoji
        return character
    return character.encode("unicode_escape").decode("ascii")


def duration(seconds: float) -> str:
    """Say how long something took."""
    if seconds < 1:
        return f"{max(round(seconds * 1000), 0)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def calls(listed: Iterable[Json], now: float) -> list[str]:
    """Say which calls there are, as a table; nothing where there are none."""
    names = ("id", "state", "region", "node", "agent", "model")
    rows = [[*(plain(str(call.get(name) or "-")) for name in names), _age(call, now)] for call in listed]
    return table([[*(name.upper() for name in names), "AGE"], *rows]) if rows else []


def _age(call: Json, now: float) -> str:
    started_at = call.get("started_at")
    if not started_at:
        return "-"
    return duration(call.get("age") or now - started_at)


def receipt(found: Json) -> str:
    """Say in a line what became of a message."""
    reached: dict[str, float] = found.get("reached") or {}
    status = str(found.get("status"))
    took = ""
    if len(reached) > 1:
        took = f" after {duration(max(reached.values()) - min(reached.values()))}"
    where = f" by {found.get('node')} ({found.get('region')})"
    item = f", item {found['item_id']}" if found.get("item_id") else ""
    error = found.get("error") or {}
    words = ": ".join(str(error[key]) for key in ("code", "message") if error.get(key))
    line = f"{status}{took}{where}, message {found.get('id')}{item}"
    return plain(f"{line}: {words}" if words else line)


def usage(sums: Sequence[Json]) -> list[str]:
    """Say what was used, as a table whose last row is all of it; nothing where nothing was."""
    groups = [name for name in ("day", "agent", "region") if any(each.get(name) is not None for each in sums)]
    rows = [[*(plain(str(each.get(name) or "-")) for name in groups), *_used(each)] for each in sums]
    if len(rows) > 1:
        names = {name for _, parts in _USED for name in parts}
        total = {name: sum(each.get(name) or 0 for each in sums) for name in names}
        rows.append(["total", *[""] * (len(groups) - 1), *_used(total)])
    return table([[*(name.upper() for name in groups), *(heading for heading, _ in _USED)], *rows]) if rows else []


def _used(one: Json) -> list[str]:
    amounts = ((parts, sum(one.get(name) or 0 for name in parts)) for _, parts in _USED)
    return [duration(amount) if "seconds" in parts[0] else str(amount) for parts, amount in amounts]


def revoked(found: Json) -> str:
    """Say that a token is revoked, and where."""
    where = plain(", ".join(map(str, found.get("regions") or ())))
    return f"{plain(str(found.get('jti')))} is revoked in {where}: within seconds it opens nothing, and its calls end."


def entry(one: Json, names: Mapping[str, str]) -> tuple[str, str]:
    """Say who did what in an entry of a transcript; `names` has the tools' names by the ids of their calls."""
    kind = one.get("type")
    if kind == "function_call":
        result = f" -> {plain(str(one['output']))}" if one.get("output") is not None else ""
        return "tool", f"{plain(str(one.get('name')))}({plain(str(one.get('arguments') or ''))}){result}"
    if kind == "function_call_output":
        name = names.get(str(one.get("call_id")), str(one.get("call_id")))
        return "tool", f"{plain(name)} -> {plain(str(one.get('output') or ''))}"
    return plain(str(one.get("role") or kind or "item")), plain(str(one.get("text") or "(no words)"))


def why(call: Json, clock: Clock, now: float) -> list[str]:
    """Say why a call ended and what to do; of one that lives, where it is and what is going on in it."""
    if call.get("state") == "ended":
        return _why_ended(call, clock)
    subject = plain(str(call.get("id")))
    if call.get("state") == "reserved":
        return [f"{subject} is reserved: its client has not connected yet."]
    state = "is between nodes (its client may come back): it was on" if call.get("state") == "moving" else "lives on"
    since = ""
    if call.get("started_at"):
        since = f", since {clock(call['started_at'])} ({_age(call, now)})"
    who = f"agent {plain(str(call.get('agent')))}, model {plain(str(call.get('model')))}"
    lines = [f"{subject} {state} {_place(call)}{since}; {who}."]
    usage = call.get("usage") or {}
    counts = [(usage.get(f"{way}_tokens"), way) for way in ("input", "output")]
    if any(isinstance(count, int) for count, _ in counts):
        lines.append("Tokens so far: " + ", ".join(f"{count or 0} {way}" for count, way in counts) + ".")
    return lines + _going_on(subject, call.get("transcript") or (), clock)


def _going_on(call_id: str, transcript: Sequence[Json], clock: Clock) -> list[str]:
    names = {str(each.get("call_id")): str(each.get("name")) for each in transcript if each.get("name")}
    lines = []
    for each in transcript[-_LAST_ENTRIES:]:
        who, what = entry(each, names)
        lines.append(f"  {clock(each['at']) if each.get('at') else '--:--:--'}  {who:<9}  {what}")
    if lines:
        lines.insert(0, "The last that was said or done:")
    for tool_call, name in open_tool_calls(transcript).items():
        hint = f"relay tool-result {call_id} {plain(tool_call)} JSON"
        lines.append(f"It waits for the result of {plain(name)}: {hint}")
    return lines


def open_tool_calls(transcript: Iterable[Json]) -> dict[str, str]:
    """Return the tool calls that have no result: names by ids."""
    waiting: dict[str, str] = {}
    for each in transcript:
        tool_call = str(each.get("call_id"))
        is_written = each.get("status") not in {"in_progress", "incomplete"}
        if each.get("type") == "function_call" and is_written and each.get("output") is None:
            waiting[tool_call] = str(each.get("name"))
        elif each.get("type") == "function_call_output":
            waiting.pop(tool_call, None)
    return waiting


def _place(call: Json) -> str:
    return f"node {plain(str(call.get('node')))} in {plain(str(call.get('region')))}"


def _why_ended(call: Json, clock: Clock) -> list[str]:
    label = plain(str(call.get("why") or "unknown"))
    unknown = Ending("this version of the command has no words for it", "see the table of endings in the README.")
    if not call.get("why"):
        unknown = Ending(
            "the relay lost sight of it", "look at the state of its region's Redis; clients connect again."
        )
    ending = ENDINGS.get(label, unknown)
    times = ""
    if call.get("ended_at"):
        times = f" at {clock(call['ended_at'])}"
        if call.get("started_at"):
            times += f" after {duration(call['ended_at'] - call['started_at'])}"
    place = f" on {_place(call)}" if call.get("node") else ""
    lines = [f"{plain(str(call.get('id')))} ended{times}{place}: {ending.what} ({label})."]
    if call.get("fault"):
        lines.append(f"Whose doing: {_FAULTS.get(call['fault'], plain(str(call['fault'])))}.")
    codes = [("the client got", call.get("close_code")), ("the model's server sent", call.get("upstream_close_code"))]
    said = [f"{who} {code}" for who, code in codes if code is not None]
    if said:
        lines.append(f"Close codes: {', '.join(said)}.")
    lines.append(f"Next: {ending.advice}")
    return lines


def missing_token() -> str:
    """Say how to come by a token."""
    return f"RELAY_TOKEN is not set: {_HOW_TO_SIGN}, or name a file with --token-file"


def hint(status: int, code: str, *, call_id: str = "CALL", message_id: str | None = None) -> str:
    """Say what to do about a node's refusal; empty where there is nothing to add to its own words."""
    again = f"try again with --id {message_id}, it stays one message" if message_id else "try again"
    by_code = {
        "call_not_found": "`relay calls` lists the live ones; what ended is kept for an hour",
        "call_ended": f"`relay why {call_id}` says more, `relay transcript {call_id}` what was said",
        "call_not_started": f"wait until `relay why {call_id}` says that it lives",
        "unknown_tool_call": f"`relay why {call_id}` shows those that wait for a result",
        "tool_call_late": f"`relay transcript {call_id}` shows what came of it",
        "tool_call_answered": f"`relay transcript {call_id}` shows its result",
        "missing_scope": _HOW_TO_SIGN,
        "too_many_messages": again,
        "unknown_plan": "RELAY_CONFIG of the nodes has their plans",
        "inbox_full": again,
        "idempotency_conflict": "leave --id out, or give another one",
    }
    by_status = {401: _HOW_TO_SIGN, 503: again}
    return by_code.get(code) or by_status.get(status, "")
