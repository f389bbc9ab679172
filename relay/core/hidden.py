"""Items that the client must not see (``visible: false``): which events about them stay here, which change. Pure."""

from typing import Any, Final

from relay.core.realtime import ClientEvent, encode

_REMEMBERED: Final = 1024  # the oldest are forgotten: by then nobody speaks of them any more
_ABOUT_AN_ITEM: Final = frozenset(
    {"conversation.item.retrieve", "conversation.item.delete", "conversation.item.truncate"}
)


class Hidden:
    """The hidden items of one conversation."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: dict[str, str | None] = {}  # item id -> the item that stands before it

    def __bool__(self) -> bool:
        return bool(self._before)

    def add(self, item_id: str, before: str | None = None) -> None:
        """Hide an item, before the model hears of it; ``before`` is the item that it stands behind, if it is known."""
        self._before[item_id] = before
        if len(self._before) > _REMEMBERED:
            del self._before[next(iter(self._before))]

    def hides(self, item_id: Any) -> bool:
        """Whether this is a hidden item."""
        return isinstance(item_id, str) and item_id in self._before

    def passed(self, message: bytes, event: dict[str, Any]) -> bytes | None:
        """Return what the client gets of a model's event: the message, another one, or nothing (None).

        What follows a hidden item is shown as following the last one that the client knows.
        """
        if not self._before:
            return message
        item = event.get("item")
        item_id = item.get("id") if isinstance(item, dict) else event.get("item_id")
        before: Any = event.get("previous_item_id")
        if isinstance(item_id, str) and item_id in self._before:
            if isinstance(before, str):
                self._before[item_id] = before
            return None
        if not self.hides(before):
            return message
        for _ in self._before:  # at most so many stand in a row, whatever a server says
            before = self._before.get(before, before)
        return encode({**event, "previous_item_id": before})

    def refuses(self, event: ClientEvent) -> str | None:
        """Return the id of a hidden item that a client's event is about: to the client there is no such item."""
        item_id = event.text_of("item_id") if event.type in _ABOUT_AN_ITEM else ""
        return item_id if self.hides(item_id) else None
