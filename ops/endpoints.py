"""The operations port: alive, ready, metrics, status, drain. Never public, and nothing on it waits for Redis."""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from ops.health import Health
from ops.metrics import CONTENT_TYPE, Metrics


def make_app(
    *, health: Callable[[], Health], metrics: Metrics, status: Callable[[], dict[str, Any]], drain: Callable[[], None]
) -> web.Application:
    """Make the application of the operations port.

    Args:
        health: the node's state now.
        metrics: what ``/metrics`` renders.
        status: what this node sees, as JSON values.
        drain: begins a drain; called again it changes nothing.
    """

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        state = health()
        return web.Response(text=f"{state.value}\n", status=200 if state.accepts_calls else 503)

    async def show_metrics(_: web.Request) -> web.Response:
        process = await asyncio.to_thread(metrics.render_process)
        return web.Response(body=metrics.render() + process, headers={"Content-Type": CONTENT_TYPE})

    async def show_status(_: web.Request) -> web.Response:
        return web.json_response(status())

    async def start_drain(_: web.Request) -> web.Response:
        drain()
        return web.json_response({"state": health().value}, status=202)

    app = web.Application()
    app.add_routes(
        [
            web.get("/livez", livez),
            web.get("/readyz", readyz),
            web.get("/metrics", show_metrics),
            web.get("/status", show_status),
            web.post("/drain", start_drain),
        ]
    )
    return app
