"""What a call is asked to do: plain values, which the session carries out in their order."""

from enum import Enum, auto
from typing import NamedTuple

from relay.core.endings import Ending
from relay.core.frames import Opcode
from relay.core.messages import Settled


class Side(Enum):
    """A leg of the call."""

    CLIENT = auto()
    MODEL = auto()
    SIDE = auto()  # a backend attached to the call; there may be several, on any node


class Send(NamedTuple):
    """Send a message on a leg."""

    side: Side
    payload: bytes
    kind: Opcode = Opcode.TEXT


class Pause(NamedTuple):
    """Stop reading a leg: what it sent is held up to the limit."""

    side: Side


class Resume(NamedTuple):
    """Read the leg again."""

    side: Side


class End(NamedTuple):
    """End the call; ``error`` is an event that the client gets first."""

    ending: Ending
    error: bytes | None = None


class Complaint(NamedTuple):
    """The model refused an event of the relay's own that no message stands behind: for the node's log.

    Its message is left out: servers quote in it what they were sent.
    """

    code: str
    param: str  # the field that is wrong, as the model names it


class Log(NamedTuple):
    """Show an event to those who watch the call."""

    event: bytes


class Sound(NamedTuple):
    """Let those who listen to the call hear this audio event."""

    event: bytes


class Note(NamedTuple):
    """A fact about the call has changed; None: it holds no more."""

    name: str
    value: bytes | None


Action = Send | Pause | Resume | End | Settled | Complaint | Log | Sound | Note


class Passed(NamedTuple):
    """What went straight from leg to leg since the call began: plain audio, in messages and bytes."""

    client_messages: int = 0
    client_bytes: int = 0
    model_messages: int = 0
    model_bytes: int = 0
