"""Who is let in: origin, token's place, subprotocol, room; each refusal is an HTTP status with a code."""

import pytest

from relay.admission import (
    Attachment,
    Refused,
    Room,
    Wanted,
    admit,
    attachment,
    bearer,
    check_origin,
    choose_agent,
    choose_protocol,
)

ROOM = Room(accepting=True, live=0, max_calls=2)
KEY = "openai-insecure-api-key."
PAGE = "https://app.example"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [(None, set()), (PAGE, {PAGE}), (PAGE, {"https://other.example", PAGE}), (PAGE, {"*"})],
    ids=["no browser", "listed", "one of several", "any"],
)
def test_a_listed_page_and_whatever_is_no_browser_may_connect(origin, allowed):
    """SDKs on servers and phones send no Origin; the token says who they are."""
    check_origin(origin, frozenset(allowed))


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (PAGE, set()),
        (PAGE, {"https://other.example"}),
        ("http://app.example", {PAGE}),
        (f"{PAGE}.evil.example", {PAGE}),
        (f"{PAGE}:8443", {PAGE}),
        ("null", {PAGE}),
        ("", {PAGE}),
    ],
    ids=["nothing listed", "another listed", "other scheme", "suffix", "other port", "null", "empty"],
)
def test_a_page_that_is_not_listed_is_refused_whatever_token_it_has(origin, allowed):
    """A foreign page must not use a token that it found in a browser. Nothing but the exact origin counts."""
    with pytest.raises(Refused) as caught:
        check_origin(origin, frozenset(allowed))
    assert (caught.value.status, caught.value.code) == (403, "origin_not_allowed")


def test_a_long_origin_is_cut_in_the_answer():
    """It is the sender's choice and would come back whole."""
    with pytest.raises(Refused) as caught:
        check_origin("https://" + "x" * 10_000, frozenset())
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("headers", "protocols", "token"),
    [
        ({"Authorization": "Bearer tok"}, [], "tok"),
        ({"Authorization": "bearer  tok "}, [], "tok"),
        ({"Authorization": "Bearer tok"}, [f"{KEY}other"], "tok"),
        ({}, ["realtime", f"{KEY}tok"], "tok"),
        ({}, [f"{KEY}tok", f"{KEY}second"], "tok"),
        ({"Authorization": "Basic dTpw"}, [f"{KEY}tok"], "tok"),
        ({"Authorization": "Bearer "}, [f"{KEY}tok"], "tok"),
        ({"Authorization": "Basic dTpw"}, [], None),
        ({"Authorization": "Bearer"}, [], None),
        ({"Authorization": "tok"}, [], None),
        ({}, ["realtime", "openai-beta.realtime-v1"], None),
        ({}, [], None),
    ],
    ids=[
        "header",
        "header, sloppy",
        "header before subprotocol",
        "subprotocol",
        "first subprotocol",
        "other scheme, subprotocol",
        "empty header, subprotocol",
        "other scheme",
        "scheme alone",
        "no scheme",
        "other subprotocols",
        "nothing",
    ],
)
def test_the_token_is_in_the_header_or_in_the_subprotocol_of_browsers(headers, protocols, token):
    """Browsers cannot set headers on a WebSocket."""
    assert bearer(headers, protocols) == token


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        ([], None),
        (["realtime"], "realtime"),
        (["realtime", f"{KEY}tok", "openai-agents-sdk.0.20.0"], "realtime"),
        ([f"{KEY}tok", "realtime", "relay.events.v1"], "relay.events.v1"),
        ([f"{KEY}tok"], None),
        (["openai-beta.realtime-v1"], None),
        (["Realtime"], None),
    ],
    ids=["none", "realtime", "browser", "relay events", "key alone", "beta", "other case"],
)
def test_the_selected_subprotocol_is_never_the_one_that_bears_the_key(offered, selected):
    """It would come back in the answer; and to select what was not offered breaks every client."""
    assert choose_protocol(offered) == selected


@pytest.mark.parametrize(
    ("query", "default", "wanted"),
    [
        ({"model": "m"}, None, Wanted("m", None)),
        ({"model": "m"}, "d", Wanted("m", None)),
        ({}, "d", Wanted("d", None)),
        ({"model": ""}, "d", Wanted("d", None)),
        ({"intent": "transcription"}, None, Wanted(None, "transcription")),
        ({"intent": "", "model": "m"}, None, Wanted("m", None)),
        ({"intent": ""}, "d", Wanted("d", None)),
    ],
    ids=["asked", "asked, not the default", "default", "empty", "intent alone", "empty intent", "only that"],
)
def test_a_call_has_the_model_it_asks_for_or_the_agents(query, default, wanted):
    """A transcription session names no model."""
    assert admit(ROOM, query, default) == wanted


@pytest.mark.parametrize(
    ("room", "query", "status", "code", "param", "retry_after"),
    [
        (ROOM, {"call_id": "rtc_x", "model": "m"}, 400, "call_id_not_supported", "call_id", None),
        (ROOM, {}, 400, "missing_model", "model", None),
        (ROOM, {"model": ""}, 400, "missing_model", "model", None),
        (Room(accepting=False, live=0, max_calls=2), {"model": "m"}, 503, "node_draining", None, 1),
        (Room(accepting=False, live=2, max_calls=2), {"model": "m"}, 503, "node_draining", None, 1),
        (Room(accepting=True, live=2, max_calls=2), {"model": "m"}, 503, "node_full", None, 2),
        (Room(accepting=True, live=3, max_calls=2), {"model": "m"}, 503, "node_full", None, 2),
    ],
    ids=["call_id", "no model", "empty model", "draining", "draining and full", "full", "over full"],
)
def test_what_cannot_become_a_call_is_refused_before_the_upgrade(room, query, status, code, param, retry_after):
    """With a status that says whose fault it is, and when to come back where that makes sense."""
    with pytest.raises(Refused) as caught:
        admit(room, query, None)
    refused = caught.value
    assert (refused.status, refused.code, refused.param, refused.retry_after) == (status, code, param, retry_after)
    assert refused.kind == ("server_error" if status == 503 else "invalid_request_error")


@pytest.mark.parametrize(
    ("query", "session_type", "wanted"),
    [
        ({}, "transcription", Wanted(None, "transcription")),
        ({"model": "m"}, "transcription", Wanted("m", None)),
        ({"model": ""}, "transcription", Wanted("d", None)),
        ({"intent": "realtime"}, "transcription", Wanted("d", "realtime")),
        ({"intent": "transcription", "model": "m"}, "realtime", Wanted("m", "transcription")),
        ({}, "realtime", Wanted("d", None)),
    ],
    ids=["the secret's", "a model", "an empty model", "an intent", "both", "a conversation"],
)
def test_a_call_is_of_the_kind_that_its_secret_was_made_for(query, session_type, wanted):
    """As at OpenAI: an intent or a model of its own comes first."""
    assert admit(ROOM, query, "d", session_type) == wanted


def test_a_transcription_needs_a_place_as_any_other_call():
    """It weighs as much."""
    with pytest.raises(Refused) as caught:
        admit(Room(accepting=True, live=2, max_calls=2), {}, None, "transcription")
    assert caught.value.code == "node_full"


# Side legs


@pytest.mark.parametrize(
    ("query", "audio"), [({}, False), ({"audio": "0"}, False), ({"audio": "1"}, True)], ids=["unsaid", "no", "yes"]
)
def test_a_side_leg_hears_the_call_only_if_it_asks_to(query, audio):
    """Audio is most of what a call sends."""
    assert attachment({"call_id": "rtc_x", **query}) == Attachment("rtc_x", audio)


@pytest.mark.parametrize("name", ["model", "intent"])
def test_a_query_that_attaches_and_begins_is_refused(name):
    """Whichever were meant, the other would be a surprise; also if it is empty."""
    for value in ("", "m"):
        with pytest.raises(Refused) as caught:
            attachment({"call_id": "rtc_x", name: value})
        refused = caught.value
        assert (refused.status, refused.code, refused.param) == (400, "contradictory_query", name)


@pytest.mark.parametrize("audio", ["", "true", "2", "01"], ids=repr)
def test_an_audio_that_is_neither_is_refused(audio):
    """Silence would look like a fault of the call's."""
    with pytest.raises(Refused) as caught:
        attachment({"call_id": "rtc_x", "audio": audio})
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "invalid_value", "audio")


def test_the_last_place_is_given():
    """The limit is the number of calls, not one less."""
    admit(Room(accepting=True, live=1, max_calls=2), {"model": "m"}, None)


@pytest.mark.parametrize(
    ("query", "default", "model"),
    [({"model": "m"}, "d", "d"), ({"model": "m"}, None, "m"), ({}, "d", "d"), ({"model": ""}, "d", "d")],
)
def test_a_client_that_may_not_choose_gets_the_servers_model_whatever_it_names(query, default, model):
    """SDKs always name one. Where the server has none the client's stands."""
    assert admit(ROOM, query, default, locked=True) == Wanted(model, None)


@pytest.mark.parametrize(
    ("claimed", "asked", "chosen"),
    [
        (None, None, "default"),
        (None, "", "default"),
        (None, "support", "support"),
        ("sales", None, "sales"),
        ("sales", "", "sales"),
        ("sales", "sales", "sales"),
    ],
)
def test_the_token_names_the_agent_else_the_query_does(claimed, asked, chosen):
    """One rule for all who open calls."""
    assert choose_agent(claimed, asked) == chosen


def test_a_token_for_one_agent_opens_no_other():
    """Silence would let a page believe that it talks to whom it asked for."""
    with pytest.raises(Refused) as caught:
        choose_agent("sales", "support")
    assert (caught.value.status, caught.value.code, caught.value.param) == (403, "agent_not_allowed", "agent")
