"""Which server is the primary of each partition, from what servers and sentinels say. Pure: it asks nobody.

A server that was cut off or frozen may tell of old times. Redis Cluster and Sentinel both number their decisions, so of
two answers the one with the higher configuration epoch is true.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fanout.core.partitions import partition_tags, slot_of


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class SlotRange(NamedTuple):
    """Slots `first` to `last`, both included, and their primary."""

    first: int
    last: int
    primary: Address
    node_id: str


class View(NamedTuple):
    """What one node of a cluster says of it."""

    ranges: tuple[SlotRange, ...]
    epochs: Mapping[str, int]  # configuration epochs by node id
    nodes: frozenset[Address]  # all that serve, replicas too: whom one may ask the next time


class MasterClaim(NamedTuple):
    """What one sentinel says of the master."""

    epoch: int
    address: Address


def read_view(slots: Sequence[Any], nodes: bytes, asked: Address) -> View:
    """From CLUSTER SLOTS and CLUSTER NODES. Raises ValueError if they cannot be read.

    An empty or unknown host in the former means the one that was asked.
    """
    try:
        ranges, known = [], set()
        for first, last, primary, *replicas in slots:
            ranges.append(SlotRange(int(first), int(last), _address(primary, asked), bytes(primary[2]).decode()))
            known |= {_address(node, asked) for node in (primary, *replicas)}
        lines = [line.split() for line in nodes.decode().splitlines()]
        epochs = {fields[0]: int(fields[6]) for fields in lines if len(fields) > 6}
    except (TypeError, IndexError, ValueError) as exc:
        raise ValueError("the cluster's answer cannot be read") from exc
    return View(tuple(ranges), epochs, frozenset(known))


def primaries_by_tag(views: Iterable[View]) -> dict[str, Address]:
    """Each partition's primary; of several views, what the owner with the highest epoch says.

    Unserved ones are left out.
    """
    slots = {tag: slot_of(tag.encode()) for tag in partition_tags()}
    found: dict[str, tuple[int, Address]] = {}
    for view in views:
        for one in view.ranges:
            epoch = view.epochs.get(one.node_id, 0)
            for tag, slot in slots.items():
                if one.first <= slot <= one.last and (tag not in found or epoch > found[tag][0]):
                    found[tag] = (epoch, one.primary)
    return {tag: address for tag, (_, address) in found.items()}


def read_master(address: Sequence[Any], details: Sequence[Any]) -> MasterClaim:
    """From SENTINEL GET-MASTER-ADDR-BY-NAME and SENTINEL MASTER. Raises ValueError if they cannot be read.

    While a sentinel leads a failover, the former names the promoted replica and the latter still the old master, but
    the epoch in it is the new one.
    """
    try:
        pairs = dict(zip(details[::2], details[1::2], strict=True))
        return MasterClaim(int(pairs[b"config-epoch"]), Address(bytes(address[0]).decode(), int(address[1])))
    except (TypeError, KeyError, IndexError, ValueError) as exc:
        raise ValueError("the sentinel's answer cannot be read") from exc


def everywhere(address: Address) -> dict[str, Address]:
    """One server for all partitions."""
    return dict.fromkeys(partition_tags(), address)


def _address(node: Sequence[Any], asked: Address) -> Address:
    host = bytes(node[0]).decode() if node[0] else ""
    return Address(asked.host if host in {"", "?"} else host, int(node[1]))
