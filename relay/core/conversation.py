"""What events mean: for the messages of backends, for those who watch, and for what the other leg gets of them.

Pure. It decodes what it must understand and no more, and answers with what goes on to the client and what else follows.
It outlives its model leg: ``on_model_gone`` and ``on_model_changed`` are the seam.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from relay.core import realtime, troubles
from relay.core.actions import Action, Log, Note, Send, Side
from relay.core.client_events import ClientEvents
from relay.core.client_session import ClientSession
from relay.core.gate import OWN_EVENTS, Gate
from relay.core.hidden import Hidden
from relay.core.locks import Locks
from relay.core.memory import Fact, Memory
from relay.core.messages import Injection
from relay.core.realtime import ClientEvent, NotAnEvent
from relay.core.rebuild import ANCHOR
from relay.core.serving import Serving
from relay.core.standing import Standing, read_opening, read_standing
from relay.core.unfinished import FOLLOWED, Unfinished, cancelled
from relay.core.usage import Usage

_OPENING: Final = f"{OWN_EVENTS}open"
_RETRIEVED: Final = "conversation.item.retrieved"

# What goes on to the client (None: nothing), and what else follows.
_Understood = tuple[bytes | None, Iterable[Action]]


class Gone(NamedTuple):
    """What the loss of a model leg leaves: events for the client, what else follows, and what is lost."""

    to_client: list[bytes]
    follows: list[Action]
    turn: str | None  # the item of what the person was just saying
    response: str | None  # the response that was interrupted


class Conversation:
    """One conversation with the model, as its events tell it. ``watched`` says whether ``Log`` actions are wanted."""

    __slots__ = (
        "_event_ids",
        "_gate",
        "_hidden",
        "_last_response",
        "_speech",
        "_told_state",
        "_unfinished",
        "client",
        "hides_expiry",
        "memory",
        "serving",
        "told_to_clear",
        "usage",
        "view",
        "watched",
    )

    def __init__(
        self,
        gate: Gate,
        event_ids: Callable[[], str],
        *,
        apply_seconds: float,
        told_to_clear: bool,
        transcription: Mapping[str, Any] | None = None,
        hides_expiry: bool = False,
        locks: Locks | None = None,
    ) -> None:
        self.watched = False
        self.usage: Usage | None = None  # who counts what the call uses, if anybody does
        self.hides_expiry = hides_expiry  # the end of the model's session is not the client's matter
        self.serving = Serving()
        self.told_to_clear = told_to_clear
        self.memory = Memory()
        self.view = ClientSession(event_ids, apply_seconds=apply_seconds, transcription=transcription)
        self._gate = gate
        self._hidden = Hidden()
        self.client = ClientEvents(gate, self._hidden, self.memory, self.view, event_ids, apply_seconds=apply_seconds)
        self._event_ids = event_ids
        self._unfinished = Unfinished()
        self._speech: str | None = None  # the item that the person's speech becomes
        self._told_state: Standing | None = Standing()
        self._last_response = ""
        if locks is not None:
            self.memory.locked = locks.names
        self.client.bind(locks)

    # Backends' messages

    def inject(self, injection: Injection) -> list[Action]:
        """Take a backend's message; the gate says when it goes."""
        if not injection.visible and injection.item is not None:
            self._hidden.add(injection.item_id)
        self.client.on_backend(injection.event)
        return [*self._gate.add(injection, is_known=injection.item is not None and self.memory.has(injection.item_id))]

    def release(self, now: float, wall: float, appended: int) -> list[Action]:
        """What the gate lets through now; see ``Gate.release``."""
        released = self._gate.release(now, wall, appended)
        sends = (Send(Side.MODEL, event) for event in released.events)
        return [*sends, *released.settled, *self._clear(released.silenced), *self.state()]

    def on_tick(self, now: float) -> tuple[bytes | None, list[Action]]:
        """What the model left without an answer for too long, and what the client gets instead."""
        if not self.view.is_late(now):
            return None, [*self._gate.overdue(now)]
        return self._without_opening(), [*self.view.kept(), *self._gate.overdue(now)]

    # Another model leg

    @property
    def is_answering(self) -> bool:
        """Whether any response is under way, one outside the conversation too."""
        return bool(self._unfinished.response_ids)

    def on_model_gone(self, now: float) -> Gone:
        """The model leg is lost: what was open on it ends, as far as the client is concerned."""
        active = self._gate.responses.active
        is_told = active is not None and self._unfinished.made_tool_call(active)
        cut = self._unfinished.open_items(active) if active is not None else []
        facts = self.memory.on_interrupted(cut)
        facts += [fact for item_id in cut for fact in self._said(item_id)]
        for item_id in cut:
            if not self.memory.has(item_id):
                self._gate.on_deleted(item_id)
        ends = [self._hidden.passed(end, realtime.decode(end)) for end in self._unfinished.close(self._event_ids)]
        closing = [end for end in ends if end is not None]
        self.serving.on_model_gone()
        turn, self._speech = self._speech, None
        if turn is not None:
            closing.append(realtime.encode({"type": "input_audio_buffer.cleared", "event_id": self._event_ids()}))
        self.view.on_model_gone()
        settled, again, silenced = self._gate.on_model_gone(now, is_told=is_told)
        self.client.on_model_gone(again)
        self._last_response = active or self._last_response
        logs = [log for event in closing for log in self._logged(event)]
        return Gone(closing, [*logs, *_notes(facts), *settled, *self._clear(silenced), *self.state()], turn, active)

    def on_model_changed(
        self, session: dict[str, Any], restored: Iterable[str], anchor: str | None, now: float
    ) -> list[Action]:
        """Another model leg has the conversation now; returns what it is told first, and what the client is.

        Args:
            session: the effective session there.
            restored: the items that it has, as text.
            anchor: the item that tells the model so, which nobody else sees.
            now: the loop's time.
        """
        self.client.restored, self.client.is_rebuilt = frozenset(restored), True
        if anchor is not None:
            self._hidden.add(anchor, before=self.memory.last_id)
        told: list[Action] = [Send(Side.MODEL, event) for event in self.view.open_again(now)]
        told += self.client.say_again(now)
        if not session:
            return told
        if not (self.view.is_told or self.view.is_opening):  # the leg before was lost before it said so
            told.append(Send(Side.CLIENT, self.view.created(session)))
        self._on_settings(session)
        told += [*_notes(self.memory.on_session(session)), *self.view.kept()]
        return [*told, *self.client.switch_on_transcription(session, now)]

    def restore(self, facts: Mapping[str, bytes], items: Iterable[dict[str, Any]], wall: float) -> Gone:
        """Take a conversation over as its memory has it: facts, and the items of backends that were told applied."""
        notes = _notes([*self.memory.restore(facts), *self.memory.adopt(list(items), wall)])
        notes += _notes(self.memory.on_interrupted(self.memory.under_way))
        opening = read_opening(facts)
        if opening is not None:  # the owner before had not come so far: what its model said of itself is not the call's
            self.memory.session, self.view.is_promised = opening, True
        before = None
        for entry in self.memory.entries:
            self._gate.tools.restore(entry)
            if entry.get("hidden"):
                self._hidden.add(str(entry["id"]), before=before)
            before = str(entry["id"])
        standing, self._told_state = read_standing(facts), None
        self.memory.locked = standing.locked
        self.client.bind(self.client.locks)
        self.view.shows_transcripts = standing.transcripts
        # Or is about to be: it is the first that a client that comes back hears.
        self.view.is_told = self.view.is_resumed = True
        last = self.memory.entries[-1:]
        if standing.owed and not (last and last[0].get("type") == "function_call"):
            self._gate.responses.owe()  # else the tool call's result asks for the next response
        if self.memory.session:
            self._on_settings(self.memory.session)
        response = standing.active
        told = [cancelled(response, self._event_ids())] if response is not None else []
        return Gone(told, [*notes, *self.state()], standing.speech, response)

    def state(self) -> list[Action]:
        """Note what a later owner must know beside the items."""
        responses, shows = self._gate.responses, self.view.shows_transcripts
        state = Standing(shows, responses.is_owed_to_client, responses.active, self._speech, self.memory.locked)
        if state == self._told_state:
            return []
        self._told_state = state
        return [Note(*state.fact())]

    # The model's events

    def on_event(self, kind: str, message: bytes, now: float, wall: float) -> _Understood:
        """A model's event that is no audio."""
        if kind == _RETRIEVED:
            return self._on_retrieved(message)
        understand = _UNDERSTOOD.get(kind)
        if understand is None:
            return None if self.view.hides(kind) else message, self._logged(message)
        try:
            event = realtime.decode(message)
        except NotAnEvent:
            return message, self._logged(message)  # the client says what it thinks of it
        if self.serving.on_event(kind, event):
            return None, ()
        if kind in FOLLOWED:
            self._unfinished.on_event(kind, event)
        passed, follows = understand(self, message, event, now, wall)
        logged = [] if kind in _SELF_LOGGED else self._logged(message)
        return passed, [*logged, *follows, *(self.state() if kind in _TELLING else ())]

    def _on_retrieved(self, message: bytes) -> _Understood:
        """Megabytes of audio, never parsed: whose it is follows from the order of the questions."""
        is_ours = self._gate.flights.awaits(_RETRIEVED)
        settled = self._gate.on_answer(_RETRIEVED)
        if not is_ours and not (self._hidden and self._hidden.hides(realtime.item_id(message))):
            return message, settled
        log = self._logged(realtime.without_audio(message)) if self.watched else []
        return None, [*log, *settled]

    def _on_error(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        error = event.get("error")
        if not isinstance(error, dict):
            return message, self._logged(message)
        cause = error.get("event_id")
        if cause == _OPENING:
            return self._without_opening(), [*self.view.kept(), troubles.complaint(error)]
        if isinstance(cause, str):
            self.client.on_refused(cause)
        own, settled = self._gate.on_error(error)
        if own:
            is_news = not settled and not troubles.is_expected(error)
            return None, [*settled, *([troubles.complaint(error)] if is_news else ())]
        if error.get("code") == "session_expired" and self.hides_expiry:
            return None, self._logged(message)
        watched, passed = troubles.told(message, event, error)
        return passed, [*self._logged(watched), *settled]

    def _logged(self, message: bytes) -> list[Action]:
        return [Log(message)] if self.watched else []

    def _without_opening(self) -> bytes | None:
        """Our session.update came to nothing: the client gets the session as it is."""
        created = self.view.end_opening()
        return realtime.encode(created) if created is not None else None

    def _on_settings(self, session: dict[str, Any]) -> None:
        self._gate.turns.on_session(session)
        if self.usage is not None:
            self.usage.on_session(session)

    def _on_session(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        session = event.get("session")
        if not isinstance(session, dict):
            return message, self._logged(message)
        self._on_settings(session)
        notes = _notes(self.memory.on_session(session))
        is_answer = event.get("type") == "session.updated" and not self.view.is_opening
        is_own = is_answer and self._gate.flights.is_own("session.updated")
        settled = self._gate.on_answer("session.updated") if is_answer else []
        if is_own and self.view.missing(session) is not None:
            self.view.give_up_transcription()  # the model takes it and does not do it
        passed = None if is_own else self.view.on_session(message, event, session)
        log = [] if is_own else self._logged(message)
        return passed, [*log, *notes, *self.view.kept(), *settled, *self.client.switch_on_transcription(session, now)]

    def _on_item(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        item = event.get("item")
        if not isinstance(item, dict):
            return message, []
        item_id = str(item.get("id"))
        if item_id.startswith(ANCHOR) or item_id in self.client.restored:  # the model has it from us
            return None, []
        hidden = self._hidden.hides(item.get("id"))
        facts = self.memory.on_item(item, wall, event.get("previous_item_id"), hidden=hidden)
        return self._hidden.passed(message, event), [*_notes(facts), *self._gate.on_item(item)]

    def _on_output_item(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        item = event.get("item")
        if not isinstance(item, dict):
            return message, []
        notes: list[Action] = []
        is_done = event.get("type") == "response.output_item.done"
        if is_done and self.memory.has(str(item.get("id"))):  # from now on the client may act on it
            notes = _notes(self.memory.on_item(item, wall))
        if item.get("type") != "function_call":
            return message, notes
        if is_done:
            return message, [*notes, *self._gate.on_item(item)]
        self._gate.tools.on_started(str(item.get("call_id")), str(event.get("response_id")))
        return message, []

    def _on_part(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        part, index = event.get("part"), event.get("content_index")
        if isinstance(part, dict) and part.get("type") in ("audio", "output_audio") and isinstance(index, int):
            ids = [str(event.get(key, "")) for key in ("event_id", "response_id", "item_id")]
            self._gate.turns.on_part(ids[2], index, ids_bytes=sum(map(len, ids)))
        return message, []

    def _on_progress(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        return message, []  # that a response goes on is noted for all its events

    def _on_words(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        """Some words of an answer."""
        self.memory.on_words(str(event.get("item_id")), str(event.get("delta") or ""))
        return message, []

    def _on_audio_done(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        """An answer's audio is whole: of one that is cut off later, its length tells which words were heard."""
        return message, _notes(self._said(str(event.get("item_id"))))

    def _said(self, item_id: str) -> list[Fact]:
        said_ms = self._gate.turns.said_ms(item_id)
        return self.memory.on_audio(item_id, said_ms) if said_ms else []

    def _on_speech(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        if event.get("type") == "input_audio_buffer.speech_started":
            self._speech = str(event.get("item_id"))
            self._gate.turns.on_speech_started()
        else:
            self._gate.turns.on_speech_stopped(now)
        return message, []

    def _on_buffer(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        self._speech = None
        self._gate.turns.on_buffer_empty(now)
        if event.get("type") == "input_audio_buffer.committed":
            self._gate.responses.on_heard()
            if self._gate.turns.are_answered:
                self._gate.responses.on_owed(now)
        return self._hidden.passed(message, event), self._gate.on_answer(str(event.get("type")))

    def _on_item_changed(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        item_id, kind = str(event.get("item_id")), str(event.get("type"))
        settled = self._gate.on_answer(kind, item_id)
        if kind == "conversation.item.deleted":
            self._gate.on_deleted(item_id)
            self.client.restored -= {item_id}
            facts = self.memory.on_deleted(item_id)
        else:
            self._gate.turns.on_cut(item_id)
            facts = self.memory.on_truncated(event)
        return self._hidden.passed(message, event), [*_notes(facts), *settled]

    def _on_transcribed(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        if self.usage is not None:
            self.usage.on_transcription(event.get("usage"))
        notes = _notes(self.memory.on_transcribed(event))
        return None if self.view.hides(str(event.get("type"))) else self._hidden.passed(message, event), notes

    def _on_response_created(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        response = event.get("response")
        if not isinstance(response, dict):
            return message, []
        if _is_aside(response):
            return message, self._gate.on_answer("response.created")
        return message, self._gate.on_response_created(response)

    def _on_response_done(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        response = event.get("response")
        if not isinstance(response, dict):
            return message, []
        if self.usage is not None:
            self.usage.on_response(response.get("usage"))
        notes = _notes(self.memory.on_response_done(response, wall))
        if _is_aside(response):
            return message, [*notes, *self._gate.on_answer("response.done")]  # it may have been cancelled
        self._last_response = str(response.get("id"))
        settled, silenced = self._gate.on_response_done(response)
        return message, [*notes, *settled, *self._clear(silenced)]

    def _clear(self, silenced: bool) -> list[Action]:
        """Tell a client that understands it to stop playing; others go on with what they have."""
        if not silenced or not self.told_to_clear:
            return []
        fields = {"event_id": self._event_ids(), "response_id": self._last_response}
        return [Send(Side.CLIENT, realtime.encode({"type": "output_audio_buffer.cleared", **fields}))]

    def on_client_event(self, event: ClientEvent, now: float, appended: int) -> tuple[bytes | None, list[Action]]:
        """What of a client's event goes to the model now (None: nothing), and what else follows."""
        passed, follows = self.client.on_event(event, now, appended)
        return passed, [*follows, *self.state()]


_Understand = Callable[[Conversation, bytes, dict[str, Any], float, float], _Understood]
# The events that the relay must understand; all others go on unread. ``conversation.item.retrieved`` must never be
# here: it carries megabytes of audio, and the Agents SDKs ask for it at every turn.
_UNDERSTOOD: Final[dict[str, _Understand]] = {
    **dict.fromkeys(FOLLOWED, Conversation._on_progress),
    "error": Conversation._on_error,
    "session.created": Conversation._on_session,
    "session.updated": Conversation._on_session,
    "conversation.item.added": Conversation._on_item,
    "conversation.item.done": Conversation._on_item,
    "conversation.item.created": Conversation._on_item,
    "conversation.item.deleted": Conversation._on_item_changed,
    "conversation.item.truncated": Conversation._on_item_changed,
    "conversation.item.input_audio_transcription.completed": Conversation._on_transcribed,
    "input_audio_buffer.speech_started": Conversation._on_speech,
    "input_audio_buffer.speech_stopped": Conversation._on_speech,
    "input_audio_buffer.committed": Conversation._on_buffer,
    "input_audio_buffer.cleared": Conversation._on_buffer,
    "response.output_item.added": Conversation._on_output_item,
    "response.output_item.done": Conversation._on_output_item,
    "response.content_part.added": Conversation._on_part,
    "response.output_audio.done": Conversation._on_audio_done,
    "response.output_audio_transcript.delta": Conversation._on_words,
    "response.output_text.delta": Conversation._on_words,
    "response.created": Conversation._on_response_created,
    "response.done": Conversation._on_response_done,
}
# An error is its cause's business, and an answer to the relay's own update nobody's: they say themselves who sees them.
_SELF_LOGGED: Final = frozenset({"error", "session.created", "session.updated"})
# Those after which it is worth a write that a later owner must know something else beside the items. Not when a
# response begins: a node that dies just after its end would have left word of one that a client has seen to its end.
_TELLING: Final = frozenset({"response.done", "input_audio_buffer.committed", "input_audio_buffer.cleared", "error"})


def _is_aside(response: dict[str, Any]) -> bool:
    """Whether a response stands outside the conversation (``conversation: "none"``)."""
    return response.get("conversation_id", "") is None  # where a server leaves the field out it says nothing


def _notes(facts: Iterable[Fact]) -> list[Action]:
    return [Note(name, value) for name, value in facts]


def opening_update(session: dict[str, Any]) -> bytes:
    """Build the ``session.update`` that a call begins with whose session is known beforehand."""
    return realtime.encode({"type": "session.update", "event_id": _OPENING, "session": session})
