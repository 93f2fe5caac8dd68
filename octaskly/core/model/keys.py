"""What may be known of a node's keyring: which generations it has, and no secret.

Keyrings join as facts do: of two, the one of higher rank counts, and the nodes that
either denies are denied. So it does not matter in which order nodes hear of a rotation,
or from whom, and any dispatcher can go on with one that another began.
"""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum

from octaskly.core.model.ids import NodeId
from octaskly.core.model.tasks import TIME_MS_MAX
from octaskly.core.model.values import value

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


@value(frozen=True, slots=True, kw_only=True)
class KeyringState:
    """The generations that one node accepts, and the one with which it shows itself."""

    oldest: int = 1
    generation: int = 1  #: in force
    newest: int = 1
    fingerprint: str = (
        ""  #: tells two secrets of one generation apart, and nothing else
    )
    is_urgent: bool = False  #: nobody is waited for long: a node was revoked, say
    phase_since_ms: int = 0  #: wall clock, when the phase began; 0: as long as the mesh
    revoked: tuple[NodeId, ...] = ()  #: revoked nodes, ordered

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
        is_ordered = 0 < self.oldest <= self.generation <= self.newest < GENERATION_MAX
        is_bounded = (
            len(self.fingerprint) <= FINGERPRINT_CHARS_MAX
            and len(self.revoked) <= REVOKED_MAX
        )
        return is_ordered and is_bounded and 0 <= self.phase_since_ms < TIME_MS_MAX

    def would_gain_from(self, other: KeyringState) -> bool:
        """Whether this keyring would change by taking over `other`."""
        return self.rank < other.rank or not set(other.revoked) <= set(self.revoked)


# --- What peers say.


@value(frozen=True, slots=True)
class KeyringStatus:
    """The sender's keyring is this now; said to those who may not know it."""

    keys: KeyringState


@value(frozen=True, slots=True)
class KeyringTransfer:
    """The sender's keyring itself, for a peer that lacks some of it."""

    text: str = field(repr=False)  #: as in a secret file


KeyringMessage = KeyringStatus | KeyringTransfer


def is_valid_keyring_message(message: KeyringMessage) -> bool:
    """Whether a member of ours could say so."""
    if isinstance(message, KeyringStatus):
        return message.keys.is_valid
    return len(message.text) <= KEYRING_CHARS_MAX


# --- What happens.


@value(frozen=True, slots=True)
class KeyringChanged:
    """The keyring of this node is this now, and on its disk."""

    keys: KeyringState
    failure: str = ""  #: why what was asked for could not be done


@value(frozen=True, slots=True)
class RotateRequested:
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


@value(frozen=True, slots=True)
class ChangeKeyring:
    """Change the keyring on disk, then in use; `KeyringChanged` says that it is done."""

    step: KeyringStep
    revoked: NodeId | None = None
    is_urgent: bool = False  #: of a renewal, also where nobody is revoked


@value(frozen=True, slots=True)
class SendKeyring:
    """Send the keyring to a peer."""

    peer: NodeId


@value(frozen=True, slots=True)
class MergeKeyring:
    """Join what a peer gave with the keyring of this node; then as `ChangeKeyring`."""

    peer: NodeId
    text: str = field(repr=False)


KeyringEffect = ChangeKeyring | SendKeyring | MergeKeyring


@value(frozen=True, slots=True)
class RotationStarted:
    """The answer to `RotateRequested`: a newer generation is on its way to all nodes."""

    keys: KeyringState


@value(frozen=True, slots=True)
class RotationNotStarted:
    """The answer to `RotateRequested` where nothing is done."""

    reason: str
