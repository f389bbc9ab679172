"""Whether a call is still this node's, after the node stood still: until that is known its model hears nothing more."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from fanout import OwnedCall
from relay.legs import Leg
from relay.pulse import Pulse

_CONFIRM_SECONDS: Final = 2.0  # for Redis to say whose a call is


class Doubt:
    """One call's. ``wait_over`` is its owner's to run, whenever ``begins`` has said so."""

    __slots__ = ("_held", "_leg", "_pulse")

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._held: list[bytes] | None = None  # what waits until it is over; None: there is none
        self._leg: Leg | None = None

    def begins(self, owned: OwnedCall | None, leg: Leg) -> bool:
        """Stop reading the client, unless that is so already, or nobody could have taken the call."""
        if self._held is not None or owned is None or not owned.is_registered:
            return False
        self._held, self._leg = [], leg
        leg.feed(None)
        leg.pause()
        return True

    @property
    def is_due(self) -> bool:
        """Whether the node has stood still, and nobody knows yet."""
        return self._pulse.has_stopped and self._held is None

    def holds(self, message: bytes) -> bool:
        """Keep a message if there is doubt: as much as one read brought."""
        if self._held is None:
            return False
        self._held.append(message)
        return True

    def drop(self) -> None:
        """Forget what is kept: another client, who may not say it, has taken the place of who said it."""
        if self._held is not None:
            self._held.clear()

    async def wait_over(self, owned: OwnedCall, go_on: Callable[[list[bytes]], None]) -> None:
        """Until the call is known to be ours, then ``go_on`` with what was kept; one that is lost ends before."""
        with contextlib.suppress(TimeoutError):  # a Redis that is away takes no call from anybody
            async with asyncio.timeout(_CONFIRM_SECONDS):
                await owned.wait_confirmed()
        held, self._held = self._held or [], None
        if self._leg is not None:
            self._leg.resume()
        go_on(held)
