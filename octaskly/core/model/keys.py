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

DENIED_MAX = 1024  #: revoked nodes that a keyring remembers
NUMBER_MAX = 1_000_000_000  #: of a generation
MARK_CHARS_MAX = 64
TEXT_CHARS_MAX = 64 * 1024  #: of a keyring
REVOKED = "revoked: the mesh has a new secret, without this node"
"""Why a link ends; what a revoked node that is honest goes by."""
OUTDATED = "the secret of this link is over"


class Phase(StrEnum):
    """How far the newest generation of the mesh secret has come."""

    SPREADING = "spreading"  #: accepted, the one before is in force
    SWITCHED = "switched"  #: in force, the one before is accepted still
    SETTLED = "settled"  #: the only one


@value(frozen=True, slots=True, kw_only=True)
class Keys:
    """The generations that one node accepts, and the one with which it shows itself."""

    oldest: int = 1
    generation: int = 1  #: in force
    newest: int = 1
    mark: str = ""  #: tells two secrets of one generation apart, and nothing else
    is_urgent: bool = False  #: nobody is waited for long: a node was revoked, say
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

    @property
    def is_sane(self) -> bool:
        """Whether a keyring of ours could be so."""
        is_ordered = 0 < self.oldest <= self.generation <= self.newest < NUMBER_MAX
        is_bounded = len(self.mark) <= MARK_CHARS_MAX and len(self.denied) <= DENIED_MAX
        return is_ordered and is_bounded and 0 <= self.since_ms < TIME_MS_MAX

    def lacks(self, other: Keys) -> bool:
        """Whether this keyring would change by taking over `other`."""
        return self.rank < other.rank or not set(other.denied) <= set(self.denied)


# --- What peers say.


@value(frozen=True, slots=True)
class KeysHeld:
    """The sender's keyring is this now; said to those who may not know it."""

    keys: Keys


@value(frozen=True, slots=True)
class KeysGiven:
    """The sender's keyring itself, for a peer that lacks some of it."""

    text: str = field(repr=False)  #: as in a secret file


KeysMessage = KeysHeld | KeysGiven


def is_sane_keyring(message: KeysMessage) -> bool:
    """Whether a member of ours could say so."""
    if isinstance(message, KeysHeld):
        return message.keys.is_sane
    return len(message.text) <= TEXT_CHARS_MAX


# --- What happens.


@value(frozen=True, slots=True)
class KeysChanged:
    """The keyring of this node is this now, and on its disk."""

    keys: Keys
    failure: str = ""  #: why what was asked for could not be done


@value(frozen=True, slots=True)
class RotateAsked:
    """Renew the mesh secret; answered by `Answer(ticket, ...)`."""

    ticket: int
    revoked: NodeId | None  #: whom to leave out
    by: str
    is_urgent: bool = False  #: the old secret is to be over within seconds


KeysEvent = KeysChanged | RotateAsked

# --- What the shell is asked to do.


class KeyStep(StrEnum):
    """What becomes of a keyring."""

    RENEW = "renew"  #: one generation more, which is accepted
    SWITCH = "switch"  #: the newest one is in force
    SETTLE = "settle"  #: the newest one is the only one
    DENY = "deny"  #: a node is revoked, and nothing else


@value(frozen=True, slots=True)
class ChangeKeys:
    """Change the keyring on disk, then in use; `KeysChanged` says that it is done."""

    step: KeyStep
    revoked: NodeId | None = None
    is_urgent: bool = False  #: of a renewal, also where nobody is revoked


@value(frozen=True, slots=True)
class GiveKeys:
    """Send the keyring to a peer."""

    peer: NodeId


@value(frozen=True, slots=True)
class TakeKeys:
    """Join what a peer gave with the keyring of this node; then as `ChangeKeys`."""

    peer: NodeId
    text: str = field(repr=False)


KeysEffect = ChangeKeys | GiveKeys | TakeKeys


@value(frozen=True, slots=True)
class Rotating:
    """The answer to `RotateAsked`: a newer generation is on its way to all nodes."""

    keys: Keys


@value(frozen=True, slots=True)
class NotRotated:
    """The answer to `RotateAsked` where nothing is done."""

    why: str
