"""What the API may ask about the mesh secret; it never sees the secret itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octaskly.core.model.ids import NodeId
from octaskly.core.model.keys import KeyringState
from octaskly.ports.tokens import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationProgress:
    """How far the renewal of the mesh secret has come, seen from one node."""

    keys: KeyringState
    due_ms: int | None  #: wall clock, when the next step comes at the latest
    confirmed: tuple[NodeId, ...]  #: have the newest generation
    unconfirmed: tuple[NodeId, ...]  #: may not have it yet
    is_revoked: bool = False  #: this node itself is
    has_missed_rotation: bool = (
        False  #: the mesh has dropped the generations of this node
    )


class KeyRotationControl(Protocol):
    """The mesh secret of one node, as people may handle it."""

    def rotation_progress(self) -> RotationProgress:
        """Return how far the newest generation has come."""

    def is_node_refused(self, node: NodeId) -> bool:
        """Whether a node may not act for others, or not at this moment."""

    async def start_rotation(
        self, *, principal: Principal, is_urgent: bool
    ) -> RotationProgress:
        """Begin to renew the secret; one that is urgent ends the old one in seconds.

        Raises:
            RotationRefused: one is on its way, or it cannot be kept.
        """

    async def revoke_node(
        self, node: NodeId, *, principal: Principal
    ) -> RotationProgress:
        """Renew the secret at once, without this node.

        Raises:
            RotationRefused: it is this node, or the secret cannot be kept.
        """
