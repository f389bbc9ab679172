"""When a home's messages could not be heard: from the loss of a feed to the acknowledgement on the next. Pure."""

from collections.abc import Iterable


class Deafness:
    """One period for the whole home: from the first tag that is lost to the moment when all are heard again."""

    def __init__(self) -> None:
        self._tags: set[str] = set()
        self._since = 0.0
        self._seconds = 0.0
        self.periods = 0

    def lost(self, tags: Iterable[str], since: float) -> None:
        """Nothing of these was heard since then."""
        was_deaf = bool(self._tags)
        self._tags.update(tags)
        if self._tags and not was_deaf:
            self.periods += 1
            self._since = since

    def heard(self, tag: str, now: float) -> None:
        """A channel of this tag is carried again, or none is wanted any more."""
        if tag in self._tags:
            self._tags.discard(tag)
            if not self._tags:
                self._seconds += now - self._since

    def seconds(self, now: float) -> float:
        """In all, with the present period."""
        return self._seconds + (now - self._since if self._tags else 0.0)
