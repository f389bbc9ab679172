"""The rulebook: agents, plans, tenants, upstreams and the regions' shares, as one value. Pure.

It is swapped as a whole when its files change; a call keeps the agent and the plan with which it was admitted.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from relay.rulebook.agents import Agent, parse_agents
from relay.rulebook.fields import Mistake, Table
from relay.rulebook.lines import line_of
from relay.rulebook.plans import DEFAULT, Plan, parse_plans, parse_tenants
from relay.rulebook.upstreams import ReadSecret, UpstreamConfig, parse_upstreams

_TABLES: Final = frozenset({"agents", "plans", "tenants", "upstreams", "shares"})
_LINE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_ROUNDING: Final = 1e-9


class BookError(ValueError):
    """A rulebook that cannot be used: ``str()`` says what and where, ``line`` in which line, if that is known."""

    def __init__(self, line: int | None, what: str) -> None:
        super().__init__(what)
        self.line = line


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where the file says nothing."""

    upstream: UpstreamConfig | None = None  # the environment's
    jwt_secrets: tuple[str, ...] = field(default=(), repr=False)
    regions: frozenset[str] = frozenset()  # all of the fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Rulebook:
    """Who answers, who may use how much, and where models are."""

    agents: Mapping[str, Agent] = field(default_factory=lambda: parse_agents(Table((), {}), (DEFAULT,)))
    plans: Mapping[str, Plan] = field(default_factory=lambda: parse_plans(Table((), {})))
    tenants: Mapping[str, str] = field(default_factory=dict)  # names of plans
    upstreams: Mapping[str, UpstreamConfig] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)  # of every region
    jwt_secrets: tuple[str, ...] = field(default=(), repr=False)  # the first one signs

    def plan_for(self, tenant: str, claimed: str | None) -> Plan | None:
        """Return a tenant's plan: the one its token claims, else the file's; None if what it claims is unknown."""
        return self.plans.get(self.tenants.get(tenant, DEFAULT) if claimed is None else claimed)

    def agent_for(self, name: str, tenant: str) -> Agent | None:
        """Return an agent by its name, None if there is none that the tenant may use."""
        agent = self.agents.get(name)
        return agent if agent and (agent.tenants is None or tenant in agent.tenants) else None

    def share(self, region: str) -> float:
        """Return the part of a plan's numbers that a region has: above 0, at most 1."""
        return self.shares.get(region, 1.0)


def parse_rulebook(text: str, read_secret: ReadSecret, defaults: Defaults) -> Rulebook:
    """Read a rulebook. ``read_secret(kind, name)`` returns a key by the name of its variable ("env") or file ("file").

    Raises:
        BookError: it is not TOML, or something in it cannot be used.
    """
    try:
        return _book(_parsed(text), read_secret, defaults)
    except Mistake as mistake:
        raise BookError(line_of(text, mistake.path), str(mistake)) from None


def _parsed(text: str) -> Table:
    try:
        return Table((), tomllib.loads(text))
    except RecursionError:
        raise BookError(None, "is nested too deeply") from None
    except ValueError as error:
        what, place = str(error), _LINE.search(str(error))
        line = place and place.group(1)
        ends = text.count("\n", 0, len(text.rstrip())) + 1
        raise BookError(int(line) if line else ends if place else None, _LINE.sub("", what)) from None


def _book(document: Table, read_secret: ReadSecret, defaults: Defaults) -> Rulebook:
    document.only(_TABLES)
    upstreams = parse_upstreams(document, read_secret, defaults.upstream)
    if DEFAULT not in upstreams:
        what = "must be set, or OPENAI_API_KEY, or RELAY_UPSTREAM_URL for another server"
        raise Mistake(("upstreams", DEFAULT), what)
    plans = parse_plans(document)
    return Rulebook(
        agents=parse_agents(document, upstreams),
        plans=plans,
        tenants=parse_tenants(document, plans),
        upstreams=upstreams,
        shares=_shares(document, defaults.regions),
        jwt_secrets=defaults.jwt_secrets,
    )


def _shares(document: Table, regions: frozenset[str]) -> Mapping[str, float]:
    """Return every region's share: what the file gives it, or an equal part of what that leaves."""
    table = document.table("shares") or Table(("shares",), {})
    table.only(regions)
    given: dict[str, Any] = {region: table.number(region) for region in table.values}
    left, others = 1.0 - sum(given.values()), regions - set(given)
    if left < -_ROUNDING:
        raise Mistake(table.path, "must not be more than 1 together")
    if others and left <= _ROUNDING:
        raise Mistake(table.path, f"leave nothing for {', '.join(sorted(others))}")
    return MappingProxyType(given | {region: left / len(others) for region in others})
