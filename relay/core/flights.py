"""Events that went to the model for somebody, until it says what became of them. Pure.

The Realtime API acknowledges by what an event does, not by its id: an item by its item id, the rest in the order in
which they were sent. Only a refusal names its cause, and not always.
"""

import re
from typing import Any, Final, NamedTuple

DUPLICATE: Final = "item_create_duplicate_item_id"
_WORD: Final = re.compile(r"[A-Za-z0-9_-]+")  # of an error's message: item ids are such words
_TRACKED: Final = 256  # of the client's own events; more under way are no longer told from a backend's
_KEPT_BYTES: Final = 1 << 20  # of the client's own events; one beyond that is not said again to another model leg

# What the model answers to an event that it takes: the answer's type, and whether it names the item.
_ANSWERS: Final = {
    "session.update": ("session.updated", False),
    "input_audio_buffer.commit": ("input_audio_buffer.committed", False),
    "input_audio_buffer.clear": ("input_audio_buffer.cleared", False),
    "conversation.item.create": ("item", True),
    "conversation.item.delete": ("conversation.item.deleted", True),
    "conversation.item.truncate": ("conversation.item.truncated", True),
    "conversation.item.retrieve": ("conversation.item.retrieved", False),
    "response.cancel": ("response.done", False),
    "response.create": ("response.created", False),  # only those outside the conversation come here
}


# What of the client's is said again to another model leg: all else was about audio or a response that are gone.
_REPEATED: Final = frozenset(
    {"session.update", "conversation.item.create", "conversation.item.delete", "conversation.item.retrieve"}
    | {"conversation.item.truncate", "response.create"}
)


class Flight(NamedTuple):
    """An event on its way. ``cargo`` is whoever waits for it, None for the client itself."""

    cargo: Any
    answer: tuple[str, str] | None  # type of the answer, and the item that it names or ""; None: it has none
    until: float
    again: bytes = b""  # the event itself, to say it again


OWN: Final = object()  # the cargo of an event that the relay sends for itself


class Flights:
    """The events under way on one model leg, by their event ids there, oldest first."""

    __slots__ = ("_flights", "_kept_bytes")

    def __init__(self) -> None:
        self._flights: list[tuple[str, Flight]] = []  # event ids are the senders' choice: one may come twice
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._flights)

    def add(self, event_id: str, kind: str, item_id: str, cargo: Any, until: float, again: bytes = b"") -> None:
        """An event goes out; ``item_id`` is that of the item that it is about, ``again`` the client's event itself."""
        answer, named = _ANSWERS.get(kind, ("", False))
        if named and not item_id:
            answer = ""  # it names no item: the model refuses it
        if cargo is None:
            own = [each for each in self._flights if each[1].cargo is None]
            if len(own) >= _TRACKED:
                self._forget(self._flights.index(own[0]))
        if kind not in _REPEATED or self._kept_bytes + len(again) > _KEPT_BYTES:
            again = b""
        self._kept_bytes += len(again)
        about = (answer, item_id if named else "") if answer else None
        self._flights.append((event_id, Flight(cargo, about, until, again)))

    def _forget(self, at: int) -> Flight:
        flight = self._flights.pop(at)[1]
        self._kept_bytes -= len(flight.again)
        return flight

    def on_answer(self, kind: str, item_id: str = "") -> Flight | None:
        """The model has done what the oldest event with this answer asked for."""
        for at, (_, flight) in enumerate(self._flights):
            if flight.answer is not None and flight.answer[0] == kind and flight.answer[1] in {"", item_id}:
                return self._forget(at)
        return None

    def awaits(self, kind: str) -> bool:
        """Whether somebody else than the client waits for the next answer of this type."""
        flight = next((f for _, f in self._flights if f.answer is not None and f.answer[0] == kind), None)
        return flight is not None and flight.cargo is not None

    def is_own(self, kind: str) -> bool:
        """Whether the next answer of this type is to an event of the relay's own."""
        flight = next((f for _, f in self._flights if f.answer is not None and f.answer[0] == kind), None)
        return flight is not None and flight.cargo is OWN

    def expects_own(self, kind: str) -> bool:
        """Whether any answer of this type to come is to an event of the relay's own."""
        return any(f.cargo is OWN and f.answer is not None and f.answer[0] == kind for _, f in self._flights)

    def on_refused(self, event_id: str) -> Flight | None:
        """The model refused this event."""
        for at, (each, _) in enumerate(self._flights):
            if each == event_id:
                return self._forget(at)
        return None

    def on_duplicate(self, message: str) -> Flight | None:
        """The model has an item already, and says so without naming the event: the words name the item."""
        words = _WORD.findall(message)
        for at, (_, flight) in enumerate(self._flights):
            kind, item_id = flight.answer or ("", "")
            if kind == "item" and item_id in words and flight.cargo is not None:
                return self._forget(at)
        return None

    def overdue(self, now: float) -> list[Flight]:
        """Return those that had no answer in time."""
        late = [flight for _, flight in self._flights if now >= flight.until]
        self._flights = [each for each in self._flights if now < each[1].until]
        self._kept_bytes -= sum(len(flight.again) for flight in late)
        return late

    def take_all(self) -> list[tuple[str, Flight]]:
        """The model leg is gone, and every answer with it: return those that were under way, oldest first."""
        flights, self._flights, self._kept_bytes = self._flights, [], 0
        return flights

    def put_again(self, event_id: str, flight: Flight, until: float) -> None:
        """One of these goes out again, on another model leg."""
        self._kept_bytes += len(flight.again)
        self._flights.append((event_id, flight._replace(until=until)))

    def expects(self, kind: str) -> bool:
        """Whether an answer of this type is to come for the client."""
        return any(f.cargo is None and f.answer is not None and f.answer[0] == kind for _, f in self._flights)

    @property
    def cargo(self) -> list[Any]:
        """Those who wait."""
        return [flight.cargo for _, flight in self._flights if flight.cargo is not None and flight.cargo is not OWN]

    def due(self) -> float | None:
        """When the first of them is overdue."""
        return min((flight.until for _, flight in self._flights), default=None)
