"""A tenant's account in each region: what may begin, what was used, what flows at a rate; and tokens that hold no more.

What of it is allowed is decided by the scripts (fanout/lua), in one step each, so that limits hold over all nodes of a
region. What a plan says, and what becomes of a call while Redis is away, is the caller's.
"""

import asyncio
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from fanout.core.accounts import (
    REPORTS_MAX,
    REVOKED_MAX,
    AccountScripts,
    Admission,
    Report,
    Revoked,
    Standing,
    Terms,
    UsageFound,
    UsageRow,
    counters_from_stored,
)
from fanout.errors import AccountsFull, AccountsSettling, RegionUnreachable
from fanout.home import Home
from fanout.ids import region_of
from fanout.revocations import Revocations
from fanout.settings import BusSettings
from fanout.store import run_one

_USAGE_DAYS: Final = 31  # in one run of a script
_TOKEN_ID_MAX: Final = 256


class Accounts:
    """Get one from `Fanout.accounts`.

    A tenant's account in a region is in one of its homes, always the same one as long as there are as many.
    """

    def __init__(self, settings: BusSettings, homes: Mapping[str, Home], *, clock: Callable[[], float]) -> None:
        self._region = settings.region
        self._homes = homes
        self._clock = clock
        self._scripts = AccountScripts(settings)
        self._revocations = Revocations(self._scripts, clock=clock)

    async def admit(self, tenant: str, call_id: str, terms: Terms) -> Admission:
        """Whether a call may begin; if it may, it has a lease from now, and its start is counted.

        The same call again, while its lease lives, is admitted and not counted again: a lost answer may be repeated.
        Raises AccountsSettling, RegionUnreachable.
        """
        home = self._account(tenant)
        answer = await _ask(home, self._scripts.admit(home.name, tenant, call_id, terms, self._today()))
        match answer:
            case [b"admitted"]:
                return Admission("")
            case [b"settling", left_ms]:
                raise AccountsSettling(self._region, left_ms / 1000)
            case [_, b"starts", left_ms]:
                return Admission("starts", left_ms / 1000)
            case [_, b"minutes", _]:
                return Admission("minutes", self._seconds_left(self._today()))
            case _:
                return Admission("concurrent")

    async def renew_or_report(self, tenant: str, reports: Sequence[Report]) -> Standing:
        """Count what calls used, renew their leases, or end them; in any order, and as often as one likes.

        A call that was not admitted here has a lease from then on, whatever the limits. What a Redis lost is counted
        again as far as its sources still report. Raises RegionUnreachable (some may be counted), ValueError for a day
        or a counter that is none.
        """
        home, today = self._account(tenant), self._today()
        if home.is_away:
            raise RegionUnreachable(home.name)
        ends = {day: self._seconds_left(day) for report in reports for day in report.days}
        batches = [reports[start : start + REPORTS_MAX] for start in range(0, len(reports), REPORTS_MAX)] or [()]
        runs = [self._scripts.report(home.name, tenant, batch, today, ends) for batch in batches]
        for outcome in (outcomes := await home.store.run([run for run, _ in runs])):
            if isinstance(outcome, RegionUnreachable):
                raise outcome
        _, live, ms_today = outcomes[-1]
        return Standing(seconds_today=ms_today / 1000, live=live, dropped=sum(dropped for _, dropped in runs))

    async def usage(self, tenant: str, first_day: str, last_day: str, agent: str | None = None) -> UsageFound:
        """What a tenant's calls used, of one agent or of all, from one day to another, both included.

        Asks every home: an account was elsewhere when its region had fewer. Raises ValueError for a day that is none.
        """
        first, last = _date(first_day), _date(last_day)
        days = [(first + timedelta(days=place)).isoformat() for place in range((last - first).days + 1)]
        parts = [days[start : start + _USAGE_DAYS] for start in range(0, len(days), _USAGE_DAYS)]
        sums: dict[tuple[str, str, str], dict[str, int | float]] = {}
        unreachable: set[str] = set()

        async def ask(home: Home) -> None:
            region = region_of(home.name)
            outcomes = await home.store.run([self._scripts.usage(home.name, tenant, part) for part in parts])
            for part, outcome in zip(parts, outcomes, strict=True):
                if isinstance(outcome, RegionUnreachable):
                    unreachable.add(region)
                    continue
                for day, agents in zip(part, outcome[1:], strict=True):
                    for name, packed in zip(agents[::2], agents[1::2], strict=True):
                        _add(sums.setdefault((day, name.decode(), region), {}), counters_from_stored(packed))

        async with asyncio.TaskGroup() as group:
            for home in self._homes.values():
                group.create_task(ask(home))
        rows = [UsageRow(*key, sums[key]) for key in sorted(sums) if agent is None or key[1] == agent]
        return UsageFound(rows, sorted(unreachable))

    async def spend(self, tenant: str, what: str, per_second: float, burst: float) -> float:
        """Take one of what flows at a rate and may be saved up to `burst`; `what` is a word without a colon.

        Returns 0.0, or in how many seconds there is one. A repeat after a lost answer takes another. Raises
        RegionUnreachable.
        """
        home = self._account(tenant)
        answer = await _ask(home, self._scripts.spend(home.name, tenant, what, per_second, burst))
        return 0.0 if answer[0] == b"taken" else answer[1] / 1e6

    async def revoke(self, tenant: str, jti: str, until: float) -> list[str]:
        """Put a token on every region's list, until it ends anyway (seconds since the epoch). May be repeated.

        Returns the regions that did not answer: whether it is on their lists is unknown. Raises AccountsFull if one
        has no room for it, ValueError for a `jti` that is not 1 to 256 printable characters.
        """
        if not 0 < len(jti) <= _TOKEN_ID_MAX or not jti.isprintable():
            raise ValueError(f"jti: must be 1 to {_TOKEN_ID_MAX} printable characters")
        unreachable: list[str] = []
        full: list[str] = []

        async def tell(region: str) -> None:
            home = self._homes_of(region)[0]
            try:
                answer = await _ask(home, self._scripts.revoke(home.name, [(tenant, jti, until)]))
            except RegionUnreachable:
                unreachable.append(region)
            else:
                if answer[0] == b"full":
                    full.append(region)

        async with asyncio.TaskGroup() as group:
            for region in self.regions:
                group.create_task(tell(region))
        if full:
            raise AccountsFull(min(full), REVOKED_MAX)
        return sorted(unreachable)

    async def revoked(self, known: int) -> Revoked:
        """This region's list, or None in its place if `known` is its version. Raises RegionUnreachable.

        Only what is new is read. A Redis that lost tokens is told them again.
        """
        home = self._homes_of(self._region)[0]
        return await self._revocations.read(home.store, known)

    @property
    def regions(self) -> list[str]:
        """All regions, sorted: those in which a token is revoked."""
        return sorted({region_of(name) for name in self._homes})

    def _account(self, tenant: str) -> Home:
        homes = self._homes_of(self._region)
        return homes[zlib.crc32(tenant.encode()) % len(homes)]

    def _homes_of(self, region: str) -> list[Home]:
        return [self._homes[name] for name in sorted(self._homes) if region_of(name) == region]

    def _today(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).date().isoformat()

    def _seconds_left(self, day: str) -> float:
        """Until the day is over; negative after it."""
        end = datetime.combine(_date(day) + timedelta(days=1), datetime.min.time(), UTC)
        return end.timestamp() - self._clock()


async def _ask(home: Home, run: Any) -> list[Any]:
    """One script's answer, for somebody who waits: a home that has been away for a while is not asked."""
    if home.is_away:
        raise RegionUnreachable(home.name)
    return await run_one(home.store, run)


def _add(total: dict[str, int | float], counters: Mapping[str, int | float]) -> None:
    for name, count in counters.items():
        total[name] = total.get(name, 0) + count


def _date(day: str) -> date:
    found = date.fromisoformat(day)
    if found.isoformat() != day:
        raise ValueError(f"{day!r}: expected YYYY-MM-DD")
    return found
