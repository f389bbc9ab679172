"""What may be put into a call: the fields that say it, each with its rule and its default, made into a message. Pure.

The same rules for the HTTP surface, which describes itself from these types, and for the Python client. They go as far
as the bus and the owner rely on them; what stands inside an item is the model's to judge.
"""

import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from fanout.errors import InvalidItem
from fanout.messages import Message

T = TypeVar("T")
_HANGUP_SECONDS: Final = 60.0

MessageId = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-]{1,64}\Z",
        description="Makes it safe to send again: the same id twice is one message. Without one it gets one.",
    ),
]
Lifetime = Annotated[
    float,  # to JSON Schema 60000.0 is an integer too, and some languages write it so
    Meta(
        ge=1,
        le=3_600_000,
        multiple_of=1,
        description="Milliseconds after which it is dropped, never delivered late.",
        extra_json_schema={"type": "integer"},
    ),
]
_ItemId = Annotated[
    str,  # the length is the Realtime API's own limit
    Meta(pattern=r"^[A-Za-z0-9_-]{0,32}\Z", description="The item's id in the conversation. Without one it gets one."),
]


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    """Text, in `text`."""


class InputAudio(msgspec.Struct, frozen=True, tag_field="type", tag="input_audio"):
    """Audio of the user, base64 in `audio`."""


class InputImage(msgspec.Struct, frozen=True, tag_field="type", tag="input_image"):
    """An image, a data URL in `image_url`."""


class SystemText(msgspec.Struct, frozen=True):  # a tag that stands in no union may be missing, a field may not
    """Text, in `text`."""

    type: Literal["input_text"]


class OutputText(msgspec.Struct, frozen=True):
    """What the assistant is to have said, in `text`. Its audio cannot be given: the API's limit."""

    type: Literal["output_text"]


class SystemMessage(msgspec.Struct, frozen=True, tag_field="role", tag="system"):
    """Something for the model to know: it is told, and the person doesn't hear it."""

    type: Literal["message"]
    content: Annotated[list[SystemText], Meta(min_length=1)]
    id: _ItemId = ""


class UserMessage(msgspec.Struct, frozen=True, tag_field="role", tag="user"):
    """Something as if the person had said it."""

    type: Literal["message"]
    content: Annotated[list[InputText | InputAudio | InputImage], Meta(min_length=1)]
    id: _ItemId = ""


class AssistantMessage(msgspec.Struct, frozen=True, tag_field="role", tag="assistant"):
    """Something as if the model had said it."""

    type: Literal["message"]
    content: Annotated[list[OutputText], Meta(min_length=1)]
    id: _ItemId = ""


class ToolResult(msgspec.Struct, frozen=True, tag_field="type", tag="function_call_output"):
    """The result of a tool call that the model made in this conversation."""

    call_id: Annotated[str, Meta(description="Of the tool call, as its `function_call` item has it.")]
    output: Annotated[str, Meta(description="The result as text; JSON by convention.")]
    id: _ItemId = ""


_MESSAGES: Final = SystemMessage | UserMessage | AssistantMessage
ITEMS: Final = (SystemMessage, UserMessage, AssistantMessage, ToolResult)
_BY_TYPE: Final[Mapping[str, Any]] = {"message": _MESSAGES, "function_call_output": ToolResult}
_HINTS: Final = {
    "role": "must be 'system', 'user' or 'assistant'",
    "type": "must be input_text of a system message, input_text, input_audio or input_image of a user's, "
    "output_text of an assistant's",
}
_EXAMPLE: Final = {
    "type": "message",
    "role": "system",
    "content": [{"type": "input_text", "text": "The customer has a gold card."}],
}


class ItemBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item for a live call, and what is to happen with it."""

    item: Annotated[
        dict[str, Any],
        Meta(
            description="An item of the Realtime API. Fields that are not described go to the model as they are.",
            examples=[_EXAMPLE],
            extra={"one_of": ITEMS},
        ),
    ]
    response: Annotated[
        bool | dict[str, Any] | None,
        Meta(
            description="Whether the model shall answer; an object has the fields of a `response.create`. "
            "Without it: yes for a tool result, no for a message."
        ),
    ] = None
    when: Annotated[
        Literal["now", "turn_end", "interrupt"] | None,
        Meta(
            description="`turn_end` waits until nobody speaks and no response is under way; `interrupt` cuts the "
            "model off. Without it: `turn_end` where a response is asked for, else `now`."
        ),
    ] = None
    visible: Annotated[bool, Meta(description="`false`: the client of the call never sees the item or its events.")] = (
        True
    )
    expires_in_ms: Lifetime = 60_000
    id: MessageId | None = None


_QUOTED: Final = 200  # characters at most of what the sender wrote
_FIELD: Final = re.compile(r"(?:missing required|unknown) field `(\w+)`")


def read_message(body: bytes, *, wall: float, traceparent: str | None = None) -> Message:
    """Turn a JSON body into a message.

    Args:
        body: an `ItemBody` as JSON.
        wall: seconds since the epoch, from which the deadline counts.
        traceparent: W3C trace context of whoever sends it.

    Raises:
        InvalidItem: it is not JSON, or a field is wrong, which it names.
    """
    return make_message(decode(body, ItemBody), wall=wall, traceparent=traceparent)


def make_message(body: ItemBody, *, wall: float, traceparent: str | None = None) -> Message:
    """Turn a decoded body into a message; see `read_message`.

    Raises:
        InvalidItem: a field of the item is wrong, which it names.
    """
    item_id = _check_item(body.item)
    response = body.response
    if response is None:
        response = body.item["type"] == "function_call_output"
    return Message(
        id=body.id or new_message_id(),
        item=msgspec.json.encode(body.item),
        response=response if isinstance(response, bool) else msgspec.json.encode(response),
        expires_at=wall + body.expires_in_ms / 1000,
        traceparent=traceparent,
        item_id=item_id,
        when=body.when or ("now" if response is False else "turn_end"),
        visible=body.visible,
    )


def event_message(
    event: bytes, kind: str, *, message_id: str | None, expires_at: float, traceparent: str | None = None
) -> Message:
    """Make a message of a client event: whatever the call's client could send, but audio.

    Args:
        event: the event as JSON.
        kind: its ``type``.
        message_id: None for one that is made up.
        expires_at: seconds since the epoch.
        traceparent: W3C trace context of whoever sends it.

    Raises:
        InvalidItem: it is audio.
    """
    if kind == "input_audio_buffer.append":
        text = "Audio comes from the call's client alone; use an item with input_audio for a piece of it."
        raise InvalidItem("type", text, code="audio_not_allowed")
    return Message(
        id=message_id or new_message_id(),
        item=event,
        response=kind == "response.create",
        expires_at=expires_at,
        traceparent=traceparent,
        kind="event",
    )


def hangup_message(*, wall: float, traceparent: str | None = None) -> Message:
    """Make the message that ends a call; one that nobody could reach for a minute is not hung up any more."""
    expires_at = wall + _HANGUP_SECONDS
    return Message(id=new_message_id(), item=b"{}", expires_at=expires_at, traceparent=traceparent, kind="hangup")


def new_message_id() -> str:
    """An id for a message whose sender gave none."""
    return f"msg_{secrets.token_hex(12)}"


def decode(body: bytes, shape: type[T]) -> T:
    """Decode JSON into a struct.

    Raises:
        InvalidItem: it is not JSON (code ``invalid_json``), or a field is wrong, which it names.
    """
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise wrong_field(error, shape) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidItem(None, f"The body is not JSON: {error}.", code="invalid_json") from None


def wrong_field(error: msgspec.ValidationError, shape: type[Any]) -> InvalidItem:
    """Say which field of the struct ``shape`` is wrong and why, from msgspec's sentence."""
    param, text = _explain(error)
    if text.startswith("Invalid enum"):
        hints = {field.encode_name: field.type for field in msgspec.structs.fields(shape)}
        text = f"{text}: use one of {', '.join(_literals(hints.get(param or '')))}"
    return InvalidItem(param, text)


def _explain(error: msgspec.ValidationError) -> tuple[str | None, str]:
    text, _, path = str(error).partition(" - at `$")
    named = _FIELD.search(text)  # of a missing or an unknown field msgspec gives the path of what it is in
    steps = [path.strip("`."), named.group(1) if named else ""]
    return ".".join(step for step in steps if step)[:_QUOTED] or None, text[:_QUOTED]


def _literals(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        yield from (str(choice) for choice in get_args(hint))
    else:
        for part in get_args(hint):
            yield from _literals(part)


def _check_item(item: dict[str, Any]) -> str:
    """Check the item as far as the fleet relies on it; return its id, "" without one."""
    kind = item.get("type")
    shape = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if shape is None:
        raise InvalidItem("item.type", "must be 'message' or 'function_call_output'")
    try:
        checked = msgspec.convert(item, shape)
    except msgspec.ValidationError as error:
        param, text = _explain(error)
        hint = _HINTS.get((param or "").rpartition(".")[2])
        raise InvalidItem(f"item.{param}", hint or text) from None
    item_id: str = checked.id
    return item_id
