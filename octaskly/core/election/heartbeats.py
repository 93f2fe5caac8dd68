"""What a dispatcher says again and again: its heartbeat, and its claim.

The claim is repeated to peers that have not confirmed it: an answer may have been lost.
In a crowd, a worker that keeps no copies gets each third heartbeat alone, so that their
number does not grow with the mesh as fast; such a worker bears longer silence.
"""

from __future__ import annotations

from dataclasses import replace

from octaskly.core.effects import Effect, Send
from octaskly.core.membership.membership import Membership
from octaskly.core.model.ids import Moment, NodeId, Reign
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import Claim, Heartbeat
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication

HASTE_S = 0.03  #: between two heartbeats, where somebody waits for their answers
PLAIN_BEATS = 3  #: in a crowd, a plain worker gets each third heartbeat


class Pulse:
    """When this node, as dispatcher, speaks next, and to whom."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        members: Membership,
        replication: Replication,
    ) -> None:
        self.due_s = 0.0
        """When the next heartbeat is due."""
        self._timing = settings.timing
        self._limits = settings.limits
        self._journal = journal
        self._members = members
        self._replication = replication
        self._beats = 0
        self._beat_s = 0.0  #: when the last heartbeat was sent
        self._reclaim_s = 0.0

    def begin(self, reign: Reign, now: Moment) -> list[Effect]:
        """Claim before all connected peers; the first heartbeat is due at once."""
        self.due_s = now.mono_s
        self._reclaim_s = now.mono_s + self._answer_s
        return self._proclaim(reign, now)

    def on_time(self, reign: Reign, now: Moment) -> list[Effect]:
        """Send heartbeats, and the claim again to peers that do not follow."""
        if now.mono_s < self.due_s:
            return []
        self._beat_s = now.mono_s
        self.due_s = now.mono_s + self._timing.heartbeat_s
        beat = Heartbeat(reign.epoch, now.mono_s)
        effects: list[Effect] = [
            Send(node, (self._beat_for(node, beat),)) for node in self.beaten(reign)
        ]
        if now.mono_s >= self._reclaim_s:
            self._reclaim_s = now.mono_s + self._answer_s
            effects += self._proclaim(reign, now, min_age_s=self._answer_s)
        return effects

    @property
    def _answer_s(self) -> float:
        """How long an answer to the claim may take: in a crowd many come at once."""
        connected = len(self._members.peers)
        return self._timing.claim_wait_s * self._limits.crowding(connected)

    def hasten(self) -> None:
        """Have the next heartbeat sent soon."""
        self.due_s = min(self.due_s, self._beat_s + HASTE_S)

    def claim(self, reign: Reign) -> Claim:
        """Return the claim, with what this node holds by now."""
        return Claim(reign.epoch, reign.stream, self._journal.vector_items())

    def beaten(self, reign: Reign) -> list[NodeId]:
        """Count one more heartbeat; return whom it is sent to."""
        self._beats += 1
        followers = list(self._members.followers(reign.epoch))
        is_all = len(followers) < self._limits.full_mesh_peers
        is_all = is_all or self._beats % PLAIN_BEATS == 0
        return [node for node, view in followers if is_all or view.is_standby]

    def _beat_for(self, node: NodeId, beat: Heartbeat) -> Heartbeat:
        """Return what is sent to one follower; all but standbys get the same."""
        if not self._replication.streams_to(node):
            return beat
        health = self._members.peers[node].health
        return replace(beat, heard_s=health.sent_s if health else 0.0)

    def _proclaim(
        self, reign: Reign, now: Moment, *, min_age_s: float = 0.0
    ) -> list[Effect]:
        """Send the claim to peers that have not confirmed it on a link of this age."""
        claim = self.claim(reign)
        return [
            Send(peer, (claim,))
            for peer in sorted(self._members.peers)
            if self._members.peers[peer].follows != reign.epoch
            and now.mono_s - self._members.peers[peer].up_s >= min_age_s
        ]
