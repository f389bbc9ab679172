"""The model's side of one call: dial, replace a model leg that is lost or whose session is about to end, close.

It owns the model legs: the one in use, and the one that is being built to take its place. What a new leg is told is
``relay.core.rebuild``'s decision, what the loss of one means for the conversation ``relay.core.conversation``'s.
"""

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from relay.building import BuildFailed, Building
from relay.call import Request, Services
from relay.core import realtime
from relay.core.actions import Side
from relay.core.conversation import Conversation
from relay.core.endings import Ending, Loss, Why, ended, invites_redial, model_closed
from relay.core.frames import Close, Violation
from relay.core.rebuild import Rebuild
from relay.failover import Failover, NoLeg
from relay.legs import Leg
from relay.stale import let_go
from relay.watchdog import Watchdog

_LIVED_SECONDS: Final = 5.0  # a leg that lived for so long was a good one
_PAUSE_SECONDS: Final = 0.1  # before the second attempt; doubles
_PAUSE_MAX_SECONDS: Final = 4.0
_LOOK_SECONDS: Final = 0.05  # between looks whether it is the moment to replace a leg that still lives
_CUT_SHARE: Final = 0.5  # of the margin that is left when any pause will do


class Call(Protocol):
    """What the model's side tells its call, and asks of it."""

    watchdog: Watchdog

    @property
    def is_over(self) -> bool:
        """Whether it is ending."""
        ...

    @property
    def conversation(self) -> Conversation:
        """What was said, and what the model leg in use has shown of itself."""
        ...

    def on_model_opened(self) -> None:
        """The first model leg is there."""

    def on_model_lost(self) -> None:
        """The model leg is gone, another one is being had."""

    def on_model_changed(self, old: Leg, rebuild: Rebuild, before: list[bytes]) -> None:
        """Another model leg is in use, which has the conversation; ``before`` is audio that it has yet to hear."""

    def on_model_text(self, message: bytes) -> None:
        """A text message that is no plain audio."""

    def on_model_binary(self, payload: bytes) -> None:
        """A binary message."""

    def on_model_blocked(self, blocked: bool) -> None:
        """The model leg can no longer, or again, be written."""

    def on_failed(self, error: Exception) -> None:
        """Our own bug."""

    def new_event_id(self) -> str:
        """Make an event id of the relay's own on a model leg."""
        ...

    def is_moment(self, *, hurried: bool) -> bool:
        """Whether the model leg can be replaced now without anybody's noticing; ``hurried``: or in a pause."""
        ...

    def keep_audio(self, keep: bool) -> None:
        """Keep the client's last audio, for the leg that is to come, or do so no longer."""

    def kept_audio(self, *, is_lost: bool) -> list[bytes]:
        """Return that audio, as messages; after a loss what the client was just saying."""
        ...

    def end(self, ending: Ending, error: bytes | None = None) -> None:
        """End the call."""


class ModelSide:
    """The model legs of one call. ``leg`` is the one in use, or the last one that was."""

    def __init__(self, services: Services, request: Request, call: Call, event_ids: Callable[[], str]) -> None:
        self._services = services
        self._settings = services.settings
        self._request = request
        self._call = call
        self._event_ids = event_ids
        self._loop = asyncio.get_running_loop()
        self._loss: asyncio.Future[Loss] = self._loop.create_future()
        self._news = asyncio.Event()  # the leg is lost, or its session's end is known
        self._lost_at = 0.0
        self._in_use_since = 0.0
        self._failures = 0  # legs in a row that were lost soon
        self._anchors = 0
        # When the session is given up, and when any pause will do for it, in seconds since the epoch; None: not known.
        self._roll_at: float | None = None
        self._cut_at: float | None = None
        self._is_behind = False  # the conversation went on since a leg was told of it
        self._building: Building | None = None
        self._failover = Failover(services, request, event_ids)
        self._upstream = ""  # of the leg in use
        self.leg = self._new_leg()

    def _new_leg(self) -> Leg:
        settings = self._settings
        return Leg(
            Side.MODEL,
            self,
            self._call.on_model_text,
            realtime.is_audio_delta,
            max_message=settings.max_message_bytes,
            write_bytes=settings.write_buffer_bytes,
            socket_bytes=settings.socket_buffer_bytes,
        )

    # Life

    async def run(self, *, rebuilds: bool) -> None:
        """Have a model leg, until cancelled; ``rebuilds``: the first one takes over a conversation from its memory."""
        if rebuilds:
            self._lost_at = self._loop.time()
            self._loss.set_result(Loss(ended(Why.MODEL_UNREACHABLE, "no model took the conversation over")))
        elif not await self._dial():
            return
        while not self._call.is_over:
            await self._wait_trouble()
            building = await self._build()
            if building is None:
                return
            await self._replace(building)

    async def _dial(self) -> bool:
        """Open the first model leg; false if the call ends instead."""
        try:
            self.leg, early, upstream, loss = await self._failover.open(self._fresh_leg, is_first=True)
        except NoLeg as error:
            self._end(error.loss)
            return False
        self.leg.give(self, self._call.on_model_text)
        if self._call.is_over:  # while we dialled
            return False
        self._begin(upstream)
        self._call.on_model_opened()
        for message in early:
            self._call.on_model_text(message)
        if loss is not None:
            self._lose(loss)
        return True

    def _fresh_leg(self) -> Leg:
        if self.leg.closing:
            self.leg = self._new_leg()
        return self.leg

    def _begin(self, upstream: str) -> None:
        self._in_use_since = self._loop.time()
        self._upstream = upstream
        self._failover.serve(upstream)
        self._call.watchdog.watch(self.leg, self._in_use_since)

    def on_session(self, expires_at: object) -> None:
        """The model says until when its session lasts."""
        if self._roll_at is not None or not self._settings.redial_seconds:
            return
        if isinstance(expires_at, int | float) and not isinstance(expires_at, bool):
            now = self._services.wall()
            margin = min(self._settings.roll_over_seconds, max(0.0, expires_at - now) / 2)
            self._roll_at, self._cut_at = expires_at - margin, expires_at - margin * _CUT_SHARE
            self._news.set()

    @property
    def awaits_session(self) -> bool:
        """Whether it is not known yet until when the model's session lasts."""
        return self._roll_at is None

    def on_news(self) -> None:
        """The model has said something: this may be the moment for another leg."""
        if self._building is not None:
            self._building.wake()
        code = self._call.conversation.serving.refusal
        if code is not None and not self._loss.done() and self.fails_over():
            self.leg.abort()
            self._lose(self._failover.refusal(self._upstream, code))

    def fails_over(self) -> bool:
        """Whether the call can go on at another upstream, if this one takes nobody."""
        return bool(self._settings.redial_seconds) and self._failover.has_other(self._upstream, is_good=self._is_good)

    @property
    def _is_good(self) -> bool:
        """Whether the leg in use is, or was, of some use."""
        lived = self._loop.time() - self._in_use_since >= _LIVED_SECONDS
        return lived or self._call.conversation.serving.has_answered

    def on_memory_changed(self) -> None:
        """A leg that is being built has more to be told."""
        self._is_behind = True

    async def _wait_trouble(self) -> None:
        """Until the leg is lost, or its session is about to end."""
        while not self._loss.done():
            pause = self._roll_at - self._services.wall() if self._roll_at is not None else math.inf
            if pause <= 0:
                return
            try:
                async with asyncio.timeout(pause if pause < math.inf else None):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()

    # Another leg

    async def _build(self) -> Building | None:
        """Open a leg and tell it the conversation, as often as it takes; None if the call ends instead."""
        attempts = self._failures
        while True:
            pause = min(_PAUSE_MAX_SECONDS, _PAUSE_SECONDS * 2 ** (attempts - 1)) if attempts else 0.0
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, no secret
            attempts += 1
            try:
                async with asyncio.timeout(self._left()):
                    return await self._build_once()
            except BuildFailed as failed:
                loss = failed.loss
            except TimeoutError:
                loss = Loss(ended(Why.MODEL_UNREACHABLE, "the model did not take the conversation over in time"))
            if self._loss.done() and (loss.is_final or not self._left()):
                self._services.tally.redials["failed"] += 1
                self._end(self._loss.result() if not loss.is_final and self._loss.result().error else loss)
                return None
            if not self._loss.done() and (loss.is_final or self._is_late()):
                self._services.tally.roll_overs["missed"] += 1
                await asyncio.wait({self._loss})  # what follows the session's end is a loss like any other

    def _left(self) -> float:
        """For how long another leg may still be looked for."""
        gone = self._loop.time() - self._lost_at if self._loss.done() else 0.0
        return max(0.0, (self._settings.redial_seconds or self._settings.dial_seconds) - gone)

    def _is_late(self) -> bool:
        """Whether the session's end is so near that any pause will do."""
        return self._cut_at is not None and self._services.wall() >= self._cut_at

    async def _build_once(self) -> Building:
        self._anchors += 1
        rebuild = Rebuild(
            self._call.conversation.memory,
            self._call.new_event_id,
            self._anchors,
            apply_seconds=self._settings.apply_seconds,
        )
        self._is_behind = False
        building = Building(self._failover, self._request.call_id, rebuild, self._new_leg)
        self._building = building
        await building.run()
        return building

    async def _replace(self, building: Building) -> None:
        """Put the new leg into the old one's place: now, if that is lost, else at a moment when nobody notices."""
        rebuild = building.rebuild
        self._call.keep_audio(True)
        try:
            while not self._call.is_over:
                if building.loss is not None:  # before it was used: the next round builds another
                    self._building = None
                    self._failures += 1
                    self._failover.fail(building.upstream, building.loss)
                    return
                is_lost, hurried = self._loss.done(), self._is_late()
                if is_lost or self._call.is_moment(hurried=hurried):
                    if self._is_behind:  # now, not whenever it is: a long conversation is milliseconds of the loop
                        self._is_behind = False
                        building.catch_up()
                    if rebuild.is_ready:
                        self._switch(building, is_lost=is_lost, hurried=hurried)
                        return
                await building.wait_news(_LOOK_SECONDS)
        finally:
            self._call.keep_audio(False)

    def _switch(self, building: Building, *, is_lost: bool, hurried: bool) -> None:
        tally, rebuild = self._services.tally, building.rebuild
        old, self.leg, self._building = self.leg, building.leg, None
        if is_lost:
            tally.redials["rebuilt"] += 1
            tally.rebuild.observe(self._loop.time() - self._lost_at)
            self._loss = self._loop.create_future()
        else:
            tally.roll_overs["forced" if hurried else "done"] += 1
        tally.items_skipped += rebuild.items_skipped
        self._roll_at = self._cut_at = None
        self.on_session(rebuild.expires_at)
        self.leg.give(self, self._call.on_model_text)
        self._call.watchdog.forget(old)
        self._begin(building.upstream)
        self._call.on_model_changed(old, rebuild, self._call.kept_audio(is_lost=is_lost))
        let_go(old, Close(1000, ""), self._settings.close_seconds)

    # The end of a leg

    def _lose(self, loss: Loss) -> None:
        """The leg in use is gone."""
        if self._loss.done() or self._call.is_over:
            return
        if self._call.conversation.serving.refusal is not None:
            loss = loss._replace(is_final=True)
        loss = self._failover.lose(self._upstream, loss, was_good=self._is_good)
        if loss.is_final or not self._settings.redial_seconds:
            self._end(loss)
            return
        now = self._loop.time()
        self._lost_at = now
        self._failures = 0 if now - self._in_use_since >= _LIVED_SECONDS else self._failures + 1
        self._loss.set_result(loss)
        self._news.set()
        self._call.watchdog.forget(self.leg)
        self._call.on_model_lost()

    def _end(self, loss: Loss) -> None:
        self._call.end(loss.ending, loss.error)

    def on_stalled(self, leg: Leg) -> None:
        """The model took no byte for too long."""
        if leg is self.leg:
            self._fail(Why.MODEL_SLOW, f"the model took no byte for {self._settings.stall_seconds:g} s")

    def on_silent(self, leg: Leg) -> None:
        """The model answered no ping."""
        if leg is self.leg:
            self._fail(Why.MODEL_SILENT, "the model answered no ping")

    def _fail(self, why: Why, text: str) -> None:
        error = realtime.error_event(self._event_ids(), "server_error", why.label, text)
        self.leg.abort()
        self._lose(Loss(ended(why, text), error))

    def close(self, why: Why) -> None:
        """Close all legs: the call is over."""
        if self._building is not None:
            self._building.abort()
            self._building = None
        self.leg.close(Close(1000, ""))
        self.leg.abandon()
        if why in {Why.MODEL_SLOW, Why.MODEL_SILENT}:
            self.leg.abort()

    def forget(self) -> None:
        """Cut what is left, and refer back to nothing: an ended call must leave the garbage collector no work."""
        if self._building is not None:
            self._building.abort()
        self.leg.abort()
        let_go(self.leg, Close(1000, ""), 0.0)
        self._call = cast(Any, None)

    # From the leg in use

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None:
        """No known model sends one."""
        if leg is self.leg:
            self._call.on_model_binary(payload)

    def on_leg_violation(self, leg: Leg, violation: Violation) -> None:
        """Its leg told it so; the client knows it as a lost model."""
        self._fail(Why.MODEL_PROTOCOL, "the model's server broke the WebSocket protocol")

    def on_leg_close(self, leg: Leg, close: Close) -> None:
        """The model closes, or answers our CLOSE."""
        if not leg.closing:
            leg.close(close)
            self._lose(Loss(model_closed(close), None, is_final=not invites_redial(close.code)))
        leg.disconnect()

    def on_leg_lost(self, leg: Leg) -> None:
        """The connection is gone without a close."""
        text = "the connection to the model was lost"
        error = realtime.error_event(self._event_ids(), "server_error", Why.MODEL_LOST.label, text)
        self._lose(Loss(ended(Why.MODEL_LOST, text), error))

    def on_leg_blocked(self, leg: Leg, blocked: bool) -> None:
        """It cannot be written, or can again."""
        leg.buffered()
        if not self._loss.done():
            self._call.on_model_blocked(blocked)

    def on_leg_failed(self, leg: Leg, error: Exception) -> None:
        """Our own bug."""
        self._call.on_failed(error)
