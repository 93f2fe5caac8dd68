"""The seam between the API and what lets machines into a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from octaskly.ports.tokens import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinStatus:
    """Where a node stands: what it belongs to, and what it would leave behind."""

    name: str
    node_id: str
    node_key: bytes  #: its public key
    mesh: str | None  #: None: it is in none yet
    interfaces: tuple[str, ...]  #: that it was told to use; empty: the usual ones
    members: tuple[str, ...] = ()  #: names of the others
    tasks: int = 0  #: in its log


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedInvite:
    """One machine may come in, once, soon."""

    code: str = field(repr=False)
    expires_ms: int  #: wall clock
    endpoints: tuple[str, ...]  #: where it is answered, as `HOST:PORT`


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingMachine:
    """A machine that waits to be let in; nothing of it is proven but the words."""

    name: str
    node_id: str
    fingerprint: str  #: three words, which it shows too if nobody is in the middle
    address: str


class JoinService(Protocol):
    """How a node lets machines in, and gets into a mesh itself."""

    async def join_status(self) -> JoinStatus:
        """Return where this node stands."""

    async def open_invite(self, ttl_s: int, *, principal: Principal) -> IssuedInvite:
        """Open an invite.

        Raises:
            TooManyInvites: as many are open as may be.
            ConfigError: no port is free.
        """

    async def list_join_requests(self) -> Sequence[WaitingMachine]:
        """Look for machines that want in, and return those that wait."""

    async def approve_join(
        self, name: str, words: str, *, principal: Principal
    ) -> WaitingMachine:
        """Let a machine in that waits, is called so and shows these words.

        Raises:
            NoSuchRequest: there is none.
        """

    async def refuse_join(
        self, name: str, words: str, *, principal: Principal
    ) -> WaitingMachine:
        """Send a machine away that waits, is called so and shows these words.

        Raises:
            NoSuchRequest: there is none.
        """

    async def join_mesh(
        self,
        secret_text: str,
        seeds: Sequence[str],
        *,
        force: bool,
        principal: Principal,
    ) -> None:
        """Become a member of the mesh with this keyring, and leave any other.

        Args:
            secret_text: Lines of its secret file.
            seeds: Where a member may be dialled.
            force: Leave members and tasks behind.
            principal: Who wants it.

        Raises:
            WouldLeave: there are members or tasks, and `force` is not set.
            ConfigError: the keyring, a seed or the secret file is unusable.
        """

    async def leave_mesh(self, *, force: bool, principal: Principal) -> None:
        """Leave the mesh for good: end what runs, stop, and forget all of it.

        Args:
            force: Although tasks may be lost.
            principal: Who wants it.

        Raises:
            OnlyCopy: tasks may be lost, and `force` is not set.
            ConfigError: this node cannot forget its secret.
        """
