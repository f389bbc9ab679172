"""What a tenant reads of its usage: sums, three ways to write them that say the same, and which days are meant."""

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from fanout.core import accounts
from fanout.core.accounts import UsageRow
from relay.admission import Refused
from relay.api import schema
from relay.api.tenants import period
from relay.api.usage import COLUMNS, COUNTERS, chosen, summed, written

DAYS = ("2026-11-20", "2026-11-21")
COUNTS = st.dictionaries(st.sampled_from(COUNTERS), st.integers(0, 10**9))
ROWS = st.lists(
    st.builds(
        UsageRow,
        day=st.sampled_from(DAYS),
        agent=st.sampled_from(("default", "sales, support", "=1+1")),
        region=st.sampled_from(("iad", "lhr")),
        counters=COUNTS,
    ),
    max_size=20,
)


def row(day: str = DAYS[0], agent: str = "default", region: str = "iad", **counters: float) -> UsageRow:
    return UsageRow(day, agent, region, counters)


def lines(rows: list[UsageRow], group_by: str = "day,agent,region") -> list[dict[str, str]]:
    """The CSV as a program reads it."""
    text = written(summed(rows, group_by), "csv", days=DAYS, unreachable_regions=()).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


# Sums


def test_every_counter_that_is_kept_is_described_in_the_same_order():
    """One that only one side knows would be counted and never read."""
    assert COUNTERS == accounts.COUNTERS


@pytest.mark.parametrize(
    ("group_by", "sums"),
    [
        ("day", [(DAYS[0], None, None, 7), (DAYS[1], None, None, 8)]),
        ("agent", [(None, "default", None, 11), (None, "sales", None, 4)]),
        ("region", [(None, None, "iad", 5), (None, None, "lhr", 10)]),
        ("region,agent", [(None, "default", "iad", 1), (None, "default", "lhr", 10), (None, "sales", "iad", 4)]),
        ("day,day", [(DAYS[0], None, None, 7), (DAYS[1], None, None, 8)]),
    ],
)
def test_a_sum_is_made_for_each_of_what_is_grouped_by(group_by, sums):
    """In the order of day, agent and region, in whatever order they are named."""
    rows = [
        row(DAYS[1], "default", "lhr", calls=8),
        row(DAYS[0], "sales", "iad", calls=4),
        row(DAYS[0], "default", "lhr", calls=2),
        row(DAYS[0], "default", "iad", calls=1),
    ]
    assert [(each.day, each.agent, each.region, each.calls) for each in summed(rows, group_by)] == sums


@given(rows=ROWS, group_by=st.sampled_from(("day", "agent", "region", "day,agent", "day,agent,region")))
def test_nothing_is_lost_or_counted_twice_by_grouping(rows, group_by):
    """Whoever bills by agent and whoever bills by day send the same bill."""
    for name in COUNTERS:
        whole = sum(each.counters.get(name, 0) for each in rows)
        assert sum(getattr(each, name) for each in summed(rows, group_by)) == pytest.approx(whole)


def test_a_counter_of_a_newer_node_is_left_out_and_a_missing_one_is_zero():
    """Nodes of two versions report during a rollout."""
    (found,) = summed([row(calls=1, smells=3)], "day")
    assert (found.calls, found.responses, found.seconds) == (1, 0, 0.0)


def test_counts_are_whole_and_seconds_have_three_decimals():
    """What a sum of fractions adds to the last place is noise."""
    (found,) = summed([row(seconds=0.101, calls=1.0), row(seconds=0.202, calls=2.0)], "day")
    encoded = msgspec.json.encode(found)
    assert b'"seconds":0.303,' in encoded
    assert b'"calls":3,' in encoded


# Ways to write them


@given(rows=ROWS)
def test_json_lines_and_csv_say_the_same(rows):
    """A bill doesn't depend on the format that was asked for."""
    sums = summed(rows, "day,agent,region")
    found: dict[str, Any] = json.loads(written(sums, "json", days=DAYS, unreachable_regions=()))
    jsonl = [json.loads(line) for line in written(sums, "jsonl", days=DAYS, unreachable_regions=()).splitlines()]
    assert found["data"] == jsonl
    as_text = [
        {name: str(each[name]) if name not in COUNTERS else float(each[name]) for name in COLUMNS} for each in jsonl
    ]
    read = [
        {name: line[name].removeprefix("'") if name not in COUNTERS else float(line[name]) for name in COLUMNS}
        for line in lines(rows)
    ]
    assert read == as_text


def test_the_json_is_as_described_and_says_what_is_missing():
    """A list in OpenAI's shape."""
    found = json.loads(written(summed([row(calls=1)], "day"), "json", days=DAYS, unreachable_regions=["lhr", "bom"]))
    msgspec.convert(found, schema.UsageList)
    assert (found["object"], found["has_more"], found["last_id"]) == ("list", False, None)
    assert (found["start_day"], found["end_day"], found["unreachable_regions"]) == (*DAYS, ["bom", "lhr"])
    assert found["data"][0]["agent"] is None


@pytest.mark.parametrize("group_by", ["day", "agent", "day,agent,region"])
@pytest.mark.parametrize("rows", [[], [row(calls=1)]], ids=["none", "one"])
def test_the_csv_has_always_the_same_columns(group_by, rows):
    """A program that reads it by place goes on to work; this row changes with the surface's version only."""
    text = written(summed(rows, group_by), "csv", days=DAYS, unreachable_regions=()).decode()
    heading, *rest = text.split("\r\n")
    assert heading == (
        "day,agent,region,calls,seconds,audio_seconds_in,audio_seconds_out,responses,messages,input_text_tokens,"
        "input_audio_tokens,input_image_tokens,cached_tokens,output_text_tokens,output_audio_tokens,"
        "transcription_tokens,transcription_seconds"
    )
    assert [len(line.split(",")) for line in rest] == [17] * len(rows) + [1]


def test_numbers_in_the_csv_are_written_in_one_way():
    """No exponent, no sign, as many decimals each time."""
    (line,) = lines([row(seconds=12_345_678_901.5, transcription_seconds=0.00001, calls=10**15)])
    assert (line["seconds"], line["transcription_seconds"], line["calls"]) == ("12345678901.500", "0.000", str(10**15))


@pytest.mark.parametrize(
    "name",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        '=HYPERLINK("http://x","y")',
        "=cmd|' /C calc'!A0",
        "\t=1",
        " =1",
        "\r=1",
        "\n=1",
        "\tx",
        "\uff1d1",
    ],
)
def test_a_name_that_looks_like_a_formula_is_text_to_a_spreadsheet(name):
    """Who opens the file is somebody else than who named the agent."""
    (line,) = lines([row(agent=name)])
    assert line["agent"] == f"'{name}"


@pytest.mark.parametrize("name", ["sales", "sales, support", 'the "best"', "über", "a=b", "two\nlines", "'quoted'"])
def test_any_other_name_is_what_it_is(name):
    """With commas, quotes and line ends too."""
    (line,) = lines([row(agent=name)])
    assert line["agent"] == name


@pytest.mark.parametrize(
    ("wanted", "accept", "form"),
    [
        (None, "", "json"),
        (None, "*/*", "json"),
        (None, "text/csv", "csv"),
        (None, "text/csv; charset=utf-8, */*", "csv"),
        (None, "application/jsonl", "jsonl"),
        (None, "application/json, text/csv", "json"),
        ("json", "text/csv", "json"),
        ("csv", "application/json", "csv"),
    ],
)
def test_the_format_is_the_one_that_was_asked_for(wanted, accept, form):
    """In the query before the header; JSON where nobody says."""
    assert chosen(wanted, accept) == form


# Days


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (UNSET, UNSET, ("2026-11-16", "2026-11-22")),
        ("2026-11-22", UNSET, ("2026-11-22", "2026-11-22")),
        ("2026-08-23", UNSET, ("2026-08-23", "2026-11-22")),
        (UNSET, "2026-03-03", ("2026-02-25", "2026-03-03")),
        ("2027-01-01", "2027-01-02", ("2027-01-01", "2027-01-02")),
        (UNSET, "0001-01-02", ("0001-01-01", "0001-01-02")),
    ],
)
def test_a_week_up_to_today_is_meant_where_nobody_says_more(start, end, found):
    """At most 92 days; days are those of UTC, whatever the node's clock shows."""
    assert period(start, end, at("2026-11-22T00:00:01")) == found


@pytest.mark.parametrize(
    ("start", "end", "param"),
    [
        ("2026-11-23", UNSET, "start_day"),
        ("2026-08-22", UNSET, "start_day"),
        ("2026-11-02", "2026-11-01", "start_day"),
        ("2026-02-29", UNSET, "start_day"),
        ("", UNSET, "start_day"),
        ("2026-1-1", UNSET, "start_day"),
        ("20261101", UNSET, "start_day"),
        ("2026-W45-1", UNSET, "start_day"),
        (UNSET, "today", "end_day"),
        (UNSET, "2026-11-22T00:00", "end_day"),
    ],
)
def test_what_is_no_range_of_days_is_refused_with_its_name(start, end, param):
    """A range that is cut short in silence would be taken for all of it."""
    with pytest.raises(Refused) as caught:
        period(start, end, at("2026-11-22T12:00:00"))
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "invalid_value", param)
