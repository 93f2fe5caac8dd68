"""Tokens: minted ones verify, and all others are refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from octaskly.errors import TrustError
from octaskly.trust.mesh_secret import MeshSecret, generate_secret
from octaskly.trust.tokens import CACHE_MAX, EXPIRED, INVALID, TokenSigner

NOW_S = 1_790_000_000
DAY_S = 86_400
SECRET = generate_secret()
KEY = SECRET.token_key(1)
GOOD: dict[str, Any] = {
    "iss": SECRET.mesh_id,
    "aud": f"octaskly:{SECRET.mesh_id}",
    "sub": "me",
    "jti": "j",
    "iat": NOW_S,
    "exp": NOW_S + DAY_S,
    "role": "client",
    "permissions": ["read"],
}


def mint(tokens: TokenSigner, **changes: Any) -> str:
    asked: dict[str, Any] = {
        "subject": "me",
        "role": "client",
        "expires_s": DAY_S,
        "now_s": NOW_S,
        "jti": "j",
    }
    return tokens.sign_token(**(asked | changes))


def forge(
    key: Any = KEY, algorithm: str = "HS256", kid: Any = "1", **changes: Any
) -> str:
    """Return a token with some claims changed; those set to None are left out."""
    claims = {k: v for k, v in (GOOD | changes).items() if v is not None}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid})


def by_hand(
    header: dict[str, Any], claims: dict[str, Any], signature: bytes = b""
) -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(p).decode().rstrip("=") for p in parts)


@pytest.mark.parametrize("role", ["admin", "client", "viewer"])
def test_a_minted_token_carries_subject_and_role(role: str) -> None:
    """Every member of the mesh accepts it, not only its issuer."""
    token = mint(TokenSigner(SECRET), role=role)

    claims = TokenSigner(SECRET).verify_token(token, NOW_S)

    assert (claims.subject, claims.role, claims.jti) == ("me", role, "j")
    assert claims.expires_s == NOW_S + DAY_S


def test_the_claims_match_the_documentation() -> None:
    """Other programs may read them."""
    claims = jwt.decode(mint(TokenSigner(SECRET)), options={"verify_signature": False})

    assert claims == GOOD | {"permissions": ["read", "submit"]}


def test_the_forgery_helper_can_make_a_valid_token() -> None:
    """Otherwise the refusals below would prove nothing."""
    assert TokenSigner(SECRET).verify_token(forge(), NOW_S).subject == "me"


FORGERIES = {
    "empty": "",
    "no token": "hello",
    "two parts": "a.b",
    "not base64": "é.é.é",
    "alg none": by_hand({"alg": "none", "kid": "1"}, GOOD),
    "alg None": by_hand({"alg": "None", "kid": "1"}, GOOD),
    "no alg": by_hand({"kid": "1"}, GOOD),
    "header is a list": by_hand([1], GOOD),  # type: ignore[arg-type]
    "claims are a list": jwt.api_jws.encode(b"[1]", KEY, "HS256", {"kid": "1"}),
    "cut signature": forge()[:-2],
    "other mesh's key": forge(generate_secret().token_key(1)),
    "other algorithm": forge(KEY * 2, "HS512"),
    "public key algorithm": forge(generate_private_key(SECP256R1()), "ES256"),
    "no kid": jwt.encode(GOOD, KEY, "HS256"),
    "unknown kid": forge(kid="2"),
    "kid with a path": forge(kid="../1"),
    "kid is a list": by_hand({"alg": "HS256", "kid": ["1"]}, GOOD),
    "critical header": jwt.encode(
        GOOD, KEY, "HS256", headers={"kid": "1", "crit": ["x"], "x": 1}
    ),
    "no exp": forge(exp=None),
    "no iat": forge(iat=None),
    "no aud": forge(aud=None),
    "no iss": forge(iss=None),
    "no sub": forge(sub=None),
    "no jti": forge(jti=None),
    "no role": forge(role=None),
    "exp is text": forge(exp=str(NOW_S + 60)),
    "exp is a float": forge(exp=NOW_S + 60.5),
    "exp is true": forge(exp=True),
    "exp is huge": forge(exp=10**18),
    "exp before iat": forge(exp=NOW_S - 1),
    "longer than 90 days": forge(exp=NOW_S + 90 * DAY_S + 1),
    "iat is text": forge(iat=str(NOW_S)),
    "from the future": forge(iat=NOW_S + 31),
    "other audience": forge(aud="octaskly:0000000000000000"),
    "list of audiences": forge(aud=[GOOD["aud"]]),
    "other mesh": forge(iss="0000000000000000"),
    "sub is a number": by_hand({"alg": "HS256", "kid": "1"}, GOOD | {"sub": 5}),
    "empty sub": forge(sub=""),
    "long sub": forge(sub="x" * 257),
    "unknown role": forge(role="root"),
    "role is a list": forge(role=["admin"]),
    "too long": forge(padding="x" * 4096),
    "forged and expired": forge(generate_secret().token_key(1), exp=NOW_S - 100),
}


@pytest.mark.parametrize("token", FORGERIES.values(), ids=FORGERIES.keys())
def test_every_forgery_is_refused_with_the_same_text(token: str) -> None:
    """A forger learns nothing from the answer."""
    with pytest.raises(TrustError) as caught:
        TokenSigner(SECRET).verify_token(token, NOW_S)

    assert str(caught.value) == INVALID
    assert caught.value.__cause__ is None


def test_an_expired_token_is_refused_as_expired() -> None:
    """Its owner did nothing wrong and only needs a new one."""
    tokens = TokenSigner(SECRET)
    token = mint(tokens, expires_s=60)

    assert tokens.verify_token(token, NOW_S + 60 + 29).subject == "me"
    with pytest.raises(TrustError, match=EXPIRED):
        tokens.verify_token(token, NOW_S + 60 + 30)
    with pytest.raises(TrustError, match=EXPIRED):
        TokenSigner(SECRET).verify_token(token, NOW_S + 60 + 30)


def test_a_cached_token_is_still_checked_for_its_time() -> None:
    """The cache spares the signature, never the clock."""
    tokens = TokenSigner(SECRET)
    token = mint(tokens, expires_s=60)
    tokens.verify_token(token, NOW_S)

    with pytest.raises(TrustError, match=EXPIRED):
        tokens.verify_token(token, NOW_S + 1000)


def test_the_token_cache_is_bounded() -> None:
    """A client with many tokens cannot fill the agent's memory."""
    tokens = TokenSigner(SECRET)
    for i in range(CACHE_MAX + 10):
        tokens.verify_token(mint(tokens, jti=str(i)), NOW_S)

    assert len(tokens._verified) == CACHE_MAX


def test_a_forgery_is_never_cached() -> None:
    """It would be accepted the second time."""
    tokens = TokenSigner(SECRET)
    for _ in range(2):
        with pytest.raises(TrustError):
            tokens.verify_token(FORGERIES["other mesh's key"], NOW_S)


def test_tokens_of_an_older_generation_still_verify() -> None:
    """Renewing the secret does not lock everybody out at once."""
    newer = MeshSecret((*SECRET.generations, *generate_secret().generations))

    assert (
        TokenSigner(newer).verify_token(mint(TokenSigner(SECRET)), NOW_S).subject
        == "me"
    )
    assert jwt.get_unverified_header(mint(TokenSigner(newer)))["kid"] == "2"


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "root"},
        {"expires_s": 0},
        {"expires_s": 90 * DAY_S + 1},
        {"subject": ""},
        {"subject": "x" * 257},
        {"jti": ""},
    ],
    ids=str,
)
def test_a_token_that_would_not_verify_is_not_minted(changes: dict[str, Any]) -> None:
    """The error appears at the mint, not at the first use."""
    with pytest.raises(TrustError):
        mint(TokenSigner(SECRET), **changes)
