"""A node that knows of no dispatcher: when its turn to claim comes, and whom it asks.

It waits for those that rank before it, and asks about a dispatcher that others name
and that it cannot reach.
"""

from __future__ import annotations

from octaskly.core.effects import Effect
from octaskly.core.model import Moment, NodeId
from octaskly.core.phases import Phases
from octaskly.core.suspicion import Judgement, Suspicion

PROBED_MAX = 16  #: peers asked about a suspect
SUCCESSORS_DIALLED = 3


class Seeking(Phases):
    """The way of one node from its start, or from a loss, to its claim."""

    _step: Moment | None = None  #: the last one

    def _seek_ends_s(self) -> float:
        timing = self._timing
        window_s = timing.seek_s + self._jitter_s
        if self._members.is_alone:
            window_s = timing.seek_alone_s
        elif self._members.is_meeting:
            window_s += self._members.meet_s  # Slow handshakes; dead ones fail before.
        return self._since_s + window_s

    def _turn_comes_s(self, now: Moment) -> float:
        """Return when those that are better, or may be, have had their time."""
        mine = self.standing(now)
        members, me = self._members, self._info.id
        views = members.peers.values()
        better = sum(self.versions.rank(view, now) < mine for view in views)
        better += sum(node < me for node in members.awaited())
        return self._seek_ends_s() + better * self._timing.claim_wait_s

    def _seek_due_s(self) -> float:
        """Return when this node has its turn, asks on, or awaits one less."""
        if self._step is None:
            return self._seek_ends_s()
        due_s = self._turn_comes_s(self._step)
        if self._suspicion is not None:
            due_s = max(due_s, self._suspicion.deadline())
        return min(due_s, self._members.awaited_until_s)

    def _on_seeking(self, now: Moment) -> list[Effect]:
        if self.is_stopping or now.mono_s < self._turn_comes_s(now):
            return []
        return self._inquire(now)

    def _inquire(self, now: Moment) -> list[Effect]:
        """Claim, unless a peer still hears the dispatcher that it named."""
        peers = self._members.peers
        suspicion = self._suspicion
        if suspicion is not None:
            match suspicion.judge(now):
                case Judgement.HOLD:
                    return []
                case Judgement.WAIT if not suspicion.is_asking_due(now):
                    return []
                case Judgement.WAIT:
                    self._suspicion = None
                case Judgement.DEAD:
                    self._suspicion = None
                    for view in peers.values():
                        if view.dispatcher == suspicion.about:
                            view.dispatcher = None
        named = [v for v in peers.values() if self._names_absent(v.dispatcher)]
        if not named:
            return self._take_over("no dispatcher found", now)
        about = max(named, key=lambda view: view.epoch).dispatcher
        assert about is not None
        return self._suspect(about, now)

    def _names_absent(self, dispatcher: NodeId | None) -> bool:
        me, peers = self._info.id, self._members.peers
        return dispatcher not in (None, me) and dispatcher not in peers

    def _suspect(self, about: NodeId, now: Moment) -> list[Effect]:
        members = self._members
        self._miss(now)
        if self._suspicion is None or self._suspicion.about != about:
            patience = self.patience.factor(now)
            self._suspicion = Suspicion(about, self._timing, patience)
        first = [node for node in self.successors if node in members.peers]
        rest = [node for node in sorted(members.peers) if node not in first]
        effects = self._suspicion.ask((first + rest)[:PROBED_MAX], now)
        for node in (about, *self.successors[:SUCCESSORS_DIALLED]):
            if node not in members.peers:
                effects += members.dial(node, members.addresses_of(node), now)
        return effects
