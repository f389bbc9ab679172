"""One connection to one primary that many callers share: commands out, answers back in the same order.

Writing never waits and reading is one task's, so that a caller who gives up disturbs nobody: its command keeps its
place and its answer is dropped. Decides when a connection is dead; never connects and never repeats a command.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NoReturn

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from fanout.core.runs import Arg
from fanout.core.topology import Address
from fanout.redis.dial import read
from fanout.redis.trouble import ConnectionLost
from fanout.settings import MIB, BusSettings
from fanout.tasks import Backoff

Command = tuple[Arg, ...]

# What may be under way and not answered, in this node's memory; more than one caller's batch, which is let in whole.
_COMMANDS_MAX = 4096
_BYTES_MAX = 16 * MIB
_ANSWERS_PER_TURN = 32  # then the loop, and with it the audio, gets its turn
_CHECKS_PER_TIMEOUT = 8  # how finely the age of the oldest command is watched


class _Batch:
    """Commands of one caller, answered together."""

    __slots__ = ("answers", "count", "future", "sent_at", "size")

    def __init__(self, future: "asyncio.Future[list[Any]]", count: int, size: int, sent_at: float) -> None:
        self.future = future
        self.answers: list[Any] = []
        self.count = count
        self.size = size
        self.sent_at = sent_at

    def resolve(self) -> None:
        if not self.future.done():  # else its caller has given up
            self.future.set_result(self.answers)


class Wire:
    """Usable while `serve` runs. `run_id` names the process at the other end."""

    def __init__(self, connection: AbstractConnection, address: Address, run_id: str, settings: BusSettings) -> None:
        self.address = address
        self.run_id = run_id
        self.loaded: set[str] = set()  # digests of the scripts that went over this wire
        self._connection = connection
        self._timeout = settings.socket_timeout
        self._idle_limit = settings.silence_seconds
        self._loop = asyncio.get_running_loop()
        self._batches: deque[_Batch] = deque()
        self._commands = 0
        self._bytes = 0
        self._room = asyncio.Event()
        self._answered_at = self._loop.time()
        self._scope: asyncio.Timeout | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = True

    @property
    def under_way(self) -> int:
        """Commands without an answer yet."""
        return self._commands

    @property
    def is_full(self) -> bool:
        """Whether as much is under way as may be."""
        return self._is_open and (self._commands >= _COMMANDS_MAX or self._bytes >= _BYTES_MAX)

    async def wait_room(self) -> None:
        """Until it isn't full, or is gone."""
        while self.is_full:
            self._room.clear()
            await self._room.wait()

    def send(self, commands: Sequence[Command]) -> "asyncio.Future[list[Any]]":
        """Write commands at once; their answers come together, an error as an exception among them, never raised.

        If the wire goes away first, ConnectionLost stands for each answer that is missing.
        """
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        # The C packer takes any iterable of these types; its stub names one-element tuples only.
        packed = [bytes(pack_command(command)) for command in commands]  # type: ignore[arg-type]
        size = sum(map(len, packed))
        batch = _Batch(future, len(packed), size, self._loop.time())
        # redis-py's own send waits for the peer to take the bytes, and a caller cancelled there closes the connection.
        writer = self._connection._writer
        if not self._is_open or writer is None:
            _lose(batch)
            return future
        self._batches.append(batch)
        self._commands += batch.count
        self._bytes += size
        try:
            writer.write(packed[0] if len(packed) == 1 else b"".join(packed))
        except RuntimeError:  # uvloop's transport was closed under us; whoever reads hears of it only in a moment
            self.give_up()
        return future

    def give_up(self) -> None:
        """End it: what is under way counts as lost."""
        self._is_open = False
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(self._loop.time())

    async def serve(self, backoff: Backoff) -> NoReturn:
        """Read answers until the connection is lost or silent; then everything under way is lost, and this raises."""
        self._watch()
        try:
            async with asyncio.timeout(None) as self._scope:
                await self._read_answers(backoff)
        except TimeoutError:
            raise ConnectionLost("given up: no answer in time, or no primary any more") from None
        finally:
            self._is_open = False
            self._scope = None
            if self._timer is not None:
                self._timer.cancel()
            while self._batches:
                _lose(self._batches.popleft())
            self._commands = self._bytes = 0
            self._room.set()

    async def _read_answers(self, backoff: Backoff) -> NoReturn:
        read_count = 0
        while True:
            try:
                answer = await read(self._connection)
            except ResponseError as exc:
                answer = exc
            self._answered_at = self._loop.time()
            backoff.reset()
            self._on_answer(answer)
            read_count += 1
            if read_count % _ANSWERS_PER_TURN == 0:
                await asyncio.sleep(0)

    def _on_answer(self, answer: Any) -> None:
        if not self._batches:
            raise ConnectionLost("an answer that nobody asked for")
        batch = self._batches[0]
        batch.answers.append(answer)
        self._commands -= 1
        if len(batch.answers) == batch.count:
            self._batches.popleft()
            self._bytes -= batch.size
            batch.resolve()
        if not self.is_full:
            self._room.set()

    def _watch(self) -> None:
        """A server that answers something is alive, however long its queue; one that is idle is asked for a sign."""
        now = self._loop.time()
        if self._batches:
            if now - max(self._batches[0].sent_at, self._answered_at) > self._timeout:
                self.give_up()
        elif now - self._answered_at > self._idle_limit:
            self.send([("PING",)])
        self._timer = self._loop.call_later(self._timeout / _CHECKS_PER_TIMEOUT, self._watch)


def _lose(batch: _Batch) -> None:
    missing = batch.count - len(batch.answers)
    batch.answers += [ConnectionLost("the connection was lost")] * missing
    batch.resolve()
