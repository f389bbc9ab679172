"""One call as its owner holds it: what to ask of Redis next, and what its answers mean. Pure.

A caller asks for `steps`, carries them out in order, and gives the answers back, all or none of which may have come.
`now` is any steady clock, `wall` is seconds since the epoch.
Only a claim that Redis shows to be above ours, or a tombstone, makes an owner yield; a Redis that is away, empty or
behind never does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from fanout.core.envelope import Ring
from fanout.core.inbox import Entry, Inbox, InboxCounts, Position, ReadTicket
from fanout.core.keys import CallKeys
from fanout.core.memory import Memory
from fanout.core.phases import AGAIN, KEPT_ONLY, LIVE, MOVING, WRITES, Expected, Phase, Step
from fanout.core.records import tombstone_from_stored
from fanout.core.runs import Run
from fanout.core.scripts import CALL_ENDED, Scripts
from fanout.core.verdicts import Verdict
from fanout.errors import RegionUnreachable
from fanout.messages import CallRecord, Message, Status, Tombstone

SETTLES_MAX = 50  # verdicts of one call in one go
_PAUSE_MIN_MS = 50


class Ownership:
    """Made for a new call, or with `expected` to take one over.

    `is_noted` says whether Redis has all facts; they are written elsewhere, and a call is not handed over without them.
    """

    def __init__(
        self,
        record: CallRecord,
        scripts: Scripts,
        *,
        new_claim: Callable[[], str],
        read_entry: Callable[[str, str, bytes], Entry],
        expected: Expected | None = None,
        counts: InboxCounts | None = None,
        is_noted: Callable[[], bool] = lambda: True,
    ) -> None:
        settings = scripts.settings
        self.record = record
        self.keys: CallKeys = scripts.keys.call(record.id, record.tenant)
        self.phase = Phase.CLAIMING
        self.epoch = 0  # until the claim is written
        self.claim = new_claim()
        self.inbox = Inbox(counts)
        self.memory = Memory(settings.memory_max, settings.memory_max_bytes, scripts.seals.of(record.id))
        self.tombstone: Tombstone | None = None  # ours, or the one found in Redis
        self.refusal = ""  # why a take-over came to nothing: absent, changed, fenced, ended
        self.is_bell_unheard = False  # Redis says that nobody listens; to be cleared by who renews the subscription
        self.known: list[bytes] | None = None  # facts of a call that was taken over; to be cleared by who takes them
        self.interest: Ring | None = None  # in the call's log, as Redis said last; to be cleared by who acts on it
        self.restores = 0
        self._scripts = scripts
        self._new_claim = new_claim
        self._read_entry = read_entry
        self._expected = expected
        self._is_noted = is_noted
        self._gives_up = False  # as soon as it is known to be ours, or not
        self._is_busy = False
        self._server_changes = 0
        self._asked_server = 0
        self._restore = False
        self._refresh = False
        self._looks_asked = 0  # asked for by the session
        self.looked = 0  # of these, the last that was answered
        self._read_after = ""
        self._read_ticket: ReadTicket | None = None
        self._paused_until = 0.0
        self._ahead_ms = 0.0  # Redis's clock minus ours, as far as it mattered

    # -- what happens here

    def settle(
        self,
        message_id: str,
        status: Status,
        wall: float,
        *,
        item_id: str | None = None,
        error: dict[str, Any] | None = None,
        memory: bytes | None = None,
    ) -> bool:
        """The session's verdict; False if there is nothing to say."""
        if not self.inbox.can_settle(message_id, status):
            return False
        verdict = self.inbox.verdict(message_id)
        remembered_as = item_id or (verdict.item_id if verdict else "")
        place = self.memory.add(remembered_as, memory) if memory else None
        return self.inbox.settle(message_id, status, wall, item_id=item_id, error=error, memory=place)

    def end(self, tombstone: Tombstone, wall: float) -> bool:
        """The call is over; False if it was before, or is somebody else's.

        A take-over that isn't confirmed is undone instead: the call isn't ours to end.
        """
        if self.tombstone is not None or self.is_given_up:
            return False
        self.tombstone = tombstone
        self.inbox.settle_open(wall, CALL_ENDED)
        if self._expected is not None and not self.epoch:
            self.phase = Phase.RELEASING
        else:
            self.phase = Phase.ENDING
        return True

    def hand_over(self) -> bool:
        """The call's client is to come back elsewhere; False if the call isn't ours to give up.

        Nothing more is delivered. A take-over that isn't confirmed is undone.
        """
        if self.tombstone is not None or self.is_given_up:
            return False
        self._gives_up = True
        if self.phase is Phase.HELD:
            self.phase = Phase.HANDING_OVER
        elif self._expected is not None:
            self.phase = Phase.RELEASING
        return True

    def on_bell(self, entry: Entry, previous: Position, wall: float) -> list[Message]:
        """A ring; before the claim and after the end there is nothing to deliver."""
        if self.phase is not Phase.HELD:
            return []
        return self.inbox.on_bell(self._as_remembered(entry), previous, wall)

    def on_subscribed(self) -> None:
        """What rang before is in the stream only."""
        self.is_bell_unheard = False
        self.inbox.ask_read()

    def ask_look(self) -> int:
        """Have Redis asked whether the call is still ours; `looked` is this number, or higher, once it has said."""
        self._looks_asked += 1
        self._refresh = True
        return self._looks_asked

    def ask_refresh(self) -> None:
        """The sweep."""
        self._refresh = True

    def on_new_server(self) -> None:
        """This Redis is another one: it may lack our record, what we said, and what was put in."""
        self._server_changes += 1
        self._read_ticket = None
        if self.phase is not Phase.LOST or (self.epoch and self.tombstone is None):
            self.phase = AGAIN.get(self.phase, self.phase)
            self._restore |= self.phase is Phase.OFFERING
        self._say_all_again()
        self._refresh = True

    def _say_all_again(self) -> None:
        self.inbox.rewrite()
        self.memory.on_lost()

    # -- what to ask

    @property
    def is_held(self) -> bool:
        """Claimed, and not yet ended, given up or lost."""
        return self.phase is Phase.HELD

    @property
    def is_given_up(self) -> bool:
        """By us, or by somebody else's doing."""
        return self._gives_up or self.phase in {Phase.LOST, Phase.OFFERING}

    @property
    def may_write(self) -> bool:
        """Whether log and facts may be written under our claim."""
        return self.phase in WRITES

    @property
    def is_kept_only(self) -> bool:
        """Nothing more happens here unless Redis is replaced."""
        return self.phase in KEPT_ONLY

    def due(self, now: float) -> float | None:
        """When there is something to ask: now, later because of a pause, or None."""
        if self._is_busy or self.is_kept_only:
            return None
        if self.phase is Phase.HELD and (self._refresh or self._restore or self.inbox.needs_read):
            return now
        if self.phase is Phase.HANDING_OVER:
            if self._refresh or self._restore:
                return now
            return max(now, self._paused_until) if self._needs_more or self._is_noted() else None
        if self.phase in {Phase.CLAIMING, Phase.RELEASING} or self._needs_writing:
            is_told = now >= self._paused_until or self.phase is not Phase.HELD or not self.inbox.untold()
            return max(now, self._paused_until) if is_told else now
        return None

    @property
    def _needs_writing(self) -> bool:
        return self._needs_more or self.phase in {Phase.ENDING, Phase.OFFERING}

    def steps(self, now: float, wall: float) -> list[Step]:
        """What to ask now, in this order; until its answers are given back there is nothing more."""
        if self._is_busy:
            return []
        steps = self._steps(now, wall)
        self._is_busy = bool(steps)
        self._asked_server = self._server_changes
        return steps

    def _steps(self, now: float, wall: float) -> list[Step]:
        is_paused = now < self._paused_until
        match self.phase:
            case Phase.CLAIMING:
                return [] if is_paused else [self._claim("take" if self._expected else "fresh", wall)]
            case Phase.RELEASING:
                return [] if is_paused else [Step("release", self._scripts.release(self.keys, self.claim))]
            case Phase.HELD:
                if self._restore:
                    return [self._claim("restore", wall)]
                return self._looks() + (self._tells() if is_paused else self._writes())
            case Phase.HANDING_OVER:
                if self._restore:
                    return [self._claim("restore", wall)]
                return self._looks() + ([] if is_paused else self._writes() or self._hand_over())
            case Phase.OFFERING if not is_paused:
                return [self._claim("restore", wall)] if self._restore else self._writes()
            case Phase.ENDING if not is_paused:
                if self._restore:
                    return [self._claim("restore", wall)]
                if self.epoch and self.inbox.has_unwritten:
                    return self._settles()
                return [self._end()]
        return []

    def _claim(self, mode: str, wall: float) -> Step:
        settings = self._scripts.settings
        latest = wall + settings.socket_timeout + 2 * settings.clock_skew_seconds
        run = self._scripts.claim(
            self.keys,
            mode,
            self.claim,
            msgspec.structs.replace(self.record, state=MOVING if self._gives_up else LIVE),
            epoch=self.epoch,
            expected=self._expected or (0, ""),
            latest_ms=int(latest * 1000 + self._ahead_ms),
        )
        return Step("claim", run, mode)

    def _looks(self) -> list[Step]:
        steps = []
        if self._refresh:
            steps.append(Step("refresh", self._scripts.refresh(self.keys, self.epoch, self.claim), self._looks_asked))
        if self.inbox.needs_read and self.phase is Phase.HELD:
            if self._read_ticket is None:
                self._read_after, self._read_ticket = "", self.inbox.begin_read()
            run = self._scripts.read(self.keys, self.epoch, self.claim, self._read_after)
            steps.append(Step("read", run, self._read_ticket))
        return steps

    def _writes(self) -> list[Step]:
        if self.memory.needs_rewrite:
            total = self.memory.total
            run = self._scripts.rewrite(self.keys, self.epoch, self.claim, total, self.memory.packed)
            return [Step("rewrite", run, total)]
        return self._settles()

    def _tells(self) -> list[Step]:
        """While nothing else may be written: that a message is here, so that its publisher sends the next."""
        return [
            Step("tell", self._settle_run(message_id, verdict.as_delivered()), message_id)
            for message_id, verdict in self.inbox.untold()[:SETTLES_MAX]
        ]

    def _settles(self) -> list[Step]:
        return [
            Step("settle", self._settle_run(message_id, verdict), (message_id, verdict.status, verdict.memory))
            for message_id, verdict in self.inbox.unwritten()[:SETTLES_MAX]
        ]

    def _settle_run(self, message_id: str, verdict: Verdict) -> Run:
        keep = 0
        if verdict.memory is not None:
            if self.phase is Phase.ENDING or self.memory.is_stored(verdict.memory):
                verdict.memory = None  # Redis has it, or nobody will ask for it any more
            else:
                keep = self.memory.keep_with(verdict.memory)
        return self._scripts.settle(self.keys, self.epoch, self.claim, self.record.id, message_id, verdict, keep=keep)

    def _hand_over(self) -> list[Step]:
        return [Step("handover", self._scripts.handover(self.keys, self.epoch, self.claim))] if self._is_noted() else []

    def _end(self) -> Step:
        if self.tombstone is None:
            raise AssertionError("a call that is ending has its tombstone")
        return Step("end", self._scripts.end(self.keys, self.epoch, self.claim, self.tombstone))

    # -- what the answers mean

    def on_outcomes(self, steps: Sequence[Step], outcomes: Sequence[Any], now: float, wall: float) -> list[Message]:
        """The answers, or RegionUnreachable, in the order of the steps; returns what is to be delivered."""
        self._is_busy = False
        deliveries: list[Message] = []
        for step, outcome in zip(steps, outcomes, strict=True):
            if isinstance(outcome, RegionUnreachable):
                if step.kind == "claim" and step.about == "take" and self.phase is Phase.CLAIMING:
                    self.phase = Phase.RELEASING
                continue
            word = outcome[0].decode()
            if step.kind == "claim":
                self._on_claim(step.about, word, outcome, now, wall)
            elif step.kind == "release":
                self._on_release(word, outcome)
            elif self._passes(step, word, outcome, now):
                deliveries += self._on_answer(step, outcome, wall)
        if self.phase is Phase.OFFERING and not self._needs_more:
            self.phase = Phase.LOST
        return deliveries

    @property
    def _needs_more(self) -> bool:
        return self._restore or self.memory.needs_rewrite or self.inbox.has_unwritten

    def _on_claim(self, mode: str, word: str, outcome: list[Any], now: float, wall: float) -> None:
        match word:
            case "held":
                self._on_claimed(mode, outcome)
            case "late":
                self._ahead_ms = int(outcome[1]) - wall * 1000
            case "settling" | "unknown":
                self._pause(
                    now, outcome[1] if word == "settling" else self._scripts.settings.backoff_max_seconds * 1000
                )
            case "ended":
                self._lose(word, tombstone_from_stored(outcome[1]))
            case _:
                self._lose(word)

    def _on_claimed(self, mode: str, outcome: list[Any]) -> None:
        self.interest = Ring(outcome[2], outcome[3])
        if mode == "restore":
            self._restore = False
            self.restores += 1
            self._say_all_again()
            return
        self.epoch = int(outcome[1])
        if mode == "take":
            self.memory.restore(int(outcome[4]), outcome[5])
            self.known = outcome[6]
        if self.phase is Phase.CLAIMING:
            self.phase = Phase.HANDING_OVER if self._gives_up else Phase.HELD
        self.inbox.ask_read()

    def _on_release(self, word: str, outcome: list[Any]) -> None:
        if self._expected is not None and word == "released":
            self._expected = Expected(int(outcome[1]), "")
        self.claim, self.epoch = self._new_claim(), 0
        self.phase = Phase.CLAIMING
        if self.tombstone is not None or self._gives_up:
            self._lose("given up")

    def _passes(self, step: Step, word: str, outcome: list[Any], now: float) -> bool:
        """What every fenced script may answer, dealt with here; True if this step went through."""
        match word:
            case "held":
                return True
            case "behind":
                self._restore = True
            case "settling":
                self._pause(now, outcome[1])
            case "rewrite":
                self.memory.on_lost()
            case "ended":
                self._lose(word, tombstone_from_stored(outcome[1]))
            case _:
                self._lose(word)
        if step.kind == "read":
            self._read_ticket = None
        return False

    def _on_answer(self, step: Step, outcome: list[Any], wall: float) -> list[Message]:
        match step.kind:
            case "read":
                return self._on_read(step.about, outcome, wall)
            case "refresh":
                self.looked = step.about
                self._refresh = self.looked < self._looks_asked
                self.inbox.on_last_entry(Position(outcome[1].decode(), outcome[2].decode()))
                self.is_bell_unheard = outcome[3] == 0
                self.interest = Ring(outcome[4], outcome[5])
            case "tell":
                self.inbox.on_told(step.about)
            case _ if self._asked_server != self._server_changes:
                pass  # it went to a server that is gone, or to the new one before it lost anything: say it again
            case "rewrite":
                self.memory.needs_rewrite = False
                self.memory.on_stored(step.about)
            case "settle":
                message_id, status, place = step.about
                if place is not None:
                    self.memory.on_stored(place.position + 1)
                self.inbox.on_written(message_id, status)
            case "handover":
                self.phase = Phase.HANDED_OVER
            case "end":
                self.phase = Phase.ENDED
                self.memory.forget()  # nobody will ask for it any more
        return []

    def _on_read(self, ticket: ReadTicket, outcome: list[Any], wall: float) -> list[Message]:
        _, last_entry, last_message, more, entries = outcome
        if self.phase is not Phase.HELD:
            return []
        read = []
        for entry, message, packed, how_far in entries:
            found = self._as_remembered(self._read_entry(entry.decode(), message.decode(), packed))
            read.append(found._replace(is_applied=found.is_applied or how_far == 1, is_answered=how_far == 2))
        deliveries = self.inbox.on_entries(read, wall)
        if more:
            self._read_after = entries[-1][0].decode()
        else:
            self._read_ticket = None
            self.inbox.end_read(Position(last_entry.decode(), last_message.decode()), ticket)
        return deliveries

    def _as_remembered(self, entry: Entry) -> Entry:
        """An item that the conversation has was applied, whatever became of its receipt."""
        is_applied = entry.message is not None and self.memory.has(entry.message.item_id)
        return entry._replace(is_applied=is_applied)

    def _pause(self, now: float, milliseconds: float) -> None:
        self._paused_until = now + max(_PAUSE_MIN_MS, milliseconds) / 1000

    def _lose(self, refusal: str, tombstone: Tombstone | None = None) -> None:
        is_our_end = tombstone is not None and tombstone == self.tombstone
        self.phase = Phase.ENDED if is_our_end else Phase.LOST
        self.refusal = refusal
        self._restore = False
        if self.tombstone is None:
            self.tombstone = tombstone
