"""How a call leaves its node: what is written before its legs close, and how long each may take. Decides nothing."""

import asyncio
import contextlib
from typing import Final

from relay.clientside import ClientSide
from relay.config import Settings
from relay.core.endings import Ending, Why
from relay.hands import Hands
from relay.modelside import ModelSide

_LOG_SECONDS: Final = 1.0  # for the last events to reach those who watch


async def leave(settings: Settings, ending: Ending, hands: Hands, client: ClientSide, model: ModelSide) -> None:
    """Write what is left to write and close the legs; of a call that moves, its next owner's turn comes first."""
    owned = hands.owned
    if ending.why is Why.MOVED and owned is not None:
        hands.tell_state()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.close_seconds):
                owned.hand_over()
                await owned.wait_handed_over()
    client.close(ending)
    model.close(ending.why)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.close_seconds):
            await model.leg.closed
            await client.leg.closed
    if owned is not None and not ending.why.goes_on:
        with contextlib.suppress(TimeoutError):  # those who watch have the last events before they hear of the end
            async with asyncio.timeout(_LOG_SECONDS):
                await owned.wait_logged()
