"""What hardly anybody writes into a rulebook: names without letters, tables without anything."""

import pytest

from relay.rulebook.book import BookError, Defaults, parse_rulebook
from relay.rulebook.fields import Table
from relay.rulebook.upstreams import UpstreamConfig

DEFAULTS = Defaults(UpstreamConfig("default", "wss://example.org/v1/realtime", (), "model", {}))


def no_secret(kind: str, name: str) -> str:
    raise ValueError("no such variable is set")


@pytest.mark.parametrize("key", ["models", "headers"])
def test_a_name_without_letters_is_refused_with_its_line(key: str):
    """It would be a header that no server takes, or a model that nobody can ask for."""
    text = f'[upstreams.x]\nurl = "wss://example.org"\n[upstreams.x.{key}]\n"" = "y"\n'
    with pytest.raises(BookError) as caught:
        parse_rulebook(text, no_secret, DEFAULTS)
    assert caught.value.line in {3, 4}


def test_a_table_that_is_not_there_is_none():
    """A reader goes through what there is."""
    assert [name for name, _ in Table((), {"agents": {"x": None, "y": {}}}).tables("agents")] == ["y"]
    assert list(Table((), {}).tables("agents")) == []


@pytest.mark.parametrize("value", ["words", 1, True, 1.5, [], {}, None, [{"a": ["b"]}]], ids=repr)
def test_what_json_knows_goes_on_as_it_is(value: object):
    """Into a session, whose fields are the model server's to judge."""
    assert Table((), {"session": value}).json("session") == value


@pytest.mark.parametrize(("steps", "is_good"), [(90, True), (120, False)])
def test_a_session_that_is_nested_without_an_end_is_refused_with_its_line(steps: int, is_good: bool):
    """Dotted keys nest for a few letters each; what sends the session on would fail at it, in every call."""
    text = f"[agents.x]\n\n[agents.x.session]\n{'.'.join('a' * steps)} = 1\n"
    if is_good:
        assert "a" in parse_rulebook(text, no_secret, DEFAULTS).agents["x"].session
        return
    with pytest.raises(BookError) as caught:
        parse_rulebook(text, no_secret, DEFAULTS)
    assert (caught.value.line, str(caught.value)) == (3, "agents.x.session: is nested too deeply")
