"""Interface for API tokens, and the principal of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octaskly.core.model.ids import NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The subject of a request, with its role and credentials."""

    subject: str
    role: str  #: `admin`, `client` or `viewer`
    node: NodeId | None = None  #: the node that forwarded the request, if one did
    token: str | None = None  #: id of the token in the request, if any
    expires_ms: int | None = None  #: wall clock; expiry of that token
    generation: int | None = None  #: of the mesh secret that signed that token
    uid: int | None = None  #: of the user of the local socket
    session_node: NodeId | None = None  #: node where a socket user opened the page
    session_started_s: int | None = None  #: when, in seconds since 1970

    @property
    def may_submit(self) -> bool:
        """Return True if the subject may create and cancel tasks."""
        return self.role in ("admin", "client")

    @property
    def is_admin(self) -> bool:
        """Return True if the subject may change all tasks, tokens and nodes."""
        return self.role == "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInfo:
    """The stored description of a token, without the token itself."""

    id: str
    name: str | None  #: None: an unnamed token, which is not stored
    subject: str | None
    role: str | None
    issued_ms: int | None
    expires_ms: int | None
    issued_by: str | None
    revoked_ms: int | None = None
    revoked_by: str | None = None


class TokenRegistry(Protocol):
    """Issues, lists and revokes tokens."""

    async def issue(
        self,
        *,
        role: str,
        expires_s: int,
        subject: str | None,
        name: str | None,
        by: Principal,
    ) -> tuple[str, TokenInfo]:
        """Return a new token, and its description.

        Raises:
            NotDispatcher: Another node is dispatcher.
            PermissionDenied: The token of `by` is of an older secret.
            TokenExists: A valid token has this name.
            TooManyRecords: The mesh has reached its limit of tokens.
            StoreFull: The disk accepts no writes.
        """

    async def list_tokens(self) -> tuple[TokenInfo, ...]:
        """Return the named tokens that have not expired, oldest first.

        Raises:
            NotDispatcher: Another node is dispatcher.
        """

    async def revoke(self, ref: str, *, by: str) -> TokenInfo:
        """Revoke a token, by name or id. A second call changes nothing.

        Raises:
            NotDispatcher: Another node is dispatcher.
            TokenNotFound: No token has this name.
            TooManyRecords: The mesh has reached its limit of revocations.
            StoreFull: The disk accepts no writes.
        """

    def issue_session_token(
        self, *, subject: str, role: str, node: NodeId
    ) -> tuple[str, TokenInfo]:
        """Return a short-lived token for a page that was opened at this node."""

    def renew_session_token(self, principal: Principal) -> tuple[str, TokenInfo]:
        """Return a token with the same id and a later expiry.

        A revocation of one token revokes all with its id.

        Raises:
            PermissionDenied: The token is not a session token.
            TrustError: The page was opened too long ago, or under an older secret.
        """

    def is_valid(self, principal: Principal) -> bool:
        """Return True if the token of `principal` has neither expired nor been revoked.

        That of a page has not expired while the page renews it on this node.
        """
