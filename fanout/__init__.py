"""Messages between nodes: put in on any node, they reach the node that owns the call, once, in order, with a receipt.

It knows calls, messages and Redis; it never touches a client's or a model's socket, and imports neither relay nor ops.
"""

from fanout.errors import (
    BusFull,
    BusTimeout,
    CallEnded,
    CallNotFound,
    CallNotStarted,
    CallStateUnknown,
    CallTaken,
    FanoutError,
    IdempotencyConflict,
    InboxFull,
    InvalidItem,
    MessageTooLarge,
    RegionUnreachable,
)
from fanout.ids import home_of, item_id_for, new_call_id
from fanout.messages import CallPage, CallRecord, Message, Receipt, Status, Tombstone
from fanout.node import Fanout
from fanout.owned import OwnedCall
from fanout.settings import BusSettings

__all__ = [
    "BusFull",
    "BusSettings",
    "BusTimeout",
    "CallEnded",
    "CallNotFound",
    "CallNotStarted",
    "CallPage",
    "CallRecord",
    "CallStateUnknown",
    "CallTaken",
    "Fanout",
    "FanoutError",
    "IdempotencyConflict",
    "InboxFull",
    "InvalidItem",
    "Message",
    "MessageTooLarge",
    "OwnedCall",
    "Receipt",
    "RegionUnreachable",
    "Status",
    "Tombstone",
    "home_of",
    "item_id_for",
    "new_call_id",
]
