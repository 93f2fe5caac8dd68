"""Phases of the election: one class per phase, with the data that only it needs.

The data of a phase ends with it, so no role leaves state to the next. `election` makes
the transitions; `timeouts` and `claims` start them.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from octaskly.core.election.failure_detector import Suspicion
from octaskly.core.log.retired_streams import LogExtent
from octaskly.core.model.ids import DispatcherEpoch, Epoch, Moment, NodeId


@dataclass(frozen=True, slots=True)
class Attachment:
    """The dispatcher that this node's worker serves; a new value makes it reattach."""

    dispatcher: NodeId
    epoch: Epoch
    serial: int  #: grows with each link to the same dispatcher


@dataclass(slots=True)
class FollowLink:
    """The link to a followed dispatcher; it starts when this node follows it."""

    attachment: Attachment
    is_confirmed: bool = (
        False  #: the epoch is durable here, and a confirmation was sent
    )
    is_plain_worker: bool = False  #: a worker that gets only every third heartbeat

    @property
    def dispatcher(self) -> NodeId:
        """The followed dispatcher."""
        return self.attachment.dispatcher


@dataclass(slots=True)
class Discovering:
    """The node looks for a mesh, and claims if no better candidate does in time."""

    since_s: float
    jitter_s: float
    last_look: Moment  #: latest check for better candidates
    suspicion: Suspicion | None = None  #: of a dispatcher that peers name
    probed: NodeId | None = None  #: peers were asked about it early, to find a relay
    asked_s: float = -math.inf  #: when peers were last asked whom they follow


@dataclass(slots=True)
class Following:
    """The node runs tasks of a dispatcher, and checks that it is alive."""

    follow_link: FollowLink
    since_s: float
    is_worker_attached: bool = False  #: ignored during a suspicion
    suspicion: Suspicion | None = None
    transfer_extent: LogExtent | None = None
    """Log of a dispatcher that transfers its role to this node; else None."""

    @property
    def attachment(self) -> Attachment | None:
        """The dispatcher and epoch that the worker serves."""
        return (
            self.follow_link.attachment
            if self.is_worker_attached and self.suspicion is None
            else None
        )


@dataclass(slots=True)
class Campaigning:
    """The dispatcher is lost; earlier successors may claim first."""

    since_s: float  #: when the loss was detected
    lost_dispatcher: NodeId  #: the former dispatcher
    is_end_proven: bool  #: its process ended, and all its peers saw it at once
    transfer_extent: LogExtent | None
    """As in `Following`; once this node holds all of it, it claims at once."""
    dial_rounds: int = 0  #: rounds of dials; each dials one more successor


@dataclass(slots=True)
class Claiming:
    """The node claims; the claim is not durable yet, so it is not sent to peers."""

    claim: DispatcherEpoch
    predecessor: Epoch | None  #: the epoch that was transferred to this node


@dataclass(slots=True)
class Dispatching:
    """The node is dispatcher, and its worker serves itself."""

    dispatcher_epoch: DispatcherEpoch
    attachment: Attachment
    claim: DispatcherEpoch | None = None  #: renews the epoch; not durable yet


@dataclass(slots=True)
class SteppingDown:
    """The node lost to another dispatcher, which claims and then pulls its log."""

    since_s: float
    winner: NodeId | None = None  #: the dispatcher that is expected to claim
    follow_link: FollowLink | None = (
        None  #: link to the winner, which has claimed and is still pulling
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
"""The allowed transitions from each phase."""
