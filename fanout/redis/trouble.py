"""What goes wrong with a home's Redis: counted, and each new kind logged once per place until it works there again."""

import structlog
from redis.exceptions import RedisError

_log = structlog.get_logger("fanout")
_TEXT_MAX = 200
_PLACES_MAX = 256  # servers come and go; beyond it a kind may be logged once more than needed

# What redis-py, and this package, raise when a server is away, slow, refusing or strange.
REDIS_TROUBLE = (RedisError, OSError, TimeoutError, ValueError)


class NotPrimary(RedisError):
    """The server that was connected to is a replica: what sent us there is out of date."""


class ConnectionLost(RedisError):
    """The connection went away under a command; whether it was carried out is unknown."""


class Trouble:
    """One home's."""

    def __init__(self, home: str) -> None:
        self._home = home
        self._kinds: dict[str, str] = {}
        self.errors = 0

    def report(self, place: str, exc: BaseException) -> None:
        """Something failed there; `place` is a server's address and what was wanted of it."""
        self.errors += 1
        kind = type(exc).__name__
        if self._kinds.get(place) == kind:
            return
        if len(self._kinds) >= _PLACES_MAX:
            self._kinds.clear()
        self._kinds[place] = kind
        _log.warning("redis_trouble", home=self._home, place=place, kind=kind, error=str(exc)[:_TEXT_MAX])

    def worked(self, place: str) -> None:
        """Something worked there."""
        if self._kinds:
            self._kinds.pop(place, None)
