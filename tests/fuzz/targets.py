"""All targets by their names."""

from tests.fuzz import addresses, bus, frames, realtime, rulebook, tokens
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        frames.RULES,
        frames.LEG,
        bus.TARGET,
        tokens.TOKENS,
        tokens.CLAIMS,
        tokens.KEY_SETS,
        realtime.APPENDS,
        realtime.LOCKS,
        rulebook.TARGET,
        addresses.TARGET,
    )
}
