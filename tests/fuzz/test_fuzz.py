"""Every target for a moment, with the same inputs each time; the long run: docs/fuzzing.md."""

from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.driving import run_mutator, run_shapes
from tests.fuzz.frames import APPEND, check_leg, wired
from tests.fuzz.mutating import mutations
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

_SLOW = {"leg": 300, "addresses": 500}  # executions; a leg has a connection for each
_EXECUTIONS = 1500
_SHAPES = 40


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_no_mutation_of_good_bytes_breaks_a_promise(target: Target):
    """The promise is the target's own: see its ``check``."""
    for data in islice(mutations(target.seeds, target.words, 1), _SLOW.get(target.name, _EXECUTIONS)):
        target.check(data)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_nothing_that_is_nearly_right_breaks_a_promise(target: Target):
    """Mutations seldom come as far as what is behind the first check."""
    calm = settings(max_examples=_SHAPES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

    def check(data: bytes) -> None:
        target.check(data)

    calm(given(target.shapes)(check))()


# Inputs that broke a promise once; what is read by no leg: tests/pure/test_fuzz_finds.py.
_LEG_FINDS = {
    "a CLOSE with a code that nobody may send, and a bad frame": b"\0" + wired(0x88, b"\x03\xee") + b"\0\0",
    "a CLOSE with a code beyond all codes, and a bad frame": b"\0" + wired(0x88, b"\xff\xff") + b"\x81\x01a",
    "audio behind a message that is not UTF-8": b"\1" + wired(0x81, b"\xff") + wired(0x81, APPEND),
    "audio behind a CLOSE": b"\0" + wired(0x88, b"\x03\xe8") + wired(0x81, APPEND),
}


@pytest.mark.parametrize("data", _LEG_FINDS.values(), ids=_LEG_FINDS)
def test_what_a_leg_got_wrong_once_it_gets_right(data):
    """It echoed the codes, and by itself passed audio on to the model after it had refused the client."""
    check_leg(data)


def _refuse_zero(data: bytes) -> None:
    assert b"\0" not in data


@pytest.mark.parametrize("run", [run_mutator, run_shapes], ids=["mutator", "shapes"])
def test_a_broken_promise_is_found_and_told_with_its_input(run):
    """Else the long run could be blind."""
    outcome = run(Target("broken", _refuse_zero, (b"good",), (b"word",), st.binary()), 60.0, 0)
    ((data, problem),) = outcome.found
    assert b"\0" in data
    assert "_refuse_zero" in problem
