"""`python -m tests.drills.model ADDRESS`: the model simulator, with a clock at its ear and eyes on its conversations.

The simulator is the one of `ops`, unchanged. Each record of its ledger is listened in on: audio frames carry their
number and the time they were sent, so that a lost, late or repeated one is known, and of each session it is noted when
it heard anything.
"""

import binascii
import random
import sys
import time
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import uvloop

from ops.simulator.faults import Fault
from ops.simulator.ledger import Record
from ops.simulator.server import Settings, Simulator, serve
from tests.drills.callers import APPEND_HEAD, STAMP_LETTERS, read_stamp
from tests.drills.orders import obey

_HEAD_LETTERS = 64  # of an event, in which its type stands


@dataclass(slots=True)
class Ear:
    """The audio that came on one call."""

    heard: int = 0
    disordered: int = 0
    held_us: int = 0
    gap_us: int = 0
    _next: int = 0
    _last_us: int | None = field(default=None)

    def hear(self, raw: str | bytes, now_us: int) -> None:
        """Take a message of the relay's; anything but a numbered append is passed over."""
        head = raw[: len(APPEND_HEAD) + STAMP_LETTERS]
        text = head if isinstance(head, str) else head.decode()
        if not text.startswith(APPEND_HEAD):
            return
        number, sent_us = read_stamp(binascii.a2b_base64(text[len(APPEND_HEAD) :]))
        self.held_us = max(self.held_us, now_us - sent_us)
        if self._last_us is not None:
            self.gap_us = max(self.gap_us, now_us - self._last_us)
        self._last_us = now_us
        if number < self._next:
            self.disordered += 1
            return
        self._next = number + 1
        self.heard += 1


@dataclass(slots=True)
class Hearing:
    """When a session of a call was opened, and between which moments it heard audio; of the monotonic clock."""

    record: Record
    first: float | None = None
    last: float | None = None

    def hear(self, raw: str | bytes, now: float) -> None:
        """Take a message of the relay's."""
        head = raw[:_HEAD_LETTERS]
        if "input_audio_buffer.append" in (head if isinstance(head, str) else head.decode(errors="replace")):
            self.first = self.first or now
            self.last = now

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "id": self.record.id,
            "opened_at": self.record.opened_at,
            "closed_at": self.record.closed_at,
            "heard_from": self.first,
            "heard_until": self.last,
        }


class Model:
    """The simulator and what was noticed of each call, which is known by the model's name: `sim-<number>`."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._ears: dict[int, Ear] = {}
        self._sessions: Counter[int] = Counter()
        self._records: dict[int, Record] = {}
        self._hearings: defaultdict[int, list[Hearing]] = defaultdict(list)
        add = simulator.ledger.add

        def listen_and_add(record: Record) -> None:
            self._listen(record)
            add(record)

        simulator.ledger.add = listen_and_add  # type: ignore[method-assign]

    def _listen(self, record: Record) -> None:
        name, _, number = record.query.get("model", "").partition(";")[0].partition("-")
        if name != "sim" or not number.isdigit():
            return
        call = int(number)
        self._sessions[call] += 1
        self._records[call] = record
        ear = self._ears.setdefault(call, Ear())
        hearing = Hearing(record)
        self._hearings[call].append(hearing)
        receive = record.on_received

        def hear_and_receive(raw: str | bytes, now: float) -> None:
            ear.hear(raw, time.monotonic_ns() // 1000)
            hearing.hear(raw, now)
            receive(raw, now)

        record.on_received = hear_and_receive  # type: ignore[method-assign]

    def url(self) -> str:
        """Return where nodes find it."""
        return self._simulator.url

    def audio(self) -> dict[int, dict[str, float]]:
        """Return what was heard of each call; times in milliseconds."""
        return {
            call: {
                "heard": ear.heard,
                "disordered": ear.disordered,
                "held_ms": ear.held_us / 1000,
                "gap_ms": ear.gap_us / 1000,
                "sessions": self._sessions[call],
            }
            for call, ear in self._ears.items()
        }

    def conversations(self) -> dict[int, list[tuple[str, int]]]:
        """Return the messages of each call's conversation: the first word of each text and its checksum, in order.

        Of a call that ended, the simulator keeps long texts only in part.
        """
        return {call: [_seen(text) for text in _texts(record)] for call, record in self._records.items()}

    def sessions(self) -> dict[int, list[dict[str, Any]]]:
        """Return the sessions of each call in their order."""
        return {call: [each.described() for each in hearings] for call, hearings in self._hearings.items()}

    def items(self) -> dict[int, list[dict[str, Any]]]:
        """Return what the last session of each call knows."""
        return {call: record.detail()["items"] for call, record in self._records.items()}

    def trouble(
        self, kinds: list[dict[str, Any]], seed: int, first: int, count: int, after: tuple[float, float]
    ) -> None:
        """Let the next connections go wrong: some time after they were opened, or, but for the first, at once."""
        chance = random.Random(seed)
        opened = [each for each in kinds if "refuse" not in each]
        for place in range(count):
            fault = chance.choice(kinds if place >= first else opened)
            later = {} if "refuse" in fault else {"after": round(chance.uniform(*after), 2)}
            self._simulator.control.add_fault(Fault(**fault, **later))

    def calm(self) -> int:
        """Let nothing go wrong with further connections; returns how many were left to."""
        left = 0
        while self._simulator.control.next_fault() is not None:
            left += 1
        return left


def _texts(record: Record) -> list[str]:
    if record.session is not None:
        return [item.text() for item in record.session.conversation]
    detail: dict[str, Any] = record.detail()
    return [str(item["text"]) for item in detail["items"]]


def _seen(text: str) -> tuple[str, int]:
    return text.partition(" ")[0], zlib.crc32(text.encode())


async def _main(host: str) -> None:
    async with serve(Settings(host=host)) as simulator:
        model = Model(simulator)
        await obey(
            (model.url, model.audio, model.conversations, model.sessions, model.items, model.trouble, model.calm)
        )


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
