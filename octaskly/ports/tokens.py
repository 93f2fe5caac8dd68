"""Who may ask: what the API needs of the tokens of the mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octaskly.core.model.ids import NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks, and what that subject may do."""

    subject: str
    role: str  #: `admin`, `client` or `viewer`
    node: NodeId | None = None  #: the node that forwarded the request, if one did
    token: str | None = None  #: id of the token that was shown, if one was
    expires_ms: int | None = None  #: wall clock, where the token was shown
    generation: int | None = None  #: of the secret that signed it, likewise
    uid: int | None = None  #: of a user of this machine's socket
    session_node: NodeId | None = None  #: where a user of the socket opened this page
    session_started_s: int | None = None  #: when, in seconds since 1970

    @property
    def may_submit(self) -> bool:
        """Whether it may create and cancel tasks."""
        return self.role in ("admin", "client")

    @property
    def is_admin(self) -> bool:
        """Whether it may touch everybody's tasks, tokens and nodes."""
        return self.role == "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInfo:
    """What is kept of a token; never the token."""

    id: str
    name: str | None  #: None: it was issued without one, and is not kept
    subject: str | None
    role: str | None
    issued_ms: int | None
    expires_ms: int | None
    issued_by: str | None
    revoked_ms: int | None = None
    revoked_by: str | None = None


class TokenRegistry(Protocol):
    """Issues tokens, lists them, takes them back."""

    async def issue(
        self,
        *,
        role: str,
        expires_s: int,
        subject: str | None,
        name: str | None,
        by: Principal,
    ) -> tuple[str, TokenInfo]:
        """Return a new token, and what is kept of it.

        Raises:
            NotDispatcher: another node is dispatcher.
            PermissionDenied: it would outlast the secret that `by` was let in with.
            TokenExists: a token that is still good has this name.
            TooManyRecords: the mesh keeps no more tokens.
            StoreFull: the disk takes no writes.
        """

    async def list_tokens(self) -> tuple[TokenInfo, ...]:
        """Return the tokens that have a name and have not expired, oldest first.

        Raises:
            NotDispatcher: another node is dispatcher.
        """

    async def revoke(self, ref: str, *, by: str) -> TokenInfo:
        """Take a token back, by its name or id; to do it twice changes nothing.

        Raises:
            NotDispatcher: another node is dispatcher.
            TokenNotFound: no token has this name.
            TooManyRecords: the mesh keeps no more revocations.
            StoreFull: the disk takes no writes.
        """

    def issue_session_token(
        self, *, subject: str, role: str, node: NodeId
    ) -> tuple[str, TokenInfo]:
        """Return a short token for a page that was just opened at this node."""

    def renew_session_token(self, principal: Principal) -> tuple[str, TokenInfo]:
        """Return a later token of the same id; what revokes one revokes all of them.

        Raises:
            PermissionDenied: the token is not of a page.
            TrustError: the page was opened too long ago, or under an older secret.
        """

    def is_valid(self, principal: Principal) -> bool:
        """Whether the token that was shown is neither expired nor revoked by now."""
