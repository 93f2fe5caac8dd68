"""Keyring state without secrets, and the messages, events and effects of key rotation.

Keyrings join as facts do: the one with the higher rank counts, and the sets of revoked
nodes are united. So a rotation may reach nodes in any order and from any peer. Any
dispatcher can continue a rotation that another dispatcher started.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from octaskly.core.model.field_types import Count, Millis
from octaskly.core.model.ids import NodeId

REVOKED_MAX = 1024  #: revoked nodes that a keyring remembers
GENERATION_MAX = 1_000_000_000
FINGERPRINT_CHARS_MAX = 64
KEYRING_CHARS_MAX = 64 * 1024
REVOKED_REASON = "revoked: the mesh has a new secret, without this node"
"""Reason for the end of a link; it informs an honest node that it is revoked."""
OUTDATED_REASON = "the secret of this link is over"
VISIT_ENDED_REASON = "an admin has ended this visit"


class RotationPhase(StrEnum):
    """Phase in the rotation to the newest generation of the mesh secret."""

    SPREADING = "spreading"  #: the newest is accepted, the previous one is in force
    SWITCHED = "switched"  #: the newest is in force, the previous one still accepted
    SETTLED = "settled"  #: only the newest is accepted


class KeyringState(Struct, frozen=True, array_like=True, kw_only=True):
    """The generations that one node accepts, and the one that it uses itself."""

    oldest: Count = 1
    generation: Count = 1  #: in force
    newest: Count = 1
    fingerprint: Annotated[str, Meta(max_length=FINGERPRINT_CHARS_MAX)] = ""
    """Distinguishes two secrets of one generation; reveals nothing else."""
    is_urgent: bool = False  #: wait only briefly for nodes, as after a revocation
    phase_since_ms: Millis = 0  #: wall clock at its start; 0: the mesh began in it
    revoked: Annotated[tuple[NodeId, ...], Meta(max_length=REVOKED_MAX)] = ()
    """Revoked nodes, ordered."""

    @property
    def phase(self) -> RotationPhase:
        """Phase of the newest generation."""
        if self.generation < self.newest:
            return RotationPhase.SPREADING
        return (
            RotationPhase.SWITCHED
            if self.oldest < self.newest
            else RotationPhase.SETTLED
        )

    @property
    def rank(self) -> tuple[int, int, int, bool, str, int]:
        """Sort key: of two keyrings of one mesh, the one with the higher rank counts.

        A rotation never goes back. If both sides of a network split renewed the secret,
        all nodes choose the same one.
        """
        return (
            self.newest,
            self.generation,
            self.oldest,
            self.is_urgent,
            self.fingerprint,
            -self.phase_since_ms,
        )

    @property
    def is_valid(self) -> bool:
        """Return True if the generations are in order and within their bound."""
        return 0 < self.oldest <= self.generation <= self.newest < GENERATION_MAX

    def would_gain_from(self, other: KeyringState) -> bool:
        """Return True if joining `other` would change this keyring."""
        return self.rank < other.rank or not set(other.revoked) <= set(self.revoked)


# --- Messages.


class KeyringStatus(Struct, frozen=True, array_like=True, tag=28):
    """The state of the sender's keyring, for peers that may not know it."""

    keys: KeyringState


class KeyringTransfer(Struct, frozen=True, array_like=True, tag=29):
    """The sender's keyring, secrets included, for a peer that lacks part of it."""

    text: Annotated[str, Meta(max_length=KEYRING_CHARS_MAX)]  #: as in a secret file

    def __repr__(self) -> str:
        return "KeyringTransfer(...)"  # A secret must not appear in a log.


KeyringMessage = KeyringStatus | KeyringTransfer


def is_valid_keyring_message(message: KeyringMessage) -> bool:
    """Return True if the state in the message, if any, is valid."""
    return isinstance(message, KeyringTransfer) or message.keys.is_valid


# --- Events.


class KeyringChanged(Struct, frozen=True):
    """This node's keyring changed and is on its disk, or the change failed."""

    keys: KeyringState
    failure: str = ""  #: why the requested change failed


class RotateRequested(Struct, frozen=True):
    """Renew the mesh secret; answered by `Answer(ticket, ...)`."""

    ticket: int
    revoked: NodeId | None  #: node to revoke
    by: str
    is_urgent: bool = False  #: stop accepting the old secret within seconds


KeyringEvent = KeyringChanged | RotateRequested

# --- Effects.


class KeyringStep(StrEnum):
    """A change to a keyring."""

    RENEW = "renew"  #: add a generation that is accepted
    SWITCH = "switch"  #: put the newest generation in force
    SETTLE = "settle"  #: accept the newest generation only
    REVOKE = "deny"  #: revoke a node, without a new generation


class ChangeKeyring(Struct, frozen=True):
    """Change the keyring on disk, then in memory; answered by `KeyringChanged`."""

    step: KeyringStep
    revoked: NodeId | None = None
    is_urgent: bool = False  #: for RENEW; may be set without a revoked node
    fingerprint: str = ""
    """For SWITCH and SETTLE: no effect unless this is the newest generation by then."""


class SendKeyring(Struct, frozen=True):
    """Send the keyring to a peer."""

    peer: NodeId


class MergeKeyring(Struct, frozen=True):
    """Join a peer's keyring with this node's; otherwise as `ChangeKeyring`."""

    peer: NodeId
    text: str

    def __repr__(self) -> str:
        return f"MergeKeyring(peer={self.peer!r}, ...)"


KeyringEffect = ChangeKeyring | SendKeyring | MergeKeyring


class RotationStarted(Struct, frozen=True):
    """Reply to `RotateRequested`: a newer generation is being sent to all nodes."""

    keys: KeyringState


class RotationNotStarted(Struct, frozen=True):
    """Reply to `RotateRequested`: nothing was done."""

    reason: str
