"""What a session's settings say: which of them a new model leg is given, and what of an update is news. Pure.

A session is the object of ``session.created`` and ``session.updated``: the effective settings, in the GA shape. An
update is the ``session`` of a client's ``session.update``.
"""

from collections.abc import Mapping
from typing import Any, Final

# What the server says of a session and takes from nobody; the model is the connection's.
_SERVERS: Final = frozenset({"id", "object", "expires_at", "model", "client_secret"})


def restorable(session: dict[str, Any]) -> dict[str, Any]:
    """Return the update that gives a new session the settings of this one.

    What is null is the default, and some servers refuse it; but without turn detection null is the setting.
    """
    kept = {key: value for key, value in session.items() if key not in _SERVERS and value is not None}
    audio = kept.get("audio")
    if isinstance(audio, dict):
        kept["audio"] = _without_nulls(audio)
        if "turn_detection" in (given := _input(session)) and given["turn_detection"] is None:
            kept["audio"].setdefault("input", {})["turn_detection"] = None
    return kept


def _without_nulls(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value is not None
    }


def merged(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over others; objects that settings of their own make up, such as audio, are laid into each other."""
    return _merged(settings, over, inner=_AUDIO)


def _merged(settings: Mapping[str, Any], over: Mapping[str, Any], inner: "_Inner") -> dict[str, Any]:
    found = {**settings, **over}
    for key in found.keys() & inner.keys():
        both = settings.get(key), over.get(key)
        if isinstance(both[0], Mapping) and isinstance(both[1], Mapping):
            found[key] = _merged(both[0], both[1], inner[key])
    return found


def without_unchanged(update: dict[str, Any], session: dict[str, Any]) -> dict[str, Any] | None:
    """Return what of an update differs from the session, None if nothing does.

    A client that comes back says again what it said at first; some of that can no longer be set (the voice), though it
    is set already. Settings that make one thing, such as turn detection, stay together: servers replace them as one.
    """
    changed = _changed(update, session, inner=_AUDIO)
    kind = {"type": update["type"]} if "type" in update else {}
    return kind | changed if changed else None


_Inner = dict[str, Any]  # the objects whose fields are settings of their own, within each other
_AUDIO: Final[_Inner] = {"audio": {"input": {}, "output": {}}}


def _changed(update: dict[str, Any], session: dict[str, Any], inner: _Inner) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, wanted in update.items():
        current = session.get(key)
        if key in inner and isinstance(wanted, dict) and isinstance(current, dict):
            within = _changed(wanted, current, inner[key])
            if within:
                changed[key] = within
        elif not _is_set(wanted, current):
            changed[key] = wanted
    return changed


def _is_set(wanted: Any, current: Any) -> bool:
    """Whether everything that is wanted is so; the current settings may say more, such as defaults."""
    if isinstance(wanted, dict) and isinstance(current, dict):
        return all(_is_set(value, current.get(key)) for key, value in wanted.items())
    return bool(wanted == current)


def transcription_of(session: dict[str, Any]) -> dict[str, Any] | None:
    """Return the settings by which the person's speech is transcribed; None if it is not."""
    transcription = _input(session).get("transcription")
    return transcription if isinstance(transcription, dict) else None


def asks_for_transcription(update: dict[str, Any]) -> bool | None:
    """Whether an update switches transcription on or off; None if it says nothing of it."""
    given = _input(update)
    return given["transcription"] is not None if "transcription" in given else None


def _input(session: dict[str, Any]) -> dict[str, Any]:
    audio = session.get("audio")
    given = audio.get("input") if isinstance(audio, dict) else None
    return given if isinstance(given, dict) else {}
