"""The exposition: what Prometheus reads is what was counted."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ops.metrics import Metrics


@dataclass
class Buckets:
    """A histogram as the data path keeps it."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels, as Prometheus' own parser reads it."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def test_values_are_read_when_they_are_asked_for():
    """Nothing is stored twice: the data path's integers are the truth."""
    metrics, counts = Metrics(), {"calls": 1}
    metrics.counter("calls_total", "Calls.", lambda: counts["calls"])
    assert samples(metrics.render())["calls_total", ()] == 1
    counts["calls"] = 2
    assert samples(metrics.render())["calls_total", ()] == 2


def test_each_family_has_its_type_and_its_help():
    """Dashboards and rules are generated from them."""
    metrics = Metrics()
    metrics.counter("a_total", "Counted.", lambda: 1)
    metrics.gauge("b", "Measured.", lambda: 2)
    metrics.counters("c_total", "Counted by x.", "x", lambda: {"y": 3})
    metrics.gauges("d", "Measured by x.", "x", lambda: {"y": 4})
    metrics.histogram("e_seconds", "Lasted.", Buckets((1.0,), [1, 0], 0.5))
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    assert {name: (family.type, family.documentation) for name, family in families.items()} == {
        "a": ("counter", "Counted."),
        "b": ("gauge", "Measured."),
        "c": ("counter", "Counted by x."),
        "d": ("gauge", "Measured by x."),
        "e_seconds": ("histogram", "Lasted."),
    }


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.floats(0, 1e9))
def test_a_histogram_is_cumulative_and_ends_in_infinity(counts, total):
    """The data path counts each bucket by itself; Prometheus wants "up to and including"."""
    metrics = Metrics()
    metrics.histogram("x_seconds", "X.", Buckets((0.005, 1.0, 2.5), counts, total))
    found = samples(metrics.render())
    for position, bound in enumerate(("0.005", "1", "2.5", "+Inf")):
        assert found["x_seconds_bucket", (("le", bound),)] == sum(counts[: position + 1])
    assert found["x_seconds_count", ()] == sum(counts)
    assert found["x_seconds_sum", ()] == pytest.approx(total)


def test_a_histogram_whose_counts_do_not_fit_its_bounds_is_a_bug():
    """One bucket off would be believed for months."""
    metrics = Metrics()
    metrics.histogram("x_seconds", "X.", Buckets((1.0, 2.0), [1, 2], 0.0))
    with pytest.raises(ValueError, match="shorter"):
        metrics.render()


@given(st.lists(st.text(max_size=12), unique=True, max_size=5))
def test_any_text_can_be_a_label(values):
    """A region's name is the operator's; a quote in it must not break the page."""
    metrics = Metrics()
    metrics.counters("x_total", "X.", "label", lambda: dict.fromkeys(values, 1))
    assert set(samples(metrics.render())) == {("x_total", (("label", value),)) for value in values}


@pytest.mark.parametrize("value", ['"', "\\", "\n", "\\n", 'a"} 1\nevil 2'], ids=ascii)
def test_a_label_cannot_add_lines_of_its_own(value):
    """The three characters that the format escapes, and the ways to get around that."""
    metrics = Metrics()
    metrics.gauges("x", "X.", "label", lambda: {value: 7})
    assert samples(metrics.render()) == {("x", (("label", value),)): 7.0}


@pytest.mark.parametrize("value", [0, 1, -1, 0.1, 1e-9, 2**53, 1e300, math.inf, -math.inf, math.nan], ids=repr)
def test_every_number_can_be_shown(value):
    """One odd gauge must not take the whole page down."""
    metrics = Metrics()
    metrics.gauge("x", "X.", lambda: value)
    found = samples(metrics.render())["x", ()]
    assert found == value or (math.isnan(found) and math.isnan(value))


def test_the_process_is_on_the_page():
    """Memory and descriptors are what a leak shows in."""
    names = {family.name for family in text_string_to_metric_families(Metrics().render_process().decode())}
    assert {"process_open_fds", "process_resident_memory_bytes", "python_info"} <= names
