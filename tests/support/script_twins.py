"""The scripts on a real server beside their model: both are told the same, and all there is to see is compared.

Both get the same clock: the scripts' call of TIME, and the server's clock in `XADD *`, are replaced by the driver's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import msgpack
import redis

from fanout.core.accounts import SCRIPTS as ACCOUNT_SCRIPTS
from fanout.core.envelope import Batch, Envelope, LogKind
from fanout.core.keys import CallKeys, Keys
from fanout.core.memory import MemoryEntry
from fanout.core.partitions import tag_of
from fanout.core.runs import Run
from fanout.core.scripts import Scripts, outgoing_args
from fanout.core.verdicts import Verdict
from fanout.ids import home_of
from fanout.messages import CallRecord, Receipt, Status, Tombstone
from fanout.settings import BusSettings
from tests.support.redis_model import RedisModel
from tests.support.redis_server import RedisServer

LUA = files("fanout") / "lua"
# Accounts have no model: no simulation has tenants; tests/contract/test_accounts.py runs theirs on real servers.
NAMES = sorted({file.name.removesuffix(".lua") for file in LUA.iterdir()} - {"common", *ACCOUNT_SCRIPTS})

CALLS = ("call-1", "call-17")  # of one partition, so that one index and one generation serve both
CLAIMS = ("aa", "bb", "cc")
NODES = ("n1", "n2", "n3")
TENANTS = ("acme", "other")
PARTS = ("call", "inbox", "receipts", "tombstone", "memory", "settled", "index", "log", "facts", "watchers", "owned")
STARTS = {"aa": 1000.5, "bb": 2000.25, "cc": 2000.25}

NORMAL, SETTLING, REWRITING, TIMED = (0, 0), (10**9, 0), (0, 10**9), (2000, 1000)  # ms of each phase
DAY_MS = 86_400_000
REFRESHED_MS = 4 * 10**9  # to live, told from what the other scripts give

TIME_CALL = "redis.call('TIME')"
ENTRY_CALL = "redis.call('XADD', INBOX, '*',"
GIVEN_TIME = """
local GIVEN = {table.remove(ARGV, #ARGV - 1), table.remove(ARGV)}
local function next_entry(inbox)
  local last = redis.call('EXISTS', inbox) == 1 and redis.call('XINFO', 'STREAM', inbox)[8] or '0-0'
  local ms, count = string.match(last, '^(%d+)%-(%d+)$')
  local now = math.floor((tonumber(GIVEN[1]) + tonumber(GIVEN[2]) / 1000000) * 1000)
  if now > tonumber(ms) then return string.format('%.0f-0', now) end
  return ms .. '-' .. (tonumber(count) + 1)
end
"""
DUMP = """
local found = {}
for place, key in ipairs(KEYS) do
  local kind, value = redis.call('TYPE', key).ok, ''
  if kind == 'hash' then value = redis.call('HGETALL', key) end
  if kind == 'stream' then value = redis.call('XRANGE', key, '-', '+') end
  if kind == 'list' then value = redis.call('LRANGE', key, 0, -1) end
  if kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end
  if kind == 'string' then value = redis.call('GET', key) end
  found[place] = {kind, value, redis.call('PTTL', key)}
end
return found
"""


KEYS = Keys("bus")
STEP = "step"  # the channel that marks a step's end


def keys(call: str, tenant: str = TENANTS[0]) -> CallKeys:
    """The names of a call's keys."""
    return KEYS.call(call, tenant)


KEPT = sorted(
    {getattr(keys(call, tenant), part) for call in CALLS for tenant in TENANTS for part in ("generation", *PARTS)}
    | {KEYS.node_alive(tag_of(node), node) for node in NODES}
    | {KEYS.generation(tag_of(node)) for node in NODES}
)
TAGS = {tag_of(name) for name in CALLS + NODES}
CHANNELS = [
    *(channel for call in CALLS for channel in (keys(call).channel, keys(call).feed, keys(call).sound)),
    *(KEYS.node_channel(tag, node) for tag in TAGS for node in NODES),
]


def bus_settings(node: str) -> BusSettings:
    """Small caps; times to live that tell each other apart and outlast the test."""
    return BusSettings(
        node=node,
        region="iad",
        regions={"iad": "redis://unused"},
        prefix="bus",
        inbox_max=3,
        inbox_max_bytes=224,  # just two of the long messages of the first call
        read_max=2,
        read_max_bytes=112,  # just one of them
        call_ttl_seconds=1e6,
        node_ttl_seconds=2e6,
        tombstone_seconds=3e6,
        lease_seconds=5e6,
        watch_read_max=2,
    )


def readable(told: Any) -> Any:
    """The same with msgpack unpacked, so that order and width in it don't count."""
    if isinstance(told, dict):
        return {readable(name): readable(value) for name, value in told.items()}
    if isinstance(told, list | tuple):
        return [readable(value) for value in told]
    if isinstance(told, bytes) and told[:1] >= b"\x80":
        try:
            return readable(msgpack.unpackb(told, raw=True, strict_map_key=False))
        except ValueError:
            return told
    return ("bool", told) if isinstance(told, bool) else told


def shape(told: Any) -> Any:
    """The types in an answer."""
    return [shape(value) for value in told] if isinstance(told, list) else type(told)


def plain(kind: bytes, value: Any, ttl_ms: int) -> tuple[Any, int | None]:
    """What a key of a real server holds, in the form of the model's dump, and what is left of its time."""
    pairs = list(zip(value[::2], value[1::2], strict=True)) if kind in {b"hash", b"zset"} else []
    forms = {
        b"hash": dict(pairs),
        b"zset": {member: float(score) for member, score in pairs} if kind == b"zset" else {},
        b"stream": [(entry, *fields[1::2]) for entry, fields in value] if kind == b"stream" else [],
    }
    return forms.get(kind, value), None if ttl_ms < 0 else ttl_ms


def source(script: str) -> str:
    """What a store sends."""
    return f"{(LUA / 'common.lua').read_text()}\n{(LUA / f'{script}.lua').read_text()}"


def timed_source(script: str) -> str:
    """The same with its clock in the last two arguments: seconds and microseconds."""
    text = source(script)
    assert text.count(TIME_CALL) == 1
    assert text.count(ENTRY_CALL) == (script == "publish")
    text = text.replace(TIME_CALL, "GIVEN").replace(ENTRY_CALL, "redis.call('XADD', INBOX, next_entry(INBOX),")
    return GIVEN_TIME + text


class Server:
    """A real server, with one connection for commands and one that hears every channel."""

    def __init__(self, server: RedisServer) -> None:
        self._port = server.port
        self._commands, self._feed = (
            redis.Connection(host="127.0.0.1", port=self._port, protocol=2, socket_timeout=10.0, driver_info=None)
            for _ in range(2)
        )
        self._timed = {name: timed_source(name) for name in NAMES}
        for channel in [*CHANNELS, STEP]:
            self._feed.send_command("SSUBSCRIBE", channel)
            self._feed.read_response()

    def send(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Answers in order; an error is one of them."""
        self._commands.send_packed_command(self._commands.pack_commands(commands))
        return [self._answer() for _ in commands]

    def execute(
        self, run: Run, run_id: str, *, micros: int | None = None, kept: Sequence[str] = KEPT
    ) -> tuple[Any, list[tuple[str, bytes]], list[Any]]:
        """Answer, publications, and what the keys hold after it: type, value, ms to live for each of `kept`.

        `micros` is the time since the epoch; without it the script runs as it is.
        """
        text, given = (source(run.script), ()) if micros is None else (self._timed[run.script], divmod(micros, 10**6))
        answer, held, _ = self.send(
            ("EVAL", text, len(run.keys), *run.keys, run_id, *run.args, *given),
            ("EVAL", DUMP, len(kept), *kept),
            ("SPUBLISH", STEP, ""),
        )
        published = []
        while (heard := self._feed.read_response())[1] != STEP.encode():
            published.append((heard[1].decode(), heard[2]))
        return answer, published, held

    @contextmanager
    def one_more_hears(self, channel: str) -> Iterator[None]:
        """A further connection subscribes to the channel meanwhile."""
        other = redis.Connection(host="127.0.0.1", port=self._port, protocol=2, socket_timeout=10.0, driver_info=None)
        other.send_command("SSUBSCRIBE", channel)
        other.read_response()
        yield
        other.send_command("SUNSUBSCRIBE", channel)
        other.read_response()
        other.disconnect()

    def close(self) -> None:
        """Both connections."""
        self._commands.disconnect()
        self._feed.disconnect()

    def _answer(self) -> Any:
        try:
            return self._commands.read_response()
        except redis.ResponseError as exc:
            return exc


class Both:
    """A server and a model that are told the same; each method runs one script and compares all there is to see."""

    def __init__(self, server: Server, *, more_keys: Sequence[str] = ()) -> None:
        self._server, self._model, self._kept = server, RedisModel("first"), [*KEPT, *more_keys]
        self._scripts = [Scripts(bus_settings(node)) for node in NODES]
        self._steps: list[Run] = []
        self._epochs: dict[tuple[str, str], int] = {}  # by call and claim, as they were answered
        self._records: dict[str, tuple[int, str]] = {}  # by call, what a take should expect
        self.held: dict[str, Any] = {}  # what the keys hold, as the model dumps it
        self.micros = 1_790_000_000_123_456
        self.terms = NORMAL
        self.words: set[tuple[str, str]] = set()  # what was answered so far, by script
        server.send(("FLUSHALL",))
        self._model.subscribers = {keys(call).channel: 1 for call in CALLS}

    # -- what is no script

    def wait(self, micros):
        """The clock goes on, or back."""
        self.micros += micros

    def enter(self, terms):
        """How long a new server settles, and owners rewrite: ms of each."""
        self.terms = terms

    def change_server(self):
        """The scripts find another run id, as on a server that was restarted or promoted."""
        self._model.run_id += "+"

    def lose(self, part, call=CALLS[0]):
        """The server has lost a key of a call."""
        self.lose_key(getattr(keys(call), part))

    def lose_key(self, key):
        """The server has lost this key."""
        self._server.send(("DEL", key))
        self._model.delete(key)

    @contextmanager
    def one_more_hears(self, channel):
        """The channel has one subscriber more meanwhile."""
        self._model.subscribers[channel] += 1
        with self._server.one_more_hears(channel):
            yield
        self._model.subscribers[channel] -= 1

    # -- the scripts

    def claim(self, mode, claim="aa", *, call=CALLS[0], tenant="acme", stale=False, left_ms=1):
        """`stale`: restores a lower epoch, or expects another record than there is; `left_ms`: to its latest time."""
        start = STARTS[claim]
        record = CallRecord(id=call, tenant=tenant, node="n1", region="iad", agent="a", model="m", started_at=start)
        answer = self.step(
            self._scripts[0].claim(
                keys(call, tenant),
                mode,
                claim,
                record,
                epoch=self._epochs.get((call, claim), 5) - stale,
                expected=(1, "zz") if stale else self._records.get(call, (1, "zz")),
                latest_ms=self.micros // 1000 + left_ms,
            )
        )
        if answer[0] == b"held":
            self._epochs[call, claim] = int(answer[1])
            self._records[call] = (int(answer[1]), claim)
        return answer

    def release(self, claim="aa", *, call=CALLS[0]):
        answer = self.step(self._scripts[0].release(keys(call), claim))
        if answer[0] == b"released":
            self._records[call] = (int(answer[1]), "")
        return answer

    def handover(self, claim="aa", *, call=CALLS[0], off=0):
        """Nobody's then, which is what a take should expect."""
        epoch = self._epoch(call, claim, off)
        answer = self.step(self._scripts[0].handover(keys(call), epoch, claim))
        if answer == [b"held"]:
            self._records[call] = (epoch, "")
        return answer

    def refresh(self, claim="aa", *, call=CALLS[0], off=0):
        run = self._scripts[0].refresh(keys(call), self._epoch(call, claim, off), claim)
        return self.step(run._replace(args=(*run.args[:-1], REFRESHED_MS)))

    def read(self, claim="aa", *, call=CALLS[0], off=0, after=""):
        """`after` is empty, or a message whose entry was accepted before."""
        entry = self._entry(call, after)
        return self.step(self._scripts[0].read(keys(call), self._epoch(call, claim, off), claim, entry))

    def rewrite(self, claim="aa", *, call=CALLS[0], off=0, total=0, entries=()):
        epoch = self._epoch(call, claim, off)
        return self.step(self._scripts[0].rewrite(keys(call), epoch, claim, total, list(entries)))

    def end(self, claim="aa", *, call=CALLS[0], off=0, why="client_hung_up", orphan=None):
        """`orphan` is how far off the caller believes the time to be when its owner last said that it has it."""
        tombstone = Tombstone(
            id=call, tenant="acme", node="n1", region="iad", started_at=0.5, ended_at=1.5, why=why, fault="client"
        )
        owned_at = self.held.get(keys(call).owned, {}).get(call.encode(), 0.0)
        owned_ms = "" if orphan is None else f"{owned_at + orphan:.0f}"
        epoch = self._epoch(call, claim, off)
        return self.step(self._scripts[0].end(keys(call), epoch, claim, tombstone, owned_ms=owned_ms))

    def publish(
        self,
        message="m1",
        *,
        call=CALLS[0],
        tenant="acme",
        node=0,
        before="",
        body=b"x",
        wants=False,
        again=False,
        told=None,
    ):
        """`told` is the end that the publisher knows of, from another server."""
        envelope = Envelope("item", message, call, NODES[node], 9.5, "", body * 20).pack()
        outgoing = outgoing_args(call, message, body.decode(), envelope, f"item_{message}", wants_response=wants)
        receipt = told and Receipt(
            id=message,
            call_id=call,
            item_id=f"item_{message}",
            status=Status(told),
            wants_response=wants,
            reached={"accepted": 1.5, told: 2.5},
            node="n9",
            region="lhr",
            error={"code": "c"} if told == "failed" else None,
            by={"accepted": ("n8", "iad"), told: ("n9", "lhr")},
        )
        run = self._scripts[node].publish(
            keys(call, tenant), tenant, outgoing, before.split(), again=again or bool(told), told=receipt
        )
        return self.step(run)

    def settle(
        self,
        status,
        message="m1",
        claim="aa",
        *,
        call=CALLS[0],
        off=0,
        wants=False,
        memory=None,
        keep=2,
        kept_ms=DAY_MS,
        behind=0.0,
    ):
        """`memory` is how far the position is from where the memory stands, and the entry."""
        status = Status(status)
        stands_at = int(self.held.get(keys(call).call, {}).get(b"memory_at", 0))
        verdict = Verdict(
            status,
            wants_response=wants,
            item_id=f"item_{message}",
            reached={status.value: self.micros / 10**6 - behind},
            error={"code": "it_failed"} if status is Status.FAILED else None,
            memory=MemoryEntry(stands_at + memory[0], memory[1]) if memory else None,
        )
        epoch = self._epoch(call, claim, off)
        run = self._scripts[0].settle(keys(call), epoch, claim, call, message, verdict, keep=keep)
        args = [*run.args]
        args[2 + 12] = kept_ms
        return self.step(run._replace(args=tuple(args)))

    def log(
        self,
        claim="aa",
        *,
        call=CALLS[0],
        off=0,
        events=1,
        body=b"x",
        at=None,
        kept=2,
        sound=False,
        facts=(),
        gone=(),
        late=0,
        are_all=False,
    ):
        """`at` is the number of the last event, or None for what follows the log; `kept` how many the log keeps; `late`
        how many flushes with facts overtook this one.
        """
        epoch = self._epoch(call, claim, off)
        held = self.held.get(keys(call).log, [])
        last = events + int(held[-1][0].split(b"-")[1]) if held else events
        last = last if at is None else at
        batch = Batch(epoch, last - events + 1, [(LogKind.EVENT, body)] * events) if events else None
        heard = Batch(epoch, last - events + 1, [(LogKind.AUDIO, b"s"), (LogKind.EVENT, body)]) if sound else None
        lowest = f"{epoch}-{max(0, last - kept + 1)}"
        noted = {**dict(facts), **dict.fromkeys(gone)}
        number = int(self.held.get(keys(call).call, {}).get(b"facts_at", 0)) + 1 - late if noted or are_all else 0
        what = {"batch": batch, "lowest": lowest, "sound": heard, "facts": noted, "number": max(0, number)}
        return self.step(self._scripts[0].log(keys(call), epoch, claim, **what, are_all=are_all))

    def watch(self, *, call=CALLS[0], tenant="acme", node=0, sound=False, after="", lease_ms=None):
        """`lease_ms` outlasts the test unless told otherwise."""
        run = self._scripts[node].watch(keys(call, tenant), tenant, sound=sound, after=after)
        args = [*run.args]
        args[2 + 2] = args[2 + 2] if lease_ms is None else lease_ms
        return self.step(run._replace(args=tuple(args)))

    def facts(self, *, call=CALLS[0], tenant="acme"):
        return self.step(self._scripts[0].facts(keys(call, tenant), tenant))

    def reserve(self, *, call=CALLS[0], tenant="acme", session=b""):
        return self.step(self._scripts[0].reserve(keys(call, tenant), tenant, 10**6, session))

    def lookup(self, message="", *, call=CALLS[0], tenant="acme", rings=False):
        return self.step(self._scripts[0].lookup(keys(call, tenant), tenant, message, rings=rings))

    def list(self, limit=10, *, tenant="acme", after=None):
        return self.step(self._scripts[0].list(tag_of(CALLS[0]), home_of(CALLS[0]) or "", tenant, limit, after))

    def orphans(self, *, late_ms=1000, limit=10):
        run = self._scripts[0].orphans(tag_of(CALLS[0]), home_of(CALLS[0]) or "")
        return self.step(run._replace(args=(*run.args[:-2], late_ms, limit)))

    def alive(self, node=0):
        return self.step(self._scripts[0].alive(NODES[node]))

    def beat(self, node=0, boot="boot-1", *, leaves=False):
        return self.step(self._scripts[node].beat(tag_of(NODES[node]), boot, leaves=leaves))

    # -- and the comparison

    def step(self, run: Run) -> Any:
        """One script on both sides. Returns the answer that they agree on."""
        run = run._replace(args=(*self.terms, *run.args[2:]))
        self._steps.append(run)
        now = self.micros // 10**6 + self.micros % 10**6 / 10**6
        answer, published, held = self._server.execute(run, self._model.run_id, micros=self.micros, kept=self._kept)
        assert not isinstance(answer, Exception), self._told(answer)
        modelled = self._model.execute(run, now)
        assert readable(modelled) == readable(answer), self._told("answer")
        assert shape(modelled) == shape(answer), self._told("types in the answer")
        assert readable(self._model.published) == readable(published), self._told("publications")
        self._model.published.clear()
        self.held = self._model.dump(now)
        real = {key: plain(*state) for key, state in zip(self._kept, held, strict=True) if state[0] != b"none"}
        assert readable(self.held) == readable({key: value for key, (value, _) in real.items()}), self._told("keys")
        lives = {key: self._model.expires_at(key) for key in real}
        assert {key: at and round((at - now) / 10**6) for key, at in lives.items()} == {
            key: ttl_ms and round(ttl_ms / 10**9) for key, (_, ttl_ms) in real.items()
        }, self._told("times to live")
        self.words.add((run.script, answer[0].decode()))
        return answer

    def _told(self, what: Any) -> str:
        return f"{what} after\n" + "\n".join(f"  {run.script} {run.args}" for run in self._steps)

    def _epoch(self, call: str, claim: str, off: int) -> int:
        return self._epochs.get((call, claim), 5) + off

    def _entry(self, call: str, message: str) -> str:
        receipt = self.held.get(keys(call).receipts, {}).get(message.encode())
        entry: str = msgpack.unpackb(receipt)["entry"] if receipt else ""
        return entry
