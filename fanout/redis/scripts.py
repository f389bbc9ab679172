"""The Lua scripts by name: each with what all of them share in front, and the digest that Redis knows it by."""

import hashlib
from collections.abc import Callable
from importlib.resources import files
from typing import NamedTuple


class Script(NamedTuple):
    """A script's whole text and its SHA-1, as EVALSHA wants it."""

    text: str
    sha: str


def read_script(name: str) -> str:
    """The text of `fanout/lua/<name>.lua` after `common.lua`. Raises FileNotFoundError for a name that isn't there."""
    source = files("fanout") / "lua"
    return (source / "common.lua").read_text() + (source / f"{name}.lua").read_text()


class Scripts:
    """Read once each, when first used."""

    def __init__(self, text_of: Callable[[str], str] = read_script) -> None:
        self._text_of = text_of
        self._known: dict[str, Script] = {}

    def get(self, name: str) -> Script:
        """Raises what `text_of` raises for a name that it doesn't know."""
        script = self._known.get(name)
        if script is None:
            text = self._text_of(name)
            sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            script = self._known[name] = Script(text, sha)
        return script
