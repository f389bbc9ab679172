"""What one Redis process holds as far as the bus's scripts go: the scripts once more, in plain Python.

Deterministic: the clock comes in with every run, nothing is random, no I/O. tests/contract/test_scripts.py holds it
against real servers, so what a simulation proves of it is proven of `fanout/lua`. Each script is one method with the
name, the order and the variable names of its Lua file, to be read beside it; what `common.lua` shares is here shared.

A key's value is: hash, `dict[bytes, bytes]`; receipts, `dict[bytes, tuple[fields, packed]]`; stream, `_Stream`; list,
`list[bytes]`; sorted set, `dict[bytes, float]`; string, `bytes`. Receipts are never changed in place, so copies of a
model share them.
"""

import math
from typing import Any

import msgpack

from fanout.core.runs import Run

_VERSION = 1
_RANK = {
    b"accepted": 0,
    b"delivered": 1,
    b"applied": 2,
    b"answered": 3,
    b"failed": 3,
    b"expired": 3,
    b"rejected": 3,
}

_TOLD = ("status", "item_id", "error", "node", "region", "reached", "by")  # what a publisher knows of an end
_DONE = {b"applied": 1, b"answered": 2}

Answer = list[Any]
_Receipt = dict[str, Any]
# Strings of Lua are bytes here; this writes them as msgpack's strings, as cmsgpack does.
_pack = msgpack.Packer(use_bin_type=False, autoreset=True).pack


class RedisModel:
    """One Redis process.

    `run_id` is what the scripts know it by. `subscribers` says how many subscribe to a channel, for those that ask.
    `published` gathers (channel, payload) in order; whoever drives the model empties it.

    A replica is a copy that runs what the primary ran, with the primary's `run_id` and the same `now`, as far as
    replication came; promoted, it gets a run id of its own::

        replica = primary.copy(primary.run_id)  # and from here on a log of (run, now)
        for run, now in log[:replicated]:
            replica.execute(run, now)
        replica.run_id = "promoted"

    That is exact, since a script's effects depend on nothing but the state, the run, its time and the run id.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.subscribers: dict[str, int] = {}
        self.published: list[tuple[str, bytes]] = []
        self._keys: dict[str, Any] = {}
        self._expires: dict[str, int] = {}  # in ms since the epoch, as PEXPIRETIME
        self._now = 0.0
        self._now_ms = 0
        self._phase = b""
        self._phase_left = 0.0

    def execute(self, run: Run, now: float) -> Answer:
        """The script's answer as redis-py gives it (RESP2, undecoded); `now` is the server's clock in seconds."""
        keys = run.keys
        settling, rewriting, *args = [
            arg if type(arg) is bytes else arg.encode() if type(arg) is str else repr(arg).encode() for arg in run.args
        ]
        self._now, self._now_ms = now, math.floor(now * 1000)
        for key in keys:
            self._drop_expired(key)
        self._phase, self._phase_left = self._phase_of_server(keys[0], float(settling), float(rewriting))
        return _SCRIPTS[run.script](self, keys, args)

    def copy(self, run_id: str) -> "RedisModel":
        """An independent process with the same data; nothing published, nobody subscribed."""
        other = RedisModel(run_id)
        other._keys = {key: value if type(value) is bytes else value.copy() for key, value in self._keys.items()}
        other._expires = self._expires.copy()
        return other

    def dump(self, now: float) -> dict[str, Any]:
        """Every live key: a hash as a dict (receipts packed), a stream as (id, values of the fields…), a list, a
        sorted set as a dict of scores, a string as bytes."""
        self._now_ms = math.floor(now * 1000)
        for key in list(self._expires):
            self._drop_expired(key)
        return {key: _plain(value) for key, value in self._keys.items()}

    def expires_at(self, key: str) -> float | None:
        """When the key goes, in seconds since the epoch; None if it stays or isn't there."""
        at = self._expires.get(key)
        return None if at is None else at / 1000

    def delete(self, key: str) -> None:
        """DEL, which the scripts use and a test that takes something away."""
        self._keys.pop(key, None)
        self._expires.pop(key, None)

    # -- common.lua

    def _phase_of_server(self, generation: str, settling: float, rewriting: float) -> tuple[bytes, float]:
        held = self._keys.get(generation)
        age = self._now_ms - float(held[b"since"]) if held else 0.0
        run_id = self.run_id.encode()
        if not held or held[b"server"] != run_id or age < 0:
            self._keys[generation] = {b"server": run_id, b"since": b"%d" % self._now_ms}
            age = 0.0
        if age < settling:
            return b"settling", settling - age
        if age < settling + rewriting:
            return b"rewriting", settling + rewriting - age
        return b"normal", 0.0

    def _nothing_known(self) -> Answer:
        return [b"absent" if self._phase == b"normal" else b"unknown"]

    def _fence(self, keys: tuple[str, ...], epoch: bytes, claim: bytes) -> Answer:
        _, key, _, _, tombstone, *_ = keys
        ended = self._keys.get(tombstone)
        if ended:
            return [b"ended", ended[b"record"]]
        held = self._keys.get(key) or {}
        if held.get(b"claim") == claim and held[b"epoch"] == epoch:
            return [b"held"]
        if b"epoch" in held and _is_above(held[b"epoch"], held[b"claim"], float(epoch), claim):
            return [b"fenced", held[b"epoch"]]
        return [b"behind"]

    def _give_up(self, key: str) -> None:
        self._keys[key].update({b"claim": b"", b"state": b"moving", b"moved_at": b"%d" % self._now_ms})

    def _interest(self, watchers: str) -> tuple[int, int]:
        events_until = sound_until = self._now_ms
        for node, lease in list(self._keys.get(watchers, {}).items()):
            events, sound = map(int, lease.split())
            if events <= self._now_ms:
                del self._keys[watchers][node]
            events_until, sound_until = max(events_until, events), max(sound_until, sound)
        self._delete_empty(watchers)
        return events_until - self._now_ms, sound_until - self._now_ms

    def _save(self, receipts: str, call_id: bytes, message_id: bytes, receipt: _Receipt, ttl_ms: bytes) -> None:
        packed = _pack(receipt)
        self._keys.setdefault(receipts, {})[message_id] = (receipt, packed)
        self._expire(receipts, ttl_ms)
        for channel in receipt["tell"]:
            envelope = (_VERSION, b"receipt", message_id, call_id, receipt["node"], 0, b"", packed)
            self.published.append((channel.decode(), _pack(envelope)))

    # -- the scripts

    def _alive(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        boot = self._keys.get(keys[1])
        return [b"gone"] if boot is None else [b"alive", boot]

    def _beat(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key = keys
        boot, ttl_ms, channel, message = args
        if ttl_ms == b"0":
            if self._keys.get(key) == boot:
                self.delete(key)
        else:
            self._keys[key] = boot
            self._expire(key, ttl_ms)
            self.published.append((channel.decode(), message))
        return [b"ok", b"%.6f" % self._now, self._phase]

    def _claim(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, inbox, receipts, tombstone, memory, settled, index, bell, log, facts, watchers, _, _, owned = keys
        mode, claim, restored, replaced_epoch, replaced_claim, latest, call_id, tenant, state, record, start, ttl = args
        ended = self._keys.get(tombstone)
        if ended:
            return [b"ended", ended[b"record"]] if ended[b"tenant"] == tenant else self._nothing_known()
        held = dict(self._keys.get(key) or {})
        if held.get(b"tenant", tenant) != tenant:
            return self._nothing_known() if mode == b"take" else [b"fenced", held.get(b"epoch", b"0")]

        if held.get(b"claim") == claim:
            epoch = float(held[b"epoch"])
        elif self._now_ms > float(latest):
            return [b"late", b"%d" % self._now_ms]
        elif mode == b"restore":
            epoch = float(restored)
            if b"epoch" in held and _is_above(held[b"epoch"], held[b"claim"], epoch, claim):
                return [b"fenced", held[b"epoch"]]
        elif mode == b"fresh":
            if b"epoch" in held:
                return [b"fenced", held[b"epoch"]]
            epoch = self._now_ms
        else:
            if self._phase != b"normal":
                return [b"settling", int(self._phase_left)]
            if b"epoch" not in held:
                return [b"absent"]
            if held[b"epoch"] != replaced_epoch or held[b"claim"] != replaced_claim:
                return [b"changed", held[b"epoch"], held[b"claim"]]
            epoch = max(self._now_ms, float(held[b"epoch"]) + 1)
        digits = b"%.0f" % epoch
        self._keys.setdefault(key, {}).update(
            {b"epoch": digits, b"claim": claim, b"tenant": tenant, b"state": state, b"record": record}
        )
        for gone in (b"session", b"moved_at", *([b"facts_at"] if held.get(b"claim") != claim else [])):
            self._keys[key].pop(gone, None)
        self._keys.setdefault(index, {})[call_id] = float(start)
        self._keys.setdefault(owned, {})[call_id] = float(self._now_ms)
        for living in (key, inbox, receipts, memory, settled, index, log, facts, owned):
            self._expire(living, ttl)
        interest = self._interest(watchers)
        if mode != b"take":
            return [b"held", digits, *interest]
        self.published.append((bell, _pack((_VERSION, b"", b"", b"", b"", b""))))
        memory_at = self._keys[key].get(b"memory_at", b"0")
        known = [part for fact in self._keys.get(facts, {}).items() for part in fact]
        return [b"held", digits, *interest, memory_at, list(self._keys.get(memory, ())), known]

    def _end(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, inbox, receipts, tombstone, memory, settled, index, _, log, facts, watchers, feed, sound, owned = keys
        epoch, claim, call_id, tenant, record, error, node, region, ttl_ms, owned_ms = args
        answer = self._fence(keys, epoch, claim)
        if answer == [b"ended", record]:
            return [b"held"]
        if owned_ms:
            if answer[0] == b"ended":
                return answer
            if answer[0] != b"held" or b"%.0f" % self._keys.get(owned, {}).get(call_id, 0.0) != owned_ms:
                return [b"changed"]
            if self._phase != b"normal":
                return [b"settling", int(self._phase_left)]
        elif answer[0] == b"ended" or (answer[0] == b"fenced" and self._keys[key][b"claim"] != claim):
            return answer
        if self._phase == b"settling":
            return [b"settling", int(self._phase_left)]

        for _, message_id, _ in self._entries(inbox):
            known = self._keys.get(receipts, {}).get(message_id)
            if known and not _is_terminal(known[0]):
                reached = {**known[0]["reached"], b"failed": self._now}
                by = {**known[0]["by"], b"failed": (node, region)}
                failed = {"status": b"failed", "error": error, "node": node, "region": region, "reached": reached}
                failed["by"] = by
                self._save(receipts, call_id, message_id, {**known[0], **failed}, ttl_ms)
        for gone in (key, inbox, memory, watchers):
            self.delete(gone)
        for calls in (index, owned):
            self._keys.get(calls, {}).pop(call_id, None)
            self._delete_empty(calls)
        self._keys[tombstone] = {b"tenant": tenant, b"record": record}
        for kept in (tombstone, receipts, settled, log, facts):
            self._expire(kept, ttl_ms)
        for channel in (feed, sound):
            self.published.append((channel, _pack((_VERSION, b"ended", record))))
        return [b"held"]

    def _facts(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, _, _, tombstone, _, _, _, _, _, facts, *_ = keys
        (tenant,) = args
        call, ended = self._keys.get(key) or {}, self._keys.get(tombstone) or {}
        if ended.get(b"tenant", call.get(b"tenant")) != tenant:
            return self._nothing_known()
        known = [part for fact in self._keys.get(facts, {}).items() for part in fact]
        return [b"ended" if ended else b"live" if b"epoch" in call else b"reserved", *known]

    def _handover(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, *_ = keys
        epoch, claim = args
        answer = self._fence(keys, epoch, claim)
        held = self._keys.get(key) or {}
        if answer[0] == b"behind" and held.get(b"epoch") == epoch and b"moved_at" in held:
            return [b"held"]
        if answer[0] != b"held":
            return answer
        if self._phase == b"settling":
            return [b"settling", int(self._phase_left)]
        self._give_up(key)
        return [b"held"]

    def _list(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, index = keys
        stem, most, start, after = args[0].decode(), int(args[1]), args[2], args[3]
        calls: dict[bytes, float] = self._keys.get(index, {})
        found: list[Answer] = []
        # The Lua file looks at whole pages of a hundred, so it removes what is gone past the last call that it returns.
        looked_at = 0
        for call_id, at in sorted(calls.items(), key=lambda item: (item[1], item[0]), reverse=True):
            if start and at > float(start):
                continue
            if looked_at % 100 == 0 and len(found) >= most:
                break
            looked_at += 1
            if start and at == float(start) and call_id >= after:
                continue
            key = stem + call_id.decode()
            self._drop_expired(key)
            call = self._keys.get(key, {})
            if b"epoch" not in call:
                del calls[call_id]
            elif len(found) < most:
                found.append([call_id, call[b"epoch"], call[b"claim"], call[b"state"], call[b"record"]])
        self._delete_empty(index)
        return [b"found", *found]

    def _log(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, _, _, _, _, _, _, _, log, facts, watchers, feed, sound, _ = keys
        epoch, claim, ttl_ms, entry, batch, lowest, sounding, number, are_all, count, *noted = args
        answer = self._fence(keys, epoch, claim)
        if answer[0] != b"held":
            return answer
        if entry:
            stream: _Stream = self._keys.get(log) or _Stream()
            if not stream.entries or _place(entry) > _place(next(reversed(stream.entries))):
                stream.put(entry, (batch,))
                stream.drop_below(lowest)
                self._keys[log] = stream
                self._expire(log, ttl_ms)
            self.published.append((feed, batch))
        if sounding:
            self.published.append((sound, sounding))
        deleted = 2 * int(count)
        if int(number) > int(self._keys[key].get(b"facts_at", b"0")):
            if are_all == b"1":
                self.delete(facts)
            held = self._keys.setdefault(facts, {})
            held.update(zip(noted[0:deleted:2], noted[1:deleted:2], strict=True))
            for name in noted[deleted:]:
                held.pop(name, None)
            self._delete_empty(facts)
            self._expire(facts, ttl_ms)
            self._keys[key][b"facts_at"] = number
        return [b"held", *self._interest(watchers)]

    def _lookup(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, _, receipts, tombstone, *_ = keys
        bell = keys[8]
        tenant, message_id, rings = args
        call, ended = self._keys.get(key) or {}, self._keys.get(tombstone) or {}
        if ended.get(b"tenant", call.get(b"tenant")) != tenant:
            return self._nothing_known()
        known = self._keys.get(receipts, {}).get(message_id) if message_id else None
        receipt = known[1] if known else b""
        if ended:
            return [b"ended", receipt, ended[b"record"]]
        if b"epoch" not in call:
            return [b"reserved", receipt, call.get(b"session", b"")]
        if rings == b"1":
            self.published.append((bell, _pack((_VERSION, b"", b"", b"", b"", b""))))
        return [b"live", receipt, call[b"epoch"], call[b"claim"], call[b"state"], call[b"record"]]

    def _orphans(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, owned = keys
        stem, late_ms, most = args[0].decode(), int(args[1]), int(args[2])
        if self._phase != b"normal":
            return [b"settling", int(self._phase_left)]
        calls: dict[bytes, float] = self._keys.get(owned, {})
        late = [at for at in sorted((at, name) for name, at in calls.items()) if at[0] <= self._now_ms - late_ms]
        found: list[Answer] = []
        for at, call_id in late[:most]:
            key = stem + call_id.decode()
            self._drop_expired(key)
            call = self._keys.get(key, {})
            if b"epoch" not in call:
                del calls[call_id]
                continue
            moved_at = call.get(b"moved_at")
            moved_for = self._now_ms - int(moved_at) if moved_at else -1
            found.append([b"%d" % at, call[b"epoch"], call[b"claim"], call[b"state"], call[b"record"], moved_for])
        self._delete_empty(owned)
        return [b"found", *found]

    def _publish(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, inbox, receipts, tombstone, _, settled, _, bell, *_ = keys
        call_id, tenant, message_id, before, fingerprint, envelope, item_id, wants, node, region = args[:10]
        channel, most_entries, most_bytes, ttl_ms, was_accepted, error, kept_ms, packed_told = args[10:]
        call, ended = self._keys.get(key) or {}, self._keys.get(tombstone) or {}
        if call.get(b"tenant", ended.get(b"tenant")) != tenant:
            return self._nothing_known()

        def answer() -> Answer:
            return [b"receipt", self._keys[receipts][message_id][1]]

        def fail(receipt: _Receipt) -> None:
            receipt = {**receipt, "status": b"failed", "error": error, "node": node, "region": region}
            receipt["reached"] = {**receipt["reached"], b"failed": self._now}
            receipt["by"] = {**receipt["by"], b"failed": (node, region)}
            self._save(receipts, call_id, message_id, receipt, kept_ms)

        told = _unpack_told(packed_told) if packed_told else None
        known = self._keys.get(receipts, {}).get(message_id)
        if known:
            receipt, packed = known
            if receipt["fingerprint"] not in (b"", fingerprint):
                return [b"conflict"]
            if channel not in receipt["tell"]:
                receipt = {**receipt, "tell": [*receipt["tell"], channel]}
                self._keys[receipts][message_id] = (receipt, _pack(receipt))
            if told and not _is_terminal(receipt):
                taken = {field: told[field] for field in _TOLD}
                self._save(receipts, call_id, message_id, {**receipt, **taken}, kept_ms if ended else ttl_ms)
                if told["status"] not in _DONE:
                    self._trim(key, inbox, receipt)
            elif ended and self._phase == b"normal" and not _is_terminal(receipt):
                fail(receipt)
            receipt, _ = self._keys[receipts][message_id]
            if not _is_terminal(receipt):
                self.published.append((bell, _pack((_VERSION, receipt["entry"], message_id, b"", b"", b""))))
            return answer()

        new = {"status": b"accepted", "wants_response": wants == b"1", "item_id": item_id, "error": b""}
        receipt = {**(told or new), "fingerprint": fingerprint, "entry": b"", "size": 0, "tell": [channel]}
        if ended:
            if was_accepted == b"0":
                return [b"ended", ended[b"record"]]
            if told:
                self._save(receipts, call_id, message_id, receipt, kept_ms)
                return answer()
            if self._phase != b"normal":
                return [b"unknown"]
            fail({**receipt, "reached": {}, "by": {}})
            return answer()
        if call.get(b"state") == b"reserved":
            return [b"reserved"]
        if told and told["status"] not in _DONE:
            self._save(receipts, call_id, message_id, receipt, ttl_ms)
            self._note_end(settled, receipts, message_id, kept_ms, ttl_ms)
            return answer()
        if any(earlier not in self._keys.get(receipts, {}) for earlier in before.split()):
            return [b"behind"]
        size, held_bytes = len(envelope), int(call.get(b"inbox_bytes", b"0"))
        stream: _Stream = self._keys.get(inbox) or _Stream()
        if len(stream.entries) >= int(most_entries) or held_bytes + size > int(most_bytes):
            return [b"full"]

        self._keys[inbox] = stream
        entry = stream.add(self._now_ms, message_id, envelope)
        self._expire(inbox, ttl_ms)
        last = call.get(b"last_entry", b""), call.get(b"last_message", b"")
        call[b"last_entry"], call[b"last_message"] = entry, message_id
        call[b"inbox_bytes"] = b"%d" % (held_bytes + size)
        receipt |= {"entry": entry, "size": size}
        if told:
            self._note_end(settled, receipts, message_id, kept_ms, ttl_ms)
        else:
            receipt |= {"node": node, "region": region}
            receipt |= {"reached": {b"accepted": self._now}, "by": {b"accepted": (node, region)}}
        self._keys.setdefault(receipts, {})[message_id] = (receipt, _pack(receipt))
        self._expire(receipts, ttl_ms)
        self.published.append((bell, _pack((_VERSION, entry, message_id, *last, b"" if told else envelope))))
        return answer()

    def _read(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, inbox, receipts, *_ = keys
        epoch, claim, after, most, most_bytes = args
        answer = self._fence(keys, epoch, claim)
        if answer[0] != b"held":
            return answer
        call, entries, size = self._keys[key], [], 0
        more = 0
        for entry, message_id, envelope in self._entries(inbox, after):
            if len(entries) >= int(most) or size >= int(most_bytes):
                more = 1
                break
            size += len(envelope)
            known = self._keys.get(receipts, {}).get(message_id)
            how_far = _DONE.get(known[0]["status"], 0) if known else 0
            entries.append([entry, message_id, envelope, how_far])
        return [b"held", call.get(b"last_entry", b""), call.get(b"last_message", b""), more, entries]

    def _refresh(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, inbox, receipts, _, memory, settled, index, bell, log, facts, watchers, _, _, owned = keys
        epoch, claim, call_id, ttl_ms = args
        answer = self._fence(keys, epoch, claim)
        if answer[0] != b"held":
            return answer
        self._keys.setdefault(owned, {})[call_id] = float(self._now_ms)
        for living in (key, inbox, receipts, memory, settled, index, log, facts, owned):
            self._expire(living, ttl_ms)
        call, heard_by = self._keys[key], self.subscribers.get(bell, 0)
        last = call.get(b"last_entry", b""), call.get(b"last_message", b"")
        return [b"held", *last, heard_by, *self._interest(watchers)]

    def _release(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, *_ = keys
        held = self._keys.get(key) or {}
        (claim,) = args
        if held.get(b"claim") != claim:
            return [b"other"]
        self._give_up(key)
        return [b"released", held[b"epoch"]]

    def _reserve(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, _, _, tombstone, *_ = keys
        tenant, ttl_ms, session = args
        held = self._keys.get(key)
        if tombstone in self._keys:
            return [b"taken"]
        if held and (held.get(b"tenant"), held.get(b"state")) != (tenant, b"reserved"):
            return [b"taken"]
        self._keys.setdefault(key, {}).update({b"tenant": tenant, b"state": b"reserved", b"session": session})
        self._expire(key, ttl_ms)
        return [b"reserved"]

    def _rewrite(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, _, _, _, memory, *_ = keys
        epoch, claim, ttl_ms, memory_at, *entries = args
        answer = self._fence(keys, epoch, claim)
        if answer[0] != b"held":
            return answer
        if self._phase == b"settling":
            return [b"settling", int(self._phase_left)]
        self.delete(memory)
        if entries:
            self._keys[memory] = entries
        self._expire(memory, ttl_ms)
        self._keys[key][b"memory_at"] = memory_at
        return [b"held"]

    def _settle(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, inbox, receipts, _, memory, settled, *_ = keys
        epoch, claim, call_id, message_id, status, reached, item_id, error, wants, node, region, ttl_ms = args[:12]
        kept_ms, memory_entry, memory_position, memory_kept = args[12:]
        answer = self._fence(keys, epoch, claim)
        if answer[0] != b"held":
            return answer
        if self._phase == b"settling" and status != b"delivered":
            return [b"settling", int(self._phase_left)]

        call = self._keys[key]
        if memory_entry:
            position, stands_at = int(memory_position), int(call.get(b"memory_at", b"0"))
            remembered: list[bytes] = self._keys.setdefault(memory, [])
            if stands_at == position:
                remembered.append(memory_entry)
                del remembered[: max(0, len(remembered) - int(memory_kept))]
                self._expire(memory, ttl_ms)
                call[b"memory_at"] = b"%d" % (position + 1)
            elif stands_at != position + 1 or remembered[-1:] != [memory_entry]:
                self._delete_empty(memory)
                return [b"rewrite"]
            self._delete_empty(memory)

        known = self._keys.get(receipts, {}).get(message_id)
        if known:
            receipt = known[0]
            if _is_terminal(receipt) or _RANK[receipt["status"]] >= _RANK[status]:
                if _is_terminal(receipt):
                    self._trim(key, inbox, receipt)
                return [b"held"]
        else:
            lost = {"wants_response": wants == b"1", "fingerprint": b"", "reached": {}, "by": {}}
            receipt = {**lost, "status": status, "entry": b"", "size": 0, "tell": []}
            if not _is_terminal(receipt):
                return [b"held"]

        floor = receipt["reached"].get(b"accepted", 0)
        steps = {step: max(at, floor) for step, at in msgpack.unpackb(reached, raw=True).items()}
        receipt = {**receipt, "status": status, "item_id": item_id, "error": error, "node": node, "region": region}
        receipt["by"] = {**dict.fromkeys(steps, (node, region)), **receipt["by"]}
        receipt["reached"] = {**steps, **receipt["reached"]}
        self._save(receipts, call_id, message_id, receipt, ttl_ms)
        if _is_terminal(receipt):
            self._trim(key, inbox, receipt)
            self._note_end(settled, receipts, message_id, kept_ms, ttl_ms)
        return [b"held"]

    def _watch(self, keys: tuple[str, ...], args: list[bytes]) -> Answer:
        _, key, _, _, tombstone, _, _, _, bell, log, facts, watchers, *_ = keys
        tenant, node, lease_ms, wants_sound, after, most, most_bytes = args
        call, ended = self._keys.get(key) or {}, self._keys.get(tombstone) or {}
        if ended.get(b"tenant", call.get(b"tenant")) != tenant:
            return self._nothing_known()
        stream: _Stream = self._keys.get(log) or _Stream()
        first, last = next(iter(stream.entries), b""), next(reversed(stream.entries), b"")
        if ended:
            answer = [b"ended", ended[b"record"], first, last, b""]
        else:
            held = self._keys.setdefault(watchers, {})
            until = b"%d" % (self._now_ms + int(lease_ms))
            sound_until = until if wants_sound == b"1" else held.get(node, b"0 0").split()[1]
            held[node] = until + b" " + sound_until
            events_left, sound_left = self._interest(watchers)
            self._expire(watchers, b"%d" % events_left)
            self.published.append((bell, _pack((_VERSION, b"watch", events_left, sound_left))))
            session = self._keys.get(facts, {}).get(b"session", b"")
            state = b"live" if b"epoch" in call else b"reserved"
            answer = [state, first, last, session, call.get(b"record", b"")]
        size = 0
        for _, batch in self._entries(log, after)[: int(most)] if after else ():
            if size >= int(most_bytes):
                break
            size += len(batch)
            answer.append(batch)
        return answer

    def _trim(self, key: str, inbox: str, receipt: _Receipt) -> None:
        stream: _Stream | None = self._keys.get(inbox)
        if stream and receipt["entry"] and stream.entries.pop(receipt["entry"], None):
            call = self._keys.setdefault(key, {})
            call[b"inbox_bytes"] = b"%d" % max(0, int(call.get(b"inbox_bytes", b"0")) - receipt["size"])

    def _note_end(self, settled: str, receipts: str, message_id: bytes, kept_ms: bytes, ttl_ms: bytes) -> None:
        held = self._keys.setdefault(settled, [])
        held.append(b"%d %b" % (self._now_ms, message_id))
        self._expire(settled, ttl_ms)
        for _ in range(4):
            at, _, old_id = (held[0] if held else b"").partition(b" ")
            if not at or int(at) > self._now_ms - int(kept_ms):
                break
            del held[0]
            self._keys.get(receipts, {}).pop(old_id, None)
        self._delete_empty(settled)
        self._delete_empty(receipts)

    # -- what Redis does

    def _entries(self, key: str, after: bytes = b"") -> list[tuple[bytes, ...]]:
        stream: _Stream | None = self._keys.get(key)
        return stream.after(after) if stream else []

    def _expire(self, key: str, ttl_ms: bytes) -> None:
        if key in self._keys:
            ttl = int(ttl_ms)
            if ttl > 0:
                self._expires[key] = self._now_ms + ttl
            else:
                self.delete(key)

    def _drop_expired(self, key: str) -> None:
        at = self._expires.get(key)
        if at is not None and at < self._now_ms:
            self.delete(key)

    def _delete_empty(self, key: str) -> None:
        if key in self._keys and not self._keys[key]:
            self.delete(key)


class _Stream:
    """Entries by id, oldest first. It stays when it is empty: its last id is not to come again."""

    __slots__ = ("_last", "entries")

    def __init__(self) -> None:
        self.entries: dict[bytes, tuple[bytes, ...]] = {}
        self._last = (0, 0)

    def add(self, now_ms: int, message_id: bytes, envelope: bytes) -> bytes:
        """Append under a server-time id."""
        ms, count = self._last
        self._last = (now_ms, 0) if now_ms > ms else (ms, count + 1)
        entry = b"%d-%d" % self._last
        self.entries[entry] = (message_id, envelope)
        return entry

    def put(self, entry: bytes, fields: tuple[bytes, ...]) -> None:
        """Append under an id of the caller's, which is above the last."""
        self._last = _place(entry)
        self.entries[entry] = fields

    def drop_below(self, lowest: bytes) -> None:
        """Forget what came before this id."""
        for entry in list(self.entries):
            if _place(entry) >= _place(lowest):
                break
            del self.entries[entry]

    def after(self, entry: bytes) -> list[tuple[bytes, ...]]:
        """What was added after this one, which may be gone itself; all for an empty id."""
        seen = _place(entry) if entry else (-1, 0)
        return [(at, *fields) for at, fields in self.entries.items() if _place(at) > seen]

    def copy(self) -> "_Stream":
        """Independent of this one."""
        other = _Stream()
        other.entries, other._last = self.entries.copy(), self._last
        return other


def _place(entry: bytes) -> tuple[int, int]:
    ms, _, count = entry.partition(b"-")
    return int(ms), int(count)


def _is_above(epoch: bytes, claim: bytes, other_epoch: float, other_claim: bytes) -> bool:
    return (float(epoch), claim) > (other_epoch, other_claim)


def _unpack_told(packed: bytes) -> _Receipt:
    """A receipt as its publisher has it: names as everywhere here, and who said so as the scripts keep it."""
    told = {name.decode(): value for name, value in msgpack.unpackb(packed, raw=True).items()}
    return {**told, "by": {step: tuple(who) for step, who in told["by"].items()}}


def _is_terminal(receipt: _Receipt) -> bool:
    status = receipt["status"]
    return _RANK[status] == 3 or (status == b"applied" and not receipt["wants_response"])


def _plain(value: Any) -> Any:
    if isinstance(value, _Stream):
        return value.after(b"")
    if isinstance(value, dict):
        return {name: field[1] if isinstance(field, tuple) else field for name, field in value.items()}
    return list(value) if isinstance(value, list) else value


_SCRIPTS = {
    "alive": RedisModel._alive,
    "beat": RedisModel._beat,
    "claim": RedisModel._claim,
    "end": RedisModel._end,
    "facts": RedisModel._facts,
    "handover": RedisModel._handover,
    "list": RedisModel._list,
    "log": RedisModel._log,
    "lookup": RedisModel._lookup,
    "orphans": RedisModel._orphans,
    "publish": RedisModel._publish,
    "read": RedisModel._read,
    "refresh": RedisModel._refresh,
    "release": RedisModel._release,
    "reserve": RedisModel._reserve,
    "rewrite": RedisModel._rewrite,
    "settle": RedisModel._settle,
    "watch": RedisModel._watch,
}
