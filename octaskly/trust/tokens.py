"""Tokens of the REST API: JWT, signed with a key that follows from the mesh secret.

Any member can mint and verify them without asking anybody. Time is always an
argument, in seconds since 1970.
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
"""What each role may do; `permissions` in a token only repeats it for people."""

INVALID: Final = "token is not valid"
EXPIRED: Final = "token expired"

_CLAIMS: Final = ["iss", "aud", "sub", "jti", "iat", "exp", "role", "permissions"]


@dataclass(frozen=True, slots=True)
class SessionOrigin:
    """That a token is of a page, which a user of a node's local socket opened."""

    node: str  #: id of that node
    started_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a verified token says."""

    subject: str
    role: str  #: a key of `PERMISSIONS`
    jti: str
    issued_s: int
    expires_s: int
    generation: int  #: of the secret that signed it
    session: SessionOrigin | None  #: None: it is of no page


class TokenSigner:
    """Mints and verifies the tokens of one mesh."""

    def __init__(self, secret: MeshSecret) -> None:
        self._issuer = secret.mesh_id
        self._audience = f"octaskly:{secret.mesh_id}"
        self._jwt = jwt.PyJWT({"enforce_minimum_key_length": True})
        self.use_secret(secret)

    def use_secret(self, secret: MeshSecret) -> None:
        """Accept tokens of these generations, and no others any more.

        Where the old secret has to go, those of it end at once, and new ones are of
        the newest: whoever has the old one could make them, too.
        """
        newest = secret.newest
        accepted = (newest,) if secret.is_urgent else secret.accepted
        self._keys = {str(number): secret.token_key(number) for number in accepted}
        self._kid = str(newest if secret.is_urgent else secret.generation)
        self._verified: dict[str, Claims] = {}

    @property
    def signing_generation(self) -> int:
        """That of the secret that signs."""
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
            subject: Whom it is for.
            role: `admin`, `client` or `viewer`.
            expires_s: Seconds for which it is good, at most 90 days.
            now_s: The time of minting.
            jti: Name of this token, unique in the mesh.
            session: The page that it is for.

        Raises:
            TrustError: the role is unknown, or a value is out of its range.
        """
        if role not in PERMISSIONS:
            raise TrustError(f"{role!r} is no role", hint="admin, client or viewer")
        if not 0 < expires_s <= EXPIRES_S_MAX:
            raise TrustError("a token is good for 1 second to 90 days")
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
        """Return what a token says.

        Raises:
            TrustError: `EXPIRED` if all but the time is right, else `INVALID`,
                whatever is wrong.
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
        """Whether tokens of this generation are good no more."""
        return generation < min(map(int, self._keys))

    def _cache_claims(self, token: str, claims: Claims) -> None:
        """Keep what was verified last; the oldest goes when there are too many."""
        self._verified.pop(token, None)
        self._verified[token] = claims
        if len(self._verified) > CACHE_MAX:
            del self._verified[next(iter(self._verified))]

    def _verify_signature(self, token: str) -> Claims:
        # The size comes first: nothing longer is worth a look.
        if len(token) > TOKEN_BYTES_MAX:
            raise TrustError(INVALID)
        try:
            kid = jwt.get_unverified_header(token).get("kid", "")
            return _validate_claims(self._decode(token, kid), int(kid))
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            # No cause and one text: a forger learns nothing from it.
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
                # The caller's clock decides, not the one that the library reads.
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        return claims


def _validate_claims(claims: dict[str, Any], generation: int) -> Claims:
    """Return the claims; ValueError where the library is too generous."""
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
