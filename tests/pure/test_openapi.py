"""The description of the HTTP surface: complete, well formed, and no other than what the code answers."""

import inspect
import json
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import msgspec
import pytest

from fanout import errors, items
from fanout.errors import FanoutError
from fanout.messages import CallRecord, Receipt, Status, Tombstone
from relay.admission import Refused
from relay.api import schema
from relay.api.openapi import document
from relay.api.page import POLICY, page
from relay.api.refusals import bus_refusal, rejection
from relay.api.routes import ROUTES, Kind, Route
from relay.core.memory import Memory

DOCUMENT = document(ROUTES)
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    operation["operationId"]: operation for methods in DOCUMENT["paths"].values() for operation in methods.values()
}
TOMBSTONE = Tombstone(
    id="rtc_iad_1",
    tenant="t",
    node="a",
    region="iad",
    started_at=1.0,
    ended_at=2.0,
    why="client_closed",
    fault="client",
    close_code=1000,
)


def route(name: str) -> Route:
    return next(each for each in ROUTES if each.name == name)


def everything(value: Any) -> Any:
    """Every object within a JSON value."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from everything(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from everything(inner)


# The document


def test_every_route_is_described_once():
    """Names are what generated clients call their functions."""
    assert list(OPERATIONS) == [
        each.name for each in sorted(ROUTES, key=lambda one: list(DOCUMENT["paths"]).index(one.path))
    ]
    assert len({(each.method, each.path) for each in ROUTES}) == len(OPERATIONS)


def test_every_reference_leads_somewhere_and_every_type_is_used():
    """A generator stops at the first that doesn't."""
    wanted = {each["$ref"].rpartition("/")[2] for each in everything(DOCUMENT) if "$ref" in each}
    assert wanted == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_type_is_a_json_schema(name):
    """OpenAPI 3.1 takes the dialect of 2020-12."""
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["description"]


def test_patterns_are_those_of_json_schema():
    r"""Python's \Z is a Z to everybody else."""
    patterns = [each["pattern"] for each in everything(DOCUMENT) if isinstance(each.get("pattern"), str)]
    assert len(patterns) > 5
    assert all(r"\Z" not in pattern and pattern.endswith("$") for pattern in patterns)


def test_examples_are_what_is_described():
    """They are copied first and read later."""
    registry = {**DOCUMENT, "$schema": "https://json-schema.org/draft/2020-12/schema"}
    found = 0
    for owner, fields in ((name, each.get("properties", {})) for name, each in SCHEMAS.items()):
        for field, described in fields.items():
            for part in (described, *described.get("anyOf", ())):
                for example in part.get("examples", ()):
                    found += 1
                    at = f"#/components/schemas/{owner}/properties/{field}"
                    jsonschema.Draft202012Validator({**registry, "$ref": at}).validate(example)
    assert found > 10


@pytest.mark.parametrize("each", ROUTES, ids=lambda each: each.name)
def test_who_may_ask_and_what_is_said_to_others_is_described(each):
    """A scope in the document, and 401 and 403 among the answers."""
    operation = OPERATIONS[each.name]
    assert operation["security"] == ([{"token": [each.scope]}] if each.scope else [])
    assert ({"401", "403"} <= set(operation["responses"])) == bool(each.scope)


@pytest.mark.parametrize("each", ROUTES, ids=lambda each: each.name)
def test_what_can_be_wrong_in_a_request_has_its_answer(each):
    """422 for a query, a header or a body, 400 and 413 for a body; and none without."""
    readable = [shape for shape in (each.query, each.headers, each.body) if shape is not None]
    checked = [shape for shape in readable if shape is not schema.Tracing]  # which takes any text
    assert (422 in each.answers) == bool(checked)
    if each.kind is not Kind.UPGRADE:
        assert ({400, 413} <= set(each.answers)) == (each.body is not None)


@pytest.mark.parametrize("each", ROUTES, ids=lambda each: each.name)
def test_what_the_port_says_before_any_handler_is_described(each):
    """Crowds and slow bodies are anybody's; keys are asked for only where a token is."""
    assert {"too_many_connections", "too_many_requests"} <= set(each.answers[429].codes)
    assert (408 in each.answers) == (each.body is not None)
    assert ("keys_unavailable" in each.answers.get(503, each.answers[429]).codes) == (each.scope is not None)
    assert all("Retry-After" in each.answers[status].headers for status in {429, 503} & set(each.answers))


def test_a_revocation_that_missed_a_region_is_as_described():
    """An error, with the fields of the success beside it."""
    half = {"error": {"type": "server_error", "code": "region_unreachable", "message": "no", "param": None}}
    done = {
        "object": "realtime.token.revocation",
        "jti": "j",
        "expires_at": 1,
        "regions": [],
        "unreachable_regions": [],
    }
    assert described(half | done, schema.HalfRevoked) == {"error", *done}
    assert described(done, schema.Revocation) == set(done)


def test_parameters_say_what_the_decoder_takes():
    """Limits, defaults and choices come from the type itself."""
    parameters = {each["name"]: each for each in OPERATIONS["put_event"]["parameters"]}
    assert parameters["timeout_ms"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 60_000, "default": 5000}
    assert set(parameters["wait"]["schema"]["enum"]) == {"accepted", "delivered", "applied", "answered"}
    assert parameters["expires_in_ms"]["schema"]["maximum"] == 3_600_000
    assert (parameters["call_id"]["in"], parameters["call_id"]["required"]) == ("path", True)
    assert (parameters["traceparent"]["in"], parameters["traceparent"]["required"]) == ("header", False)
    names = [each["name"] for each in OPERATIONS["watch_events"]["parameters"]]
    assert names == ["call_id", "after", "Last-Event-ID"]


def test_an_item_is_described_by_the_types_that_check_it():
    """Each role with the parts that it may have."""
    choices = SCHEMAS["ItemBody"]["properties"]["item"]["anyOf"]
    assert [each["$ref"].rpartition("/")[2] for each in choices] == [shape.__name__ for shape in items.ITEMS]
    parts = SCHEMAS["AssistantMessage"]["properties"]["content"]["items"]["$ref"]
    assert SCHEMAS[parts.rpartition("/")[2]]["properties"]["type"]["enum"] == ["output_text"]


# What the code answers is described


def bus_errors() -> list[FanoutError]:
    made: list[FanoutError] = [
        errors.CallNotFound("c"),
        errors.CallNotStarted("c"),
        errors.CallEnded(TOMBSTONE),
        errors.InboxFull("c"),
        errors.IdempotencyConflict("c", "m"),
        errors.MessageTooLarge(2, 1),
        errors.BusFull(1, 1),
        errors.BusTimeout("c", "m"),
        errors.RegionUnreachable("iad"),
        errors.CallStateUnknown("c"),
    ]
    return made


def test_every_error_of_the_bus_has_an_answer_or_a_reason_to_have_none():
    """A new one must not become a 500."""
    answered = {type(error) for error in bus_errors()}
    # Bodies, new ids, fanout.client, and facts, which are left out then; calls of a plan with limits, revocations.
    read_elsewhere = {errors.InvalidItem, errors.CallTaken, errors.ReaderTooSlow, errors.Unsealable}
    read_elsewhere |= {errors.AccountsSettling, errors.AccountsFull}
    known = {each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, FanoutError)}
    assert known == answered | read_elsewhere | {FanoutError}


@pytest.mark.parametrize("error", bus_errors(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", ["put_item", "put_event"])
def test_what_the_bus_refuses_is_described(error, name):
    """Status, code, and Retry-After exactly where it is sent."""
    refused = bus_refusal(error)
    answer = route(name).answers[refused.status]
    assert refused.code in answer.codes
    assert ("Retry-After" in answer.headers) == (refused.retry_after is not None)


@pytest.mark.parametrize(
    ("code", "status"), [("unknown_tool_call", 409), ("tool_call_answered", 409), ("tool_call_late", 410)]
)
def test_a_result_that_is_refused_says_whether_it_could_ever_be_taken(code, status):
    """410: nobody waits for it any more; 409: something about it is wrong."""
    refused: Refused = rejection(receipt(Status.REJECTED, error={"code": code, "message": "no"}))
    assert (refused.status, refused.code, str(refused)) == (status, code, "no")
    assert code in route("put_item").answers[status].codes


def receipt(status: Status, error: dict[str, Any] | None = None) -> Receipt:
    return Receipt(
        id="m",
        call_id="c",
        item_id="i",
        status=status,
        wants_response=True,
        reached={"accepted": 1.0},
        node="a",
        region="iad",
        error=error,
        by={"accepted": ("a", "iad")},
    )


def described(answer: dict[str, Any], shape: type[msgspec.Struct]) -> set[str]:
    """What an answer has that is described; it must be of the type."""
    msgspec.convert(json.loads(msgspec.json.encode(answer)), shape)
    return set(answer) & {field.encode_name for field in msgspec.structs.fields(shape)}


@pytest.mark.parametrize("status", Status)
def test_a_receipt_is_as_described(status):
    """In whatever state it is."""
    public = receipt(status).to_public()
    assert described(public, schema.Receipt) == set(public)


def test_a_call_is_as_described_in_each_state():
    """Live, between nodes, ended."""
    record = CallRecord(id="c", tenant="t", node="a", region="iad", agent="default", model="m", started_at=1.0)
    for call in (record, msgspec.structs.replace(record, state="moving"), TOMBSTONE):
        public = call.to_public()
        assert described(public, schema.Call) == set(public)


def test_an_entry_of_a_transcript_is_as_described():
    """Messages, tool calls and their results, cut off or not."""
    transcript = Memory()
    text = {"type": "message", "role": "assistant", "status": "completed", "content": [{"type": "text", "text": "hi"}]}
    call = {"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}", "status": "completed"}
    result = {"type": "function_call_output", "call_id": "c", "output": "{}"}
    facts = [
        fact
        for place, item in enumerate((text, call, result))
        for fact in transcript.on_item({**item, "id": f"i{place}"}, 1.0)
    ]
    facts += transcript.on_truncated({"item_id": "i0", "audio_end_ms": 120})
    assert len(facts) == 4
    for _, value in facts:
        entry = json.loads(value or b"")
        assert described(entry, schema.TranscriptEntry) == set(entry)


# The page


class _Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if "href" in values else []


def test_the_page_has_every_operation_type_and_code_and_its_links_lead_there():
    """Who reads it needs nothing else."""
    text = page(DOCUMENT)
    read = _Page()
    read.feed(text)
    assert set(read.ids) == {*OPERATIONS, *SCHEMAS}
    assert len(read.ids) == len(set(read.ids))
    assert {link for link in read.links if link != "/openapi.json"} <= {f"#{name}" for name in read.ids}
    for each in ROUTES:
        assert f"{each.method} {each.path}" in text
        for answer in each.answers.values():
            assert all(f"<code>{code}</code>" in text for code in answer.codes)


def test_the_page_loads_and_runs_nothing():
    """It is served by the public port: what it may do is said in one line."""
    text = page(DOCUMENT)
    read = _Page()
    read.feed(text)
    assert not read.tags & {"script", "link", "img", "iframe", "form", "object"}
    assert not re.search(r'\bstyle="|\bon\w+="', text)
    assert POLICY.startswith("default-src 'none'; style-src 'sha256-")


def test_the_page_escapes_what_it_is_given():
    """Words of the table are words."""
    named = {**DOCUMENT, "info": {**DOCUMENT["info"], "title": "<script>"}}
    assert "<script>" not in page(named)
