"""What must be true when a schedule is over. Pure: looks at the facts and at what is left, and says what is broken."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fanout.core.records import receipt_from_stored
from tests.simulation.client import Client
from tests.simulation.facts import Sent
from tests.simulation.owning import Owned

if TYPE_CHECKING:
    from tests.simulation.schedule import Schedule


def broken(schedule: "Schedule") -> list[str]:
    """Every promise that does not hold."""
    found = list(schedule.facts.violations)
    for client in schedule.clients:
        if client.is_gone:
            continue  # nobody came back for the call, so it has no end in this world
        found += _receipts(schedule, client)
        found += _ghosts(schedule, client)
        if client.is_live:
            found += _ownership(schedule, client)
    found += _yields(schedule)
    found += _leftovers(schedule)
    return found


def _receipts(schedule: "Schedule", client: Client) -> Iterator[str]:
    """What was answered 2xx has its end, and a lookup finds it."""
    for sent in schedule.facts.sent.values():
        if sent.call != client.record.id:
            continue
        packed = schedule.lookup(client, sent.id)
        receipt = receipt_from_stored(sent.call, sent.id, packed) if packed else None
        if receipt is not None:
            sent.tell(receipt)
        if sent.answered_at is not None and (receipt is None or not receipt.is_terminal):
            found = receipt and receipt.status.value
            yield f"{sent.id} was answered 2xx (told {sent.told}), and its receipt is {found}"


def _ownership(schedule: "Schedule", client: Client) -> Iterator[str]:
    holders = [
        owned
        for node in schedule.nodes
        if node.is_up
        for owned in node.owning.by_id.values()
        if owned.record.id == client.record.id and owned.protocol.is_held
    ]
    if len(holders) != 1:
        yield f"{client.record.id} is held by {[owned.node.name for owned in holders]}"
        return
    (owned,) = holders
    if client.owned is not owned:
        yield f"{client.record.id} is held by {owned.node.name}, its client is at {client.node and client.node.name}"
    written = schedule.claim_of(client)
    if written != (owned.protocol.epoch, owned.protocol.claim):
        yield f"{owned.node.name} holds {client.record.id} as {owned.protocol.epoch}, Redis says {written}"
    if schedule.memory_of(client) != owned.protocol.memory.packed:
        yield f"Redis does not have what {owned.node.name} remembers of {client.record.id}"
    if (facts := schedule.facts_of(client)) != owned.noting.facts:
        yield f"Redis has the facts {facts} of {client.record.id}, {owned.node.name} has {owned.noting.facts}"
    yield from _conversation(schedule, owned)


def _conversation(schedule: "Schedule", owned: Owned) -> Iterator[str]:
    items = owned.session.conversation
    if items is None or not owned.session.is_quiet:
        yield f"the session at {owned.node.name} is not quiet"
        return
    counts = Counter(items)
    for item, count in counts.items():
        if count > 1:
            yield f"{item} is {count} times in the conversation"
    if items != [entry.decode() for entry in owned.protocol.memory.entries]:
        yield f"the conversation {items} is not what is remembered"
    sent = [one for one in schedule.facts.sent.values() if one.call == owned.record.id]
    for one in sent:
        if one.is_told_applied and f"item_{one.id}" not in counts:
            yield f"{one.id} was told applied, and is not in the conversation {items}"
        # A repeat has a deadline of its own, and where the first one's end is rolled back it is the first.
        if "expired" in one.told and one.puts == 1 and f"item_{one.id}" in counts:
            yield f"{one.id} was told {one.told}, and is in the conversation"
    yield from _order(sent, {item: place for place, item in enumerate(items)})


def _order(sent: list[Sent], places: dict[str, int]) -> Iterator[str]:
    """What one node was given after it had answered for another message is after that one."""
    there = [one for one in sent if f"item_{one.id}" in places and len(one.nodes) == 1 and not one.was_refused]
    for before in there:
        for after in there:
            if (
                before.nodes == after.nodes
                and before.answered_at is not None
                and before.answered_at < after.put_at
                and places[f"item_{before.id}"] > places[f"item_{after.id}"]
            ):
                yield f"{after.id} is before {before.id}, which {before.nodes[0]} had answered when {after.id} came"


def _ghosts(schedule: "Schedule", client: Client) -> Iterator[str]:
    """What a node asked before its client left it is not carried out long after."""
    for granted in schedule.home.granted:
        if granted.mode != "take" or granted.call_key != schedule.key_of(client):
            continue
        for node, left_at in client.left:
            if node == granted.node and granted.sent_at <= left_at < granted.at - schedule.claim_seconds:
                yield f"{node} was given {client.record.id} {granted.at - left_at:.3f} s after its client had left"


def _yields(schedule: "Schedule") -> Iterator[str]:
    """Nobody gives a call up but for a claim that was made above its own."""
    ended = {schedule.key_of(client) for client in schedule.clients if not client.is_live}
    for one in schedule.facts.yielded:
        if one.refusal == "ended" and one.call_key not in ended:
            yield f"{one.node} gave up a live call as ended"
        if one.refusal in {"absent", "unknown"}:
            yield f"{one.node} could not take a live call over: {one.refusal}"
        if one.refusal == "fenced" and not any(
            granted.call_key == one.call_key and (granted.epoch, granted.claim) > (one.epoch, one.claim)
            for granted in schedule.home.granted
        ):
            yield f"{one.node} gave up its call, and nobody had a higher claim"


def _leftovers(schedule: "Schedule") -> Iterator[str]:
    dead = {client.record.id for client in schedule.clients if client.is_gone}
    for node in schedule.nodes:
        if not node.is_up:
            continue
        for call_id, line in node.publishing.lines.items():
            if not line.outbox.is_empty and call_id not in dead:
                yield f"{node.name} still has messages to {call_id} under way"
        if len(node.publishing.holds):
            yield f"{node.name} still holds {len(node.publishing.holds)} messages"
        for owned in (*node.owning.by_id.values(), *node.owning.kept):
            protocol = owned.protocol
            if protocol.due(schedule.world.now) is not None or protocol._is_busy:
                yield f"{node.name} still has something to ask for {owned.record.id}, {protocol.phase.value}"
