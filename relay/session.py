"""One call's life on this node: carries out what the bridge decides, and sees to it that everything ends.

The only module that acts for a call. Decisions are in ``relay.core``; the legs are the client's side's and the model's
side's (``clientside``, ``modelside``). While the call is open its legs feed each other plain audio (``Leg.feed``);
everything else comes here from the read callbacks.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from fanout import CallEnded, CallTaken, Message, OwnedCall
from relay.call import Request, Services, log_end
from relay.clientside import Arrival, ClientSide
from relay.core import realtime
from relay.core.actions import Side
from relay.core.bridge import Bridge, Phase
from relay.core.conversation import Conversation, Gone, opening_update
from relay.core.endings import Ending, Why, ended
from relay.core.frames import Opcode
from relay.core.memory import Memory
from relay.core.messages import Settled
from relay.core.rebuild import Rebuild
from relay.doubt import Doubt
from relay.greeting import Greeter, new_event_id
from relay.hands import Hands
from relay.leaving import leave
from relay.legs import Leg
from relay.meter import Meter
from relay.modelside import ModelSide
from relay.taking import NotTaken, begin, take
from relay.traffic import Traffic
from relay.watchdog import Watchdog

_BUG: Final = "internal error of the relay"

log = structlog.get_logger("relay")


class Session:
    """A call on this node, from the upgrade until it ends or goes on elsewhere."""

    def __init__(self, services: Services, request: Request) -> None:
        settings = services.settings
        self._services = services
        self._settings = settings
        self.request = request  # as it was admitted
        self._loop = asyncio.get_running_loop()
        self._log = log.bind(call=request.call_id, node=settings.node, region=settings.region)
        self.watchdog = Watchdog(settings, self)
        self.client = ClientSide(services, request, self)
        self.model = ModelSide(services, request, self, new_event_id)
        self._traffic = Traffic(self.client.leg, self.model.leg)
        self._bridge = Bridge(request.rules(settings), new_event_id, self._traffic.passed)
        self._bridge.conversation.serving.fails_over = self.model.fails_over
        self._greeter = Greeter(services, request.call_id)
        self._hands = Hands(
            services,
            self._log,
            self._bridge,
            self.client,
            self.model,
            end=self.end,
            on_failed=self.on_failed,
        )
        self._meter = Meter(services, request, self._bridge, self._traffic, self.client, self.fail)
        self._ending: asyncio.Future[Ending] = self._loop.create_future()
        self._untold: list[bytes] = []  # what ends at the client's what the node before had begun
        self._gone: Gone | None = None  # what the model leg that was lost left behind
        self._has_model = asyncio.Event()
        self._started = request.started_at or services.wall()
        self._started_at = self._loop.time()
        self._connect_seconds: float | None = None
        self._doubt = Doubt(services.pulse)
        self._start: Callable[[Coroutine[Any, Any, None]], None]  # a task of the call's
        self._skipped = 0  # items that a model refused when the conversation was rebuilt

    @property
    def call_id(self) -> str:
        """The call's id."""
        return self.request.call_id

    @property
    def is_over(self) -> bool:
        """Whether it is ending."""
        return self._ending.done()

    @property
    def is_away(self) -> bool:
        """Whether it waits for its client."""
        return self._bridge.phase in {Phase.AWAY, Phase.ALONE}

    @property
    def memory(self) -> Memory:
        """What it knows of its conversation."""
        return self._bridge.conversation.memory

    @property
    def conversation(self) -> Conversation:
        """What was said, and what the model leg in use has shown of itself."""
        return self._bridge.conversation

    # Life

    async def run(self) -> None:
        """Live the call until it ends, or goes on elsewhere; returns when nothing of it is left on this node."""
        self._services.tally.started += not self.request.resumes
        self._meter.start(self._started)
        self.watchdog.watch(self.client.leg, self._started_at)
        self.watchdog.start()
        try:
            await self._live()
            await leave(self._settings, self._ending.result(), self._hands, self.client, self.model)
        finally:  # also when we are cancelled
            self.fail(Why.NODE_FAILED, _BUG)  # a no-op unless something is very wrong
            self.model.forget()
            self.client.forget()
            owned, ending = self._hands.owned, self._ending.result()
            self._meter.close(goes_on=ending.why.goes_on)
            if owned is not None:
                owned.on_interest = None  # it refers back, as the call does
                if not ending.why.goes_on:
                    now = self._services.wall()
                    owned.end(self.request.tombstone(self._settings, ending, self._started, now))
            self._hands.forget()
            del self._start

    async def _live(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                started: list[asyncio.Task[None]] = []
                self._start = lambda work: started.append(tasks.create_task(work))
                self._start(self._work())
                await self._ending
                for task in started:
                    task.cancel()
        except* Exception as errors:  # noqa: BLE001  # our bug must end this call, and no other
            self._log.error("call_failed", exc_info=errors)
            self.fail(Why.NODE_FAILED, _BUG)
        finally:
            self.end(ended(Why.NODE_DRAINING, "node shut down"))  # a no-op unless we were cancelled
            self._account(self._ending.result())

    async def _work(self) -> None:
        """Own the call; then start what it lives of."""
        try:
            owned = await self._own()
        except NotTaken as refused:
            self._services.tally.resumes["refused"] += self.request.resumes
            self.fail(refused.why, str(refused), refused.code)
            return
        owned.on_interest = self._on_interest
        self._on_interest()
        self._start(self.model.run(rebuilds=self.request.resumes))
        self._start(self._announce(owned))
        self._start(self._yield_when_lost(owned))

    async def _own(self) -> OwnedCall:
        record = self.request.record(self._settings, self._started)
        if not self.request.resumes:
            owned = self._hands.owned = begin(self._services.bus, record, self._deliver)
            self._hands.act(self.conversation.view.promise(self.request.opening))
            return owned
        owned = self._hands.owned = await take(self._services.bus, record, self._deliver)
        items = [realtime.decode(entry) for entry in owned.memory]
        self._gone = self._bridge.restore(owned.known, items, self._services.wall())
        self._hands.act(self._gone.follows)
        self._untold = self._gone.to_client
        return owned

    async def _announce(self, owned: OwnedCall) -> None:
        """Let the client hear of the call when it can be reached, and has a model leg."""
        await self._has_model.wait()
        try:
            async with asyncio.timeout(self._settings.register_seconds):
                await owned.wait_registered()
        except TimeoutError:  # the bus is away: the call goes on, and is registered when it is back
            self._services.tally.unregistered += 1
        except (CallTaken, CallEnded):  # two clients came with one call id: the other was first
            return  # _yield_when_lost says so
        while self._bridge.phase is not Phase.ANNOUNCING:  # the model leg was lost meanwhile
            self._has_model.clear()
            await self._has_model.wait()
        resumes = self.request.resumes
        greeting = self._resumed(self._untold) if resumes else self._greeter.started(self.request)
        self._services.tally.resumes["moved"] += resumes
        self._hands.act(self._bridge.on_announced(greeting, self._loop.time(), self._services.wall()))
        self._hands.feed()

    async def _yield_when_lost(self, owned: OwnedCall) -> None:
        """Only a claim with a higher epoch, seen in the home Redis, takes a call from its owner."""
        await owned.wait_lost()
        self.end(ended(Why.REPLACED, "the call goes on at another node"))

    def end(self, ending: Ending, error: bytes | None = None) -> None:
        """Begin the end of the call; the first reason stands. ``error`` is an event that the client gets first."""
        if self._ending.done():
            return
        self.client.leg.feed(None)
        self.model.leg.feed(None)
        held = self._bridge.on_ended()
        if self.client.is_here:
            for send in held:
                self.client.send(send.payload, send.kind)
            if error is not None:
                self.client.send(error)
        self._ending.set_result(ending)

    def fail(self, why: Why, text: str, code: str | None = None) -> None:
        """End the call for a fault that is not the client's, which is told in words what happened."""
        kind = "invalid_request_error" if why.fault == "policy" else "server_error"
        self.end(ended(why, text), realtime.error_event(new_event_id(), kind, code or why.label, text))

    def _account(self, ending: Ending) -> None:
        """Count the end and write the call's one log line."""
        self.watchdog.stop()
        self._hands.stop()
        tally, seconds = self._services.tally, self._loop.time() - self._started_at
        self._traffic.count(tally)
        tally.ended[ending.why] += 1
        tally.duration.observe(seconds)
        connected = self._connect_seconds
        log_end(self._log, self.request, ending, self._traffic, seconds=seconds, connect_seconds=connected)

    # Moving to another node

    @property
    def can_move(self) -> bool:
        """Whether another node could go on with it: its client can come back."""
        return self._bridge.is_announced and not self.is_over and self.client.request.can_resume

    def moment(self, now: float) -> bool:
        """Whether it can be moved without anybody's noticing: also, another node could have it."""
        return self._bridge.is_quiet(now) and self._services.bus.is_answering(self.call_id)

    def move(self) -> None:
        """Let another node have the call, as soon as its client comes there."""
        if self.can_move:
            text = "this node is shutting down: connect again to go on with the call"
            moving = self._greeter.moving(self.client.request)
            self.end(ended(Why.MOVED, text), moving[0] if moving else None)

    # The client's side

    def can_arrive(self, tenant: str) -> bool:
        """Whether a client of this tenant may go on with this call here."""
        return tenant == self.request.tenant and not self.is_over

    def arrive(self, arrival: Arrival) -> None:
        """The call's client has a new leg, whatever became of the one before."""
        if self.is_over or arrival.leg.closing:
            arrival.leg.abort()
            return
        is_announced, locks = self._bridge.is_announced, arrival.request.locks
        if locks != self.client.request.locks:
            self._doubt.drop()  # what is held was said by one who may say other things
        if not is_announced:
            self._bridge.bind(locks)
        elif not self.is_away:
            self.on_client_lost()
        missed = self.client.arrive(arrival.request, arrival.leg)
        self._traffic.use(arrival.leg)
        self._hands.take_up(arrival.leg)
        if is_announced:
            self._services.tally.resumes["same_leg"] += 1
            rules, greeting = arrival.request.rules(self._settings), self._resumed(missed)
            self._hands.act(self._bridge.on_client_back(rules, greeting, self._loop.time(), self._services.wall()))
            self._hands.feed()
        for message in arrival.early:
            self.on_client_text(message)

    def _resumed(self, missed: list[bytes]) -> list[bytes]:
        """What a client that comes back hears first."""
        view, number = self._bridge.conversation.view, self._bridge.missed + len(missed)
        view.is_resumed = True
        return [view.created(self.memory.session), *self._tell_resumed(number), *missed]

    def _tell_resumed(self, missed: int) -> list[bytes]:
        gone, self._gone = self._gone, None
        skipped, self._skipped = self._skipped, 0
        return self._greeter.resumed(self.client.request, self.memory, gone, missed=missed, skipped=skipped)

    def can_wait(self) -> bool:
        """Whether the call can go on for a while without its client."""
        return self._bridge.phase in {Phase.OPEN, Phase.REDIALLING}

    def on_client_lost(self) -> None:
        """The client is gone, and may come back."""
        self.model.leg.feed(None)
        self.client.leg.feed(None)
        self._hands.let_go(self.client.leg)
        self._bridge.on_client_lost()

    def doubt(self) -> None:
        """This node stood still: until it is known whose the call is, the model hears nothing more of it."""
        owned = self._hands.owned
        if not self.is_over and self._doubt.begins(owned, self.client.leg) and owned is not None:
            self._start(self._doubt.wait_over(owned, self._go_on))

    def _go_on(self, messages: list[bytes]) -> None:
        self._hands.feed()
        for message in messages:
            self.on_client_text(message)

    def on_client_text(self, message: bytes) -> None:
        """A text message of the client's that is no plain audio."""
        if self._doubt.is_due:
            self.doubt()
        if self._doubt.holds(message):
            return
        self._hands.act(self._bridge.on_client_text(message, self._loop.time()))
        self.client.guard()

    def on_client_binary(self, payload: bytes) -> None:
        """A binary message of the client's: raw audio on /voice."""
        self._hands.act(self._bridge.on_client_binary(payload))
        self.client.guard()

    def on_client_blocked(self, blocked: bool) -> None:
        """A leg that cannot be written pauses the reading of its peer."""
        self._hands.on_blocked(self.client.leg, blocked)

    # The model's side

    def on_model_opened(self) -> None:
        """The first model leg is there."""
        self._connect_seconds = self._loop.time() - self._started_at
        self._services.tally.connect.observe(self._connect_seconds)
        self._traffic.use(self.model.leg)
        session = dict(self.request.opening)
        self._hands.act(self._bridge.on_model_opened(opening_update(session) if session else None, self._loop.time()))
        self._has_model.set()

    def on_model_lost(self) -> None:
        """The model leg is gone, another one is being had."""
        self.client.leg.feed(None)
        self._hands.let_go(self.model.leg)
        gone = self._bridge.on_model_lost(self._loop.time())
        self._hands.act(gone.follows)
        before = self._gone
        turn = None if self._hands.speech() else gone.turn  # what is kept is said again
        self._gone = gone._replace(turn=turn or (before.turn if before is not None else None))

    def on_model_changed(self, old: Leg, rebuild: Rebuild, before: list[bytes]) -> None:
        """Another model leg is in use, which has the conversation; ``before`` is audio that it has yet to hear."""
        leg, now, wall = self.model.leg, self._loop.time(), self._services.wall()
        if not old.closing:
            self._hands.let_go(old)
        self._traffic.use(leg)
        self._hands.take_up(leg)
        for message in before:
            leg.send(message)
        self._skipped += rebuild.items_skipped
        self._hands.act(self._bridge.on_model_changed(rebuild.session, rebuild.restored, rebuild.anchor_id, now, wall))
        self._has_model.set()
        if self._bridge.phase is Phase.OPEN:
            if self._gone is not None:
                for event in self._tell_resumed(0):
                    self.client.send(event)
            self._hands.feed()

    def on_model_text(self, message: bytes) -> None:
        """A text message of the model's that is no plain audio."""
        self._hands.on_turn(realtime.event_type(message))
        self._hands.act(self._bridge.on_model_text(message, self._loop.time(), self._services.wall()))
        self.model.on_news()
        if self.model.awaits_session:
            self.model.on_session(self.memory.session.get("expires_at"))

    def on_model_binary(self, payload: bytes) -> None:
        """A binary message of the model's: no known model sends one."""
        if self._bridge.phase is Phase.OPEN:
            self.client.send(payload, Opcode.BINARY)

    def on_model_blocked(self, blocked: bool) -> None:
        """A leg that cannot be written pauses the reading of its peer."""
        self._hands.on_blocked(self.model.leg, blocked)
        self._hands.act(self._bridge.on_model_blocked(blocked, self._loop.time(), self._services.wall()))

    def new_event_id(self) -> str:
        """Make an event id of the relay's own on a model leg."""
        return self._bridge.new_event_id()

    def is_moment(self, *, hurried: bool) -> bool:
        """Whether the model leg can be replaced now without anybody's noticing; ``hurried``: or in a pause."""
        now = self._loop.time()
        return self._bridge.is_quiet(now) or (hurried and self._bridge.may_be_cut(now))

    def keep_audio(self, keep: bool) -> None:
        """Keep the client's last audio, for the model leg that is to come, or do so no longer."""
        self._hands.keep_audio(keep)

    def kept_audio(self, *, is_lost: bool) -> list[bytes]:
        """Return that audio, as messages; after a loss what the client was just saying."""
        return self._hands.speech() if is_lost else self._hands.kept_audio()

    # Both sides

    def check_token(self) -> None:
        """End if the token of the call's client has been revoked."""
        if self._services.revoked.has(self.request.tenant, self.client.request.claims.jti):
            self.fail(Why.TOKEN_REVOKED, "the token of this call's client has been revoked")

    def _on_interest(self) -> None:
        """Somebody begins to watch or to listen, or nobody does any more."""
        owned, bridge = self._hands.owned, self._bridge
        if owned is None:
            return
        bridge.conversation.watched = owned.is_watched
        if owned.is_heard != bridge.heard:
            bridge.heard = owned.is_heard
            self._hands.feed()

    def on_failed(self, error: Exception) -> None:
        """Our own bug: it ends this call, with a traceback, and no other."""
        self._log.error("call_failed", exc_info=error)
        self.fail(Why.NODE_FAILED, _BUG)

    def on_stalled(self, leg: Leg) -> None:
        """A peer took no byte for too long."""
        (self.client if leg.side is Side.CLIENT else self.model).on_stalled(leg)

    def on_silent(self, leg: Leg) -> None:
        """A peer answered no ping."""
        (self.client if leg.side is Side.CLIENT else self.model).on_silent(leg)

    def on_look(self) -> None:
        """What has no event of its own to wake it."""
        self._traffic.count(self._services.tally)
        self._meter.look()
        self._hands.on_alarm()

    def _deliver(self, message: Message) -> None:
        """Take a message from the inbox; called by the bus on the event loop, in order."""
        if message.kind == "hangup":
            self._hands.settle(Settled(message.id, message.item_id, "applied"))
            self.end(ended(Why.HUNG_UP, "hung up"))
        else:
            self._hands.inject(message)
