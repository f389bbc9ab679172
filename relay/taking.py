"""Taking a live call over from the node that has it, for a client that resumes it here; what to say if that fails."""

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


class NotTaken(Exception):
    """The call is not ours: why, and an error code; ``str()`` is for the client."""

    def __init__(self, why: Why, code: str, text: str) -> None:
        super().__init__(text)
        self.why = why
        self.code = code


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
        text = "The call's Redis does not answer: connect again in a moment."
        raise NotTaken(Why.BUS_AWAY, "region_unreachable", text) from None
