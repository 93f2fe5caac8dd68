"""Interface for joining and leaving a mesh: invites, join requests, membership."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from octaskly.core.model.ids import NodeId
from octaskly.ports.tokens import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinStatus:
    """The mesh of a node, with the members and tasks that it would leave behind."""

    name: str
    node_id: str
    node_key: bytes  #: public key of the node
    mesh: str | None  #: None: the node is in no mesh
    interfaces: tuple[str, ...]  #: from the settings; empty: the default ones
    members: tuple[str, ...] = ()  #: names of the other members
    tasks: int = 0  #: number of tasks in its log


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedInvite:
    """An invite that admits one machine, once, before it expires."""

    code: str = field(repr=False)
    expires_ms: int  #: wall clock
    endpoints: tuple[str, ...]  #: addresses that accept the code, as `HOST:PORT`


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitorInvite:
    """An invite for a visitor, as long as it is listed."""

    slot: int  #: the first part of its code, which is no secret
    expires_ms: int  #: wall clock
    state: str = "open"  #: open, used, expired or revoked
    node: NodeId | None = None  #: the visitor that came


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingMachine:
    """A machine that asks to join. Only its fingerprint is proven."""

    name: str
    node_id: str
    fingerprint: str
    """Three words. The machine shows others if the connection is intercepted."""
    address: str


class JoinService(Protocol):
    """Admits machines to the mesh of this node, and lets the node join or leave."""

    async def join_status(self) -> JoinStatus:
        """Return the mesh of this node and its contents."""

    async def open_invite(
        self, ttl_s: int, visitor_stay_s: int | None = None, *, principal: Principal
    ) -> IssuedInvite:
        """Open an invite, of a member or of a visitor that may stay for some seconds.

        Raises:
            TooManyInvites: The number of open invites is at its limit.
            ConfigError: No port is free.
        """

    def list_visitor_invites(self) -> Sequence[VisitorInvite]:
        """Return the latest invites for visitors, oldest first."""

    def revoke_invite(self, slot: int) -> None:
        """End an open invite for a visitor; without effect if it is not open."""

    async def list_join_requests(self) -> Sequence[WaitingMachine]:
        """Search for machines that ask to join, and return them."""

    async def approve_join(
        self, name: str, words: str, *, principal: Principal
    ) -> WaitingMachine:
        """Admit the machine with this name and fingerprint.

        Raises:
            JoinRequestNotFound: No such machine asks to join.
        """

    async def refuse_join(
        self, name: str, words: str, *, principal: Principal
    ) -> WaitingMachine:
        """Refuse the machine with this name and fingerprint.

        Raises:
            JoinRequestNotFound: No such machine asks to join.
        """

    async def join_mesh(
        self,
        secret_text: str,
        seeds: Sequence[str],
        *,
        force: bool,
        principal: Principal,
    ) -> None:
        """Join the mesh with this keyring, and leave any other mesh.

        Args:
            secret_text: The lines of the secret file of the new mesh.
            seeds: Addresses of members.
            force: Join even if members and tasks are left behind.
            principal: The subject of the request.

        Raises:
            MeshNotEmpty: This mesh has other members or tasks, and `force` is false.
            ConfigError: The keyring, a seed or the secret file is unusable.
        """

    async def leave_mesh(self, *, force: bool, principal: Principal) -> None:
        """Leave the mesh: end running tasks, stop the agent, and delete its state.

        Args:
            force: Leave even if tasks may be lost.
            principal: The subject of the request.

        Raises:
            OnlyCopy: Tasks may be lost, and `force` is false.
            ConfigError: The secret of this node cannot be deleted.
        """
