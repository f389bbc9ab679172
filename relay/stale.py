"""Legs that a call needs no more while it goes on: they are told why, and closed, whatever their peers do."""

import asyncio
from typing import Final

from relay.core.frames import Close, Violation
from relay.legs import Leg


class Nobody:
    """Owns legs of which nothing matters that they say: not any more, or not yet."""

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None:
        """Ignored."""

    def on_leg_violation(self, leg: Leg, violation: Violation) -> None:
        """It was told."""

    def on_leg_close(self, leg: Leg, close: Close) -> None:
        """The answer to our CLOSE, or one that crossed it."""
        leg.close(close)
        leg.disconnect()

    def on_leg_lost(self, leg: Leg) -> None:
        """As it should be."""

    def on_leg_blocked(self, leg: Leg, blocked: bool) -> None:
        """Nothing more is sent."""

    def on_leg_failed(self, leg: Leg, error: Exception) -> None:
        """Nothing of ours is called."""


_NOBODY: Final = Nobody()


def let_go(leg: Leg, close: Close, seconds: float) -> None:
    """Close a leg and forget it; what has not answered after ``seconds`` is cut."""
    leg.feed(None)
    leg.give(_NOBODY, _ignore)
    leg.close(close)
    if leg.transport is None:
        leg.abandon()
    elif not leg.closed.done():
        timer = asyncio.get_running_loop().call_later(seconds, leg.abort)
        leg.closed.add_done_callback(lambda _: timer.cancel())


def _ignore(_: bytes) -> None:
    pass
