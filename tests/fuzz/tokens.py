"""Tokens and key sets: nothing is proved that was not signed, and whatever was signed is claims or a refusal."""

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from functools import cache
from typing import Any

from hypothesis import strategies as st

from relay.keys import KEYS_MAX, BadKeySet, Keyring, PublicKey, UnknownKey, read_key_set
from relay.tokens import BROWSER_PREFIX, BadToken, Claims, mint
from tests.fuzz.target import Target
from tests.support.signing import ALGORITHMS, key_set, signer

SECRET = "secret-" * 8
_LATER = 4_000_000_000


def _packed(part: bytes) -> str:
    return urlsafe_b64encode(part).decode().rstrip("=")


def _signature(text: str, secret: str) -> str:
    return _packed(hmac.new(secret.encode(), text.encode(errors="surrogatepass"), hashlib.sha256).digest())


@cache
def _keys() -> tuple[PublicKey, ...]:
    return read_key_set(key_set(*(signer(name, name).public() for name in ALGORITHMS)))


# A token as it comes: nobody who fuzzes has a key


def check_token(data: bytes) -> None:
    """A token that no key signed proves nothing, whatever its header says."""
    token = data.decode("latin-1")
    try:
        found = _ring().verify(token)
    except BadToken:
        return
    if isinstance(found, Claims):  # then it is one of ours, as it was or written in another way
        assert _is_ours(token)


@cache
def _ring() -> Keyring:
    return Keyring((SECRET,), _keys())


@cache
def _ours() -> tuple[str, ...]:
    claims: Any = {"tenant": "acme", "scope": ["call"], "exp": _LATER}
    minted = mint(SECRET, tenant="acme", scope=["call"], expires_at=_LATER, jti="j", agent="support")
    return (minted, *(signer(name, name).sign(**claims) for name in ALGORITHMS))


def _is_ours(token: str) -> bool:
    """Whether its signed text is one of ours, letter by letter."""
    signed = token.removeprefix(BROWSER_PREFIX).rpartition(".")[0]
    return signed in {each.rpartition(".")[0] for each in _ours()}


# A token of a signer who writes odd things


def check_claims(data: bytes) -> None:
    """A header and a payload, a line each, that a known secret signed: claims or a BadToken, and claims that hold."""
    head, _, payload = data.partition(b"\n")
    text = f"{_packed(head)}.{_packed(payload)}"
    token = f"{text}.{_signature(text, SECRET)}"
    for ring in (Keyring((SECRET,)), Keyring(("other" * 8, SECRET), _keys(), issuer="us", audience="them")):
        try:
            found = ring.verify(token)
        except BadToken:
            continue
        if isinstance(found, UnknownKey):
            assert json.loads(head)["alg"] in ALGORITHMS
            continue
        _check_claims(found, head, payload)
        bad = f"{text}.{_signature(text, 'wrong' * 8)}"
        assert _refuses(ring, bad)


def _refuses(ring: Keyring, token: str) -> bool:
    try:
        ring.verify(token)
    except BadToken:
        return True
    return False


def _check_claims(found: Claims, head: bytes, payload: bytes) -> None:
    header, said = json.loads(head), json.loads(payload)
    assert header["alg"] == "HS256"
    assert not {"jku", "jwk", "x5u", "x5c", "crit"} & set(header)
    assert found.tenant == said["tenant"]
    assert 0 < len(found.tenant) <= 128
    assert found.tenant.isprintable()
    texts = (found.tenant, found.agent, found.plan, found.call, found.jti, found.origin)
    for text in texts:
        assert text is None or text.encode()
    scope = said["scope"].split() if isinstance(said["scope"], str) else said["scope"]
    assert found.scope == frozenset(scope)
    assert found.origin is None or found.browser
    now = time.time()
    assert float(said.get("nbf") or 0) <= now + 10
    if found.resumes:
        assert said["call"]
        assert float(said["exp"]) + 7200 + 10 >= now
    else:
        assert float(said["exp"]) + 10 >= now


# Key sets


def check_key_set(data: bytes) -> None:
    """A set is read or refused; a key that is read is public, for one algorithm, and long enough but not too long."""
    try:
        keys = read_key_set(data)
    except BadKeySet:
        return
    assert len(keys) <= KEYS_MAX
    for each in keys:
        assert each.algorithm in ALGORITHMS
        key = each.key.key
        assert not hasattr(key, "private_numbers")
        assert not hasattr(key, "sign")
        if each.algorithm == "RS256":
            assert 2048 <= key.key_size <= 8400
        assert "key" not in repr(each) or repr(each).startswith("PublicKey(kid=")
    ring = Keyring((), keys)
    for token in _ours():
        try:
            ring.verify(token)  # a set that says something else of our keys: claims, an unknown key or a refusal
        except BadToken:
            continue


# Shapes

_HEADS = st.fixed_dictionaries(
    {"alg": st.sampled_from(["HS256", "HS256", "HS256", "HS256", "none", "HS512", "RS256", "EdDSA", "", None, []])},
    optional={
        "kid": st.sampled_from(["RS256", "ES256", "x", "", None, 5, "\ud800"]),
        "typ": st.sampled_from(["JWT", "at+jwt", None, 5]),
        "crit": st.sampled_from([[], ["exp"], None]),
        "jku": st.just("https://evil.example"),
        "b64": st.booleans(),
    },
)
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "call mint", "\ud800", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "call"]), inner, max_size=2),
    max_leaves=4,
)
_TIMES = st.sampled_from([_LATER, _LATER, 0, 1e400, -1, "1", str(_LATER), 1e18, None, True, time.time() - 60])
_PAYLOADS = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(["acme", "acme", "acme", "é"]) | _ANY,
        "scope": st.sampled_from([["call"], "call mint"]) | _ANY,
        "exp": _TIMES | _ANY,
    },
    optional={
        **{name: st.just("x") | _ANY for name in ("agent", "plan", "call", "jti", "origin", "sub")},
        **dict.fromkeys(("nbf", "iat", "resume_seconds"), _TIMES),
        **{name: st.booleans() | _ANY for name in ("session", "browser")},
        "iss": st.just("us") | _ANY,
        "aud": st.sampled_from(["them", ["x", "them"]]) | _ANY,
    },
)


def _tokens() -> st.SearchStrategy[bytes]:
    """Parts of good tokens, put together anew."""
    parts = [part for token in _ours() for part in token.split(".")]
    forged = [
        _packed(json.dumps({"alg": name, "kid": "RS256"}).encode()) for name in ("HS256", "none", "RS256", "ES256")
    ]
    pieces = st.sampled_from([*parts, *forged, "", "ek_", "e30"])
    return st.lists(pieces, min_size=1, max_size=4).map(lambda each: ".".join(each).encode())


_WORDS = (b".", b"ek_", b"=", b"-", b"_", b"eyJhbGciOiJub25lIn0", b"eyJhbGciOiJIUzI1NiJ9", b"e30")
TOKENS = Target("tokens", check_token, tuple(token.encode() for token in _ours()), _WORDS, st.deferred(_tokens))
CLAIMS = Target(
    "claims",
    check_claims,
    (
        b'{"alg":"HS256"}\n{"tenant":"acme","scope":["call"],"exp":4000000000}',
        b'{"alg":"HS256","typ":"JWT"}\n{"tenant":"acme","scope":"call mint","exp":4e9,"iss":"us","aud":["them"]}',
        b'{"alg":"HS256"}\n{"tenant":"acme","scope":[],"exp":1,"call":"c","resume_seconds":7200,"browser":true}',
        b'{"alg":"HS256","crit":["exp"],"kid":"x"}\n{"tenant":"acme","scope":[],"exp":4e9}',
        b'{"alg":"HS256","jwk":{}}\n{"tenant":"acme","scope":[],"exp":4e9,"agent":"a","plan":"p"}',
        b'{"alg":"HS256"}\n{"tenant":"acme","scope":[],"exp":4e9,"agent":"\\ud83d"}',
        b'{"alg":"HS256"}\n{"tenant":"acme","scope":[],"exp":4e9,"origin":"https://x","nbf":1,"iat":1,"session":false}',
    ),
    (
        *(
            b'"nbf":',
            b'"iat":',
            b'"exp":',
            b'"aud":',
            b'"iss":"us"',
            b'"tenant":',
            b'"scope":',
            b"null",
            b"1e400",
            b"NaN",
        ),
        *(
            b"[]",
            b"{}",
            b'"\\ud800"',
            b'"crit":[]',
            b'"kid":"x"',
            b'"b64":false',
            b'"call":"c"',
            b'"resume_seconds":9',
            b",",
        ),
        *(b"-1", b"4000000000", b'"none"', b'"RS256"', b"true", b"Infinity", b'"sub":5', b'"agent":"a"', b"1" * 400),
    ),
    st.builds(lambda head, payload: f"{json.dumps(head)}\n{json.dumps(payload)}".encode(), _HEADS, _PAYLOADS),
)


@cache
def _entries() -> tuple[dict[str, Any], ...]:
    return tuple(signer(name, name).public() for name in ALGORITHMS)


_PARTS = st.sampled_from(
    ["AQAB", "AQ", "Ag", "", "!", "A" * 43, "é", "_" * 1400, "_" * 1401, None, 5, "P-384", "EC", "OKP", "sig"]
)
_ENTRIES = st.builds(
    lambda place, over: _entries()[place] | over,
    st.integers(0, 2),
    st.dictionaries(
        st.sampled_from(["kty", "kid", "use", "key_ops", "alg", "crv", "n", "e", "x", "y", "d"]), _PARTS, max_size=3
    ),
)
KEY_SETS = Target(
    "key sets",
    check_key_set,
    (
        key_set(*_entries()),
        *(key_set(entry) for entry in _entries()),
        key_set(),
        key_set(signer("p", "EdDSA").private(), _entries()[0] | {"n": "_" * 1500}),
    ),
    (
        *(
            b'"kty":"RSA"',
            b'"kty":"EC"',
            b'"kty":"OKP"',
            b'"crv":"P-256"',
            b'"e":"AQAB"',
            b'"use":"enc"',
            b'"alg":"RS256"',
        ),
        *(
            b"null",
            b"[]",
            b"{}",
            b",",
            b'"keys":[',
            b'"n":"',
            b'"x":"',
            b'"',
            b'"d":"AQ"',
            b'"key_ops":["verify"]',
            b"AQ",
        ),
    ),
    st.lists(_ENTRIES, max_size=4).map(lambda entries: key_set(*entries)),
)
