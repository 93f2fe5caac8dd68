"""Where a node stands in the mesh: one value for each phase, with what only it needs.

What a phase carries ends with it, so that nothing of one role is left in the next.
`election` makes the moves; `watch` and `claims` say when.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from octaskly.core.election.failure_detector import Suspicion
from octaskly.core.model.ids import DispatcherEpoch, Epoch, Moment, NodeId, VectorItems


@dataclass(frozen=True, slots=True)
class Attachment:
    """Whom the worker of this node serves; a new one asks it to reattach."""

    dispatcher: NodeId
    epoch: Epoch
    serial: int  #: grows with each link to the same dispatcher


@dataclass(slots=True)
class FollowLink:
    """A dispatcher that is followed, from the word on that made this node follow it."""

    attachment: Attachment
    is_confirmed: bool = (
        False  #: it knows that this node follows, which is durable here
    )
    is_plain_worker: bool = False  #: one worker of many: it is beaten less often

    @property
    def dispatcher(self) -> NodeId:
        """Who is followed."""
        return self.attachment.dispatcher


@dataclass(slots=True)
class Discovering:
    """It looks for a mesh; when nobody better claims in its time, it does."""

    since_s: float
    jitter_s: float
    last_look: Moment  #: when it last looked who is better
    suspicion: Suspicion | None = None  #: of a dispatcher that others name


@dataclass(slots=True)
class Following:
    """It runs tasks of a dispatcher, and watches whether that is alive."""

    follow_link: FollowLink
    since_s: float
    is_worker_attached: bool = False  #: its worker, unless the dispatcher is suspected
    suspicion: Suspicion | None = None
    transfer_vector: VectorItems | None = None
    """What a dispatcher that hands over holds, while this node lacks some."""

    @property
    def attachment(self) -> Attachment | None:
        """Whom the worker serves."""
        return (
            self.follow_link.attachment
            if self.is_worker_attached and self.suspicion is None
            else None
        )


@dataclass(slots=True)
class Campaigning:
    """The dispatcher is gone for good; those before this node may claim first."""

    since_s: float  #: when that was known
    lost_dispatcher: NodeId  #: the dispatcher that was
    is_end_proven: (
        bool  #: its process ended, which all whom it had a link to saw at once
    )
    transfer_vector: VectorItems | None
    """As in `OutputPrinter`; once this node has it all, it waits no longer."""
    dial_rounds: int = 0  #: how often it has begun to dial one more; at first a few


@dataclass(slots=True)
class Claiming:
    """It claims, but that is not durable yet; so nobody hears of it."""

    claim: DispatcherEpoch
    predecessor: Epoch | None  #: the reign that handed over, if one did


@dataclass(slots=True)
class Dispatching:
    """It is dispatcher, and serves itself."""

    dispatcher_epoch: DispatcherEpoch
    attachment: Attachment
    claim: DispatcherEpoch | None = None  #: one that renews the reign, not durable yet


@dataclass(slots=True)
class SteppingDown:
    """It has given way: the winner may claim above both, then reads this node's log."""

    since_s: float
    winner: NodeId | None = None  #: whose claim is awaited
    follow_link: FollowLink | None = (
        None  #: to the one that claimed and has not read all yet
    )


Phase = Discovering | Following | Campaigning | Claiming | Dispatching | SteppingDown

PHASE_TRANSITIONS: dict[type[Phase], tuple[type[Phase], ...]] = {
    Discovering: (Discovering, Following, Claiming),
    Following: (Discovering, Following, Campaigning, Claiming),
    Campaigning: (Discovering, Following, Claiming),
    Claiming: (Discovering, Following, Claiming, Dispatching),
    Dispatching: (Discovering, Following, Dispatching, SteppingDown),
    SteppingDown: (Discovering, Following, Claiming, SteppingDown),
}
"""Where each phase may lead; anything else is a broken invariant."""
