"""What backends ask of their tenant: what its calls used, and that a token of its opens nothing any more.

Each handler asks the bus and writes down its answer; what an account holds is decided in ``fanout``.
"""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from aiohttp import web
from msgspec import UNSET, UnsetType

from fanout import AccountsFull, FanoutError
from relay.admission import Refused
from relay.api import usage
from relay.api.binding import Asked, answer_json, answer_refusal
from relay.api.refusals import bus_refusal, unavailable
from relay.api.schema import RevocationBody, UsageQuery
from relay.call import Services
from relay.tokens import LEEWAY_SECONDS, RESUME_SECONDS

_DAYS: Final = 7  # where nobody says how many
_MOST_DAYS: Final = 92
_REVOKED_SECONDS: Final = 400 * 86400  # where nobody says when the token expires
_FULL_RETRY_SECONDS: Final = 60


class Tenants:
    """The handlers of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._accounts = services.bus.accounts

    async def show_usage(self, asked: Asked[UsageQuery, None, None]) -> web.Response:
        """``GET /v1/usage``: what the tenant's calls used, day by day."""
        query = asked.query
        days = period(query.start_day, query.end_day, self._services.wall())
        form = usage.chosen(query.format or None, asked.request.headers.get("Accept", ""))
        try:
            found = await self._accounts.usage(asked.caller.tenant, *days, agent=query.agent or None)
        except FanoutError as error:
            raise bus_refusal(error) from None
        if found.unreachable_regions and form != "json":
            missing = ", ".join(sorted(found.unreachable_regions))
            text = f"The usage of {missing} is missing, and {form} has no place to say so: ask again, or for json."
            raise unavailable("region_unreachable", text)

        def write() -> bytes:
            groups = usage.summed(found.rows, query.group_by)
            return usage.written(groups, form, days=days, unreachable_regions=found.unreachable_regions)

        body = await asyncio.to_thread(write)  # a year of many agents takes longer than audio may wait
        return web.Response(body=body, content_type=usage.CONTENT_TYPES[form], charset="utf-8")

    async def revoke_token(self, asked: Asked[None, None, RevocationBody]) -> web.Response:
        """``POST /v1/tokens/revoke``: a token of the tenant's opens nothing any more, at any node."""
        body = asked.body
        wall = self._services.wall()
        expires_at = int(wall + _REVOKED_SECONDS if body.expires_at is None else body.expires_at)
        # A call outlives its token, and offers its client keys with the same id: they open nothing any more, either.
        until = max(expires_at, wall) + LEEWAY_SECONDS + RESUME_SECONDS
        try:
            missing = await self._accounts.revoke(asked.caller.tenant, body.jti, until)
        except AccountsFull:
            text = "As many tokens are revoked as can be kept: this one is not. Change the secret that signed it."
            raise Refused(
                429, "too_many_revocations", text, kind="rate_limit_error", retry_after=_FULL_RETRY_SECONDS
            ) from None
        except FanoutError as error:
            raise bus_refusal(error) from None
        answer: dict[str, Any] = {
            "object": "realtime.token.revocation",
            "jti": body.jti,
            "expires_at": expires_at,
            "regions": [region for region in self._accounts.regions if region not in missing],
            "unreachable_regions": sorted(missing),
        }
        if missing:
            text = f"Nodes of {', '.join(sorted(missing))} still take the token: repeat it, which is safe."
            return answer_refusal(unavailable("region_unreachable", text), **answer)
        return answer_json(answer)


def period(start_day: str | UnsetType, end_day: str | UnsetType, wall: float) -> tuple[str, str]:
    """Return the first and the last day of UTC that are asked for, both written as Redis has them.

    Raises:
        Refused: 422 for what is no day, an end before the start, or more than 92 days.
    """
    last = datetime.fromtimestamp(wall, UTC).date() if end_day is UNSET else _day(end_day, "end_day")
    try:
        first = last - timedelta(days=_DAYS - 1) if start_day is UNSET else _day(start_day, "start_day")
    except OverflowError:  # the week before the first of all weeks
        first = date.min
    if first > last:
        raise Refused(422, "invalid_value", f"is after the last day, {last}", param="start_day")
    if (last - first).days >= _MOST_DAYS:
        raise Refused(422, "invalid_value", f"is more than {_MOST_DAYS} days before {last}", param="start_day")
    return first.isoformat(), last.isoformat()


def _day(text: str, param: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:  # Python reads weeks, too
        raise Refused(422, "invalid_value", "is no day like 2026-11-21", param=param)
    return day
