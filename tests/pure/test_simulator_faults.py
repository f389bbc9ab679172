"""Faults as data, what is remembered of a session, and what the simulator's core may import."""

from __future__ import annotations

import ast
import json
from base64 import b64encode
from pathlib import Path

import pytest

import ops.simulator
from ops.simulator.faults import Fault, FaultError, read_fields, read_text, split_model
from ops.simulator.ledger import MAX_ENDED, MAX_EVENTS, Ledger, Record

CORE = ("schema", "validate", "config", "speech", "vad", "listening", "conversation", "reply", "response", "session")
EYES_AND_HANDS = {"asyncio", "socket", "time", "os", "logging", "aiohttp", "random", "secrets", "datetime"}


@pytest.mark.parametrize("module", [*CORE, "faults", "ledger"])
def test_the_core_has_no_io_no_clock_and_no_environment(module: str):
    """What it does is then a function of its arguments, and can be tested without a loop."""
    tree = ast.parse(Path(ops.simulator.__path__[0], f"{module}.py").read_text())
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & EYES_AND_HANDS


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("close=4002,after=1.5", Fault(close=4002, after=1.5)),
        ("close=1011, reason=went away ,events=3", Fault(close=1011, reason="went away", events=3)),
        ("hang", Fault(hang=True)),
        ("refuse=503", Fault(refuse=503)),
        ("stall,malformed=rsv", Fault(stall=True, malformed="rsv")),
        ("refuse_items=2,transcription_ms=800", Fault(refuse_items=2, transcription_ms=800)),
        ("", Fault()),
    ],
    ids=["close", "reason", "switch", "refuse", "two", "all along", "none"],
)
def test_a_fault_reads_as_written(text: str, fault: Fault):
    assert read_text(text) == fault


@pytest.mark.parametrize("text", ["close=99", "close=x", "refuse=200", "after=1e9", "explode", "malformed=nicely"])
def test_a_fault_that_makes_no_sense_is_refused(text: str):
    """A typo in a drill must not pass as a healthy run."""
    with pytest.raises(FaultError):
        read_text(text)


def test_faults_come_as_json_too():
    assert read_fields({"refuse": 429, "body": "slow down", "hang": False}) == Fault(refuse=429, body="slow down")


def test_a_model_name_carries_faults():
    assert split_model("sim;close=4002,after=1") == ("sim", "close=4002,after=1")
    assert split_model("gpt-realtime") == ("gpt-realtime", "")


@pytest.mark.parametrize(
    ("fault", "elapsed", "sent", "is_due"),
    [
        (Fault(close=4000), 0.0, 0, True),
        (Fault(close=4000, after=2), 1.9, 99, False),
        (Fault(close=4000, after=2), 2.0, 0, True),
        (Fault(close=4000, events=3), 99.0, 2, False),
        (Fault(close=4000, events=3), 0.0, 3, True),
        (Fault(close=4000, after=2, events=3), 0.0, 3, True),
    ],
    ids=["at once", "too early", "in time", "too few", "enough", "whichever is first"],
)
def test_a_fault_waits_for_its_trigger(fault: Fault, elapsed: float, sent: int, is_due: bool):
    assert fault.is_due(elapsed, sent) is is_due


def record(record_id: str = "sess_1", headers: dict[str, str] | None = None) -> Record:
    return Record(record_id, None, headers=headers or {}, query={"model": "sim"}, now=10.0, wall=1000.0)


def test_a_record_holds_no_key():
    headers = {
        "Authorization": "Bearer sk-very-secret",
        "Sec-WebSocket-Protocol": "realtime, openai-insecure-api-key.sk-very-secret",
        "User-Agent": "me",
    }
    kept = record(headers=headers).headers
    assert "secret" not in json.dumps(kept)
    assert kept["User-Agent"] == "me"


def test_a_record_lists_events_without_audio_and_runs_of_audio_as_one():
    kept = record()
    audio = b64encode(bytes(960)).decode()
    for _ in range(3):
        kept.on_received(json.dumps({"type": "input_audio_buffer.append", "audio": audio}), 11.0)
    kept.on_received(b"\xff", 12.0)
    content = [{"type": "input_audio", "audio": audio}]
    kept.on_received(json.dumps({"type": "conversation.item.create", "item": {"content": content}}), 13.0)
    appends, junk, item = kept.detail()["events"]
    assert appends == {"at": 1.0, "type": "input_audio_buffer.append", "audio": 3 * 960, "count": 3}
    assert junk == {"at": 2.0, "type": "(not JSON)", "bytes": 1}
    assert item["item"]["content"][0]["audio"] == 960
    assert kept.summary()["received"]["input_audio_buffer.append"] == 3


def test_a_record_is_bounded():
    kept = record()
    for number in range(MAX_EVENTS + 100):
        kept.on_received(json.dumps({"type": "x", "n": number}), 11.0)
    events = kept.detail()["events"]
    assert len(events) == MAX_EVENTS
    assert events[-1]["n"] == MAX_EVENTS + 99
    for _ in range(1_000):
        kept.on_received(json.dumps({"type": "x", "text": "y" * 100_000}), 11.0)
    assert len(json.dumps(kept.detail()["events"])) < 1_000_000


def test_the_ledger_forgets_the_oldest_ended_and_no_open_session():
    ledger = Ledger()
    ledger.add(record("open"))
    for number in range(MAX_ENDED + 5):
        each = record(str(number))
        ledger.add(each)
        ledger.end(each)
    assert (ledger.open_count, ledger.ended_count) == (1, MAX_ENDED)
    assert ledger.get("0") is None
    assert ledger.get("open") is not None
    assert ledger.forget_ended() == MAX_ENDED
    assert [each.id for each in ledger] == ["open"]
