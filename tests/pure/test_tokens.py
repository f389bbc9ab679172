"""Tokens: what is accepted, what is refused, and that a refusal shows nothing of the token."""

import time
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.keys import TOKEN_BYTES, Keyring, UnknownKey
from relay.tokens import BadToken, Claims, mint

NEW, OLD, FOREIGN = "new-" * 8, "old-" * 8, "foreign-" * 4
HOUR = 3600.0


def payload(**changes: Any) -> dict[str, Any]:
    """A good token's claims; what is changed to None is left out."""
    claims = {"tenant": "acme", "scope": ["call"], "exp": int(time.time() + HOUR), **changes}
    return {key: value for key, value in claims.items() if value is not None}


def signed(key: Any = NEW, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(payload(**changes), key, algorithm=algorithm)


def verify(token: str, secrets: Sequence[str], **expected: str) -> Claims | UnknownKey:
    return Keyring(secrets, **expected).verify(token)


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


def test_a_token_needs_three_claims_and_names_no_agent_without_the_fourth():
    """Any JWT library can make one; which agent it is then is for the call to say."""
    assert verify(signed(), [NEW]) == Claims("acme", frozenset({"call"}), agent=None)


def test_a_client_token_is_known_by_its_prefix():
    """OpenAI's SDKs accept no other in a browser; the node holds it to tighter limits."""
    assert verify("ek_" + signed(), [NEW]).browser
    assert not verify(signed(), [NEW]).browser


@pytest.mark.parametrize("claims", [{"browser": True}, {"origin": "https://shop.example"}], ids=["browser", "origin"])
def test_a_client_token_stays_one_when_its_prefix_is_taken_off(claims):
    """The prefix is not under the signature: a page that strips it must not become a backend."""
    token = mint(NEW, tenant="acme", scope=["call"], expires_at=time.time() + HOUR, **claims)
    assert verify(token, [NEW]).browser


@pytest.mark.parametrize(
    "scope", [["call", "read"], "call read", " read  call "], ids=["list", "OAuth's string", "loose string"]
)
def test_a_scope_is_a_list_or_one_string_with_spaces(scope):
    """OAuth servers write the second (RFC 8693, section 4.2)."""
    assert verify(signed(scope=scope), [NEW]).scope == {"call", "read"}


def test_a_tenant_has_at_most_128_printable_characters():
    """It becomes part of names; a line break in it would forge log lines."""
    for tenant in ("é" * 128, "a", "org 7/team@x"):
        assert verify(signed(tenant=tenant), [NEW]).tenant == tenant
    for tenant in ("a" * 129, "a\nb", "\x00", "\u2028", "\ud800"):
        with pytest.raises(BadToken, match="'tenant'"):
            verify(signed(tenant=tenant), [NEW])


def test_an_origin_is_a_claim_like_the_others():
    """Whoever mints for one site's pages says so; what it means is the gatekeeper's."""
    token = mint(NEW, tenant="acme", scope=["call"], expires_at=time.time() + HOUR, origin="https://shop.example")
    assert verify(token, [NEW]).origin == "https://shop.example"


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "us", "aud": "relay"}, None),
        ({"iss": "us", "aud": ["other", "relay"]}, None),
        ({"aud": "relay"}, "'iss'"),
        ({"iss": "us"}, "'aud'"),
        ({"iss": "them", "aud": "relay"}, "'iss'"),
        ({"iss": "", "aud": "relay"}, "'iss'"),
        ({"iss": "us", "aud": "other"}, "'aud'"),
        ({"iss": "us", "aud": "relay2"}, "'aud'"),
        ({"iss": "us", "aud": []}, "'aud'"),
        ({"iss": "us", "aud": {"relay": 1}}, "'aud'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_issuer_and_audience_are_checked_in_every_token_where_they_are_configured(claims, reason):
    """A token that the same server signed for somebody else must open nothing here."""
    token = signed(**claims)
    assert verify(token, [NEW]).tenant == "acme"
    if reason is None:
        assert verify(token, [NEW], issuer="us", audience="relay").tenant == "acme"
    else:
        with pytest.raises(BadToken, match=reason):
            verify(token, [NEW], issuer="us", audience="relay")


def test_a_minted_token_says_who_issued_it_and_for_whom():
    """Else a node would refuse its own keys where issuer and audience are configured."""
    ours = {"issuer": "us", "audience": "relay"}
    token = mint(NEW, tenant="acme", scope=["call"], expires_at=time.time() + HOUR, **ours)
    assert verify(token, [NEW], **ours).tenant == "acme"
    with pytest.raises(BadToken, match="'aud'"):
        verify(token, [NEW], issuer="us", audience="other")


def test_an_expired_client_token_for_others_resumes_nothing():
    """The way of an expired token skips no check."""
    claims = {"call": "rtc_iad_x", "resume_seconds": 3600, "exp": int(time.time() - 60), "iss": "them"}
    assert verify(signed(**claims), [NEW], issuer="them").resumes
    with pytest.raises(BadToken, match="expired"):
        verify(signed(**claims), [NEW], issuer="us")


@pytest.mark.parametrize(
    ("resume_seconds", "call"),
    [(30, "rtc_iad_x"), (0, "rtc_iad_x"), (-1, "rtc_iad_x"), ("3600", "rtc_iad_x"), (3600, None)],
    ids=["over too", "none", "negative", "a string", "for no call"],
)
def test_an_expired_token_resumes_its_own_call_for_the_time_that_it_names_and_no_longer(resume_seconds, call):
    """It is for whoever is in a call already."""
    with pytest.raises(BadToken, match="expired"):
        verify(signed(exp=int(time.time() - 60), resume_seconds=resume_seconds, call=call), [NEW])


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_token_of_the_future_is_not_valid_yet(claim):
    """But clocks may differ by five seconds."""
    assert verify(signed(**{claim: int(time.time() + 3)}), [NEW])
    with pytest.raises(BadToken, match="not valid yet"):
        verify(signed(**{claim: int(time.time() + 60)}), [NEW])


def test_a_token_that_is_too_long_is_refused_before_it_is_read():
    """Decoding is work that anybody could ask for."""
    long = signed(note="x" * 5950)
    assert TOKEN_BYTES - 200 < len(long) < TOKEN_BYTES - 3
    assert verify("ek_" + long, [NEW])
    for token in (signed(note="x" * 6800), "." * 1_000_000, "ek_" + "é" * 9000):
        with pytest.raises(BadToken, match="longer than 8192"):
            verify(token, [NEW])


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
    [unsigned, relabelled, tampered, lambda: signed(FOREIGN), lambda: signed(NEW * 2, "HS512")],
    ids=["none", "relabelled", "tampered", "foreign secret", "HS512"],
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
        ({"scope": [1]}, "'scope'"),
        ({"scope": {"call": True}}, "'scope'"),
        ({"agent": 7}, "'agent'"),
        ({"agent": ""}, "'agent'"),
        ({"origin": ["https://a.example"]}, "'origin'"),
        ({"browser": "yes"}, "'browser'"),
        ({"plan": []}, "'plan'"),
        ({"call": {}}, "'call'"),
        ({"jti": 7}, "malformed"),
        ({"jti": "j" * 257}, "'jti'"),
        ({"jti": "two\nlines"}, "'jti'"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": 1e400}, "malformed"),
        ({"nbf": "soon"}, "malformed"),
    ],
    ids=lambda value: ascii(value)[:40] if isinstance(value, dict) else "",
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
