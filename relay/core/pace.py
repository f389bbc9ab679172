"""For how long the reading of a client must pause that sends more than its plan allows. Pure; ``now`` comes in.

It is fed with what has come since the call began, not message by message: audio that goes straight from leg to leg is
only counted. What came in a burst between two looks is paid for by the pause that follows, for TCP makes the client
wait; nothing is dropped.
"""

from typing import Final

BURST_SECONDS: Final = 2.0  # of the rate: what a client may be ahead of it, as after a gap in its network; and a look


class _Debt:
    """What came faster than at a rate, in seconds of the rate."""

    __slots__ = ("_rate", "_seen", "seconds")

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._seen = 0
        self.seconds = 0.0

    def look(self, total: int, elapsed: float) -> None:
        """So much has come in all; ``elapsed`` seconds have gone by since the last look."""
        if self._rate is None:
            return
        self.seconds = max(0.0, self.seconds + (total - self._seen) / self._rate - elapsed)
        self._seen = total


class Pace:
    """The messages and bytes of one call's client against its plan; None: no limit. Begins at ``now``."""

    __slots__ = ("_bytes", "_looked_at", "_messages")

    def __init__(self, messages_per_second: float | None, bytes_per_second: float | None, now: float) -> None:
        self._messages = _Debt(messages_per_second)
        self._bytes = _Debt(bytes_per_second)
        self._looked_at = now

    def look(self, messages: int, size: int, now: float) -> float:
        """Return the seconds for which nothing more may be read, 0.0 for none.

        Args:
            messages: how many have come since the call began.
            size: their bytes.
            now: the loop's time.
        """
        elapsed, self._looked_at = max(0.0, now - self._looked_at), max(now, self._looked_at)
        self._messages.look(messages, elapsed)
        self._bytes.look(size, elapsed)
        return max(0.0, max(self._messages.seconds, self._bytes.seconds) - BURST_SECONDS)
