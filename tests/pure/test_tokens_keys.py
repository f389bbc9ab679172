"""Tokens that others signed: which key may prove which, and the tricks with which one has been passed for another."""

import contextlib
import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.keys import KEYS_MAX, BadKeySet, Keyring, UnknownKey, read_key_set
from relay.tokens import BadToken, Claims
from tests.support.signing import ALGORITHMS, Signer, key_set, signer

SECRET = "secret-" * 8


def ring(*entries: dict[str, Any], secrets: tuple[str, ...] = (), **expected: str) -> Keyring:
    return Keyring(secrets, read_key_set(key_set(*entries)), **expected)


def three() -> list[dict[str, Any]]:
    return [signer(algorithm.lower(), algorithm).public() for algorithm in ALGORITHMS]


def packed(part: Any) -> str:
    return urlsafe_b64encode(part if isinstance(part, bytes) else json.dumps(part).encode()).decode().rstrip("=")


def hs256(key: bytes, **headers: Any) -> str:
    """A token that is signed by hand, for the library refuses to sign with a public key."""
    body = signer("rs256").sign().split(".")[1]
    head = packed({"alg": "HS256", "typ": "JWT", **headers})
    signature = hmac.new(key, f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{packed(signature)}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("prefix", ["", "ek_"], ids=["server", "browser"])
def test_each_kind_of_key_proves_its_tokens(algorithm, prefix):
    """Beside the others, and beside a secret."""
    token = prefix + signer(algorithm.lower(), algorithm).sign(agent="support")
    claims = Claims("acme", frozenset({"call"}), agent="support", browser=bool(prefix))
    assert ring(*three(), secrets=(SECRET,)).verify(token) == claims


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_foreign_key_of_the_same_name_proves_nothing(algorithm):
    """Names are free to choose."""
    name = algorithm.lower()
    foreign = Signer(name, algorithm)
    with pytest.raises(BadToken, match="signature"):
        ring(*three()).verify(foreign.sign())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_name_that_is_not_in_the_set_is_an_unknown_key(algorithm):
    """It may be new: whoever holds the ring can ask for it."""
    assert ring(*three()).verify(signer("new", algorithm).sign()) == UnknownKey("new")
    assert ring().verify(signer(None, algorithm).sign()) == UnknownKey(None)


@pytest.mark.parametrize("pem", [signer("rs256").pem, signer("rs256").pem.strip()], ids=["as it is", "stripped"])
@pytest.mark.parametrize("secrets", [(), (SECRET,)], ids=["no secret", "a secret"])
def test_a_public_key_is_no_secret(pem, secrets):
    """The best-known trick: an HS256 token whose "secret" is the RSA key that everybody may read."""
    with pytest.raises(BadToken, match="signature"):
        ring(*three(), secrets=secrets).verify(hs256(pem, kid="rs256"))


def test_a_public_key_that_was_configured_as_a_secret_proves_nothing_either():
    """A mistake of the operator must not become a door."""
    pem = signer("rs256").pem.decode()
    with pytest.raises(BadToken):
        ring(*three(), secrets=(pem,)).verify(hs256(pem.encode()))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_proves_only_its_own_algorithm(algorithm):
    """Whatever the token's header says."""
    other = next(name for name in ALGORITHMS if name != algorithm)
    token = (
        signer("rs256").sign({"kid": algorithm.lower()})
        if algorithm != "RS256"
        else signer("x", other).sign({"kid": "rs256"})
    )
    with pytest.raises(BadToken, match="algorithm"):
        ring(*three()).verify(token)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", "RS512", "PS256", "ES384", "HS384", "hs256"])
@pytest.mark.parametrize("signature", ["", "AAAA"], ids=["unsigned", "signed somehow"])
def test_no_other_algorithm_is_known(algorithm, signature):
    """`none` in any spelling among them."""
    body = signer("rs256").sign().split(".")[1]
    token = f"{packed({'alg': algorithm, 'kid': 'rs256'})}.{body}.{signature}"
    with pytest.raises(BadToken, match="algorithm"):
        ring(*three(), secrets=(SECRET,)).verify(token)


@pytest.mark.parametrize("value", [None, 7, ["RS256"], {"RS256": 1}, True], ids=repr)
def test_an_algorithm_that_is_no_string_is_refused(value):
    """And nothing breaks."""
    body = signer("rs256").sign().split(".")[1]
    with pytest.raises(BadToken, match="algorithm"):
        ring(*three()).verify(f"{packed({'alg': value, 'kid': 'rs256'})}.{body}.AAAA")


@pytest.mark.parametrize(
    "headers",
    [
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/chain"},
        {"x5c": ["MIIB"]},
        {"jwk": signer("mine").public()},
        {"crit": ["b64"]},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
    ],
    ids=lambda headers: "+".join(headers) + str(headers.get("crit", "")),
)
def test_a_token_brings_no_key_and_no_extension(headers):
    """Good signature or not: whoever writes such headers wants the reader to do something that it won't."""
    _, body, _ = signer("rs256").sign().split(".")
    head = packed({"alg": "RS256", "kid": "rs256"} | headers)
    for signs in (signer("rs256"), signer("mine")):
        with pytest.raises(BadToken, match="may not have|malformed"):
            ring(*three()).verify(signs.sign_raw(head, body))


@pytest.mark.parametrize(
    "kid",
    ["../../../../dev/null", "/etc/passwd", "' OR 1=1 --", "rs256\x00", "rs256 ", "RS256", "", "é" * 500, "${env:X}"],
)
def test_a_name_is_compared_and_nothing_else(kid):
    """No file, no query, no pattern: such names are just unknown, with a public key or with an empty one."""
    assert ring(*three()).verify(signer("rs256").sign({"kid": kid})) == UnknownKey(kid)
    with pytest.raises(BadToken, match="signature"):
        ring(*three(), secrets=(SECRET,)).verify(hs256(b"", kid=kid))


@pytest.mark.parametrize("kid", [7, ["rs256"], {"a": 1}, None], ids=repr)
def test_a_name_that_is_no_string_is_refused(kid):
    """It cannot be looked up."""
    _, body, signature = signer("rs256").sign().split(".")
    with pytest.raises(BadToken, match="malformed"):
        ring(*three()).verify(f"{packed({'alg': 'RS256', 'kid': kid})}.{body}.{signature}")


def test_a_token_without_a_name_needs_a_set_with_one_key_of_its_kind():
    """Small servers have one key and name nothing; with two, trying them all would be guessing."""
    token = signer(None).sign()
    assert ring(signer(None).public(), *three()[1:]).verify(token)
    with pytest.raises(BadToken, match="'kid'"):
        ring(signer(None).public(), *three()).verify(token)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_issuer_audience_and_times_count_for_public_keys_too(algorithm):
    """One way of reading claims, whoever signed."""
    signs = signer(algorithm.lower(), algorithm)
    strict = ring(*three(), issuer="us", audience="relay")
    assert strict.verify(signs.sign(iss="us", aud=["relay", "other"]))
    for claims in ({"iss": "us"}, {"aud": "relay"}, {"iss": "us", "aud": "x"}, {"iss": "x", "aud": "relay"}):
        with pytest.raises(BadToken, match="'iss'|'aud'"):
            strict.verify(signs.sign(**claims))
    for claims in ({"exp": 1}, {"nbf": 4_000_000_000}, {"iat": 4_000_000_000}):
        with pytest.raises(BadToken, match=r"expired|not valid yet"):
            ring(*three()).verify(signs.sign(**claims))


@pytest.mark.parametrize(
    "entry",
    [
        signer("rs256").public(use="enc"),
        signer("rs256").public(key_ops=["encrypt"]),
        signer("rs256").public(alg="RS512"),
        signer("rs256").public(alg="RSA-OAEP"),
        signer("rs256").public(alg="HS256"),
        signer("rs256", bits=1024).public(),
        signer("rs256").public(n="AQAB"),
        signer("rs256").public(n=packed(((1 << 16000) + 1).to_bytes(2001, "big"))),
        signer("rs256").public(e="AA"),
        signer("rs256").public(n=7),
        {**signer("rs256").public(), "n": None},
        {"kty": "oct", "kid": "rs256", "k": packed(SECRET.encode())},
        signer("rs256", "ES384").public(),
        signer("rs256", "ES256").public(x="AAAA"),
        signer("rs256", "ES256").public(y=signer("es256", "ES256").public()["x"]),
        signer("rs256", "EdDSA").public(x="AAAA"),
        signer("rs256", "EdDSA").public(crv="X25519"),
        signer("rs256").public(kty="EC"),
        signer("rs256").public(kid=7),
        {"kty": "RSA", "kid": "rs256"},
        {"kid": "rs256"},
    ],
    ids=lambda entry: ",".join(sorted(entry)),
)
def test_a_key_that_cannot_prove_signatures_is_left_out_and_the_others_count(entry):
    """A set holds keys for other purposes; one broken entry must not lock everybody out."""
    keys = read_key_set(key_set(entry, signer("es256", "ES256").public()))
    assert [(key.kid, key.algorithm) for key in keys] == [("es256", "ES256")]


@pytest.mark.parametrize(
    "more", [{"use": "sig"}, {"alg": "RS256"}, {"key_ops": ["verify"]}, {"x5c": ["MIIB"], "x5t": "AA"}], ids=str
)
def test_a_key_may_say_what_it_is_for(more):
    """As the key sets of real servers do."""
    assert ring(signer("rs256").public(**more)).verify(signer("rs256").sign())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_private_key_in_a_set_is_taken_for_its_public_half(algorithm):
    """A server's blunder: what it gave away is not read."""
    signs = signer(algorithm.lower(), algorithm)
    assert ring(signs.private()).verify(signs.sign())
    assert "d" in signs.private()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<!doctype html>",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": null}',
        b"\xff\xfe",
        b'{"keys": [',
        b"[" * 9999,
    ],
    ids=["empty", "HTML", "list", "no keys", "keys is no list", "null", "no text", "cut off", "deep"],
)
def test_what_is_no_key_set_is_refused(body):
    """An error page with HTTP 200, for one."""
    with pytest.raises(BadKeySet):
        read_key_set(body)


def test_entries_that_are_no_keys_are_left_out():
    """Whatever they are."""
    entries = [None, 7, "x", [], {}, {"kty": ["RSA"]}, {"kty": "RSA", "crv": {}}, signer("rs256").public()]
    assert [key.kid for key in read_key_set(json.dumps({"keys": entries}).encode())] == ["rs256"]
    assert read_key_set(key_set()) == ()


def test_a_set_has_at_most_a_hundred_keys():
    """More is no set of signing keys, and each costs time."""
    entry = signer("es256", "ES256").public()
    assert len(read_key_set(key_set(*[entry] * KEYS_MAX))) == KEYS_MAX
    with pytest.raises(BadKeySet, match="101"):
        read_key_set(key_set(*[entry] * (KEYS_MAX + 1)))


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_whatever_a_server_sends_is_a_key_set_or_refused(body):
    """It is theirs, and nothing else may come of it."""
    with contextlib.suppress(BadKeySet):
        assert read_key_set(body) == ()


def test_neither_keys_nor_secrets_are_shown():
    """Rings and keys may end up in a traceback."""
    held = ring(*three(), secrets=(SECRET,))
    assert SECRET not in repr(held)
    assert signer("rs256").public()["n"] not in repr(read_key_set(key_set(*three())))
