"""A backend's message on its way into the conversation, and what became of it. Plain values."""

from typing import Any, Final, NamedTuple

import msgspec

from fanout.messages import Message

WHEN: Final = ("interrupt", "now", "turn_end")


class Settled(NamedTuple):
    """What became of a message: applied, answered, failed, rejected or expired, and the error if there is one."""

    message_id: str
    item_id: str
    status: str
    error: dict[str, Any] | None = None


class Injection(NamedTuple):
    """A backend's message: an event for the model, a response to be asked for, or both in this order."""

    message_id: str
    item_id: str  # of the item that it puts in, or is about; "" for none
    event: dict[str, Any] | None  # the client event, without an event id; None if only a response is wanted
    response: dict[str, Any] | None  # fields of the response.create that follows, None for no response
    expires_at: float  # seconds since the epoch
    when: str = "now"  # now, turn_end, interrupt
    visible: bool = True
    wants_answer: bool = True  # whether anybody waits for the response's end
    cause: str | None = None  # the sender's own event id, for an error that answers it

    @property
    def item(self) -> dict[str, Any] | None:
        """The item that it puts in."""
        event = self.event or {}
        item = event.get("item") if event.get("type") == "conversation.item.create" else None
        return item if isinstance(item, dict) else None

    @property
    def tool_call_id(self) -> str | None:
        """The tool call that this answers, if it is a tool result."""
        item = self.item or {}
        call = item.get("call_id") if item.get("type") == "function_call_output" else None
        return call if isinstance(call, str) else None

    def failed(self, trouble: dict[str, Any]) -> Settled:
        """The model refused it: in its own words, with the sender's event id in place of the relay's."""
        return Settled(self.message_id, self.item_id, "failed", {**trouble, "event_id": self.cause})

    def ended(self, status: str, code: str, text: str) -> Settled:
        """The relay says what became of it."""
        return Settled(self.message_id, self.item_id, status, error(code, text))


def read(message: Message) -> Injection:
    """Read a message of the inbox that puts in an item or an event.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        content = msgspec.json.decode(message.item)
        response = msgspec.json.decode(message.response) if isinstance(message.response, bytes) else {}
    except (msgspec.DecodeError, RecursionError) as problem:
        raise ValueError(str(problem)) from None
    if not isinstance(content, dict) or not isinstance(response, dict):
        raise ValueError("not a JSON object")
    if message.when not in WHEN:
        raise ValueError("an unknown 'when'")
    common: dict[str, Any] = {"message_id": message.id, "expires_at": message.expires_at, "when": message.when}
    if message.kind == "event":
        return _event(content, message.item_id, wants_answer=message.wants_response, **common)
    item = {**content, "id": message.item_id}
    return Injection(
        item_id=message.item_id,
        event={"type": "conversation.item.create", "item": item},
        response=response if message.wants_response else None,
        visible=message.visible,
        **common,
    )


def _event(event: dict[str, Any], item_id: str, *, wants_answer: bool, **common: Any) -> Injection:
    """A client event of a backend's: a response that it asks for waits its turn as all do."""
    cause = event.pop("event_id", None)
    common["cause"] = cause if isinstance(cause, str) else None
    kind, response, item = event.get("type"), event.get("response"), event.get("item")
    fields = response if isinstance(response, dict) else {}
    if kind == "response.create" and fields.get("conversation") != "none":
        return Injection(item_id="", event=None, response=fields, wants_answer=wants_answer, **common)
    if kind == "conversation.item.create" and isinstance(item, dict):
        if item.get("id") is None:
            item["id"] = item_id
        item_id = str(item["id"])
    else:
        item_id = str(event.get("item_id") or "")
    return Injection(item_id=item_id, event=event, response=None, **common)


def error(code: str, message: str) -> dict[str, Any]:
    """Build an error in OpenAI's shape."""
    return {"type": "invalid_request_error", "code": code, "message": message, "param": None}
