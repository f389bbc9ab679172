"""Settings: a bad value is refused by its name, no secret is shown, and the files that are named are checked."""

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout import BusSettings
from relay.config import ConfigError, Settings, read
from relay.devcert import make_certificate

SECRET = "hunter2-" * 4  # of every kind: password, key, token
ENV = {"RELAY_JWT_SECRET": SECRET, "RELAY_UPSTREAM_URL": "ws://model.example/v1/realtime", "RELAY_REGION": "iad"}


def settings(**changes: str) -> Settings:
    return Settings.from_env(ENV | changes)


def refused(**changes: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(**changes)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_a_node_needs_a_secret_and_a_key_and_nothing_else():
    """All other settings have defaults that are right for one node on one machine."""
    found = Settings.from_env({"RELAY_JWT_SECRET": SECRET, "OPENAI_API_KEY": "sk-1"})
    assert found.rulebook.upstreams["default"].url == "wss://api.openai.com/v1/realtime"
    assert found.rulebook.upstreams["default"].headers == (("Authorization", "Bearer sk-1"),)
    assert found.regions == {found.region: "redis://127.0.0.1:6379"}
    assert found.host == found.ops_host == "127.0.0.1"
    assert found.max_message_bytes == 21 * 1024 * 1024
    assert found.allowed_origins == frozenset()
    assert found.rulebook.agents["default"].model is None


@pytest.mark.parametrize("value", ["", "  "], ids=["empty", "blank"])
def test_an_empty_variable_is_an_unset_one(value):
    """Templates of deployments leave variables empty."""
    assert settings(RELAY_PORT=value).port == 8080


@pytest.mark.parametrize(
    ("variable", "value", "attribute", "expected"),
    [
        ("RELAY_PORT", "0", "port", 0),
        ("RELAY_OPS_PORT", "65535", "ops_port", 65535),
        ("RELAY_REGIONS", "iad=redis://a, lhr=rediss://b,", "regions", {"iad": "redis://a", "lhr": "rediss://b"}),
        ("RELAY_PREFIX", "acme:relay-2", "prefix", "acme:relay-2"),
        ("RELAY_BUS_SILENCE_SECONDS", "1.5", "bus_silence_seconds", 1.5),
        ("RELAY_BUS_NODE_TTL_SECONDS", "60", "bus_node_ttl_seconds", 60.0),
        ("RELAY_BUS_SWEEP_SECONDS", "0.5", "bus_sweep_seconds", 0.5),
        ("RELAY_BUS_SOCKET_TIMEOUT", "0.2", "bus_socket_timeout", 0.2),
        ("RELAY_ALLOWED_ORIGINS", " https://a ,https://b,", "allowed_origins", {"https://a", "https://b"}),
        ("RELAY_DRAIN_SECONDS", "0", "drain_seconds", 0.0),
        ("RELAY_STALL_SECONDS", "0.5", "stall_seconds", 0.5),
        ("RELAY_MAX_CALLS", "1", "max_calls", 1),
        ("RELAY_JWKS_URL", "https://id.example/jwks", "jwks_url", "https://id.example/jwks"),
        ("RELAY_JWKS_URL", "http://127.0.0.1:9/jwks", "jwks_url", "http://127.0.0.1:9/jwks"),
        ("RELAY_JWKS_URL", "http://[::1]/jwks", "jwks_url", "http://[::1]/jwks"),
        ("RELAY_JWT_ISSUER", "https://id.example/", "jwt_issuer", "https://id.example/"),
        ("RELAY_JWT_AUDIENCE", "relay", "jwt_audience", "relay"),
        ("RELAY_TRUSTED_PROXIES", "10.0.0.0/8, ::1", "trusted_proxies", (ip_network("10.0.0.0/8"), ip_network("::1"))),
        ("RELAY_IP_CONNECTIONS", "0", "ip_connections", 0),
        ("RELAY_IP_STARTS_PER_MINUTE", "7", "ip_starts_per_minute", 7),
        ("RELAY_HANDSHAKE_SECONDS", "0.5", "handshake_seconds", 0.5),
        ("RELAY_LEASE_SECONDS", "1.5", "lease_seconds", 1.5),
        ("RELAY_USAGE_DAYS", "31", "usage_days", 31),
        ("RELAY_LIMITS_AWAY", "closed", "limits_away", "closed"),
    ],
)
def test_what_is_set_is_read(variable, value, attribute, expected):
    """Lists have commas, headers a line each."""
    assert getattr(settings(**{variable: value}), attribute) == expected


def test_what_a_reload_may_change_stands_in_the_rulebook():
    """The first reading of it, as all others."""
    headers = "api-key: k\nX-A: b:c"
    found = settings(RELAY_JWT_SECRET=f"{'a' * 32},{'b' * 32}", RELAY_UPSTREAM_HEADERS=headers).rulebook
    assert found.jwt_secrets == ("a" * 32, "b" * 32)
    assert found.upstreams["default"].headers == (("api-key", "k"), ("X-A", "b:c"))


def test_a_home_may_be_a_shard_and_a_url_may_name_several_hosts():
    """The commas between hosts are not those between homes, wherever a line was folded."""
    shards = {
        "iad": "redis+sentinel://:pw@s1:26379,s2,s3:26379/main?db=1",
        "iad-2": "rediss+cluster://user:pw@[::1]:7000,c2?ssl_ca_certs=/ca.pem",
        "lhr": "redis://h",
    }
    text = ",".join(f"{home}={url}" for home, url in shards.items())
    assert settings(RELAY_REGIONS=text).regions == shards
    assert settings(RELAY_REGIONS=text.replace(",", " ,\n  ")).regions == shards


def test_a_region_may_consist_of_shards_alone():
    """New calls go to any of them."""
    assert settings(RELAY_REGIONS="iad-1=redis://a,iad-2=redis://b").region == "iad"


def test_the_buss_times_are_its_own_defaults_unless_set():
    """Two lists of the same numbers would drift apart."""
    found = settings()
    own = (found.bus_silence_seconds, found.bus_node_ttl_seconds, found.bus_sweep_seconds, found.bus_socket_timeout)
    bus = BusSettings
    assert own == (bus.silence_seconds, bus.node_ttl_seconds, bus.sweep_seconds, bus.socket_timeout)


def test_the_upstream_key_goes_where_the_headers_want_it():
    """Azure has a header of its own; the relay's variable goes before OpenAI's."""
    found = settings(RELAY_UPSTREAM_HEADERS="api-key: {key}", RELAY_UPSTREAM_KEY="mine", OPENAI_API_KEY="other")
    assert found.rulebook.upstreams["default"].headers == (("api-key", "mine"),)


COUNTS = ["RELAY_MAX_CALLS", "RELAY_MAX_MESSAGE_BYTES", "RELAY_MAX_BROWSER_MESSAGE_BYTES", "RELAY_HOLD_BYTES"]
COUNTS += ["RELAY_WRITE_BUFFER_BYTES", "RELAY_SOCKET_BUFFER_BYTES"]
COUNTS += ["RELAY_USAGE_DAYS"]
SECONDS = ["HANDSHAKE", "LEASE", "DIAL", "REGISTER", "APPLY", "STALL", "PING", "PONG", "CLOSE", "TOMBSTONE"]
BUS_TIMES = ["SILENCE_SECONDS", "NODE_TTL_SECONDS", "SWEEP_SECONDS", "SOCKET_TIMEOUT"]
FILES = ["RELAY_JWT_SECRET_FILE", "RELAY_UPSTREAM_KEY_FILE"]
FILES += ["RELAY_CONFIG", "RELAY_UPSTREAM_CA", "RELAY_TLS_CERT", "RELAY_TLS_KEY", "RELAY_PAGE"]
BAD = [
    *((variable, value) for variable in COUNTS for value in ("0", "-1", "1.5", "many")),
    *((f"RELAY_{name}_SECONDS", value) for name in SECONDS for value in ("0", "-1", "soon", "nan")),
    *((f"RELAY_BUS_{name}", value) for name in BUS_TIMES for value in ("0", "-1", "soon", "nan", "61")),
    *(("RELAY_DRAIN_SECONDS", value) for value in ("-1", "soon", "nan")),
    *((variable, value) for variable in ("RELAY_PORT", "RELAY_OPS_PORT") for value in ("-1", "65536", "http")),
    *((variable, value) for variable in FILES for value in ("/nonexistent", "/")),
    *(("RELAY_REGION", value) for value in ("us-east", "us_east", "é", "x" * 25)),
    *(("RELAY_REGIONS", f"{name}=redis://a") for name in ("us_east", "iad-", "-2", "iad-2-3", "x" * 25, "")),
    ("RELAY_REGIONS", "iad=redis://a,iad=redis://b"),
    ("RELAY_REGIONS", "iad=redis://a,lhr"),
    ("RELAY_REGIONS", "iad=redis://a,redis://b"),
    ("RELAY_REGIONS", "iad=redis+sentinel://a"),
    ("RELAY_REGIONS", "iad=redis+cluster://a/1"),
    ("RELAY_REGIONS", "iad=redis+other://a"),
    ("RELAY_REGIONS", "iad=redis://a?ssl_ca_certs=/ca.pem"),
    *(("RELAY_PREFIX", value) for value in ("a{b}", "a b", "é", "a*")),
    ("RELAY_JWT_SECRET", "short"),
    ("RELAY_JWT_SECRET", f"{SECRET},short"),
    *(("RELAY_IP_CONNECTIONS", value) for value in ("-1", "1.5", "many")),
    *(("RELAY_IP_STARTS_PER_MINUTE", value) for value in ("-1", "1.5", "many")),
    *(("RELAY_TRUSTED_PROXIES", value) for value in ("10.0.0.1/8", "10.0.0.0/33", "proxy", "10.0.0.0/8;::1")),
    *(("RELAY_JWKS_URL", value) for value in ("http://id.example/jwks", "http://127.evil.example", "https://", "id")),
    *(("RELAY_JWKS_URL", value) for value in ("file:///etc/passwd", "http://localhost.evil.example", "https://[x")),
    ("RELAY_LIMITS_AWAY", "ajar"),
    ("RELAY_UPSTREAM_KEY", "two words"),
    ("OPENAI_API_KEY", "sk-\u00e9"),
    ("RELAY_UPSTREAM_HEADERS", "no colon"),
    ("RELAY_UPSTREAM_HEADERS", ": value"),
]


@pytest.mark.parametrize(("variable", "value"), BAD, ids=[f"{name}={value}"[:48] for name, value in BAD])
def test_a_bad_value_names_its_variable(variable, value):
    """Whoever deploys sees the sentence in a log, far from the code."""
    assert refused(**{variable: value}).startswith(f"{variable}: ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REDIS_URL", f"http://:{SECRET}@host"),
        ("REDIS_URL", f":{SECRET}@host"),
        ("REDIS_URL", f"redis://:{SECRET}\u2100@host"),
        ("REDIS_URL", f"redis://:{SECRET}@[host"),
        ("RELAY_REGIONS", f"redis://:{SECRET}@host"),
        ("RELAY_REGIONS", f"rediss://:{SECRET}@host?ssl_cert_reqs=none"),
        ("RELAY_REGIONS", f"iad=http://:{SECRET}@host"),
        ("RELAY_REGIONS", f"us-east=redis://:{SECRET}@host"),
        ("RELAY_REGIONS", f"iad=redis://:{SECRET}\u2100@host"),
        ("RELAY_REGIONS", f"iad=redis://a,:{SECRET}=b"),
        ("RELAY_REGIONS", f"iad=redis://:a,{SECRET}=b@host"),
        ("RELAY_REGIONS", f"iad=redis+sentinel://:{SECRET}@a,b"),
        ("RELAY_REGIONS", f"iad=redis+sentinel://:{SECRET}@a/m?sentinel_pasword={SECRET}"),
        ("RELAY_REGIONS", f"iad=redis+cluster://{SECRET}@a"),
        ("RELAY_REGIONS", f"redis://:{SECRET}=redis://b"),
        ("RELAY_UPSTREAM_URL", f"https://u:{SECRET}@host"),
        ("RELAY_UPSTREAM_URL", f"u:{SECRET}@host"),
        ("RELAY_UPSTREAM_URL", f"ws://u:{SECRET}\u2100@host"),
        ("RELAY_UPSTREAM_URL", f"ws://?api-key={SECRET}"),
        ("RELAY_UPSTREAM_HEADERS", f"Authorization Bearer {SECRET}"),
        ("RELAY_JWT_SECRET", f"{SECRET},short"),
        ("RELAY_UPSTREAM_KEY", f"{SECRET}\r\nX-Other: 1"),
        ("RELAY_JWKS_URL", f"http://u:{SECRET}@id.example/"),
        ("RELAY_JWKS_URL", f"https://u:{SECRET}\u2100@host"),
    ],
)
def test_a_bad_value_that_bears_a_secret_is_not_shown(variable, value):
    """The message ends up in the platform's logs, which more people read than the vault."""
    assert refused(**{variable: value}).startswith(f"{variable}: ")


@given(st.text("redis:/@[]=,?#u\u2100. ", max_size=20), st.text("redis:/@[]=,?#u\u2100. ", max_size=12))
def test_no_shape_of_a_bad_url_shows_its_password(before, after):
    """Parsers quote what they cannot read."""
    for variable in ("REDIS_URL", "RELAY_REGIONS", "RELAY_UPSTREAM_URL", "RELAY_JWKS_URL"):
        shown = ""
        try:
            settings(**{variable: f"{before}:{SECRET}{after}"})
        except ConfigError as error:
            shown = str(error)
        assert SECRET not in shown


def test_settings_show_no_secret():
    """A traceback or a log line may show the object. Some providers want their key in the URL."""
    found = settings(
        RELAY_REGIONS=f"iad=redis://:{SECRET}@host",
        RELAY_UPSTREAM_KEY=SECRET,
        RELAY_UPSTREAM_URL=f"wss://u:{SECRET}@model.example/v1?api-key={SECRET}",
        RELAY_JWKS_URL=f"https://u:{SECRET}@id.example/jwks",
    )
    assert (
        SECRET
        in str(found.regions)
        + str(found.rulebook.upstreams["default"].headers)
        + str(found.rulebook.jwt_secrets)
        + found.rulebook.upstreams["default"].url
    )
    assert SECRET not in repr(found) + repr(found.sources) + repr(found.rulebook)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"RELAY_JWT_SECRET": ""}, "RELAY_JWT_SECRET"),
        ({"RELAY_UPSTREAM_URL": ""}, "OPENAI_API_KEY"),
        ({"RELAY_UPSTREAM_URL": "", "OPENAI_API_KEY": ""}, "OPENAI_API_KEY"),
        ({"RELAY_REGIONS": "lhr=redis://b"}, "RELAY_REGIONS"),
        ({"RELAY_REGIONS": "lhr-iad=redis://b"}, "RELAY_REGIONS"),
        ({"RELAY_REGIONS": ","}, "RELAY_REGIONS"),
        ({"RELAY_BUS_SILENCE_SECONDS": "1"}, "RELAY_BUS_SILENCE_SECONDS"),
        ({"RELAY_BUS_SILENCE_SECONDS": "8"}, "RELAY_BUS_NODE_TTL_SECONDS"),
        ({"RELAY_BUS_NODE_TTL_SECONDS": "3"}, "RELAY_BUS_NODE_TTL_SECONDS"),
        ({"RELAY_TLS_CERT": __file__}, "RELAY_TLS_KEY"),
        ({"RELAY_TLS_KEY": __file__}, "RELAY_TLS_CERT"),
        ({"RELAY_STALL_SECONDS": "40"}, "RELAY_STALL_SECONDS"),
        ({"RELAY_PING_SECONDS": "5", "RELAY_PONG_SECONDS": "5"}, "RELAY_STALL_SECONDS"),
    ],
    ids=[
        "no secret",
        "no key",
        "empty key",
        "region not listed",
        "region is another's shard",
        "no region",
        "silence",
        "silence and ttl",
        "ttl",
        "cert",
        "key",
        "stall",
        "ping",
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(changes, named):
    """Each of them alone would be fine, and the node would fail only with the first call."""
    assert named in refused(**changes)


@pytest.mark.parametrize("variable", ["RELAY_TLS_CERT", "RELAY_UPSTREAM_CA"])
def test_a_certificate_that_is_none_names_its_variable(variable, tmp_path):
    """TLS contexts are made at start, so that a node never listens with a broken one."""
    file = tmp_path / "file"
    file.write_text("nonsense")
    found = settings(**{variable: str(file), "RELAY_TLS_KEY": str(file) if variable == "RELAY_TLS_CERT" else ""})
    with pytest.raises(ConfigError, match=variable):
        found.server_context() if variable == "RELAY_TLS_CERT" else found.upstream_context()


def test_without_a_certificate_the_port_is_plain_and_with_one_it_is_tls(tmp_path):
    """Behind a load balancer that ends TLS, or not."""
    assert settings().server_context() is None
    cert, key = map(str, make_certificate(tmp_path))
    context = settings(RELAY_TLS_CERT=cert, RELAY_TLS_KEY=key).server_context()
    assert context is not None
    assert context.cert_store_stats()["x509"] == 0  # clients need no certificate
    assert settings(RELAY_UPSTREAM_CA=cert).upstream_context().cert_store_stats()["x509"] > 0


def test_upstream_certificates_are_always_verified():
    """There is no setting that turns it off."""
    context = settings().upstream_context()
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"


def configured(folder: Path, text: str | bytes) -> Settings:
    file = folder / "relay.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return settings(RELAY_CONFIG=str(file))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nonsense", ":1: "),
        (b"[agents.x]\nvoice = '\xff'", ":2: is not UTF-8"),
        ("agents = 5", ":1: agents: "),
        ("[agents]\nsupport = 5", ":2: agents.support: "),
        ("[agents.x]\nvoise = 'a'", ":2: agents.x.voise: "),
    ],
    ids=["not TOML", "not UTF-8", "agents is no table", "agent is no table", "unknown key"],
)
def test_a_bad_rulebook_is_refused_at_the_start_with_file_and_line(tmp_path, text, named):
    """A node that began without its agents and limits would serve the wrong things to anybody."""
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, text)
    assert str(caught.value).startswith(f"RELAY_CONFIG: {tmp_path}/relay.toml{named}")


def test_read_passes_a_parsers_words_on():
    """They say what would have been right."""

    def parse(text: str) -> Any:
        raise ValueError(f"no {text}")

    with pytest.raises(ConfigError, match="X: no a"):
        read({"X": " a "}, "X", parse, None)


def test_secrets_may_come_from_files_alone(tmp_path):
    """Platforms mount them; a variable shows in the listing of processes."""
    secrets, key = tmp_path / "secrets", tmp_path / "key"
    secrets.write_text(f"{SECRET}1\n\n{SECRET}2\n")
    key.write_text("sk-file\n")
    env = {"RELAY_JWT_SECRET_FILE": str(secrets), "RELAY_UPSTREAM_KEY_FILE": str(key)}
    found = Settings.from_env(env)
    assert found.rulebook.jwt_secrets == (f"{SECRET}1", f"{SECRET}2")
    assert found.rulebook.upstreams["default"].headers == (("Authorization", "Bearer sk-file"),)


def test_the_files_secrets_go_before_the_variables(tmp_path):
    """The first one signs; those of the variable still verify while a fleet goes over to the file."""
    secrets, key = tmp_path / "secrets", tmp_path / "key"
    secrets.write_text(f"{SECRET}1\r\n{SECRET}")
    key.write_text("sk-file")
    found = settings(
        RELAY_JWT_SECRET_FILE=str(secrets), RELAY_UPSTREAM_KEY_FILE=str(key), RELAY_UPSTREAM_KEY="sk-variable"
    )
    assert found.rulebook.jwt_secrets == (f"{SECRET}1", SECRET)
    assert found.rulebook.upstreams["default"].headers == (("Authorization", "Bearer sk-file"),)


@pytest.mark.parametrize(
    ("variable", "text", "place"),
    [
        ("RELAY_JWT_SECRET_FILE", "", ":"),
        ("RELAY_JWT_SECRET_FILE", f"{SECRET}\n\n{SECRET[:31]}\n", ":3:"),
        ("RELAY_JWT_SECRET_FILE", f"{SECRET}\n\udcff", ":2:"),
        ("RELAY_UPSTREAM_KEY_FILE", " \n", ":"),
        ("RELAY_UPSTREAM_KEY_FILE", f"{SECRET}\n{SECRET}", ":"),
        ("RELAY_UPSTREAM_KEY_FILE", f"{SECRET}\u00e9", ":"),
        ("RELAY_UPSTREAM_KEY_FILE", SECRET * 4096, ":"),
    ],
    ids=["no secret", "short", "not UTF-8", "no key", "two keys", "not ASCII", "too large"],
)
def test_a_bad_file_of_secrets_is_named_and_not_shown(tmp_path, variable, text, place):
    """Half a secret in a log is half of the work of whoever reads it there."""
    file = tmp_path / "secrets"
    file.write_text(text, errors="surrogateescape")
    said = refused(**{variable: str(file)})
    assert said.startswith(f"{variable}: {file}{place} ")
    assert SECRET[:31] not in said


def test_a_jwks_url_alone_can_verify_tokens():
    """A fleet whose tokens are all signed elsewhere has no secret to lose."""
    found = settings(RELAY_JWT_SECRET="", RELAY_JWKS_URL="https://id.example/jwks")
    assert found.rulebook.jwt_secrets == ()


def test_a_file_with_a_default_upstream_of_its_own_needs_no_key_of_the_environment(tmp_path):
    """And one without still does."""
    file = tmp_path / "relay.toml"
    file.write_text('[upstreams.default]\nurl = "wss://model.example/v1"')
    changes = {"RELAY_CONFIG": str(file), "RELAY_UPSTREAM_URL": ""}
    assert settings(**changes).rulebook.upstreams["default"].url == "wss://model.example/v1"
    file.write_text('[upstreams.other]\nurl = "wss://model.example/v1"')
    assert "OPENAI_API_KEY" in refused(**changes)


def test_shares_are_of_regions_and_not_of_their_shards(tmp_path):
    """A plan holds for a region as a whole."""
    file = tmp_path / "relay.toml"
    file.write_text("[shares]\niad = 0.75")
    regions = "iad-1=redis://a,iad-2=redis://b,lhr=redis://c"
    found = settings(RELAY_CONFIG=str(file), RELAY_REGIONS=regions)
    assert found.rulebook.shares == {"iad": 0.75, "lhr": 0.25}
