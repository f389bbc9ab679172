"""What a drill found: compares what publishers were told with what the model has. Pure.

The promises: what was answered 2xx is in the conversation, once, in its publisher's order; a refusal is one of the
honest ones; no live call ends; no audio frame is lost or held up longer than the drill's bound.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

# Refusals that say what is wrong and that the same id may be sent again.
HONEST: Final = frozenset({"429 inbox_full", "503 bus_busy", "503 call_state_unknown", "503 region_unreachable"})
_TAKEN: Final = frozenset({"applied", "answered"})
_REFUSED: Final = frozenset({"failed", "expired", "rejected"})
_EXAMPLES: Final = 3

# What a message's latency is counted under. Near and far: the drill leaves it alone, and its node is in the call's home
# region, or isn't. Hit: what the drill breaks is on its way. Big: nearly the largest. Warm: sent before.
LANES: Final = ("near", "far", "hit", "big", "warm")


@dataclass(frozen=True, slots=True)
class Message:
    """What a publisher sent, and what it was told of it."""

    id: str
    call: int
    publisher: str  # has one message to the call under way at a time, hence an order
    number: int  # its place in that order
    checksum: int  # CRC-32 of the text
    accepted: bool  # answered 2xx at least once
    receipt: str | None  # the last status read, through another node than the publisher's
    applied_ms: float | None  # from the first sending
    error: str | None  # what its receipt says, where it says that it was refused
    lane: str  # one of LANES


@dataclass(frozen=True, slots=True)
class Item:
    """A message in the model's conversation."""

    id: str
    checksum: int


@dataclass(frozen=True, slots=True)
class Audio:
    """A call's audio on its way to the model."""

    call: int
    sent: int  # frames
    heard: int  # different frames
    disordered: int  # that came after a later one, or again
    held_ms: float  # the longest that a frame was under way
    held_limit_ms: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from the first sending to applied."""

    count: int
    p50: float
    p99: float
    longest: float


@dataclass(slots=True)
class Verdict:
    """The drill's figures; `broken` names each promise that was not kept."""

    sent: int
    accepted: int
    answers: dict[str, int]
    lost: int = 0
    repeated: int = 0
    disordered: int = 0
    calls_ended: int = 0
    frames_sent: int = 0
    frames_lost: int = 0
    held_ms: float = 0.0
    latency: dict[str, Latency] = field(default_factory=dict)  # by lane
    broken: list[str] = field(default_factory=list)

    def blame(self, what: str, examples: Sequence[str]) -> None:
        """Note a broken promise, if there are examples of it."""
        if examples:
            more = ", …" if len(examples) > _EXAMPLES else ""
            self.broken.append(f"{len(examples)} {what}: {', '.join(examples[:_EXAMPLES])}{more}")


def judge(
    messages: Sequence[Message],
    answers: Mapping[str, int],
    conversations: Mapping[int, Sequence[Item]],
    audio: Sequence[Audio],
    ended: Sequence[str],
    *,
    p99_limit_ms: float,
    felt_ms: float,
) -> Verdict:
    """Compare what was told with what the model has.

    Args:
        messages: all that publishers sent.
        answers: how often each answer was given: `200`, or status and code, or what came instead of an answer.
        conversations: what stands in each call's conversation, in its order.
        audio: of each call.
        ended: a line for each call that ended.
        p99_limit_ms: of the latency of what the drill leaves alone.
        felt_ms: that some message which the drill hits must have taken; otherwise nothing was broken.
    """
    verdict = Verdict(len(messages), sum(message.accepted for message in messages), dict(answers))
    _judge_answers(verdict, messages)
    judge_receipts(verdict, messages, conversations)
    judge_conversations(verdict, messages, conversations)
    _judge_audio(verdict, audio)
    verdict.calls_ended = len(ended)
    verdict.blame("calls ended", ended)
    lanes = defaultdict(list)
    for message in messages:
        if message.applied_ms is not None:
            lanes[message.lane].append(message.applied_ms)
    verdict.latency = {lane: summary(values) for lane, values in lanes.items()}
    calm = {lane: found.p99 for lane, found in verdict.latency.items() if lane in {"near", "far"}}
    slow = [f"p99 {lane} {p99:.0f} ms" for lane, p99 in calm.items() if p99 > p99_limit_ms]
    verdict.blame("kinds of messages were slow that the drill leaves alone", slow)
    longest = max((found.longest for lane, found in verdict.latency.items() if lane in {"hit", "big"}), default=0.0)
    if longest < felt_ms:
        verdict.blame("faults were not felt, so that the drill shows nothing", [f"no message took {felt_ms:.0f} ms"])
    return verdict


def summary(values: Iterable[float]) -> Latency:
    """Median, 99th percentile (nearest rank) and maximum of at least one value."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return Latency(len(ordered), ordered[last // 2], ordered[math.ceil(last * 0.99)], ordered[last])


def is_honest(answer: str) -> bool:
    """Whether a live call's publisher may get this answer."""
    return answer in {"200", "202"} or answer in HONEST


def _judge_answers(verdict: Verdict, messages: Sequence[Message]) -> None:
    wrong = {answer: count for answer, count in verdict.answers.items() if not is_honest(answer)}
    verdict.blame("kinds of dishonest answers", [f"{count}× {answer}" for answer, count in wrong.items()])
    verdict.blame("never answered 2xx", [message.id for message in messages if not message.accepted])


def judge_receipts(verdict: Verdict, messages: Sequence[Message], conversations: Mapping[int, Sequence[Item]]) -> None:
    """Compare the receipts with what stands in the conversations."""
    there = {call: {item.id for item in items} for call, items in conversations.items()}
    missing: list[str] = []
    untold: list[str] = []
    refused: list[str] = []
    denied: list[str] = []
    for message in messages:
        is_there = message.id in there.get(message.call, ())
        if message.receipt in _REFUSED:
            (denied if is_there else refused).append(f"{message.id} ({message.receipt}: {message.error})")
        elif message.accepted and message.receipt not in _TAKEN:
            untold.append(f"{message.id} ({message.receipt})")
        elif message.accepted and not is_there:
            missing.append(message.id)
    verdict.lost = len(missing) + len(untold)
    verdict.blame("told applied and not in the conversation", missing)
    verdict.blame("answered 2xx without a terminal receipt", untold)
    verdict.blame("answered 2xx and then refused", refused)
    verdict.blame("told refused and in the conversation", denied)


def judge_conversations(
    verdict: Verdict, messages: Sequence[Message], conversations: Mapping[int, Sequence[Item]]
) -> None:
    """Look for what stands in a conversation twice, in another order or form, or for no reason."""
    known = {message.id: message for message in messages}
    repeated, disordered, altered, strange = [], [], [], []
    for call, items in conversations.items():
        seen: set[str] = set()
        latest: dict[str, int] = {}
        for item in items:
            message = known.get(item.id)
            if message is None or message.call != call:
                strange.append(item.id)
                continue
            if item.id in seen:
                repeated.append(item.id)
                continue
            seen.add(item.id)
            if item.checksum != message.checksum:
                altered.append(item.id)
            before = latest.get(message.publisher, -1)
            if message.number < before:
                disordered.append(f"{item.id} after {before}")
            latest[message.publisher] = max(before, message.number)
    verdict.repeated, verdict.disordered = len(repeated), len(disordered)
    verdict.blame("repeated in a conversation", repeated)
    verdict.blame("out of order", disordered)
    verdict.blame("altered on the way", altered)
    verdict.blame("items in a conversation that nobody sent there", strange)


def _judge_audio(verdict: Verdict, audio: Sequence[Audio]) -> None:
    verdict.frames_sent = sum(each.sent for each in audio)
    verdict.frames_lost = sum(max(0, each.sent - each.heard) for each in audio)
    verdict.held_ms = max((each.held_ms for each in audio), default=0.0)
    lost = [f"{each.sent - each.heard} of call {each.call}" for each in audio if each.heard < each.sent]
    mixed = [f"{each.disordered} of call {each.call}" for each in audio if each.disordered]
    late = [f"{each.held_ms:.0f} ms in call {each.call}" for each in audio if each.held_ms > each.held_limit_ms]
    silent = [f"call {each.call}" for each in audio if not each.sent]
    verdict.blame("calls lost audio frames", lost)
    verdict.blame("calls had audio frames out of order or twice", mixed)
    verdict.blame("calls had audio held up for too long", late)
    verdict.blame("calls sent no audio, so that the drill shows nothing", silent)
