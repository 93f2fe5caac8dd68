"""What the API may ask about the mesh secret; it never sees the secret itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octaskly.core.model.ids import NodeId
from octaskly.core.model.keys import KeyringState
from octaskly.ports.tokens import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationView:
    """How far the renewal of the mesh secret has come, seen from one node."""

    keys: KeyringState
    due_ms: int | None  #: wall clock, when the next step comes at the latest
    confirmed: tuple[NodeId, ...]  #: have the newest generation
    awaited: tuple[NodeId, ...]  #: may not have it yet
    is_revoked: bool = False  #: this node itself is
    is_left_behind: bool = False  #: the mesh has dropped the generations of this node


class Rotations(Protocol):
    """The mesh secret of one node, as people may handle it."""

    def view(self) -> RotationView:
        """Return how far the newest generation has come."""

    def refuses(self, node: NodeId) -> bool:
        """Whether a node may not act for others, or not at this moment."""

    async def rotate(self, *, principal: Principal, is_urgent: bool) -> RotationView:
        """Begin to renew the secret; one that is urgent ends the old one in seconds.

        Raises:
            RotationRefused: one is on its way, or it cannot be kept.
        """

    async def revoke(self, node: NodeId, *, principal: Principal) -> RotationView:
        """Renew the secret at once, without this node.

        Raises:
            RotationRefused: it is this node, or the secret cannot be kept.
        """
