"""Whether a home is worth asking: failing without a break for a while opens the circuit, one answer closes it. Pure."""


class Circuit:
    """Fed with the outcome of every heartbeat, which goes on while the circuit is open."""

    def __init__(self, open_after_seconds: float) -> None:
        self._open_after = open_after_seconds
        self._failing_since: float | None = None

    def on_success(self) -> None:
        """It answered."""
        self._failing_since = None

    def on_failure(self, now: float) -> None:
        """It didn't."""
        if self._failing_since is None:
            self._failing_since = now

    def is_failing(self) -> bool:
        """Whether the last heartbeat failed."""
        return self._failing_since is not None

    def is_open(self, now: float) -> bool:
        """Whether a new message is to be refused at once, so that its sender need not wait to hear the same."""
        return self._failing_since is not None and now - self._failing_since >= self._open_after
