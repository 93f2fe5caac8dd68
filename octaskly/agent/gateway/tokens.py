"""API tokens: issues, verifies, lists and revokes them.

Tokens are signed and not stored. A named token has a record, so that it can be listed
and revoked. A revocation is a record that every node applies.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import msgspec

from octaskly.agent.gateway.mesh_records import Records
from octaskly.core.log.facts import Recorded
from octaskly.core.log.mesh_records import KINDS, TOKEN, TOKEN_REVOKED, RecordDraft
from octaskly.core.model.field_types import Millis
from octaskly.core.model.ids import NodeId
from octaskly.errors import PermissionDenied, TokenExists, TokenNotFound, TrustError
from octaskly.ports.store import RecordQuery
from octaskly.ports.tokens import Principal, TokenInfo
from octaskly.system.clock import SystemClock
from octaskly.trust import TokenSigner
from octaskly.trust.tokens import EXPIRES_S_MAX, LEEWAY_S, SessionOrigin

SESSION_S: Final = 900  #: lifetime of a session token of the dashboard
SESSION_S_MAX: Final = 12 * 3600  #: lifetime of a session; then open the page again
UNNAMED_TOKEN_S_MAX: Final = 86_400  #: a token with a longer lifetime gets a name
REVOKED: Final = "the token was revoked"
OUTDATED_SECRET: Final = (
    "a token of an older secret cannot issue a token of the newer one"  # noqa: S105
)
SESSION_EXPIRED: Final = "the page was opened too long ago"
ISSUER_BYTES_MAX: Final = 160  #: of the issuing or revoking subject
_ID: Final = re.compile(r"[0-9a-f]{32}")


class _Body(msgspec.Struct, frozen=True):
    """The body of the records of a token and of its revocation; not secret."""

    name: str | None = None
    subject: str | None = None
    role: str | None = None
    issued_ms: Millis | None = None
    issued_by: str | None = None
    at_ms: Millis | None = None
    by: str | None = None


class TokenService:
    """The tokens of one mesh, as one node knows them.

    Args:
        signer: Signs and verifies; None on a node without a mesh.
        records: Stores named tokens and revocations.
        clock: Gives the time, and random digits for token ids.
        require_dispatcher: Raises NotDispatcher unless this node is dispatcher.
    """

    def __init__(
        self,
        signer: TokenSigner | None,
        records: Records,
        clock: SystemClock,
        require_dispatcher: Callable[[], None],
    ) -> None:
        self._signer = signer
        self._records = records
        self._clock = clock
        self._require_dispatcher = require_dispatcher
        self._revoked: dict[str, Recorded] = {}
        self._renewed_until_ms: dict[str, int] = {}
        """By token id, when the latest token that a page got here expires."""
        self._issue_lock = asyncio.Lock()
        records.subscribe(TOKEN_REVOKED, self._on_revocation)

    def verify(self, token: str) -> Principal:
        """Return the principal of a token.

        Raises:
            TrustError: the token is invalid, expired or revoked.
        """
        signer, now_ms = self._require_signer(), self._now_ms()
        claims = signer.verify_token(token, now_ms / 1000)
        if claims.jti in self._revoked:
            raise TrustError(REVOKED)
        opened = claims.session
        return Principal(
            subject=claims.subject,
            role=claims.role,
            token=claims.jti,
            expires_ms=(claims.expires_s + LEEWAY_S) * 1000,
            generation=claims.generation,
            session_node=None if opened is None else NodeId(opened.node),
            session_started_s=None if opened is None else opened.started_s,
        )

    def is_valid(self, principal: Principal) -> bool:
        """Return True if a token is not expired, revoked or of a retired generation.

        A long request of a page, such as an upload, began with a token that the page
        has renewed since.
        """
        expires_ms, generation = principal.expires_ms, principal.generation
        renewed_ms = self._renewed_until_ms.get(principal.token or "", 0)
        is_over = (
            expires_ms is not None and max(expires_ms, renewed_ms) <= self._now_ms()
        )
        if generation is not None and self._signer is not None:
            is_over = is_over or self._signer.is_generation_retired(generation)
        return not is_over and principal.token not in self._revoked

    async def issue(
        self,
        *,
        role: str,
        expires_s: int,
        subject: str | None,
        name: str | None,
        by: Principal,
    ) -> tuple[str, TokenInfo]:
        """Return a new token and its public information."""
        self._require_dispatcher()
        signer, now_ms = self._require_signer(), self._now_ms()
        # Otherwise the holder of a replaced secret could get a token of the new one.
        if by.generation is not None and by.generation < signer.signing_generation:
            raise PermissionDenied(
                OUTDATED_SECRET, hint="octaskly token create    on a member"
            )
        jti = self._clock.hex_digits(32)
        subject = subject or name or by.subject
        if name is None and expires_s > UNNAMED_TOKEN_S_MAX:
            name = f"{role}-{jti[:8]}"
        info = TokenInfo(
            id=jti,
            name=name,
            subject=subject,
            role=role,
            issued_ms=now_ms,
            expires_ms=(now_ms // 1000 + expires_s) * 1000,
            issued_by=_truncate_subject(by.subject),
        )
        token = signer.sign_token(
            subject=subject,
            role=role,
            expires_s=expires_s,
            now_s=now_ms / 1000,
            jti=jti,
        )
        if name is not None:
            await self._record_token(info)
        return token, info

    def issue_session_token(
        self, *, subject: str, role: str, node: NodeId
    ) -> tuple[str, TokenInfo]:
        """Return a short-lived token for a dashboard page opened at this node."""
        opened = SessionOrigin(node, self._now_ms() // 1000)
        return self._session_token(subject, role, self._clock.hex_digits(32), opened)

    def renew_session_token(self, principal: Principal) -> tuple[str, TokenInfo]:
        """Return a new token with the same id and a later expiry."""
        node, opened_s = principal.session_node, principal.session_started_s
        if principal.token is None or node is None or opened_s is None:
            raise PermissionDenied(
                "this is not a session token",
                hint="only a page that `octaskly open` opened renews its token",
            )
        is_older = principal.generation != self._require_signer().signing_generation
        if is_older or self._now_ms() // 1000 >= opened_s + SESSION_S_MAX:
            raise TrustError(SESSION_EXPIRED, hint="open the page again: octaskly open")
        opened = SessionOrigin(node, opened_s)
        token, info = self._session_token(
            principal.subject, principal.role, principal.token, opened
        )
        now_ms = self._now_ms()
        self._renewed_until_ms = {
            jti: until_ms
            for jti, until_ms in self._renewed_until_ms.items()
            if until_ms > now_ms
        } | {info.id: (info.expires_ms or 0) + LEEWAY_S * 1000}
        return token, info

    def _session_token(
        self, subject: str, role: str, jti: str, origin: SessionOrigin
    ) -> tuple[str, TokenInfo]:
        now_s = self._now_ms() // 1000
        expires_s = min(SESSION_S, origin.started_s + SESSION_S_MAX - now_s)
        token = self._require_signer().sign_token(
            subject=subject,
            role=role,
            expires_s=expires_s,
            now_s=now_s,
            jti=jti,
            session=origin,
        )
        info = TokenInfo(
            id=jti,
            name=None,
            subject=subject,
            role=role,
            issued_ms=now_s * 1000,
            expires_ms=(now_s + expires_s) * 1000,
            issued_by=subject,
        )
        return token, info

    async def list_tokens(self) -> tuple[TokenInfo, ...]:
        """Return the tokens that have a name and have not expired, oldest first."""
        self._require_dispatcher()
        query = RecordQuery(kinds=(TOKEN,), limit=2 * KINDS[TOKEN].count_max)
        found = await self._records.read_page(query)
        infos = (self._info_of(record) for record in found)
        now_ms = self._now_ms()
        return tuple(i for i in infos if i.expires_ms and i.expires_ms > now_ms)

    async def revoke(self, ref: str, *, by: str) -> TokenInfo:
        """Revoke a token, by its name or id."""
        named = [
            info for info in await self.list_tokens() if ref in (info.name, info.id)
        ]
        # A revoked token and a later one may have the same name.
        info = next((i for i in named if i.revoked_ms is None), None)
        info = info or next(iter(named[-1:]), None)
        if info is None:
            if not _ID.fullmatch(ref):
                raise TokenNotFound(f"no token is called {ref[:80]!r}")
            info = self._unnamed_info(ref)
        if info.revoked_ms is None:
            now_ms = self._now_ms()
            expires_ms = info.expires_ms or now_ms + EXPIRES_S_MAX * 1000
            body = {"by": _truncate_subject(by), "at_ms": now_ms}
            until_ms = expires_ms + LEEWAY_S * 1000
            draft = RecordDraft(TOKEN_REVOKED, info.id, _pack_body(body), until_ms)
            await self._records.write_records(draft)
        return self._with_revocation(info)

    async def _record_token(self, info: TokenInfo) -> None:
        """Record a token; refuse the name of a token that is still valid."""
        async with self._issue_lock:
            for other in await self.list_tokens():
                if other.name == info.name and other.revoked_ms is None:
                    raise TokenExists(
                        f"a token named {info.name!r} already exists",
                        hint=f"choose another name, or `octaskly token revoke "
                        f"{info.name}` first",
                        field="$.name",
                    )
            body = {
                "name": info.name,
                "subject": info.subject,
                "role": info.role,
                "issued_ms": info.issued_ms,
                "issued_by": info.issued_by,
            }
            assert info.expires_ms is not None
            draft = RecordDraft(TOKEN, info.id, _pack_body(body), info.expires_ms)
            await self._records.write_records(draft)

    def _info_of(self, record: Recorded) -> TokenInfo:
        body = _unpack_body(record)
        return self._with_revocation(
            TokenInfo(
                id=record.key,
                name=body.name,
                subject=body.subject,
                role=body.role,
                issued_ms=body.issued_ms,
                expires_ms=record.expires_ms,
                issued_by=body.issued_by,
            )
        )

    def _unnamed_info(self, jti: str) -> TokenInfo:
        """Return the information on a token without a record: only its id."""
        return self._with_revocation(
            TokenInfo(
                id=jti,
                name=None,
                subject=None,
                role=None,
                issued_ms=None,
                expires_ms=None,
                issued_by=None,
            )
        )

    def _with_revocation(self, info: TokenInfo) -> TokenInfo:
        record = self._revoked.get(info.id)
        if record is None:
            return info
        body = _unpack_body(record)
        return replace(info, revoked_ms=body.at_ms, revoked_by=body.by)

    def _on_revocation(self, record: Recorded) -> None:
        """Refuse this token on this node from now on."""
        now_ms = self._now_ms()
        if len(self._revoked) >= KINDS[TOKEN_REVOKED].count_max:
            known = self._revoked.items()
            self._revoked = {jti: r for jti, r in known if r.expires_ms > now_ms}
        self._revoked[record.key] = record

    def _require_signer(self) -> TokenSigner:
        if self._signer is None:
            raise TrustError("this node is in no mesh")
        return self._signer

    def _now_ms(self) -> int:
        return self._clock.now().wall_ms


def _truncate_subject(text: str) -> str:
    """Return a subject cut to `ISSUER_BYTES_MAX`; clients may have chosen it."""
    return text.encode("utf-8", "replace")[:ISSUER_BYTES_MAX].decode("utf-8", "ignore")


def _pack_body(body: dict[str, Any]) -> bytes:
    return msgspec.json.encode(body)


def _unpack_body(record: Recorded) -> _Body:
    """Return the body of a record, or an empty one if it is invalid."""
    try:
        return msgspec.json.decode(record.body, type=_Body)
    except (msgspec.DecodeError, ValueError):
        return _Body()
