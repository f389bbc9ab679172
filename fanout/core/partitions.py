"""Which of 64 hash tags a call's keys carry. Pure.

On a Redis Cluster keys with one tag share a slot, so a call's script may touch them all and one SSUBSCRIBE may carry
the channels of many calls. The tags are balanced: tag i lies in the middle of the i-th 64th of the slots, so that
however a cluster divides its slots, each primary gets its share. Bare tags 0, 1, 2… skew badly.
"""

import binascii
import string
import zlib
from functools import cache
from itertools import product

SLOTS = 16384
PARTITIONS = 64
_WIDTH = SLOTS // PARTITIONS
_LETTERS = (string.digits + string.ascii_lowercase).encode()


def slot_of(tag: bytes) -> int:
    """The cluster slot of a hash tag: CRC16 (XMODEM) modulo 16384, as the Redis Cluster specification has it."""
    return binascii.crc_hqx(tag, 0) % SLOTS


@cache
def partition_tags() -> tuple[str, ...]:
    """The 64 tags: of the shortest strings, the one whose slot is nearest to the middle of its partition.

    Part of the key names, hence never to change: a test holds the values.
    """
    best: dict[int, tuple[int, int, bytes]] = {}
    for length in (1, 2, 3):
        for letters in product(_LETTERS, repeat=length):
            tag = bytes(letters)
            partition, place = divmod(slot_of(tag), _WIDTH)
            candidate = (abs(place - _WIDTH // 2), length, tag)
            best[partition] = min(best.get(partition, candidate), candidate)
    return tuple(best[partition][2].decode() for partition in range(PARTITIONS))


def partition_of(call_id: str) -> int:
    """The partition of a call: a stable hash of its id, the same on every node and in every version."""
    return zlib.crc32(call_id.encode()) % PARTITIONS


def tag_of(call_id: str) -> str:
    """The hash tag that all keys and the channel of a call carry."""
    return partition_tags()[partition_of(call_id)]


def tag_in(name: str) -> str:
    """The hash tag of a key or channel: what stands in its first braces, or the whole name if there is none."""
    _, _, rest = name.partition("{")
    tag, brace, _ = rest.partition("}")
    return tag if tag and brace else name
