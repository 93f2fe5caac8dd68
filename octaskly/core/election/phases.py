"""Where a node stands in the mesh: one value for each phase, with what only it needs.

What a phase carries ends with it, so that nothing of one role is left in the next.
`election` makes the moves; `watch` and `claims` say when.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from octaskly.core.election.failure_detector import Suspicion
from octaskly.core.model.ids import Epoch, Holdings, Moment, NodeId, Reign


@dataclass(frozen=True, slots=True)
class Attachment:
    """Whom the worker of this node serves; a new one asks it to reattach."""

    dispatcher: NodeId
    epoch: Epoch
    serial: int  #: grows with each link to the same dispatcher


@dataclass(slots=True)
class Tie:
    """A dispatcher that is followed, from the word on that made this node follow it."""

    to: Attachment
    is_told: bool = False  #: it knows that this node follows, which is durable here
    is_plain: bool = False  #: one worker of many: it is beaten less often

    @property
    def dispatcher(self) -> NodeId:
        """Who is followed."""
        return self.to.dispatcher


@dataclass(slots=True)
class Seeking:
    """It looks for a mesh; when nobody better claims in its time, it does."""

    since_s: float
    jitter_s: float
    looked: Moment  #: when it last looked who is better
    suspicion: Suspicion | None = None  #: of a dispatcher that others name


@dataclass(slots=True)
class Following:
    """It runs tasks of a dispatcher, and watches whether that is alive."""

    tie: Tie
    since_s: float
    is_serving: bool = False  #: its worker, unless the dispatcher is suspected
    suspicion: Suspicion | None = None
    transfer: Holdings | None = None
    """What a dispatcher that hands over holds, while this node lacks some."""

    @property
    def attachment(self) -> Attachment | None:
        """Whom the worker serves."""
        return self.tie.to if self.is_serving and self.suspicion is None else None


@dataclass(slots=True)
class Succeeding:
    """The dispatcher is gone for good; those before this node may claim first."""

    since_s: float  #: when that was known
    gone: NodeId  #: the dispatcher that was
    is_proven: bool  #: its process ended, which all whom it had a link to saw at once
    transfer: Holdings | None
    """As in `Following`; once this node has it all, it waits no longer."""
    widened: int = 0  #: how often it has begun to dial one more; at first a few


@dataclass(slots=True)
class TakingOver:
    """It claims, but that is not durable yet; so nobody hears of it."""

    claim: Reign
    heir_of: Epoch | None  #: the reign that handed over, if one did


@dataclass(slots=True)
class Reigning:
    """It is dispatcher, and serves itself."""

    reign: Reign
    attachment: Attachment
    claim: Reign | None = None  #: one that renews the reign, not durable yet


@dataclass(slots=True)
class Yielding:
    """It has given way: the winner may claim above both, then reads this node's log."""

    since_s: float
    winner: NodeId | None = None  #: whose claim is awaited
    tie: Tie | None = None  #: to the one that claimed and has not read all yet


Phase = Seeking | Following | Succeeding | TakingOver | Reigning | Yielding

MOVES: dict[type[Phase], tuple[type[Phase], ...]] = {
    Seeking: (Seeking, Following, TakingOver),
    Following: (Seeking, Following, Succeeding, TakingOver),
    Succeeding: (Seeking, Following, TakingOver),
    TakingOver: (Seeking, Following, TakingOver, Reigning),
    Reigning: (Seeking, Following, Reigning, Yielding),
    Yielding: (Seeking, Following, TakingOver, Yielding),
}
"""Where each phase may lead; anything else is a broken invariant."""
