"""Planted bugs that the simulation must catch: a test of the tests.

Each bug is a mistake that a real system has made, or that a later change might make. A
function plants the bug for the duration of one test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher import reconciliation, task_rules
from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.dispatcher.mesh_records import RecordWriter
from octaskly.core.dispatcher.reconciliation import Reconciler
from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.effects import Append, Effect, Save, Send
from octaskly.core.election.candidacy import LogVersions
from octaskly.core.election.claims import ClaimHandlers
from octaskly.core.election.election import Election
from octaskly.core.events import CancelRequested, Event, PeerUp, Persisted, SavedState
from octaskly.core.log import range_facts
from octaskly.core.log.facts import (
    Entry,
    Floor,
    MembersAssigned,
    RangeFact,
)
from octaskly.core.log.retired_streams import RetiredStreams
from octaskly.core.log.task_ages import ClockWatch, TaskAges
from octaskly.core.membership.address_book import AddressBook
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.arrays import RangeMembers
from octaskly.core.model.ids import NO_EPOCH, Moment, NodeId, StreamId
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.tasks import Attempt, AttemptState, TaskSpec, TaskState
from octaskly.core.node.log_receiver import LogReceiver
from octaskly.core.node.message_handlers import MessageHandlers
from octaskly.core.node.node import Node
from octaskly.core.protocol.messages import (
    Message,
    Reattach,
    Replicate,
    ReplicateOk,
    Report,
    ResultsOk,
    Snapshot,
)
from octaskly.core.replication import journal, replication
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal, WhenDurable
from octaskly.core.replication.not_found_rule import NotFoundRule
from octaskly.core.replication.pending_acks import PendingAcks, WhenReplicated
from octaskly.core.replication.replication import Replication
from octaskly.core.replication.standby_appends import Standby
from octaskly.core.scheduling import task_queue
from octaskly.core.scheduling.live_ranges import LIVE, LiveRange
from octaskly.core.scheduling.queue_lanes import Flow, Turn
from octaskly.core.scheduling.queued_task import QueuedTask
from octaskly.core.worker.result_outbox import PendingResult, ResultOutbox
from octaskly.core.worker.worker import Worker
from tests.simulation.kinds.aging import run_aging
from tests.simulation.kinds.failing import (
    run_cancelled,
    run_cut_off,
    run_failing,
    run_freed,
)
from tests.simulation.kinds.failovers import (
    run_backlog,
    run_bare,
    run_belated,
    run_given_up,
    run_hand_over,
    run_returned,
    run_short,
    run_slept,
    run_starved,
    run_two_lost_logs,
)
from tests.simulation.kinds.partly_linked import run_partly_linked
from tests.simulation.kinds.ranges import run_ranges
from tests.simulation.kinds.snapshots import (
    run_half_left,
)
from tests.simulation.kinds.splits import run_same_names, run_unseen
from tests.simulation.kinds.tormented import (
    run_forgetful,
    run_seed,
    run_skewed,
    run_steered,
    run_unordered,
    run_updated,
)
from tests.simulation.store.disk import Disk
from tests.support.attempts_in_messages import reported_keys

FAR = 1 << 62  #: a number that no append reaches
Plant = Callable[[pytest.MonkeyPatch], None]


def volatile_term(patch: pytest.MonkeyPatch) -> None:
    """Terms live in memory only, so an epoch is used twice after a restart (exo)."""
    saved = Disk.saved

    def forgetful(self: Disk) -> SavedState:
        return replace(saved(self), term=0, epoch=NO_EPOCH)

    patch.setattr(Disk, "saved", forgetful)


def discard_the_losers_tail(patch: pytest.MonkeyPatch) -> None:
    """The loser of a comparison is not asked for its tasks (Redis Sentinel)."""
    patch.setattr(AntiEntropy, "pull_from", lambda *_: [])


def stop_pulling_early(patch: pytest.MonkeyPatch) -> None:
    """A node takes only the first part of a peer's entries."""
    real = AntiEntropy.on_entries

    def once(self: AntiEntropy, peer: NodeId, message: Any) -> list[Effect]:
        effects = real(self, peer, message)
        self._pending_pulls.discard(peer)
        return [e for e in effects if not isinstance(e, Send)]

    patch.setattr(AntiEntropy, "on_entries", once)


def stream_resumed_after_restart(patch: pytest.MonkeyPatch) -> None:
    """A node continues its old stream after it lost the stream's tail."""

    def same(info: NodeInfo, _term: int, _draw: float) -> StreamId:
        return StreamId(int(info.id[-6:]) + 1)

    def resume(self: Journal, stream: StreamId) -> None:
        self.stream = stream
        self.vector.setdefault(stream, 0)

    save = Disk._save

    def tolerant(self: Disk, effect: Save) -> None:
        if effect.stream is not None:
            self.writers.pop(effect.stream[0], None)
            log = self.streams.get(effect.stream[0], [])
            save(self, effect)
            self.streams[effect.stream[0]] = log
        else:
            save(self, effect)

    patch.setattr("octaskly.core.election.election.mint_stream", same)
    patch.setattr(Journal, "open_stream", resume)
    patch.setattr(Disk, "_save", tolerant)
    take_over = Election.claim_epoch

    def unchecked(self: Election, *claim: Any) -> list[Effect]:
        vector, self._journal.vector = self._journal.vector, {}
        try:
            return take_over(self, *claim)
        finally:
            self._journal.vector = vector

    patch.setattr(Election, "claim_epoch", unchecked)


def _before_the_disk(kind: type[Append | Save]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        step = Node.step

        def hasty(self: Node, event: Event, now: Moment) -> list[Effect]:
            effects = step(self, event, now)
            for effect in tuple(effects):
                if isinstance(effect, kind):
                    effects += hasty(self, Persisted(effect.number), now)
            return effects

        patch.setattr(Node, "step", hasty)

    return plant


def acknowledge_before_commit(patch: pytest.MonkeyPatch) -> None:
    """Clients get answers while their tasks wait for the disk."""
    _before_the_disk(Append)(patch)


def claim_before_commit(patch: pytest.MonkeyPatch) -> None:
    """A node sends a claim while its term waits for the disk (PySyncObj)."""
    _before_the_disk(Save)(patch)


def results_acknowledged_before_commit(patch: pytest.MonkeyPatch) -> None:
    """Workers may delete results that wait for the dispatcher's disk."""
    real = MessageHandlers.on_message

    def hasty(
        self: MessageHandlers, peer: NodeId, message: Message, now: Moment
    ) -> list[Effect]:
        effects = real(self, peer, message, now)
        keys = reported_keys(message)
        if keys and self._worker_messages.dispatcher.is_active:
            effects.append(Send(peer, (ResultsOk(tuple(keys)),)))
        return effects

    patch.setattr(MessageHandlers, "on_message", hasty)


def results_acknowledged_before_a_standby_has_them(patch: pytest.MonkeyPatch) -> None:
    """Workers may delete results that only the dispatcher's disk has."""
    real = Dispatcher._commit_step

    def hasty(
        self: Dispatcher,
        now: Moment,
        when_durable: WhenDurable | None = None,
        when_replicated: WhenReplicated | None = None,
    ) -> list[Effect]:
        if when_replicated is None or when_durable is not None:
            return real(self, now, when_durable, when_replicated)
        return real(self, now, lambda now: when_replicated(now, 2))

    patch.setattr(Dispatcher, "_commit_step", hasty)


def no_epoch_check_in_worker(patch: pytest.MonkeyPatch) -> None:
    """A worker starts tasks that a deposed dispatcher sends."""
    real = Worker.on_assign

    def trusting(
        self: Worker, sender: NodeId, message: Any, now: Moment
    ) -> list[Effect]:
        self._epoch = NO_EPOCH
        return real(self, sender, message, now)

    patch.setattr(Worker, "on_assign", trusting)
    patch.setattr(MessageHandlers, "_is_stale_epoch", lambda *_: False)


def orders_are_started_after_a_pause(patch: pytest.MonkeyPatch) -> None:
    """A worker starts what waited for it while it stood still."""
    patch.setattr(Worker, "on_pause", lambda *_: [])


def heartbeats_lift_the_fence(patch: pytest.MonkeyPatch) -> None:
    """A worker takes a heartbeat that waited as well for a proof."""

    def trusting(self: Worker, _now: Moment) -> list[Effect]:
        self._fenced_since_s = None
        return []

    patch.setattr(Worker, "probe_if_fenced", trusting)


def never_step_down(patch: pytest.MonkeyPatch) -> None:
    """A dispatcher never steps down, whatever other nodes send."""
    patch.setattr(Election, "step_down_for", lambda *_: [])
    real = Election.follow

    def stubborn(self: Election, *claim: Any) -> list[Effect]:
        return [] if self.dispatcher_epoch is not None else real(self, *claim)

    patch.setattr(Election, "follow", stubborn)


def never_redial(patch: pytest.MonkeyPatch) -> None:
    """No node dials lost peers (serf, zeroconf)."""
    patch.setattr(AddressBook, "on_time", lambda *_: [])
    patch.setattr(AddressBook, "redial_all", lambda *_: [])
    patch.setattr(
        AddressBook, "on_peers_discovered", _only_first(AddressBook.on_peers_discovered)
    )


def _only_first(real: Any) -> Any:
    def on_seen(
        self: AddressBook,
        adverts: Any,
        now: Moment,
        wanted: frozenset[NodeId] = frozenset(),
    ) -> list[Effect]:
        known = set(self._targets)
        effects = real(self, adverts, now, wanted)
        return [e for e in effects if getattr(e, "node", None) not in known]

    return on_seen


def absorbed_tasks_are_not_queued(patch: pytest.MonkeyPatch) -> None:
    """The winner of a comparison keeps the loser's tasks, but never runs them."""
    patch.setattr(Dispatcher, "on_remote_entries", lambda *_: [])


def follow_the_stale(patch: pytest.MonkeyPatch) -> None:
    """A node follows a claim of an epoch that is over."""
    patch.setattr(Election, "min_epoch", NO_EPOCH)
    patch.setattr(ClaimHandlers, "on_heartbeat", lambda *_: [])


def no_adopt_window(patch: pytest.MonkeyPatch) -> None:
    """A new dispatcher does not wait for the workers of the previous epoch."""
    real = Reconciler.open_reattach_window

    def impatient(self: Reconciler, now: Moment) -> None:
        self._reattach_s = 0.0
        real(self, now)

    patch.setattr(Reconciler, "open_reattach_window", impatient)


def reattach_reports_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """A dispatcher ignores the running tasks that workers report."""
    real = Reconciler.on_reattach

    def deaf(self: Reconciler, node: NodeId, message: Reattach, now: Moment) -> None:
        real(self, node, replace(message, running=()), now)

    patch.setattr(Reconciler, "on_reattach", deaf)


def new_dispatcher_trusts_its_own_log(patch: pytest.MonkeyPatch) -> None:
    """A new dispatcher trusts its own log before it has asked other nodes."""
    patch.setattr(Reconciler, "await_logs", lambda *_: None)


def catch_up_is_cut_short(patch: pytest.MonkeyPatch) -> None:
    """A new dispatcher starts waiting tasks after half a second, while it still reads.

    A node behind a slow link may know that a waiting task has started or ended.
    """
    patch.setattr(NotFoundRule, "can_read_more", lambda *_: False)


def success_of_an_unread_task_counts(patch: pytest.MonkeyPatch) -> None:
    """A new dispatcher records a success of a task that it has not read yet.

    Its predecessor may have told a client that the task is cancelled.
    """
    real = DispatchStep.write_end

    def trusting(self: DispatchStep, task: QueuedTask, *rest: Any, **more: Any) -> Any:
        is_read, task.is_read = task.is_read, True
        verdict = real(self, task, *rest, **more)
        task.is_read = is_read
        return verdict

    patch.setattr(DispatchStep, "write_end", trusting)


def unread_attempts_are_taken_for_lost(patch: pytest.MonkeyPatch) -> None:
    """A new dispatcher takes its log for complete after a short wait."""
    real = Reconciler.expire_absent_workers

    def hasty(self: Reconciler, now: Moment) -> list[Effect]:
        effects = real(self, now)
        if not self._queue.is_reading_paused:
            self.is_log_behind = False
        return effects

    patch.setattr(Reconciler, "expire_absent_workers", hasty)


def logs_of_returning_workers_are_not_awaited(patch: pytest.MonkeyPatch) -> None:
    """An unlisted attempt is lost at once, before its worker's log has arrived."""
    patch.setattr(NotFoundRule, "has_read_log_of", lambda *_: True)


def logs_are_awaited_for_a_fixed_time(patch: pytest.MonkeyPatch) -> None:
    """A log that is still arriving is given up after five seconds."""
    real = Reconciler.extend_waits

    def fixed(self: Reconciler, progress: int, now: Moment) -> None:
        del progress
        real(self, self._progress, now)

    patch.setattr(Reconciler, "extend_waits", fixed)


def cancels_wait_for_no_log(patch: pytest.MonkeyPatch) -> None:
    """A task is cancelled that has ended, by a log that is still arriving."""
    real = Dispatcher.on_cancel_requested

    def hasty(self: Dispatcher, event: CancelRequested, now: Moment) -> list[Effect]:
        is_behind, self.reconciler.is_log_behind = self.reconciler.is_log_behind, False
        effects = real(self, event, now)
        self.reconciler.is_log_behind = is_behind
        return effects

    patch.setattr(Dispatcher, "on_cancel_requested", hasty)


def ends_of_other_logs_are_not_repeated(patch: pytest.MonkeyPatch) -> None:
    """An end below the floor stays unknown to followers that forgot it."""
    patch.setattr(reconciliation, "REPEATS_MAX", 0)


def results_forgotten_when_sent(patch: pytest.MonkeyPatch) -> None:
    """A worker assumes that a sent result arrives and is kept."""
    real = ResultOutbox.mark_sent

    def trusting(
        self: ResultOutbox,
        results: Sequence[PendingResult],
        now_s: float,
        *,
        is_new: bool,
    ) -> list[Report]:
        keys = [(kept.report.task, kept.report.attempt) for kept in results]
        self.drop_acknowledged(keys)
        self._results.update(zip(keys, results, strict=True))
        reports = real(self, results, now_s, is_new=is_new)
        for key in keys:
            del self._results[key]
        return reports

    patch.setattr(ResultOutbox, "mark_sent", trusting)


def merge_prefers_the_later(patch: pytest.MonkeyPatch) -> None:
    """Of two facts about an attempt, the last one to arrive counts."""
    patch.setattr("octaskly.core.log.merge._more_advanced", lambda _, later: later)


def the_smallest_success_is_shown(patch: pytest.MonkeyPatch) -> None:
    """An earlier attempt that reports late replaces the reported one."""

    def smallest(attempts: Sequence[Attempt], state: TaskState) -> Attempt | None:
        found = [a for a in attempts if a.state is AttemptState.OK]
        return next(iter(found), attempts[-1] if attempts else None)

    patch.setattr("octaskly.core.log.merge.deciding_of", smallest)


def same_names_are_merged(patch: pytest.MonkeyPatch) -> None:
    """Different tasks with one name from two halves of a split are merged into one."""
    patch.setattr("tests.simulation.clients.log_id_of", lambda draft, _: draft.id)


def standby_acknowledges_before_commit(patch: pytest.MonkeyPatch) -> None:
    """A standby acknowledges entries that still wait for its disk."""
    patch.setattr(Standby, "on_replicate", _hasty_standby(Standby.on_replicate))


def _hasty_standby(real: Any) -> Any:
    def on_repl(
        self: Standby, peer: NodeId, message: Replicate, now: Moment
    ) -> list[Effect]:
        effects: list[Effect] = real(self, peer, message, now)
        if not message.number or self._missing_vector:
            return effects
        return [*effects, Send(peer, (ReplicateOk(message.epoch, message.number),))]

    return on_repl


def no_standby_acknowledgement_is_needed(patch: pytest.MonkeyPatch) -> None:
    """One copy is enough, even if standbys are in sync."""
    patch.setattr(PendingAcks, "_single_copy_at_s", lambda *_: 0.0)


def sent_entries_count_as_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """Entries sent to a standby in sync count as acknowledged."""
    real = Replication._stream_part

    def hopeful(
        self: Replication, node: NodeId, copy: Any, part: Any, *rest: Any
    ) -> list[Effect]:
        effects = real(self, node, copy, part, *rest)
        copy.acked = max(copy.acked, part.number)
        return effects

    patch.setattr(Replication, "_stream_part", hopeful)


def joining_standbys_count(patch: pytest.MonkeyPatch) -> None:
    """A standby that is still catching up counts as in sync."""
    real = Replication._add_standby

    def early(self: Replication, node: NodeId, now: Moment) -> list[Effect]:
        effects = real(self, node, now)
        copy = self._standbys[node]
        copy.sync_state = replication._SyncState.IN_SYNC
        copy.acked = FAR
        return effects

    patch.setattr(Replication, "_add_standby", early)


def deposed_dispatchers_are_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """A standby keeps and acknowledges entries from a dispatcher of a lower epoch."""

    def trusting(
        self: LogReceiver, peer: NodeId, message: Replicate, now: Moment
    ) -> list[Effect]:
        return self._standby.on_replicate(peer, message, now)

    patch.setattr(LogReceiver, "on_replicate", trusting)


def vector_moves_before_the_last_part(patch: pytest.MonkeyPatch) -> None:
    """A snapshot counts as complete from its first part on."""
    real = AntiEntropy.on_snapshot

    def hasty(
        self: AntiEntropy, peer: NodeId, part: Snapshot, *rest: Any
    ) -> list[Effect]:
        return real(self, peer, replace(part, has_more=False), *rest)

    patch.setattr(AntiEntropy, "on_snapshot", hasty)


def standbys_catch_up_once(patch: pytest.MonkeyPatch) -> None:
    """Standbys do not catch up with what a dispatcher merges from a snapshot."""
    patch.setattr(Replication, "_restart_standbys", lambda *_: [])


def no_predecessor_is_awaited(patch: pytest.MonkeyPatch) -> None:
    """A standby that takes over answers 404 for what its dead dispatcher has."""
    patch.setattr("octaskly.core.replication.not_found_rule.REMEMBERED_PEER_S", 0.0)


def floor_loses_waiting_tasks(patch: pytest.MonkeyPatch) -> None:
    """Waiting tasks below the compaction floor are not written again."""
    patch.setattr("octaskly.core.dispatcher.compaction.facts_of", lambda _: [])


def floors_wait_for_nothing(patch: pytest.MonkeyPatch) -> None:
    """A floor is taken in before what its writer held when it was written."""
    patch.setattr(Journal, "_may_apply", lambda *_: True)


def retired_streams_need_not_be_held(patch: pytest.MonkeyPatch) -> None:
    """Who lacks the end of a retired stream gets entries, and never the rows."""
    patch.setattr(RetiredStreams, "are_held_after", lambda *_: True)
    patch.setattr(RetiredStreams, "position_of", lambda *_: 0)


def nothing_is_retired(patch: pytest.MonkeyPatch) -> None:
    """A dispatcher never retires a stream, however long all of it has been void."""

    def keep(floor: Floor, _: Floor) -> Floor:
        return floor

    patch.setattr("octaskly.core.dispatcher.compaction.retire", keep)


def worker_copies_are_written_again(patch: pytest.MonkeyPatch) -> None:
    """A late result brings back a purged task."""
    patch.setattr(Journal, "is_below_floor", lambda *_: False)


def children_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    """A task is queued as soon as it is accepted, before its parents end."""
    patch.setattr(TaskSpec, "has_dependencies", False)


def records_are_not_in_snapshots(patch: pytest.MonkeyPatch) -> None:
    """A node that joins by rows receives tasks, but no records."""
    real = AntiEntropy.on_snapshot

    def deaf(
        self: AntiEntropy, peer: NodeId, part: Snapshot, *rest: Any
    ) -> list[Effect]:
        return real(self, peer, replace(part, records=()), *rest)

    patch.setattr(AntiEntropy, "on_snapshot", deaf)


def newcomers_receive_no_records(patch: pytest.MonkeyPatch) -> None:
    """Only nodes connected at the time of a record receive it."""
    patch.setattr(RecordWriter, "_send_all_records", lambda *_: [])


def followers_keep_no_records(patch: pytest.MonkeyPatch) -> None:
    """A follower without a log forgets records when it restarts."""
    real = Disk._save

    def forgetful(self: Disk, effect: Save) -> None:
        real(self, replace(effect, records=()))

    patch.setattr(Disk, "_save", forgetful)


def standbys_cannot_read_their_copies(patch: pytest.MonkeyPatch) -> None:
    """A node with an older program becomes standby of a newer one."""
    real = PeerTable.on_peer_up

    def blind(self: PeerTable, event: PeerUp, now: Moment) -> list[Effect]:
        effects = real(self, event, now)
        self.peers[event.peer].can_read_our_log = True
        return effects

    patch.setattr(PeerTable, "on_peer_up", blind)


def older_programs_are_followed(patch: pytest.MonkeyPatch) -> None:
    """A node follows a dispatcher that cannot read the node's entries."""
    patch.setattr(LogVersions, "can_read_our_log", lambda *_: True)
    patch.setattr(LogVersions, "is_log_readable", lambda *_: True)


def failures_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """A failed task is retried without limit."""
    real = task_rules.verdict_of

    def forgiving(
        spec: TaskSpec, attempts: Sequence[Attempt], **more: bool
    ) -> TaskState | None:
        return real(spec, attempts[-1:], **more)

    patch.setattr(task_rules, "verdict_of", forgiving)


def ends_count_during_a_pull(patch: pytest.MonkeyPatch) -> None:
    """An end from another node's log counts while more of that log is on its way."""
    patch.setattr(Dispatcher, "on_ended_elsewhere", lambda *_: [])


def running_members_survive_a_cancel(patch: pytest.MonkeyPatch) -> None:
    """A cancel of an array never ends its running members."""
    patch.setattr(DispatchStep, "_cancel_live_members", lambda *_: None)


def ended_members_of_ranges_run_again(patch: pytest.MonkeyPatch) -> None:
    """A range that is split takes its members that succeeded for running ones."""
    real = LiveRange.task_at

    def forgetful(self: LiveRange, offset: int) -> QueuedTask:
        self.states[offset] = LIVE
        return real(self, offset)

    patch.setattr(LiveRange, "task_at", forgetful)


def facts_about_ranges_lose_gaps(patch: pytest.MonkeyPatch) -> None:
    """Of a fact with some successes, the members are taken for the first ones."""
    real = range_facts.members_of

    def dense(fact: RangeFact) -> RangeMembers:
        members = real(fact)
        return replace(members, offsets=tuple(range(len(members.offsets))))

    patch.setattr(range_facts, "members_of", dense)


def rests_of_ranges_begin_anew(patch: pytest.MonkeyPatch) -> None:
    """A node that holds the first members of a fact takes these again."""
    real = range_facts.entry_after

    def unshifted(entry: Entry, seq: int) -> Entry:
        rest, fact = real(entry, seq), entry.fact
        if isinstance(fact, MembersAssigned) and isinstance(rest.fact, MembersAssigned):
            return replace(rest, fact=replace(fact, count=rest.fact.count))
        return rest

    patch.setattr(journal, "entry_after", unshifted)


def slots_of_submitters_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """Submitters take turns by what they started, whatever still runs."""
    real = Flow.turn

    def turn(self: Flow, place: int | None = None) -> Turn:
        priority, _, *rest = real(self, place)
        return cast("Turn", (priority, 0, *rest))

    patch.setattr(Flow, "turn", turn)


def slots_of_flows_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """The flows of a submitter take turns by what they started."""
    real = Flow.turn

    def turn(self: Flow, place: int | None = None) -> Turn:
        *first, _, tag, place = real(self, place)
        return cast("Turn", (*first, 0, tag, place))

    patch.setattr(Flow, "turn", turn)


Hunt = Callable[[int], object]


def dispatcher_answers_404_too_early(patch: pytest.MonkeyPatch) -> None:
    """A dispatcher answers 404 though other nodes may know the task."""
    patch.setattr(NotFoundRule, "is_complete", lambda _, __: True)


def age_goes_by_timestamps(patch: pytest.MonkeyPatch) -> None:
    """The age of a task is measured by the clock of the node that wrote its end."""
    patch.setattr(TaskAges, "since_hlc", lambda _self, hlc, _stored_ms: hlc)


def clock_steps_make_tasks_older(patch: pytest.MonkeyPatch) -> None:
    """A step of a disk's own clock counts as time that has passed."""
    patch.setattr(ClockWatch, "find_step", lambda *_: None)


def tasks_run_without_their_stdin(patch: pytest.MonkeyPatch) -> None:
    """A freed submission that arrives before the end of its task is queued."""
    patch.setattr(task_queue, "is_stdin_freed", lambda _: False)


MUTANTS: tuple[tuple[Plant, Hunt], ...] = (
    (volatile_term, run_seed),
    (discard_the_losers_tail, run_seed),
    (stop_pulling_early, run_seed),
    (stream_resumed_after_restart, run_seed),
    (acknowledge_before_commit, run_seed),
    (claim_before_commit, run_seed),
    (results_acknowledged_before_commit, run_seed),
    (results_acknowledged_before_a_standby_has_them, run_seed),
    (no_epoch_check_in_worker, run_seed),
    (orders_are_started_after_a_pause, run_slept),
    (heartbeats_lift_the_fence, run_slept),
    (never_step_down, run_seed),
    (never_redial, run_unseen),
    # Other nodes with a log reattach, and then the queue is read again in any case.
    (absorbed_tasks_are_not_queued, run_partly_linked),
    (follow_the_stale, run_seed),
    (no_adopt_window, run_bare),
    (reattach_reports_are_ignored, run_hand_over),
    (new_dispatcher_trusts_its_own_log, run_short),
    (catch_up_is_cut_short, run_backlog),
    (success_of_an_unread_task_counts, run_cancelled),
    (unread_attempts_are_taken_for_lost, run_starved),
    (logs_of_returning_workers_are_not_awaited, run_returned),
    (logs_are_awaited_for_a_fixed_time, run_failing),
    (cancels_wait_for_no_log, run_failing),
    (ends_of_other_logs_are_not_repeated, run_two_lost_logs),
    (results_forgotten_when_sent, run_hand_over),
    (merge_prefers_the_later, run_seed),
    (the_smallest_success_is_shown, run_steered),
    (same_names_are_merged, run_same_names),
    (standby_acknowledges_before_commit, run_seed),
    (no_standby_acknowledgement_is_needed, run_seed),
    (sent_entries_count_as_acknowledged, run_seed),
    (joining_standbys_count, run_seed),
    (deposed_dispatchers_are_acknowledged, run_seed),
    (vector_moves_before_the_last_part, run_forgetful),
    (standbys_catch_up_once, run_half_left),
    (no_predecessor_is_awaited, run_given_up),
    (floor_loses_waiting_tasks, run_forgetful),
    (floors_wait_for_nothing, run_unordered),
    (age_goes_by_timestamps, run_skewed),
    (clock_steps_make_tasks_older, run_skewed),
    # Its nodes pull without end, which takes long to simulate.
    (retired_streams_need_not_be_held, partial(run_aging, quiet_s=10.0)),
    (nothing_is_retired, run_aging),
    (worker_copies_are_written_again, run_belated),
    (dispatcher_answers_404_too_early, run_seed),
    (children_do_not_wait, run_seed),
    (records_are_not_in_snapshots, run_forgetful),
    (newcomers_receive_no_records, run_seed),
    (followers_keep_no_records, run_seed),
    (standbys_cannot_read_their_copies, run_updated),
    (older_programs_are_followed, run_updated),
    (failures_do_not_count, run_failing),
    (ends_count_during_a_pull, run_failing),
    (tasks_run_without_their_stdin, run_freed),
    (running_members_survive_a_cancel, run_cut_off),
    (ended_members_of_ranges_run_again, run_ranges),
    (facts_about_ranges_lose_gaps, run_ranges),
    (rests_of_ranges_begin_anew, run_ranges),
    (slots_of_submitters_do_not_count, run_ranges),
    (slots_of_flows_do_not_count, run_ranges),
)
"""Each bug, with a kind of world in which it shows."""
FIRST: dict[Plant, int] = {
    absorbed_tasks_are_not_queued: 6,
    cancels_wait_for_no_log: 61005597,
    clock_steps_make_tasks_older: 12,
    deposed_dispatchers_are_acknowledged: 51,
    ended_members_of_ranges_run_again: 17,
    ends_count_during_a_pull: 29,
    floors_wait_for_nothing: 12,
    follow_the_stale: 12,
    logs_are_awaited_for_a_fixed_time: 61000552,
    never_step_down: 12,
    new_dispatcher_trusts_its_own_log: 3,
    newcomers_receive_no_records: 2,
    no_epoch_check_in_worker: 98,
    older_programs_are_followed: 24,
    records_are_not_in_snapshots: 8,
    retired_streams_need_not_be_held: 236,
    slots_of_submitters_do_not_count: 3,
    standbys_cannot_read_their_copies: 9,
    stop_pulling_early: 11,
    tasks_run_without_their_stdin: 136,
    the_smallest_success_is_shown: 5013,
    unread_attempts_are_taken_for_lost: 70,
    vector_moves_before_the_last_part: 12,
}
"""The first seed to try if the usual first ones take a minute to show the bug.

Once the world draws differently, it may be another one; the test also tries all others.
"""
