"""Where a node stands in the mesh, and what each move from phase to phase consists of.

Owns the phase, the highest epoch seen, and what is known of a dispatcher that was lost;
`reign` and `attachment` are what the rest of the node goes by. When to move is decided
by `watch`, which has the time, and by `claims`, which hears the peers; here stands what
belongs to a move, so that nothing is forgotten on any way into or out of a role.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from octaskly.core.effects import Effect, Note, Send
from octaskly.core.election.candidacy import UNREADABLE, Candidacy
from octaskly.core.election.failure_detector import Patience
from octaskly.core.election.heartbeats import Pulse
from octaskly.core.election.phases import (
    MOVES,
    Attachment,
    Following,
    Phase,
    Reigning,
    Seeking,
    Succeeding,
    TakingOver,
    Tie,
    Yielding,
)
from octaskly.core.events import Saved
from octaskly.core.membership.membership import Membership
from octaskly.core.model.ids import (
    Epoch,
    Holdings,
    Moment,
    NodeId,
    Reign,
    StreamId,
    covers,
)
from octaskly.core.model.nodes import Failover, NodeInfo
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import ClaimOk, Redirect
from octaskly.core.replication.journal import Journal


def mint_stream(info: NodeInfo, term: int, draw: float) -> StreamId:
    """Return the id of a new stream: 63 bits, never zero.

    `draw` brings the chance; node, boot and term keep two claims apart that were
    given the same one.
    """
    seed = f"{info.id}/{info.boot}/{term}/{draw!r}".encode()
    number = int.from_bytes(sha256(seed).digest()[:8], "big") >> 1
    return StreamId(number or 1)


# Named, since what is asked for at each step is not put together each time.
TIED = (Following, Yielding)  #: phases of a node that follows a dispatcher
SERVING = (Following, Reigning)  #: phases in which a worker may have one


@dataclass(slots=True)
class Loss:
    """What is known of the dispatcher before, until another one is followed."""

    since_s: float | None = None  #: its last sign; None: nobody is missed
    dispatcher: NodeId | None = None
    was_silent: bool = False  #: so it may be at work still

    def miss(self, now: Moment, dispatcher: NodeId | None = None) -> None:
        """Count from now, unless somebody is missed already."""
        self.dispatcher = dispatcher or self.dispatcher
        if self.since_s is None:
            self.since_s = now.mono_s

    def on_silence(self, since_s: float) -> None:
        """It fell silent then, which is no proof of its end."""
        self.since_s, self.was_silent = since_s, True


class Election:
    """The phase of one node, and every move to another."""

    def __init__(
        self,
        settings: Settings,
        saved: Saved,
        journal: Journal,
        members: Membership,
        candidacy: Candidacy,
        pulse: Pulse,
    ) -> None:
        self.phase: Phase = Seeking(0.0, 0.0, Moment(0.0, 0))
        self.reign: Reign | None = None
        """That of the phase: durable, so in force; asked for many times in a step."""
        self.epoch = saved.epoch  #: highest followed or reigned in
        self.term = max(saved.term, saved.epoch.term)  #: highest heard of
        self.loss = Loss()
        self.failover: Failover | None = None  #: how this node took over last
        self.patience = Patience()
        self.pulse = pulse
        self._me = settings.node
        self._timing = settings.timing
        self._journal = journal
        self._members = members
        self._candidacy = candidacy
        self._versions = candidacy.versions
        self.draw = 0.0
        """Chance, as the last event that brought some has it."""
        self._epoch_number = 0  #: of the `Save` that made `epoch` durable
        self._serial = 0  #: of the last dispatcher that was followed, or reign begun

    @property
    def tie(self) -> Tie | None:
        """What ties this node to the dispatcher that it follows."""
        phase = self.phase
        return phase.tie if isinstance(phase, TIED) else None

    @property
    def dispatcher(self) -> NodeId | None:
        """Whom this node follows."""
        tie = self.tie
        return None if tie is None else tie.to.dispatcher

    @property
    def known_dispatcher(self) -> NodeId | None:
        """The dispatcher that this node can reach, itself included."""
        if self.reign is not None:
            return self._me.id
        dispatcher = self.dispatcher
        return dispatcher if dispatcher in self._members.peers else None

    @property
    def attachment(self) -> Attachment | None:
        """Whom the worker of this node serves."""
        phase = self.phase
        return phase.attachment if isinstance(phase, SERVING) else None

    @property
    def bound(self) -> Epoch:
        """The epoch below which nobody is followed.

        A claim of the first hour binds only once it is durable; one that renews a
        reign binds at once, since this node reigns either way.
        """
        phase = self.phase
        if isinstance(phase, Reigning) and phase.claim is not None:
            return max(self.epoch, phase.claim.epoch)
        return self.epoch

    @property
    def _claim(self) -> Reign | None:
        """The claim that is not durable yet."""
        phase = self.phase
        return phase.claim if isinstance(phase, TakingOver | Reigning) else None

    def hear(self, term: int) -> None:
        """A term is in use: the next claim must be above it."""
        self.term = max(self.term, term)

    def _enter(self, phase: Phase) -> None:
        assert type(phase) in MOVES[type(self.phase)]
        self.phase = phase
        self.reign = phase.reign if isinstance(phase, Reigning) else None

    # Seeking

    def start(self, now: Moment) -> list[Effect]:
        """Begin to look for a mesh."""
        self._candidacy.start(now)
        return self.seek("started", now)

    def seek(self, reason: str, now: Moment) -> list[Effect]:
        """Look for a mesh; whatever role there was is over."""
        jitter_s = self._timing.seek_jitter_s * self.draw
        self._enter(Seeking(now.mono_s, jitter_s, now))
        return [Note("info", "seeking", (("reason", reason),))]

    # Following

    def follow(
        self, peer: NodeId, epoch: Epoch, vector: Holdings, reason: str, now: Moment
    ) -> list[Effect]:
        """Follow a dispatcher whose epoch is not behind the highest seen."""
        assert epoch >= self.epoch
        if self._candidacy.outreads(peer):
            return self.claim_above(epoch, UNREADABLE)
        effects = self._versions.on_followed(peer) + self._send_on(peer, epoch)
        self._serial += 1
        tie = Tie(Attachment(peer, epoch, self._serial))
        had_role = isinstance(self.phase, Reigning | Yielding)
        if had_role and not covers(dict(vector), self._journal.vector_items()):
            self._enter(Yielding(now.mono_s, tie=tie))
        else:
            self._enter(Following(tie, now.mono_s))
        self.loss = Loss()
        self.hear(epoch.term)
        if epoch > self.epoch:
            self.patience.on_reign(now)
            self.epoch = epoch
            effects.append(self._journal.save(term=self.term, epoch=epoch))
            self._epoch_number = self._journal.number
        fields = (("peer", peer), ("term", epoch.term), ("reason", reason))
        effects.append(Note("info", "dispatcher followed", fields))
        # The epoch is on disk before anything starts under it: a restart must not
        # bring back a worker that takes orders of an older one.
        if self._journal.is_settled:
            return effects + self._join(tie)
        self._journal.after(lambda _: self._join(tie), self._epoch_number)
        return effects

    def _join(self, tie: Tie) -> list[Effect]:
        """Tell the dispatcher that this node follows, and serve it."""
        if tie is not self.tie or tie.dispatcher not in self._members.peers:
            return []
        tie.is_told = True
        if isinstance(self.phase, Following):
            self.phase.is_serving = True
        return [self._claim_ok(tie)]

    def take_rank(self, *, is_plain: bool) -> None:
        """Know whether this node is one worker of many, as the dispatcher has it."""
        if self.tie is not None:
            self.tie.is_plain = is_plain

    def tell_holdings(self, source: NodeId) -> list[Effect]:
        """Tell the dispatcher that entries came from elsewhere: it may lack them."""
        tie = self.tie
        if tie is None or tie.dispatcher == source or not tie.is_told:
            return []
        return [self._claim_ok(tie)]

    def _claim_ok(self, tie: Tie) -> Send:
        vector, ahead = self._journal.vector_items(), self._journal.ahead_items()
        return Send(tie.dispatcher, (ClaimOk(self.epoch, vector, ahead),))

    def bereave(
        self, reason: str, now: Moment, *, is_proven: bool = False
    ) -> list[Effect]:
        """The dispatcher is gone for good: its successors claim, one after another."""
        phase = self.phase
        assert isinstance(phase, Following)
        gone = phase.tie.dispatcher
        self.loss.miss(now, gone)
        if not self._candidacy.may_succeed:
            return self.seek("dispatcher lost", now)
        self._enter(Succeeding(now.mono_s, gone, is_proven, phase.transfer))
        fields = (("peer", gone), ("reason", reason))
        return [Note("warning", "dispatcher lost", fields), *self.succeed(now)]

    def turn_s(self, phase: Succeeding) -> float:
        """Return when it is this node's turn to claim."""
        wait_s = self._candidacy.wait_s(phase.gone, is_proven=phase.is_proven)
        return phase.since_s + wait_s

    def succeed(self, now: Moment) -> list[Effect]:
        """Claim in place of the lost dispatcher, once it is this node's turn."""
        phase = self.phase
        assert isinstance(phase, Succeeding)
        if now.mono_s < self.turn_s(phase):
            return []
        return self.take_over("dispatcher lost")

    # Reigning

    def take_over(self, reason: str, heir_of: Epoch | None = None) -> list[Effect]:
        """Claim: the new epoch and its stream go to the disk before anybody hears."""
        self.term = max(self.term, self.epoch.term) + 1
        epoch = Epoch(self.term, self._me.id)
        stream = mint_stream(self._me, self.term, self.draw)
        assert stream not in self._journal.vector
        claim = Reign(epoch, stream)
        if isinstance(self.phase, Reigning):
            self.phase.claim = claim
        else:
            self._enter(TakingOver(claim, heir_of))
        effects = self._versions.on_claim()
        save = self._journal.save(term=self.term, epoch=epoch, stream=(stream, epoch))
        number = self._journal.number
        self._journal.after(lambda at: self._crown(claim, number, reason, at))
        fields = (("term", epoch.term), ("reason", reason))
        return [*effects, save, Note("info", "claiming", fields)]

    def claim_above(self, epoch: Epoch, reason: str) -> list[Effect]:
        """Claim again so that this reign stands above `epoch`; once is enough."""
        if self._claim is not None and self._claim.epoch > epoch:
            return []
        self.hear(epoch.term)
        return self.take_over(reason)

    def _crown(
        self, claim: Reign, number: int, reason: str, now: Moment
    ) -> list[Effect]:
        """The claim is durable: reign, unless somebody else was followed since."""
        if self._claim is not claim:
            return []
        self._serial += 1
        own = Attachment(self._me.id, claim.epoch, self._serial)
        self._enter(Reigning(claim, own))
        self.patience.on_reign(now)
        if self.loss.since_s is not None:
            lasted_ms = round((now.mono_s - self.loss.since_s) * 1000)
            self.failover = Failover(now.wall_ms, lasted_ms, reason)
            self.loss.since_s = None
        self.epoch = claim.epoch
        self._epoch_number = number
        fields = (
            ("term", claim.epoch.term),
            ("peers", len(self._members.peers)),
            ("reason", reason),
        )
        note = Note("info", "dispatcher elected", fields)
        return [*self.pulse.begin(claim, now), note]

    # Yielding

    def yield_to(self, winner: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Stop at once, and wait for the winner's claim."""
        if self._candidacy.outreads(winner):
            return self.claim_above(self.bound, UNREADABLE)
        effects = self._send_on(winner, self.epoch)
        self._enter(Yielding(now.mono_s, winner=winner))
        fields = (("peer", winner), ("reason", reason))
        return [*effects, Note("info", "yielding", fields)]

    def part(self, now: Moment) -> None:
        """The winner that was followed is gone: another one may claim."""
        self._enter(Yielding(now.mono_s))

    def settle(self, reason: str, now: Moment) -> list[Effect]:
        """The dispatcher holds what this node wrote, or will: its worker serves it."""
        tie = self.tie
        assert tie is not None
        self._enter(Following(tie, now.mono_s, is_serving=True))
        fields = (("peer", tie.dispatcher), ("reason", reason))
        return [Note("info", "yielded", fields)]

    # Whom others are told to follow

    def _send_on(self, dispatcher: NodeId, epoch: Epoch) -> list[Effect]:
        """Send who goes by this node, or is followed by it, to another dispatcher."""
        if self.reign is not None:
            followers = self._members.followers(self.reign.epoch)
            peers = [peer for peer, _ in followers]
        else:
            peers = [] if self.dispatcher is None else [self.dispatcher]
        others = [peer for peer in peers if peer != dispatcher]
        return self.redirect(others, dispatcher, epoch)

    def redirect(
        self, peers: Iterable[NodeId], dispatcher: NodeId, epoch: Epoch
    ) -> list[Effect]:
        """Tell peers, as far as they are connected, who is dispatcher."""
        addresses = self._members.addresses_of(dispatcher)
        redirect = Redirect(epoch, dispatcher, addresses)
        return [
            Send(peer, (redirect,)) for peer in peers if peer in self._members.peers
        ]
