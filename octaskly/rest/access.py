"""Tokens, the audit log, and how machines join and leave, as the API's JSON."""

from __future__ import annotations

from typing import Annotated

import msgspec

from octaskly.rest.base import At, one_of

RotationPhase = Annotated[str, one_of("spreading", "switched", "settled")]
TokenRole = Annotated[str, one_of("admin", "client", "viewer")]


class IssuedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A new token."""

    token: str
    id: str
    name: str | None = None
    expires_at: At = ""


class TokenLine(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a token; what is not known of one without a name is null."""

    id: str
    name: str | None = None
    subject: str | None = None
    role: TokenRole | None = None
    state: Annotated[str, one_of("good", "revoked")]
    issued_at: At | None = None
    issued_by: str | None = None
    expires_at: At | None = None
    revoked_at: At | None = None
    revoked_by: str | None = None


class TokenList(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens that have a name."""

    tokens: list[TokenLine]
    total: int = 0


class SessionCode(msgspec.Struct, frozen=True, kw_only=True):
    """A code that opens a page, and the page's addresses with it."""

    code: str
    expires_at: At = ""
    url: str
    lan_url: str | None = None


class PageSession(msgspec.Struct, frozen=True, kw_only=True):
    """The token of a page."""

    token: str
    expires_at: At
    subject: str
    role: TokenRole


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """One request that changed something or was refused, or several that are alike."""

    id: str = ""
    at: At
    until: At | None = None
    count: int = 1
    subject: str | None = None
    role: str | None = None
    action: str
    target: str | None = None
    source: str
    node: str
    decided_by: str = ""
    allowed: bool
    status: int
    tasks: list[str] = []
    task_count: int = 0


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the audit log, oldest first."""

    entries: list[AuditLine]
    returned: int = 0
    next: str | None = None


class KeyRotation(msgspec.Struct, frozen=True, kw_only=True):
    """How far the newest generation of the mesh secret has come."""

    generation: int = 0
    newest: int = 0
    oldest: int = 0
    phase: RotationPhase
    since: At | None = None
    due: At | None = None
    confirmed: list[str] = []
    awaited: list[str] = []
    revoked: list[str] = []


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node stands: what it belongs to, and what it would leave behind.

    `node_key` is hexadecimal.
    """

    name: str
    node_id: str
    node_key: str
    mesh: str | None
    interfaces: list[str] = []
    members: list[str] = []
    tasks: int = 0


class Invite(msgspec.Struct, frozen=True, kw_only=True):
    """One machine may come in, once, soon."""

    code: str
    expires_at: At
    places: list[str] = []


class Entering(msgspec.Struct, frozen=True, kw_only=True):
    """A node that begins anew in another mesh, or ends in none."""

    name: str
    node_id: str


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that waits to be let in; nothing of it is proven but the words."""

    name: str
    node_id: str
    fingerprint: str
    address: str


class JoinRequests(msgspec.Struct, frozen=True, kw_only=True):
    """All machines that wait to be let in."""

    requests: list[JoinRequest] = []
    total: int = 0
