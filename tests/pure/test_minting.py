"""What a client secret is bound to: the pages of one origin, as browsers write it."""

import msgspec
import pytest

from relay.admission import Refused
from relay.api.minting import origin
from relay.api.reading import read_body
from relay.api.schema import SecretBody


def asked(value: object) -> SecretBody:
    """A body as it comes over the wire."""
    return read_body(msgspec.json.encode({"origin": value}), SecretBody)


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        ("https://shop.example", "https://shop.example"),
        ("https://shop.example:8443", "https://shop.example:8443"),
        ("https://shop.example:443", "https://shop.example"),
        ("http://shop.example:80", "http://shop.example"),
        ("http://shop.example:443", "http://shop.example:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdefghijklmnopabcdefghijklmnop", "chrome-extension://abcdefghijklmnopabcdefghijklmnop"),
        (None, None),
    ],
)
def test_an_origin_is_written_as_browsers_send_it(value, bound):
    """It is compared letter by letter: a port that no browser names would shut everybody out."""
    assert origin(asked(value), None) == bound


@pytest.mark.parametrize(
    "value",
    [
        "shop.example",
        "https://",
        "https://shop.example/",
        "https://shop.example/path",
        "https://shop.example?q",
        "https://shop.example#f",
        "https://user@shop.example",
        "https://Shop.example",
        "HTTPS://shop.example",
        "https://shop.example:",
        "https://shop.example:0",
        "https://shop.example:port",
        "https://shop.example\n",
        "https://a https://b",
        "https://bücher.example",
        "*",
        "null",
        "",
        7,
    ],
)
def test_what_no_browser_sends_as_an_origin_is_refused(value):
    """The key would open nothing, and nobody would know why."""
    with pytest.raises(Refused) as caught:
        asked(value)
    assert (caught.value.status, caught.value.param) == (422, "origin")


def test_a_token_for_one_origin_makes_keys_for_no_other():
    """What is bound stays bound."""
    callers = "https://shop.example"
    assert origin(asked(None), callers) == callers
    assert origin(asked(callers), callers) == callers
    with pytest.raises(Refused) as caught:
        origin(asked("https://other.example"), callers)
    assert (caught.value.status, caught.value.code, caught.value.param) == (403, "origin_not_allowed", "origin")
