"""How what is counted of a tenant is kept: versions of the relay that count more or less share one Redis."""

from importlib.resources import files

import msgspec
import pytest

from fanout.core.accounts import COUNTERS, SCRIPTS, AccountScripts, Report, counters_from_stored
from fanout.settings import BusSettings

DAY, NOON = "2026-11-22", 43_200.0
ACCOUNTS = AccountScripts(BusSettings(node="a", region="iad", regions={"iad": "redis://unused"}, usage_days=10))


def report(*reports, ends=None):
    """The keys after the generation, what the script is told, the ms that further keys are to live, what is dropped."""
    run, dropped = ACCOUNTS.report("iad", "acme", reports, DAY, ends or {DAY: NOON})
    _, _, _, packed, *lives = run.args
    return run.keys[1:], msgspec.msgpack.decode(packed), lives, dropped


def test_the_order_of_the_counters_is_that_of_what_redis_keeps():
    """A new one goes to the end: in another place it would take over what another one has."""
    assert COUNTERS[:14] == (
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


@pytest.mark.parametrize("stored", [[3, 1500], [3, 1500, *[0] * 12], [3, 1500, *[0] * 12, 77, 78]])
def test_what_an_older_or_a_newer_version_kept_can_be_read(stored):
    """What it doesn't have is 0; what is not known here is left out."""
    counters = counters_from_stored(msgspec.msgpack.encode(stored))
    assert counters == {**dict.fromkeys(COUNTERS, 0), "calls": 3, "seconds": 1.5}
    assert [type(counters[name]) for name in ("calls", "seconds", "responses")] == [int, float, int]


def test_seconds_are_whole_milliseconds_and_nothing_else_is_changed():
    """0.1 + 0.2 must be 0.3 on a bill."""
    counters = {"seconds": 0.1 + 0.2, "input_text_tokens": 2**52 + 1}
    _, ((call_id, source, agent, lease_ms, ((_, _, told),)),), _, _ = report(
        Report("one", "one/1", "default", 7.5, {DAY: counters})
    )
    assert (call_id, source, agent, lease_ms) == ("one", "one/1", "default", 7500)
    assert told == [0, 300, 0, 0, 0, 0, 2**52 + 1, *[0] * 7]
    with pytest.raises(ValueError, match="minutes"):
        report(Report("one", "one/1", "default", 7.5, {DAY: {"minutes": 1}}))


def test_each_report_names_the_keys_of_its_days_by_their_places():
    """All keys are declared, or a Redis Cluster that moves a slot would count in two places."""
    ends = {"2026-11-21": NOON - 86_400, DAY: NOON}
    days = dict.fromkeys(ends, {"calls": 1})
    keys, told, lives, _ = report(
        Report("one", "one/1", "a", 1, days), Report("two", "one/1", "b", 1, {DAY: {}}), ends=ends
    )
    named = [[(keys[usage - 2], keys[reported - 2]) for usage, reported, _ in days] for *_, days in told]
    stem = keys[0].partition(":leases:")[0]
    usage = {day: f"{stem}:usage:iad:{day}:acme" for day in ends}
    assert keys[:2] == (f"{stem}:leases:iad:acme", usage[DAY])
    (yesterday, first), (today, second) = named[0]
    assert (yesterday, today) == tuple(usage.values())
    assert first.replace("-21:", "-22:") == second
    assert named[1] == [(today, second)]
    assert len(keys) == len(set(keys)) + 1 == 2 + len(lives)
    assert dict(zip(keys[2:], lives, strict=True)) == {
        yesterday: (12 * 86_400 - 43_200) * 1000,
        first: (2 * 86_400 - 43_200) * 1000,
        today: (12 * 86_400 + 43_200) * 1000,
        second: (2 * 86_400 + 43_200) * 1000,
    }


@pytest.mark.parametrize("left", [-2 * 86_400.0, 2 * 86_400.5])
def test_a_day_of_which_nothing_is_remembered_or_that_has_not_begun_is_dropped(left):
    """Its call's lease is renewed all the same."""
    keys, told, lives, dropped = report(Report("one", "one/1", "a", 1, {DAY: {"calls": 1}}), ends={DAY: left})
    assert (len(keys), told, lives, dropped) == (2, [["one", "one/1", "a", 1000, []]], [], 1)


def test_the_scripts_of_accounts_are_those_that_there_are():
    """What is left out of the comparison with the model is named, and exists."""
    assert all((files("fanout") / "lua" / f"{name}.lua").is_file() for name in SCRIPTS)
