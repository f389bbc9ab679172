"""The rulebook: what its tables mean, and that each mistake names its line and key and never a value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rulebook.agents import LOCKED, Agent
from relay.rulebook.book import BookError, Defaults, Rulebook, parse_rulebook
from relay.rulebook.plans import Plan
from relay.rulebook.upstreams import UpstreamConfig

SECRET = "hunter2-" * 4
OWN = UpstreamConfig("default", "wss://own.example/v1", (("Authorization", "Bearer own"),))
DEFAULTS = Defaults(OWN, ("s1", "s2"), frozenset({"iad", "lhr"}))


def secret(kind: str, name: str) -> str:
    if name == "missing":
        raise ValueError("no such variable is set")
    return {"empty": "", "lines": "a\nb"}.get(name, f"{kind}-{SECRET}")


def book(text: str, defaults: Defaults = DEFAULTS) -> Rulebook:
    return parse_rulebook(text, secret, defaults)


def test_without_a_file_there_are_an_agent_a_plan_and_the_environments_upstream():
    """A node on one machine needs no file, and has no limits."""
    found = book("")
    assert found.agents == {"default": Agent("default")}
    assert found.agents["default"].upstreams == ("default",)
    assert found.plans == {"default": Plan()}
    assert found.plan_for("anybody", None) == Plan()
    assert found.upstreams == {"default": OWN}
    assert found.jwt_secrets == ("s1", "s2")


def test_an_agents_settings_go_where_the_api_has_them():
    """``session`` is laid over the rest, for servers with another shape."""
    found = book("""
        [agents.support]
        model = "m"
        voice = "marin"
        instructions = "Be brief."
        turn_detection = {type = "server_vad"}
        tools = [{type = "function", name = "f"}]
        max_output_tokens = 500
        session = {tool_choice = "auto", instructions = "Be briefer."}
    """)
    assert set(found.agents) == {"default", "support"}
    agent = found.agents["support"]
    assert agent.model == "m"
    assert agent.session == {
        "type": "realtime",
        "instructions": "Be briefer.",
        "tools": [{"type": "function", "name": "f"}],
        "max_output_tokens": 500,
        "audio": {"input": {"turn_detection": {"type": "server_vad"}}, "output": {"voice": "marin"}},
        "tool_choice": "auto",
    }
    assert (agent.locked, agent.events, agent.tenants) == (LOCKED, None, None)


def test_an_agent_without_session_settings_sends_no_update():
    """The server's own defaults hold then."""
    assert book("[agents.default]\nmodel = 'm'").agents["default"].session == {}


def test_turn_detection_that_is_false_is_switched_off():
    """TOML has no null, and null is how the API spells it."""
    session = book("[agents.x]\nturn_detection = false\nmax_output_tokens = 'inf'").agents["x"].session
    assert session["audio"] == {"input": {"turn_detection": None}}
    assert session["max_output_tokens"] == "inf"


@pytest.mark.parametrize(
    ("line", "remembered", "asked"),
    [
        ("", {"model": "gpt-4o-mini-transcribe"}, {}),
        ("transcription = false", None, {}),
        (
            "transcription = {model = 't', language = 'de'}",
            {"model": "t", "language": "de"},
            {"type": "realtime", "audio": {"input": {"transcription": {"model": "t", "language": "de"}}}},
        ),
    ],
    ids=["default", "off", "another"],
)
def test_transcription_is_for_the_memory_unless_the_agent_says_otherwise(line, remembered, asked):
    """What the agent asks for itself is the client's to see."""
    agent = book(f"[agents.x]\n{line}").agents["x"]
    assert agent.transcription == remembered
    assert agent.session == asked


def test_an_agent_says_what_its_clients_may_not():
    """An empty list of locks locks nothing."""
    found = book("""
        agents.open.locked = []
        [agents.shut]
        locked = ["audio.output.voice", "truncation.type", "vendor_field"]
        events = ["input_audio_buffer.append", "response.create"]
        tenants = ["acme"]
        session = {vendor_field = 1}
    """)
    assert found.agents["open"].locked == frozenset()
    agent = found.agents["shut"]
    assert agent.locked == {"audio.output.voice", "truncation.type", "vendor_field"}
    assert agent.events == {"input_audio_buffer.append", "response.create"}
    assert found.agent_for("shut", "acme") is agent
    assert found.agent_for("shut", "Acme") is None
    assert found.agent_for("open", "anybody") is found.agents["open"]
    assert found.agent_for("none", "acme") is None


def test_an_upstream_gets_its_key_where_its_headers_want_it():
    """From a variable or a file; without a word on headers it is a bearer token."""
    found = book("""
        [upstreams.azure]
        url = "wss://azure.example/openai/v1/realtime"
        key_env = "AZURE_KEY"
        headers = {api-key = "{key}", X-Team = "voice"}
        model_parameter = "deployment"
        models = {"gpt-realtime" = "my-deployment"}
        [upstreams.other]
        url = "wss://other.example"
        key_file = "key"
        [upstreams.open]
        url = "ws://10.0.0.7:9000/v1"
        [agents.support]
        upstreams = ["azure", "default"]
        [agents.sales]
        upstream = "open"
    """)
    azure, other, plain = (found.upstreams[name] for name in ("azure", "other", "open"))
    assert azure.headers == (("api-key", f"env-{SECRET}"), ("X-Team", "voice"))
    assert (azure.model_parameter, azure.models) == ("deployment", {"gpt-realtime": "my-deployment"})
    assert other.headers == (("Authorization", f"Bearer file-{SECRET}"),)
    assert (plain.headers, plain.model_parameter, plain.models) == ((), "model", {})
    assert found.upstreams["default"] == OWN
    assert found.agents["support"].upstreams == ("azure", "default")
    assert found.agents["sales"].upstreams == ("open",)


def test_the_file_may_replace_the_environments_upstream():
    """Or be the only one to say where the models are."""
    text = "[upstreams.default]\nurl = 'ws://file.example'"
    assert book(text).upstreams["default"].url == "ws://file.example"
    assert book(text, Defaults()).upstreams["default"].url == "ws://file.example"


def test_a_rulebook_shows_no_secret():
    """A traceback or a log line may show the object. Tools may carry credentials of their own."""
    text = f"""
        upstreams.a = {{url = "wss://u:{SECRET}@a.example?key={SECRET}", key_env = "KEY"}}
        agents.a = {{upstream = "a", tools = [{{type = "mcp", authorization = "{SECRET}"}}]}}
    """
    found = book(text, Defaults(OWN, (SECRET,), frozenset({"iad"})))
    assert SECRET in found.upstreams["a"].url
    assert SECRET in found.upstreams["a"].headers[0][1]
    assert found.jwt_secrets == (SECRET,)
    assert SECRET not in repr(found)


def test_a_plan_is_what_the_token_claims_then_what_its_tenant_has_then_the_default():
    """And a claim of a plan that is not there is never taken for one without limits."""
    found = book("""
        [plans.default]
        concurrent_calls = 2
        [plans.gold]
        concurrent_calls = 100
        call_starts_per_minute = 60
        call_minutes_per_day = 1000
        longest_call_seconds = 3600.5
        messages_per_second = 5
        client_messages_per_second = 0.5
        client_bytes_per_second = 100_000
        [tenants.acme]
        plan = "gold"
    """)
    gold = Plan(
        name="gold",
        concurrent_calls=100,
        call_starts_per_minute=60,
        call_minutes_per_day=1000.0,
        longest_call_seconds=3600.5,
        messages_per_second=5.0,
        client_messages_per_second=0.5,
        client_bytes_per_second=100_000,
    )
    assert found.plan_for("acme", None) == gold
    assert found.plan_for("acme", "default") == found.plan_for("other", None) == Plan(concurrent_calls=2)
    assert found.plan_for("other", "gold") == gold
    assert found.plan_for("acme", "platinum") is None
    assert found.plan_for("acme", "") is None


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("", {"iad": 0.5, "lhr": 0.5}),
        ("[shares]\niad = 0.6\nlhr = 0.4", {"iad": 0.6, "lhr": 0.4}),
        ("[shares]\niad = 0.1\nlhr = 0.2", {"iad": 0.1, "lhr": 0.2}),
        ("shares.iad = 0.75", {"iad": 0.75, "lhr": 0.25}),
    ],
    ids=["equal", "all given", "less than all", "the rest"],
)
def test_regions_share_a_plan_as_the_file_says_or_equally(text, shares):
    """A region that the file doesn't name has an equal part of what is left."""
    found = book(text)
    assert {region: found.share(region) for region in DEFAULTS.regions} == shares


def test_many_shares_may_make_one_for_all_that_floats_do():
    """Ten times a tenth is not quite 1."""
    regions = [f"r{number}" for number in range(10)]
    text = "[shares]\n" + "\n".join(f"{region} = 0.1" for region in regions)
    assert set(book(text, Defaults(OWN, (), frozenset(regions))).shares.values()) == {0.1}


# The line on which the mistake is, its path, and the text; every text has a line before it.
MISTAKES = [
    ("unknown table", 2, "agent", "[agent.x]"),
    ("agents is no table", 2, "agents", "agents = 5"),
    ("an agent is no table", 3, "agents.x", "[agents]\nx = 5"),
    ("unknown key", 3, "agents.x.voise", f"[agents.x]\nvoise = '{SECRET}'"),
    ("name", 2, "agents.", "[agents.'']"),
    ("model", 3, "agents.x.model", "[agents.x]\nmodel = 5"),
    ("no model", 3, "agents.x.model", "[agents.x]\nmodel = ''"),
    ("voice", 3, "agents.x.voice", "[agents.x]\nvoice = []"),
    ("instructions", 3, "agents.x.instructions", "[agents.x]\ninstructions = 5"),
    ("a date in a session", 3, "agents.x.session.day", "[agents.x]\nsession.day = 2026-01-01"),
    ("a number that JSON lacks", 3, "agents.x.session.a.0", "[agents.x]\nsession = {a = [nan]}"),
    ("a number too large", 3, "agents.x.session.a", "[agents.x]\nsession = {a = 9223372036854775808}"),
    ("session", 3, "agents.x.session", "[agents.x]\nsession = 5"),
    ("session is text", 3, "agents.x.session", "[agents.x]\nsession = 'ab'"),
    ("session is a list", 3, "agents.x.session", "[agents.x]\nsession = [['a', 'b']]"),
    ("turn detection", 3, "agents.x.turn_detection", "[agents.x]\nturn_detection = true"),
    ("transcription", 3, "agents.x.transcription", "[agents.x]\ntranscription = 'whisper'"),
    ("tools is no list", 3, "agents.x.tools", "[agents.x]\ntools = {}"),
    ("a tool is no table", 3, "agents.x.tools", "[agents.x]\ntools = [\n  'f',\n]"),
    ("a date in a later tool", 5, "agents.x.tools.1.d", "[[agents.x.tools]]\n[[agents.x.tools]]\na = 1\nd = 07:32:00"),
    *(
        (f"output tokens {value}", 3, "agents.x.max_output_tokens", f"[agents.x]\nmax_output_tokens = {value}")
        for value in ("0", "-1", "1.5", "'many'", "true", "inf")
    ),
    ("locked is a string", 3, "agents.x.locked", "[agents.x]\nlocked = 'tools'"),
    ("misspelt lock", 3, "agents.x.locked", "[agents.x]\nlocked = ['instructions', 'tool']"),
    ("misspelt voice", 3, "agents.x.locked", "[agents.x]\nlocked = ['audio.output.voise']"),
    ("lock of the type", 3, "agents.x.locked", "[agents.x]\nlocked = ['type']\nvoice = 'a'"),
    ("no event", 3, "agents.x.events", "[agents.x]\nevents = ['append']"),
    ("tenants", 3, "agents.x.tenants", "[agents.x]\ntenants = ['a', 5]"),
    ("unknown upstream", 3, "agents.x.upstream", "[agents.x]\nupstream = 'y'"),
    ("unknown upstreams", 3, "agents.x.upstreams", "[agents.x]\nupstreams = ['default', 'y']"),
    ("no upstream", 3, "agents.x.upstreams", "[agents.x]\nupstreams = []"),
    ("upstream twice", 3, "agents.x.upstreams", "[agents.x]\nupstreams = ['default', 'default']"),
    ("both", 4, "agents.x.upstreams", "[agents.x]\nupstream = 'default'\nupstreams = ['default']"),
    *(
        (f"{key} {value}", 3, f"plans.p.{key}", f"[plans.p]\n{key} = {value}")
        for key in ("concurrent_calls", "call_starts_per_minute", "client_bytes_per_second")
        for value in ("0", "-1", "1.5", "'1'", "true", "1_000_000_001")
    ),
    *(
        (f"{key} {value}", 3, f"plans.p.{key}", f"[plans.p]\n{key} = {value}")
        for key in ("call_minutes_per_day", "longest_call_seconds", "messages_per_second", "client_messages_per_second")
        for value in ("0", "-0.5", "'1'", "true", "nan", "inf", "1e10", "1" + "0" * 400)
    ),
    ("unknown limit", 3, "plans.p.calls", "[plans.p]\ncalls = 5"),
    ("unknown plan", 3, "tenants.acme.plan", "[tenants.acme]\nplan = 'gold'"),
    ("no plan", 2, "tenants.acme.plan", "[tenants.acme]"),
    ("no url", 2, "upstreams.u.url", "[upstreams.u]"),
    ("http", 3, "upstreams.u.url", f"[upstreams.u]\nurl = 'https://u:{SECRET}@host'"),
    ("no host", 3, "upstreams.u.url", f"[upstreams.u]\nurl = 'wss://?key={SECRET}'"),
    ("bad host", 3, "upstreams.u.url", f"[upstreams.u]\nurl = 'wss://u:{SECRET}\u2100@host'"),
    ("bad port", 3, "upstreams.u.url", f"[upstreams.u]\nurl = 'wss://host:{SECRET}'"),
    ("line break in a url", 3, "upstreams.u.url", f'[upstreams.u]\nurl = "wss://host/{SECRET}\\r\\nX: y"'),
    ("unset variable", 4, "upstreams.u.key_env", "[upstreams.u]\nurl = 'ws://h'\nkey_env = 'missing'"),
    ("empty key", 4, "upstreams.u.key_env", "[upstreams.u]\nurl = 'ws://h'\nkey_env = 'empty'"),
    ("key of two lines", 4, "upstreams.u.key_file", "[upstreams.u]\nurl = 'ws://h'\nkey_file = 'lines'"),
    ("two keys", 5, "upstreams.u.key_file", "[upstreams.u]\nurl = 'ws://h'\nkey_env = 'a'\nkey_file = 'b'"),
    ("a key itself", 4, "upstreams.u.key", f"[upstreams.u]\nurl = 'ws://h'\nkey = '{SECRET}'"),
    ("no key", 4, "upstreams.u.headers", "[upstreams.u]\nurl = 'ws://h'\nheaders = {a = '{key}'}"),
    ("no place", 5, "upstreams.u.headers", "[upstreams.u]\nurl = 'ws://h'\nkey_env = 'a'\nheaders = {a = 'b'}"),
    ("header's name", 4, "upstreams.u.headers", "[upstreams.u]\nurl = 'ws://h'\nheaders = {'a b' = 'c'}"),
    (
        "header's value",
        4,
        "upstreams.u.headers",
        f'[upstreams.u]\nurl = "ws://h"\nheaders = {{a = "{SECRET}\\r\\nb: c"}}',
    ),
    ("header's type", 4, "upstreams.u.headers.a", "[upstreams.u]\nurl = 'ws://h'\nheaders = {a = 5}"),
    ("models", 4, "upstreams.u.models.m", "[upstreams.u]\nurl = 'ws://h'\nmodels = {m = ''}"),
    ("parameter", 4, "upstreams.u.model_parameter", "[upstreams.u]\nurl = 'ws://h'\nmodel_parameter = ''"),
    ("unknown region", 3, "shares.nrt", "[shares]\nnrt = 0.5"),
    ("no share", 3, "shares.iad", "[shares]\niad = 0"),
    ("shares", 2, "shares", "[shares]\niad = 0.6\nlhr = 0.6"),
    ("nothing left", 2, "shares", "[shares]\niad = 1"),
]


@pytest.mark.parametrize(("line", "path", "text"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_names_its_line_and_key_and_never_a_value(line, path, text):
    """A misspelt key would be silently without effect; the words end up in logs."""
    with pytest.raises(BookError) as caught:
        book(f"# The fleet's rules\n{text}")
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.line == line
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[agents.x]\nvoice = \n", 2),
        ("[agents.x]\nvoice = 'a\n", 2),
        ("[agents.x]\n[agents.x]\n", 2),
        ("[agents.x]\ninstructions = '''a\n\nb\n\n", 4),
        ("a = [\n1,\n", 2),
    ],
    ids=["no value", "open string", "table twice", "open text", "open list"],
)
def test_a_file_that_is_no_toml_is_refused_with_its_line(text, line):
    """Half a file, too: the line is the last one that says something."""
    with pytest.raises(BookError) as caught:
        book(text)
    assert caught.value.line == line


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "1" * 5000], ids=["deep", "long"])
def test_a_file_that_is_meant_to_break_the_parser_is_refused_as_any_other(text):
    """What raises something else would end the task that watches the files."""
    with pytest.raises(BookError):
        book(text)


WORDS = st.sampled_from(["agents", "plans", "upstreams", "x", "url", "key_env", "session", "tools", "'''", '"', "a.b"])
SIGNS = st.sampled_from(["[", "]", "[[", "]]", " = ", "\n", "{", "}", ",", "#", "1", "nan", "2026-01-01", SECRET])


@given(st.lists(WORDS | SIGNS, max_size=24).map("".join))
def test_no_text_at_all_breaks_the_parser(text):
    """Either it is a rulebook, or it is refused with one of its lines."""
    line = None
    try:
        book(text)
    except BookError as error:
        line = error.line
    assert line is None or 1 <= line <= text.count("\n") + 1
