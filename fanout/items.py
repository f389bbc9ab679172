"""What may be put into a call: the fields that say it, each with its rule and its default, made into a message. Pure.

The same rules for the HTTP surface and for the Python client. They go as far as the bus and the owner rely on them;
what stands inside an item is the model's to judge.
"""

import re
import secrets
from typing import Annotated, Any, Final, Literal

import msgspec

from fanout.errors import InvalidItem
from fanout.messages import Message

_ITEM_ID: Final = re.compile(r"[A-Za-z0-9_-]{0,32}")  # the length is the Realtime API's own limit
_PARTS: Final = {
    "system": {"input_text"},
    "user": {"input_text", "input_audio", "input_image"},
    "assistant": {"output_text"},  # its audio cannot be populated (the API's limit)
}

MessageId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]


class ItemBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON body of ``POST …/items``, with its defaults."""

    item: dict[str, Any]
    response: bool | dict[str, Any] | None = None  # None: a tool result asks for one, a message doesn't
    when: Literal["now", "turn_end", "interrupt"] = "now"
    visible: bool = True
    expires_in_ms: Annotated[int, msgspec.Meta(ge=1, le=3_600_000)] = 60_000
    id: MessageId | None = None


_FIELD: Final = re.compile(r"(?:missing required|unknown) field `(\w+)`")
_decode: Final = msgspec.json.Decoder(ItemBody).decode


def read_message(body: bytes, *, wall: float, traceparent: str | None = None) -> Message:
    """Turn a JSON body into a message.

    Args:
        body: an `ItemBody` as JSON.
        wall: seconds since the epoch, from which the deadline counts.
        traceparent: W3C trace context of whoever sends it.

    Raises:
        InvalidItem: it is not JSON, or a field is wrong, which it names.
    """
    try:
        parsed = _decode(body)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        named = _FIELD.search(text)  # of a missing or an unknown field msgspec has no path
        raise InvalidItem(path.strip("`.") or (named.group(1) if named else None), text) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidItem(None, f"The body is not JSON: {error}.", code="invalid_json") from None
    if parsed.when != "now":
        raise InvalidItem("when", f"when {parsed.when!r} is not available in this version: use 'now'")
    if not parsed.visible:
        raise InvalidItem("visible", "hidden items are not available in this version")
    item_id = _check_item(parsed.item)
    response = parsed.response
    if response is None:
        response = parsed.item["type"] == "function_call_output"
    return Message(
        id=parsed.id or new_message_id(),
        item=msgspec.json.encode(parsed.item),
        response=response if isinstance(response, bool) else msgspec.json.encode(response),
        expires_at=wall + parsed.expires_in_ms / 1000,
        traceparent=traceparent,
        item_id=item_id,
    )


def new_message_id() -> str:
    """An id for a message whose sender gave none."""
    return f"msg_{secrets.token_hex(12)}"


def _check_item(item: dict[str, Any]) -> str:
    """Check the item as far as the fleet relies on it; return its id, "" without one."""
    item_id = item.get("id", "")
    if not isinstance(item_id, str) or not _ITEM_ID.fullmatch(item_id):
        raise InvalidItem("item.id", "must be a string of at most 32 letters, digits, - and _")
    match item.get("type"):
        case "message":
            _check_message(item)
        case "function_call_output":
            for key in ("call_id", "output"):
                if not isinstance(item.get(key), str):
                    raise InvalidItem(f"item.{key}", "must be a string")
        case _:
            raise InvalidItem("item.type", "must be 'message' or 'function_call_output'")
    return item_id


def _check_message(item: dict[str, Any]) -> None:
    parts = _PARTS.get(str(item.get("role")))
    if parts is None:
        raise InvalidItem("item.role", "must be 'system', 'user' or 'assistant'")
    content = item.get("content")
    if not isinstance(content, list) or not content:
        raise InvalidItem("item.content", "must be a list with at least one part")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or str(part.get("type")) not in parts:
            raise InvalidItem(f"item.content[{index}]", f"must have a type among {', '.join(sorted(parts))}")
