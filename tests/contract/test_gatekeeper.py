"""Who is let in, with a server that publishes keys: good ones, none, new ones, and answers of every bad kind."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from ops.tasks import Supervisor
from relay.admission import Refused
from relay.gatekeeper import Gatekeeper
from relay.jwks import Jwks, Pace
from relay.tokens import Claims, mint
from tests.support.fleet import until
from tests.support.key_server import KeyServer, publishing
from tests.support.signing import ALGORITHMS, key_set, signer

SECRET = "secret-" * 8
QUICK = Pace(every=60.0, pause=0.2, fetch=0.6, wait=0.3)


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with publishing() as server:
        yield server


@asynccontextmanager
async def watching(url: str, pace: Pace = QUICK) -> AsyncIterator[Jwks]:
    async with Supervisor.running() as supervisor:
        jwks = Jwks(url, pace)
        supervisor.start(jwks.watch, name="jwks")
        yield jwks
        assert supervisor.restarts == {"jwks": 0}


def gate(
    jwks: Jwks | None = None, *secrets: str, revoked: tuple[str, str] | None = None, **expected: str
) -> Gatekeeper:
    return Gatekeeper(lambda: secrets, jwks, is_revoked=lambda *pair: pair == revoked, **expected)


def ours(*scope: str, secret: str = SECRET, **claims: Any) -> str:
    return mint(secret, tenant="acme", scope=scope or ("call",), expires_at=time.time() + 3600, **claims)


async def refusal(door: Gatekeeper, token: str | None, scope: str = "call", origin: str | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        await door.authenticate(token, scope, origin=origin)
    return caught.value


def at_once(door: Gatekeeper, token: str) -> Claims:
    """Run a request to its end without a loop: it fails if it waits for anything."""
    waits = door.authenticate(token, "call", origin=None)
    with pytest.raises(StopIteration) as done:
        waits.send(None)
    claims: Claims = done.value.value
    return claims


# Tokens


@pytest.mark.parametrize(
    ("token", "scope", "status", "code", "kind"),
    [
        (None, "call", 401, "missing_token", "authentication_error"),
        ("", "call", 401, "invalid_api_key", "authentication_error"),
        ("sk-proj-abc", "call", 401, "invalid_api_key", "authentication_error"),
        (ours(secret="foreign-" * 8), "call", 401, "invalid_api_key", "authentication_error"),
        (signer("rs256").sign(), "call", 401, "invalid_api_key", "authentication_error"),
        (ours(note="x" * 9216), "call", 401, "invalid_api_key", "authentication_error"),
        (ours(), "control", 403, "missing_scope", "permission_error"),
        (ours("calls", "CALL"), "call", 403, "missing_scope", "permission_error"),
    ],
    ids=["none", "empty", "OpenAI's key", "foreign", "public key", "9 KiB", "other scope", "similar scopes"],
)
async def test_without_a_good_token_it_is_401_and_without_the_scope_403(token, scope, status, code, kind):
    """As with OpenAI, so that SDKs raise their own exceptions for it."""
    refused = await refusal(gate(None, SECRET), token, scope)
    assert (refused.status, refused.code, refused.kind) == (status, code, kind)


async def test_a_token_with_the_scope_may():
    """One of several is enough."""
    assert (await gate(None, SECRET).authenticate(ours("read", "call"), "call", origin=None)).tenant == "acme"


async def test_a_token_that_may_only_resume_does_nothing_else():
    """Its time is over but for the call that it is for."""
    late = mint(SECRET, tenant="acme", scope=["call", "read"], expires_at=1, call="rtc_iad_x", resume_seconds=7200)
    soon = mint(
        SECRET,
        tenant="acme",
        scope=["call", "read"],
        expires_at=time.time() - 60,
        call="rtc_iad_x",
        resume_seconds=7200,
    )
    assert (await gate(None, SECRET).authenticate(soon, "call", origin=None)).resumes
    assert (await refusal(gate(None, SECRET), soon, "read")).code == "invalid_api_key"
    assert (await refusal(gate(None, SECRET), late)).code == "invalid_api_key"


async def test_a_revoked_token_is_refused_and_another_tenants_of_the_same_name_is_not():
    """Names are unique within a tenant at best; and a token without one cannot be revoked."""
    door = gate(None, SECRET, revoked=("acme", "j1"))
    refused = await refusal(door, ours(jti="j1"))
    assert (refused.status, refused.code, refused.kind) == (401, "token_revoked", "authentication_error")
    assert await door.authenticate(ours(jti="j2"), "call", origin=None)
    assert await door.authenticate(ours(), "call", origin=None)
    other = mint(SECRET, tenant="other", scope=["call"], expires_at=time.time() + 60, jti="j1")
    assert await door.authenticate(other, "call", origin=None)


@pytest.mark.parametrize("origin", [None, "https://evil.example", "https://shop.example:8443", "null", ""])
async def test_a_token_for_one_sites_pages_is_for_no_other(origin):
    """A key that was copied from a page opens nothing from another one, or from none."""
    door, token = gate(None, SECRET), ours(origin="https://shop.example")
    assert (await door.authenticate(token, "call", origin="https://shop.example")).browser
    refused = await refusal(door, token, origin=origin)
    assert (refused.status, refused.code) == (403, "origin_not_allowed")


async def test_secrets_are_those_of_the_moment():
    """A file of secrets is read again while the node runs."""
    secrets = [SECRET]
    door = Gatekeeper(lambda: tuple(secrets), None, is_revoked=lambda *_: False)
    token = ours()
    assert await door.authenticate(token, "call", origin=None)
    secrets[:] = ["another-" * 8]
    assert (await refusal(door, token)).status == 401


async def test_what_it_signs_is_a_clients_and_good_at_its_own_door():
    """Issuer and audience are in it, and that a browser holds it."""
    door = gate(None, SECRET, issuer="us", audience="relay")
    value = door.sign(tenant="acme", scope=["call"], expires_at=time.time() + 60, agent="sales", jti="j", session=True)
    assert await door.authenticate(value, "call", origin=None) == Claims(
        "acme", frozenset({"call"}), agent="sales", jti="j", session=True, browser=True
    )
    backends = door.sign(tenant="acme", scope=["call"], expires_at=time.time() + 60, browser=False)
    assert not (await door.authenticate(backends, "call", origin=None)).browser


async def test_where_only_others_sign_nothing_can_be_signed():
    """There is no secret, and it says so."""
    assert (gate(None, SECRET).can_sign, gate(None).can_sign) == (True, False)
    with pytest.raises(Refused) as caught:
        gate(None).sign(tenant="acme", scope=["call"], expires_at=1)
    assert (caught.value.status, caught.value.code) == (501, "minting_not_configured")


# Keys of others


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_of_each_kind_is_let_in_with_the_first_request(server, algorithm):
    """A node that has just been started waits for its keys, and no longer than it must."""
    async with watching(server.url) as jwks:
        token = signer(algorithm.lower(), algorithm).sign(scope="call read")
        assert (await gate(jwks, SECRET).authenticate(token, "call", origin=None)).tenant == "acme"
        assert server.asked == 1


async def test_a_secrets_token_waits_for_nobody(server):
    """Nor does one of a known key."""
    async with watching(server.url) as jwks:
        assert at_once(gate(jwks, SECRET), ours()).tenant == "acme"  # no key has been fetched yet
        await until(lambda: bool(jwks.keys))
        assert at_once(gate(jwks, SECRET), signer("es256", "ES256").sign()).tenant == "acme"


async def test_a_new_key_is_let_in_at_once_and_an_old_one_is_not_once_it_is_gone(server):
    """Rotation, the way servers do it: the new key is published, tokens change over, the old one is withdrawn."""
    old, new = signer("old"), signer("new", "ES256")
    server.publish(old.public())
    async with watching(server.url) as jwks:
        door = gate(jwks)
        assert await door.authenticate(old.sign(), "call", origin=None)
        await until(lambda: not jwks.is_resting)
        server.publish(old.public(), new.public())
        assert await door.authenticate(new.sign(), "call", origin=None)
        assert await door.authenticate(old.sign(), "call", origin=None)
        await until(lambda: not jwks.is_resting)
        server.publish(new.public())
        assert (await refusal(door, signer("unknown").sign())).status == 401
        assert (await refusal(door, old.sign())).status == 401
        assert await door.authenticate(new.sign(), "call", origin=None)


async def test_a_key_that_comes_in_the_pause_is_known_when_the_pause_is_over(server):
    """Whoever asked is refused, comes again, and is let in: nobody has to ask at the right moment."""
    server.publish()
    async with watching(server.url, QUICK._replace(pause=1.0)) as jwks:
        door = gate(jwks)
        assert (await refusal(door, signer("new").sign())).status == 401
        server.publish(signer("new").public())
        assert (await refusal(door, signer("new").sign())).status == 401  # in the pause
        await until(lambda: bool(jwks.keys), seconds=5.0)
        assert at_once(door, signer("new").sign())
        assert server.asked == 2


async def test_keys_are_fetched_again_though_nobody_asks(server):
    """A withdrawn key must not count for ever on a node that meets no unknown one."""
    server.publish(signer("old").public())
    async with watching(server.url, QUICK._replace(every=0.4)) as jwks:
        await until(lambda: bool(jwks.keys))
        server.publish(signer("new").public())
        await until(lambda: [key.kid for key in jwks.keys] == ["new"])


async def test_a_flood_of_unknown_names_is_one_fetch_in_a_pause(server):
    """Anybody can make such tokens; the server of the keys must not pay for them, nor others' requests."""
    pace = QUICK._replace(pause=0.5)
    async with watching(server.url, pace) as jwks:
        door, body = gate(jwks, SECRET), signer("rs256").sign().split(".", 1)[1]
        tokens = [f"{signer('rs256').sign({'kid': f'k{number}'}).split('.')[0]}.{body}" for number in range(200)]
        begun, rounds = time.monotonic(), 0
        while time.monotonic() - begun < 1.2:
            refusals = await asyncio.gather(*(refusal(door, token) for token in tokens))
            assert {(refused.status, refused.code) for refused in refusals} == {(401, "invalid_api_key")}
            assert at_once(door, signer("rs256").sign())
            rounds += 1
        elapsed = time.monotonic() - begun
        assert 2 <= server.asked <= 1 + elapsed / pace.pause
        assert rounds > server.asked  # most of them did not wait


async def test_requests_that_miss_the_same_key_share_a_fetch(server):
    """However many come while it goes on."""
    slow = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        await slow.wait()
        return web.Response(body=key_set(signer("new").public()))

    server.answer = answer
    async with watching(server.url) as jwks:
        door, token = gate(jwks), signer("new").sign()
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(door.authenticate(token, "call", origin=None)) for _ in range(50)]
            await until(lambda: server.asked == 1)
            slow.set()
        assert {task.result().tenant for task in asked} == {"acme"}
        await asyncio.sleep(2 * QUICK.pause)  # time for another one, which nobody needs
        assert server.asked == 1


# Servers that fail


async def _hang(_: web.Request) -> web.Response:
    await asyncio.sleep(30)
    return web.Response()


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def _drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def _cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"keys": [')
    assert request.transport is not None
    request.transport.abort()
    return response


def _says(status: int, body: bytes = b"", **headers: str) -> Callable[[KeyServer], None]:
    return lambda server: server.say(status, body, **headers)


def _does(answer: Callable[[web.Request], Any]) -> Callable[[KeyServer], None]:
    return lambda server: setattr(server, "answer", answer)


GOOD = key_set(signer("rs256").public())
FAILURES = {
    "hangs": (_does(_hang), "Timeout"),
    "answers for ever": (_does(_endless), "longer than 262144"),
    "answers drop by drop": (_does(_drip), "Timeout"),
    "breaks off": (_does(_cut), ""),
    "500": (_says(500, GOOD), "HTTP 500"),
    "404": (_says(404, GOOD), "HTTP 404"),
    "204": (_says(204), "HTTP 204"),
    "redirects": (_says(302, GOOD, Location="/keys"), "HTTP 302"),
    "HTML": (_says(200, b"<!doctype html><title>Sign in</title>", Content_Type="text/html"), "no JSON Web Key Set"),
    "10 MB": (_says(200, GOOD + b" " * 10_000_000), "longer than 262144"),
    "compressed": (_says(200, gzip.compress(b" " * 10_000_000), Content_Encoding="gzip"), "no JSON Web Key Set"),
    "101 keys": (_says(200, key_set(*[signer("rs256").public()] * 101)), "101 keys"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_while_no_keys_can_be_had_it_is_503_and_then_it_is_well(server, name):
    """The token may be good: whoever sends it should come again, and nobody has to restart the node."""
    fail, reason = FAILURES[name]
    good = server.answer
    fail(server)
    with capture_logs() as logs:
        async with watching(server.url) as jwks:
            door = gate(jwks, SECRET)
            refused = await refusal(door, signer("rs256").sign())
            assert (refused.status, refused.code, refused.kind) == (503, "keys_unavailable", "server_error")
            assert refused.retry_after is not None
            assert 1 <= refused.retry_after <= 10
            assert at_once(door, ours()).tenant == "acme"
            await until(lambda: jwks.fetches["failed"] >= 2)
            server.answer = good
            await until(lambda: bool(jwks.keys))
            assert await door.authenticate(signer("rs256").sign(), "call", origin=None)
    failures = [line for line in logs if line["event"] == "jwks_failed"]
    assert [reason in line["reason"] for line in failures] == [True]  # once, however often it failed
    assert [line["event"] for line in logs].count("jwks_back") == 1


@pytest.mark.parametrize("name", FAILURES)
async def test_keys_that_were_had_go_on_counting_when_the_server_fails(server, name):
    """An outage elsewhere locks out nobody but those whose key is not known."""
    async with watching(server.url) as jwks:
        door = gate(jwks)
        await door.authenticate(signer("rs256").sign(), "call", origin=None)
        FAILURES[name][0](server)
        await until(lambda: not jwks.is_resting)
        refused = await refusal(door, signer("unknown").sign())
        assert (refused.status, refused.code) == (503, "keys_unavailable")
        await until(lambda: jwks.fetches["failed"] >= 2)
        assert at_once(door, signer("rs256").sign()).tenant == "acme"


async def test_a_request_waits_for_a_fetch_and_not_for_all_of_it(server):
    """Whoever is in front of it gives up at some time: better an answer that says when to come again."""
    server.answer = _hang
    async with watching(server.url, Pace(wait=0.2)) as jwks:
        assert (await refusal(gate(jwks), signer("rs256").sign())).status == 503
        assert (server.asked, jwks.fetches) == (1, {"ok": 0, "failed": 0})


async def test_where_nobody_listens_it_is_503():
    """Nothing else, and no traceback: the supervisor had nothing to start again."""
    async with publishing() as gone:
        url = gone.url
    async with watching(url) as jwks:
        assert (await refusal(gate(jwks), signer("rs256").sign())).code == "keys_unavailable"


async def test_a_redirect_is_not_followed(server):
    """Keys come from where the operator said: an open redirect there must not choose whose tokens count."""
    async with publishing() as other:
        server.say(307, Location=other.url)
        async with watching(server.url) as jwks:
            await until(lambda: jwks.fetches["failed"] >= 1)
            assert (other.asked, jwks.keys) == (0, ())


async def test_an_empty_set_is_an_answer(server):
    """Whoever withdraws all keys means it: their tokens are refused, and not with "come again"."""
    async with watching(server.url) as jwks:
        door, token = gate(jwks), signer("rs256").sign()
        assert await door.authenticate(token, "call", origin=None)
        server.publish()
        await until(lambda: not jwks.is_resting)
        assert (await refusal(door, signer("unknown").sign())).status == 401
        assert (await refusal(door, token)).status == 401
