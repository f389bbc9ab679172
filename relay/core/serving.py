"""Whether the model leg in use serves its call: what it has answered, and whether its server takes nobody. Pure.

What becomes of a call whose model refuses is the model side's business; here it is only noticed, in time to spare the
client an error that is mended.
"""

from collections.abc import Callable
from typing import Any

from relay.core.rebuild import refusal


def refusal_of(event: dict[str, Any]) -> str | None:
    """Return why the server takes nobody, if an event says so: an error, or a response that failed for one."""
    response = event.get("response")
    if not isinstance(response, dict):
        return refusal(event.get("error"))
    details = response.get("status_details")
    return refusal(details.get("error")) if isinstance(details, dict) else None


class Serving:
    """Of one leg at a time. ``fails_over`` says whether the call can go on at another server."""

    __slots__ = ("fails_over", "has_answered", "refusal")

    def __init__(self) -> None:
        self.fails_over: Callable[[], bool] = lambda: False
        self.has_answered = False  # more than what it was told
        self.refusal: str | None = None  # the code of the error by which it takes nobody

    def on_event(self, kind: str, event: dict[str, Any]) -> bool:
        """Take an event of the model's; true if nobody is to know of it, for another server will answer instead."""
        if kind == "response.output_item.added":
            self.has_answered = True
        elif kind in {"error", "response.done"}:
            code = refusal_of(event)
            if code is not None:
                self.refusal = code
                return self.fails_over()
        return False

    def on_model_gone(self) -> None:
        """Another leg comes."""
        self.has_answered, self.refusal = False, None
