"""Names of keys and channels. The braces are the cluster's hash tag: what shares one may share a script."""

from dataclasses import dataclass

from fanout.core.partitions import partition_tags, tag_of
from fanout.ids import home_of


@dataclass(frozen=True, slots=True)
class CallKeys:
    """All that a call has in its home Redis, in one slot, in the order in which the scripts name it."""

    id: str  # of the call
    tag: str
    generation: str  # hash of the partition: which server process it was last seen on, and since when
    call: str  # hash: tenant, epoch, claim, record, state, last entry, place of the memory
    inbox: str  # stream: what has no terminal receipt
    receipts: str  # hash by message id
    tombstone: str  # hash: tenant, record
    memory: str  # list: what a new owner must know of the conversation
    settled: str  # list of messages by the time of their end, so that receipts can be forgotten
    index: str  # sorted set of the tenant's live calls in this partition
    channel: str  # the doorbell
    log: str  # stream: the call's events, in batches, for who watches
    facts: str  # hash by name: what is known of the call now
    watchers: str  # hash by node: until when it watches
    feed: str  # channel: what goes into the log
    sound: str  # channel: the same, and audio between it
    owned: str  # sorted set of the home's calls in this partition, by when their owner last said that it has them (ms)

    @property
    def all(self) -> tuple[str, ...]:
        """KEYS of a call's scripts."""
        return (
            self.generation,
            self.call,
            self.inbox,
            self.receipts,
            self.tombstone,
            self.memory,
            self.settled,
            self.index,
            self.channel,
            self.log,
            self.facts,
            self.watchers,
            self.feed,
            self.sound,
            self.owned,
        )


class Keys:
    """Key names under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        partition_tags()  # 20 ms the first time: now, not within the first call

    def call(self, call_id: str, tenant: str) -> CallKeys:
        """The keys of a call."""
        tag = tag_of(call_id)
        return CallKeys(
            id=call_id,
            tag=tag,
            generation=self.generation(tag),
            call=self.call_stem(tag) + call_id,
            inbox=f"{self._stem(tag)}:inbox:{call_id}",
            receipts=f"{self._stem(tag)}:receipts:{call_id}",
            tombstone=f"{self._stem(tag)}:ended:{call_id}",
            memory=f"{self._stem(tag)}:memory:{call_id}",
            settled=f"{self._stem(tag)}:settled:{call_id}",
            index=self.index(tag, home_of(call_id) or "", tenant),
            channel=f"{self._stem(tag)}:bell:{call_id}",
            log=f"{self._stem(tag)}:log:{call_id}",
            facts=f"{self._stem(tag)}:facts:{call_id}",
            watchers=f"{self._stem(tag)}:watchers:{call_id}",
            feed=f"{self._stem(tag)}:feed:{call_id}",
            sound=f"{self._stem(tag)}:sound:{call_id}",
            owned=self.owned(tag, home_of(call_id) or ""),
        )

    def generation(self, tag: str) -> str:
        """See `CallKeys.generation`."""
        return f"{self._stem(tag)}:generation"

    def call_stem(self, tag: str) -> str:
        """What the keys of calls in this partition begin with."""
        return f"{self._stem(tag)}:call:"

    def index(self, tag: str, home: str, tenant: str) -> str:
        """See `CallKeys.index`. The home is in it since homes may share a Redis, in development."""
        return f"{self._stem(tag)}:calls:{home}:{tenant}"

    def owned(self, tag: str, home: str) -> str:
        """See `CallKeys.owned`; the home as in `index`."""
        return f"{self._stem(tag)}:owned:{home}"

    def node_channel(self, tag: str, node: str) -> str:
        """Where a node hears the receipts of this partition's calls, and its own heartbeat."""
        return f"{self._stem(tag)}:node:{node}"

    def node_alive(self, tag: str, node: str) -> str:
        """A node's heartbeat key. It is in several partitions; who looks for it looks in `tag_of(node)`."""
        return f"{self._stem(tag)}:alive:{node}"

    def account(self, tag: str, kind: str, home: str, *parts: str) -> str:
        """A key of a tenant's account, or of one that a region has for all; the home as in `index`, a tenant last."""
        return ":".join((self._stem(tag), kind, home, *parts))

    def _stem(self, tag: str) -> str:
        return f"{self._prefix}:{{{tag}}}"


def tag_in(name: str) -> str:
    """The hash tag in a key or channel name."""
    return name[name.index("{") + 1 : name.index("}")]
