"""Call ids and what is derived from them: home region, model-side item ids. Pure; randomness from `secrets`."""

import hashlib
import re
import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_TAIL = 22  # 62**22 is 131 bits: an id cannot be guessed, and is itself no credential
_CALL_ID = re.compile(r"rtc_([A-Za-z0-9]+(?:-[A-Za-z0-9]+)?)_[A-Za-z0-9_-]+")
_CALL_ID_MAX = 64
_REGION = re.compile(r"[A-Za-z0-9]{1,24}")
_HOME = re.compile(r"[A-Za-z0-9]{1,24}(-[A-Za-z0-9]{1,8})?")


def new_call_id(home: str) -> str:
    """A fresh id `rtc_<home>_<22 letters and digits>`; the home in it, a region or a shard of one, is for ever."""
    if not is_home_name(home):
        raise ValueError(f"home {home!r}: 1 to 24 letters and digits, or that, a dash and a shard of 1 to 8")
    return f"rtc_{home}_" + "".join(secrets.choice(_ALPHABET) for _ in range(_TAIL))


def home_of(call_id: str) -> str | None:
    """The region or shard (`iad`, `iad-2`) that a call id names, or None if it is no call id."""
    if len(call_id) > _CALL_ID_MAX:
        return None
    match = _CALL_ID.fullmatch(call_id)
    return match.group(1) if match else None


def region_of(home: str) -> str:
    """The region of a home: `iad` of `iad` and of `iad-2`."""
    return home.partition("-")[0]


def is_home_name(name: str) -> bool:
    """Whether a name can be a home: a region, or a region, a dash and a shard."""
    return _HOME.fullmatch(name) is not None


def is_region_name(name: str) -> bool:
    """Whether a name can stand in a call id: letters and digits only, since `-` and `_` separate there."""
    return _REGION.fullmatch(name) is not None


def item_id_for(call_id: str, message_id: str) -> str:
    """The model-side item id of a message that names none: always the same, 32 characters of `[a-z0-9_]`.

    Being derived, a repeat after a crash creates the same item, and the model's duplicate error tells that it is there.
    """
    digest = hashlib.sha256(f"{call_id}\0{message_id}".encode()).hexdigest()
    return "item_" + digest[:27]
