"""What may be made to go wrong with a connection, as data: parsed from text or JSON, with a bound on every number.

A fault acts at the door (`refuse`, `hang`, `slow_open`), all along (`expire`, `fail`, `null_ids`, `refuse_items`,
`transcription_ms`), or once, when its
trigger has come: `after` seconds, or `events` sent, whichever is first; at once if neither is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

MAX_SECONDS = 3600.0
HANG_SECONDS = 60.0  # how long a hanging or stalled connection is kept before it is cut

_BAD_FRAMES = {
    "opcode": b"\x83\x02hi",  # opcode 3 is reserved
    "utf8": b"\x81\x02\xff\xfe",  # a text frame that is not UTF-8
    "rsv": b"\xc1\x02{}",  # RSV1 without an extension
    "length": b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # masked, and longer than anything
    "continuation": b"\x80\x02{}",  # continues no message
}


class FaultError(ValueError):
    """A fault that cannot be read; the message names the field."""


@dataclass(frozen=True, slots=True)
class Fault:
    refuse: int | None = None  # HTTP status instead of the upgrade
    body: str | None = None  # of the refusal; default: an error in OpenAI's shape
    slow_open: float = 0.0  # seconds before the upgrade is answered
    hang: bool = False  # never answer the upgrade
    close: int | None = None  # close code …
    reason: str = ""  # … and its reason
    reset: bool = False  # TCP RST
    stall: bool = False  # stop reading
    malformed: str | None = None  # write a frame that breaks the protocol: a key of _BAD_FRAMES
    garbage: bool = False  # send a text message that is no JSON
    error: str | None = None  # send an `error` event with this code
    expire: float | None = None  # the session expires after so many seconds
    fail: str | None = None  # every response fails with this code
    null_ids: bool = False  # errors don't name the client event they answer
    refuse_items: int = 0  # so many created items are refused, from the first on, as if by a failure of the server
    transcription_ms: float = 0.0  # a turn's transcript comes so much later than the turn
    after: float | None = None
    events: int | None = None

    @property
    def acts_later(self) -> bool:
        acts = (self.close, self.malformed, self.error)
        return any(each is not None for each in acts) or self.reset or self.stall or self.garbage

    @property
    def delay_seconds(self) -> float:
        """When it acts by the clock: at once without a trigger, never if it only counts events."""
        return self.after if self.after is not None else 0.0 if self.events is None else float("inf")

    def is_due(self, elapsed: float, sent: int) -> bool:
        return elapsed >= self.delay_seconds or (self.events is not None and sent >= self.events)

    @property
    def bad_frame(self) -> bytes | None:
        return None if self.malformed is None else _BAD_FRAMES[self.malformed]


NO_FAULT = Fault()
_KINDS = {each.name: str(each.type) for each in fields(Fault)}
_RANGES: dict[str, tuple[float, float]] = {
    "refuse": (300, 599),
    "close": (1000, 4999),
    "events": (0, 1_000_000),
    "refuse_items": (0, 1_000_000),
    "transcription_ms": (0, MAX_SECONDS * 1000),
}


def read_text(text: str) -> Fault:
    """`close=4002,after=1.5`, `hang`: a comma list of `key=value`, or of a key alone for a switch."""
    values: dict[str, Any] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        key, _, value = part.partition("=")
        values[key.strip()] = value.strip() or "1"
    return read_fields(values)


def read_fields(values: Mapping[str, Any]) -> Fault:
    """From a JSON object (or strings) with the fields of `Fault`; raises `FaultError`."""
    return Fault(**{key: _value(key, value) for key, value in values.items()})


def _value(key: str, value: Any) -> Any:
    kind = _KINDS.get(key)
    if kind is None:
        raise FaultError(f"unknown fault {key!r}; there are {', '.join(_KINDS)}")
    if value is None:
        return None
    if kind.startswith("bool"):
        return str(value).lower() in ("1", "true", "yes")
    if kind.startswith("str"):
        if key == "malformed" and value not in _BAD_FRAMES:
            raise FaultError(f"malformed is one of {', '.join(_BAD_FRAMES)}")
        limit = 120 if key == "reason" else 10_000  # a close reason has at most 123 bytes
        return str(value)[:limit]
    try:
        number = int(value) if kind.startswith("int") else float(value)
    except (TypeError, ValueError) as error:
        raise FaultError(f"{key} is a number, not {value!r}") from error
    low, high = _RANGES.get(key, (0.0, MAX_SECONDS))
    if not low <= number <= high:
        raise FaultError(f"{key} is between {low:g} and {high:g}")
    return number


def split_model(model: str) -> tuple[str, str]:
    """`sim;close=4002,after=1` → the model's name and the text of its faults."""
    name, _, faults = model.partition(";")
    return name, faults
