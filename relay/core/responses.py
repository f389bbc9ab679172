"""Whose turn it is to have the model answer: one response at a time, asked for in order. Pure.

The client, the side legs, messages of backends and the server's own turn detection all want responses, and the model
makes one at a time in its conversation. What cannot begin yet waits here; what lost a race is asked for again. A
client's own request goes straight on unless something of the relay's is in its way.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from relay.core.messages import Injection, Settled, error
from relay.core.realtime import encode

ACTIVE: Final = "conversation_already_has_active_response"
_ASKED_BY: Final = "relay_event_id"  # metadata key of the responses that the relay asks for
_CLIENTS_WAITING: Final = 16  # of the client's own requests


@dataclass(slots=True, eq=False)
class Ask:
    """A response that somebody wants."""

    wanted_by: list[Injection]  # messages of backends; none for the client's own
    event: dict[str, Any] = field(default_factory=dict)  # its response.create, without an event id
    client_event_id: str = ""  # of the client's own, as the model leg knows it
    at_boundary: bool = False  # not before the turn is over
    has_waited: bool = False  # the client's own, held back here: a race that it lost is ours to mend


class _Requested(NamedTuple):
    event_id: str
    ask: Ask
    until: float  # by when it must begin


class Responses:
    """The responses of one conversation: the active one, the one asked for, those that wait."""

    __slots__ = ("_apply_seconds", "_asked", "_new_event_id", "_queue", "_requested", "active")

    def __init__(self, *, apply_seconds: float, new_event_id: Callable[[], str]) -> None:
        self._apply_seconds = apply_seconds
        self._new_event_id = new_event_id
        self._queue: list[Ask] = []
        self._requested: _Requested | None = None
        self._asked: Ask | None = None  # whose the active response is, if it was asked for here
        self.active: str | None = None  # the response of the default conversation, whoever asked for it

    @property
    def is_idle(self) -> bool:
        """Whether no response is active or asked for."""
        return self.active is None and self._requested is None

    @property
    def is_requested(self) -> bool:
        """Whether one was asked for and has not begun."""
        return self._requested is not None

    @property
    def waits_for_boundary(self) -> bool:
        """Whether one waits for the turn to be over."""
        return any(ask.at_boundary for ask in self._queue)

    @property
    def has_waiting(self) -> bool:
        """Whether one waits at all."""
        return bool(self._queue)

    def add(self, ask: Ask, *, first: bool = False) -> None:
        """Want a response."""
        self._queue.insert(0 if first else len(self._queue), ask)

    def client_wants(self, event: dict[str, Any], event_id: str, now: float) -> bool | None:
        """The client asks for a response itself: True if its event goes on now, False if it waits here, None if too
        many of them do.

        With nothing of the relay's in the way it goes on, whatever the model will say of it: as on a direct connection.
        """
        ours = self._requested is not None and self._requested.ask.wanted_by
        if not ours and (self._asked is None or not self._asked.wanted_by):
            if self.is_idle:
                self._requested = _Requested(event_id, Ask([]), now + self._apply_seconds)
            return True
        if sum(not ask.wanted_by for ask in self._queue) >= _CLIENTS_WAITING:
            return None
        self._queue.append(Ask([], event, event_id, has_waited=True))
        return False

    def next(self, now: float, *, is_boundary: bool) -> bytes | None:
        """Return the ``response.create`` to send now, if one may go."""
        if not self.is_idle:
            return None
        ask = next((ask for ask in self._queue if is_boundary or not ask.at_boundary), None)
        if ask is None:
            return None
        self._queue.remove(ask)
        event_id = ask.client_event_id or self._new_event_id()
        self._requested = _Requested(event_id, ask, now + self._apply_seconds)
        event = {**ask.event, "type": "response.create", "event_id": event_id}
        if ask.wanted_by:
            fields = dict(event.get("response") or {})
            event["response"] = {**fields, "metadata": {**(fields.get("metadata") or {}), _ASKED_BY: event_id}}
        return encode(event)

    # What the model says

    def on_created(self, response: dict[str, Any]) -> list[Settled]:
        """A response of the default conversation began; ours is known by its metadata where the server keeps it."""
        self.active, self._asked = str(response.get("id")), None
        requested, metadata = self._requested, response.get("metadata")
        if requested is None:
            return []
        if not requested.ask.wanted_by:  # the client's, or the VAD's and then a refusal of the client's is on its way
            self._asked = requested.ask
            if not requested.ask.has_waited:
                self._requested = None
            return []
        if not metadata:  # ours where the server keeps none, or the VAD's: then a refusal of ours is on its way
            self._asked = requested.ask
        elif metadata.get(_ASKED_BY) == requested.event_id:
            self._asked, self._requested = requested.ask, None
            return self._begun(requested.ask)
        return []

    def _begun(self, ask: Ask) -> list[Settled]:
        """A bare request for a response is applied when the response begins; items were before."""
        return [Settled(each.message_id, each.item_id, "applied") for each in ask.wanted_by if each.event is None]

    def on_done(self, response: dict[str, Any]) -> list[Settled]:
        """A response ended, however: a message that asked for it is answered, or failed with the response's error."""
        if self.active != str(response.get("id")):
            return []
        asked, self.active, self._asked = self._asked, None, None
        if asked is None:
            return []
        settled: list[Settled] = []
        if self._requested is not None and self._requested.ask is asked:
            self._requested = None
            settled = self._begun(asked)
        status, trouble = "answered", None
        if response.get("status") == "failed":
            details = response.get("status_details") or {}
            status, trouble = "failed", details.get("error") or error("response_failed", "The model could not answer.")
        return settled + [
            Settled(each.message_id, each.item_id, status, trouble) for each in asked.wanted_by if each.wants_answer
        ]

    def on_refused(self, event_id: str, trouble: dict[str, Any]) -> tuple[bool, list[Settled]]:
        """The model refused an event: whether it was one of these and nobody else's business, and what it settles."""
        if self._requested is None or self._requested.event_id != event_id:
            return False, []
        ask, self._requested = self._requested.ask, None
        if self._asked is ask:  # the response that began meanwhile was another's
            self._asked = None
        if trouble.get("code") == ACTIVE and (ask.wanted_by or ask.has_waited):
            self._queue.insert(0, ask)  # its response follows the one that is in the way
            return True, []
        return bool(ask.wanted_by), _failed(ask.wanted_by, trouble)

    def overdue(self, now: float) -> list[Settled]:
        """Give up on a response that the model did not begin in time."""
        requested = self._requested
        if requested is None or now < requested.until or self._asked is requested.ask:
            return []
        self._requested = None
        text = f"The model began no response within {self._apply_seconds:g} s."
        return _failed(requested.ask.wanted_by, error("model_timeout", text))

    def expire(self, wall: float) -> list[Settled]:
        """Drop those whose deadline passed while they waited: their items stay in the conversation."""
        settled: list[Settled] = []
        for ask in [ask for ask in self._queue if ask.wanted_by]:
            settled += expire(ask, wall)
            if not ask.wanted_by:
                self._queue.remove(ask)
        return settled

    def due(self) -> float | None:
        """When ``overdue`` has something to say."""
        return self._requested.until if self._requested is not None else None

    def deadline(self) -> float | None:
        """The first deadline of those that wait, in seconds since the epoch."""
        return min((each.expires_at for ask in self._queue for each in ask.wanted_by), default=None)


def expire(ask: Ask, wall: float) -> list[Settled]:
    """Take those out of a request whose deadline passed."""
    late = [each for each in ask.wanted_by if wall > each.expires_at]
    for each in late:
        ask.wanted_by.remove(each)
    text = "Its deadline passed before the model could be asked to answer; an item of it is in the conversation."
    return [Settled(each.message_id, each.item_id, "expired", error("expired", text)) for each in late]


def _failed(wanted_by: list[Injection], trouble: dict[str, Any]) -> list[Settled]:
    return [each.failed(trouble) for each in wanted_by]
