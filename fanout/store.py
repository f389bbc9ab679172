"""The interface between the bus and one home's Redis. fanout/redis implements it; so does the tests' double."""

from collections.abc import Sequence
from typing import Any, Protocol

from fanout.core.runs import Run
from fanout.errors import RegionUnreachable

Outcome = Any  # a script's answer (a list whose first element is a word in bytes), or a RegionUnreachable


class Listener(Protocol):
    """What a store tells, from its readers: each returns at once and never raises."""

    def on_message(self, channel: str, data: bytes) -> None:
        """A message on a channel that is wanted."""

    def on_subscribed(self, channel: str) -> None:
        """The server acknowledged a channel, at first and after every reconnect: what was published before is lost."""

    def on_new_server(self, tags: frozenset[str]) -> None:
        """Another Redis process than before serves these partitions: what it was told last may be gone."""


class Store(Protocol):
    """One home's Redis: scripts, and channels. Nothing here raises for a Redis that is away or strange."""

    name: str

    async def run(self, runs: Sequence[Run]) -> list[Outcome]:
        """Outcomes in the order of `runs`; those with one tag are carried out in that order.

        A RegionUnreachable among them (an element, not raised) means: unknown whether it ran, or will yet.
        """
        ...

    def want(self, channel: str) -> None:
        """Carry this channel, over every reconnect, until it is unwanted. The tag in its braces says where."""

    def unwant(self, channel: str) -> None:
        """Stop carrying it."""

    def renew(self, channel: str) -> None:
        """Subscribe once more: the server doesn't have it, whatever we believe."""

    def holds(self, channel: str) -> bool:
        """Whether the server has acknowledged this channel on the present connection."""
        ...

    def beat_tags(self) -> list[str]:
        """For each server of the home, one tag that it serves: where to send heartbeats so that each feed hears one."""
        ...

    def check_silence(self) -> None:
        """Drop feeds that heard nothing for `silence_seconds`: TCP doesn't notice a frozen server."""

    async def work(self) -> None:
        """Keep the feeds and the topology; never returns."""

    async def close(self) -> None:
        """Close every connection."""

    def status(self) -> dict[str, int | float]:
        """Plain numbers for the status page and the metrics."""
        ...


async def run_one(store: Store, run: Run) -> list[Any]:
    """One script's answer. Raises RegionUnreachable."""
    (outcome,) = await store.run([run])
    if isinstance(outcome, RegionUnreachable):
        raise outcome
    answer: list[Any] = outcome
    return answer
