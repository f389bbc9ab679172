"""When a call counts as an orphan, look by look, as one node sees it."""

from typing import Any

import msgspec
import pytest

from fanout.core.orphans import CLIENT_LOST, NODE_LOST, Look, Orphans, Silent
from fanout.core.partitions import partition_tags, tag_of
from fanout.messages import CallRecord
from fanout.settings import BusSettings

SETTINGS = BusSettings(node="iad-1", region="iad", regions={"iad": "redis://unused"}, orphan_seconds=45.0)
CALL, NODE = "rtc_iad_one", "iad-9"
EVERYWHERE = frozenset(partition_tags())
EVERY = 4.0  # seconds between two looks


def silent(call_id: str = CALL, **changes: Any) -> Silent:
    record = CallRecord(
        id=call_id, tenant="acme", node=NODE, region="iad", agent="a", model="m", started_at=1.0, epoch=7
    )
    return Silent(**{"record": record, "claim": "boot1.aa", "owned_ms": "1000", "moved_for": -1.0, **changes})


class Watching:
    """One node's looks, at its own pace."""

    def __init__(self, settings: BusSettings = SETTINGS) -> None:
        self.orphans = Orphans(settings)
        self.now = 1000.0

    def look(
        self, *calls: Silent, boot: str | None = "", normal: frozenset[str] = EVERYWHERE, after: float = EVERY
    ) -> list[str]:
        """Ids of the orphans; `boot` is the one that has a heartbeat, None where that could not be asked."""
        self.now += after
        boots = {} if boot is None else {NODE: boot}
        return [call.record.id for call in self.orphans.on_look(Look(normal, calls, boots), self.now)]

    def seconds_until_orphaned(self, *calls: Silent, **seen: Any) -> float:
        """Looks until the first is an orphan; how long that took."""
        began = self.now
        while not self.look(*calls, **seen):
            assert self.now < began + 1000
        return self.now - began


def test_a_call_is_an_orphan_when_its_node_was_gone_for_as_long_as_a_client_is_waited_for():
    """Its client may come back meanwhile, and a node that stopped for a moment is not gone."""
    watching = Watching()
    assert watching.look(silent()) == []
    assert len(watching.orphans) == 1
    assert 45.0 <= watching.seconds_until_orphaned(silent()) < 45.0 + EVERY
    assert watching.look(silent()) == [CALL]  # until it is ended


def test_it_is_two_lifetimes_of_a_heartbeat_at_least():
    """However soon clients give up: a node may be slow for one of them."""
    settings = BusSettings(node="iad-1", region="iad", regions={"iad": "redis://unused"}, orphan_seconds=1.0)
    watching = Watching(settings)
    watching.look(silent())
    assert 16.0 <= watching.seconds_until_orphaned(silent()) < 16.0 + EVERY


def test_a_call_whose_node_is_in_another_region_is_waited_for_much_longer():
    """The link may be cut, and the call be as lively as ever."""
    watching, call = Watching(), silent()
    far = call._replace(record=msgspec.structs.replace(call.record, region="lhr"))
    watching.look(far)
    assert 600.0 <= watching.seconds_until_orphaned(far) < 600.0 + EVERY


def test_a_call_whose_node_lives_is_none_however_late_it_is():
    """A node that is busy looks after its calls late; that is no reason to end them."""
    watching = Watching()
    assert not any(watching.look(silent(), boot="boot1") for _ in range(100))
    assert len(watching.orphans) == 0


def test_a_node_that_was_started_again_doesn_t_have_the_calls_of_the_one_before():
    """The name is the same, the boot isn't."""
    watching = Watching()
    watching.look(silent(), boot="boot2")
    assert watching.seconds_until_orphaned(silent(), boot="boot2") >= 45.0


@pytest.mark.parametrize(
    "interruption",
    [
        lambda watching: watching.look(silent(), boot="boot1"),
        lambda watching: watching.look(silent(), boot=None),
        lambda watching: watching.look(),
        lambda watching: watching.look(silent(), normal=EVERYWHERE - {tag_of(CALL)}),
        lambda watching: watching.look(silent(), normal=EVERYWHERE - {tag_of(NODE)}),
        lambda watching: watching.look(silent(), normal=frozenset()),
        lambda watching: watching.orphans.start_again(),
        lambda watching: watching.look(silent(), after=SETTINGS.node_ttl_seconds + 0.1),
        lambda watching: watching.look(silent(owned_ms="1001")),
        lambda watching: watching.look(silent(claim="boot2.aa")),
    ],
    ids=[
        "the heartbeat is back",
        "the heartbeat could not be asked for",
        "its owner was heard of",
        "its partition settles or is away",
        "that of the heartbeat settles or is away",
        "redis is away",
        "redis is another one",
        "we slept",
        "its owner was late",
        "somebody took it",
    ],
)
def test_whatever_interrupts_the_watching_begins_the_count_again(interruption):
    """Time in which the node may have lived, or in which nobody could have told, is no time that it was gone."""
    watching = Watching()
    for _ in range(11):
        assert watching.look(silent()) == []
    interruption(watching)
    watching.look(silent())
    assert watching.seconds_until_orphaned(silent()) >= 45.0 - EVERY


def test_a_call_that_was_handed_over_waits_for_its_client_from_then_on():
    """That nobody has it is known at once; only the client is waited for."""
    watching = Watching()
    for _ in range(20):
        watching.look()
    assert watching.look(silent(claim="", moved_for=44.9)) == []
    assert watching.look(silent(claim="", moved_for=45.0)) == [CALL]


def test_where_redis_was_away_the_client_of_a_call_that_was_handed_over_has_its_time_again():
    """It could not come back meanwhile."""
    watching = Watching()
    for _ in range(20):
        watching.look(silent(claim="", moved_for=10.0))
    watching.look(normal=EVERYWHERE - {tag_of(CALL)})
    watching.look()
    assert watching.seconds_until_orphaned(silent(claim="", moved_for=500.0)) >= 45.0 - EVERY


def test_a_call_that_nobody_has_and_nobody_handed_over_waits_as_long():
    """A claim that an older version undid leaves no time: it counts from when it was found."""
    watching = Watching()
    watching.look(silent(claim=""))
    assert watching.seconds_until_orphaned(silent(claim="")) >= 45.0


def test_those_that_were_silent_longest_come_first():
    """What one look has time for should be the oldest."""
    watching = Watching()
    calls = [silent(f"rtc_iad_{number}", owned_ms=str(1000 - number)) for number in range(3)]
    watching.look(*calls)
    watching.seconds_until_orphaned(*calls)
    assert watching.look(*calls) == ["rtc_iad_2", "rtc_iad_1", "rtc_iad_0"]


def test_what_is_watched_is_no_more_than_what_the_last_look_found():
    """Calls that are gone leave nothing behind."""
    watching = Watching()
    watching.look(*[silent(f"rtc_iad_{number}") for number in range(50)])
    assert len(watching.orphans) == 50
    watching.look(silent())
    assert len(watching.orphans) == 1


def test_the_cause_is_the_node_where_one_had_the_call_and_else_the_client():
    """Who is to blame is in the tombstone."""
    assert silent().cause == NODE_LOST
    assert silent(claim="").cause == CLIENT_LOST
