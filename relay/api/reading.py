"""Reads requests into the types of ``relay.api.schema``; what cannot be read is refused with the field's name. Pure."""

from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
from multidict import MultiMapping

from fanout import InvalidItem, Message
from fanout.items import ItemBody, decode, event_message, make_message, wrong_field
from relay.admission import Refused

T = TypeVar("T", bound=msgspec.Struct)
_STATUS: Final = {"invalid_json": 400}  # else 422: it is JSON, and a field is wrong


def read_query(query: MultiMapping[str], shape: type[T]) -> T:
    """Read a query, numbers and all from text.

    Raises:
        Refused: 422 with the parameter that is wrong, unknown or given twice.
    """
    for name in query:
        if len(query.getall(name)) > 1:
            raise Refused(422, "invalid_value", "is given more than once", param=name[:100])
    return _convert(dict(query), shape)


def read_headers(headers: Mapping[str, str], shape: type[T]) -> T:
    """Read those headers that the type knows.

    Raises:
        Refused: 422 with the header that is wrong.
    """
    names = (field.encode_name for field in msgspec.structs.fields(shape))
    return _convert({name: headers[name] for name in names if name in headers}, shape)


def read_body(body: bytes, shape: type[T]) -> T:
    """Read a JSON body.

    Raises:
        Refused: 400 if it is not JSON, 422 with the field that is wrong.
    """
    try:
        return decode(body, shape)
    except InvalidItem as error:
        raise _refused(error) from None


def read_item(body: ItemBody, *, wall: float, traceparent: str | None) -> Message:
    """Make a message of a body that was read; see ``fanout.items.make_message``.

    Raises:
        Refused: 422 with the field of the item that is wrong.
    """
    try:
        return make_message(body, wall=wall, traceparent=traceparent)
    except InvalidItem as error:
        raise _refused(error) from None


def read_event(raw: bytes, kind: str, *, message_id: str | None, expires_at: float, traceparent: str | None) -> Message:
    """Make a message of a client event that was read; see ``fanout.items.event_message``.

    Raises:
        Refused: 422 if it is audio.
    """
    event = msgspec.json.encode(msgspec.json.decode(raw))  # repeated keys are gone: what was read is sent
    try:
        return event_message(event, kind, message_id=message_id, expires_at=expires_at, traceparent=traceparent)
    except InvalidItem as error:
        raise _refused(error) from None


def _convert(values: dict[str, str], shape: type[T]) -> T:
    try:
        return msgspec.convert(values, shape, strict=False)
    except msgspec.ValidationError as error:
        raise _refused(wrong_field(error, shape)) from None


def _refused(error: InvalidItem) -> Refused:
    return Refused(_STATUS.get(error.code, 422), error.code, str(error), param=error.param)
