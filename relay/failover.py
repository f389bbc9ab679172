"""Which of its agent's upstreams a call is given to, and what is done about one that fails or refuses it.

It opens model legs, whether dialled or spare. What a leg is told, and which one is in use, is decided elsewhere
(``relay.building``, ``relay.modelside``); in which order a node asks its upstreams is ``relay.core.outages``'s matter.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import structlog

from relay.call import Request, Services
from relay.core import realtime
from relay.core.endings import Loss, Why, ended, invites_redial, model_closed
from relay.core.frames import Close, Violation
from relay.core.realtime import NotAnEvent
from relay.core.rebuild import ACCOUNT
from relay.core.serving import refusal_of
from relay.legs import Leg
from relay.stale import let_go
from relay.upstream import DialError, silent

_OF_THE_SERVER: Final = frozenset({Why.MODEL_KEY, Why.MODEL_REFUSED})  # of its accounts and models

log = structlog.get_logger("relay")


class NoLeg(Exception):
    """There is no model leg to be had; ``loss`` says why."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss.ending.close.reason)
        self.loss = loss


class Opened(NamedTuple):
    """A leg that is connected. Whoever gets it must take it (``Leg.give``) before it waits for anything."""

    leg: Leg
    early: tuple[bytes, ...]  # what the model has said on it already
    upstream: str
    loss: Loss | None = None  # it is gone already


class Failover:
    """One call's way through its agent's upstreams."""

    def __init__(self, services: Services, request: Request, event_ids: Callable[[], str]) -> None:
        self._services = services
        self._upstreams = services.upstreams
        self._target = request.target
        self._agents = request.agent.upstreams  # names, in the agent's order
        self._call_id = request.call_id
        self._event_ids = event_ids
        self._refused: set[str] = set()  # that will not have this call; until a leg of it was good
        self._lost: str | None = None  # the upstream that failed last: the call asks it last
        self._is_diverted = False  # away from that one

    @property
    def _names(self) -> list[str]:
        """The upstreams that have not refused the call."""
        return [name for name in self._upstreams.known(self._agents) if name not in self._refused]

    def has_other(self, upstream: str, *, is_good: bool = False) -> bool:
        """Whether the call could go on at another one; ``is_good`` is as in ``lose``."""
        names = self._upstreams.known(self._agents) if is_good else self._names
        return any(name != upstream for name in names)

    async def open(self, make_leg: Callable[[], Leg], *, is_first: bool) -> Opened:
        """Connect a leg to the first upstream that takes it, or take a spare of that in its place.

        ``make_leg`` is asked for one, unconnected, for each upstream that is tried.

        Of a call's first leg nobody has heard yet: where there are several upstreams it is not handed out before the
        model has said on it that it serves.

        Raises:
            NoLeg: none of them does; the reason is the last one's.
        """
        names = self._upstreams.order(self._names)
        names.sort(key=lambda name: name == self._lost)
        waits_word, last = is_first and len(names) > 1, None
        for name in names:
            leg = make_leg()
            try:
                opened = await self._open_at(name, leg, waits_word=waits_word)
            except NoLeg as error:
                let_go(leg, Close(1000, ""), self._services.settings.close_seconds)
                last = self.fail(name, error.loss)
            else:
                self._count(name)
                return opened
        if len(names) > 1:
            self._services.tally.failovers["failed"] += 1
        raise NoLeg(last or Loss(ended(Why.MODEL_UNREACHABLE, "no upstream takes the call"), is_final=True))

    async def _open_at(self, name: str, leg: Leg, *, waits_word: bool) -> Opened:
        target, spares = self._target._replace(upstream=name), self._services.spares
        spare = spares.take(target) if spares is not None else None
        if spare is not None:
            leg.abandon()
            return Opened(spare.leg, spare.messages, name)
        trial = _Trial(leg, self._call_id, self._event_ids)
        try:
            await self._upstreams.dial(target, leg)
            if not waits_word:
                return Opened(leg, tuple(trial.messages), name, trial.loss)
            async with asyncio.timeout(self._upstreams.dial_seconds):
                await trial.settled.wait()
        except DialError as error:
            raise NoLeg(self._refused_by(error)) from error
        except TimeoutError:
            late = silent(self._upstreams.dial_seconds)
            self._upstreams.fail(name, late.code)
            raise NoLeg(self._refused_by(late)) from None
        loss = self._refusal_in(trial.messages, name) or trial.loss
        if loss is None:
            return Opened(leg, tuple(trial.messages), name)
        if not loss.is_final:
            self._upstreams.fail(name, loss.ending.why.label)
        raise NoLeg(loss)

    def _refusal_in(self, messages: Iterable[bytes], upstream: str) -> Loss | None:
        """What the first words of a server mean that takes nobody; None if it doesn't say so."""
        errors = (realtime.decode(each) for each in messages if realtime.event_type(each) == "error")
        try:
            code = next((code for code in map(refusal_of, errors) if code is not None), None)
        except NotAnEvent:
            code = None
        if code is None:
            return None
        return self.refusal(upstream, code)

    def refusal(self, upstream: str, code: str) -> Loss:
        """What it means that an upstream takes nobody, for a reason with this code."""
        if code in ACCOUNT:
            self._upstreams.fail(upstream, code)
        text = f"The model refused to go on ({code})."
        told = realtime.error_event(self._event_ids(), "server_error", code, text)
        return Loss(ended(Why.MODEL_REFUSED, text), told, is_final=True)

    def _refused_by(self, error: DialError) -> Loss:
        """What a refused dial means for the call, if there is no other upstream."""
        told = realtime.error_event(self._event_ids(), "server_error", error.code or error.why.label, str(error))
        return Loss(ended(error.why, str(error)), told, is_final=not error.why.come_back)

    def _count(self, name: str) -> None:
        if self._is_diverted:
            self._services.tally.failovers["served"] += 1
        elif name != self._upstreams.known(self._agents)[0]:
            self._services.tally.failovers["avoided"] += 1

    def serve(self, upstream: str) -> None:
        """A leg there is in use now."""
        self._upstreams.serve(upstream)
        self._lost, self._is_diverted = None, False

    def fail(self, upstream: str, loss: Loss) -> Loss:
        """An upstream has failed the call, before it was any good; returns the loss, final only if no other is left.

        Other calls are not kept from it for that, unless it refuses the relay's key: it may be what this one asks for.
        """
        if loss.ending.why is Why.NODE_FAILED:
            return loss
        if loss.ending.why is Why.MODEL_KEY and loss.ending.model_code is not None:
            self._upstreams.fail(upstream, loss.ending.why.label)
        self._lost, self._is_diverted = upstream, self.has_other(upstream)
        if loss.is_final:
            self._refused.add(upstream)
        return loss._replace(is_final=loss.is_final and not self._names)

    def lose(self, upstream: str, loss: Loss, *, was_good: bool) -> Loss:
        """The leg in use is lost; returns the loss, final only if no other upstream would fare better.

        ``was_good``: it has answered, or lasted. What such a leg is closed for may be the conversation's fault, with
        which no other upstream would put up; but what is wrong with the relay's account there is not wrong elsewhere.
        """
        if was_good:
            self._refused.clear()
        if not was_good or (loss.is_final and loss.ending.why in _OF_THE_SERVER):
            return self.fail(upstream, loss)
        if loss.ending.why is not Why.MODEL_EXPIRED:
            self._lost, self._is_diverted = upstream, self.has_other(upstream)
        return loss


class _Trial:
    """Owns a leg until its server has said its first word, or closes it."""

    def __init__(self, leg: Leg, call_id: str, event_ids: Callable[[], str]) -> None:
        self.messages: list[bytes] = []  # since the next step of whoever waits for the first, so they are few
        self.loss: Loss | None = None
        self.settled = asyncio.Event()
        self._call_id = call_id
        self._event_ids = event_ids
        leg.give(self, self._on_text)

    def _on_text(self, message: bytes) -> None:
        self.messages.append(message)
        self.settled.set()

    def _lose(self, loss: Loss) -> None:
        self.loss = self.loss or loss
        self.settled.set()

    def _fail(self, why: Why, text: str) -> None:
        told = realtime.error_event(self._event_ids(), "server_error", why.label, text)
        self._lose(Loss(ended(why, text), told))

    # From the leg

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None:
        """No known model sends one."""

    def on_leg_violation(self, leg: Leg, violation: Violation) -> None:
        """Its server broke the protocol."""
        self._fail(Why.MODEL_PROTOCOL, "the model's server broke the WebSocket protocol")

    def on_leg_close(self, leg: Leg, close: Close) -> None:
        """The model closes it."""
        leg.close(close)
        leg.disconnect()
        self._lose(Loss(model_closed(close), None, is_final=not invites_redial(close.code)))

    def on_leg_lost(self, leg: Leg) -> None:
        """The connection is gone."""
        self._fail(Why.MODEL_LOST, "the connection to the model was lost")

    def on_leg_blocked(self, leg: Leg, blocked: bool) -> None:
        """Nothing is written."""

    def on_leg_failed(self, leg: Leg, error: Exception) -> None:
        """Our own bug: no other upstream is to blame for it, and none would help."""
        log.error("call_failed", call=self._call_id, exc_info=error)
        self._lose(Loss(ended(Why.NODE_FAILED, "internal error of the relay"), None, is_final=True))
