"""The table of endings: every end of a call has a row, and every row can be told to a client."""

import pytest

from relay.core.endings import Why, client_broke_protocol, client_closed, ended, model_closed
from relay.core.frames import NO_STATUS, Close, close_body, parse_close

SDKS_RECONNECT = {1001, 1011, 1012, 1013}  # measured against the official SDKs
SDKS_GIVE_UP = {1002, 1003, 1007, 1008, 1009, 3000, *range(4000, 5000)}


def test_every_row_has_a_label_of_its_own():
    """Dashboards count by label; two rows with one value would even be one member."""
    labels = [why.label for why in Why]
    assert len(set(labels)) == len(Why.__members__)
    assert all(label == name.lower() for name, label in zip(Why.__members__, labels, strict=True))


@pytest.mark.parametrize("why", Why, ids=lambda why: why.label)
def test_every_row_can_be_sent_and_says_the_same_to_an_sdk_as_to_us(why):
    """A code that must not travel would make the client's library fail; a wrong one makes it come back for ever."""
    close = ended(why).close
    assert parse_close(close_body(close)) == close == Close(why.code, why.label)
    assert why.fault in {"client", "model", "bus", "node", "policy"}
    if why.code in SDKS_RECONNECT:
        assert why.come_back
    if why.code in SDKS_GIVE_UP:
        assert not why.come_back


def test_a_reason_replaces_the_label():
    """The client's developer reads it."""
    assert ended(Why.CLIENT_SLOW, "too slow") == (Why.CLIENT_SLOW, Close(1013, "too slow"), None)


@pytest.mark.parametrize("close", [Close(1000, ""), Close(1001, "away"), Close(4321, "x"), Close(NO_STATUS, "")])
def test_a_client_that_closes_gets_its_own_code_back(close):
    """RFC 6455, section 5.5.1; an empty close is answered with an empty one."""
    assert client_closed(close) == (Why.CLIENT_CLOSED, close, None)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (1002, Why.CLIENT_PROTOCOL),
        (1003, Why.CLIENT_BINARY),
        (1007, Why.CLIENT_TEXT),
        (1009, Why.CLIENT_TOO_BIG),
        (1011, Why.CLIENT_PROTOCOL),
    ],
)
def test_a_client_that_breaks_the_protocol_is_told_with_the_code_of_the_rule(code, why):
    """And each kind is counted apart: a wave of 1009 is a limit that is too low."""
    assert client_broke_protocol(code, "because") == (why, Close(code, "because"), None)


@pytest.mark.parametrize(
    ("code", "why", "to_client"),
    [
        (1000, Why.MODEL_CLOSED, Close(1000, "said")),
        (NO_STATUS, Why.MODEL_CLOSED, Close(1000, "")),
        (1001, Why.MODEL_EXPIRED, Close(1001, "said")),
        (1002, Why.MODEL_LOST, Close(1011, "the model closed with 1002")),
        (1003, Why.MODEL_LOST, Close(1011, "the model closed with 1003")),
        (1007, Why.MODEL_LOST, Close(1011, "the model closed with 1007")),
        (1008, Why.MODEL_CLOSED, Close(1008, "said")),
        (1009, Why.MODEL_LOST, Close(1011, "the model closed with 1009")),
        (1010, Why.MODEL_LOST, Close(1011, "the model closed with 1010")),
        (1011, Why.MODEL_CLOSED, Close(1011, "said")),
        (1012, Why.MODEL_CLOSED, Close(1012, "said")),
        (1013, Why.MODEL_CLOSED, Close(1013, "said")),
        (1014, Why.MODEL_LOST, Close(1011, "the model closed with 1014")),
        (3000, Why.MODEL_KEY, Close(1008, "upstream refused the relay's key")),
        (3001, Why.MODEL_CLOSED, Close(3001, "said")),
        (4000, Why.MODEL_CLOSED, Close(4000, "said")),
        (4999, Why.MODEL_CLOSED, Close(4999, "said")),
    ],
)
def test_what_the_client_is_told_when_the_model_closes(code, why, to_client):
    """Codes about the relay's own socket or key mean nothing to the client; the model's own code is kept for us."""
    ending = model_closed(Close(code, "" if code == NO_STATUS else "said"))
    assert ending == (why, to_client, code)
    assert parse_close(close_body(ending.close)) == ending.close
