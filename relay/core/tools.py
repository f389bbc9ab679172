"""Which tool calls this conversation made, and which of them have their result. Pure.

A response may make several tool calls; what follows it is asked for once, when the last of them has its result.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

_REMEMBERED: Final = 1024  # the oldest tool calls of a long call are forgotten, and their results refused


class _State(Enum):
    OPEN = auto()
    UNDER_WAY = auto()  # a backend's result waits, or is on its way to the model
    ANSWERED = auto()
    GONE = auto()  # its item was deleted from the conversation


@dataclass(slots=True)
class _ToolCall:
    item_id: str
    group: str  # the response that made it, or its own id
    state: _State = _State.OPEN
    is_whole: bool = True  # else the response was cut off within it: a result may come, but nobody waits for one


class ToolCalls:
    """The tool calls of one conversation, by their ``call_id``."""

    __slots__ = ("_calls", "_started")

    def __init__(self) -> None:
        self._calls: dict[str, _ToolCall] = {}
        self._started: dict[str, str] = {}  # call id -> the response that is making it

    def on_started(self, call_id: str, response_id: str) -> None:
        """A response begins to make a tool call."""
        self._started[call_id] = response_id
        if len(self._started) > _REMEMBERED:
            del self._started[next(iter(self._started))]

    def on_call(self, call_id: str, item_id: str, *, is_whole: bool = True) -> None:
        """A tool call is in the conversation; it comes more than once."""
        group = self._started.pop(call_id, "")
        known = self._calls.setdefault(call_id, _ToolCall(item_id, group or call_id))
        if group:
            known.group = group
        known.is_whole &= is_whole
        if len(self._calls) > _REMEMBERED:
            del self._calls[next(iter(self._calls))]

    def on_result(self, call_id: str) -> None:
        """The conversation has its result, whoever gave it."""
        if call_id in self._calls:
            self._calls[call_id].state = _State.ANSWERED

    def on_deleted(self, item_id: str) -> None:
        """An item is no longer in the conversation."""
        for call in self._calls.values():
            if call.item_id == item_id:
                call.state = _State.GONE

    def restore(self, entry: dict[str, Any]) -> None:
        """Take an entry of the call's memory that is a tool call, or a result."""
        call_id = str(entry.get("call_id"))
        if entry.get("type") == "function_call":
            self.on_call(call_id, str(entry.get("id")), is_whole=entry.get("status") != "incomplete")
        elif entry.get("type") == "function_call_output":
            self.on_result(call_id)

    def refusal(self, call_id: str) -> tuple[str, str] | None:
        """Why a backend's result would be refused, as code and words; None if it would not be."""
        call = self._calls.get(call_id)
        if call is None:
            return "unknown_tool_call", f"This conversation made no tool call {call_id!r}."
        match call.state:
            case _State.OPEN:
                return None
            case _State.GONE:
                return "tool_call_late", f"The tool call {call_id!r} was deleted from the conversation."
            case _:
                return "tool_call_answered", f"The tool call {call_id!r} has a result already."

    def take(self, call_id: str) -> None:
        """A result is under way; a second one is refused until it turns out that this one failed."""
        self._set(call_id, _State.UNDER_WAY)

    def give_back(self, call_id: str) -> None:
        """The result that was under way came to nothing."""
        self._set(call_id, _State.OPEN)

    def _set(self, call_id: str, state: _State) -> None:
        call = self._calls.get(call_id)
        if call is not None and call.state in {_State.OPEN, _State.UNDER_WAY}:
            call.state = state

    def group(self, call_id: str) -> str:
        """What the tool calls of one response have in common."""
        call = self._calls.get(call_id)
        return call.group if call is not None else call_id

    def is_complete(self, group: str) -> bool:
        """Whether none of the tool calls that a response has made so far waits for its result."""
        return not any(
            call.state is _State.UNDER_WAY or (call.state is _State.OPEN and call.is_whole)
            for call in self._calls.values()
            if call.group == group
        )
