"""The message of the bus's load, as a backend posts it and as the model gets it: numbered, and stamped with the time.

Both ends run on one machine and so share its monotonic clock. The model's answer has the Realtime API's shape (GA).
"""

import json
import time
from typing import Any, Final, NamedTuple

from ops.bench.measure import summary

CREATE: Final = b'{"type":"conversation.item.create"'
_MARK: Final = "bench"


class Sent(NamedTuple):
    """A message about to be sent."""

    body: bytes
    at_ns: int


def make(number: int) -> Sent:
    """Return the body of a POST with the time of now in it: a hint to the model, as a backend would give it."""
    now = time.monotonic_ns()
    text = f"{_MARK} {number} {now} The customer's order has left the warehouse and arrives tomorrow before noon."
    item = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": text}]}
    return Sent(json.dumps({"item": item}).encode(), now)


class Items:
    """What came to the model, by number."""

    def __init__(self) -> None:
        self._ages_ns: dict[int, int] = {}
        self._repeated: list[int] = []

    def take(self, event: bytes, now_ns: int) -> tuple[bytes, bytes]:
        """Note an item that came then; returns the two events with which the model takes it."""
        item = json.loads(event)["item"]
        _, number, sent_ns, _ = item["content"][0]["text"].split(" ", 3)
        if int(number) in self._ages_ns:
            self._repeated.append(int(number))
        self._ages_ns.setdefault(int(number), now_ns - int(sent_ns))
        return _answer("added", item), _answer("done", item)

    def found(self, first: int, end: int) -> dict[str, Any]:
        """Return what came of the messages with these numbers; times in milliseconds."""
        ages = [self._ages_ns[number] / 1e6 for number in range(first, end) if number in self._ages_ns]
        repeated = sum(first <= number < end for number in self._repeated)
        return {"missing": end - first - len(ages), "repeated": repeated, "latency_ms": summary(ages)}


def _answer(step: str, item: dict[str, Any]) -> bytes:
    whole = {**item, "object": "realtime.item", "status": "completed"}
    event = {
        "type": f"conversation.item.{step}",
        "event_id": "event_bench",
        "previous_item_id": None,
        "item": whole,
    }
    return json.dumps(event, separators=(",", ":")).encode()
