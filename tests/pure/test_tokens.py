"""Tokens: what is accepted, what is refused, and that a refusal shows nothing of the token."""

import time
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from relay.admission import Refused
from relay.tokens import BadToken, Claims, authenticate, mint, verify

NEW, OLD, FOREIGN = "new-" * 8, "old-" * 8, "foreign-" * 4
HOUR = 3600.0


def payload(**changes: Any) -> dict[str, Any]:
    """A good token's claims; what is changed to None is left out."""
    claims = {"tenant": "acme", "scope": ["call"], "exp": int(time.time() + HOUR), **changes}
    return {key: value for key, value in claims.items() if value is not None}


def signed(key: Any = NEW, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(payload(**changes), key, algorithm=algorithm)


def test_what_was_minted_is_what_is_read():
    """One module writes and reads."""
    claims = {"agent": "support", "plan": "pro", "call": "rtc_iad_x", "jti": "j1"}
    token = mint(NEW, tenant="acme", scope=["call", "read"], expires_at=time.time() + HOUR, **claims)
    assert verify(token, [NEW]) == Claims("acme", frozenset({"call", "read"}), **claims)


def test_a_client_secret_says_whether_its_call_has_a_session_of_its_own():
    """Then the call must not begin without it; what is None is left out."""
    token = mint(NEW, tenant="acme", scope=["call"], expires_at=time.time() + HOUR, session=True, plan=None)
    assert verify(token, [NEW]) == Claims("acme", frozenset({"call"}), session=True)
    with pytest.raises(BadToken, match="session"):
        verify(signed(session="yes"), [NEW])


def test_a_token_without_optional_claims_has_the_default_agent():
    """Any JWT library can make one from the three required claims."""
    assert verify(signed(), [NEW]) == Claims("acme", frozenset({"call"}), agent="default")


def test_a_client_token_is_known_by_its_prefix():
    """OpenAI's SDKs accept no other in a browser; the node holds it to tighter limits."""
    assert verify("ek_" + signed(), [NEW]).browser
    assert not verify(signed(), [NEW]).browser


@pytest.mark.parametrize("secret", [NEW, OLD], ids=["new", "old"])
@pytest.mark.parametrize("secrets", [(NEW, OLD), (OLD, NEW)], ids=["new first", "old first"])
def test_any_of_the_secrets_may_have_signed(secret, secrets):
    """A secret is rotated by configuring both for a while."""
    assert verify(signed(secret), secrets).tenant == "acme"


def test_a_secret_that_is_gone_signs_no_more():
    """That is what the rotation is for; and with no secret there is no good token."""
    for secrets in ((NEW,), ()):
        with pytest.raises(BadToken, match="signature"):
            verify(signed(OLD), secrets)


@pytest.mark.parametrize("secrets", [(NEW,), (OLD, NEW)], ids=["one secret", "two"])
def test_an_expired_token_is_refused_with_the_reason(secrets):
    """Whichever secret signed it: "wrong signature" would send its owner the wrong way."""
    with pytest.raises(BadToken, match="expired"):
        verify(signed(exp=int(time.time() - 60)), secrets)


def test_clocks_may_differ_by_a_few_seconds():
    """The signer's and the node's are not the same."""
    assert verify(signed(exp=int(time.time() - 1)), [NEW])


def unsigned() -> str:
    return jwt.encode(payload(), None, algorithm="none")


def rs256() -> str:
    return signed(rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256")


def relabelled() -> str:
    """A good token whose header says that it needs no signature."""
    _, body, signature = signed().split(".")
    return ".".join((urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("="), body, signature))


def tampered() -> str:
    """A good signature under other claims."""
    head, _, signature = signed().split(".")
    return ".".join((head, signed(tenant="other").split(".")[1], signature))


@pytest.mark.parametrize(
    "make",
    [unsigned, rs256, relabelled, tampered, lambda: signed(FOREIGN), lambda: signed(NEW * 2, "HS512")],
    ids=["none", "RS256", "relabelled", "tampered", "foreign secret", "HS512"],
)
@pytest.mark.parametrize("prefix", ["", "ek_"], ids=["server", "browser"])
def test_only_an_hs256_signature_with_one_of_our_secrets_counts(make, prefix):
    """The token names its own algorithm, and must not have the choice."""
    with pytest.raises(BadToken):
        verify(prefix + make(), [NEW, OLD])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": None}, "'exp'"),
        ({"tenant": None}, "'tenant'"),
        ({"scope": None}, "'scope'"),
        ({"tenant": ""}, "'tenant'"),
        ({"tenant": 7}, "'tenant'"),
        ({"scope": "call"}, "'scope'"),
        ({"scope": [1]}, "'scope'"),
        ({"scope": {"call": True}}, "'scope'"),
        ({"agent": 7}, "'agent'"),
        ({"plan": []}, "'plan'"),
        ({"call": {}}, "'call'"),
        ({"jti": 7}, "malformed"),
        ({"exp": "soon"}, "malformed"),
        ({"nbf": int(time.time() + HOUR)}, "malformed"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_claim_that_is_missing_or_of_the_wrong_type_is_named(changes, reason):
    """Whoever signs tokens must find the mistake."""
    with pytest.raises(BadToken, match=reason):
        verify(signed(**changes), [NEW])


@given(
    st.text(st.characters(codec=None), max_size=40) | st.lists(st.sampled_from(["ek_", ".", "e30", "é"])).map("".join)
)
def test_whatever_comes_as_a_token_is_refused_and_nothing_else_happens(text):
    """It comes from the network; bytes that are no UTF-8 reach us as lone surrogates."""
    with pytest.raises(BadToken):
        verify(text, [NEW])


@pytest.mark.parametrize("text", ["\udcff", "ek_\udcff.e30.e30"], ids=ascii)
def test_a_header_that_is_not_utf8_is_a_bad_token(text):
    """aiohttp hands such bytes on as lone surrogates."""
    with pytest.raises(BadToken):
        verify(text, [NEW])


def test_a_refusal_shows_neither_token_nor_secret():
    """It goes to the client and into its logs."""
    for token in (signed(FOREIGN), "hunter2", signed(exp=1)):
        with pytest.raises(BadToken) as caught:
            verify(token, [NEW])
        assert token not in str(caught.value)
        assert NEW not in str(caught.value)


@pytest.mark.parametrize(
    ("token", "scope", "status", "code", "kind"),
    [
        (None, "call", 401, "missing_token", "authentication_error"),
        ("", "call", 401, "invalid_api_key", "authentication_error"),
        ("sk-proj-abc", "call", 401, "invalid_api_key", "authentication_error"),
        (signed(FOREIGN), "call", 401, "invalid_api_key", "authentication_error"),
        (signed(), "control", 403, "missing_scope", "permission_error"),
        (signed(scope=[]), "call", 403, "missing_scope", "permission_error"),
        (signed(scope=["calls", "CALL"]), "call", 403, "missing_scope", "permission_error"),
    ],
    ids=["none", "empty", "OpenAI's key", "foreign", "other scope", "no scope", "similar scopes"],
)
def test_without_a_good_token_it_is_401_and_without_the_scope_403(token, scope, status, code, kind):
    """As with OpenAI, so that SDKs raise their own exceptions for it."""
    with pytest.raises(Refused) as caught:
        authenticate(token, [NEW], scope)
    assert (caught.value.status, caught.value.code, caught.value.kind) == (status, code, kind)


def test_a_token_with_the_scope_may():
    """One of several is enough."""
    assert authenticate(signed(scope=["read", "call"]), [NEW], "call").tenant == "acme"
