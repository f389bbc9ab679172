"""What the client is shown of its session, and what of its updates goes on to the model. Pure.

Three things stand between the model's session and the client's: the relay's own first ``session.update``, whose result
the client sees as its ``session.created``; the transcription that is on for the call's memory alone; and the updates
that SDKs repeat when they resume a call.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from relay.core.actions import Action, Note
from relay.core.realtime import decode, encode
from relay.core.sessions import asks_for_transcription, transcription_of, without_unchanged
from relay.core.standing import OPENING_FACT

_TRANSCRIPTS: Final = "conversation.item.input_audio_transcription."


class ClientSession:
    """``transcription``: what is switched on for the call's memory where the client does not; None: nothing."""

    __slots__ = (
        "_apply_seconds",
        "_created",
        "_event_ids",
        "_opening",
        "_opening_until",
        "_transcription",
        "is_promised",
        "is_resumed",
        "is_told",
        "shows_transcripts",
    )

    def __init__(
        self, event_ids: Callable[[], str], *, apply_seconds: float, transcription: Mapping[str, Any] | None
    ) -> None:
        self._event_ids = event_ids
        self._apply_seconds = apply_seconds
        self._transcription = transcription
        self._opening_until: float | None = None  # our session.update is under way
        self._opening = b""
        self._created: dict[str, Any] | None = None  # the session.created that waits for it
        self.is_promised = False  # a later owner would still have to see to the session that the call begins with
        self.shows_transcripts = False  # the client asked for them
        self.is_resumed = False
        self.is_told = False  # the client had its session.created

    # The relay's own first update

    def expect_opening(self, now: float, opening: bytes = b"") -> None:
        """The relay's own ``session.update`` goes first: the client's ``session.created`` shows what it makes."""
        self._opening_until = now + self._apply_seconds
        self._opening = opening

    def on_model_gone(self) -> None:
        """The model leg is lost: what was under way waits for another one."""
        if self._opening_until is not None:
            self._opening_until = math.inf

    def open_again(self, now: float) -> list[bytes]:
        """Return what another model leg is told before anything else."""
        if self._opening_until is None or not self._opening:
            return []
        self.expect_opening(now, self._opening)
        return [self._opening]

    @property
    def opening_type(self) -> object:
        """The type of session that it asks for, if there is one."""
        return decode(self._opening)["session"].get("type") if self._opening else None

    @property
    def is_opening(self) -> bool:
        """Whether that is under way."""
        return self._opening_until is not None

    def is_late(self, now: float) -> bool:
        """Whether it should have had its answer."""
        return self._opening_until is not None and now >= self._opening_until

    def end_opening(self) -> dict[str, Any] | None:
        """It came to nothing, or has its answer; returns the session.created that waited for it."""
        created, self._created, self._opening_until = self._created, None, None
        self.is_told |= created is not None
        return created

    def promise(self, session: Mapping[str, Any]) -> list[Action]:
        """Note with which session the call is to begin, for an owner that takes it before it has."""
        self.is_promised = bool(session)
        return [Note(OPENING_FACT, encode(session))] if session else []

    def kept(self) -> list[Action]:
        """Note that the call has begun with it, or never will, as soon as that is so."""
        if self.is_opening or not self.is_promised:
            return []
        self.is_promised = False
        return [Note(OPENING_FACT, None)]

    # What the client sees

    def on_session(self, message: bytes, event: dict[str, Any], session: dict[str, Any]) -> bytes | None:
        """What the client gets of a ``session.created`` or ``session.updated``; None: nothing."""
        if self._opening_until is None:
            self.is_told |= event.get("type") == "session.created"
            shown = self.shown(session)
            return message if shown is session else encode({**event, "session": shown})
        if event.get("type") == "session.created":
            self._created = event
            return None
        created = self.end_opening()
        self.is_told = True
        return encode({**(created or event), "type": "session.created", "session": self.shown(session)})

    def created(self, session: dict[str, Any]) -> bytes:
        """Build a ``session.created`` for a client whose call has its session already."""
        self.is_told = True
        return self._event("session.created", session)

    def shown(self, session: dict[str, Any]) -> dict[str, Any]:
        """Return the session as the client knows it."""
        if self.shows_transcripts or self._transcription is None or transcription_of(session) is None:
            return session
        audio = session["audio"]
        return {**session, "audio": {**audio, "input": {**audio["input"], "transcription": None}}}

    def hides(self, kind: str) -> bool:
        """Whether an event is about the transcription that the client did not ask for."""
        return kind.startswith(_TRANSCRIPTS) and self._transcription is not None and not self.shows_transcripts

    def _event(self, kind: str, session: dict[str, Any]) -> bytes:
        return encode({"type": kind, "event_id": self._event_ids(), "session": self.shown(session)})

    # What the client asks for

    def on_update(self, update: dict[str, Any]) -> None:
        """The body of a ``session.update`` that the client sends, or that is sent for it."""
        asks = asks_for_transcription(update)
        if asks is not None:
            self.shows_transcripts = asks

    def changed(self, update: dict[str, Any], session: dict[str, Any]) -> dict[str, Any] | None:
        """What of an update goes on: of a client that resumes only what is not so already; None: nothing."""
        return without_unchanged(update, self.shown(session)) if self.is_resumed and session else update

    def updated(self, session: dict[str, Any]) -> bytes:
        """Build the answer to an update that changes nothing."""
        return self._event("session.updated", session)

    # What the memory wants

    def missing(self, session: dict[str, Any]) -> dict[str, Any] | None:
        """Return the update that switches transcription on, where it is off and the session has a place for it."""
        if self._transcription is None or self.is_opening or session.get("type", "realtime") != "realtime":
            return None
        audio = session.get("audio")
        given = audio.get("input") if isinstance(audio, dict) else None
        if not isinstance(given, dict) or given.get("transcription") is not None:
            return None
        return {"type": "realtime", "audio": {"input": {"transcription": dict(self._transcription)}}}

    def give_up_transcription(self) -> None:
        """The model refuses it."""
        self._transcription = None
