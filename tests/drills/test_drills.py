"""Every fault once, short and with less load: a fleet of real processes keeps its promises while parts of it break.

`python -m tests.drills` runs them at full length.
"""

from itertools import cycle

import pytest

from tests.drills import outlive
from tests.drills.faults import DRILLS
from tests.drills.fleet import Placement
from tests.drills.report import survival_table, table
from tests.drills.run import SHORT, carry_out
from tests.drills.upheavals import UPHEAVALS

FAULTY = [drill for drill in DRILLS if drill.name != "calm"]  # which all of them contain
ENGINES = list(zip(FAULTY, cycle(("redis", "valkey")), strict=False))


@pytest.mark.timeout(SHORT.limit_seconds + 30)
@pytest.mark.parametrize(("drill", "engine"), ENGINES, ids=[f"{drill.name}-{engine}" for drill, engine in ENGINES])
async def test_a_fleet_keeps_its_promises(drill, engine):
    """Nothing answered 2xx is lost, repeated or out of order, refusals are honest, no call ends, no audio is lost."""
    outcome = await carry_out(drill, engine, SHORT, Placement(), seed=1)
    assert not outcome.verdict.broken, f"\n{table([outcome])}"
    assert outcome.verdict.sent > SHORT.messages_per_second, "too little was sent to show anything"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("upheaval", UPHEAVALS, ids=[upheaval.name for upheaval in UPHEAVALS])
async def test_calls_outlive_their_parts(upheaval):
    """Every call goes on until its person hangs up, and knows what was said; no message is lost or repeated."""
    survived = await outlive.carry_out(upheaval, upheaval.short, "redis", seed=1, placement=Placement())
    assert not survived.verdict.broken, f"\n{survival_table([survived])}"
