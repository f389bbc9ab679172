"""Calls of the scripts in fanout/lua, each with keys and arguments in the order that its Lua file states. Pure."""

from collections.abc import Mapping, Sequence

from fanout.core.envelope import Batch, Envelope
from fanout.core.keys import CallKeys, Keys
from fanout.core.partitions import tag_of
from fanout.core.records import pack_call, pack_error, pack_reached, pack_receipt, pack_tombstone
from fanout.core.runs import Arg, Run
from fanout.core.seals import CLEAR, Seals
from fanout.core.verdicts import Verdict
from fanout.messages import CallRecord, Receipt, Tombstone
from fanout.settings import BusSettings

CALL_ENDED = {"code": "call_ended", "message": "The call ended before the message was done."}


class Scripts:
    """One node's calls of the scripts: what its settings say is filled in, and facts are sealed.

    What comes back is as Redis keeps it: `seals` open it.
    """

    def __init__(self, settings: BusSettings, seals: Seals = CLEAR) -> None:
        self.settings = settings
        self.seals = seals
        self.keys = Keys(settings.prefix)
        self._terms = (int(settings.settling_seconds * 1000), int(settings.rewrite_seconds * 1000))
        self._ttl_ms = int(settings.call_ttl_seconds * 1000)
        self._kept_ms = int(settings.tombstone_seconds * 1000)

    # -- publishing

    def publish(
        self,
        keys: CallKeys,
        tenant: str,
        outgoing: tuple[Arg, ...],
        before: Sequence[str],
        *,
        again: bool,
        told: Receipt | None = None,
    ) -> Run:
        """Put a message in, or ring again for it; `outgoing` is from `outgoing_args`, `told` the end it had."""
        call_id, message_id, *rest = outgoing
        node, settings = self.settings.node, self.settings
        return self._run(
            "publish",
            keys,
            (
                *(call_id, tenant, message_id, "\n".join(before)),
                *rest,
                *(node, settings.region, self.keys.node_channel(keys.tag, node)),
                *(settings.inbox_max, settings.inbox_max_bytes, self._ttl_ms),
                *(int(again), pack_error(CALL_ENDED), self._kept_ms),
                pack_receipt(told) if told else "",
            ),
        )

    # -- owning

    def claim(
        self,
        keys: CallKeys,
        mode: str,
        claim: str,
        record: CallRecord,
        *,
        epoch: int = 0,
        expected: tuple[int, str] = (0, ""),
        latest_ms: int,
    ) -> Run:
        """Write the call's record: fresh, restore or take."""
        return self._run(
            "claim",
            keys,
            (
                *(mode, claim, epoch, *expected, latest_ms),
                *(record.id, record.tenant, record.state, pack_call(record), record.started_at, self._ttl_ms),
            ),
        )

    def release(self, keys: CallKeys, claim: str) -> Run:
        """Undo a take-over whose answer was lost."""
        return self._run("release", keys, (claim,))

    def handover(self, keys: CallKeys, epoch: int, claim: str) -> Run:
        """Give the call up for who takes it over."""
        return self._run("handover", keys, (epoch, claim))

    def refresh(self, keys: CallKeys, epoch: int, claim: str) -> Run:
        """Is the call still ours, and what did its inbox have last; its keys live on."""
        return self._run("refresh", keys, (epoch, claim, keys.id, self._ttl_ms))

    def read(self, keys: CallKeys, epoch: int, claim: str, after: str) -> Run:
        """A part of the inbox."""
        return self._run("read", keys, (epoch, claim, after, self.settings.read_max, self.settings.read_max_bytes))

    def settle(
        self, keys: CallKeys, epoch: int, claim: str, call_id: str, message_id: str, verdict: Verdict, *, keep: int
    ) -> Run:
        """Write a verdict, with what the call is to remember of it, and tell the publishers."""
        memory = verdict.memory
        return self._run(
            "settle",
            keys,
            (
                *(epoch, claim, call_id, message_id, verdict.status.value, pack_reached(verdict.reached)),
                *(verdict.item_id, pack_error(verdict.error), int(verdict.wants_response)),
                *(self.settings.node, self.settings.region, self._ttl_ms, self._kept_ms),
                *((memory.packed, memory.position) if memory else ("", 0)),
                keep,
            ),
        )

    def rewrite(self, keys: CallKeys, epoch: int, claim: str, total: int, entries: list[bytes]) -> Run:
        """Write the whole memory."""
        return self._run("rewrite", keys, (epoch, claim, self._ttl_ms, total, *entries))

    def end(self, keys: CallKeys, epoch: int, claim: str, tombstone: Tombstone, *, owned_ms: str = "") -> Run:
        """Tombstone, terminal receipts, and the living keys go. `owned_ms`: of an orphan, as `orphans` found it."""
        packed, error = pack_tombstone(tombstone), pack_error(CALL_ENDED)
        settings = self.settings
        return self._run(
            "end",
            keys,
            (
                epoch,
                claim,
                tombstone.id,
                tombstone.tenant,
                packed,
                error,
                settings.node,
                settings.region,
                self._kept_ms,
                owned_ms,
            ),
        )

    def log(
        self,
        keys: CallKeys,
        epoch: int,
        claim: str,
        *,
        batch: Batch | None,
        lowest: str,
        sound: Batch | None,
        facts: Mapping[str, bytes | None],
        number: int = 0,
        are_all: bool = False,
    ) -> Run:
        """Write a batch of the log, its sound, and facts; `lowest` is the oldest position to keep, a fact None goes.

        `number` counts the flushes with facts from 1; `are_all` says that there are no other facts.
        """
        seal = self.seals.of(keys.id)
        kept = [(name, seal.seal(name, value)) for name, value in facts.items() if value is not None]
        return self._run(
            "log",
            keys,
            (
                *(epoch, claim, self._ttl_ms),
                *((batch.id, batch.pack(), lowest) if batch else ("", "", "")),
                sound.pack() if sound else "",
                *(number, int(are_all), len(kept)),
                *(part for fact in kept for part in fact),
                *(name for name, value in facts.items() if value is None),
            ),
        )

    # -- watching

    def watch(self, keys: CallKeys, tenant: str, *, sound: bool, after: str = "") -> Run:
        """Say that this node watches, for `lease_seconds`; read the log after a position, which must be one."""
        settings = self.settings
        lease_ms = int(settings.lease_seconds * 1000)
        args = (tenant, settings.node, lease_ms, int(sound), after, settings.watch_read_max, settings.read_max_bytes)
        return self._run("watch", keys, args)

    def facts(self, keys: CallKeys, tenant: str) -> Run:
        """What is known of a call."""
        return self._run("facts", keys, (tenant,))

    # -- looking

    def reserve(self, keys: CallKeys, tenant: str, seconds: float, session: bytes = b"") -> Run:
        """Hold a call id, and something for the client that it is held for."""
        return self._run("reserve", keys, (tenant, int(seconds * 1000), session))

    def lookup(self, keys: CallKeys, tenant: str, message_id: str = "", *, rings: bool = False) -> Run:
        """A call, and one of its messages; `rings`: have its owner write what it has not written yet."""
        return self._run("lookup", keys, (tenant, message_id, int(rings)))

    def list(self, tag: str, home: str, tenant: str, limit: int, after: tuple[float, str] | None) -> Run:
        """A tenant's calls in one partition, newest first; `after` is start and id of the last one known."""
        start, call_id = (repr(after[0]), after[1]) if after else ("", "")
        keys = (self.keys.generation(tag), self.keys.index(tag, home, tenant))
        return Run("list", tag, keys, (*self._terms, self.keys.call_stem(tag), limit, start, call_id))

    def orphans(self, tag: str, home: str) -> Run:
        """Calls of one partition whose owner hasn't said for a while that it has them."""
        settings = self.settings
        late_ms = int((settings.sweep_seconds + settings.margin_seconds) * 1000)
        keys = (self.keys.generation(tag), self.keys.owned(tag, home))
        return Run("orphans", tag, keys, (*self._terms, self.keys.call_stem(tag), late_ms, settings.orphans_max))

    def alive(self, node: str) -> Run:
        """Which boot of a node has a heartbeat."""
        tag = tag_of(node)
        return Run("alive", tag, (self.keys.generation(tag), self.keys.node_alive(tag, node)), self._terms)

    def introduce(self, tag: str) -> Run:
        """Let a partition note which server it is on; the least that a script can be asked."""
        return Run(
            "alive", tag, (self.keys.generation(tag), self.keys.node_alive(tag, self.settings.node)), self._terms
        )

    def beat(self, tag: str, boot: str, number: int = 0, *, leaves: bool = False) -> Run:
        """This node lives, or leaves; `number` tells the heartbeats apart when they come back."""
        node = self.settings.node
        ttl_ms = 0 if leaves else int(self.settings.node_ttl_seconds * 1000)
        beat = Envelope("heartbeat", str(number), "", node, 0.0, "", b"").pack()
        keys = (self.keys.generation(tag), self.keys.node_alive(tag, node))
        return Run("beat", tag, keys, (*self._terms, boot, ttl_ms, self.keys.node_channel(tag, node), beat))

    def _run(self, script: str, keys: CallKeys, args: tuple[Arg, ...]) -> Run:
        return Run(script, keys.tag, keys.all, (*self._terms, *args))


def outgoing_args(
    call_id: str, message_id: str, fingerprint: str, envelope: bytes, item_id: str, *, wants_response: bool
) -> tuple[Arg, ...]:
    """What of a message the publish script is told."""
    return (call_id, message_id, fingerprint, envelope, item_id, int(wants_response))
