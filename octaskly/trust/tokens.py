"""API tokens: JWTs signed with a key that is derived from the mesh secret.

Any member can sign and verify them without contacting another node. Times are
arguments, in seconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import jwt

from octaskly.errors import TrustError
from octaskly.trust.mesh_secret import MeshSecret

ALGORITHM: Final = "HS256"
TOKEN_BYTES_MAX: Final = 4096
EXPIRES_S_MAX: Final = 90 * 86_400
LEEWAY_S: Final = 30
CACHE_MAX: Final = 1024
NAME_CHARS_MAX: Final = 256

PERMISSIONS: Final = {
    "admin": ("read", "submit", "admin"),
    "client": ("read", "submit"),
    "viewer": ("read",),
}
"""Permissions of each role; the claim `permissions` only shows them to people."""

INVALID: Final = "the token is incomplete, or not of this mesh"
EXPIRED: Final = "the token has expired"

_CLAIMS: Final = ["iss", "aud", "sub", "jti", "iat", "exp", "role", "permissions"]


@dataclass(frozen=True, slots=True)
class SessionOrigin:
    """The session of the web page that a token belongs to.

    A user of a node's local socket has opened it.
    """

    node: str  #: id of that node
    started_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The claims of a verified token."""

    subject: str
    role: str  #: a key of `PERMISSIONS`
    jti: str
    issued_s: int
    expires_s: int
    generation: int  #: of the secret that signed it
    session: SessionOrigin | None  #: None: it does not belong to a web page


class TokenSigner:
    """Signs and verifies the tokens of one mesh."""

    def __init__(self, secret: MeshSecret) -> None:
        self._issuer = secret.mesh_id
        self._audience = f"octaskly:{secret.mesh_id}"
        self._jwt = jwt.PyJWT({"enforce_minimum_key_length": True})
        self.use_secret(secret)

    def use_secret(self, secret: MeshSecret) -> None:
        """Accept tokens of these generations only.

        In an urgent renewal, tokens of older generations become invalid at once and the
        newest generation signs, because an attacker may have an older one.
        """
        newest = secret.newest
        accepted = (newest,) if secret.is_urgent else secret.accepted
        self._keys = {str(number): secret.token_key(number) for number in accepted}
        self._kid = str(newest if secret.is_urgent else secret.generation)
        self._verified: dict[str, Claims] = {}

    @property
    def signing_generation(self) -> int:
        """Number of the secret generation that signs."""
        return int(self._kid)

    def sign_token(
        self,
        *,
        subject: str,
        role: str,
        expires_s: int,
        now_s: float,
        jti: str,
        session: SessionOrigin | None = None,
    ) -> str:
        """Return a new token.

        Args:
            subject: The person or program that will use it.
            role: `admin`, `client` or `viewer`.
            expires_s: Lifetime in seconds, at most 90 days.
            now_s: The current time.
            jti: Name of this token, unique in the mesh.
            session: The web page session that it belongs to, if any.

        Raises:
            TrustError: The role is unknown, or a value is out of range.
        """
        if role not in PERMISSIONS:
            raise TrustError(
                f"{role!r} is not a role", hint="use admin, client or viewer"
            )
        if not 0 < expires_s <= EXPIRES_S_MAX:
            raise TrustError("the lifetime of a token is 1 second to 90 days")
        if not all(0 < len(text) <= NAME_CHARS_MAX for text in (subject, jti)):
            raise TrustError(f"a subject has 1 to {NAME_CHARS_MAX} characters")
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": subject,
            "jti": jti,
            "iat": int(now_s),
            "exp": int(now_s) + expires_s,
            "role": role,
            "permissions": list(PERMISSIONS[role]),
        }
        if session is not None:
            claims |= {"opened_on": session.node, "opened_at": session.started_s}
        return self._jwt.encode(
            claims, self._keys[self._kid], ALGORITHM, headers={"kid": self._kid}
        )

    def verify_token(self, token: str, now_s: float) -> Claims:
        """Return the claims of a valid token.

        Raises:
            TrustError: `EXPIRED` if only the time is wrong, else `INVALID`.
        """
        claims = self._verified.get(token)
        if claims is None:
            claims = self._verify_signature(token)
            if claims.issued_s > now_s + LEEWAY_S:
                raise TrustError(INVALID)
        if now_s >= claims.expires_s + LEEWAY_S:
            self._verified.pop(token, None)
            raise TrustError(EXPIRED)
        self._cache_claims(token, claims)
        return claims

    def is_generation_retired(self, generation: int) -> bool:
        """Return True if tokens of this generation are no longer accepted."""
        return generation < min(map(int, self._keys))

    def _cache_claims(self, token: str, claims: Claims) -> None:
        """Cache verified claims; drop the least recently used above `CACHE_MAX`."""
        self._verified.pop(token, None)
        self._verified[token] = claims
        if len(self._verified) > CACHE_MAX:
            del self._verified[next(iter(self._verified))]

    def _verify_signature(self, token: str) -> Claims:
        # The size is checked first, so that long input costs nothing.
        if len(token) > TOKEN_BYTES_MAX:
            raise TrustError(INVALID)
        try:
            kid = jwt.get_unverified_header(token).get("kid", "")
            return _validate_claims(self._decode(token, kid), int(kid))
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            # One text for all causes: a forger learns nothing from the error.
            raise TrustError(INVALID) from None

    def _decode(self, token: str, kid: str) -> dict[str, Any]:
        key = self._keys.get(kid)
        if key is None:
            raise ValueError(INVALID)
        claims: dict[str, Any] = self._jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=self._audience,
            issuer=self._issuer,
            options={
                "require": _CLAIMS,
                "strict_aud": True,
                # `verify_token` checks the times against the caller's clock.
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        return claims


def _validate_claims(claims: dict[str, Any], generation: int) -> Claims:
    """Check types and ranges that the library does not check; may raise ValueError."""
    issued_s, expires_s = claims["iat"], claims["exp"]
    subject, jti, role = claims["sub"], claims["jti"], claims["role"]
    if type(issued_s) is not int or type(expires_s) is not int:
        raise ValueError(INVALID)
    if not 0 < expires_s - issued_s <= EXPIRES_S_MAX:
        raise ValueError(INVALID)
    if type(role) is not str or role not in PERMISSIONS:
        raise ValueError(INVALID)
    for text in (subject, jti):
        if type(text) is not str or not 0 < len(text) <= NAME_CHARS_MAX:
            raise ValueError(INVALID)
    return Claims(
        subject=subject,
        role=role,
        jti=jti,
        issued_s=issued_s,
        expires_s=expires_s,
        generation=generation,
        session=_session_origin(claims),
    )


def _session_origin(claims: dict[str, Any]) -> SessionOrigin | None:
    node, at_s = claims.get("opened_on"), claims.get("opened_at")
    if node is None and at_s is None:
        return None
    if type(node) is not str or type(at_s) is not int:
        raise ValueError(INVALID)
    return SessionOrigin(node, at_s)
