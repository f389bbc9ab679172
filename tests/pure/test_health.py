"""A node's health only goes forward."""

import pytest

from ops.health import Health, moved

STARTING, READY, DRAINING = Health.STARTING, Health.READY, Health.DRAINING
FORWARD = {(STARTING, READY), (STARTING, DRAINING), (READY, DRAINING), (DRAINING, DRAINING)}


@pytest.mark.parametrize("to", Health, ids=lambda state: state.value)
@pytest.mark.parametrize("state", Health, ids=lambda state: state.value)
def test_a_node_never_goes_back(state, to):
    """Balancers may have taken it out already; a drain that is asked for twice is one drain."""
    if (state, to) in FORWARD:
        assert moved(state, to) is to
        return
    with pytest.raises(ValueError, match=f"{state.value} cannot become {to.value}"):
        moved(state, to)


def test_only_a_ready_node_takes_calls():
    """Neither before its settings are checked nor while it drains."""
    assert [state for state in Health if state.accepts_calls] == [READY]
