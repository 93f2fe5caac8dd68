"""Heartbeats of a dispatcher, and repeated claims to peers that did not confirm.

A claim is repeated because its answer may have been lost. Above the full-mesh limit,
workers that are not standbys get only every third heartbeat, which limits traffic;
their suspicion timeout is three times as long.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, Send
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.ids import DispatcherEpoch, Moment, NodeId
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import Claim, Heartbeat
from octaskly.core.replication.journal import Journal

HASTENED_HEARTBEAT_S = (
    0.03  #: interval of heartbeats while a request waits for an answer
)
PLAIN_WORKER_HEARTBEATS = 3  #: a plain worker gets every third heartbeat


class Heartbeats:
    """The schedule and recipients of this dispatcher's heartbeats and claims."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        peer_table: PeerTable,
        timers: TimerHeap,
    ) -> None:
        self._next_heartbeat_s = 0.0
        self._timers = timers
        self._timing = settings.timing
        self._limits = settings.limits
        self._journal = journal
        self._peer_table = peer_table
        self._heartbeat_count = 0
        self._last_heartbeat_s = 0.0  #: when the last heartbeat was sent
        self._next_claim_s = 0.0

    def start_heartbeats(
        self, dispatcher_epoch: DispatcherEpoch, now: Moment
    ) -> list[Effect]:
        """Send the claim to all connected peers; the first heartbeat is due at once."""
        self._set_next_heartbeat(now.mono_s)
        self._next_claim_s = now.mono_s + self._claim_timeout_s
        return self._send_claims(dispatcher_epoch, now)

    def is_due(self, now: Moment) -> bool:
        """Return True if the next heartbeat is due."""
        return now.mono_s >= self._next_heartbeat_s

    def on_time(self, dispatcher_epoch: DispatcherEpoch, now: Moment) -> list[Effect]:
        """Send heartbeats that are due; repeat the claim to peers without an answer."""
        if not self.is_due(now):
            return []
        self._last_heartbeat_s = now.mono_s
        self._set_next_heartbeat(now.mono_s + self._timing.heartbeat_s)
        heartbeat = Heartbeat(dispatcher_epoch.epoch, now.mono_s)
        effects: list[Effect] = [
            Send(node, (heartbeat,)) for node in self.next_recipients(dispatcher_epoch)
        ]
        if now.mono_s >= self._next_claim_s:
            self._next_claim_s = now.mono_s + self._claim_timeout_s
            effects += self._send_claims(
                dispatcher_epoch, now, min_age_s=self._claim_timeout_s
            )
        return effects

    @property
    def _claim_timeout_s(self) -> float:
        """Seconds to wait for answers to a claim; longer if many peers answer."""
        connected = len(self._peer_table.peers)
        return self._timing.claim_wait_s * self._limits.full_mesh_ratio(connected)

    def hasten_heartbeat(self) -> None:
        """Send the next heartbeat soon: `HASTENED_HEARTBEAT_S` after the last one."""
        self._set_next_heartbeat(
            min(self._next_heartbeat_s, self._last_heartbeat_s + HASTENED_HEARTBEAT_S)
        )

    def stop_heartbeats(self) -> None:
        """Stop sending heartbeats."""
        self._timers.clear(Timer.HEARTBEAT)

    def _set_next_heartbeat(self, at_s: float) -> None:
        self._next_heartbeat_s = at_s
        self._timers.set(Timer.HEARTBEAT, at_s)

    def claim_message(self, dispatcher_epoch: DispatcherEpoch) -> Claim:
        """Return the claim with this node's current vector."""
        return Claim(
            dispatcher_epoch.epoch,
            dispatcher_epoch.stream,
            self._journal.vector_items(),
            self._journal.retired_summary(),
        )

    def next_recipients(self, dispatcher_epoch: DispatcherEpoch) -> list[NodeId]:
        """Count one more heartbeat and return its recipients."""
        self._heartbeat_count += 1
        followers = list(self._peer_table.followers(dispatcher_epoch.epoch))
        is_all = len(followers) < self._limits.full_mesh_peers
        is_all = is_all or self._heartbeat_count % PLAIN_WORKER_HEARTBEATS == 0
        return [node for node, view in followers if is_all or view.is_standby]

    def _send_claims(
        self, dispatcher_epoch: DispatcherEpoch, now: Moment, *, min_age_s: float = 0.0
    ) -> list[Effect]:
        """Send the claim to unconfirmed peers with a link at least `min_age_s` old."""
        claim = self.claim_message(dispatcher_epoch)
        return [
            Send(peer, (claim,))
            for peer in sorted(self._peer_table.peers)
            if self._peer_table.peers[peer].followed_epoch != dispatcher_epoch.epoch
            and now.mono_s - self._peer_table.peers[peer].connected_s >= min_age_s
        ]
