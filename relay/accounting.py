"""Counts calls against their tenants' plans, and tells Redis what they use. Owns the reports until they are taken.

Whether a call may begin is Redis's to say (``fanout.Accounts``), what a plan means in this region is
``relay.core.quota``'s, what is counted ``relay.core.usage``'s. It never touches a leg: it says when a call must end.
"""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import date, timedelta
from itertools import chain
from typing import Final, NamedTuple, Protocol

from fanout import Accounts, AccountsSettling, RegionUnreachable, Report, Standing, Terms
from relay.admission import Refused
from relay.config import Settings
from relay.core.endings import Why
from relay.core.quota import Alone, Limits, burst, limits, retry_after
from relay.core.usage import Usage
from relay.rulebook.plans import Plan
from relay.tally import Tally

_ROUNDS: Final = 6  # in the life of a lease: so many may fail before a live call is no longer counted
_ROUND_SECONDS: Final = 5.0  # at most: sooner than an empty Redis is believed again it must know what lives
_PIECE: Final = 100  # calls that are reported at once: what that may hold up the loop, and Redis
_AT_ONCE: Final = 8  # such reports under way
_CLOSED_MAX: Final = 10_000  # calls that are over and not reported yet; the oldest is dropped, and counted
_SOON_SECONDS: Final = 0.05  # for calls that begin and end together to be reported together
_LEAST_LEASE_SECONDS: Final = 1.0  # of a call that has left for another node, which takes a lease of its own
_EPOCH: Final = date(1970, 1, 1)
_UNKNOWN: Final = (TimeoutError, RegionUnreachable, AccountsSettling)

OnSpent = Callable[[Why, str], None]


class Supervisor(Protocol):
    """Who keeps the reports going."""

    def start(self, work: Callable[[], Awaitable[None]], *, name: str) -> None:
        """Run it for as long as the node does."""


class _Last(NamedTuple):
    """The last report of a call that has left this node."""

    tenant: str
    report: Report
    until: float  # the loop's time at which its lease ends; 0.0: it is over

    def at(self, now: float) -> Report:
        """The report as it is now: a lease that another node's took the place of is not made longer by a late one."""
        lease = max(_LEAST_LEASE_SECONDS, self.until - now) if self.until else 0.0
        return self.report._replace(lease_seconds=lease)


class Account:
    """What one call uses on this node, and what it may. Get one from `Accounting.open`.

    ``usage`` is the call's to fill; what it says at ``close`` is the last that is counted.
    """

    __slots__ = (
        "_on_closed",
        "_on_spent",
        "_timer",
        "agent",
        "call_id",
        "is_open",
        "limits",
        "source",
        "tenant",
        "usage",
    )

    def __init__(
        self,
        call_id: str,
        tenant: str,
        agent: str,
        held: Limits,
        usage: Usage,
        *,
        on_spent: OnSpent,
        on_closed: Callable[["Account", bool], None],
    ) -> None:
        self.call_id = call_id
        self.tenant = tenant
        self.agent = agent
        self.limits = held
        self.usage = usage
        self.source = secrets.token_hex(8)  # of these counts: no other stay of the call on any node has it
        self.is_open = True
        self._on_spent: OnSpent | None = on_spent
        self._on_closed = on_closed
        self._timer: asyncio.TimerHandle | None = None

    def end_in(self, seconds: float, why: Why, text: str) -> None:
        """Tell the call to end then."""
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self.spend, why, text)

    def spend(self, why: Why, text: str) -> None:
        """Tell the call that it has used up what it may; once."""
        on_spent, self._on_spent = self._on_spent, None
        if on_spent is not None:
            on_spent(why, text)

    def close(self, *, goes_on: bool) -> None:
        """The call is over, or goes on at another node; a second time changes nothing."""
        if not self.is_open:
            return
        self.is_open, self._on_spent = False, None  # it refers back
        if self._timer is not None:
            self._timer.cancel()
        self._on_closed(self, goes_on)


class Accounting:
    """The accounts of a node's calls; use it as ``async with Accounting.running(...) as accounting``."""

    def __init__(self, accounts: Accounts, settings: Settings, tally: Tally, wall: Callable[[], float]) -> None:
        self._accounts = accounts
        self._settings = settings
        self._tally = tally
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._interval = min(_ROUND_SECONDS, settings.lease_seconds / _ROUNDS)
        self._open: dict[str, dict[str, Account]] = {}  # by tenant and source
        self._new: dict[str, Account] = {}  # of these, those that Redis has not heard of from us
        self._closed: dict[str, _Last] = {}  # by source, the oldest first
        self._unsure: set[str] = set()  # tenants whose last report may not have been taken: they hold up no others
        self._news = asyncio.Event()
        self._turn = asyncio.Lock()  # one round at a time: the last report of a call goes after all others
        self._alone = Alone()
        self._let_in: dict[str, tuple[str, float]] = {}  # calls let in without Redis, not open yet: tenant, until when

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        accounts: Accounts,
        settings: Settings,
        tally: Tally,
        wall: Callable[[], float],
        supervisor: Supervisor,
    ) -> AsyncIterator["Accounting"]:
        """Report for the length of the block; at its end what is left has ``close_seconds``. Calls must end before."""
        accounting = cls(accounts, settings, tally, wall)
        supervisor.start(accounting._report_for_ever, name="usage")
        try:
            yield accounting
        finally:
            await accounting._flush()

    @property
    def waiting(self) -> int:
        """How many calls are over whose last report Redis has not taken."""
        return len(self._closed)

    # What a plan allows

    async def admit(self, call_id: str, tenant: str, plan: Plan, share: float) -> None:
        """Let a new call in, which counts as live from now on; one that is not opened does so for ``lease_seconds``.

        Not for a call that comes from another node: it is counted already. Waits at most ``register_seconds``.

        Raises:
            Refused: 429, with Retry-After, for what would exceed the plan's share of this region; 503 if nobody can
                tell and ``limits_away`` is "closed".
        """
        held = limits(plan, share)
        if not held.any_for_calls:
            return
        terms = Terms(held.concurrent, held.starts_per_minute, held.seconds_per_day, self._settings.lease_seconds)
        refused: str
        try:
            async with asyncio.timeout(self._settings.register_seconds):
                refused, seconds = await self._accounts.admit(tenant, call_id, terms)
        except _UNKNOWN as unknown:
            self._tally.limits_unchecked += 1
            if self._settings.limits_away == "closed":
                raise _nobody_knows(unknown, self._wall()) from None
            refused, seconds = self._admit_alone(call_id, tenant, held)
        if refused:
            self._tally.limited[refused] += 1
            raise _too_much(refused, plan, retry_after(refused, seconds, self._wall()))

    def give_back(self, call_id: str, tenant: str, plan: Plan, share: float) -> None:
        """A call that was let in does not begin after all: its place is free for another one, its start is counted."""
        self._let_in.pop(call_id, None)
        if limits(plan, share).any_for_calls:
            source = secrets.token_hex(8)
            self._keep(_Last(tenant, Report(call_id, source, "", lease_seconds=0.0, days={}), 0.0))

    def _admit_alone(self, call_id: str, tenant: str, held: Limits) -> tuple[str, float]:
        now = self._loop.time()
        self._let_in = {one: of for one, of in self._let_in.items() if of[1] > now and one != call_id}
        live = len(self._open.get(tenant, ())) + sum(of[0] == tenant for of in self._let_in.values())
        refused, seconds = self._alone.admit(tenant, held, live, now)
        if not refused:
            self._let_in[call_id] = (tenant, now + self._settings.lease_seconds)
        return refused, seconds

    async def spend_message(self, tenant: str, plan: Plan, share: float) -> None:
        """Count a message that a backend puts into a call. While Redis is away this node counts its own.

        Raises:
            Refused: 429, with Retry-After.
        """
        per_second = limits(plan, share).messages_per_second
        if per_second is None:
            return
        try:
            async with asyncio.timeout(self._settings.register_seconds):
                wait = await self._accounts.spend(tenant, "messages", per_second, burst(per_second))
        except _UNKNOWN:
            self._tally.limits_unchecked += 1
            wait = self._alone.take(("messages", tenant), per_second, burst(per_second), self._loop.time())
        if wait:
            self._tally.limited["messages"] += 1
            raise _too_much("messages", plan, retry_after("messages", wait, self._wall()))

    # Accounts

    def open(
        self,
        call_id: str,
        tenant: str,
        agent: str,
        plan: Plan,
        share: float,
        *,
        started_at: float,
        resumes: bool,
        on_spent: OnSpent,
    ) -> Account:
        """A call begins on this node, or comes to it.

        Args:
            call_id: the call.
            tenant: whose it is.
            agent: by whose name it is listed.
            plan: what it may use; the call's, whatever becomes of the rulebook.
            share: this region's part of the plan.
            started_at: when the call began, wherever that was, in seconds since the epoch.
            resumes: it is counted already.
            on_spent: told at most once, on the event loop, that the call must end, and in words why.
        """
        wall = self._wall()
        usage = Usage(self._loop.time(), wall, is_new=not resumes)
        held = limits(plan, share)
        account = Account(call_id, tenant, agent, held, usage, on_spent=on_spent, on_closed=self._on_closed)
        self._open.setdefault(tenant, {})[account.source] = self._new[account.source] = account
        self._let_in.pop(call_id, None)
        longest = plan.longest_call_seconds
        if longest is not None:
            text = f"the call has lasted {longest:g} s, as long as its plan lets a call last"
            account.end_in(started_at + longest - wall, Why.CALL_TOO_LONG, text)
        self._news.set()
        return account

    def _on_closed(self, account: Account, goes_on: bool) -> None:
        self._new.pop(account.source, None)
        others = self._open[account.tenant]
        del others[account.source]
        if not others:
            del self._open[account.tenant]
        now = self._loop.time()
        until = now + self._settings.lease_seconds if goes_on else 0.0
        self._keep(_Last(account.tenant, self._report(account, now), until))

    def _keep(self, last: _Last) -> None:
        self._closed[last.report.source] = last
        if len(self._closed) > _CLOSED_MAX:
            del self._closed[next(iter(self._closed))]
            self._tally.usage_dropped += 1
        self._news.set()

    # Reports

    def _report(self, account: Account, now: float) -> Report:
        """What it used up to now; the call lives."""
        account.usage.on_time(now, self._wall())
        days = {(_EPOCH + timedelta(day)).isoformat(): each for day, each in account.usage.counted().items()}
        lease = self._settings.lease_seconds
        return Report(account.call_id, account.source, account.agent, lease_seconds=lease, days=days)

    async def _report_for_ever(self) -> None:
        """Renew all leases at every interval; in between report the calls that began and ended."""
        whole_at = self._loop.time() + self._interval
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(whole_at):
                    await self._news.wait()
                    await asyncio.sleep(_SOON_SECONDS)
            self._news.clear()
            is_whole = self._loop.time() >= whole_at
            if is_whole:
                whole_at = self._loop.time() + self._interval
            await self._round(is_whole=is_whole)

    async def _flush(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.close_seconds):
                while self._closed:
                    await self._round(is_whole=False)
                    if self._closed:
                        await asyncio.sleep(_SOON_SECONDS)
        self._tally.usage_dropped += len(self._closed)

    async def _round(self, *, is_whole: bool) -> None:
        """Report some calls at once, for no longer than until the next round is due."""
        async with self._turn:
            left = deque(self._pieces(is_whole=is_whole))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval), asyncio.TaskGroup() as group:
                    for _ in range(min(_AT_ONCE, len(left))):
                        group.create_task(self._send_all(left))

    def _pieces(self, *, is_whole: bool) -> Iterator[tuple[str, list[Account | _Last]]]:
        """What is to be reported, by tenant, in the order in which it is."""
        every: list[Account | _Last] = [*self._closed.values(), *self._new.values()]
        if is_whole:
            every[len(self._closed) :] = chain.from_iterable(each.values() for each in self._open.values())
        by_tenant: dict[str, list[Account | _Last]] = {}
        for one in every:
            by_tenant.setdefault(one.tenant, []).append(one)
        self._unsure &= by_tenant.keys()
        for tenant in sorted(by_tenant, key=self._unsure.__contains__):
            calls = by_tenant[tenant]
            for start in range(0, len(calls), _PIECE):
                yield tenant, calls[start : start + _PIECE]

    async def _send_all(self, left: deque[tuple[str, list[Account | _Last]]]) -> None:
        while left:
            tenant, piece = left.popleft()
            # One that has been closed meanwhile has its last report in the next round.
            calls = [one for one in piece if isinstance(one, _Last) or one.is_open]
            now = self._loop.time()
            reports = [one.at(now) if isinstance(one, _Last) else self._report(one, now) for one in calls]
            days = [one.usage.day if isinstance(one, Account) else 0 for one in calls]
            self._unsure.add(tenant)
            try:
                standing = await self._accounts.renew_or_report(tenant, reports)
            except RegionUnreachable:
                continue
            self._unsure.discard(tenant)
            self._tally.usage_dropped += standing.dropped
            for one, day in zip(calls, days, strict=True):
                self._on_taken(one, day)
            self._on_standing(tenant, standing)

    def _on_taken(self, one: Account | _Last, day: int) -> None:
        if isinstance(one, _Last):
            self._closed.pop(one.report.source, None)
        else:
            self._new.pop(one.source, None)
            one.usage.forget_before(day)

    def _on_standing(self, tenant: str, standing: Standing) -> None:
        """End the calls of a tenant that has spent its day, each by its own plan."""
        for account in list(self._open.get(tenant, {}).values()):
            if account.limits.is_spent(standing.seconds_today):
                account.spend(Why.MINUTES_SPENT, "the minutes of the day that the plan allows are used up")


_TEXTS: Final = {
    "concurrent": ("too_many_calls", "as many calls live in this region as the plan {!r} allows here"),
    "starts": ("too_many_starts", "as many calls began in the last minute as the plan {!r} allows in this region"),
    "minutes": ("minutes_spent", "the minutes of the day that the plan {!r} allows in this region are used up"),
    "messages": ("too_many_messages", "messages come faster than the plan {!r} allows in this region"),
}


def _too_much(limit: str, plan: Plan, seconds: int) -> Refused:
    code, text = _TEXTS[limit]
    message = f"This is too much: {text.format(plan.name)}. Try again in {seconds} s."
    return Refused(429, code, message, kind="rate_limit_error", retry_after=seconds)


def _nobody_knows(why: Exception, wall: float) -> Refused:
    text = "Whether the plan allows this call cannot be told now: the region's Redis does not answer. Try again."
    seconds = retry_after("unknown", why.seconds if isinstance(why, AccountsSettling) else 0.0, wall)
    return Refused(503, "limits_unknown", text, kind="server_error", retry_after=seconds)
