"""Serves the page to talk to the model: development and demo only, since it hands its tokens to whoever opens it."""

import json
from importlib import resources
from pathlib import Path
from typing import Final

from aiohttp import web

_TYPES: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' http: https: ws: wss:; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


def add_routes(app: web.Application, config: Path, *, node: str, region: str) -> None:
    """Serve the page, its files and its configuration.

    Args:
        app: the application of the public port.
        config: a JSON file with ``token``, ``backend_token``, ``model`` and ``nodes``; read at every request.
        node: this node's name.
        region: this node's region.
    """
    files = {
        path.name: path.read_text() for path in resources.files(__package__).iterdir() if _suffix(path.name) in _TYPES
    }

    async def show(request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in files:
            raise web.HTTPNotFound
        return web.Response(text=files[name], content_type=_TYPES[_suffix(name)], headers=_HEADERS)

    async def show_config(_: web.Request) -> web.Response:
        return web.json_response({**json.loads(config.read_text()), "node": node, "region": region})

    async def ping(_: web.Request) -> web.Response:
        return web.Response(status=204)

    app.add_routes(
        [
            web.get("/", show),
            web.get("/page/config.json", show_config),
            web.get("/page/ping", ping),
            web.get("/page/{name}", show),
        ]
    )


def _suffix(name: str) -> str:
    return Path(name).suffix
