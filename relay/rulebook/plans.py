"""Plans: what a tenant may use at most, and which tenant has which. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from relay.rulebook.fields import Table

DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Limits of a tenant, in all regions together, and of each of its calls. None: no limit."""

    name: str = DEFAULT
    concurrent_calls: int | None = None
    call_starts_per_minute: int | None = None
    call_minutes_per_day: float | None = None
    longest_call_seconds: float | None = None
    messages_per_second: float | None = None  # what the tenant's backends put into its calls
    client_messages_per_second: float | None = None  # of one call's client
    client_bytes_per_second: int | None = None


_WHOLE: Final = ("concurrent_calls", "call_starts_per_minute", "client_bytes_per_second")
_NUMBERS: Final = (
    *("call_minutes_per_day", "longest_call_seconds", "messages_per_second", "client_messages_per_second"),
)


def parse_plans(document: Table) -> Mapping[str, Plan]:
    """Read the ``[plans.*]`` tables; there is always a plan "default", without limits unless it is given some.

    Raises:
        Mistake: an unknown key, or a number that is none, not above zero, or beyond all reason.
    """
    plans = {DEFAULT: Plan()}
    for name, table in document.tables("plans"):
        table.only((*_WHOLE, *_NUMBERS))
        plans[name] = Plan(
            name=name,
            concurrent_calls=table.whole("concurrent_calls"),
            call_starts_per_minute=table.whole("call_starts_per_minute"),
            call_minutes_per_day=table.number("call_minutes_per_day"),
            longest_call_seconds=table.number("longest_call_seconds"),
            messages_per_second=table.number("messages_per_second"),
            client_messages_per_second=table.number("client_messages_per_second"),
            client_bytes_per_second=table.whole("client_bytes_per_second"),
        )
    return MappingProxyType(plans)


def parse_tenants(document: Table, plans: Collection[str]) -> Mapping[str, str]:
    """Read the ``[tenants.*]`` tables: the plan's name by the tenant's.

    Raises:
        Mistake: an unknown key, a missing or an unknown plan.
    """
    tenants = {}
    for name, table in document.tables("tenants"):
        table.only(("plan",))
        plan = table.text("plan")
        if plan is None or plan not in plans:
            raise table.mistake("plan", f"must be one of: {', '.join(sorted(plans))}")
        tenants[name] = plan
    return MappingProxyType(tenants)
