"""What a dispatcher says again and again: its heartbeat, and its claim.

The claim is repeated to peers that have not confirmed it: an answer may have been lost.
In a crowd, a worker that keeps no copies gets each third heartbeat alone, so that their
number does not grow with the mesh as fast; such a worker bears longer silence.
"""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Effect, Send
from octaskly.core.membership.membership import PeerTable
from octaskly.core.model.ids import DispatcherEpoch, Moment, NodeId
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import Claim, Heartbeat
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication

HASTENED_HEARTBEAT_S = (
    0.03  #: between two heartbeats, where somebody waits for their answers
)
PLAIN_WORKER_HEARTBEATS = 3  #: in a crowd, a plain worker gets each third heartbeat


class Heartbeats:
    """When this node, as dispatcher, speaks next, and to whom."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        peer_table: PeerTable,
        replication: Replication,
        timers: TimerHeap,
    ) -> None:
        self._next_heartbeat_s = 0.0
        self._timers = timers
        self._timing = settings.timing
        self._limits = settings.limits
        self._journal = journal
        self._peer_table = peer_table
        self._replication = replication
        self._heartbeat_count = 0
        self._last_heartbeat_s = 0.0  #: when the last heartbeat was sent
        self._next_claim_s = 0.0

    def start_heartbeats(
        self, dispatcher_epoch: DispatcherEpoch, now: Moment
    ) -> list[Effect]:
        """Claim before all connected peers; the first heartbeat is due at once."""
        self._set_next_heartbeat(now.mono_s)
        self._next_claim_s = now.mono_s + self._claim_timeout_s
        return self._send_claims(dispatcher_epoch, now)

    def is_due(self, now: Moment) -> bool:
        """Return True if the next heartbeat is to be sent."""
        return now.mono_s >= self._next_heartbeat_s

    def on_time(self, dispatcher_epoch: DispatcherEpoch, now: Moment) -> list[Effect]:
        """Send heartbeats, and the claim again to peers that do not follow."""
        if not self.is_due(now):
            return []
        self._last_heartbeat_s = now.mono_s
        self._set_next_heartbeat(now.mono_s + self._timing.heartbeat_s)
        heartbeat = Heartbeat(dispatcher_epoch.epoch, now.mono_s)
        effects: list[Effect] = [
            Send(node, (self._heartbeat_for(node, heartbeat),))
            for node in self.next_recipients(dispatcher_epoch)
        ]
        if now.mono_s >= self._next_claim_s:
            self._next_claim_s = now.mono_s + self._claim_timeout_s
            effects += self._send_claims(
                dispatcher_epoch, now, min_age_s=self._claim_timeout_s
            )
        return effects

    @property
    def _claim_timeout_s(self) -> float:
        """How long an answer to the claim may take: in a crowd many come at once."""
        connected = len(self._peer_table.peers)
        return self._timing.claim_wait_s * self._limits.full_mesh_ratio(connected)

    def hasten_heartbeat(self) -> None:
        """Have the next heartbeat sent soon."""
        self._set_next_heartbeat(
            min(self._next_heartbeat_s, self._last_heartbeat_s + HASTENED_HEARTBEAT_S)
        )

    def stop_heartbeats(self) -> None:
        """Send none any more."""
        self._timers.clear(Timer.HEARTBEAT)

    def _set_next_heartbeat(self, at_s: float) -> None:
        self._next_heartbeat_s = at_s
        self._timers.set(Timer.HEARTBEAT, at_s)

    def claim_message(self, dispatcher_epoch: DispatcherEpoch) -> Claim:
        """Return the claim, with what this node holds by now."""
        return Claim(
            dispatcher_epoch.epoch,
            dispatcher_epoch.stream,
            self._journal.vector_items(),
        )

    def next_recipients(self, dispatcher_epoch: DispatcherEpoch) -> list[NodeId]:
        """Count one more heartbeat; return whom it is sent to."""
        self._heartbeat_count += 1
        followers = list(self._peer_table.followers(dispatcher_epoch.epoch))
        is_all = len(followers) < self._limits.full_mesh_peers
        is_all = is_all or self._heartbeat_count % PLAIN_WORKER_HEARTBEATS == 0
        return [node for node, view in followers if is_all or view.is_standby]

    def _heartbeat_for(self, node: NodeId, heartbeat: Heartbeat) -> Heartbeat:
        """Return what is sent to one follower; all but standbys get the same."""
        if not self._replication.is_in_sync(node):
            return heartbeat
        last_ok = self._peer_table.peers[node].last_heartbeat_ok
        return replace(heartbeat, confirmed_sent_s=last_ok.sent_s if last_ok else 0.0)

    def _send_claims(
        self, dispatcher_epoch: DispatcherEpoch, now: Moment, *, min_age_s: float = 0.0
    ) -> list[Effect]:
        """Send the claim to peers that have not confirmed it on a link of this age."""
        claim = self.claim_message(dispatcher_epoch)
        return [
            Send(peer, (claim,))
            for peer in sorted(self._peer_table.peers)
            if self._peer_table.peers[peer].followed_epoch != dispatcher_epoch.epoch
            and now.mono_s - self._peer_table.peers[peer].connected_s >= min_age_s
        ]
