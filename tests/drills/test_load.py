"""The drills' own senses: what they count as a lost frame, and what their publishers do with an answer."""

import asyncio
import binascii
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from tests.drills.callers import APPEND_HEAD, read_stamp, stamp
from tests.drills.model import Ear
from tests.drills.publishers import Desk, Plan, Publisher, Readers

RECEIPT = {"status": "applied", "reached": {}, "error": None}


def frame(number: int, sent_us: int) -> str:
    """A caller's audio frame, as the model gets it."""
    return APPEND_HEAD + binascii.b2a_base64(stamp(number, sent_us) + bytes(15), newline=False).decode() + '"}'


def refusal(status: int, code: str) -> tuple[int, dict]:
    """An answer of the relay's."""
    return status, {"error": {"code": code}}


def test_a_stamp_gives_back_number_and_time():
    """It travels as audio, untouched by the relay."""
    assert read_stamp(stamp(70_000, 1 << 40) + b"more") == (70_000, 1 << 40)


def test_the_ear_counts_each_frame_once_and_notes_the_longest_way():
    """A lost frame is missing in the count; one that came twice or late doesn't make up for it."""
    ear = Ear()
    for number, sent_us, now_us in [(0, 0, 10), (1, 20, 50), (3, 60, 70), (3, 60, 75), (2, 40, 80)]:
        ear.hear(frame(number, sent_us), now_us)
    ear.hear('{"type":"conversation.item.create"}', 1000)
    assert (ear.heard, ear.disordered, ear.held_us, ear.gap_us) == (3, 2, 40, 40)


@asynccontextmanager
async def relay_that_answers(*answers: tuple[int, dict]) -> AsyncIterator[tuple[Desk, list[str], str]]:
    """A publisher's desk, the ids that arrive at a server which gives these answers in turn, and its URL."""
    left, asked = list(answers), []

    async def answer(request: web.Request) -> web.Response:
        desk.stop.set()  # so that no second message follows
        asked.append((await request.json())["id"] if request.method == "POST" else request.path)
        status, body = left.pop(0)
        return web.json_response(body, status=status, headers={"Retry-After": "0.01"} if status == 503 else {})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as http:
            desk = Desk(http, {})
            yield desk, asked, f"http://127.0.0.1:{runner.addresses[0][1]}/items"
    finally:
        await runner.cleanup()


async def publish_one(desk: Desk, url: str, copies: int = 1) -> None:
    """Let a publisher send its first message and bring it to its end."""
    publisher = Publisher(desk, Plan(60.0, 1000, copies), name="a", node="a", call=0, url=url, lane="near")
    async with asyncio.timeout(5):
        await publisher.run(0.0)


async def test_a_publisher_repeats_an_honest_refusal_with_the_same_id_until_it_is_taken():
    """As a backend would; every answer is counted."""
    answers = (refusal(503, "region_unreachable"), refusal(429, "inbox_full"), (200, RECEIPT))
    async with relay_that_answers(*answers) as (desk, asked, url):
        await publish_one(desk, url)
    assert asked == ["m0-a-0"] * 3
    assert desk.answers == {"503 region_unreachable": 1, "429 inbox_full": 1, "200": 1}
    assert desk.sendings[0].accepted
    assert desk.sendings[0].applied_ms is not None


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "call_not_found"), (410, "call_ended"), (409, "idempotency_conflict"), (500, "internal_error")],
)
async def test_a_publisher_gives_up_on_what_it_may_not_be_told(status, code):
    """Repeating would hide it: the message stays without a 2xx."""
    async with relay_that_answers(refusal(status, code)) as (desk, asked, url):
        await publish_one(desk, url)
    assert asked == ["m0-a-0"]
    assert not desk.sendings[0].told().accepted


async def test_copies_are_sent_at_the_same_time_with_one_id():
    """Three answers, one message."""
    async with relay_that_answers((200, RECEIPT), refusal(503, "bus_busy"), (202, RECEIPT)) as (desk, asked, url):
        await publish_one(desk, url, copies=3)
    assert asked == ["m0-a-0"] * 3
    assert len(desk.sendings) == 1


async def test_receipts_are_read_until_they_are_terminal():
    """A receipt that is not there yet, or not terminal, is asked for again until the time is over."""
    answers = (
        (200, RECEIPT),
        refusal(404, "message_not_found"),
        (200, {**RECEIPT, "status": "delivered"}),
        (200, RECEIPT),
    )
    async with relay_that_answers(*answers) as (desk, asked, url):
        await publish_one(desk, url)
        open_receipts = await Readers(desk, {"m0-a-0": f"{url}/m0-a-0"}).run(5.0)
    assert asked == ["m0-a-0"] + ["/items/m0-a-0"] * 3
    assert (open_receipts, desk.sendings[0].receipt) == (0, "applied")
