"""The commands for people and scripts: `relay calls`, `watch`, `say`, `hangup`, `why`, `usage`, `revoke` and the like.

Each asks one node over HTTP and needs neither Redis nor the nodes' secrets. What is said is decided in `words.py`.
Exit codes: 0 done, 1 the answer is no, 2 the question was wrong or nobody could be asked.
"""

import argparse
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from relay.shell import words
from relay.shell.node import NO, Node, Place, Trouble, place, read_claims, read_token
from relay.shell.watch import Report, Watch

_PAGE: Final = 100
_WAITS: Final = ("accepted", "delivered", "applied", "answered")
_LONGEST_WAIT_SECONDS: Final = 60.0
_HANGUP_SECONDS: Final = 10.0


def add_commands(commands: Any) -> None:
    """Add the commands to argparse's subparsers."""
    place_options = _place_options()
    message_options = _message_options()
    listing = commands.add_parser("calls", parents=[place_options], help="list the live calls, newest first")
    for name in ("region", "node", "agent"):
        listing.add_argument(f"--{name}", help=f"only calls of this {name}")
    listing.add_argument("--state", choices=("live", "moving"), help="only calls in this state")
    listing.add_argument("--limit", type=_count, default=20, help="at most so many (default: 20)")
    listing.add_argument("--all", action="store_true", help="all of them")
    watch = commands.add_parser("watch", parents=[place_options], help="follow what is said and done in a call")
    watch.add_argument("call")
    say = commands.add_parser("say", parents=[place_options, message_options], help="put a message into a call")
    say.add_argument("call")
    say.add_argument("text")
    say.add_argument("--role", choices=("system", "user"), default="system", help="who says it (default: system)")
    say.add_argument("--respond", action="store_true", help="the model shall answer it")
    say.add_argument("--when", choices=("now", "turn_end", "interrupt"), help="default: now; with --respond: turn_end")
    say.add_argument("--hidden", action="store_true", help="the call's client shall not see it")
    result = commands.add_parser(
        "tool-result", parents=[place_options, message_options], help="give the result of a tool call"
    )
    result.add_argument("call")
    result.add_argument("tool_call", metavar="tool_call_id", help="call_… of the tool call, as `relay watch` shows it")
    result.add_argument("result", type=_json_text, help="JSON, in quotes for the shell: '{\"degrees\": 21}'")
    for name, text in (
        ("hangup", "end a call"),
        ("why", "say why a call ended, and what to do; or what is going on in it"),
        ("transcript", "print what was said in a call, live or ended"),
    ):
        commands.add_parser(name, parents=[place_options], help=text).add_argument("call")
    _add_tenant_commands(commands, place_options)


def _add_tenant_commands(commands: Any, place_options: argparse.ArgumentParser) -> None:
    usage = commands.add_parser("usage", parents=[place_options], help="say what the tenant's calls used")
    usage.add_argument("--start-day", metavar="DAY", help="the first, like 2026-11-01, of UTC (default: 7 days in all)")
    usage.add_argument("--end-day", metavar="DAY", help="the last (default: today)")
    usage.add_argument("--agent", help="only what calls of this agent used")
    usage.add_argument("--group-by", help="day, agent, region, with commas between (default: day,agent)")
    usage.add_argument("--export", choices=("csv", "jsonl"), help="all counters, as a file")
    revoke = commands.add_parser(
        "revoke", parents=[place_options], help="make a token open nothing any more, at any node; needs scope mint"
    )
    revoke.add_argument(
        "what", metavar="token", help="the token or client secret itself, - for standard input, or its jti"
    )
    revoke.add_argument(
        "--expires-at", type=_count, metavar="SECONDS", help="its exp, since the epoch (default: as the token says)"
    )


def _place_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--url", help="a node; default: RELAY_URL, else http://127.0.0.1:8080")
    options.add_argument("--token-file", type=Path, help="a file with the token; default: the variable RELAY_TOKEN")
    options.add_argument("--json", action="store_true", help="JSON, for scripts")
    return options


def _message_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--wait", choices=_WAITS, default="applied", help="until it is (default: applied)")
    options.add_argument("--timeout", type=_seconds, default=10.0, help="seconds to wait for that (default: 10)")
    options.add_argument("--id", help="the message's id: the same id twice is one message")
    return options


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= _LONGEST_WAIT_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds up to {_LONGEST_WAIT_SECONDS:.0f}")
    return seconds


def _json_text(text: str) -> str:
    try:
        json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error}); quote it for the shell: '{{\"a\": 1}}'") from None
    return text


async def run(given: argparse.Namespace, env: Mapping[str, str], now: Callable[[], float]) -> int:
    """Run a command; returns the exit code.

    Args:
        given: the arguments, as `add_commands` had them parsed.
        env: where RELAY_URL and RELAY_TOKEN are looked for.
        now: seconds since the epoch.
    """
    try:
        async with Node.at(_where(given, env)) as node:
            return await COMMANDS[given.command](node, given, now)
    except Trouble as trouble:
        if given.json:
            _print_json({"error": trouble.error})
        _notice(str(trouble))
        return trouble.exit_code


def _where(given: argparse.Namespace, env: Mapping[str, str]) -> Place:
    token = env.get("RELAY_TOKEN", "") if given.token_file is None else read_token(given.token_file)
    return place(given.url or env.get("RELAY_URL") or "http://127.0.0.1:8080", token)


async def _calls(node: Node, given: argparse.Namespace, now: Callable[[], float]) -> int:
    filters = {name: value for name in ("region", "node", "agent", "state") if (value := getattr(given, name))}
    found: list[Any] = []
    missing: set[str] = set()
    after: dict[str, str] = {}
    while True:
        room = _PAGE if given.all else min(_PAGE, given.limit - len(found))
        page = (await node.get(query={"limit": str(room), **filters, **after})).body
        found += page.get("data", [])
        missing.update(page.get("unreachable_regions", []))
        is_enough = not given.all and len(found) >= given.limit
        if is_enough or not page.get("has_more") or page.get("last_id") is None:
            break
        after = {"after": page["last_id"]}  # with a filter a page may be empty, and not be the last
    if given.json:
        _print_json({**page, "data": found, "unreachable_regions": sorted(missing)})
    for line in () if given.json else words.calls(found, now()):
        _print(line)
    if missing:
        _notice(f"these regions did not answer, so their calls are missing: {', '.join(sorted(missing))}")
    if not found:
        _notice("no live calls" + (" that match" if filters else ""))
    elif page.get("has_more"):
        _notice("there are more: --all lists them")
    return 0


async def _watch(node: Node, given: argparse.Namespace, now: Callable[[], float]) -> int:
    def tell(who: str, what: str) -> None:
        if not given.json:
            _print(f"{_clock(now())}  {who:<9}  {what}")

    def pass_on(event: Mapping[str, Any]) -> None:
        if given.json:
            _print_json(event)

    ended = await Watch(node, given.call, Report(pass_on, tell, _notice)).run()
    for line in () if given.json else words.why(ended, _clock, now()):
        _print(line)
    return 0


async def _say(node: Node, given: argparse.Namespace, _: Callable[[], float]) -> int:
    content = [{"type": "input_text", "text": given.text}]
    body: dict[str, Any] = {
        "item": {"type": "message", "role": given.role, "content": content},
        "response": given.respond,
        "visible": not given.hidden,
    }
    return await _put(node, given, body | ({"when": given.when} if given.when else {}))


async def _tool_result(node: Node, given: argparse.Namespace, _: Callable[[], float]) -> int:
    item = {"type": "function_call_output", "call_id": given.tool_call, "output": given.result}
    return await _put(node, given, {"item": item})


async def _put(node: Node, given: argparse.Namespace, body: Mapping[str, Any]) -> int:
    """The id is made here, so that a message whose answer was lost can be sent again as the same one."""
    message_id = given.id or f"msg_{secrets.token_hex(8)}"
    query = {"wait": given.wait, "timeout_ms": str(round(given.timeout * 1000))}
    answer = await node.post(
        given.call,
        "/items",
        query,
        {**body, "id": message_id},
        seconds=given.timeout,
        message_id=message_id,
    )
    receipt: dict[str, Any] = answer.body
    if given.json:
        _print_json(receipt)
    else:
        _print(words.receipt(receipt))
    if answer.status == 202:
        _notice(
            f"not {given.wait} after {given.timeout:g} s, and it still may be: "
            f"the same command with --id {message_id} asks again"
        )
        return NO
    return NO if receipt.get("status") in {"failed", "expired", "rejected"} else 0


async def _hangup(node: Node, given: argparse.Namespace, now: Callable[[], float]) -> int:
    query = {"timeout_ms": str(round(_HANGUP_SECONDS * 1000))}
    answer = await node.post(given.call, "/hangup", query, {}, seconds=_HANGUP_SECONDS)
    if given.json:
        _print_json(answer.body)
    if answer.status == 202:
        _notice(f"the call's node has not said yet that it ended: `relay why {given.call}` tells")
        return NO
    if not given.json:
        is_over = answer.body.get("state") == "ended"
        _print(words.why(answer.body, _clock, now())[0] if is_over else f"{given.call} is being ended.")
    return 0


async def _why(node: Node, given: argparse.Namespace, now: Callable[[], float]) -> int:
    call = (await node.get(given.call)).body
    if given.json:
        _print_json(call)
    for line in () if given.json else words.why(call, _clock, now()):
        _print(line)
    return 0


async def _transcript(node: Node, given: argparse.Namespace, _: Callable[[], float]) -> int:
    answer = await node.get(given.call, "/transcript", {"format": "json" if given.json else "text"})
    if given.json:
        _print_json(answer.body)
    elif answer.body:
        _print(words.plain_lines(answer.body))
    else:
        _notice("nothing was said yet")
    return 0


async def _usage(node: Node, given: argparse.Namespace, _: Callable[[], float]) -> int:
    names = ("start_day", "end_day", "agent", "group_by")
    query = {name: value for name in names if (value := getattr(given, name))}
    answer = await node.usage(query | {"format": given.export or "json"})
    if given.export:
        sys.stdout.write(answer.body)
        sys.stdout.flush()
        return 0
    if given.json:
        _print_json(answer.body)
    sums = answer.body.get("data", [])
    for line in () if given.json else words.usage(sums):
        _print(line)
    if missing := answer.body.get("unreachable_regions"):
        _notice(f"these regions did not answer, so their usage is missing: {', '.join(missing)}")
    if not sums:
        _notice("nothing was used")
    return 0


async def _revoke(node: Node, given: argparse.Namespace, _: Callable[[], float]) -> int:
    what = sys.stdin.readline().strip() if given.what == "-" else given.what
    token = read_claims(what)
    jti, expires_at = what, given.expires_at
    if token is not None:
        own = read_claims(node.token) or {}
        if token.get("tenant") != own.get("tenant"):
            raise Trouble.usage("the token is of another tenant than RELAY_TOKEN: only its own tenant can revoke it")
        if not isinstance(token.get("jti"), str):
            raise Trouble.usage("the token has no jti, so it cannot be revoked: change the secret that signed it")
        ends = token.get("exp")
        jti, expires_at = token["jti"], expires_at or (int(ends) if isinstance(ends, int | float) else None)
    answer = await node.revoke({"jti": jti} | ({"expires_at": expires_at} if expires_at else {}))
    if given.json:
        _print_json(answer.body)
    else:
        _print(words.revoked(answer.body))
    return 0


COMMANDS: Final[Mapping[str, Callable[[Node, argparse.Namespace, Callable[[], float]], Awaitable[int]]]] = {
    "calls": _calls,
    "watch": _watch,
    "say": _say,
    "tool-result": _tool_result,
    "hangup": _hangup,
    "why": _why,
    "transcript": _transcript,
    "usage": _usage,
    "revoke": _revoke,
}


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _print(line: str) -> None:
    print(line, flush=True)


def _print_json(value: Any) -> None:
    _print(json.dumps(value, separators=(",", ":")))


def _notice(text: str) -> None:
    print(f"relay: {text}", file=sys.stderr, flush=True)
