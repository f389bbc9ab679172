"""In which order a node asks an agent's upstreams, and where it dials: whatever a client says, at no other place."""

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from picows.url import parse_url

from relay.core.outages import Outages
from relay.core.rebuild import ACCOUNT, FATAL
from relay.core.serving import Serving, refusal_of
from relay.rulebook.upstreams import UpstreamConfig
from relay.upstream import Target, url_for

NAMES = ("a", "b", "c")


# In which order


def test_upstreams_are_asked_as_the_agent_has_them():
    """The operator's order is the operator's: the cheapest or the nearest first."""
    assert Outages().order(("b", "a"), now=0.0) == ["b", "a"]


def test_one_that_failed_is_asked_last_for_a_while_and_never_not_at_all():
    """It may be mended any moment, and the others may be worse."""
    outages = Outages(seconds=30.0)
    assert outages.fail("a", now=10.0)
    assert outages.order(NAMES, now=10.0) == ["b", "c", "a"]
    assert outages.order(NAMES, now=39.9) == ["b", "c", "a"]
    assert outages.order(NAMES, now=40.0) == ["a", "b", "c"]
    assert outages.order(("a",), now=10.0) == ["a"]


def test_of_several_that_failed_the_one_whose_failure_is_longest_ago_is_asked_first():
    """Else the second of two would never be tried again while both are down."""
    outages = Outages(seconds=30.0)
    outages.fail("a", now=10.0)
    outages.fail("b", now=11.0)
    assert outages.order(NAMES, now=12.0) == ["c", "a", "b"]
    outages.fail("a", now=13.0)
    assert outages.order(NAMES, now=14.0) == ["c", "b", "a"]


def test_one_that_serves_has_its_place_back_at_once():
    """A spare, or a call that had no other, may find out before the time is over."""
    outages = Outages()
    outages.fail("a", now=0.0)
    assert outages.serve("a", now=1.0)
    assert outages.order(NAMES, now=1.0) == ["a", "b", "c"]
    assert not outages.serve("a", now=2.0)


def test_a_failure_is_news_once():
    """A server that is down for a day must not fill the log."""
    outages = Outages(seconds=30.0)
    assert [outages.fail("a", now) for now in (0.0, 10.0, 39.9, 70.0)] == [True, False, False, True]


@settings(derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.booleans(), st.floats(0, 20))), st.permutations(NAMES))
def test_the_order_always_has_every_name_once(happenings, names):
    """Whatever failed and was mended when."""
    outages, now = Outages(), 0.0
    for name, serves, pause in happenings:
        now += pause
        (outages.serve if serves else outages.fail)(name, now)
        order = outages.order(names, now)
        assert sorted(order) == sorted(names)
        out = [outages.is_out(each, now) for each in order]
        assert out == sorted(out), "those that failed are last"


# Where it dials

CONFIGS = {
    "plain": "ws://model.example/v1/realtime",
    "port and query": "wss://model.example:8443/v1/realtime?deployment=a%26b&api-version=1",
    "no path": "wss://model.example",
    "IPv6": "ws://[::1]:9/x",
}


@pytest.mark.parametrize("url", CONFIGS.values(), ids=CONFIGS)
@settings(derandomize=True)
@given(model=st.text(st.characters()), theirs=st.none() | st.text(st.characters()), intent=st.none() | st.text())
@example(model="@evil.example/", theirs=None, intent=None)
@example(model="//evil.example/?x=#y", theirs=None, intent="#@evil.example:1/")
@example(model="a&model=b&deployment=c", theirs=None, intent="a&b=c;d=e")
@example(model="m HTTP/1.1\r\nHost: evil.example\r\n\r\n", theirs=None, intent="\n")
@example(model="%2f%40%0d%0a\\..\\../..;x", theirs="../../admin", intent=None)
@example(model="\ud800\x00\u2028\u0130", theirs=None, intent="\x7f")
def test_nothing_that_a_client_says_reaches_scheme_host_port_or_path(url, model, theirs, intent):
    """It chooses the model's name; where the relay's key goes is the operator's to say."""
    models = {} if theirs is None else {model: theirs}
    config = UpstreamConfig("default", url, model_parameter="model", models=models)
    dialled = url_for(config, Target(model, intent))
    assert dialled.isascii()
    assert dialled.isprintable()
    assert " " not in dialled
    given_, made = parse_url(url), parse_url(dialled)
    assert (made.is_secure, made.netloc, made.host, made.port) == (
        given_.is_secure, given_.netloc, given_.host, given_.port
    )  # fmt: skip
    assert (urlsplit(dialled).path, urlsplit(dialled).fragment) == (urlsplit(url).path, "")
    asked = model if theirs is None else theirs
    wanted = dict(parse_qsl(urlsplit(url).query)) | {
        key: value for key, value in (("model", asked if model else None), ("intent", intent)) if value
    }
    readable = {key: value.encode(errors="replace").decode() for key, value in wanted.items()}
    assert dict(parse_qsl(urlsplit(dialled).query, keep_blank_values=False)) == readable


def test_the_model_has_the_name_and_the_parameter_of_its_upstream():
    """Azure calls it a deployment, and the deployment what its owner likes."""
    config = UpstreamConfig("azure", "wss://host/x?model=old", model_parameter="deployment", models={"gpt": "mine"})
    assert url_for(config, Target("gpt")) == "wss://host/x?model=old&deployment=mine"
    assert url_for(config, Target("other")) == "wss://host/x?model=old&deployment=other"
    assert url_for(UpstreamConfig("x", "wss://host/x?model=old"), Target("gpt")) == "wss://host/x?model=gpt"


# Whether a model takes anybody

FAILED = {"status": "failed", "status_details": {"type": "failed", "error": {"code": "insufficient_quota"}}}


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "error", "error": {"code": "insufficient_quota"}}, "insufficient_quota"),
        ({"type": "response.done", "response": FAILED}, "insufficient_quota"),
        ({"type": "response.done", "response": {"status": "completed", "status_details": None}}, None),
        ({"type": "response.done", "response": {"status_details": {"error": None}}}, None),
        ({"type": "response.done", "response": {"status_details": {"error": {"code": "server_error"}}}}, None),
        ({"type": "error", "error": {"code": "model_not_found", "param": "session.audio.input"}}, None),
        ({"type": "error", "error": {"code": ["insufficient_quota"]}}, None),
        ({"type": "error", "error": "insufficient_quota"}, None),
        ({"type": "error"}, None),
    ],
    ids=repr,
)
def test_a_server_that_takes_nobody_is_known_by_its_errors(event, code):
    """Also by a response that fails, which is how an account without money shows."""
    assert refusal_of(event) == code


def test_a_refusal_is_hidden_only_where_another_server_answers_instead():
    """Else the client must know why its call ends."""
    error = {"type": "error", "error": {"code": "insufficient_quota"}}
    serving = Serving()
    assert not serving.on_event("error", error)
    assert serving.refusal == "insufficient_quota"
    serving.on_model_gone()
    assert serving.refusal is None
    serving.fails_over = lambda: True
    assert serving.on_event("error", error)
    assert not serving.on_event("error", {"type": "error", "error": {"code": "invalid_value"}})


def test_a_leg_has_answered_when_it_says_something_of_its_own():
    """A session, and the beginning of a response that then fails, cost a server nothing."""
    serving = Serving()
    for kind in ("session.created", "conversation.item.added", "response.created"):
        serving.on_event(kind, {"type": kind})
        assert not serving.has_answered
    serving.on_event("response.output_item.added", {})
    assert serving.has_answered
    serving.on_model_gone()
    assert not serving.has_answered


def test_what_is_wrong_with_the_account_is_told_from_what_a_call_asks_for():
    """One client's odd model must not turn the others' calls away from a server."""
    assert {"insufficient_quota", "invalid_api_key"} <= ACCOUNT < FATAL
    assert ACCOUNT & {"model_not_found", "missing_model"} == set()
