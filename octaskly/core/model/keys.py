"""What may be known of a node's keyring: which generations it has, and no secret.

Keyrings join as facts do: of two, the one of higher rank counts, and the nodes that
either denies are denied. So it does not matter in which order nodes hear of a rotation,
or from whom, and any dispatcher can go on with one that another began.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from octaskly.core.model.field_types import Count, Millis
from octaskly.core.model.ids import NodeId

REVOKED_MAX = 1024  #: revoked nodes that a keyring remembers
GENERATION_MAX = 1_000_000_000  #: of a generation
FINGERPRINT_CHARS_MAX = 64
KEYRING_CHARS_MAX = 64 * 1024  #: of a keyring
REVOKED_REASON = "revoked: the mesh has a new secret, without this node"
"""Why a link ends; what a revoked node that is honest goes by."""
OUTDATED_REASON = "the secret of this link is over"


class RotationPhase(StrEnum):
    """How far the newest generation of the mesh secret has come."""

    SPREADING = "spreading"  #: accepted, the one before is in force
    SWITCHED = "switched"  #: in force, the one before is accepted still
    SETTLED = "settled"  #: the only one


class KeyringState(Struct, frozen=True, array_like=True, kw_only=True):
    """The generations that one node accepts, and the one with which it shows itself."""

    oldest: Count = 1
    generation: Count = 1  #: in force
    newest: Count = 1
    fingerprint: Annotated[str, Meta(max_length=FINGERPRINT_CHARS_MAX)] = ""
    """Tells two secrets of one generation apart, and nothing else."""
    is_urgent: bool = False  #: nobody is waited for long: a node was revoked, say
    phase_since_ms: Millis = (
        0  #: wall clock, when the phase began; 0: as long as the mesh
    )
    revoked: Annotated[tuple[NodeId, ...], Meta(max_length=REVOKED_MAX)] = ()
    """Revoked nodes, ordered."""

    @property
    def phase(self) -> RotationPhase:
        """How far the newest generation has come."""
        if self.generation < self.newest:
            return RotationPhase.SPREADING
        return (
            RotationPhase.SWITCHED
            if self.oldest < self.newest
            else RotationPhase.SETTLED
        )

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
            self.fingerprint,
            -self.phase_since_ms,
        )

    @property
    def is_valid(self) -> bool:
        """Whether a keyring of ours could be so."""
        return 0 < self.oldest <= self.generation <= self.newest < GENERATION_MAX

    def would_gain_from(self, other: KeyringState) -> bool:
        """Whether this keyring would change by taking over `other`."""
        return self.rank < other.rank or not set(other.revoked) <= set(self.revoked)


# --- What peers say.


class KeyringStatus(Struct, frozen=True, array_like=True, tag=28):
    """The sender's keyring is this now; said to those who may not know it."""

    keys: KeyringState


class KeyringTransfer(Struct, frozen=True, array_like=True, tag=29):
    """The sender's keyring itself, for a peer that lacks some of it."""

    text: Annotated[str, Meta(max_length=KEYRING_CHARS_MAX)]  #: as in a secret file

    def __repr__(self) -> str:
        return "KeysGiven(...)"  # A secret belongs in no log.


KeyringMessage = KeyringStatus | KeyringTransfer


def is_valid_keyring_message(message: KeyringMessage) -> bool:
    """Whether a member of ours could say so."""
    return isinstance(message, KeyringTransfer) or message.keys.is_valid


# --- What happens.


class KeyringChanged(Struct, frozen=True):
    """The keyring of this node is this now, and on its disk."""

    keys: KeyringState
    failure: str = ""  #: why what was asked for could not be done


class RotateRequested(Struct, frozen=True):
    """Renew the mesh secret; answered by `Answer(ticket, ...)`."""

    ticket: int
    revoked: NodeId | None  #: whom to leave out
    by: str
    is_urgent: bool = False  #: the old secret is to be over within seconds


KeyringEvent = KeyringChanged | RotateRequested

# --- What the shell is asked to do.


class KeyringStep(StrEnum):
    """What becomes of a keyring."""

    RENEW = "renew"  #: one generation more, which is accepted
    SWITCH = "switch"  #: the newest one is in force
    SETTLE = "settle"  #: the newest one is the only one
    REVOKE = "deny"  #: a node is revoked, and nothing else


class ChangeKeyring(Struct, frozen=True):
    """Change the keyring on disk, then in use; `KeyringChanged` says that it is done."""

    step: KeyringStep
    revoked: NodeId | None = None
    is_urgent: bool = False  #: of a renewal, also where nobody is revoked


class SendKeyring(Struct, frozen=True):
    """Send the keyring to a peer."""

    peer: NodeId


class MergeKeyring(Struct, frozen=True):
    """Join what a peer gave with the keyring of this node; then as `ChangeKeyring`."""

    peer: NodeId
    text: str

    def __repr__(self) -> str:
        return f"TakeKeys(peer={self.peer!r}, ...)"


KeyringEffect = ChangeKeyring | SendKeyring | MergeKeyring


class RotationStarted(Struct, frozen=True):
    """The answer to `RotateRequested`: a newer generation is on its way to all nodes."""

    keys: KeyringState


class RotationNotStarted(Struct, frozen=True):
    """The answer to `RotateRequested` where nothing is done."""

    reason: str
