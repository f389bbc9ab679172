"""Putting messages into the model's conversation and learning what became of them.

Decides on events: which to send, which answers they get, whose an error is. Knows nothing of Redis, legs or clocks;
time comes in as ``now``. Item acknowledgement follows the Realtime API: ``conversation.item.added`` or ``.done`` with
our item id, else an ``error`` whose ``event_id`` is ours (or that names the item: servers were seen to leave it empty).
"""

import re
from typing import Any, Final, NamedTuple

from relay.core.realtime import encode

OWN_EVENTS: Final = "r."  # event ids of the relay's own; the client's are sent on behind CLIENT_EVENTS
_ASKED_BY: Final = "relay_event_id"  # metadata key of the responses that the relay asks for
_WORD: Final = re.compile(r"[A-Za-z0-9_-]+")  # of an error's message: item ids are such words
_TOOL_CALLS_REMEMBERED: Final = 1024


class Injection(NamedTuple):
    """A backend's message on its way into the conversation."""

    message_id: str
    item_id: str
    item: dict[str, Any]  # with its id
    response: dict[str, Any] | None  # fields of the response.create that follows, None for no response
    expires_at: float  # seconds since the epoch

    @property
    def tool_call_id(self) -> str | None:
        """The tool call that this answers, if it is a tool result."""
        return self.item.get("call_id") if self.item.get("type") == "function_call_output" else None


class Settled(NamedTuple):
    """What became of a message: applied, answered, failed, rejected or expired, and the error if there is one."""

    message_id: str
    item_id: str
    status: str
    error: dict[str, Any] | None = None


class Injections:
    """The messages of one call between their arrival at the owner and the model's answer.

    At most ``max_waiting`` wait while the model leg cannot take them; the inbox refuses long before that, so that more
    is a bug and raises.
    """

    __slots__ = (
        "_active",
        "_active_for",
        "_apply_seconds",
        "_in_flight",
        "_max_waiting",
        "_next_event",
        "_requested",
        "_responses",
        "_tool_calls",
        "_waiting",
    )

    def __init__(self, *, apply_seconds: float, max_waiting: int) -> None:
        self._apply_seconds = apply_seconds
        self._max_waiting = max_waiting
        # Lists and dicts, not deques: they are empty in most calls, and an empty deque has 600 bytes.
        self._waiting: list[Injection] = []
        self._in_flight: dict[str, tuple[Injection, str, float]] = {}  # by item id
        self._responses: list[Injection] = []  # applied, their response not yet asked for
        self._requested: tuple[str, Injection, float] | None = None  # event id, for whom, until when it must begin
        self._active: str | None = None  # the response of the default conversation, whoever asked for it
        self._active_for: Injection | None = None
        self._tool_calls: dict[str, bool] = {}  # id -> has a result
        self._next_event = 0

    def add(self, injection: Injection) -> None:
        """Queue a message; ``release`` sends it."""
        if len(self._waiting) >= self._max_waiting:
            raise OverflowError("the inbox handed over more messages than it may hold")
        self._waiting.append(injection)

    def release(self, now: float, wall: float) -> tuple[list[bytes], list[Settled]]:
        """Return the events to send now, in order, and the messages whose fate is known without asking the model.

        ``now`` is the loop's time, ``wall`` seconds since the epoch, which deadlines are in.
        """
        events: list[bytes] = []
        settled: list[Settled] = []
        waiting, self._waiting = self._waiting, []
        for injection in waiting:
            refusal = self._refusal(injection, wall)
            if refusal is not None:
                settled.append(refusal)
                continue
            event_id = self._event_id()
            self._in_flight[injection.item_id] = (injection, event_id, now + self._apply_seconds)
            if injection.tool_call_id is not None:
                self._tool_calls[injection.tool_call_id] = True
            events.append(encode({"type": "conversation.item.create", "event_id": event_id, "item": injection.item}))
        events += self._respond(now)
        return events, settled

    def _refusal(self, injection: Injection, wall: float) -> Settled | None:
        if wall > injection.expires_at:
            return Settled(
                injection.message_id, injection.item_id, "expired", _error("expired", "Its deadline passed.")
            )
        call = injection.tool_call_id
        if call is None:
            return None
        if call not in self._tool_calls:
            error = _error("unknown_tool_call", f"This conversation made no tool call {call!r}.")
            return Settled(injection.message_id, injection.item_id, "rejected", error)
        if self._tool_calls[call]:
            error = _error("tool_call_answered", f"The tool call {call!r} has a result already.")
            return Settled(injection.message_id, injection.item_id, "rejected", error)
        return None

    def _event_id(self) -> str:
        self._next_event += 1
        return f"{OWN_EVENTS}{self._next_event}"

    def _respond(self, now: float) -> list[bytes]:
        if self._active is not None or self._requested is not None or not self._responses:
            return []
        injection = self._responses.pop(0)
        event_id = self._event_id()
        self._requested = (event_id, injection, now + self._apply_seconds)
        fields = dict(injection.response or {})
        fields["metadata"] = {**(fields.get("metadata") or {}), _ASKED_BY: event_id}
        return [encode({"type": "response.create", "event_id": event_id, "response": fields})]

    def on_item(self, item: dict[str, Any]) -> list[Settled]:
        """The model has an item in its conversation: ours is applied; a tool call or its result is remembered."""
        kind, call = item.get("type"), item.get("call_id")
        if isinstance(call, str):
            if kind == "function_call":
                self._remember(call)
            elif kind == "function_call_output" and call in self._tool_calls:
                self._tool_calls[call] = True
        found = self._in_flight.pop(str(item.get("id")), None)
        return [self._applied(found[0])] if found is not None else []

    def _remember(self, call: str) -> None:
        self._tool_calls.setdefault(call, False)
        if len(self._tool_calls) > _TOOL_CALLS_REMEMBERED:
            del self._tool_calls[next(iter(self._tool_calls))]

    def _applied(self, injection: Injection) -> Settled:
        if injection.response is not None:
            self._responses.append(injection)
        return Settled(injection.message_id, injection.item_id, "applied")

    def on_error(self, error: dict[str, Any]) -> tuple[bool, list[Settled]]:
        """An error of the model's: whether it is the relay's own, and what it settles."""
        cause, code = error.get("event_id"), error.get("code")
        if isinstance(cause, str) and cause.startswith(OWN_EVENTS):
            return True, self._on_own_error(cause, error)
        if cause is None and code == "item_create_duplicate_item_id":
            words = _WORD.findall(str(error.get("message")))
            named = next((item_id for item_id in self._in_flight if item_id in words), None)
            if named is not None:
                return True, [self._applied(self._in_flight.pop(named)[0])]
        return False, []

    def _on_own_error(self, cause: str, error: dict[str, Any]) -> list[Settled]:
        if self._requested is not None and self._requested[0] == cause:
            asked, self._requested = self._requested[1], None
            if self._active_for is asked:  # the response that began meanwhile was another's
                self._active_for = None
            if error.get("code") == "conversation_already_has_active_response":
                self._responses.insert(0, asked)  # its response follows the one that is in the way
                return []
            return [Settled(asked.message_id, asked.item_id, "failed", error)]
        for item_id, (injection, event_id, _) in self._in_flight.items():
            if event_id == cause:
                del self._in_flight[item_id]
                if error.get("code") == "item_create_duplicate_item_id":
                    return [self._applied(injection)]
                if injection.tool_call_id is not None:
                    self._tool_calls[injection.tool_call_id] = False
                return [Settled(injection.message_id, item_id, "failed", error)]
        return []

    def on_response_created(self, response: dict[str, Any]) -> None:
        """A response of the default conversation began; ours is known by its metadata where the server keeps it."""
        self._active, self._active_for = str(response.get("id")), None
        metadata = response.get("metadata")
        if self._requested is None:
            return
        if not metadata:  # ours where the server keeps none, or the VAD's: then a refusal of ours is on its way
            self._active_for = self._requested[1]
        elif metadata.get(_ASKED_BY) == self._requested[0]:
            self._active_for, self._requested = self._requested[1], None

    def on_response_done(self, response: dict[str, Any]) -> list[Settled]:
        """A response ended, however: a message that asked for it is answered, or failed with the response's error."""
        if self._active != str(response.get("id")):
            return []
        asked, self._active, self._active_for = self._active_for, None, None
        if asked is None:
            return []
        if self._requested is not None and self._requested[1] is asked:
            self._requested = None
        if response.get("status") == "failed":
            details = response.get("status_details") or {}
            error = details.get("error") or _error("response_failed", "The model could not answer.")
            return [Settled(asked.message_id, asked.item_id, "failed", error)]
        return [Settled(asked.message_id, asked.item_id, "answered")]

    def overdue(self, now: float) -> list[Settled]:
        """Return the messages to which the model gave no answer in time."""
        late = [item_id for item_id, (_, _, until) in self._in_flight.items() if now >= until]
        error = _error("model_timeout", f"The model did not answer within {self._apply_seconds:g} s.")
        settled = [Settled(self._in_flight.pop(item_id)[0].message_id, item_id, "failed", error) for item_id in late]
        if self._requested is not None and now >= self._requested[2] and self._active_for is not self._requested[1]:
            asked, self._requested = self._requested[1], None
            settled.append(Settled(asked.message_id, asked.item_id, "failed", error))
        return settled


def _error(code: str, message: str) -> dict[str, Any]:
    return {"type": "invalid_request_error", "code": code, "message": message, "param": None}
