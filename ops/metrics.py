"""Prometheus text from plain integers: rendering must not hold the event loop (a registry of this size takes 16 ms).

A family is its prefix lines and a function that reads the current values; nothing is stored here.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

Read = Callable[[], float]


class Buckets(Protocol):
    """A histogram kept elsewhere: upper bounds, a count for each and one for +Inf, and the sum of the values."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float


class Metrics:
    """The families of one node."""

    def __init__(self) -> None:
        self._families: list[Callable[[], Iterable[str]]] = []
        self._process = CollectorRegistry(auto_describe=False)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)

    def counter(self, name: str, text: str, read: Read) -> None:
        """Add a counter; its name ends in ``_total``."""
        self._single(name, "counter", text, read)

    def gauge(self, name: str, text: str, read: Read) -> None:
        """Add a gauge."""
        self._single(name, "gauge", text, read)

    def _single(self, name: str, kind: str, text: str, read: Read) -> None:
        head = _head(name, kind, text)
        self._families.append(lambda: (f"{head}{name} {_number(read())}\n",))

    def counters(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Add a counter with one label; ``read`` returns the count of every label value, from a closed set."""
        self._labelled(name, "counter", text, label, read)

    def gauges(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Add a gauge with one label."""
        self._labelled(name, "gauge", text, label, read)

    def _labelled(self, name: str, kind: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        head = _head(name, kind, text)

        def lines() -> Iterable[str]:
            yield head
            for value, number in read().items():
                yield f'{name}{{{label}="{_escaped(value)}"}} {_number(number)}\n'

        self._families.append(lines)

    def histogram(self, name: str, text: str, buckets: Buckets) -> None:
        """Add a histogram; its name ends in its unit."""
        head = _head(name, "histogram", text)
        prefixes = [f'{name}_bucket{{le="{bound}"}} ' for bound in (*map(_number, buckets.bounds), "+Inf")]

        def lines() -> Iterable[str]:
            yield head
            total = 0
            for prefix, number in zip(prefixes, buckets.counts, strict=True):
                total += number
                yield f"{prefix}{total}\n"
            yield f"{name}_sum {_number(buckets.sum)}\n{name}_count {total}\n"

        self._families.append(lines)

    def render(self) -> bytes:
        """Return our families: a fraction of a millisecond."""
        return "".join(line for family in self._families for line in family()).encode()

    def render_process(self) -> bytes:
        """Return the process's families, from the Prometheus client: for a thread, it lists every open descriptor."""
        return generate_latest(self._process)


def _head(name: str, kind: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _number(value: float) -> str:
    if math.isfinite(value):
        return str(int(value)) if value == int(value) else repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
