"""The body of ``POST …/items``: the bus's rules for an item, their breaches as HTTP answers. Pure."""

from typing import Final

from fanout import InvalidItem, Message
from fanout.items import read_message
from relay.admission import Refused

_STATUS: Final = {"invalid_json": 400}  # else 422: it is JSON, and a field is wrong


def parse(body: bytes, *, wall: float, traceparent: str | None) -> Message:
    """Turn a request body into a message; see ``fanout.items.read_message``.

    Raises:
        Refused: 400 if it is not JSON, 422 with the field that is wrong.
    """
    try:
        return read_message(body, wall=wall, traceparent=traceparent)
    except InvalidItem as error:
        raise Refused(_STATUS.get(error.code, 422), error.code, str(error), param=error.param) from None
