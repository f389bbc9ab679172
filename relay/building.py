"""A model leg that is being made ready to take another one's place. Owns that leg until then.

What it is told is ``relay.core.rebuild``'s decision; what its failure means is the model side's.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from relay.core.endings import Loss, Why, ended, invites_redial, model_closed
from relay.core.frames import Close, Violation
from relay.core.rebuild import Rebuild
from relay.failover import Failover, NoLeg
from relay.legs import Leg

_NEWS_SECONDS: Final = 1.0  # between looks at what is overdue

log = structlog.get_logger("relay")


class BuildFailed(Exception):
    """The leg is of no use; ``loss`` says why."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss.ending.close.reason)
        self.loss = loss


class Building:
    """One attempt. ``loss`` is set when it has failed, ``upstream`` once the leg is connected."""

    def __init__(self, failover: Failover, call_id: str, rebuild: Rebuild, make_leg: Callable[[], Leg]) -> None:
        self._failover = failover
        self._call_id = call_id
        self._make_leg = make_leg
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self.rebuild = rebuild
        self.leg = make_leg()
        self.upstream = ""
        self.loss: Loss | None = None

    def _fresh_leg(self) -> Leg:
        if self.leg.closing:
            self.leg = self._make_leg()
        return self.leg

    async def run(self) -> None:
        """Until the leg has the conversation. Cancelling it cuts the leg.

        Raises:
            BuildFailed: it never will.
        """
        try:
            early = await self._dial()
            self._say(self.rebuild.start(self._loop.time()))
            for message in early:
                self._on_text(message)
            self._check()
            while not self.rebuild.is_ready:
                await self.wait_news(_NEWS_SECONDS)
                self._check()
        except BaseException:
            self.abort()
            raise

    async def _dial(self) -> tuple[bytes, ...]:
        try:
            self.leg, early, self.upstream, self.loss = await self._failover.open(self._fresh_leg, is_first=False)
        except NoLeg as error:
            raise BuildFailed(error.loss) from error
        self.leg.give(self, self._on_text)
        return early

    def _check(self) -> None:
        if self.rebuild.failed is not None and (self.loss is None or not self.loss.is_final):
            self.loss = self._failover.refusal(self.upstream, self.rebuild.failed)
        if self.rebuild.is_mute:
            self._lose(Loss(ended(Why.MODEL_SILENT, "the model answered nothing")))
        if self.loss is not None:
            self.loss = self._failover.fail(self.upstream, self.loss)
            raise BuildFailed(self.loss)

    def catch_up(self) -> None:
        """Tell the leg what has changed in the conversation meanwhile."""
        if not self.leg.closing:
            self._say(self.rebuild.catch_up(self._loop.time()))

    async def wait_news(self, seconds: float) -> None:
        """Until the leg has said something, an answer is overdue, or ``seconds`` are over."""
        now = self._loop.time()
        due = self.rebuild.due()
        pause = seconds if due is None else min(seconds, max(0.0, due - now))
        try:
            async with asyncio.timeout(pause):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
        if not self.leg.closing and self.leg.transport is not None:
            self._say(self.rebuild.on_tick(self._loop.time()))

    def wake(self) -> None:
        """Have ``wait_news`` return."""
        self._news.set()

    def abort(self) -> None:
        """Cut the leg."""
        self.leg.feed(None)
        self.leg.abort()
        self.leg.abandon()

    def _say(self, events: list[bytes]) -> None:
        for event in events:
            self.leg.send(event)

    def _on_text(self, message: bytes) -> None:
        self._say(self.rebuild.on_message(message, self._loop.time()))
        self._news.set()

    def _lose(self, loss: Loss) -> None:
        self.loss = self.loss or loss
        self._news.set()

    # From the leg

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None:
        """No known model sends one."""

    def on_leg_violation(self, leg: Leg, violation: Violation) -> None:
        """Its server broke the protocol."""
        self._lose(Loss(ended(Why.MODEL_PROTOCOL, "the model's server broke the WebSocket protocol")))

    def on_leg_close(self, leg: Leg, close: Close) -> None:
        """The model closes it."""
        leg.close(close)
        leg.disconnect()
        self._lose(Loss(model_closed(close), None, is_final=not invites_redial(close.code)))

    def on_leg_lost(self, leg: Leg) -> None:
        """The connection is gone."""
        self._lose(Loss(ended(Why.MODEL_LOST, "the connection to the model was lost")))

    def on_leg_blocked(self, leg: Leg, blocked: bool) -> None:
        """A conversation is at most a few megabytes: it waits in the leg's buffer."""

    def on_leg_failed(self, leg: Leg, error: Exception) -> None:
        """Our own bug: it ends this call, with a traceback, and no other."""
        log.error("call_failed", call=self._call_id, exc_info=error)
        self._lose(Loss(ended(Why.NODE_FAILED, "internal error of the relay"), None, is_final=True))
