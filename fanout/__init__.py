"""Messages between nodes: put in on any node, they reach the node that owns the call, once, in order, with a receipt.

It knows calls, messages and Redis; it never touches a client's or a model's socket, and imports neither relay nor ops.
"""

from fanout.accounts import Accounts
from fanout.core.accounts import Admission, Report, Revoked, Standing, Terms, UsageFound, UsageRow
from fanout.errors import (
    AccountsFull,
    AccountsSettling,
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
    ReaderTooSlow,
    RegionUnreachable,
)
from fanout.ids import home_of, item_id_for, new_call_id
from fanout.messages import (
    CallFilter,
    CallPage,
    CallRecord,
    Facts,
    LogEntry,
    Message,
    Receipt,
    Reservation,
    Status,
    Tombstone,
    WatchEnd,
)
from fanout.node import Fanout
from fanout.owned import OwnedCall
from fanout.settings import BusSettings
from fanout.watcher import Watch

__all__ = [
    "Accounts",
    "AccountsFull",
    "AccountsSettling",
    "Admission",
    "BusFull",
    "BusSettings",
    "BusTimeout",
    "CallEnded",
    "CallFilter",
    "CallNotFound",
    "CallNotStarted",
    "CallPage",
    "CallRecord",
    "CallStateUnknown",
    "CallTaken",
    "Facts",
    "Fanout",
    "FanoutError",
    "IdempotencyConflict",
    "InboxFull",
    "InvalidItem",
    "LogEntry",
    "Message",
    "MessageTooLarge",
    "OwnedCall",
    "ReaderTooSlow",
    "Receipt",
    "RegionUnreachable",
    "Report",
    "Reservation",
    "Revoked",
    "Standing",
    "Status",
    "Terms",
    "Tombstone",
    "UsageFound",
    "UsageRow",
    "Watch",
    "WatchEnd",
    "home_of",
    "item_id_for",
    "new_call_id",
]
