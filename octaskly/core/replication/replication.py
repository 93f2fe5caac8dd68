"""Replication: the dispatcher streams its appends to standbys.

Each append goes to this node's writer and to the standbys in the same step. Answers
wait in `pending_acks` until a standby has acknowledged their data.

Source: docs/explanation/replication.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from octaskly.core.effects import (
    Append,
    Effect,
    LogLine,
    LogWrite,
    MergeRows,
    Send,
    ServePull,
)
from octaskly.core.membership.peer import PeerView
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.ids import DispatcherEpoch, Moment, NodeId
from octaskly.core.model.nodes import NodeState, StandbyView
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import Pull, Replicate, ReplicateOk
from octaskly.core.replication.journal import Journal, return_effects
from octaskly.core.replication.log_tail import (
    LogTail,
    UnackedPart,
    append_size_bytes,
    replicate_messages,
    unacked_part,
)
from octaskly.core.replication.pending_acks import (
    ALWAYS,
    NEVER,
    PendingAcks,
    WhenReplicated,
)

STANDBYS_MAX = 2  #: electable followers that keep copies
UNACKED_BYTES_MAX = 16 << 20  #: approximate bytes in transit to one standby

DRAINING = NodeState.DRAINING


class _SyncState(Enum):
    """The state of a standby."""

    CATCHING_UP = "joining"  #: it pulls missing entries
    STREAMING = "streaming"  #: it gets each append
    IN_SYNC = "level"  #: it also acknowledges, so answers wait for it


@dataclass(slots=True)
class _StandbyProgress:
    """The state of one standby, and the appends in transit to it."""

    last_active_s: float  #: time of its latest PULL or acknowledgement
    sync_state: _SyncState = _SyncState.CATCHING_UP
    acked: int = 0
    unacked: deque[UnackedPart] = field(default_factory=deque)
    unacked_bytes: int = 0


class Replication:
    """The standbys, the appends in transit to them, and the waiting answers."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        peer_table: PeerTable,
        timers: TimerHeap,
    ) -> None:
        self._timers = timers
        self._timing = settings.timing
        self._limits = settings.limits
        self._journal = journal
        self.peer_table = peer_table
        self._dispatcher_epoch: DispatcherEpoch | None = None
        self._standbys: dict[NodeId, _StandbyProgress] = {}
        self._dropped_as_slow_s: dict[NodeId, float] = {}
        """Time at which each node was last dropped as too slow."""
        self._log_tail = LogTail(settings.limits)
        self._last_streamed = 0  #: number of the latest streamed append
        self._pending_acks = PendingAcks(
            journal, settings.timing.replication_wait_s, self._acked_standbys, timers
        )
        self._was_in_sync = False  #: a standby was in sync at the latest check
        self._seen_peer_changes = -1  #: change count at the latest choice
        self._next_choice_s = NEVER  #: time at which a slow node may be chosen again

    # --- The epoch.

    def start_replicating(
        self,
        dispatcher_epoch: DispatcherEpoch,
        now: Moment,
        *,
        expects_standbys: bool,
        alone_since_s: float = NEVER,
    ) -> None:
        """Start an epoch; with `expects_standbys`, answers first wait for one.

        Args:
            dispatcher_epoch: The new epoch.
            now: Both clocks.
            expects_standbys: Other nodes may follow.
            alone_since_s: Time since which this node has had no peer. The wait counts
                from then: while the node looked for peers, it waited for them already.
        """
        self._dispatcher_epoch = dispatcher_epoch
        self._clear_standbys()
        self._log_tail.restart_from(self._journal.vector)
        self._last_streamed = self._journal.last_number
        self._pending_acks.unreplicated_since_s = (
            min(now.mono_s, alone_since_s) if expects_standbys else ALWAYS
        )

    def stop_replicating(self, now: Moment) -> None:
        """End the epoch; waiting answers still report their number of copies.

        A standby that was in sync may become dispatcher without the appends that it has
        not acknowledged. So an answer with one copy still waits for
        `replication_wait_s`.
        """
        self._pending_acks.note_current_copies()
        if not self._pending_acks.is_unreplicated:
            self._pending_acks.unreplicated_since_s = now.mono_s
        self._dispatcher_epoch = None
        self._clear_standbys()

    def _clear_standbys(self) -> None:
        self._standbys.clear()
        self._dropped_as_slow_s.clear()
        self._log_tail.restart_from({})
        self._was_in_sync = False
        self._seen_peer_changes = -1
        self._next_choice_s = NEVER

    # --- State.

    @property
    def standby_nodes(self) -> tuple[NodeId, ...]:
        """The standbys in order of succession: in-sync ones first."""
        standbys = self._standbys
        in_sync = _SyncState.IN_SYNC
        return tuple(
            sorted(standbys, key=lambda node: standbys[node].sync_state is not in_sync)
        )

    @property
    def has_in_sync_standby(self) -> bool:
        """Return True if a standby is in sync."""
        return _SyncState.IN_SYNC in [
            standby.sync_state for standby in self._standbys.values()
        ]

    @property
    def has_no_pending_acks(self) -> bool:
        """Return True if no answer waits."""
        return self._pending_acks.is_empty

    def is_in_sync(self, node: NodeId) -> bool:
        """Return True if `node` is an in-sync standby."""
        standby = self._standbys.get(node)
        return standby is not None and standby.sync_state is _SyncState.IN_SYNC

    def has_acked_all(self, node: NodeId) -> bool:
        """Return True if `node` is a standby that has acknowledged everything."""
        standby = self._standbys.get(node)
        return standby is not None and standby.acked >= self._journal.last_append

    def standby_views(self) -> tuple[StandbyView, ...]:
        """Return the standbys in order, each with its lag in entries."""
        return tuple(
            self._standby_view(node, self._standbys[node])
            for node in self.standby_nodes
        )

    def _standby_view(self, node: NodeId, standby: _StandbyProgress) -> StandbyView:
        if standby.sync_state is not _SyncState.CATCHING_UP:
            lag = sum(part.entry_count for part in standby.unacked)
        else:
            peer_vector = self.peer_table.peers[node].vector
            vector = self._journal.vector.items()
            lag = sum(
                max(0, seq - peer_vector.get(stream, 0)) for stream, seq in vector
            )
        return StandbyView(node, standby.sync_state is _SyncState.IN_SYNC, lag)

    # --- Answers.

    def when_replicated(self, callback: WhenReplicated, now: Moment) -> list[Effect]:
        """Call `callback` once everything appended so far is replicated."""
        return self._pending_acks.when_replicated(callback, now)

    def has_copies_of_all(self, now: Moment) -> bool:
        """Return True if everything that is known here is replicated."""
        return not self._journal.is_merging and self._pending_acks.would_release(now)

    def release_acks(self, now: Moment) -> list[Effect]:
        """Release the answers that are sufficiently replicated, in order."""
        return self._pending_acks.release_acks(now)

    def discount_node(self, node: NodeId) -> None:
        """Stop counting a lost node's copies for answers of an earlier epoch."""
        self._pending_acks.discount_node(node)

    def _acked_standbys(self, number: int) -> frozenset[NodeId]:
        if not self._standbys:
            return frozenset()
        in_sync = _SyncState.IN_SYNC
        return frozenset(
            node
            for node, standby in self._standbys.items()
            if standby.sync_state is in_sync and standby.acked >= number
        )

    # --- Streaming.

    def on_log_write(self, append: LogWrite, now: Moment) -> list[Effect]:
        """Stream a write of this node to the standbys."""
        if self._dispatcher_epoch is None:
            return []
        if isinstance(append, MergeRows):
            return self._restart_standbys(now) if append.is_last else []
        self._last_streamed = append.number
        standbys = [
            (node, standby)
            for node, standby in self._standbys.items()
            if standby.sync_state is not _SyncState.CATCHING_UP
        ]
        # Skip the count if possible: it is slow for a large request, which is one step.
        is_counted = bool(standbys) or self._log_tail.may_keep(append)
        size_bytes = append_size_bytes(append) if is_counted else 0
        self._log_tail.add(append, size_bytes)
        if not standbys:
            return []
        part = unacked_part((append,), append.number, size_bytes, now)
        # All standbys share the messages, so that they are encoded once.
        messages = self._replicate_messages(self._dispatcher_epoch, (append,))
        return [
            effect
            for node, copy in standbys
            for effect in self._stream_part(node, copy, part, messages, now)
        ]

    def _restart_standbys(self, now: Moment) -> list[Effect]:
        """Restart the catch-up of all standbys: the tail cannot carry snapshot rows."""
        self._log_tail.restart_from(self._journal.vector)
        effects: list[Effect] = []
        for node, standby in self._standbys.items():
            self._restart_catch_up(standby, now)
            effects += self._start_streaming(node, standby, now) or self._serve_pull(
                node, now
            )
        return effects

    def _stream_part(
        self,
        node: NodeId,
        standby: _StandbyProgress,
        part: UnackedPart,
        messages: tuple[Replicate, ...],
        now: Moment,
    ) -> list[Effect]:
        if standby.unacked_bytes + part.size_bytes > UNACKED_BYTES_MAX:
            # More would close the link. The standby pulls the rest at its own pace.
            self._restart_catch_up(standby, now)
            return self._serve_pull(node, now)
        if not standby.unacked:
            timeout_s = self._timing.standby_timeout_s
            self._timers.set_earlier(Timer.REPLICATION, now.mono_s + timeout_s)
        standby.unacked.append(part)
        standby.unacked_bytes += part.size_bytes
        return [Send(node, messages)]

    def _serve_pull(self, node: NodeId, now: Moment) -> list[Effect]:
        """Send a standby the first missing entries; it then pulls the rest.

        Only durable entries can be read, and an empty answer would end its pulls.
        """
        view = self.peer_table.peers[node]
        vector = tuple(sorted(view.vector.items()))
        serve = ServePull(node, vector, None, self._retired_count_of(view))
        return self._journal.when_durable(partial(return_effects, [serve]), now)

    def _retired_count_of(self, view: PeerView) -> int | None:
        """Return how many of the first retired streams a peer knows, or None."""
        return self._journal.retired_count_of(view.retired.digest, view.included_digest)

    def _restart_catch_up(self, standby: _StandbyProgress, now: Moment) -> None:
        """Set a standby back to catching up."""
        if standby.sync_state is _SyncState.IN_SYNC:
            self.peer_table.count_change()
        standby.sync_state = _SyncState.CATCHING_UP
        standby.last_active_s = now.mono_s
        standby.unacked.clear()
        standby.unacked_bytes = 0
        cooldown_s = self._timing.standby_cooldown_s
        self._timers.set_earlier(Timer.REPLICATION, now.mono_s + cooldown_s)
        if not self._pending_acks.is_unreplicated and not self.has_in_sync_standby:
            self._pending_acks.unreplicated_since_s = now.mono_s

    # --- Standbys.

    def on_pull(self, node: NodeId, message: Pull, now: Moment) -> list[Effect]:
        """Answer a PULL; stream to a standby if the tail has all that it lacks."""
        standby = self._standbys.get(node)
        if standby is None or message.cursor is not None:
            if standby is not None:
                standby.last_active_s = now.mono_s
            known = self._journal.retired_count_of(
                message.retired.digest, message.included
            )
            return [ServePull(node, message.vector, message.cursor, known)]
        # A streaming standby pulls only if it has detected a gap.
        self._restart_catch_up(standby, now)
        return self._start_streaming(node, standby, now) or self._serve_pull(node, now)

    def on_merging(self, node: NodeId, now: Moment) -> None:
        """Note that a standby merges a snapshot, and so sends no PULL."""
        if (standby := self._standbys.get(node)) is not None:
            standby.last_active_s = now.mono_s

    def on_replicate_ok(
        self, node: NodeId, message: ReplicateOk, now: Moment
    ) -> list[Effect]:
        """Record an acknowledgement: the standby has made an append durable."""
        standby = self._standbys.get(node)
        dispatcher_epoch = self._dispatcher_epoch
        if (
            standby is None
            or dispatcher_epoch is None
            or message.epoch != dispatcher_epoch.epoch
        ):
            return []
        if message.number > self._last_streamed:
            return []  # No standby can hold an append that was never sent.
        standby.last_active_s = now.mono_s
        standby.acked = max(standby.acked, message.number)
        peer_vector = self.peer_table.peers[node].vector
        while standby.unacked and standby.unacked[0].number <= standby.acked:
            part = standby.unacked.popleft()
            standby.unacked_bytes -= part.size_bytes
            for stream, seq in part.last_seqs.items():
                # It may hold more, from an epoch of its own.
                peer_vector[stream] = max(seq, peer_vector.get(stream, 0))
        effects: list[Effect] = []
        if standby.sync_state is _SyncState.STREAMING:
            effects.append(self._mark_in_sync(node, standby))
        effects += self.release_acks(now)
        if not standby.unacked:  # The common case: nothing is in transit.
            self._timers.set(Timer.REPLICATION, self.deadline())
        return effects

    def _mark_in_sync(self, node: NodeId, standby: _StandbyProgress) -> LogLine:
        """Mark a standby in sync, so that answers wait for it."""
        standby.sync_state = _SyncState.IN_SYNC
        self._pending_acks.unreplicated_since_s = None
        self._dropped_as_slow_s.pop(node, None)
        self.peer_table.count_change()
        return LogLine("info", "standby in sync", (("peer", node),))

    def on_follower_lost(self, node: NodeId, now: Moment, *, is_leaving: bool) -> None:
        """Drop a standby whose link ended."""
        if node in self._standbys:
            self._drop_standby(node, now.mono_s)
            if is_leaving and not self._has_candidates():
                self._pending_acks.unreplicated_since_s = ALWAYS

    def _has_candidates(self) -> bool:
        dispatcher_epoch = self._dispatcher_epoch
        return dispatcher_epoch is not None and any(
            view.is_candidate
            for _, view in self.peer_table.followers(dispatcher_epoch.epoch)
        )

    def update_standbys(self, now: Moment) -> list[Effect]:
        """Drop standbys that are too slow, and choose new ones."""
        if self._dispatcher_epoch is None:
            return self._pending_acks.release_acks(now)
        effects: list[Effect] = []
        for node, standby in tuple(self._standbys.items()):
            is_slow = now.mono_s >= self._slow_at_s(standby)
            if is_slow or not self.peer_table.peers[node].is_candidate:
                first_s = standby.unacked[0].sent_s if standby.unacked else now.mono_s
                self._drop_standby(node, first_s)
                self._dropped_as_slow_s[node] = now.mono_s
                effects.append(LogLine("warning", "standby slow", (("peer", node),)))
        is_due = now.mono_s >= self._next_choice_s
        if is_due or self.peer_table.change_count != self._seen_peer_changes:
            self._seen_peer_changes = self.peer_table.change_count
            effects += self._choose_standbys(now)
        effects += self._warn_single_copy()
        return effects + self._pending_acks.release_acks(now)

    def _warn_single_copy(self) -> list[Effect]:
        """Log a warning when the last in-sync standby is lost."""
        was_in_sync, self._was_in_sync = self._was_in_sync, self.has_in_sync_standby
        if self._was_in_sync or not was_in_sync:
            return []
        return [
            LogLine("warning", "one copy only", (("joining", len(self._standbys)),))
        ]

    def on_time(self, now: Moment) -> list[Effect]:
        """Update the standbys, and set the timer again.

        The timer may be early: acknowledgements postpone the deadline without setting
        it.
        """
        effects = self.update_standbys(now)
        self._timers.set(Timer.REPLICATION, self.deadline())
        return effects

    def deadline(self) -> float:
        """Return the time at which `update_standbys` is due."""
        due_s = min(self._pending_acks.deadline(), self._next_choice_s)
        return min(due_s, *map(self._slow_at_s, self._standbys.values()), NEVER)

    def _slow_at_s(self, standby: _StandbyProgress) -> float:
        """Return the time at which a silent standby counts as too slow."""
        if standby.sync_state is _SyncState.CATCHING_UP:
            return standby.last_active_s + self._timing.standby_cooldown_s
        if not standby.unacked:
            return NEVER
        return standby.unacked[0].sent_s + self._timing.standby_timeout_s

    def _choose_standbys(self, now: Moment) -> list[Effect]:
        """Choose the best followers for the missing standbys."""
        assert self._dispatcher_epoch is not None
        timing = self._timing
        ranked = []
        for node, view in self.peer_table.followers(self._dispatcher_epoch.epoch):
            slow_s = self._dropped_as_slow_s.get(node, ALWAYS)
            is_cooling_down = now.mono_s < slow_s + timing.standby_timeout_s
            if node in self._standbys or not view.is_candidate or is_cooling_down:
                continue
            was_slow_lately = now.mono_s < slow_s + timing.standby_cooldown_s
            is_leaving = view.state is DRAINING
            ranked.append((was_slow_lately, is_leaving, view.rank(now), node))
        effects: list[Effect] = []
        for *_, node in sorted(ranked)[: max(0, STANDBYS_MAX - len(self._standbys))]:
            effects += self._add_standby(node, now)
        self._next_choice_s = NEVER
        for node, at_s in tuple(self._dropped_as_slow_s.items()):
            retry_s, forgiven_s = (
                at_s + timing.standby_timeout_s,
                at_s + timing.standby_cooldown_s,
            )
            if now.mono_s >= forgiven_s or node not in self.peer_table.peers:
                del self._dropped_as_slow_s[node]
            else:
                next_s = retry_s if now.mono_s < retry_s else forgiven_s
                self._next_choice_s = min(self._next_choice_s, next_s)
        self._timers.set_earlier(Timer.REPLICATION, self._next_choice_s)
        return effects

    def _add_standby(self, node: NodeId, now: Moment) -> list[Effect]:
        standby = self._standbys[node] = _StandbyProgress(now.mono_s)
        cooldown_s = self._timing.standby_cooldown_s
        self._timers.set_earlier(Timer.REPLICATION, now.mono_s + cooldown_s)
        self.peer_table.set_standby(node, is_standby=True)
        return self._start_streaming(node, standby, now) or self._serve_pull(node, now)

    def _start_streaming(
        self, node: NodeId, standby: _StandbyProgress, now: Moment
    ) -> list[Effect]:
        """Stream to a standby if the tail has all that it lacks."""
        view = self.peer_table.peers[node]
        known = self._retired_count_of(view)
        if known is None or not self._journal.retired.are_held_after(
            known, view.vector
        ):
            return []
        missing = self._log_tail.appends_missing_in(view.vector)
        if missing is None:
            return []
        assert self._dispatcher_epoch is not None
        standby.sync_state = _SyncState.STREAMING
        part = unacked_part(
            missing, self._last_streamed, sum(map(append_size_bytes, missing)), now
        )
        messages = self._replicate_messages(self._dispatcher_epoch, missing)
        return self._stream_part(node, standby, part, messages, now)

    def _replicate_messages(
        self, dispatcher_epoch: DispatcherEpoch, appends: Sequence[Append]
    ) -> tuple[Replicate, ...]:
        return replicate_messages(
            dispatcher_epoch,
            appends,
            self._last_streamed,
            self._limits.entries_bytes,
        )

    def _drop_standby(self, node: NodeId, since_s: float) -> None:
        """Drop a standby; `since_s` is the time of its last useful acknowledgement."""
        del self._standbys[node]
        self.peer_table.set_standby(node, is_standby=False)
        if not self._pending_acks.is_unreplicated and not self.has_in_sync_standby:
            self._pending_acks.unreplicated_since_s = since_s
