"""Where a call stands, beside its session and its items: facts out of which a later owner goes on. Pure."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from relay.core.realtime import NotAnEvent, decode, encode

CALL_FACT: Final = "call"
OPENING_FACT: Final = "opening"  # the session that a call is to begin with, until its model has answered that


class Standing(NamedTuple):
    """What a later owner must know."""

    transcripts: bool = False  # the client asked for them
    owed: bool = False  # it is being answered, or waits for it
    active: str | None = None  # the response under way
    speech: str | None = None  # the item of what the person is just saying
    locked: frozenset[str] | None = None  # fields of the session that no browser sets; None: there was no browser

    def fact(self) -> tuple[str, bytes]:
        """Return its name and value."""
        fields = self._asdict()
        if self.locked is None:
            del fields["locked"]
        else:
            fields["locked"] = sorted(self.locked)
        return CALL_FACT, encode(fields)


def read_opening(facts: Mapping[str, bytes]) -> dict[str, Any] | None:
    """Read the session that a call is still to begin with, None if it has begun with it, or with none."""
    try:
        opening: dict[str, Any] = decode(facts.get(OPENING_FACT, b""))
    except NotAnEvent:
        return None
    return opening


def read_standing(facts: Mapping[str, bytes]) -> Standing:
    """Read what another owner wrote; what makes no sense is not believed."""
    try:
        fields: dict[str, Any] = decode(facts.get(CALL_FACT, b"{}"))
    except NotAnEvent:
        return Standing()
    active, speech = (each if isinstance(each, str) else None for each in (fields.get("active"), fields.get("speech")))
    locked = fields.get("locked")
    return Standing(
        transcripts=fields.get("transcripts") is True,
        owed=fields.get("owed") is True,
        active=active,
        speech=speech,
        locked=frozenset(map(str, locked)) if isinstance(locked, list) else None,
    )
