"""One schedule: a world made from a seed, with calls, messages, moves and a fault; run to its quiet end and judged."""

from dataclasses import dataclass
from functools import cache

from fanout.core.scripts import Scripts
from fanout.messages import CallRecord, Status
from fanout.settings import BusSettings
from tests.simulation.caller import Caller, Plan
from tests.simulation.client import Client
from tests.simulation.facts import Facts
from tests.simulation.faults import FAULTS
from tests.simulation.node import Node
from tests.simulation.promises import broken
from tests.simulation.redis import Home
from tests.simulation.world import EPOCH, START, World

_NODES = (("near1", 0.0002), ("near2", 0.0002), ("far1", 0.04))  # and how long the way to Redis takes, in seconds
_CALLS = ("rtc_iad_first", "rtc_iad_second")
_TENANT = "acme"
_BUSY_SECONDS = 12.0  # in which everything begins that is planned
_QUIET_SECONDS = 60.0  # after which nothing may be under way: settling, rewriting, two sweeps, repeats, holds
_REFUSES = 0.05
_SCALES = (0.003, 0.05, 0.3, 2.0)  # seconds around the fault in which the plan is dense


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a schedule."""

    seed: int
    faults: tuple[str, ...]
    options: tuple[str, ...]  # that make it on the command line, beside the seed
    broken: tuple[str, ...]
    trace: tuple[str, ...]
    told: tuple[str, ...]  # the last that was told of each message
    events: int


@cache
def scripts_of(node: str) -> Scripts:
    """A node's settings are the production ones."""
    return Scripts(BusSettings(node=node, region="iad", regions={"iad": "redis://none"}))


class Schedule:
    """One."""

    def __init__(
        self, seed: int, *, fault: str | None = None, faults: int = 1, crowd: int = 1, is_traced: bool = False
    ) -> None:
        self.seed = seed
        self.world = world = World(seed, is_traced=is_traced)
        self.facts = Facts()
        self._scripts = scripts_of(_NODES[0][0])
        settings = self._scripts.settings
        self.home = Home(world, settings.clock_skew_seconds)
        count = 1 if world.chance(0.75) else 2
        tags = frozenset(self._scripts.keys.call(call, _TENANT).tag for call in _CALLS[:count])
        for call in _CALLS[:count]:
            self.home.begin(self._scripts.lookup(self._scripts.keys.call(call, _TENANT), _TENANT))
        self.nodes = [
            Node(world, self.home, self.facts, scripts_of(name), tags, delay, _REFUSES) for name, delay in _NODES
        ]
        chosen = {"--fault": fault, "--faults": faults if faults > 1 else None, "--crowd": crowd if crowd > 1 else None}
        self.options = tuple(f"{name} {value}" for name, value in chosen.items() if value)
        self.faults = (fault or world.random.choice(list(FAULTS)),)
        self.faults += tuple(world.random.choice(list(FAULTS)) for _ in range(faults - 1))
        # How long a claim may be under way: its answer's time, and what two clocks may differ by, twice.
        self.claim_seconds = settings.socket_timeout + 4 * settings.clock_skew_seconds
        self._fault_at = START + world.between(1.0, _BUSY_SECONDS - 4)
        self._whole_at = START + _BUSY_SECONDS
        for name in self.faults:
            world.at(self._fault_at + (world.between(0, 3) if faults > 1 else 0), self._break, name)
        self.clients = [self._client(call) for call in _CALLS[:count]]
        self._plan_messages(6 * crowd)

    # -- the plan

    def _some_time(self) -> float:
        """Often close to the fault."""
        world = self.world
        if world.chance(0.3):
            return START + world.between(0.2, _BUSY_SECONDS)
        scale = world.random.choice(_SCALES)
        return max(START + 0.2, self._fault_at + world.between(-1, 1) * scale)

    def _break(self, name: str) -> None:
        self.world.note("fault:", name)
        self._whole_at = max(self._whole_at, FAULTS[name](self))

    def _client(self, call: str) -> Client:
        world = self.world
        record = CallRecord(
            id=call, tenant=_TENANT, node="", region="iad", agent="a", model="m", started_at=EPOCH + START
        )
        client = Client(world, self.facts, self.nodes, record)
        client.comes_back = world.chance(0.9)
        world.at(START + world.between(0, 0.1), client.start, world.random.choice(self.nodes))
        for _ in range(world.random.choice((0, 0, 1, 1, 2, 3))):
            world.at(self._some_time(), client.move, world.random.choice(self.nodes))
        if world.chance(0.2):
            world.at(self._some_time(), client.hang_up)
        if world.chance(0.1):
            world.at(self._some_time(), self.kill_legs)
        return client

    def _plan_messages(self, most: int) -> None:
        world = self.world
        for caller in range(2):
            client = world.random.choice(self.clients)
            node = world.random.choice(self.nodes)
            times = sorted(self._some_time() for _ in range(world.random.randint(1, most)))
            plans = [self._plan(f"m{caller}.{number}", number, at) for number, at in enumerate(times)]
            Caller(world, self.facts, self.nodes, node, client, plans, in_turn=world.chance(0.5))

    def _plan(self, message_id: str, number: int, at: float) -> Plan:
        world = self.world
        return Plan(
            id=message_id,
            number=number,
            at=at,
            expires_in=world.between(0.05, 3) if world.chance(0.15) else 60.0,
            wants_response=world.chance(0.3),
            wait=world.random.choice((Status.ACCEPTED, Status.ACCEPTED, Status.DELIVERED, Status.APPLIED)),
            timeout=world.between(0.5, 5),
            is_repeated=world.chance(0.15),
        )

    # -- for faults and promises

    def kill_legs(self) -> None:
        """The model's connections end."""
        for client in self.clients:
            owned = client.owned
            if owned is not None and owned.session.leg and not owned.session.is_closed and owned.node.answers:
                owned.session.build()

    def lookup(self, client: Client, message_id: str) -> bytes:
        """A message's receipt as any node would read it."""
        run = self._scripts.lookup(self._scripts.keys.call(client.record.id, _TENANT), _TENANT, message_id)
        (answer,) = self.home.execute(self.home.primary, [run], self.world.now)
        receipt: bytes = answer[1] if len(answer) > 1 else b""
        return receipt

    def claim_of(self, client: Client) -> tuple[int, str]:
        """Who owns the call, as Redis has it."""
        run = self._scripts.lookup(self._scripts.keys.call(client.record.id, _TENANT), _TENANT)
        (answer,) = self.home.execute(self.home.primary, [run], self.world.now)
        return (int(answer[2]), answer[3].decode()) if answer[0] == b"live" else (0, answer[0].decode())

    def memory_of(self, client: Client) -> list[bytes]:
        """What a new owner would be given."""
        key = self._scripts.keys.call(client.record.id, _TENANT).memory
        memory: list[bytes] = self.home.primary.model.dump(EPOCH + self.world.now).get(key, [])
        return memory

    def facts_of(self, client: Client) -> dict[str, bytes]:
        """What is known of the call, as a new owner would be given it."""
        key = self._scripts.keys.call(client.record.id, _TENANT).facts
        facts = self.home.primary.model.dump(EPOCH + self.world.now).get(key, {})
        return {name.decode(): value for name, value in sorted(facts.items())}

    def key_of(self, client: Client) -> str:
        """The call's key."""
        return self._scripts.keys.call(client.record.id, _TENANT).call

    def run(self) -> Outcome:
        """To the end."""
        self.world.run(START + _BUSY_SECONDS)
        end = self._whole_at + _QUIET_SECONDS
        self.world.last_work_at = end - 3.0
        self.world.run(end)
        return Outcome(
            seed=self.seed,
            faults=self.faults,
            options=self.options,
            broken=tuple(broken(self)),
            trace=tuple(self.world.trace or ()),
            told=tuple(sent.told[-1] if sent.told else "nothing" for sent in self.facts.sent.values()),
            events=self.world.events,
        )


def simulate(
    seed: int, *, fault: str | None = None, faults: int = 1, crowd: int = 1, is_traced: bool = False
) -> Outcome:
    """Run the schedule of a seed: with a fault by name or by chance, and `crowd` times as many messages."""
    return Schedule(seed, fault=fault, faults=faults, crowd=crowd, is_traced=is_traced).run()
