"""Whose turn it is to have the model answer: one response at a time, asked for in order. Pure.

The client, the side legs, messages of backends and the server's own turn detection all want responses, and the model
makes one at a time in its conversation. What cannot begin yet waits here; what lost a race is asked for again. A
client's own request goes straight on unless something of the relay's is in its way.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from relay.core.messages import Injection, Settled, error
from relay.core.realtime import encode

ACTIVE: Final = "conversation_already_has_active_response"
_ASKED_BY: Final = "relay_event_id"  # metadata key of the responses that the relay asks for
_CLIENTS_WAITING: Final = 16  # of the client's own requests
_RETRY_SECONDS: Final = 0.5  # after a refusal for the sake of a response that nothing is known of here
_OWED_SECONDS: Final = 5.0  # for the server to begin its own answer to what a person said


@dataclass(slots=True, eq=False)
class Ask:
    """A response that somebody wants."""

    wanted_by: list[Injection]  # messages of backends; none for the client's own
    event: dict[str, Any] = field(default_factory=dict)  # its response.create, without an event id
    client_event_id: str = ""  # of the client's own, as the model leg knows it
    at_boundary: bool = False  # not before the turn is over
    is_urgent: bool = False  # also while somebody speaks
    has_waited: bool = False  # the client's own, held back here: a race that it lost is ours to mend
    has_begun: bool = False  # on a model leg that was lost


class _Requested(NamedTuple):
    event_id: str
    ask: Ask
    until: float  # by when it must begin


class Responses:
    """The responses of one conversation: the active one, the one asked for, those that wait."""

    __slots__ = (
        "_apply_seconds",
        "_asked",
        "_keeps_metadata",
        "_new_event_id",
        "_not_before",
        "_owed_until",
        "_queue",
        "_requested",
        "_was_heard",
        "active",
    )

    def __init__(self, *, apply_seconds: float, new_event_id: Callable[[], str]) -> None:
        self._apply_seconds = apply_seconds
        self._new_event_id = new_event_id
        self._queue: list[Ask] = []
        self._requested: _Requested | None = None
        self._asked: Ask | None = None  # whose the active response is, if it was asked for here
        self._keeps_metadata = False  # the server was seen to
        self._not_before = -math.inf  # when a response that is not known here may be over; inf: see ``look``
        self._was_heard = False  # a person said something since the active response began
        self._owed_until = -math.inf  # until then the server may begin an answer to that by itself
        self.active: str | None = None  # the response of the default conversation, whoever asked for it

    @property
    def is_idle(self) -> bool:
        """Whether no response is active or asked for, as far as is known."""
        return self.active is None and self._requested is None and self._not_before == -math.inf

    @property
    def is_requested(self) -> bool:
        """Whether one was asked for and has not begun."""
        return self._requested is not None and not self._is_doubtful

    @property
    def waits_for_boundary(self) -> bool:
        """Whether one waits for the turn to be over."""
        return any(ask.at_boundary for ask in self._queue)

    @property
    def waits_for_silence(self) -> bool:
        """Whether one waits only for others to be over, and for nobody to speak."""
        return any(not ask.at_boundary for ask in self._queue)

    @property
    def has_waiting(self) -> bool:
        """Whether one waits at all."""
        return bool(self._queue)

    def add(self, ask: Ask, *, first: bool = False) -> None:
        """Want a response."""
        urgent = next((at for at, each in enumerate(self._queue) if not each.is_urgent), len(self._queue))
        self._queue.insert(urgent if first else len(self._queue), ask)

    def client_wants(self, event: dict[str, Any], event_id: str, now: float) -> bool | None:
        """The client asks for a response itself: True if its event goes on now, False if it waits here, None if too
        many of them do.

        With nothing of the relay's in the way it goes on, whatever the model will say of it: as on a direct connection.
        """
        ask = self._requested.ask if self._requested is not None else None
        is_ours = ask is not None and (ask.wanted_by or ask.has_waited)  # the client cannot know of it yet
        if not is_ours and (self._asked is None or not self._asked.wanted_by):
            if self.is_idle:
                self._requested = _Requested(event_id, Ask([], event, event_id), now + self._apply_seconds)
            return True
        if sum(not ask.wanted_by for ask in self._queue) >= _CLIENTS_WAITING:
            return None
        self._queue.append(Ask([], event, event_id, has_waited=True))
        return False

    def next(self, now: float, *, is_settled: bool, is_boundary: bool) -> bytes | None:
        """Return the ``response.create`` to send now, if one may go.

        While somebody speaks (not ``is_settled``) only an urgent one may: the server answers the speech itself, and
        could not if another response were active.
        """
        if not self.is_idle:
            return None
        for ask in self._queue:
            if is_boundary if ask.at_boundary else is_settled or ask.is_urgent:
                break
        else:
            return None
        self._queue.remove(ask)
        event_id = ask.client_event_id or self._new_event_id()
        self._requested = _Requested(event_id, ask, now + self._apply_seconds)
        event = {**ask.event, "type": "response.create", "event_id": event_id}
        if ask.wanted_by:
            fields = dict(event.get("response") or {})
            metadata = fields.get("metadata") or {}
            if isinstance(metadata, dict):  # else the model says what it thinks of it
                event["response"] = {**fields, "metadata": {**metadata, _ASKED_BY: event_id}}
        return encode(event)

    # What the model says

    def on_created(self, response: dict[str, Any]) -> list[Settled]:
        """A response of the default conversation began; ours is known by its metadata where the server keeps it."""
        settled, requested = self._superseded(), self._requested
        self._owed_until = -math.inf
        self.active, self._asked, self._not_before = str(response.get("id")), None, -math.inf
        self._was_heard = False
        metadata = response.get("metadata")
        mark = metadata.get(_ASKED_BY) if isinstance(metadata, dict) else None
        self._keeps_metadata |= mark is not None
        if requested is None:
            return settled
        if not requested.ask.wanted_by:  # the client's, or the VAD's and then a refusal of the client's is on its way
            self._asked = requested.ask
            if not requested.ask.has_waited:
                self._requested = None
        elif mark == requested.event_id:
            self._asked, self._requested = requested.ask, None
            settled += self._begun(requested.ask)
        elif not metadata and not self._keeps_metadata:  # ours, or the VAD's: then a refusal of ours is on its way
            self._asked = requested.ask
        return settled

    def _superseded(self) -> list[Settled]:
        """The model makes one response at a time: when another begins, the one before is over, said or not."""
        asked = self._asked
        return _settled(asked, "answered") if asked is not None and not self._is_doubtful else []

    @property
    def _is_doubtful(self) -> bool:
        """Whether the active response may be the one that was asked for, or another."""
        return self._requested is not None and self._requested.ask is self._asked

    def _begun(self, ask: Ask) -> list[Settled]:
        """A bare request for a response is applied when the response begins; items were before."""
        has_begun, ask.has_begun = ask.has_begun, True
        if has_begun:
            return []
        return [Settled(each.message_id, each.item_id, "applied") for each in ask.wanted_by if each.event is None]

    def on_done(self, response: dict[str, Any]) -> list[Settled]:
        """A response ended, however: a message that asked for it is answered, or failed with the response's error."""
        if self.active != str(response.get("id")):
            return []
        was_doubtful, asked = self._is_doubtful, self._asked
        self.active = self._asked = None
        if asked is None:
            return []
        settled: list[Settled] = []
        if was_doubtful:
            self._requested = None
            settled = self._begun(asked)
        if response.get("status") != "failed":
            return settled + _settled(asked, "answered")
        details = response.get("status_details")
        trouble = details.get("error") if isinstance(details, dict) else None
        if not isinstance(trouble, dict):
            trouble = error("response_failed", "The model could not answer.")
        return settled + _settled(asked, "failed", trouble)

    def on_heard(self) -> None:
        """What a person said is in the conversation: the server may want to answer it."""
        self._was_heard = True

    def on_owed(self, now: float) -> None:
        """The server is about to answer by itself."""
        self._owed_until = now + _OWED_SECONDS

    def is_owed(self, now: float) -> bool:
        """Whether somebody is about to be answered, or is being answered."""
        return self.active is not None or self._requested is not None or now < self._owed_until

    @property
    def is_owed_to_client(self) -> bool:
        """The same, or waiting for it, where no backend asked for the response: so no message stands behind it."""
        if any(not ask.wanted_by for ask in self._queue):
            return True
        asked = self._asked or (self._requested.ask if self._requested is not None else None)
        if asked is not None and asked.wanted_by:
            return False
        return self.active is not None or self._requested is not None or self._owed_until > -math.inf

    def on_model_gone(self, now: float, *, is_told: bool) -> list[Settled]:
        """Another model leg takes over: what was asked for is asked for there.

        ``is_told``: but not the response that was active, which has said what it had to say, or was to be silent.
        """
        settled: list[Settled] = []
        owed: list[Ask] = []
        if self.active is not None and is_told:
            settled = [*self._begun(self._asked), *_settled(self._asked, "answered")] if self._asked is not None else []
        elif self.active is not None:
            ask = self._asked or Ask([])
            if ask.has_begun:  # who wants to know no more than that has been told
                ask.wanted_by = [each for each in ask.wanted_by if each.wants_answer]
            owed.append(ask)
        elif self._requested is None and now < self._owed_until:
            owed.append(Ask([]))
        if self._requested is not None and self._requested.ask is not self._asked:
            owed.append(self._requested.ask)
        for ask in owed:
            ask.has_waited = not ask.wanted_by
        self._queue[:0] = owed
        self.active = self._asked = self._requested = None
        self._not_before = self._owed_until = -math.inf
        self._was_heard = False
        return settled

    def owe(self) -> None:
        """The client was being answered when its call came here."""
        self._queue.insert(0, Ask([], has_waited=True))

    def on_turn_refused(self) -> bool:
        """Something lost against the active response, and the model doesn't say what; whether that is mended here.

        It is the response that was asked for, if one was, unless a person said something while another was active:
        then it is the server's own answer to that. If the active one is of the relay's asking that answer would have
        come without us, so it is asked for when the active one is done.
        """
        is_servers = self.active is not None and self._was_heard
        if self._requested is not None and not is_servers:
            ask = self._requested.ask
            if not ask.wanted_by and not ask.has_waited:
                self._requested = None
                return False
            return self.on_refused(self._requested.event_id, {"code": ACTIVE})[0]
        if self._asked is None or not (self._asked.wanted_by or self._asked.has_waited):
            return False
        if not any(ask.has_waited and not ask.client_event_id for ask in self._queue):
            self._queue.insert(0, Ask([], has_waited=True))
        return True

    def on_refused(self, event_id: str, trouble: dict[str, Any]) -> tuple[bool, list[Settled]]:
        """The model refused an event: whether it was one of these and nobody else's business, and what it settles."""
        if self._requested is None or self._requested.event_id != event_id:
            return False, []
        ask, self._requested = self._requested.ask, None
        if self._asked is ask:  # the response that began meanwhile was another's
            self._asked = None
        if trouble.get("code") == ACTIVE and (ask.wanted_by or ask.has_waited):
            self._queue.insert(0, ask)  # its response follows the one that is in the way
            if self.active is None:
                self._not_before = math.inf
            return True, []
        return bool(ask.wanted_by), _failed(ask.wanted_by, trouble)

    def overdue(self, now: float) -> list[Settled]:
        """Give up on a response that the model did not begin in time."""
        requested = self._requested
        if requested is None or now < requested.until or self._is_doubtful:
            return []
        self._requested = None
        text = f"The model began no response within {self._apply_seconds:g} s."
        return _failed(requested.ask.wanted_by, error("model_timeout", text))

    def look(self, now: float) -> None:
        """Time has passed: a response that is in the way and not known here may be over."""
        if self._not_before == math.inf:
            self._not_before = now + _RETRY_SECONDS
        elif now >= self._not_before:
            self._not_before = -math.inf

    def expire(self, wall: float) -> list[Settled]:
        """Drop those whose deadline passed while they waited: their items stay in the conversation."""
        settled: list[Settled] = []
        for ask in [ask for ask in self._queue if ask.wanted_by]:
            settled += expire(ask, wall)
            if not ask.wanted_by:
                self._queue.remove(ask)
        return settled

    def due(self) -> float | None:
        """When ``overdue`` or ``look`` has something to say."""
        if self._requested is not None:
            return self._requested.until if self.is_requested else None
        return self._not_before if self._queue and math.isfinite(self._not_before) else None

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


def _settled(ask: Ask, status: str, trouble: dict[str, Any] | None = None) -> list[Settled]:
    return [Settled(each.message_id, each.item_id, status, trouble) for each in ask.wanted_by if each.wants_answer]


def _failed(wanted_by: list[Injection], trouble: dict[str, Any]) -> list[Settled]:
    return [each.failed(trouble) for each in wanted_by]
