"""What it means for this node that the link to a peer came or went.

Owns the consequences only: `membership` knows the peers, `election` the roles.
"""

from __future__ import annotations

from octaskly.core.effects import Disconnect, Effect, Note
from octaskly.core.events import PeerUp
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.keys import REVOKED, KeysChanged, KeysEvent
from octaskly.core.node.components import Machines
from octaskly.core.protocol.messages import ATTACHED, PROTOCOL, STOPPING, Message


class Links:
    """The links of one node, and who loses what with one of them."""

    def __init__(self, machines: Machines) -> None:
        self._me = machines.settings.node.id
        self._timing = machines.settings.timing
        self._limits = machines.settings.limits
        self._members = machines.members
        self._hints = machines.members.hints
        self._versions = machines.versions
        self._registry = machines.registry
        self._election = machines.election
        self._watch = machines.watch
        self._claims = machines.claims
        self._exchange = machines.exchange
        self._replication = machines.replication
        self._completeness = machines.completeness
        self._dispatch = machines.dispatch
        self._vetting = machines.vetting
        self._rotation = machines.rotation

    def on_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        """A link is connected; it takes the place of any before it."""
        if event.peer == self._me:
            return []
        effects = self.on_down(event.peer, "replaced", now)
        refusal = self._rotation.refusal(event.peer)
        if refusal is not None:
            return [*effects, Disconnect(event.peer, refusal)]
        code = self._vetting.vet(event.peer, event.hello, self._election.term)
        if code is not None:
            return effects + self._refuse(event.peer, code)
        effects += self._vetting.look_at_skew(event)
        effects += self._members.on_peer_up(event, now)
        effects += self._versions.on_up(event.peer, event.hello)
        effects += self._rotation.on_up(event.peer)
        self._exchange.forget(event.peer)
        effects += self._claims.on_peer_up(event, now)
        wanted = self.wanted()
        if wanted and event.peer not in wanted:
            effects += self.cut(event.peer, ATTACHED, now)
        return effects

    def on_down(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """A link ended; a follower's attempts and copies are gone with it."""
        is_revoked = reason == REVOKED and peer in self._members.peers
        told = self._rotation.on_revoked(peer) if is_revoked else []
        return told + self._drop(peer, reason, now)

    def _drop(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        view = self._members.on_peer_down(peer, now)
        if view is None:
            return []
        if reason != ATTACHED:
            self._replication.discount(peer)
        effects: list[Effect] = []
        reign = self._election.reign
        if reign is not None:
            self._completeness.on_lost(peer, view, reason, now.mono_s)
            if view.follows == reign.epoch:
                effects = self._lose(peer, reason, now, is_worker=view.is_worker)
        return effects + self._miss(peer, reason, now)

    def _miss(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """What a peer owed will not come; if it was dispatcher, it may be dead."""
        self._exchange.forget(peer)
        return self._watch.on_peer_down(peer, reason, now)

    def expel(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """End the link to a peer that must not be there; what it had is lost."""
        return [Disconnect(peer, reason), *self._drop(peer, reason, now)]

    def cut(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Close a link, which is then as lost as one that broke."""
        effects = self._members.disconnect(peer, reason, now)
        return effects + self._miss(peer, reason, now)

    def turn_away(self, peer: NodeId, message: Message, now: Moment) -> list[Effect]:
        """End the link to a peer that says what cannot be; nothing if all is well."""
        code = self._vetting.vet(peer, message, self._election.term)
        if code is None:
            return []
        lost = self.on_down(peer, f"{PROTOCOL}{code}", now)
        return [*self._refuse(peer, code), *lost]

    def judge_followers(self, now: Moment) -> list[Effect]:
        """Give up the followers of this reign that are silent for too long."""
        reign = self._election.reign
        assert reign is not None
        lost_s = self._timing.lost_s * self._election.patience.factor(now)
        effects: list[Effect] = []
        for peer, view in tuple(self._members.followers(reign.epoch)):
            heard_s = self._election.patience.heard_s(view.frame_s)
            if now.mono_s - heard_s >= lost_s:
                effects += self._members.disconnect(peer, "silent", now)
                self._completeness.on_lost(peer, view, "silent", now.mono_s)
                self._replication.discount(peer)
                effects += self._lose(peer, "silent", now, is_worker=view.is_worker)
        return effects

    def wanted(self) -> frozenset[NodeId]:
        """Return the only nodes worth a link; empty: all are."""
        election = self._election
        if election.attachment is None or election.reign is not None:
            return frozenset()
        most = self._limits.full_mesh_peers
        return self._registry.needed(election.dispatcher, self._me, most)

    def dial_held(self, now: Moment) -> list[Effect]:
        """Dial nodes in sight that are due and still worth a link."""
        if not self._hints.has_dials:
            return []
        return self._hints.dial_held(self.wanted(), now)

    def drop_surplus(self, now: Moment) -> list[Effect]:
        """In a large mesh, keep only the links that a takeover needs."""
        wanted = self.wanted()
        effects: list[Effect] = []
        for peer, view in tuple(self._members.peers.items()) if wanted else ():
            if peer in wanted:
                continue
            if view.dispatcher != self._election.dispatcher:
                effects += self._claims.correct(peer)  # It may be about to claim.
            effects += self.cut(peer, ATTACHED, now)
        return effects

    def _refuse(self, peer: NodeId, code: str) -> list[Effect]:
        told = self._vetting.refuse(peer, code)
        return [*told, Disconnect(peer, f"{PROTOCOL}{code}")]

    def _lose(
        self, peer: NodeId, reason: str, now: Moment, *, is_worker: bool
    ) -> list[Effect]:
        """A follower of this reign is gone; its attempts may run elsewhere."""
        is_leaving = reason in (STOPPING, ATTACHED, REVOKED)
        self._registry.on_lost(peer, now, is_leaving=is_leaving)
        self._replication.on_lost(peer, now, is_leaving=is_leaving)
        note = Note("info", "peer lost", (("peer", peer), ("reason", reason)))
        if not is_worker:
            return [note]
        return [note, *self._dispatch.on_worker_down(peer, now)]


class Custody:
    """Ends the links of revoked nodes, and the work of this one if it is one."""

    def __init__(self, machines: Machines, links: Links) -> None:
        self._rotation = machines.rotation
        self._worker = machines.worker
        self._links = links
        self._candidacy = machines.candidacy
        self._election = machines.election
        self._hints = machines.members.hints
        self._dispatch, self._clerk = machines.dispatch, machines.clerk
        self._shun()
        if machines.rotation.is_revoked:
            self._candidacy.withdraw()

    def on_event(self, event: KeysEvent, now: Moment) -> list[Effect]:
        """Renew the secret, or go by the one that is there now."""
        if not isinstance(event, KeysChanged):
            return self._rotation.on_asked(event, now)
        effects = self._rotation.on_changed(event, now)
        effects += self._expel(now)
        self._rotation.let_in()
        self._shun()
        stance = self._worker.stance
        if self._rotation.is_revoked and not stance.is_revoked:
            effects += self._worker.take_stance(stance.revoked(), now)
            # It is lost to the others, who run it again.
            effects += self._worker.give_up()
            self._candidacy.withdraw()
            effects += self._election.seek("revoked", now)
        return effects

    def on_time(self, now: Moment, *, is_reigning: bool) -> list[Effect]:
        """Take the step of a rotation that is due."""
        effects = self._expel(now)
        if is_reigning:
            effects += self._rotation.on_time(now)
        if is_reigning and self._dispatch.is_accepting:
            effects += self._clerk.write(self._rotation.unwritten(), now)
        return effects

    def _shun(self) -> None:
        rotation = self._rotation
        self._hints.shun(rotation.keys.denied, shuns_all=rotation.is_revoked)

    def _expel(self, now: Moment) -> list[Effect]:
        effects: list[Effect] = []
        for peer, reason in self._rotation.unwanted(now):
            effects += self._links.expel(peer, reason, now)
        return effects
