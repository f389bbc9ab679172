"""What the public port says of itself: the OpenAPI document, for machines and for people. Made once, open to all."""

from collections.abc import Sequence

import msgspec
from aiohttp import web

from relay.api.openapi import document
from relay.api.page import POLICY, page
from relay.api.routes import Route


class About:
    """The two handlers."""

    def __init__(self, routes: Sequence[Route]) -> None:
        description = document(routes)
        self._json = msgspec.json.encode(description)
        self._page = page(description)

    async def show_openapi(self, _: web.Request) -> web.StreamResponse:
        """``GET /openapi.json``."""
        return web.Response(body=self._json, content_type="application/json", charset="utf-8")

    async def show_docs(self, _: web.Request) -> web.StreamResponse:
        """``GET /docs``."""
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return web.Response(text=self._page, content_type="text/html", headers=headers)
