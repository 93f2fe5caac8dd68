"""A token service in memory; it passes the contract tests of the real one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from octaskly.core.model.ids import NodeId
from octaskly.errors import PermissionDenied, TokenExists, TokenNotFound, TrustError
from octaskly.ports.tokens import Principal, TokenInfo

DAY_S = 86_400
PAGE_S = 900
PAGE_S_MAX = 12 * 3600
ID_CHARS = 32


class FakeTokens:
    """Issues tokens with readable content; a test may revoke any of them."""

    def __init__(self, now_ms: int, require_dispatcher: Callable[[], None]) -> None:
        self.now_ms = now_ms
        self.revoked: set[str] = set()
        self.pages = 0
        self._require_dispatcher = require_dispatcher
        self._infos: dict[str, TokenInfo] = {}

    async def issue(
        self,
        *,
        role: str,
        expires_s: int,
        subject: str | None,
        name: str | None,
        by: Principal,
    ) -> tuple[str, TokenInfo]:
        self._require_dispatcher()
        if any(info.name == name for info in self._good()):
            raise TokenExists(f"a token named {name!r} already exists", field="$.name")
        jti = f"{len(self._infos):0{ID_CHARS}x}"
        subject = subject or name or by.subject
        if name is None and expires_s > DAY_S:
            name = f"{role}-{jti[:8]}"
        info = self._infos[jti] = TokenInfo(
            id=jti,
            name=name,
            subject=subject,
            role=role,
            issued_ms=self.now_ms,
            expires_ms=self.now_ms + expires_s * 1000,
            issued_by=by.subject,
        )
        return f"{role}:{subject}:{expires_s}", info

    async def list_tokens(self) -> tuple[TokenInfo, ...]:
        self._require_dispatcher()
        return tuple(
            info
            for info in self._infos.values()
            if info.name and (info.expires_ms or 0) > self.now_ms
        )

    async def revoke(self, ref: str, *, by: str) -> TokenInfo:
        self._require_dispatcher()
        infos = [info for info in self._infos.values() if ref in (info.id, info.name)]
        infos.sort(key=lambda info: info.revoked_ms is not None)
        if not infos:
            if len(ref) != ID_CHARS:
                raise TokenNotFound(f"no token is called {ref!r}")
            infos = [
                TokenInfo(
                    id=ref,
                    name=None,
                    subject=None,
                    role=None,
                    issued_ms=None,
                    expires_ms=None,
                    issued_by=None,
                )
            ]
        info = infos[0]
        if info.revoked_ms is None:
            info = replace(info, revoked_ms=self.now_ms, revoked_by=by)
        self._infos[info.id] = info
        self.revoked.add(info.id)
        return info

    def issue_session_token(
        self, *, subject: str, role: str, node: NodeId
    ) -> tuple[str, TokenInfo]:
        self.pages += 1
        return self._page(subject, role, f"{self.pages:0{ID_CHARS}x}")

    def renew_session_token(self, principal: Principal) -> tuple[str, TokenInfo]:
        if principal.token is None or principal.session_started_s is None:
            raise PermissionDenied("this is not a session token")
        if self.now_ms >= (principal.session_started_s + PAGE_S_MAX) * 1000:
            raise TrustError("the page was opened too long ago")
        return self._page(principal.subject, principal.role, principal.token)

    def _page(self, subject: str, role: str, jti: str) -> tuple[str, TokenInfo]:
        info = TokenInfo(
            id=jti,
            name=None,
            subject=subject,
            role=role,
            issued_ms=self.now_ms,
            expires_ms=self.now_ms + PAGE_S * 1000,
            issued_by=subject,
        )
        return f"page:{subject}:{jti}", info

    def is_valid(self, principal: Principal) -> bool:
        return principal.token not in self.revoked

    def _good(self) -> list[TokenInfo]:
        return [
            info for info in self._infos.values() if info.name and not info.revoked_ms
        ]
