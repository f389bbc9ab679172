"""What the bearer of a token gets of the rulebook: the agent that it asks for, the plan that it pays for. Pure."""

from relay.admission import Refused
from relay.rulebook.agents import Agent
from relay.rulebook.book import Rulebook
from relay.rulebook.plans import Plan
from relay.tokens import Claims


def agent_of(rulebook: Rulebook, name: str, claims: Claims) -> Agent:
    """Return the agent of this name, if the tenant may use it.

    Raises:
        Refused: 403; who may not use it learns no more than who asks for one that isn't there.
    """
    agent = rulebook.agent_for(name, claims.tenant)
    if agent is None:
        raise unknown_agent(name)
    return agent


def unknown_agent(name: str) -> Refused:
    """Make the refusal of an agent that is not there for who asks."""
    return Refused(403, "unknown_agent", f"There is no agent {name[:100]!r}.", kind="permission_error")


def plan_of(rulebook: Rulebook, claims: Claims) -> Plan:
    """Return the plan that the token names, else the tenant's, else the default one.

    Raises:
        Refused: 403.
    """
    plan = rulebook.plan_for(claims.tenant, claims.plan)
    if plan is None:
        raise Refused(403, "unknown_plan", f"There is no plan {claims.plan!r}.", kind="permission_error")
    return plan
