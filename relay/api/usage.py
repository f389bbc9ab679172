"""A tenant's usage as its readers get it: summed as asked, as JSON, JSON lines or CSV. Pure; days come in as texts.

All three say the same. The CSV has always all columns, in one order, so that a program may count on them.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from fanout.core.accounts import UsageRow
from relay.api.schema import Usage

_GROUPS: Final = ("day", "agent", "region")
_ZEROS: Final[Mapping[str, float]] = {
    field.name: field.default for field in msgspec.structs.fields(Usage) if isinstance(field.default, int | float)
}
COUNTERS: Final = tuple(_ZEROS)
COLUMNS: Final = (*_GROUPS, *COUNTERS)
CONTENT_TYPES: Final[Mapping[str, str]] = {
    "json": "application/json",
    "jsonl": "application/jsonl",
    "csv": "text/csv",
}
_DECIMALS: Final = 3
_FORMULAS: Final = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # what spreadsheets take for one's beginning, wide ones too


def chosen(wanted: str | None, accept: str) -> str:
    """Return the format: the one that was asked for, else what the ``Accept`` header prefers to JSON."""
    if wanted:
        return wanted
    if "application/json" in accept.replace("application/jsonl", ""):
        return "json"
    return next((name for name in ("csv", "jsonl") if CONTENT_TYPES[name] in accept), "json")


def summed(rows: Iterable[UsageRow], group_by: str) -> list[Usage]:
    """Add up rows for each combination of what is grouped by, in the order of day, agent and region.

    Counters that this version doesn't know, of a newer node, are left out.
    """
    groups = [name for name in _GROUPS if name in group_by.split(",")]
    sums: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        key = tuple(getattr(row, name) for name in groups)
        total = sums.get(key) or sums.setdefault(key, dict(_ZEROS))
        for name, value in row.counters.items():
            if name in total:
                total[name] += value
    return [_usage(dict(zip(groups, key, strict=True)), sums[key]) for key in sorted(sums)]


def _usage(place: Mapping[str, Any], total: Mapping[str, float]) -> Usage:
    counters: dict[str, Any] = {
        name: int(value) if isinstance(_ZEROS[name], int) else round(float(value), _DECIMALS)
        for name, value in total.items()
    }
    return Usage(**place, **counters)


def written(usage: Sequence[Usage], form: str, *, days: tuple[str, str], unreachable_regions: Sequence[str]) -> bytes:
    """Return the body of the answer. Takes a while for many sums, and never holds the interpreter for long."""
    if form == "csv":
        return _csv(usage)
    lines = [msgspec.json.encode(each) for each in usage]
    if form == "jsonl":
        return b"".join(b"%s\n" % line for line in lines)
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [msgspec.Raw(line) for line in lines],
            "has_more": False,
            "last_id": None,
            "start_day": days[0],
            "end_day": days[1],
            "unreachable_regions": sorted(unreachable_regions),
        }
    )


def _csv(usage: Iterable[Usage]) -> bytes:
    """RFC 4180, with a heading; what is summed over is empty."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\r\n")
    lines.writerow(COLUMNS)
    lines.writerows([_cell(getattr(each, name)) for name in COLUMNS] for each in usage)
    return text.getvalue().encode()


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        # A name that begins like a formula would be one to a spreadsheet: a quote before it makes it text.
        return f"'{value}" if value.lstrip().startswith(_FORMULAS) or value[:1] in {"\t", "\r", "\n"} else value
    return f"{value:.{_DECIMALS}f}" if isinstance(value, float) else str(value)
