"""The body of ``POST …/items``: what a backend may put into a call, checked field by field. Pure."""

import re
import secrets
from typing import Annotated, Any, Final, Literal

import msgspec

from fanout import Message
from relay.admission import Refused

_ITEM_ID: Final = re.compile(r"[A-Za-z0-9_-]{0,32}")  # the length is the Realtime API's own limit
_PARTS: Final = {
    "system": {"input_text"},
    "user": {"input_text", "input_audio", "input_image"},
    "assistant": {"output_text"},  # its audio cannot be populated (the API's limit)
}

MessageId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]


class ItemBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON body; DESIGN's defaults."""

    item: dict[str, Any]
    response: bool | dict[str, Any] | None = None
    when: Literal["now", "turn_end", "interrupt"] = "now"
    visible: bool = True
    expires_in_ms: Annotated[int, msgspec.Meta(ge=1, le=3_600_000)] = 60_000
    id: MessageId | None = None


_FIELD: Final = re.compile(r"(?:missing required|unknown) field `(\w+)`")
_decode: Final = msgspec.json.Decoder(ItemBody).decode


def parse(body: bytes, *, wall: float, traceparent: str | None) -> Message:
    """Turn a request body into a message.

    Args:
        body: the request's JSON.
        wall: seconds since the epoch, from which the deadline counts.
        traceparent: W3C trace context of the request.

    Raises:
        Refused: 400 if it is not JSON, 422 with the field that is wrong.
    """
    try:
        parsed = _decode(body)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        named = _FIELD.search(text)  # of a missing or an unknown field msgspec has no path
        raise _invalid(text, path.strip("`.") or (named.group(1) if named else None)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "invalid_json", f"The body is not JSON: {error}.") from None
    if parsed.when != "now":
        raise _invalid(f"when {parsed.when!r} is not available in this version: use 'now'", "when")
    if not parsed.visible:
        raise _invalid("hidden items are not available in this version", "visible")
    item_id = _check_item(parsed.item)
    response = parsed.response
    if response is None:
        response = parsed.item["type"] == "function_call_output"
    return Message(
        id=parsed.id or f"msg_{secrets.token_hex(12)}",
        item=msgspec.json.encode(parsed.item),
        response=response if isinstance(response, bool) else msgspec.json.encode(response),
        expires_at=wall + parsed.expires_in_ms / 1000,
        traceparent=traceparent,
        item_id=item_id,
    )


def _check_item(item: dict[str, Any]) -> str:
    """Check the item as far as the relay relies on it, the model judges the rest; return its id, "" without one."""
    item_id = item.get("id", "")
    if not isinstance(item_id, str) or not _ITEM_ID.fullmatch(item_id):
        raise _invalid("must be a string of at most 32 letters, digits, - and _", "item.id")
    match item.get("type"):
        case "message":
            _check_message(item)
        case "function_call_output":
            for key in ("call_id", "output"):
                if not isinstance(item.get(key), str):
                    raise _invalid("must be a string", f"item.{key}")
        case _:
            raise _invalid("must be 'message' or 'function_call_output'", "item.type")
    return item_id


def _check_message(item: dict[str, Any]) -> None:
    parts = _PARTS.get(str(item.get("role")))
    if parts is None:
        raise _invalid("must be 'system', 'user' or 'assistant'", "item.role")
    content = item.get("content")
    if not isinstance(content, list) or not content:
        raise _invalid("must be a list with at least one part", "item.content")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or str(part.get("type")) not in parts:
            raise _invalid(f"must have a type among {', '.join(sorted(parts))}", f"item.content[{index}]")


def _invalid(message: str, param: str | None) -> Refused:
    return Refused(422, "invalid_value", message, param=param)
