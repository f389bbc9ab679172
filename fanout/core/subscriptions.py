"""Which channels a connection should carry and does: the difference, in batches. Pure; one per connection owner."""

from itertools import islice
from typing import NamedTuple


class Diff(NamedTuple):
    """Commands to send now, in this order."""

    unsubscribe: list[str]
    subscribe: list[str]

    def __bool__(self) -> bool:
        return bool(self.unsubscribe or self.subscribe)


class Subscriptions:
    """Wanted against sent against acknowledged.

    `sent` is what the server will carry once it has read all that was sent to it, so a wish that changes back while an
    acknowledgement is under way still ends in the right state: commands and acknowledgements keep their order. What the
    server refused or dropped by itself is sent again only after `retry`: first somebody has to find out who serves it.
    """

    def __init__(self) -> None:
        self._wanted: dict[str, None] = {}
        self._sent: set[str] = set()
        self._held: set[str] = set()
        self._leaving: dict[str, int] = {}  # unsubscriptions sent and not acknowledged
        self._dirty: dict[str, None] = {}  # where wanted and sent may differ, oldest first

    @property
    def wanted(self) -> int:
        """How many channels should be carried."""
        return len(self._wanted)

    @property
    def held(self) -> int:
        """How many the server has acknowledged."""
        return len(self._held)

    def holds(self, channel: str) -> bool:
        """Whether the server has acknowledged this channel."""
        return channel in self._held

    def carried(self) -> list[str]:
        """The channels that are wanted and acknowledged."""
        return [channel for channel in self._wanted if channel in self._held]

    def want(self, channel: str) -> None:
        """Carry this channel, over every reconnect, until it is unwanted."""
        self._wanted[channel] = None
        self._dirty[channel] = None

    def unwant(self, channel: str) -> None:
        """Stop carrying this channel."""
        self._wanted.pop(channel, None)
        self._dirty[channel] = None

    def forget(self, channel: str) -> None:
        """Another server carries this channel now, and this one has dropped it or is about to: nothing is sent."""
        self._wanted.pop(channel, None)
        self._drop(channel)

    def renew(self, channel: str) -> None:
        """Send a wanted channel once more, whatever was acknowledged."""
        if channel in self._wanted:
            self._drop(channel)
            self._dirty[channel] = None

    def retry(self) -> bool:
        """Send again what the server refused or dropped; says whether there is any."""
        missing = [channel for channel in self._wanted if channel not in self._sent]
        self._dirty.update(dict.fromkeys(missing))
        return bool(missing)

    def take(self, limit: int) -> Diff:
        """What to send next, at most `limit` channels; counts as sent."""
        diff = Diff([], [])
        for channel in list(islice(self._dirty, limit)):
            del self._dirty[channel]
            if channel in self._wanted and channel not in self._sent:
                self._sent.add(channel)
                diff.subscribe.append(channel)
            elif channel not in self._wanted and channel in self._sent:
                self._sent.discard(channel)
                self._leaving[channel] = self._leaving.get(channel, 0) + 1
                diff.unsubscribe.append(channel)
        return diff

    @property
    def is_settled(self) -> bool:
        """Nothing left to send."""
        return not self._dirty

    def on_subscribed(self, channel: str) -> bool:
        """Acknowledged; says whether it is still wanted, so that its stream is worth reading."""
        self._held.add(channel)
        return channel in self._wanted

    def on_unsubscribed(self, channel: str) -> bool:
        """No longer carried; says whether the server dropped by itself what is still wanted, as when its slot moved."""
        self._held.discard(channel)
        asked = self._leaving.pop(channel, 0)
        if asked > 1:
            self._leaving[channel] = asked - 1
        if asked or channel not in self._sent:
            return False
        self._sent.discard(channel)
        return channel in self._wanted

    def on_refused(self) -> None:
        """The server refused a command; it doesn't say which, so whatever is not acknowledged counts as not sent."""
        self._sent &= self._held

    def on_connection_lost(self) -> None:
        """All is to be sent again on a new connection, in the order in which it was wanted."""
        self._sent.clear()
        self._held.clear()
        self._leaving.clear()
        self._dirty = dict.fromkeys(self._wanted)

    def _drop(self, channel: str) -> None:
        self._sent.discard(channel)
        self._held.discard(channel)
        self._dirty.pop(channel, None)
