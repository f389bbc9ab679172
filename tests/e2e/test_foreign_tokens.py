"""A node whose callers' tokens are signed elsewhere: calls, the API and its errors, from the first request on."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.support.fleet import Nodes, bearer, event
from tests.support.key_server import KeyServer, publishing
from tests.support.signing import ALGORITHMS, signer


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with publishing() as server:
        yield server


async def _status(nodes: Nodes, url: str, token: str, **headers: str) -> tuple[int, str | None, str | None]:
    async with nodes.http.get(f"{url}/v1/realtime/calls", headers={**bearer(token), **headers}) as response:
        body = await response.json()
        return response.status, body.get("error", {}).get("code"), response.headers.get("Retry-After")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_call_is_opened_with_a_token_that_somebody_else_signed(nodes: Nodes, server: KeyServer, algorithm: str):
    """The node has no secret at all."""
    node = await nodes.add("a", JWT_SECRET="", JWKS_URL=server.url, JWT_ISSUER="us", JWT_AUDIENCE="relay")
    signs = signer(algorithm.lower(), algorithm)
    good = signs.sign(iss="us", aud=["relay"], scope="call read")
    client = await nodes.connect(node, headers=bearer(good))
    await event(client, "session.created")
    assert await _status(nodes, node.url, good) == (200, None, None)
    await client.close()
    for wrong in (signs.sign(scope="call read"), signs.sign(iss="us", aud="other", scope="call read")):
        assert await _status(nodes, node.url, wrong) == (401, "invalid_api_key", None)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await nodes.connect(node, headers=bearer(wrong))
        assert refused.value.status == 401


async def test_without_keys_it_says_when_to_come_again(nodes: Nodes, server: KeyServer):
    """A client that gives up at 401 would never come back."""
    server.say(500)
    node = await nodes.add("a", JWKS_URL=server.url)
    status, code, retry = await _status(nodes, node.url, signer("rs256").sign(scope="read"))
    assert (status, code) == (503, "keys_unavailable")
    assert retry is not None
    assert 1 <= int(retry) <= 10


async def test_a_token_for_one_sites_pages_is_for_no_other(nodes: Nodes, server: KeyServer):
    """Though the node allows both."""
    ours, other = "https://shop.example", "https://other.example"
    node = await nodes.add("a", JWKS_URL=server.url, ALLOWED_ORIGINS=f"{ours},{other}")
    token = signer("rs256").sign(origin=ours)
    client = await nodes.connect(node, headers={**bearer(token), "Origin": ours})
    await event(client, "session.created")
    await client.close()
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await nodes.connect(node, headers={**bearer(token), "Origin": other})
    assert refused.value.status == 403
