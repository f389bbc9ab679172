"""The turn gate: when a backend's message enters the conversation, what the model is asked then, and what became of it.

Decides on events: which to send, which answers they get, whose an error is. Knows nothing of Redis, legs or clocks;
time comes in as ``now`` (the loop's) and ``wall`` (seconds since the epoch, which deadlines are in).

- ``now`` messages go at once; the response that they ask for follows the one that is active, if there is one.
- ``turn_end`` messages wait for the turn to be over: no response active or asked for, nobody speaking, turn detection
  settled, no audio of the client's left uncommitted, and what was sent to the person played (``relay.core.turns``).
- ``interrupt`` messages make their turn: the active response is cancelled, what the person has not heard is cut.
"""

from typing import Any, Final, NamedTuple

from relay.core.flights import DUPLICATE, OWN, Flight, Flights
from relay.core.messages import WHEN, Injection, Settled
from relay.core.realtime import encode
from relay.core.responses import ACTIVE, Ask, Responses, expire
from relay.core.tools import ToolCalls
from relay.core.turns import Turns

OWN_EVENTS: Final = "r."  # event ids of the relay's own on the model leg


class Released(NamedTuple):
    """What goes to the model now, what is settled without asking it, and whether the client should stop playing."""

    events: list[bytes]
    settled: list[Settled]
    silenced: bool = False


class Abandoned(NamedTuple):
    """What a model leg that is gone leaves: what is settled, the client's events to say again, by their event ids, and
    whether the client should stop playing."""

    settled: list[Settled]
    again: list[tuple[str, Flight]]
    silenced: bool


class Gate:
    """The messages of one call between their arrival at the owner and the model's answer.

    At most ``max_waiting`` wait; the inbox refuses long before that, so that more is a bug and raises.
    """

    __slots__ = (
        "_apply_seconds",
        "_held",
        "_is_silencing",
        "_max_waiting",
        "_next_event",
        "_waiting",
        "flights",
        "responses",
        "tools",
        "turns",
    )

    def __init__(self, *, apply_seconds: float, max_waiting: int) -> None:
        self._apply_seconds = apply_seconds
        self._max_waiting = max_waiting
        self._next_event = 0
        # Lists and dicts, not deques: they are empty in most calls, and an empty deque has 600 bytes.
        self._waiting: dict[str, list[Injection]] = {when: [] for when in WHEN}
        self._held: dict[str, Ask] = {}  # by group of tool calls: their results are not all there
        self._is_silencing = False  # the active response was cancelled here; the client is told when it is done
        self.turns = Turns()
        self.tools = ToolCalls()
        self.flights = Flights()
        self.responses = Responses(apply_seconds=apply_seconds, new_event_id=self.event_id)

    def event_id(self) -> str:
        """Make an event id of the relay's own."""
        self._next_event += 1
        return f"{OWN_EVENTS}{self._next_event}"

    def add(self, injection: Injection, *, is_known: bool = False) -> list[Settled]:
        """Queue a message, or refuse it; ``release`` sends it.

        ``is_known``: its item is in the conversation already, by an earlier owner's doing.
        """
        if is_known:
            self._ask(injection)
            self._let_go()
            return [Settled(injection.message_id, injection.item_id, "applied")]
        if sum(map(len, self._waiting.values())) >= self._max_waiting:
            raise OverflowError("the inbox handed over more messages than it may hold")
        if injection.tool_call_id is not None:
            refusal = self.tools.refusal(injection.tool_call_id)
            if refusal is not None:
                return [injection.ended("rejected", *refusal)]
            self.tools.take(injection.tool_call_id)
        self._waiting[injection.when].append(injection)
        return []

    # What goes out

    def release(self, now: float, wall: float, appended: int) -> Released:
        """Return what to do now. ``appended`` is how many messages of audio the client has sent so far."""
        settled = self.expire(wall)
        self.responses.look(now)
        events, silenced = self._interrupt(now, appended) if self._waiting["interrupt"] else ([], False)
        waiting, self._waiting["now"] = self._waiting["now"], []
        events += self._send(waiting, now, appended)
        turn_end = self._waiting["turn_end"]
        while turn_end and not self._turn_is_taken and self._is_boundary(now, appended):
            events += self._send([turn_end.pop(0)], now, appended)
        if self.responses.has_waiting:
            settled_from = self.turns.settled_from
            is_settled = settled_from is not None and settled_from <= now
            is_boundary = self._is_boundary(now, appended)
            asked = self.responses.next(now, is_settled=is_settled, is_boundary=is_boundary)
            if asked is not None:
                events.append(asked)
        return Released(events, settled, silenced)

    def _is_boundary(self, now: float, appended: int) -> bool:
        quiet_from = self.turns.quiet_from(appended)
        return self.responses.is_idle and quiet_from is not None and quiet_from <= now

    @property
    def _turn_is_taken(self) -> bool:
        """Whether this turn's end has its message already, whose response comes first."""
        return self.responses.waits_for_boundary or any(
            each.when == "turn_end" and each.response is not None and each.tool_call_id is None
            for each in self.flights.cargo
        )

    def _interrupt(self, now: float, appended: int) -> tuple[list[bytes], bool]:
        if self.responses.is_requested:
            return [], False  # what has not begun cannot be cancelled
        events = []
        unplayed = self.turns.unplayed(now)
        self._is_silencing = self.responses.active is not None
        if self._is_silencing:
            events.append(encode({"type": "response.cancel", "event_id": self.event_id()}))
        for part in unplayed:
            fields = {"item_id": part.item_id, "content_index": part.content_index, "audio_end_ms": part.played_ms}
            events.append(encode({"type": "conversation.item.truncate", "event_id": self.event_id(), **fields}))
        self.turns.on_cut()
        waiting, self._waiting["interrupt"] = self._waiting["interrupt"], []
        return events + self._send(waiting, now, appended), bool(unplayed) and not self._is_silencing

    def _send(self, injections: list[Injection], now: float, appended: int) -> list[bytes]:
        events = []
        for injection in injections:
            if injection.event is None:
                self._ask(injection)
                continue
            event_id, kind = self.event_id(), str(injection.event.get("type"))
            if kind in {"input_audio_buffer.commit", "input_audio_buffer.clear"}:
                self.turns.on_buffer_taken(appended)
            self.flights.add(event_id, kind, injection.item_id, injection, now + self._apply_seconds)
            events.append(encode({**injection.event, "event_id": event_id}))
        return events

    def _ask(self, injection: Injection) -> None:
        if injection.response is None:
            return
        fields = injection.response
        at_boundary = injection.when == "turn_end"
        call = injection.tool_call_id
        if call is None:
            is_urgent = injection.when == "interrupt"
            ask = Ask([injection], {"response": fields} if fields else {}, at_boundary=at_boundary, is_urgent=is_urgent)
            self.responses.add(ask, first=is_urgent)
            return
        ask = self._held.setdefault(self.tools.group(call), Ask([]))
        ask.wanted_by.append(injection)
        ask.at_boundary = at_boundary
        ask.event = {"response": fields} if fields else ask.event

    def _let_go(self) -> None:
        """The response after a response's tool calls is wanted when it made the last and that has its result."""
        for group in list(self._held):
            if group != self.responses.active and self.tools.is_complete(group):
                self.responses.add(self._held.pop(group))

    def expire(self, wall: float) -> list[Settled]:
        """Settle what waits and whose deadline passed."""
        settled = []
        for when, waiting in self._waiting.items():
            late = [each for each in waiting if wall > each.expires_at]
            if late:
                self._waiting[when] = [each for each in waiting if wall <= each.expires_at]
            for each in late:
                self._give_back(each)
                settled.append(each.ended("expired", "expired", "Its deadline passed."))
        for group, ask in list(self._held.items()):
            settled += expire(ask, wall)
            if not ask.wanted_by:
                del self._held[group]
        return settled + self.responses.expire(wall)

    def _give_back(self, injection: Injection) -> None:
        if injection.tool_call_id is not None:
            self.tools.give_back(injection.tool_call_id)

    @property
    def is_busy(self) -> bool:
        """Whether anything waits or is under way."""
        responses = self.responses
        is_waiting = self._held or responses.has_waiting or any(self._waiting.values())
        return bool(is_waiting or responses.is_requested or self.flights)

    def due(self, now: float, wall: float, appended: int, *, is_held_back: bool = False) -> float | None:
        """When ``release`` or ``overdue`` has something to do; None: not before something happens.

        ``is_held_back``: nothing can be sent for the time being.
        """
        times = [self.flights.due(), self.responses.due()]
        deadlines = [each.expires_at for waiting in self._waiting.values() for each in waiting]
        deadlines += [each.expires_at for ask in self._held.values() for each in ask.wanted_by]
        waiting = self.responses.deadline()
        if waiting is not None:
            deadlines.append(waiting)
        if deadlines:
            times.append(now + max(0.0, min(deadlines) - wall) + 0.001)  # a deadline itself is still in time
        if self.responses.is_idle and not is_held_back:
            if (self._waiting["turn_end"] and not self._turn_is_taken) or self.responses.waits_for_boundary:
                times.append(self.turns.quiet_from(appended))
            if self.responses.waits_for_silence:
                times.append(self.turns.settled_from)
        return min((each for each in times if each is not None), default=None)

    # What the model says

    def on_item(self, item: dict[str, Any]) -> list[Settled]:
        """The model has an item in its conversation: ours is applied; a tool call or its result is remembered."""
        kind, call, item_id = item.get("type"), item.get("call_id"), str(item.get("id"))
        if isinstance(call, str):
            if kind == "function_call":
                self.tools.on_call(call, item_id, is_whole=item.get("status") != "incomplete")
            elif kind == "function_call_output":
                self.tools.on_result(call)
        settled = self._applied(self.flights.on_answer("item", item_id))
        self._let_go()  # after the last result has said whether it wants an answer
        return settled

    def on_answer(self, kind: str, item_id: str = "") -> list[Settled]:
        """The model has done what an event asked for; see ``relay.core.flights``."""
        return self._applied(self.flights.on_answer(kind, item_id))

    def _applied(self, flight: Flight | None) -> list[Settled]:
        if flight is None or flight.cargo is None or flight.cargo is OWN:
            return []
        injection: Injection = flight.cargo
        self._ask(injection)
        return [Settled(injection.message_id, injection.item_id, "applied")]

    def _applied_before(self, flight: Flight | None) -> list[Settled]:
        """The conversation has our item already: what it answers is answered."""
        if flight is not None and flight.cargo.tool_call_id is not None:
            self.tools.on_result(flight.cargo.tool_call_id)
        settled = self._applied(flight)
        self._let_go()
        return settled

    def on_deleted(self, item_id: str) -> None:
        """An item is no longer in the conversation."""
        self.tools.on_deleted(item_id)
        self._let_go()

    def on_error(self, trouble: dict[str, Any]) -> tuple[bool, list[Settled]]:
        """An error of the model's: whether it is nobody's but the relay's or a backend's, and what it settles."""
        cause, code = trouble.get("event_id"), trouble.get("code")
        if isinstance(cause, str):
            hidden, settled = self.responses.on_refused(cause, trouble)
            if hidden or settled:
                return True, settled
            return self._on_refused(cause, self.flights.on_refused(cause), trouble)
        if code == ACTIVE:
            return self.responses.on_turn_refused(), []
        if code == DUPLICATE:
            flight = self.flights.on_duplicate(str(trouble.get("message")))
            return flight is not None, self._applied_before(flight)
        return False, []

    def _on_refused(self, cause: str, flight: Flight | None, trouble: dict[str, Any]) -> tuple[bool, list[Settled]]:
        if flight is None or flight.cargo is None or flight.cargo is OWN:
            return cause.startswith(OWN_EVENTS), []
        if trouble.get("code") == DUPLICATE and flight.cargo.item is not None:
            return True, self._applied_before(flight)
        self._give_back(flight.cargo)
        return True, [flight.cargo.failed(trouble)]

    def on_response_created(self, response: dict[str, Any]) -> list[Settled]:
        """A response of the default conversation began."""
        settled = self.responses.on_created(response)
        self._let_go()
        return settled

    def on_response_done(self, response: dict[str, Any]) -> tuple[list[Settled], bool]:
        """A response of the default conversation ended: what it settles, and whether the client should stop playing."""
        response_id = str(response.get("id"))
        was_active = self.responses.active == response_id
        settled = self.responses.on_done(response)
        self._let_go()
        silenced = was_active and self._is_silencing
        if was_active:
            self._is_silencing = False
            if response.get("status") == "cancelled":
                self.turns.on_cut()
        return self.on_answer("response.done") + settled, silenced

    # When the model leg is another one

    def is_quiet(self, now: float, appended: int) -> bool:
        """Whether the model leg could be replaced now without anybody's noticing."""
        is_waiting = self.responses.has_waiting or any(self._waiting.values())
        return not (is_waiting or self.flights or self.responses.is_owed(now)) and self._is_boundary(now, appended)

    def may_be_cut(self, now: float) -> bool:
        """Whether at least nothing is being said, by nobody."""
        return not self.responses.is_owed(now) and not self.turns.is_speaking

    def on_model_gone(self, now: float, *, is_told: bool) -> Abandoned:
        """What was under way waits again, in front.

        ``is_told``: the response that was active has made its tool calls, whose results ask for the next one.
        """
        settled: list[Settled] = []
        again: list[tuple[str, Flight]] = []
        back: list[Injection] = []
        is_cancelled = silenced = self._is_silencing
        for event_id, flight in self.flights.take_all():
            is_cancelled |= flight.answer is not None and flight.answer[0] == "response.done"
            if flight.cargo is None:
                again += [(event_id, flight)] if flight.again else []
            elif flight.cargo is OWN:
                continue
            elif flight.answer is None or flight.answer[0] == "response.done":  # of those nobody could tell any more
                settled.append(Settled(flight.cargo.message_id, flight.cargo.item_id, "applied"))
            else:
                back.append(flight.cargo)
        for injection in reversed(back):
            self._waiting[injection.when].insert(0, injection)
        self._is_silencing = False
        self.turns.on_model_gone(now)
        settled += self.responses.on_model_gone(now, is_told=is_told or is_cancelled)
        self._let_go()
        return Abandoned(settled, again, silenced)

    def overdue(self, now: float) -> list[Settled]:
        """Settle the messages to which the model gave no answer in time."""
        settled = []
        for flight in self.flights.overdue(now):
            if flight.cargo is None or flight.cargo is OWN:
                continue
            if flight.answer is None:  # an event that has no answer but an error
                settled.append(Settled(flight.cargo.message_id, flight.cargo.item_id, "applied"))
                continue
            self._give_back(flight.cargo)
            text = f"The model did not answer within {self._apply_seconds:g} s."
            settled.append(flight.cargo.ended("failed", "model_timeout", text))
        return settled + self.responses.overdue(now)
