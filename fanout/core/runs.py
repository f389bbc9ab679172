"""One call of a script, as a value: what the cores decide on and the stores carry out. Pure."""

from typing import NamedTuple

Arg = str | bytes | int | float


class Run(NamedTuple):
    """One call of `fanout/lua/<script>.lua`.

    Every key and channel carries the hash tag `tag`, so all lie in one slot. The store puts one argument before `args`:
    the identity of the Redis process that the script runs on (its run id), by which a script tells that the server
    is another one than before (fanout/lua/common.lua).
    """

    script: str
    tag: str
    keys: tuple[str, ...]
    args: tuple[Arg, ...]
