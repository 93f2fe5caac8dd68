"""Interface for the rotation of the mesh secret, which the API never sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octaskly.core.model.ids import NodeId
from octaskly.core.model.keyring_state import KeyringState
from octaskly.ports.tokens import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationProgress:
    """Progress of a rotation of the mesh secret, as one node sees it."""

    keys: KeyringState
    due_ms: int | None  #: wall clock; latest time of the next step
    confirmed: tuple[NodeId, ...]  #: nodes that have the newest generation
    unconfirmed: tuple[NodeId, ...]  #: nodes that may not have it yet


class KeyRotationControl(Protocol):
    """Operations of admins on the mesh secret."""

    def rotation_progress(self) -> RotationProgress:
        """Return the progress of the newest generation."""

    def is_node_refused(self, node: NodeId) -> bool:
        """Return True if a node may not act for others, at least for now."""

    async def start_rotation(
        self, *, principal: Principal, is_urgent: bool
    ) -> RotationProgress:
        """Start a rotation. An urgent one ends the old secret within seconds.

        Raises:
            RotationRefused: A rotation is running, or the secret cannot be saved.
        """

    async def revoke_node(
        self, node: NodeId, *, principal: Principal
    ) -> RotationProgress:
        """Rotate the secret at once, and exclude `node`.

        Raises:
            RotationRefused: `node` is this node, or the secret cannot be saved.
        """
