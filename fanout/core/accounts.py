"""What is counted of a tenant, and the calls of the scripts that count it. Pure; days and times come in.

In Redis every number is whole: seconds are milliseconds there, and counters stand in the order of `COUNTERS`.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from fanout.core.keys import Keys
from fanout.core.partitions import tag_of
from fanout.core.runs import Arg, Run
from fanout.settings import BusSettings

# Their order is part of what Redis keeps: a new one goes to the end.
COUNTERS: Final = (
    "calls",
    "seconds",
    "audio_seconds_in",
    "audio_seconds_out",
    "responses",
    "messages",
    "input_text_tokens",
    "input_audio_tokens",
    "input_image_tokens",
    "cached_tokens",
    "output_text_tokens",
    "output_audio_tokens",
    "transcription_tokens",
    "transcription_seconds",
)
SCRIPTS: Final = ("admit", "report", "usage", "spend", "revoke", "revoked")
REPORTS_MAX: Final = 100  # in one run of a script, which nobody else's may wait for too long
REVOKED_MAX: Final = 100_000  # tokens in a region's list: beyond it `AccountsFull`; some 25 MB of Redis's memory
REVOKED_READ: Final = 500  # of them in one run of a script

_SECONDS_PLACE: Final = COUNTERS.index("seconds") + 1  # as Lua counts
_UNITS: Final = {name: 1000 if "seconds" in name else 1 for name in COUNTERS}  # Redis's in one of ours
_DAY_SECONDS: Final = 86_400
_REPORTED_SECONDS: Final = 2 * _DAY_SECONDS  # after a day's end, that what was reported of it is remembered
_BUCKETS: Final = 256  # of what was reported in a day: small hashes take half the memory, and go without a pause
_LIST: Final = "revoked"  # what the tag of a region's list of tokens is made of

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(tuple[int, ...]).decode


class Terms(NamedTuple):
    """What a tenant may have in this region for one more call to begin; None is no limit.

    `lease_seconds` is how long the call counts as living without another word of it.
    """

    concurrent: int | None
    starts_per_minute: int | None
    seconds_per_day: float | None
    lease_seconds: float


class Admission(NamedTuple):
    """Whether a call may begin, and if not, which limit it would break.

    `retry_after` is in seconds: of `starts` when the next one may be, of `minutes` until the day (UTC) is over; 0.0 of
    `concurrent`, since nobody knows when a call will end.
    """

    refused: Literal["", "concurrent", "starts", "minutes"]
    retry_after: float = 0.0


class Report(NamedTuple):
    """What one call used so far while it was on one node.

    `source` is unique to that stay; its counters, by day ("2026-11-22", UTC) and name, are cumulative and never fall.
    `lease_seconds` is how long the call counts as living from now; 0 is for the last report of a call that is over,
    not for one that goes on elsewhere.
    """

    call_id: str
    source: str
    agent: str
    lease_seconds: float
    days: Mapping[str, Mapping[str, int | float]]


class Standing(NamedTuple):
    """Where a tenant stands in this region: what its calls lasted today, and how many live.

    `dropped` counts days of these reports that were not counted: over for more than two days, or not begun yet.
    """

    seconds_today: float
    live: int
    dropped: int = 0


class UsageRow(NamedTuple):
    """What a tenant's calls of one agent used in one region on one day; `counters` has all names."""

    day: str
    agent: str
    region: str
    counters: Mapping[str, int | float]


class UsageFound(NamedTuple):
    """Rows by day, agent and region, and the regions of which they may lack something."""

    rows: list[UsageRow]
    unreachable_regions: list[str]


class Revoked(NamedTuple):
    """A region's list of tokens that hold no more: tenant and `jti`, with the time (seconds) at which each ends anyway.

    None: the list is still the one of the version that the caller knows.
    """

    version: int
    entries: dict[tuple[str, str], float] | None


class AccountScripts:
    """One node's calls of the scripts of accounts. A tenant's keys carry one tag, and the name of their home."""

    def __init__(self, settings: BusSettings) -> None:
        self._keys = Keys(settings.prefix)
        self._terms = (int(settings.settling_seconds * 1000), int(settings.rewrite_seconds * 1000))
        self._usage_seconds = (settings.usage_days + 2) * _DAY_SECONDS

    def admit(self, home: str, tenant: str, call_id: str, terms: Terms, today: str) -> Run:
        """Let a call begin, if the tenant may have one more; `today` is the day that its minutes are of."""
        tag = tag_of(tenant)
        keys = (
            self._leases(tag, home, tenant),
            self._keys.account(tag, "starts", home, tenant),
            self._usage(tag, home, today, tenant),
        )
        a_day = None if terms.seconds_per_day is None else _ms(terms.seconds_per_day)
        limits = ("" if limit is None else limit for limit in (terms.concurrent, terms.starts_per_minute, a_day))
        return self._run("admit", tag, keys, (call_id, _ms(terms.lease_seconds), _SECONDS_PLACE, *limits))

    def report(
        self, home: str, tenant: str, reports: Sequence[Report], today: str, ends: Mapping[str, float]
    ) -> tuple[Run, int]:
        """Count what calls used, and renew or end their leases; and how many of their days are not counted.

        `ends` is in how many seconds each day of the reports is over; negative for one that is.
        """
        tag = tag_of(tenant)
        keys: dict[str, int] = {}  # after the first three, with the ms that each is to live
        places: dict[str, int] = {}
        dropped = 0

        def place(key: str, seconds: float) -> int:
            keys[key] = int(seconds * 1000)
            return places.setdefault(key, 4 + len(places))

        told = []
        for report in reports:
            bucket = f"{zlib.crc32(report.source.encode()) % _BUCKETS:x}"
            days = []
            for day, counters in report.days.items():
                left = ends[day]
                if not -_REPORTED_SECONDS < left <= 2 * _DAY_SECONDS:
                    dropped += 1
                    continue
                usage = place(self._usage(tag, home, day, tenant), left + self._usage_seconds)
                reported = self._keys.account(tag, "reported", home, day, bucket, tenant)
                days.append((usage, place(reported, left + _REPORTED_SECONDS), _whole(counters)))
            told.append((report.call_id, report.source, report.agent, _ms(report.lease_seconds), days))
        first = (self._leases(tag, home, tenant), self._usage(tag, home, today, tenant))
        return self._run("report", tag, (*first, *keys), (_SECONDS_PLACE, _encode(told), *keys.values())), dropped

    def usage(self, home: str, tenant: str, days: Sequence[str]) -> Run:
        """What is counted of these days."""
        tag = tag_of(tenant)
        return self._run("usage", tag, [self._usage(tag, home, day, tenant) for day in days], ())

    def spend(self, home: str, tenant: str, what: str, per_second: float, burst: float) -> Run:
        """Take one of what flows at a rate."""
        tag = tag_of(tenant)
        each = max(1, round(1e6 / per_second))  # microseconds
        return self._run(
            "spend", tag, [self._keys.account(tag, "spent", home, what, tenant)], (each, int(each * burst))
        )

    def revoke(self, home: str, entries: Iterable[tuple[str, str, float]]) -> Run:
        """Put tokens on a region's list: tenant, `jti`, and the time at which each ends anyway."""
        tag = tag_of(_LIST)
        told = [part for tenant, jti, until in entries for part in (f"{tenant}\n{jti}", int(until * 1000))]
        return self._run("revoke", tag, self._list(tag, home), (REVOKED_MAX, *told))

    def revoked(self, home: str, after: int) -> Run:
        """A part of a region's list: what was put on it after that version."""
        tag = tag_of(_LIST)
        return self._run("revoked", tag, self._list(tag, home), (after, REVOKED_READ))

    def _leases(self, tag: str, home: str, tenant: str) -> str:
        return self._keys.account(tag, "leases", home, tenant)

    def _usage(self, tag: str, home: str, day: str, tenant: str) -> str:
        return self._keys.account(tag, "usage", home, day, tenant)

    def _list(self, tag: str, home: str) -> tuple[str, str]:
        return self._keys.account(tag, "revoked", home), self._keys.account(tag, "revoked_until", home)

    def _run(self, script: str, tag: str, keys: Iterable[str], args: tuple[Arg, ...]) -> Run:
        return Run(script, tag, (self._keys.generation(tag), *keys), (*self._terms, *args))


def counters_from_stored(packed: bytes) -> dict[str, int | float]:
    """Counters by name, all of them; those of a newer version than this one are left out."""
    counted = dict(zip(COUNTERS, _decode(packed), strict=False))
    return {name: counted.get(name, 0) if unit == 1 else counted.get(name, 0) / unit for name, unit in _UNITS.items()}


def _whole(counters: Mapping[str, int | float]) -> list[int]:
    """As Redis has them. Raises ValueError for a name that none has."""
    if unknown := counters.keys() - _UNITS.keys():
        raise ValueError(f"no counters: {sorted(unknown)}")
    return [round(counters.get(name, 0) * unit) for name, unit in _UNITS.items()]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
