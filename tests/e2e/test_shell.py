"""The shell commands against live nodes: output, exit codes, and a watch that outlives its connection."""

import argparse
import asyncio
import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import structlog

from relay.app import Node
from relay.shell import commands as shell
from relay.shell.node import Node as Asked
from relay.shell.node import Place, Trouble
from relay.shell.watch import Report, Watch
from tests.support.fleet import DemoFleet, Nodes, bearer, event, token, until
from tests.support.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
SCOPES = ("read", "control")
TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """The nodes of these tests share standard output with the commands: their logs must not stand in between."""
    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.configure(**before)


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one value that it printed."""
        return json.loads(self.out)


async def relay(node: Node | str, *arguments: str, key: str | None = None) -> Done:
    """Run a command in this process, as relay/cli.py does."""
    parser = argparse.ArgumentParser()
    shell.add_commands(parser.add_subparsers(dest="command", required=True))
    env = {"RELAY_URL": node if isinstance(node, str) else node.url}
    env["RELAY_TOKEN"] = token(*SCOPES) if key is None else key
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = await shell.run(parser.parse_args(arguments), env, time.time)
    return Done(code, out.getvalue(), err.getvalue())


class Call(NamedTuple):
    """A client and the id of its call."""

    client: aiohttp.ClientWebSocketResponse
    id: str

    async def say(self, text: str) -> None:
        """Send a text of the person's, which the model answers."""
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        await self.client.send_json({"type": "conversation.item.create", "item": item})
        await self.client.send_json({"type": "response.create"})

    async def ask(self, text: str) -> None:
        """Until the model has answered a text."""
        await self.say(text)
        await event(self.client, "response.done")


async def begin(nodes: Nodes, node: Node, *tools: dict[str, Any]) -> Call:
    """Open a call whose session has tools."""
    client = await nodes.connect(node)
    await event(client, "session.created")
    if tools:
        session = {"type": "realtime", "tools": list(tools)}
        await client.send_json({"type": "session.update", "session": session})
        await event(client, "session.updated")
    return Call(client, client._response.headers["X-Call-Id"])


async def finish(nodes: Nodes, node: Node, call: Call) -> None:
    """Until the call's end is known to the fleet."""
    await call.client.close()

    async def is_over() -> bool:
        return (await nodes.get(node, f"/v1/realtime/calls/{call.id}"))[1].get("state") == "ended"

    await until(is_over)


# calls


async def test_calls_lists_what_is_live_with_ids_to_copy(nodes: Nodes) -> None:
    """From any node, also those of other nodes."""
    one, two = await nodes.add("a"), await nodes.add("b")
    first, second = await begin(nodes, one), await begin(nodes, two)
    done = await relay(one, "calls")
    heading, *rows = done.out.splitlines()
    assert heading.split() == ["ID", "STATE", "REGION", "NODE", "AGENT", "MODEL", "AGE"]
    assert [row.split()[:6] for row in rows] == [
        [second.id, "live", "iad", "b", "default", "sim"],
        [first.id, "live", "iad", "a", "default", "sim"],
    ]
    assert (done.code, done.err) == (0, "")
    assert [call["id"] for call in (await relay(two, "calls", "--json")).json["data"]] == [second.id, first.id]


async def test_calls_filters_pages_and_says_that_there_is_more(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that ends early without a word is taken for all of it."""
    one, two = await nodes.add("a"), await nodes.add("b")
    calls = [await begin(nodes, node) for node in (one, one, two)]
    ids = [call.id for call in calls]
    assert (await relay(one, "calls", "--node", "b", "--state", "live")).out.split()[7] == ids[2]
    short = await relay(one, "calls", "--limit", "2")
    assert [row.split()[0] for row in short.out.splitlines()[1:]] == [ids[2], ids[1]]
    assert short.err == "relay: there are more: --all lists them\n"
    monkeypatch.setattr(shell, "_PAGE", 1)
    found = (await relay(one, "calls", "--all", "--json")).json
    assert ([call["id"] for call in found["data"]], found["has_more"]) == (ids[::-1], False)
    filtered = (await relay(one, "calls", "--all", "--json", "--node", "a")).json
    assert [call["id"] for call in filtered["data"]] == ids[1::-1]
    none = await relay(one, "calls", "--agent", "nobody")
    assert none == (0, "", "relay: no live calls that match\n")


async def test_calls_says_which_regions_are_missing(
    nodes: Nodes, redis_server: RedisServer, unused_tcp_port: int
) -> None:
    """Half a list looks like a whole one."""
    homes = f"iad={redis_server.url},lhr=redis://127.0.0.1:{unused_tcp_port}"
    node = await nodes.add(REGIONS=homes)
    call = await begin(nodes, node)
    done = await relay(node, "calls")
    assert (done.code, done.out.split()[7]) == (0, call.id)
    assert done.err == "relay: these regions did not answer, so their calls are missing: lhr\n"


# say, tool-result, hangup


async def test_say_puts_a_message_into_the_conversation_and_prints_its_receipt(nodes: Nodes) -> None:
    """In one line, once the model has it."""
    node = await nodes.add()
    call = await begin(nodes, node)
    done = await relay(node, "say", call.id, "the card is gold", "--id", "gold-1")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("applied after ")
    assert "message gold-1, item " in done.out
    (item,) = (await nodes.session(open_only=True))["items"]
    assert (item["role"], item["text"]) == ("system", "the card is gold")
    again = (await relay(node, "say", call.id, "the card is gold", "--id", "gold-1", "--json")).json
    assert (again["id"], again["status"]) == ("gold-1", "applied")
    assert len((await nodes.session(open_only=True))["items"]) == 1


async def test_say_as_a_user_who_wants_an_answer_waits_for_it(nodes: Nodes) -> None:
    """And the client sees nothing of a hidden message."""
    node = await nodes.add()
    call = await begin(nodes, node)
    options = ("--role", "user", "--respond", "--when", "now", "--hidden", "--wait", "answered", "--json")
    done = await relay(node, "say", call.id, "are you there?", *options)
    assert (done.code, done.json["status"]) == (0, "answered")
    seen = [await call.client.receive_json()]
    while seen[-1]["type"] != "response.done":
        seen.append(await call.client.receive_json())
    words = next(each["transcript"] for each in seen if each["type"] == "response.output_audio_transcript.done")
    assert words == "You said: are you there?"
    assert all(each.get("item", {}).get("role") != "user" for each in seen)


async def test_say_that_is_not_there_in_time_says_how_to_ask_again(nodes: Nodes) -> None:
    """The same id makes the repeat harmless."""
    node = await nodes.add()
    call = await begin(nodes, node)
    slow = ("say", call.id, "talk for 10 seconds", "--respond", "--wait", "answered")
    done = await relay(node, *slow, "--timeout", "0.3", "--id", "slow-1")
    assert done.code == 1
    assert done.out.startswith(("delivered", "applied"))
    assert "--id slow-1" in done.err
    assert (await relay(node, *slow, "--id", "slow-1")).code == 0


async def test_tool_result_answers_the_tool_call_that_the_model_waits_for(nodes: Nodes) -> None:
    """`relay why` shows the command to type; the model goes on by itself."""
    node = await nodes.add()
    call = await begin(nodes, node, TOOL)
    await call.ask("get weather")
    tool_call = (await nodes.session(open_only=True))["items"][-1]["call_id"]
    waiting = f"It waits for the result of get_weather: relay tool-result {call.id} {tool_call} JSON"

    async def is_said() -> bool:
        return waiting in (await relay(node, "why", call.id)).out.splitlines()

    await until(is_said)
    done = await relay(node, "tool-result", call.id, tool_call, '{"degrees": 21}', "--wait", "answered")
    assert (done.code, done.out.split()[0]) == (0, "answered")
    words = await event(call.client, "response.output_audio_transcript.done")
    assert words["transcript"] == 'The tool said: {"degrees": 21}'
    second = await relay(node, "tool-result", call.id, tool_call, "{}")
    assert second.code == 1
    assert f"`relay transcript {call.id}`" in second.err


@pytest.mark.parametrize("arguments", [["{oops"], [""]], ids=["broken", "empty"])
def test_a_tool_result_that_is_no_json_is_refused_before_it_is_sent(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """The shell has mostly eaten the quotes: the error shows how to write it."""
    parser = argparse.ArgumentParser()
    shell.add_commands(parser.add_subparsers(dest="command", required=True))
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["tool-result", "rtc_1", "call_1", *arguments])
    assert caught.value.code == 2
    assert "quote it for the shell: '{\"a\": 1}'" in capsys.readouterr().err


async def test_hangup_ends_the_call_and_why_says_who_did_it(nodes: Nodes) -> None:
    """The second time the call is over, and the error leads to the reason."""
    node = await nodes.add()
    call = await begin(nodes, node)
    assert (await relay(node, "hangup", call.id)).code == 0
    async with asyncio.timeout(5):
        while (await call.client.receive()).type is aiohttp.WSMsgType.TEXT:
            pass

    async def is_over() -> bool:
        return "hung up" in (await relay(node, "why", call.id)).out

    await until(is_over)
    again = await relay(node, "hangup", call.id)
    assert again.code == 1
    assert f"`relay why {call.id}`" in again.err


# why, transcript


async def test_why_of_a_live_call_says_where_it_is_and_what_goes_on(nodes: Nodes) -> None:
    """Who looks at a call that lives wants to know where, since when, and what was said last."""
    node = await nodes.add()
    call = await begin(nodes, node)
    await call.ask("hello there")

    async def has_words() -> bool:
        return "You said: hello there" in (await relay(node, "why", call.id)).out

    await until(has_words)
    first, tokens, *_ = (await relay(node, "why", call.id)).out.splitlines()
    assert first.startswith(f"{call.id} lives on node a in iad, since ")
    assert first.endswith("; agent default, model sim.")
    assert tokens.startswith("Tokens so far: ")


async def test_why_of_an_ended_call_says_the_reason_and_the_next_step(nodes: Nodes) -> None:
    """With codes and times; as JSON it is the tombstone."""
    await nodes.fault(close=3000, reason="invalid_request_error.invalid_api_key", events=1)
    node = await nodes.add()
    call = await begin(nodes, node)
    await finish(nodes, node, call)
    done = await relay(node, "why", call.id)
    lines = done.out.splitlines()
    assert done.code == 0
    assert "the model's server refused the relay's own key (model_key)." in lines[0]
    assert lines[1:] == [
        "Whose doing: the relay.",
        "Close codes: the client got 1008, the model's server sent 3000.",
        "Next: give the nodes a good OPENAI_API_KEY or RELAY_UPSTREAM_KEY.",
    ]
    assert (await relay(node, "why", call.id, "--json")).json["why"] == "model_key"


async def test_a_transcript_can_be_read_during_the_call_and_after_it(nodes: Nodes) -> None:
    """As lines for people and as JSON for scripts."""
    node = await nodes.add()
    call = await begin(nodes, node)
    assert await relay(node, "transcript", call.id) == (0, "", "relay: nothing was said yet\n")
    await call.ask("hello\x1b[2J there")
    for _ in range(2):

        async def is_written() -> bool:
            return "assistant: You said: hello\\x1b[2J there" in (await relay(node, "transcript", call.id)).out

        await until(is_written)
        found = (await relay(node, "transcript", call.id, "--json")).json
        assert [entry["role"] for entry in found["data"]] == ["user", "assistant"]
        await finish(nodes, node, call)


# usage, revoke


async def test_usage_is_a_table_json_or_a_file(nodes: Nodes) -> None:
    """The table adds up; a file has every counter, and nothing else on standard output."""
    node = await nodes.add()
    assert await relay(node, "usage") == (0, "", "relay: nothing was used\n")
    for _ in range(2):
        call = await begin(nodes, node)
        await call.ask("hello there")
        await finish(nodes, node, call)

    async def is_counted() -> bool:
        found = (await relay(node, "usage", "--group-by", "agent", "--json")).json["data"]
        return [each["calls"] for each in found] == [2]

    await until(is_counted)
    done = await relay(node, "usage", "--group-by", "agent")
    heading, row = done.out.splitlines()
    assert heading.split()[:3] == ["AGENT", "CALLS", "TIME"]
    assert row.split()[:2] == ["default", "2"]
    assert (done.code, done.err) == (0, "")
    by_day = await relay(node, "usage", "--agent", "default")
    assert by_day.out.splitlines()[0].split()[:3] == ["DAY", "AGENT", "CALLS"]
    table = await relay(node, "usage", "--group-by", "region", "--export", "csv")
    assert [line.split(",")[:4] for line in table.out.splitlines()] == [
        ["day", "agent", "region", "calls"],
        ["", "", "iad", "2"],
    ]
    lines = await relay(node, "usage", "--group-by", "region", "--export", "jsonl")
    assert [json.loads(line)["calls"] for line in lines.out.splitlines()] == [2]
    wrong = await relay(node, "usage", "--start-day", "yesterday")
    assert (wrong.code, wrong.out) == (2, "")
    assert "(start_day)" in wrong.err


@pytest.mark.parametrize("named", ["token", "jti", "client secret"])
async def test_revoke_takes_the_token_itself_or_its_id(nodes: Nodes, named: str) -> None:
    """Who found a token where it should not be has nothing else."""
    node = await nodes.add()
    stolen = token("read", jti="stolen")
    what = {"token": stolen, "jti": "stolen", "client secret": f"ek_{stolen}"}[named]
    done = await relay(node, "revoke", what, key=token("mint"))
    assert (done.code, done.err) == (0, "")
    assert done.out == "stolen is revoked in iad: within seconds it opens nothing, and its calls end.\n"

    async def is_refused() -> bool:
        return "revoked" in (await relay(node, "calls", key=stolen)).err

    await until(is_refused)


async def test_a_revocation_that_cannot_work_says_why(nodes: Nodes) -> None:
    """Done and without effect would be the worst answer."""
    node = await nodes.add()
    for what, key, words in (
        (token("call", tenant="other", jti="j"), token("mint"), "of another tenant"),
        (token("call"), token("mint"), "has no jti"),
        ("j", token("read"), "`relay revoke` needs `--scope mint`"),
    ):
        done = await relay(node, "revoke", what, key=key)
        assert (done.code, done.out) == (2, "")
        assert words in done.err


# Refusals


async def test_an_unknown_call_is_a_no_that_leads_to_the_list(nodes: Nodes) -> None:
    """The same for every command that names a call; for scripts the node's own error is on standard output."""
    node = await nodes.add()
    for arguments in (["why", "x"], ["watch", "x"], ["say", "x", "hi"], ["hangup", "x"], ["transcript", "x/../y?"]):
        done = await relay(node, *arguments)
        assert (done.code, done.out) == (1, "")
        assert "`relay calls` lists the live ones" in done.err
    assert (await relay(node, "why", "x", "--json")).json["error"]["code"] == "call_not_found"


async def test_an_ended_call_is_a_no_that_leads_to_why(nodes: Nodes) -> None:
    """It can no longer be watched or spoken to."""
    node = await nodes.add()
    call = await begin(nodes, node)
    await finish(nodes, node, call)
    for arguments in (["watch", call.id], ["say", call.id, "hi"]):
        done = await relay(node, *arguments)
        assert (done.code, done.out) == (1, "")
        assert f"`relay why {call.id}` says more" in done.err


async def test_a_token_that_will_not_do_says_how_to_make_one(nodes: Nodes, tmp_path: Path) -> None:
    """The commonest trouble at a prompt."""
    node = await nodes.add()
    for key in ("", "nonsense", token("call"), token("read", secret="x" * 32)):
        done = await relay(node, "calls", key=key)
        assert (done.code, done.out) == (2, "")
        assert "`relay token --scope read --scope control`" in done.err
    (tmp_path / "token").write_text(token("read") + "\n")
    assert (await relay(node, "calls", "--token-file", str(tmp_path / "token"), key="")).code == 0
    call = await begin(nodes, node)
    other = await relay(node, "why", call.id, key=token("read", tenant="other"))
    assert (other.code, other.out) == (1, "")


async def test_what_is_no_relay_is_said_to_be_none(nodes: Nodes, unused_tcp_port: int) -> None:
    """A wrong port is the second commonest."""
    nobody = await relay(f"http://127.0.0.1:{unused_tcp_port}", "calls")
    assert (nobody.code, nobody.out) == (2, "")
    assert "cannot be reached (Connection refused): set RELAY_URL" in nobody.err
    somebody = await relay(nodes.model.http_url, "calls", "--json")
    assert somebody.code == 2
    assert "is RELAY_URL a node's?" in somebody.err
    assert somebody.json["error"]["code"] == "no_relay"


# watch


class Link:
    """What stands between a watch and its node: it can be cut, and led to another node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""
        self.is_down = False
        self.opened = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, node: Node) -> AsyncIterator["Link"]:
        """Serve it for the length of the block."""
        link = cls(node)
        server = await asyncio.start_server(link._carry, "127.0.0.1", 0)
        link.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield link
        finally:
            server.close()
            link.cut()

    def cut(self) -> None:
        """Break what is connected."""
        for writer in self._writers:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_down:
            writer.transport.abort()
            return
        self.opened += 1
        back, forth = await asyncio.open_connection("127.0.0.1", int(self.node.url.rpartition(":")[2]))
        self._writers |= {writer, forth}
        with contextlib.suppress(ConnectionError, ExceptionGroup):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pour(reader, forth))
                tasks.create_task(_pour(back, writer))


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class Seen:
    """A watch in this process, and what it reported."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.lines: list[tuple[str, str]] = []
        self.notices: list[str] = []

    @property
    def report(self) -> Report:
        """Where the watch says it."""
        return Report(self.events.append, lambda who, what: self.lines.append((who, what)), self.notices.append)

    def has(self, kind: str) -> bool:
        """Whether an event of this type came."""
        return any(each["type"] == kind for each in self.events)


async def watched(url: str, call_id: str, seen: Seen, patience_seconds: float = 10.0) -> dict[str, Any]:
    """Watch a call to its end."""
    async with Asked.at(Place(url, token(*SCOPES))) as node:
        return await Watch(node, call_id, seen.report, patience_seconds).run()


async def test_a_watch_tells_the_conversation_and_ends_with_the_call(nodes: Nodes) -> None:
    """Every word once, tool calls with what they were asked, injected messages too."""
    node, other = await nodes.add("a"), await nodes.add("b")
    call, seen = await begin(nodes, node, TOOL), Seen()
    async with asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(watched(other.url, call.id, seen))
        await until(lambda: seen.has("session.created"))
        await call.ask("first say yes, then get weather")
        await relay(other, "say", call.id, "be brief")
        await call.client.close()
    ended = watch.result()
    assert (ended["id"], ended["state"], ended["why"]) == (call.id, "ended", "client_closed")
    told = [line for line in seen.lines if line[0] != "session"]
    assert [who for who, _ in told] == ["user", "assistant", "tool", "system"]
    assert told[1] == ("assistant", "You said: first say yes, then get weather")
    assert told[2][1].startswith("get_weather({}) as call_")
    assert told[3] == ("system", "be brief")
    assert seen.events[-1]["type"] == "relay.ended"
    assert not any("audio.delta" in each["type"] for each in seen.events)
    assert seen.notices == []


async def test_a_watch_goes_on_where_its_connection_broke(nodes: Nodes) -> None:
    """What happened meanwhile is told too, and nothing twice."""
    node = await nodes.add()
    call, seen = await begin(nodes, node), Seen()
    async with Link.to(node) as link, asyncio.TaskGroup() as tasks:
        tasks.create_task(watched(link.url, call.id, seen))
        await until(lambda: seen.has("session.created"))
        await call.ask("one")
        await until(lambda: seen.has("response.done"))
        link.is_down = True
        link.cut()
        await until(lambda: len(seen.notices) == 1)
        await call.ask("two")
        link.is_down = False
        await until(lambda: len(seen.notices) == 2)
        await call.ask("three")
        await until(lambda: ("assistant", "You said: three") in seen.lines)
        await call.client.close()
    said = [what for who, what in seen.lines if who == "assistant"]
    assert said == ["You said: one", "You said: two", "You said: three"]
    assert seen.notices[0].startswith("the connection is gone, trying again (")
    assert seen.notices[1] == "connected again"
    assert link.opened >= 2


async def test_a_watch_outlives_the_node_that_it_asked(nodes: Nodes) -> None:
    """A rollout drains one node after the other; behind a load balancer the next one goes on with the stream."""
    owner, other = await nodes.add("a"), await nodes.add("c")
    call, seen = await begin(nodes, owner), Seen()
    async with nodes.node("b") as leaving, Link.to(leaving) as link, asyncio.TaskGroup() as tasks:
        tasks.create_task(watched(link.url, call.id, seen))
        await until(lambda: seen.has("session.created"))
        await call.ask("one")
        await until(lambda: seen.has("response.done"))
        link.node = other
        leaving.drain()
        await until(lambda: len(seen.notices) == 2)
        await call.ask("two")
        await until(lambda: ("assistant", "You said: two") in seen.lines)
        await call.client.close()
    assert [what for who, what in seen.lines if who == "assistant"] == ["You said: one", "You said: two"]
    assert seen.notices == ["the connection is gone, trying again (the node ended the stream)", "connected again"]


async def test_a_watch_whose_call_ends_while_it_is_away_still_says_why(nodes: Nodes) -> None:
    """The end is what it was opened for."""
    node = await nodes.add()
    call, seen = await begin(nodes, node), Seen()
    async with Link.to(node) as link, asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(watched(link.url, call.id, seen))
        await until(lambda: seen.has("session.created"))
        link.is_down = True
        link.cut()
        await finish(nodes, node, call)
        link.is_down = False
    assert watch.result()["why"] == "client_closed"
    assert seen.events[-1]["type"] == "relay.ended"


async def test_a_watch_of_a_reserved_call_that_it_missed_altogether_still_says_why(nodes: Nodes) -> None:
    """Without a position there is nothing to go on from: the tombstone is asked for."""
    node = await nodes.add()
    url = f"{node.url}/v1/realtime/client_secrets"
    async with nodes.http.post(url, json={}, headers=bearer(token("mint"))) as response:
        secret = await response.json()
    seen = Seen()
    async with Link.to(node) as link, Asked.at(Place(link.url, token("read"))) as asked, asyncio.TaskGroup() as tasks:
        watching = Watch(asked, secret["call_id"], seen.report)
        watch = tasks.create_task(watching.run())
        await until(lambda: watching._was_connected)
        link.is_down = True
        link.cut()
        client = await nodes.connect(node, headers=bearer(secret["value"]))
        await event(client, "session.created")
        await finish(nodes, node, Call(client, secret["call_id"]))
        link.is_down = False
    assert watch.result()["why"] == "client_closed"
    assert [each["type"] for each in seen.events] == ["relay.ended"]
    assert len(seen.notices) == 1


async def test_a_watch_does_not_try_for_ever(nodes: Nodes) -> None:
    """A script must learn that the fleet is gone."""
    node = await nodes.add()
    call, seen = await begin(nodes, node), Seen()
    async with Link.to(node) as link, asyncio.TaskGroup() as tasks:

        async def give_up() -> None:
            with pytest.raises(Trouble) as caught:
                await watched(link.url, call.id, seen, patience_seconds=0.5)
            assert caught.value.exit_code == 2

        tasks.create_task(give_up())
        await until(lambda: seen.has("session.created"))
        link.is_down = True
        link.cut()
    assert len(seen.notices) == 1


# As processes


def command(*arguments: str) -> list[str]:
    """The command line of a person."""
    return [sys.executable, "-m", "relay", *arguments]


def environment(fleet: DemoFleet, node: str) -> dict[str, str]:
    """What a person has exported."""
    return {"PATH": "/usr/bin:/bin", "RELAY_URL": fleet.url(node), "RELAY_TOKEN": fleet.backend_token, "TZ": "UTC"}


async def demo_call(fleet: DemoFleet, http: aiohttp.ClientSession, node: str) -> Call:
    """Open a call in the demo."""
    headers = {"Authorization": f"Bearer {fleet.client_token}"}
    client = await http.ws_connect(fleet.url(node) + "/v1/realtime?model=sim", headers=headers)
    await event(client, "session.created")
    return Call(client, client._response.headers["X-Call-Id"])


async def test_a_person_watches_a_call_of_another_region_and_leaves_with_ctrl_c(demo_fleet: DemoFleet) -> None:
    """Lines with the time come as things happen; nothing is printed about the interrupt."""
    async with aiohttp.ClientSession() as http:
        call = await demo_call(demo_fleet, http, "iad-1")
        process = await asyncio.create_subprocess_exec(
            *command("watch", call.id), stdout=-1, stderr=-1, env=environment(demo_fleet, "lhr-2"), cwd=ROOT
        )
        assert process.stdout is not None
        async with asyncio.timeout(20):
            first = (await process.stdout.readline()).decode()
            assert first[8:].split()[:3] == ["session", "model", "sim;"]
            await call.say("hello")
            lines = [(await process.stdout.readline()).decode()[10:].split(None, 1) for _ in range(2)]
            assert lines == [["user", "hello\n"], ["assistant", "You said: hello\n"]]
            process.send_signal(signal.SIGINT)
            rest = await process.communicate()
        assert (process.returncode, rest) == (130, (b"", b""))
        await call.client.close()


async def test_a_script_reads_json_lines_until_the_call_ends(demo_fleet: DemoFleet) -> None:
    """The last line is the end with its reason; `head` may leave earlier without a traceback."""
    async with aiohttp.ClientSession() as http:
        call = await demo_call(demo_fleet, http, "iad-1")
        env = environment(demo_fleet, "iad-2")
        whole, part = [
            await asyncio.create_subprocess_shell(
                f"{sys.executable} -m relay watch {call.id} --json {then}", stdout=-1, stderr=-1, env=env, cwd=ROOT
            )
            for then in ("", "| head -n 1")
        ]
        assert whole.stdout is not None
        assert part.stdout is not None
        async with asyncio.timeout(20):
            first = json.loads(await whole.stdout.readline())
            assert json.loads(await part.stdout.readline())["type"] == first["type"] == "session.created"
            await call.ask("hello")
            await call.client.close()
            out, err = await whole.communicate()
            assert await part.communicate() == (b"", b"")
        events = [json.loads(line) for line in out.splitlines()]
        assert (events[-1]["type"], events[-1]["why"]) == ("relay.ended", "client_closed")
        assert "response.done" in [each["type"] for each in events]
        assert (whole.returncode, err) == (0, b"")


@pytest.mark.parametrize("fleet", ["demo_fleet", "tls_fleet"])
def test_the_lines_that_the_demo_prints_work_in_another_terminal(fleet: str, request: pytest.FixtureRequest) -> None:
    """Copied as they are, with nothing else set."""
    printed = (request.getfixturevalue(fleet).folder / "log").read_text()
    at = printed.index("  export RELAY_URL=")
    lines = printed[at : printed.index("\n\n", at)]
    done = subprocess.run(
        ["bash", "-c", f"{lines} --json"], cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert (done.returncode, json.loads(done.stdout)["object"]) == (0, "list"), done.stderr
