"""One call against its plan on one node: what it uses, and how fast its client may be read. Owns the clock for that.

What is counted is ``relay.core.usage``'s, when a client is read too fast ``relay.core.pace``'s, what a tenant may use
``relay.accounting``'s. It is fed with counts that the legs keep anyway; no frame waits for it.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from relay.accounting import Account
from relay.call import Request, Services
from relay.clientside import ClientSide
from relay.core import realtime
from relay.core.actions import Side
from relay.core.bridge import Bridge
from relay.core.endings import Why
from relay.core.pace import Pace
from relay.greeting import new_event_id
from relay.legs import Leg
from relay.traffic import Traffic

_LOOK_SECONDS: Final = 0.25  # at the pace of a client whose plan has limits


class Meter:
    """The account of a call from ``start`` to ``close``."""

    def __init__(
        self,
        services: Services,
        request: Request,
        bridge: Bridge,
        traffic: Traffic,
        client: ClientSide,
        on_spent: Callable[[Why, str], None],
    ) -> None:
        """Make the meter of a call; ``on_spent`` is told that it must end, and why in words."""
        self._services = services
        self._request = request
        self._bridge = bridge
        self._traffic = traffic
        self._client = client
        self._on_spent = on_spent
        self._loop = asyncio.get_running_loop()
        self._account: Account | None = None
        self._pace: Pace | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._paused: Leg | None = None
        self._is_told = False  # the client knows that it is read more slowly than it sends

    def start(self, started_at: float) -> None:
        """Begin to count; ``started_at`` is when the call began, wherever that was, in seconds since the epoch."""
        request, plan = self._request, self._request.plan
        self._account = account = self._services.accounting.open(
            request.call_id,
            request.tenant,
            request.agent.name,
            plan,
            request.share,
            started_at=started_at,
            resumes=request.resumes,
            on_spent=self._on_spent,
        )
        if plan.client_messages_per_second is not None or plan.client_bytes_per_second is not None:
            self._pace = Pace(plan.client_messages_per_second, plan.client_bytes_per_second, self._loop.time())
            self._wait(_LOOK_SECONDS)
        self._bridge.conversation.usage = account.usage

    def look(self) -> None:
        """Count the audio that has passed."""
        usage = self._bridge.conversation.usage
        if usage is not None:
            usage.on_look(*self._bridge.audio())

    def close(self, *, goes_on: bool) -> None:
        """The call is over, or goes on at another node."""
        if self._timer is not None:
            self._timer.cancel()
        if self._account is not None:
            self.look()
            self._account.close(goes_on=goes_on)
        self._on_spent = self._client = cast(Any, None)  # they refer back
        self._pace = self._paused = None

    # The client's pace

    def _wait(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._on_time)

    def _on_time(self) -> None:
        if self._pace is None:
            return
        leg = self._client.leg
        pause = self._pace.look(*self._traffic.received(Side.CLIENT), self._loop.time())
        if pause > self._services.settings.stall_seconds:  # for so long nobody would notice that it has left
            plan = self._request.plan.name
            self._on_spent(Why.CLIENT_TOO_FAST, f"the client is {pause:.0f} s ahead of what the plan {plan!r} allows")
            return
        if self._paused is not None and (self._paused is not leg or not pause):
            paused, self._paused = self._paused, None
            if not paused.closing:
                paused.resume()
        if pause and self._paused is None and not leg.closing:
            leg.pause()
            self._paused = leg
            self._tell()
        self._wait(min(pause or _LOOK_SECONDS, _LOOK_SECONDS))  # a client that comes back has another leg

    def _tell(self) -> None:
        self._services.tally.limited["client_rate"] += 1
        if not self._is_told:
            self._is_told, plan = True, self._request.plan.name
            text = f"You send faster than the plan {plan!r} allows: what you send is read more slowly."
            self._client.send(realtime.error_event(new_event_id(), "rate_limit_error", "too_fast", text))
