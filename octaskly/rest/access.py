"""JSON types for tokens, sessions, the audit log, key rotation and joining."""

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
    """A token in a list, or in the response to its revocation.

    A token without a name is not stored, so only its id and revocation are known.
    """

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
    """The tokens that have a name and have not expired."""

    tokens: list[TokenLine]
    total: int = 0


class SessionCode(msgspec.Struct, frozen=True, kw_only=True):
    """A one-time code that opens the dashboard, and the URLs that contain it.

    `url` is null where the node has no API port on its own machine.
    """

    code: str
    expires_at: At = ""
    url: str | None
    lan_url: str | None = None


class PageSession(msgspec.Struct, frozen=True, kw_only=True):
    """A session token for the dashboard."""

    token: str
    expires_at: At
    subject: str
    role: TokenRole


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """An audit log entry: a change or a refused request, or several of them merged."""

    id: str = ""
    at: At
    until: At | None = None
    count: int = 1
    subject: str | None = None
    role: str | None = None
    action: str
    target: str | None = None
    targets: list[str] = []
    source: str
    node: str
    decided_by: str = ""
    allowed: bool
    status: int
    tasks: list[str] = []
    task_count: int = 0
    command: str | None = None


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the audit log, oldest first."""

    entries: list[AuditLine]
    returned: int = 0
    next: str | None = None


class RotationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of a rotation: nodes that have, or lack, the newest mesh secret."""

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
    """The mesh of a node, and the members and tasks that remain if the node leaves.

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
    """An invite: it admits one machine or visitor, once, until `expires_at`.

    Only the invite of a visitor has a `url`, which contains the code and all places,
    and `qr`, the rows of its QR code, in which `1` is dark.
    """

    id: str = ""
    code: str
    url: str | None = None
    qr: list[str] = []
    expires_at: At
    places: list[str] = []


class VisitorInvite(msgspec.Struct, frozen=True, kw_only=True):
    """An invite for a visitor, without its secret; `node` is the visitor that came."""

    id: str
    state: Annotated[str, one_of("open", "used", "expired", "revoked")]
    node: str | None = None
    expires_at: At


class VisitorInvites(msgspec.Struct, frozen=True, kw_only=True):
    """The latest invites of a node for visitors, oldest first."""

    invites: list[VisitorInvite]
    total: int = 0


class MembershipChange(msgspec.Struct, frozen=True, kw_only=True):
    """A node that is joining another mesh or leaving its mesh."""

    name: str
    node_id: str


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that waits for approval; only its fingerprint is verified."""

    name: str
    node_id: str
    fingerprint: str
    address: str


class JoinRequests(msgspec.Struct, frozen=True, kw_only=True):
    """All machines that wait for approval."""

    requests: list[JoinRequest] = []
    total: int = 0
