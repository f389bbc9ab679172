"""Beginning a call here, or taking a live one over from the node that has it; what its client is told if that fails."""

import asyncio
from collections.abc import Callable
from typing import Final

from fanout import (
    CallEnded,
    CallNotFound,
    CallRecord,
    CallTaken,
    Fanout,
    FanoutError,
    Message,
    OwnedCall,
)
from relay.core.endings import Why

_TAKE_SECONDS: Final = 20.0  # a Redis that is new lets nobody take a call over for some ten seconds
_AWAY: Final = "The call's Redis does not answer: connect again in a moment."


class NotTaken(Exception):
    """The call is not ours: why, and an error code; ``str()`` is for the client."""

    def __init__(self, why: Why, code: str, text: str) -> None:
        super().__init__(text)
        self.why = why
        self.code = code


def begin(bus: Fanout, record: CallRecord, deliver: Callable[[Message], None]) -> OwnedCall:
    """Own a new call.

    Raises:
        NotTaken: this node has one with its id, or could not write the end of it down yet; with Redis nobody gets here.
    """
    try:
        return bus.own(record, deliver)
    except ValueError:
        raise NotTaken(Why.BUS_AWAY, "region_unreachable", _AWAY) from None


async def take(bus: Fanout, record: CallRecord, deliver: Callable[[Message], None]) -> OwnedCall:
    """Own a live call from now on.

    Raises:
        NotTaken: it has ended, is somebody else's by now, or its Redis does not answer.
    """
    try:
        async with asyncio.timeout(_TAKE_SECONDS):
            return await bus.take(record, deliver)
    except CallTaken:
        text = "Another connection of this call's client was faster."
        raise NotTaken(Why.REPLACED, "replaced", text) from None
    except (CallEnded, CallNotFound):
        raise NotTaken(Why.CALL_OVER, "call_ended", "The call has ended: begin a new one.") from None
    except (FanoutError, TimeoutError, ValueError):  # the last: this node is just letting go of it
        raise NotTaken(Why.BUS_AWAY, "region_unreachable", _AWAY) from None
