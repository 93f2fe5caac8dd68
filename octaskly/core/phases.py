"""The phases of a node in the mesh, and the steps from one to the next.

Owns the highest epoch seen, the reign of this node and whom its worker serves. When to
take a step is decided by `election`; here stands what a step consists of, so that
nothing is forgotten on any way into or out of a role.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from octaskly.core.effects import Effect, Note, Send
from octaskly.core.events import Saved
from octaskly.core.exchange import Exchange
from octaskly.core.journal import Journal
from octaskly.core.membership import Membership
from octaskly.core.messages import ClaimNo, ClaimOk, Redirect
from octaskly.core.model import (
    Epoch,
    Failover,
    Holdings,
    Moment,
    NodeId,
    Settings,
)
from octaskly.core.pulse import Pulse
from octaskly.core.succession import (
    Reign,
    Standing,
    covers,
    log_size,
    mint_stream,
    standing,
)
from octaskly.core.suspicion import Patience, Suspicion
from octaskly.core.versions import UNREADABLE, Versions

STAGGER_MAX = 12  #: successors beyond this many claim at the same time


class Phase(Enum):
    """Where a node stands in the mesh."""

    SEEK = "seek"
    FOLLOWER = "follower"
    TAKEOVER = "takeover"
    DISPATCHER = "dispatcher"
    YIELDING = "yielding"


@dataclass(frozen=True, slots=True)
class Attachment:
    """Whom the worker of this node serves; a new one asks it to reattach."""

    dispatcher: NodeId
    epoch: Epoch
    serial: int  #: grows with each link to the same dispatcher


class Phases:
    """The phase of one node, and every step to another."""

    def __init__(
        self,
        settings: Settings,
        saved: Saved,
        journal: Journal,
        members: Membership,
        exchange: Exchange,
    ) -> None:
        self.phase = Phase.SEEK
        self.epoch = saved.epoch  #: highest followed or reigned in
        self.dispatcher: NodeId | None = None  #: whom this node follows
        self.reign: Reign | None = None  #: durable, so in force
        self.attachment: Attachment | None = None
        self.successors: tuple[NodeId, ...] = ()  #: from the roster, best first
        self.deposed: NodeId | None = None  #: the dispatcher before this reign
        self.failover: Failover | None = None  #: how this node took over last
        self.is_stopping = False  #: a node that stops claims no more
        self.is_disk_failing = False  #: so a claim would never be durable
        self.is_handing_over = False  #: the log is complete, so it takes no results
        self.is_plain = False  #: one worker of many: its dispatcher beats it less often
        self.was_silent = (
            False  #: the dispatcher was lost by silence: it may be at work
        )
        self.patience = Patience()
        self.versions = Versions(settings, journal, members)
        self._info = settings.node
        self._timing = settings.timing
        self._journal = journal
        self._members = members
        self._exchange = exchange
        self._pulse = Pulse(settings, journal, members)
        self._suspicion: Suspicion | None = None
        self._term = max(saved.term, saved.epoch.term)  #: highest heard of
        self._draw = 0.0
        self._born_s: float | None = None
        self._since_s = 0.0  #: entry into the phase
        self._jitter_s = 0.0
        self._lost_s: float | None = None  #: last sign of a dispatcher that is missed
        self._claim: Reign | None = None  #: not durable yet
        self._claim_s: float | None = None  #: when to succeed a dead dispatcher
        self._reason = ""  #: of the last claim
        self._transfer: Holdings | None = None
        """What the dispatcher that hands over holds, while this node lacks some."""
        self._heir_of: Epoch | None = None  #: the reign that handed over to our claim
        self._winner: NodeId | None = None  #: whose claim a yielding node awaits
        self._epoch_number = 0  #: of the `Save` that made `epoch` durable
        self._serial = 0  #: of the last dispatcher that was followed, or reign begun
        self._joined = 0  #: the serial with which the dispatcher was told

    @property
    def term(self) -> int:
        """The highest term that was heard of."""
        return self._term

    @property
    def known_dispatcher(self) -> NodeId | None:
        """The dispatcher that this node can reach, itself included."""
        if self.reign is not None:
            return self._info.id
        return self.dispatcher if self.dispatcher in self._members.peers else None

    def uptime_s(self, now: Moment) -> float:
        """Return the seconds since the first step."""
        return 0.0 if self._born_s is None else now.mono_s - self._born_s

    def standing(self, now: Moment) -> Standing:
        """Return this node's own rank as a candidate."""
        size = log_size(self._journal.vector.items())
        rank = standing(self._info, size, self.uptime_s(now))
        is_last = self.is_disk_failing or self.versions.is_outdated
        return (True, *rank[1:]) if is_last else rank

    @property
    def _is_fit(self) -> bool:
        """Whether this node may reign at all."""
        return self._info.electable and not (self.is_stopping or self.is_disk_failing)

    def _outreads(self, peer: NodeId) -> bool:
        """Whether this node may reign, and that peer cannot read its log."""
        return self._is_fit and not self.versions.reads_ours(peer)

    # Seeking

    def seek(self, reason: str, now: Moment) -> list[Effect]:
        """Look for a mesh; whatever role there was is over."""
        if self._born_s is None:
            self._born_s = now.mono_s
        self._enter(Phase.SEEK, now)
        self._jitter_s = self._timing.seek_jitter_s * self._draw
        return [Note("info", "seeking", (("reason", reason),))]

    def _enter(self, phase: Phase, now: Moment) -> None:
        """Leave every role, and begin the phase without a trace of the last."""
        self.phase = phase
        self.dispatcher = None
        self.reign = None
        self.attachment = None
        self._claim = None
        self._claim_s = None
        self._suspicion = None
        self._transfer = None
        self._heir_of = None
        self._winner = None
        self.is_handing_over = False
        self._since_s = now.mono_s

    def _miss(self, now: Moment) -> None:
        """Count from now how long there is no dispatcher."""
        if self._lost_s is None:
            self._lost_s = now.mono_s

    # Following

    def _follow(
        self, peer: NodeId, epoch: Epoch, vector: Holdings, reason: str, now: Moment
    ) -> list[Effect]:
        """Follow a dispatcher whose epoch is not behind the highest seen."""
        assert epoch >= self.epoch
        if self._outreads(peer):
            return self._claim_above(epoch, UNREADABLE, now)
        effects = self.versions.on_followed(peer)
        if self.reign is not None:
            effects += self._send_on(peer, epoch)
        elif self.dispatcher not in (None, peer):
            effects += self._redirect((self.dispatcher,), peer, epoch)
        had_role = self.reign is not None or self.phase is Phase.YIELDING
        self._enter(Phase.FOLLOWER, now)
        self._lost_s = self.deposed = None
        self.was_silent = self.is_plain = False
        if had_role and not covers(dict(vector), self._journal.vector_items()):
            self.phase = Phase.YIELDING
        self.dispatcher = peer
        self._term = max(self._term, epoch.term)
        if epoch > self.epoch:
            self.patience.on_reign(now)
            self.epoch = epoch
            effects.append(self._journal.save(term=self._term, epoch=epoch))
            self._epoch_number = self._journal.number
        fields = (("peer", peer), ("term", epoch.term), ("reason", reason))
        effects.append(Note("info", "dispatcher followed", fields))
        # The epoch is on disk before anything starts under it: a restart must not
        # bring back a worker that takes orders of an older one.
        self._serial += 1
        serial = self._serial
        if self._journal.is_settled:
            return effects + self._join(serial)
        self._journal.after(lambda _: self._join(serial), self._epoch_number)
        return effects

    def _join(self, serial: int) -> list[Effect]:
        """Tell the dispatcher that this node follows, and serve it."""
        peer = self.dispatcher
        if serial != self._serial or peer not in self._members.peers:
            return []
        if self.phase not in (Phase.FOLLOWER, Phase.YIELDING):
            return []
        assert peer is not None
        self._joined = serial
        if self.phase is Phase.FOLLOWER:
            self.attachment = Attachment(peer, self.epoch, serial)
        return [self._claim_ok(peer)]

    def _claim_ok(self, peer: NodeId) -> Send:
        journal = self._journal
        said = ClaimOk(self.epoch, journal.vector_items(), journal.ahead_items())
        return Send(peer, (said,))

    def tell_holdings(self, source: NodeId) -> list[Effect]:
        """Tell the dispatcher that entries came from elsewhere: it may lack them."""
        peer = self.dispatcher
        if peer in (None, source) or self._joined != self._serial:
            return []
        assert peer is not None
        return [self._claim_ok(peer)]

    def _settle(self, reason: str, now: Moment) -> list[Effect]:
        """The dispatcher holds what this node wrote, or will: its worker serves it."""
        assert self.dispatcher is not None
        self.phase = Phase.FOLLOWER
        self._since_s = now.mono_s
        self.attachment = Attachment(self.dispatcher, self.epoch, self._serial)
        fields = (("peer", self.dispatcher), ("reason", reason))
        return [Note("info", "yielded", fields)]

    def correct(self, peer: NodeId) -> list[Effect]:
        """Tell a deposed dispatcher whom this node follows, or at least how late."""
        if self.reign is None and self.attachment is not None:
            assert self.dispatcher is not None
            return self._redirect((peer,), self.dispatcher, self.epoch)
        return [Send(peer, (ClaimNo(self._bound()),))]

    def _send_away(self, peer: NodeId) -> list[Effect]:
        """Tell a peer that would follow this node, which has given way, whom to follow.

        Else it would take the silence here for a death, and claim.
        """
        other = self._winner or self.dispatcher
        if self.reign is not None or other in (None, peer):
            return []
        assert other is not None
        return self._redirect((peer,), other, self.epoch)

    # Reigning

    def _turn_s(self, gone: NodeId | None) -> float:
        """Return how long others may claim before this node, as the roster has them."""
        before = [node for node in self.successors if node != gone]
        me = self._info.id
        place = before.index(me) if me in before else len(before)
        wait_s = min(place, STAGGER_MAX) * self._timing.stagger_s
        mine = log_size(self._journal.vector.items())
        if any(
            log_size(view.vector.items()) > mine and view.is_candidate
            for view in self._members.peers.values()
        ):
            wait_s += self._timing.claim_wait_s  # A fuller log goes first.
        return wait_s

    def _bound(self) -> Epoch:
        """Return the epoch below which nobody is followed.

        A claim of the first hour binds only once it is durable; one that renews a
        reign binds at once, since this node reigns either way.
        """
        if self._claim is not None and self.reign is not None:
            return max(self.epoch, self._claim.epoch)
        return self.epoch

    def _take_over(self, reason: str, now: Moment) -> list[Effect]:
        """Claim: the new epoch and its stream go to the disk before anybody hears."""
        self._term = max(self._term, self.epoch.term) + 1
        epoch = Epoch(self._term, self._info.id)
        stream = mint_stream(self._info, self._term, self._draw)
        assert stream not in self._journal.vector
        claim = Reign(epoch, stream)
        if self.reign is None:
            self._enter(Phase.TAKEOVER, now)
        self._claim = claim
        self._reason = reason
        effects = self.versions.on_claim()
        save = self._journal.save(term=self._term, epoch=epoch, stream=(stream, epoch))
        number = self._journal.number
        self._journal.after(lambda at: self._crown(claim, number, at))
        fields = (("term", epoch.term), ("reason", reason))
        return [*effects, save, Note("info", "claiming", fields)]

    def _claim_above(self, epoch: Epoch, reason: str, now: Moment) -> list[Effect]:
        """Claim again so that this reign stands above `epoch`; once is enough."""
        if self._claim is not None and self._claim.epoch > epoch:
            return []
        self._term = max(self._term, epoch.term)
        return self._take_over(reason, now)

    def _crown(self, claim: Reign, number: int, now: Moment) -> list[Effect]:
        """The claim is durable: reign, unless somebody else was followed since."""
        if self._claim is not claim:
            return []
        self._enter(Phase.DISPATCHER, now)
        self.patience.on_reign(now)
        if self._lost_s is not None:
            lasted_ms = round((now.mono_s - self._lost_s) * 1000)
            self.failover = Failover(now.wall_ms, lasted_ms, self._reason)
            self._lost_s = None
        self.reign = claim
        self.epoch = claim.epoch
        self._epoch_number = number
        self._serial += 1
        self.attachment = Attachment(self._info.id, claim.epoch, self._serial)
        fields = (
            ("term", claim.epoch.term),
            ("peers", len(self._members.peers)),
            ("reason", self._reason),
        )
        note = Note("info", "dispatcher elected", fields)
        return [*self._pulse.begin(claim, now), note]

    # Yielding

    def _yield(self, winner: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Stop at once, and wait for the winner's claim."""
        if self._outreads(winner):
            return self._claim_above(self._bound(), UNREADABLE, now)
        effects = self._send_on(winner, self.epoch)
        self._enter(Phase.YIELDING, now)
        self._winner = winner
        fields = (("peer", winner), ("reason", reason))
        return [*effects, Note("info", "yielding", fields)]

    def _send_on(self, dispatcher: NodeId, epoch: Epoch) -> list[Effect]:
        """Send this reign's followers to another dispatcher."""
        assert self.reign is not None
        own = self._members.followers(self.reign.epoch)
        peers = tuple(peer for peer, _ in own if peer != dispatcher)
        return self._redirect(peers, dispatcher, epoch)

    def _redirect(
        self, peers: tuple[NodeId | None, ...], dispatcher: NodeId, epoch: Epoch
    ) -> list[Effect]:
        addresses = self._members.addresses_of(dispatcher)
        redirect = Redirect(epoch, dispatcher, addresses)
        return [
            Send(peer, (redirect,))
            for peer in peers
            if peer is not None and peer in self._members.peers
        ]
