"""Call ids and what is derived from them: home region, model-side item ids. Pure; randomness from `secrets`."""

import hashlib
import re
import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_TAIL = 22  # 62**22 is 131 bits: an id cannot be guessed, and is itself no credential
_CALL_ID = re.compile(r"rtc_([A-Za-z0-9]+)(?:-[A-Za-z0-9]+)?_[A-Za-z0-9_-]+")
_CALL_ID_MAX = 64
_REGION = re.compile(r"[A-Za-z0-9]{1,24}")


def new_call_id(region: str) -> str:
    """A fresh id `rtc_<region>_<22 letters and digits>`; the region in it is the call's home for ever."""
    if not is_region_name(region):
        raise ValueError(f"region {region!r}: 1 to 24 letters and digits")
    return f"rtc_{region}_" + "".join(secrets.choice(_ALPHABET) for _ in range(_TAIL))


def home_region(call_id: str) -> str | None:
    """The region that a call id names, or None if it is no call id; `rtc_iad-2_…` (a shard of iad) gives `iad`."""
    if len(call_id) > _CALL_ID_MAX:
        return None
    match = _CALL_ID.fullmatch(call_id)
    return match.group(1) if match else None


def is_region_name(name: str) -> bool:
    """Whether a name can stand in a call id: letters and digits only, since `-` and `_` separate there."""
    return _REGION.fullmatch(name) is not None


def item_id_for(call_id: str, message_id: str) -> str:
    """The model-side item id of a message that names none: always the same, 32 characters of `[a-z0-9_]`.

    Being derived, a repeat after a crash creates the same item, and the model's duplicate error tells that it is there.
    """
    digest = hashlib.sha256(f"{call_id}\0{message_id}".encode()).hexdigest()
    return "item_" + digest[:27]
