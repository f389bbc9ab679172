"""Keys, agents and plans are changed under a node while people talk: nobody is cut off, no frame lost, nothing half."""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from picows import WSFrame, WSMsgType, WSTransport

from ops.simulator.ledger import Record
from ops.simulator.output import Pace as ModelPace
from ops.simulator.session import Behaviour
from relay import app
from relay.demo import declare_settled
from relay.jwks import Jwks, Pace
from tests.drills.callers import Caller, Speakers
from tests.drills.model import Model
from tests.drills.processes import Process
from tests.e2e.test_limits import answer, id_of
from tests.support.fleet import Nodes, bearer, closed, event, token, until
from tests.support.key_server import publishing
from tests.support.redis_server import RedisServer
from tests.support.signing import signer

CALLS = 20
FRAME_MS = 40
ASK = [
    {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "talk for 1 second"}]},
    },
    {"type": "response.create"},
]
HOW = pytest.mark.parametrize("by_signal", [True, False], ids=["SIGHUP", "file change"])
RULEBOOK = """\
[agents.default]
transcription = false
[agents.support]
transcription = false
model = "sim"
instructions = "Be kind."
"""
CHANGED = """\
[agents.default]
transcription = false
[agents.support]
transcription = false
model = "sim"
instructions = "Be brief."
[agents.added]
transcription = false
[plans.default]
concurrent_calls = 21
longest_call_seconds = 1
"""


@pytest.fixture
async def nodes(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Nodes]:
    """A model that talks as fast as people do."""
    behaviour = Behaviour(pace=ModelPace(speed=1.0, chunk_ms=100))
    async with Nodes.running(redis_server.url, tmp_path, behaviour=behaviour) as running:
        await declare_settled(redis_server.url, running.prefix)
        yield running


class Person(Caller):
    """Speaks in numbered frames, and has the model talk all the while; counts what it hears."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "a")
        self.heard: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.quiet = asyncio.get_running_loop().create_future()  # the model has said all that it was asked for
        self._wants_quiet = False

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.TEXT:
            self._hear(transport, json.loads(frame.get_payload_as_bytes()))
        super().on_ws_frame(transport, frame)

    def _hear(self, transport: WSTransport, found: dict[str, Any]) -> None:
        self.heard[found["type"]] += 1
        is_done = found["type"] == "response.done"
        if is_done:
            self.statuses[found["response"]["status"]] += 1
        if is_done and self._wants_quiet:
            self.quiet.set_result(None)
        elif is_done or found["type"] == "session.updated":
            for each in ASK:
                transport.send(WSMsgType.TEXT, json.dumps(each).encode())

    async def fall_silent(self) -> None:
        """Until the answer that is under way is over."""
        self._wants_quiet = True
        async with asyncio.timeout(10):
            await self.quiet


class Talk:
    """Calls in which both sides speak without a pause."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._model = Model(nodes.model)
        self.people = [Person(number) for number in range(CALLS)]

    async def start(self, url: str, key: str) -> None:
        """Open the calls, and let everybody speak."""
        for person in self.people:
            address = f"{url.replace('http', 'ws', 1)}/v1/realtime?model=sim-{person.number}"
            await person.dial(address, bearer(key))
        self._speakers = Speakers(self.people, FRAME_MS)
        self._speakers.start()
        await self.more()

    async def more(self) -> None:
        """Until everybody has been heard and has heard something, after what was before."""
        before = [(person.frames, person.heard.total()) for person in self.people]

        def is_more() -> bool:
            audio = self._model.audio()
            pairs = zip(self.people, before, strict=True)
            return all(
                audio[each.number]["heard"] > sent and each.heard.total() > heard for each, (sent, heard) in pairs
            )

        await until(is_more)

    async def finish(self) -> None:
        """Nobody was cut off, and nothing that anybody said is missing."""
        await self.more()
        assert [person.ended for person in self.people if person.ended] == []
        self._speakers.stop()
        async with asyncio.TaskGroup() as group:
            for person in self.people:
                group.create_task(person.fall_silent())
        spoken = {person.number: person.frames for person in self.people}
        await until(lambda: {number: each["heard"] for number, each in self._model.audio().items()} == spoken)
        audio = self._model.audio()
        assert {(each["disordered"], each["sessions"]) for each in audio.values()} == {(0, 1)}
        records = {record.query["model"]: record for record in self._nodes.model.ledger}
        for person in self.people:
            said = records[f"sim-{person.number}"].sent
            assert {kind: number for kind, number in person.heard.items() if kind.startswith("response.")} == {
                kind: number for kind, number in said.items() if kind.startswith("response.")
            }
            assert person.statuses.keys() == {"completed"}
            assert person.heard["error"] == 0
        assert [person.ended for person in self.people if person.ended] == []

    def end(self) -> None:
        """Hang up."""
        self._speakers.stop()
        for person in self.people:
            person.hang_up()


class Answer(NamedTuple):
    """A status, and between which moments of the loop's time it was."""

    asked_at: float
    came_at: float
    status: int


@dataclass
class Served:
    """`relay serve` as operators run it, with its files."""

    nodes: Nodes
    folder: Path
    process: Process
    url: str
    ops_url: str
    answers: dict[str, list["Answer"]] = field(default_factory=dict)

    def write(self, name: str, text: str) -> None:
        """Change a file at once, as by rename."""
        draft = self.folder / f"{name}.new"
        draft.write_text(text)
        draft.replace(self.folder / name)

    def hup(self) -> None:
        os.kill(self.process.pid, signal.SIGHUP)

    async def metric(self, name: str) -> float:
        """A sample of the metrics page."""
        async with self.nodes.http.get(self.ops_url + "/metrics") as response:
            page = await response.text()
        return next(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"{name} "))

    async def change(self, name: str, text: str, *, by_signal: bool = True) -> None:
        """Change a file, and wait until it has been taken."""
        count = 'relay_rulebook_reloads_total{outcome="loaded"}'
        before = await self.metric(count)
        self.write(name, text)
        if by_signal:
            self.hup()

        async def is_taken() -> bool:
            return await self.metric(count) > before

        await until(is_taken)

    async def status(self, key: str) -> int:
        """Whether a token opens the API."""
        async with self.nodes.http.get(f"{self.url}/v1/realtime/calls", headers=bearer(key)) as response:
            return response.status

    async def asking(self, **keys: str) -> None:
        """Note for ever what becomes of each of these tokens."""
        now = asyncio.get_running_loop().time
        while True:
            for name, key in keys.items():
                asked_at, status = now(), await self.status(key)
                self.answers.setdefault(name, []).append(Answer(asked_at, now(), status))
            await asyncio.sleep(0.01)

    def logged(self, name: str) -> list[dict[str, Any]]:
        """The log's entries with this name."""
        lines = self.process.log.read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["event"] == name]


@asynccontextmanager
async def serving(nodes: Nodes, secret: str, **env: str) -> AsyncIterator[Served]:
    """A process with files for its secrets, its upstream's key and its rulebook."""
    folder = nodes.folder / "etc"
    folder.mkdir()
    for name, text in (("secrets", f"{secret}\n"), ("key", "first-upstream-key\n"), ("rules.toml", RULEBOOK)):
        (folder / name).write_text(text)
    files = {"JWT_SECRET_FILE": "secrets", "UPSTREAM_KEY_FILE": "key", "CONFIG": "rules.toml"}
    paths = {setting: str(folder / name) for setting, name in files.items()}
    given = nodes.environment("a", JWT_SECRET="", UPSTREAM_KEY="", **paths, **env)
    ready = nodes.folder / "ready.json"
    command = [sys.executable, "-m", "relay", "serve", "--ready-file", str(ready)]
    process = await Process.start("a", command, folder=nodes.folder, env=given)
    try:
        found = await process.wait_file(ready)
        yield Served(nodes, folder, process, found["url"], found["ops_url"])
        assert await process.stop() == 0
    finally:
        await process.kill()


@asynccontextmanager
async def talking(nodes: Nodes, url: str, key: str) -> AsyncIterator[Talk]:
    """People talk for the length of the block, and nothing may happen to them."""
    talk = Talk(nodes)
    await talk.start(url, key)
    try:
        yield talk
        await talk.finish()
    finally:
        talk.end()


async def minted(served: Served, key: str) -> str:
    headers = bearer(key)
    async with served.nodes.http.post(f"{served.url}/v1/realtime/client_secrets", json={}, headers=headers) as response:
        assert response.status == 200
        return str((await response.json())["value"])


def record_of(nodes: Nodes, model: str) -> Record:
    return next(record for record in nodes.model.ledger if record.query.get("model") == model)


# Keys


@HOW
async def test_a_secret_is_replaced_while_people_talk(nodes: Nodes, by_signal: bool) -> None:
    """The new one is added, then signs, then is alone: there is no moment at which neither holds, or a third state."""
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    scopes = ("read", "call", "mint")
    keys = {"old": token(*scopes, secret=old), "new": token(*scopes, secret=new)}
    async with serving(nodes, old) as served, talking(nodes, served.url, keys["old"]) as talk:
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(served.asking(**keys))
            change = partial(served.change, "secrets", by_signal=by_signal)
            assert [await served.status(keys[name]) for name in ("old", "new")] == [200, 401]
            await change(f"{old}\n{new}\n")
            assert [await served.status(keys[name]) for name in ("old", "new")] == [200, 200]
            by_old = await minted(served, keys["new"])
            await change(f"{new}\n{old}\n")
            by_new = await minted(served, keys["old"])
            await talk.more()
            removed_at = asyncio.get_running_loop().time()
            await change(f"{new}\n")
            taken_at = asyncio.get_running_loop().time()
            assert [await served.status(keys[name]) for name in ("old", "new")] == [401, 200]
            await until(lambda: served.answers["old"][-1].asked_at > taken_at)
            asking.cancel()
        for key in (by_old, keys["old"]):
            status, _, error = await answer(nodes, served, key)
            assert (status, error["code"]) == (401, "invalid_api_key")
        for key in (by_new, keys["new"]):
            client = await nodes.connect(served, headers=bearer(key))
            await event(client, "session.created")
            await client.close()
    was, now = served.answers["old"], served.answers["new"]
    assert [each.status for each in was] == sorted(each.status for each in was)
    assert [each.status for each in now] == sorted((each.status for each in now), reverse=True)
    assert {each.status for each in was + now} == {200, 401}
    assert min(each.came_at for each in was if each.status == 401) > removed_at
    assert max(each.asked_at for each in was if each.status == 200) < taken_at
    log = served.process.log.read_text()
    assert old not in log
    assert new not in log


async def test_a_signers_keys_are_replaced_while_people_talk(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published is good from the first token on, and what no longer is from the next look at the set."""
    monkeypatch.setattr(app, "Jwks", partial(Jwks, pace=Pace(every=0.5, pause=0.05)))
    old, new = signer("old"), signer("new", "ES256")
    async with publishing() as server:
        server.publish(old.public())
        node = await nodes.add(JWT_SECRET="", JWKS_URL=server.url)
        keys = [each.sign(scope="call read") for each in (old, new)]

        async def statuses() -> list[int]:
            found = []
            for key in keys:
                async with nodes.http.get(f"{node.url}/v1/realtime/calls", headers=bearer(key)) as response:
                    found.append(response.status)
            return found

        async with talking(nodes, node.url, keys[0]) as talk:
            assert await statuses() == [200, 401]
            server.publish(old.public(), new.public())

            async def both() -> bool:
                return await statuses() == [200, 200]

            await until(both)
            await talk.more()
            server.publish(new.public())
            asked = server.asked
            await until(lambda: server.asked > asked + 1)  # then the first of them has been read
            assert await statuses() == [401, 200]
            client = await nodes.connect(node, headers=bearer(keys[1]))
            await event(client, "session.created")
            await client.close()
            server.say(500)
            asked = server.asked
            await until(lambda: server.asked > asked + 1)
            assert await statuses() == [503, 200]  # whether the first was added again is not known any more


# Agents, plans, upstreams


@HOW
async def test_new_calls_have_the_new_agents_plans_and_keys_and_others_what_they_began_with(
    nodes: Nodes, by_signal: bool
) -> None:
    """Those that talk are counted against the new plan, and none of them ends by it."""
    secret = secrets.token_hex(32)
    key = token("call", "read", secret=secret)
    async with serving(nodes, secret, LEASE_SECONDS="2") as served, talking(nodes, served.url, key) as talk:
        before = await nodes.connect(served, "/v1/realtime?agent=support", headers=bearer(key))
        await event(before, "session.created")
        kind = record_of(nodes, "sim")
        assert kind.detail()["session"]["instructions"] == "Be kind."
        assert kind.headers["Authorization"].startswith(hashed("first-upstream-key"))
        assert (await answer(nodes, served, key, "/v1/realtime?agent=added"))[0] == 403

        async def are_counted() -> bool:
            async with nodes.http.get(f"{served.url}/v1/usage", headers=bearer(key)) as response:
                return sum(row["calls"] for row in (await response.json())["data"]) == CALLS + 1

        await until(are_counted)
        served.write("key", "second-upstream-key\n")
        await served.change("rules.toml", CHANGED, by_signal=by_signal)

        async def is_there() -> bool:
            return (await answer(nodes, served, key, "/v1/realtime?agent=added"))[0] == 400  # it has no model

        await until(is_there)
        assert await served.metric("relay_rulebook_stale") == 0
        status, retry_after, error = await answer(nodes, served, key, "/v1/realtime?agent=support")
        assert (status, error["code"]) == (429, "too_many_calls")  # twenty that talk, and one
        assert int(retry_after) >= 1
        await before.close()

        async def is_let_in() -> bool:
            nonlocal after
            with contextlib.suppress(aiohttp.WSServerHandshakeError):
                after = await nodes.connect(served, "/v1/realtime?agent=support&model=sim-new", headers=bearer(key))
            return after is not None

        after: aiohttp.ClientWebSocketResponse | None = None
        await until(is_let_in)
        assert after is not None
        await event(after, "session.created")
        brief = record_of(nodes, "sim-new")
        assert brief.headers["Authorization"].startswith(hashed("second-upstream-key"))
        code, events = await closed(after)
        assert (code, events[-1]["error"]["code"]) == (4008, "call_too_long")
        assert brief.detail()["session"]["instructions"] == "Be brief."
        assert kind.detail()["session"]["instructions"] == "Be kind."
        assert id_of(after) != id_of(before)
        await talk.more()


def hashed(key: str) -> str:
    """How the simulator's ledger begins what it says of a key."""
    return f"sha256:{hashlib.sha256(f'Bearer {key}'.encode()).hexdigest()[:12]} "


async def test_a_bad_file_is_refused_with_its_line_and_the_old_rulebook_holds(nodes: Nodes) -> None:
    """As a whole, whichever of the files it is: what is good beside it has to wait until all are."""
    secret, other = secrets.token_hex(32), secrets.token_hex(32)
    key, new = token("call", "read", secret=secret), token("read", secret=other)
    good = {"rules.toml": RULEBOOK, "secrets": f"{secret}\n", "key": "first-upstream-key\n"}
    bad: list[tuple[str, str, int | None]] = [
        ("rules.toml", f"{CHANGED}[plans.gold]\nconcurrent_calls = 'many'\n", 13),
        ("rules.toml", f"{CHANGED}[plans.gold\n", 12),
        ("rules.toml", f"{CHANGED}[agents.lost]\nvoice = 'alloy'\nupstream = 'nowhere'\n", 14),
        ("secrets", f"{secret}\n{other}\nshort\n", 3),
        ("key", "two\nlines\n", None),
    ]
    async with serving(nodes, secret) as served, talking(nodes, served.url, key) as talk:
        for count, (name, text, line) in enumerate(bad, 1):
            served.write("rules.toml", CHANGED)
            served.write("secrets", f"{secret}\n{other}\n")
            served.write(name, text)
            served.hup()

            async def is_refused(count: int = count) -> bool:
                return await served.metric('relay_rulebook_reloads_total{outcome="refused"}') == count

            await until(is_refused)
            assert await served.metric("relay_rulebook_stale") == 1
            entry = served.logged("rulebook_refused")[-1]
            assert (entry["file"], entry["line"], entry["level"]) == (str(served.folder / name), line, "error")
            assert entry["what"]
            assert (await answer(nodes, served, key, "/v1/realtime?agent=added"))[0] == 403
            assert [await served.status(each) for each in (key, new)] == [200, 401]
            client = await nodes.connect(served, f"/v1/realtime?agent=support&model=sim-{name}", headers=bearer(key))
            await event(client, "session.created")
            assert record_of(nodes, f"sim-{name}").detail()["session"]["instructions"] == "Be kind."
            await client.close()
            for each, content in good.items():
                served.write(each, content)
            served.hup()

            async def is_whole() -> bool:
                return await served.metric("relay_rulebook_stale") == 0

            await until(is_whole)
        await talk.more()
    log = served.process.log.read_text()
    assert [found for found in (secret, other, "short\n", "upstream-key", "eyJ") if found in log] == []
    assert not any("exception" in json.loads(line) for line in log.splitlines())
