"""`python -m ops.bench.model`: the upstream of all calls, as cheap as it can be. Says `session.created`, then audio.

It parses no audio: what it did beside counting would be taken from the bridge that is measured on the same machine.
It takes every `session.update`, and changes nothing for it.
Where the bus is measured it takes the items that are put into its conversations.
"""

import ssl
import time
from typing import Any, Final

from picows import WSFrame, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from ops.bench.events import APPEND, DELTA, SESSION_CREATED, SESSION_UPDATED, UPDATE, WORDS
from ops.bench.messages import CREATE, Items
from ops.bench.orders import Order, run_peer
from ops.bench.traffic import Arrivals, Connection, Pacer
from ops.bench.turns import Turns

_STAMP_EVERY: Final = 1  # there are few of them
_BACKLOG: Final = 1024
_AUDIO_BYTES: Final = 1200


class _Call(Connection):
    """A call's model side."""

    def __init__(self, arrivals: Arrivals, live: list[Connection]) -> None:
        super().__init__(arrivals)
        self._live = live

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Say hello, as the Realtime API does."""
        super().on_ws_connected(transport)
        self._live.append(self)
        transport.send(WSMsgType.TEXT, SESSION_CREATED)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """A frame; audio comes with more bytes than what else is looked for."""
        if frame.payload_size < _AUDIO_BYTES and frame.get_payload_as_bytes().startswith(UPDATE):
            transport.send(WSMsgType.TEXT, SESSION_UPDATED)
        else:
            super().on_ws_frame(transport, frame)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Forget the call."""
        super().on_ws_disconnected(transport)
        self._live.remove(self)


class _ItemCall(_Call):
    """The same, of a model that takes items."""

    def __init__(self, arrivals: Arrivals, live: list[Connection], items: Items) -> None:
        super().__init__(arrivals, live)
        self._items = items

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Answer an item; the rest is as ever."""
        now = time.monotonic_ns()
        payload = frame.get_payload_as_memoryview()
        if frame.msg_type is WSMsgType.TEXT and bytes(payload[: len(CREATE)]) == CREATE:
            for event in self._items.take(bytes(payload), now):
                transport.send(WSMsgType.TEXT, event)
        else:
            super().on_ws_frame(transport, frame)


class _Model:
    """What the model is ordered to do."""

    def __init__(self) -> None:
        self._live: list[Connection] = []
        self._arrivals = Arrivals(APPEND)
        self._items = Items()
        self._pacer = Pacer(DELTA, self._live, _STAMP_EVERY)
        self._words = Pacer(WORDS, self._live, _STAMP_EVERY)
        self._turns = Turns(self._live)

    async def listen(self, cert: str | None, key: str | None, takes_items: bool = False) -> int:
        """Open a port, with TLS if there is a certificate."""
        context = None
        if takes_items:
            self._items = Items()
        if cert is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(cert, key)
        server = await ws_create_server(
            self._accept_items if takes_items else self._accept, "127.0.0.1", 0, ssl=context, backlog=_BACKLOG
        )
        port: int = server.sockets[0].getsockname()[1]
        return port

    def _accept(self, _: WSUpgradeRequest) -> Connection:
        return _Call(self._arrivals, self._live)

    def _accept_items(self, _: WSUpgradeRequest) -> Connection:
        return _ItemCall(self._arrivals, self._live, self._items)

    def stream(self, rate: float, words: float = 0.0, turn_seconds: float = 0.0) -> None:
        """Begin to speak: so many frames of audio, and of its transcript, a second on all calls together.

        With ``turn_seconds`` it tells of a turn on each call in so many seconds.
        """
        self._pacer.start(rate)
        if words:
            self._words.start(words)
        if turn_seconds:
            self._turns.start(turn_seconds)

    def still(self) -> dict[str, int]:
        """Stop speaking; returns how many frames were sent since `stream`."""
        self._pacer.stop()
        self._words.stop()
        self._turns.stop()
        return {"audio": self._pacer.frames, "words": self._words.frames}

    def told(self) -> int:
        """Return how many events of turns were sent since `stream`."""
        return self._turns.events

    def begin(self) -> None:
        """Open a window."""
        self._arrivals.begin()
        self._pacer.begin()

    def end(self) -> dict[str, Any]:
        """What came and went since `begin`."""
        return {"received": self._arrivals.end(), "sent": self._pacer.end()}

    def items(self, first: int, end: int) -> dict[str, Any]:
        """What came of the messages with these numbers."""
        return self._items.found(first, end)


def _orders() -> tuple[Order, ...]:
    model = _Model()
    return (model.listen, model.stream, model.told, model.still, model.begin, model.end, model.items)


if __name__ == "__main__":
    run_peer(_orders)
