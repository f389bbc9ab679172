"""`python -m tests.bench.forgetful serve …`: a relay node that forgets when told to, so that its memory's cost shows.

It is a node like any until the first SIGUSR1; each one brings it into the next of `MODES`, and the last leads to the
first again.
"""

import signal
import sys
from collections.abc import Callable
from itertools import cycle
from typing import Any, Final

from fanout import OwnedCall
from relay.cli import main
from relay.core.memory import Memory
from tests.bench.remembering import MEMORY, MODES, NO_WRITES

_NEEDED: Final = {"on_session"}  # the node itself goes by it


class _Switch:
    """In which of the modes the node is."""

    def __init__(self) -> None:
        self._modes = cycle(MODES)
        self.mode = next(self._modes)

    def turn(self, *_: Any) -> None:
        """Go on to the next."""
        self.mode = next(self._modes)

    def only_in(self, modes: set[str], method: Callable[..., Any], otherwise: Any) -> Callable[..., Any]:
        """Return the method, which does nothing in other modes."""

        def switched(*arguments: Any, **named: Any) -> Any:
            return method(*arguments, **named) if self.mode in modes else otherwise

        return switched


def _make_forgetful() -> None:
    switch = _Switch()
    OwnedCall.note = switch.only_in({MEMORY}, OwnedCall.note, None)  # type: ignore[method-assign]
    for name, method in list(vars(Memory).items()):
        if name.startswith("on_") and name not in _NEEDED:
            setattr(Memory, name, switch.only_in({MEMORY, NO_WRITES}, method, ()))
    signal.signal(signal.SIGUSR1, switch.turn)


if __name__ == "__main__":
    _make_forgetful()
    sys.exit(main())
