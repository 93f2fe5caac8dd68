"""What may be known of a node's keyring: which generations it has, and no secret.

Keyrings join as facts do: of two, the one of higher rank counts, and the nodes that
either denies are denied. So it does not matter in which order nodes hear of a rotation,
or from whom, and any dispatcher can go on with one that another began.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from octaskly.core.model import NodeId

DENIED_MAX = 1024  #: revoked nodes that a keyring remembers


class Phase(StrEnum):
    """How far the newest generation of the mesh secret has come."""

    SPREADING = "spreading"  #: accepted, the one before is in force
    SWITCHED = "switched"  #: in force, the one before is accepted still
    SETTLED = "settled"  #: the only one


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The generations that one node accepts, and the one with which it shows itself."""

    oldest: int = 1
    generation: int = 1  #: in force
    newest: int = 1
    mark: str = ""  #: tells two secrets of one generation apart, and nothing else
    is_urgent: bool = False  #: a node was revoked: nobody is waited for long
    since_ms: int = 0  #: wall clock, when the phase began; 0: as long as the mesh
    denied: tuple[NodeId, ...] = ()  #: revoked nodes, ordered

    @property
    def phase(self) -> Phase:
        """How far the newest generation has come."""
        if self.generation < self.newest:
            return Phase.SPREADING
        return Phase.SWITCHED if self.oldest < self.newest else Phase.SETTLED

    @property
    def rank(self) -> tuple[int, int, int, bool, str, int]:
        """Of two keyrings of one mesh, that of the higher rank counts.

        Who is further is never set back. Where two halves of a split renewed the
        secret on their own, all nodes choose the same one.
        """
        return (
            self.newest,
            self.generation,
            self.oldest,
            self.is_urgent,
            self.mark,
            -self.since_ms,
        )

    def lacks(self, other: Keys) -> bool:
        """Whether this keyring would change by taking over `other`."""
        return self.rank < other.rank or not set(other.denied) <= set(self.denied)
