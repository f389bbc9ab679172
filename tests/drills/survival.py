"""What became of calls whose parts were broken: compares what people noticed with what the model's sessions know. Pure.

The promises: every call goes on until its person hangs up; one session at a time hears the person; what the last one
knows is what the person's client has seen; a connection ends only in a way that the drill gives a reason for, and each
new one begins with one session.created, soon.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from tests.drills.verdict import Item, Message, Verdict, is_honest, judge_conversations, judge_receipts
from tests.support.hearing import differences

_ONLY_CLIENT: Final = ": only the client has it: "
_ONLY_WORDS: Final = "(something that was not transcribed)"  # the item was written in time, its words were not
_ONLY_MODEL: Final = ": only the model has it: "
GAP_SECONDS: Final = 0.3  # of silence within an answer: what a person takes for a pause
_HUNG_UP: Final = "hung up"
_GRAIN: Final = 0.02  # a frame: whoever has two sockets reads them in any order


@dataclass(frozen=True, slots=True)
class Session:
    """One of a call's sessions at the model; times of the monotonic clock."""

    id: str
    opened_at: float
    closed_at: float | None
    heard_from: float | None  # audio
    heard_until: float | None


@dataclass(frozen=True, slots=True)
class Call:
    """What a person and the model noticed of one call."""

    number: int
    ended: str | None  # as the talker says it
    created: int  # events session.created
    codes: tuple[int, ...]  # how its connections with a session ended, in their order
    back: tuple[float, ...]  # seconds from the end of a connection to the next session.created
    waits: tuple[float, ...]  # seconds from the end of each turn to the first audio
    gaps: tuple[float, ...]  # seconds of silence within answers
    unanswered: int
    view: Sequence[Mapping[str, Any]]
    sessions: tuple[Session, ...]
    items: Sequence[Mapping[str, Any]]  # that the last session knows
    facts: Sequence[Mapping[str, Any]]  # that the call's home knows


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a drill gives a reason for. All else is broken."""

    codes: Collection[int] = ()  # of connections
    back_seconds: float = 2.0  # to come back, but for one in a hundred
    missing: int = 0  # items that a call may lose with each connection
    unseen: int = 0  # items that backends add while a client is away, and that it does not hear of on another node
    expiry: bool = False  # of messages: what breaks takes as long as they have
    unanswered: bool = False  # turns that were spoken while nobody could hear them
    sessions: tuple[int, int] = (1, 100_000)  # of a call: fewer and the drill shows nothing
    recoveries: int = 0  # of all calls together: fewer and the drill shows nothing
    later_than_twin: float | None = None  # seconds by which a silence may be longer than that of the same talk
    answer_seconds: float | None = None  # until an answer begins; then it goes on


@dataclass(slots=True)
class Survival:
    """The drill's figures."""

    calls: int = 0
    sessions: int = 0
    back: list[float] = field(default_factory=list)
    longest_gap: float = 0.0
    waits: list[float] = field(default_factory=list)
    unanswered: int = 0
    missing: int = 0  # items that the client has and the last session has not
    unseen: int = 0  # items of backends that the last session has and the client has not
    later_than_twin: float | None = None


def judge_calls(verdict: Verdict, calls: Sequence[Call], allowed: Allowed, twins: Mapping[int, Call]) -> Survival:
    """Judge the calls and return their figures.

    Args:
        verdict: takes what is broken.
        calls: those that something was done to.
        allowed: what the drill gives a reason for.
        twins: by a call's number, one that said the same at the same time and that nothing was done to.
    """
    found = Survival(calls=len(calls), sessions=sum(len(call.sessions) for call in calls))
    found.back = [each for call in calls for each in call.back]
    found.waits = [each for call in calls for each in call.waits]
    found.longest_gap = max((gap for call in calls for gap in call.gaps), default=0.0)
    found.unanswered = sum(call.unanswered for call in calls)
    verdict.calls_ended = sum(call.ended != _HUNG_UP for call in calls)
    verdict.blame("calls ended", [f"call {call.number}: {call.ended}" for call in calls if call.ended != _HUNG_UP])
    _judge_connections(verdict, calls, allowed)
    _judge_sessions(verdict, calls, allowed)
    _judge_knowledge(verdict, calls, allowed, found)
    if len(found.back) < allowed.recoveries:
        verdict.blame("drills that show nothing", [f"{len(found.back)} connections were lost and made again"])
    if found.back and percentile(found.back, 0.99) > allowed.back_seconds:
        verdict.blame("ways back that took too long", [f"p99 {percentile(found.back, 0.99):.2f} s"])
    if not allowed.unanswered:
        silent = [f"{call.unanswered} of call {call.number}" for call in calls if call.unanswered]
        verdict.blame("calls had turns without an answer", silent)
    if allowed.answer_seconds is not None:
        _judge_answers(verdict, calls, allowed.answer_seconds)
    if allowed.later_than_twin is not None:
        _judge_twins(verdict, calls, twins, allowed.later_than_twin, found)
    return found


def judge_messages(
    verdict: Verdict,
    messages: Sequence[Message],
    items: Mapping[int, Sequence[Item]],
    answers: Mapping[str, int],
    allowed: Allowed,
) -> int:
    """Judge what backends were told against what the last session of each call has; returns how many expired.

    A node that goes may cut a connection; what it answers must be honest.
    """
    wrong = {answer: count for answer, count in answers.items() if answer[:1].isdigit() and not is_honest(answer)}
    verdict.blame("kinds of dishonest answers", [f"{count}× {answer}" for answer, count in wrong.items()])
    verdict.sent, verdict.accepted = len(messages), sum(message.accepted for message in messages)
    verdict.answers = dict(answers)
    there = {(call, item.id) for call, known in items.items() for item in known}
    expired = [each for each in messages if each.receipt == "expired" and (each.call, each.id) not in there]
    judged = [each for each in messages if each not in expired] if allowed.expiry else messages
    judge_receipts(verdict, judged, items)
    judge_conversations(verdict, messages, items)
    return len(expired)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank; of at least one value."""
    return sorted(values)[math.ceil((len(values) - 1) * share)]


def _judge_connections(verdict: Verdict, calls: Sequence[Call], allowed: Allowed) -> None:
    greeted = [
        f"{call.created} of {len(call.codes)} of call {call.number}"
        for call in calls
        if call.created != len(call.codes)
    ]
    verdict.blame("calls had other than one session.created for each connection", greeted)
    cut = [f"call {call.number}: {code}" for call in calls for code in call.codes[:-1] if code not in allowed.codes]
    verdict.blame("connections ended for no reason", cut)


def _judge_sessions(verdict: Verdict, calls: Sequence[Call], allowed: Allowed) -> None:
    least, most = allowed.sessions
    wrong = [f"{len(call.sessions)} of call {call.number}" for call in calls if not least <= len(call.sessions) <= most]
    verdict.blame(f"calls had other than {least} to {most} sessions", wrong)
    both = []
    for call in calls:
        for old, new in pairwise(each for each in call.sessions if each.heard_from is not None):
            if old.heard_until - new.heard_from >= _GRAIN:  # type: ignore[operator]
                both.append(f"{old.id} of call {call.number}, {old.heard_until - new.heard_from:.3f} s")  # type: ignore[operator]
    verdict.blame("sessions heard the person when another one did already", both)


def _judge_knowledge(verdict: Verdict, calls: Sequence[Call], allowed: Allowed, found: Survival) -> None:
    at_model, at_home = [], []
    for call in calls:
        wrong = differences(call.view, call.items)
        times = len(call.codes) - 1
        missing = {_id_in(each) for each in wrong if _ONLY_CLIENT in each or _ONLY_WORDS in each}
        unseen = {_id_in(each) for each in wrong if _ONLY_MODEL in each}
        unseen &= {str(item["id"]) for item in call.items if item["role"] == "system"}
        found.missing += len(missing)
        found.unseen += len(unseen)
        excused = missing if len(missing) <= allowed.missing * times else set()
        excused |= unseen if len(unseen) <= allowed.unseen * times else set()
        at_model += [f"call {call.number}: {each[:300]}" for each in wrong if _id_in(each) not in excused]
        at_home += [
            f"call {call.number}: {each[:300]}"
            for each in differences(call.view, call.facts)
            if _id_in(each) not in excused
        ]
    verdict.blame("differences between what clients and the model's last sessions have", at_model)
    verdict.blame("differences between what clients (left) and the calls' homes have", at_home)


def _id_in(difference: str) -> str:
    return difference.partition(":")[0]


def _judge_answers(verdict: Verdict, calls: Sequence[Call], limit: float) -> None:
    late = [f"{wait:.2f} s in call {call.number}" for call in calls for wait in call.waits if wait > limit]
    late += [f"a gap of {gap:.2f} s in call {call.number}" for call in calls for gap in call.gaps if gap > GAP_SECONDS]
    verdict.blame("answers were late or broken off", late)


def _judge_twins(
    verdict: Verdict, calls: Sequence[Call], twins: Mapping[int, Call], limit: float, found: Survival
) -> None:
    late, worst = [], -math.inf
    for call in calls:
        twin = twins[call.number]
        if len(call.waits) != len(twin.waits):
            late.append(f"call {call.number} has {len(call.waits)} answers, its twin {len(twin.waits)}")
        for turn, (ours, theirs) in enumerate(zip(call.waits, twin.waits, strict=False)):
            worst = max(worst, ours - theirs)
            if ours - theirs > limit:
                late.append(f"turn {turn} of call {call.number}: {ours:.2f} s instead of {theirs:.2f}")
        theirs_longest = max(twin.gaps, default=0.0)
        late += [f"a gap of {gap:.2f} s in call {call.number}" for gap in call.gaps if gap > theirs_longest + limit]
    found.later_than_twin = worst
    verdict.blame(f"silences were longer than the twin's by more than {limit:g} s", late)
