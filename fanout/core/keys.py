"""Names of keys and channels. The braces are the cluster's hash tag: what shares one may share a script."""

from dataclasses import dataclass

from fanout.core.partitions import partition_tags, tag_of


@dataclass(frozen=True, slots=True)
class CallKeys:
    """All that a call has in its home Redis, in one slot."""

    call: str  # hash: tenant, epoch, claim, record, state, last entry
    inbox: str  # stream: what has no terminal receipt
    receipts: str  # hash by message id
    tombstone: str  # hash: tenant, record
    channel: str  # the doorbell


class Keys:
    """Key names under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        partition_tags()  # 20 ms the first time: now, not within the first call

    def call(self, call_id: str) -> CallKeys:
        """The keys of a call."""
        stem = f"{self._prefix}:{{{tag_of(call_id)}}}"
        return CallKeys(
            call=f"{stem}:call:{call_id}",
            inbox=f"{stem}:inbox:{call_id}",
            receipts=f"{stem}:receipts:{call_id}",
            tombstone=f"{stem}:ended:{call_id}",
            channel=f"{stem}:bell:{call_id}",
        )

    def tenant_calls(self, tenant: str) -> str:
        """Sorted set of a tenant's live calls by start time; a list for people, not the truth."""
        return f"{self._prefix}:calls:{tenant}"

    def node_channel(self, node: str) -> str:
        """Where a node hears its receipts and its own heartbeat."""
        return f"{self._prefix}:node:{node}"

    def node_alive(self, node: str) -> str:
        """The node's heartbeat key: while it is there, the calls that name the node are live."""
        return f"{self._prefix}:alive:{node}"
