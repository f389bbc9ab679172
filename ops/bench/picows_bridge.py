"""`python -m ops.bench.picows_bridge`: the floor, a bridge on picows that forwards frames and does nothing else.

No frame rules, tokens, flow control, bus or metrics: what is left is what the sockets cost on this machine. It is no
bridge that anybody should run.
"""

import asyncio
import ssl
from typing import Final

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server

from ops.bench.bridge import Listening, run

_BACKLOG: Final = 1024
_READ_BUFFER_BYTES: Final = 4096


class _Side(WSListener):
    """One side of a call; frames that come before the other side is there are held."""

    def __init__(self) -> None:
        self.peer: _Side | None = None
        self.transport: WSTransport | None = None
        self.held: list[bytes] = []

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Send what was held for this side."""
        self.transport = transport
        if self.peer is not None:
            for message in self.peer.held:
                transport.send(WSMsgType.TEXT, message)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Forward it."""
        if frame.msg_type is WSMsgType.TEXT:
            if self.peer is None or self.peer.transport is None:
                self.held.append(frame.get_payload_as_bytes())
            else:
                self.peer.transport.send(WSMsgType.TEXT, frame.get_payload_as_memoryview())
        elif frame.msg_type is WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Take the other side down, too."""
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.disconnect()


async def _serve(upstream: str, context: ssl.SSLContext | None, listening: Listening) -> None:
    async with asyncio.TaskGroup() as dials:

        def call(_: object) -> _Side:
            client, model = _Side(), _Side()
            client.peer, model.peer = model, client
            dial = ws_connect(lambda: model, upstream, ssl_context=context, read_buffer_init_size=_READ_BUFFER_BYTES)
            dials.create_task(dial)
            return client

        server = await ws_create_server(
            call, "127.0.0.1", 0, backlog=_BACKLOG, read_buffer_init_size=_READ_BUFFER_BYTES
        )
        listening(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(_serve)
