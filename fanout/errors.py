"""What the bus refuses, and why: one type per answer that a caller can give, with fields instead of sentences."""

from fanout.messages import Tombstone


class FanoutError(Exception):
    """Base of all that this package raises on purpose."""


class CallNotFound(FanoutError):
    """No such call, or another tenant's: the two look the same from outside."""

    def __init__(self, call_id: str) -> None:
        super().__init__(f"no call {call_id}")
        self.call_id = call_id


class CallNotStarted(FanoutError):
    """The id was reserved for a client that has not connected yet."""

    def __init__(self, call_id: str) -> None:
        super().__init__(f"call {call_id} has not started")
        self.call_id = call_id


class CallStateUnknown(FanoutError):
    """The home Redis has lost its data and the call's owner, if there is one, has not restored the call yet."""

    def __init__(self, call_id: str) -> None:
        super().__init__(f"whether there is a call {call_id} is not known yet")
        self.call_id = call_id


class CallEnded(FanoutError):
    """The call is over; its tombstone says why."""

    def __init__(self, tombstone: Tombstone) -> None:
        super().__init__(f"call {tombstone.id} ended: {tombstone.why}")
        self.tombstone = tombstone


class CallTaken(FanoutError):
    """The call has another owner; the one who asked must yield."""

    def __init__(self, call_id: str) -> None:
        super().__init__(f"call {call_id} has another owner")
        self.call_id = call_id


class InboxFull(FanoutError):
    """The call has as many unanswered messages, or bytes of them, as its inbox holds."""

    def __init__(self, call_id: str) -> None:
        super().__init__(f"inbox of {call_id} is full")
        self.call_id = call_id


class IdempotencyConflict(FanoutError):
    """The message id was used before with another body."""

    def __init__(self, call_id: str, message_id: str) -> None:
        super().__init__(f"message {message_id} was put into {call_id} with another body")
        self.call_id = call_id
        self.message_id = message_id


class InvalidItem(FanoutError):
    """What was to be put in breaks a rule: `param` is the field, None where it is the whole; `code` says which kind."""

    def __init__(self, param: str | None, message: str, *, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class MessageTooLarge(FanoutError):
    """The packed message exceeds the limit of the bus."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"message of {size} bytes, limit {limit}")
        self.size = size
        self.limit = limit


class BusFull(FanoutError):
    """This node has as many messages under way as it may hold, or as many watches."""

    def __init__(self, items: int, size: int, *, what: str = "messages") -> None:
        super().__init__(f"{items} {what} under way, {size} bytes")
        self.items = items
        self.size = size


class BusTimeout(FanoutError):
    """Nothing was written in time: earlier messages of this node to the same call were still without an answer."""

    def __init__(self, call_id: str, message_id: str) -> None:
        super().__init__(f"message {message_id} to {call_id} had to wait for earlier ones")
        self.call_id = call_id
        self.message_id = message_id


class RegionUnreachable(FanoutError):
    """The Redis of the call's home region did not answer; whether anything was written there is unknown."""

    def __init__(self, region: str) -> None:
        super().__init__(f"region {region} is unreachable")
        self.region = region


class AccountsSettling(FanoutError):
    """The Redis of a tenant's account is new and may lack what lives; in `seconds` nodes will have told it."""

    def __init__(self, region: str, seconds: float) -> None:
        super().__init__(f"accounts in {region} settle for {seconds:.1f} s")
        self.region = region
        self.seconds = seconds


class AccountsFull(FanoutError):
    """A region's list of revoked tokens has as many as it may hold."""

    def __init__(self, region: str, limit: int) -> None:
        super().__init__(f"{limit} tokens are revoked in {region}")
        self.region = region
        self.limit = limit


class ReaderTooSlow(FanoutError):
    """Whoever reads a call's events took them slower than they came, and no more are kept for it.

    `position` is what to give as `after` to go on behind the last event that was taken, as far as the log still has it.
    """

    def __init__(self, call_id: str, limit: int, position: str | None) -> None:
        super().__init__(f"{limit} events of {call_id} wait to be taken; go on after {position or 'none'}")
        self.call_id = call_id
        self.limit = limit
        self.position = position


class Unsealable(FanoutError):
    """A value was sealed with a key that is not known here, or for another place, or is damaged."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"cannot be opened: {reason}")
