"""The dispatcher: handles requests of clients and reports of workers.

It decides which answers are sent, and which facts must be durable before them.
`election` decides which node is dispatcher. `step` turns decisions into effects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from octaskly.core.dispatcher import task_rules
from octaskly.core.dispatcher.admission import Admission
from octaskly.core.dispatcher.compaction import Compaction
from octaskly.core.dispatcher.dependencies import Dependencies
from octaskly.core.dispatcher.explain import Explainer
from octaskly.core.dispatcher.mesh_records import RecordWriter
from octaskly.core.dispatcher.outcomes import OutcomeRecorder
from octaskly.core.dispatcher.reconciliation import Reconciler
from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.dispatcher.task_changes import TaskChanges
from octaskly.core.dispatcher.visitor_demand import Label, count_waiting
from octaskly.core.effects import Answer, Effect, Send
from octaskly.core.events import (
    CancelRequested,
    FloorPlanned,
    LiveLoaded,
    QueuedLoaded,
    ReprioritizeRequested,
    TasksLoaded,
    TasksNotified,
    TasksSubmitted,
    UnblockedLoaded,
)
from octaskly.core.log.facts import Notified, Submitted
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import (
    NO_EPOCH,
    AttemptId,
    Epoch,
    Moment,
    NodeId,
    StreamId,
    TaskId,
)
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.settings import Settings
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.model.tree_sizes import TreeSizes
from octaskly.core.protocol.messages import (
    HeartbeatOk,
    HeldBlobs,
    RangeReport,
    RangeResults,
    RangeResultsOk,
    Reattach,
    Report,
    Results,
    ResultsOk,
)
from octaskly.core.replication.journal import Journal, WhenDurable
from octaskly.core.replication.pending_acks import WhenReplicated
from octaskly.core.replication.replication import Replication
from octaskly.core.replies import (
    Copied,
    NotDispatching,
    NotReplicated,
    TaskIdsReserved,
    TasksAccepted,
    Unplaceable,
    VisitorDemand,
)


class _Acknowledgement(NamedTuple):
    """Reports of a worker that are recorded, but not safe yet."""

    node: NodeId
    items: Sequence[tuple[TaskId, AttemptId]]
    ok: ResultsOk | RangeResultsOk


class Dispatcher:
    """The dispatcher component of a node; idle while another node is dispatcher."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        replication: Replication,
        sequence: int,
        timers: TimerHeap,
        is_log_complete: Callable[[float], bool],
    ) -> None:
        self._journal = journal
        self._replication = replication
        self._is_strict = settings.is_strict
        self._step = DispatchStep(settings.limits, journal, replication, timers)
        self.reconciler = Reconciler(self._step, settings.timing.reattach_s, timers)
        self.compaction = Compaction(
            settings,
            self._step,
            journal,
            replication.peer_table.earliest_wall_ms,
            is_log_complete,
            timers,
        )
        self._queue, self._pool = self._step.queue, self._step.pool
        self.ended_counts = self._queue.ended_counts
        self._backoff_queue = self._step.backoff_queue
        self._outcome_recorder = OutcomeRecorder(self._step, self.reconciler)
        self.explainer = Explainer(self._step)
        self._dependencies = Dependencies(self._step, journal, settings.timing, timers)
        self._admission = Admission(journal, self._queue, self._pool, sequence)
        self._task_changes = TaskChanges(
            self._step, journal, self._commit_step, is_strict=self._is_strict
        )
        self.record_writer = RecordWriter(self._step, journal, replication, settings)
        self._has_results = False  #: recorded in this step
        self._recorded: list[_Acknowledgement] = []  #: these results, not yet committed
        self._committing_count = 0  #: tasks that are queued once they are durable
        self._copies_requested: list[int] = []
        """Tickets of clients to be shown what is here, once it is repeated."""

    @property
    def is_active(self) -> bool:
        """Return True while this node is dispatcher."""
        return self._step.epoch is not NO_EPOCH

    @property
    def is_accepting(self) -> bool:
        """Return True while tasks are accepted and assigned."""
        return self._step.is_assigning

    # --- Start and end of an epoch.

    def start_dispatching(
        self, epoch: Epoch, stream: StreamId, now: Moment
    ) -> list[Effect]:
        """Start an epoch as dispatcher; the journal's own stream must be open."""
        self.reconciler.open_reattach_window(now)
        self.compaction.start_retention(now)
        self._dependencies.start_checking(now)
        return self._step.open_epoch(
            epoch, stream
        ) + self._dependencies.query_unblocked(now)

    def stop_dispatching(self) -> list[Effect]:
        """End the epoch and drop its state; appended facts are still acknowledged."""
        self.reconciler.stop_waiting()
        self._dependencies.stop_checking()
        self._backoff_queue.clear_backoff()
        self._outcome_recorder.clear_reports()
        self._step.close_epoch()
        tickets, self._copies_requested = self._copies_requested, []
        return [
            *(Answer(ticket, NotDispatching()) for ticket in tickets),
            *self._task_changes.drop_requests(),
            *self.compaction.drop_requests(),
        ]

    def pause_accepting(self) -> None:
        """Stop accepting and assigning tasks before a transfer of the dispatcher."""
        self._step.is_assigning = False

    def resume_accepting(self, now: Moment) -> list[Effect]:
        """Accept and assign tasks again, because no node took over."""
        if not self.is_active:
            return []
        self._step.is_assigning = True
        self.compaction.set_timer(now)
        return self._commit_step(now)

    def raise_sequence(self, sequence: int) -> None:
        """Number new tasks above `sequence`, which another node has used."""
        self._admission.raise_sequence(sequence)

    def outstanding(self, node: NodeId) -> int:
        """Return how many attempts the node holds, as far as is known."""
        return self._queue.tasks.held_at(node).attempts

    # --- Visitors.

    @property
    def has_read_live_tasks(self) -> bool:
        """Return True if all attempts of earlier epochs that may be live are known."""
        return not self.reconciler.is_log_behind and self._queue.has_read_live

    def assigned_spec(
        self, node: NodeId, task_id: TaskId, attempt: AttemptId
    ) -> TaskSpec | None:
        """Return the task of a live attempt of a node; None if it has no such one."""
        task = self._queue.tasks.held_task(node, task_id)
        return None if task is None or task.attempt != attempt else task.spec

    def assigned_attempts(self, node: NodeId) -> list[tuple[AttemptId, TaskSpec]]:
        """Return the live attempts of a node, with their tasks."""
        tasks = self._queue.tasks.held_by(node) if self.is_active else []
        return [(task.attempt, task.spec) for task in tasks if task.attempt is not None]

    def has_unended_members(self, array: TaskId) -> bool:
        """Return True if a member of an array in hand has not ended or not begun."""
        return self._step.queue.array_queue.has_unended_members(array)

    def is_unacknowledged(self, task: TaskId, attempt: AttemptId) -> bool:
        """Return True if the end of an attempt is recorded, but not yet safe."""
        return self._outcome_recorder.is_unacknowledged((task, attempt))

    def kill_unknown_attempts(
        self, node: NodeId, attempts: Iterable[tuple[TaskId, AttemptId]]
    ) -> None:
        """Order the end of attempts that a node was not given, with the next step."""
        for task_id, attempt in attempts:
            self._step.kill_attempt(node, task_id, attempt)

    # --- Clients.

    def reserve_task_ids(self, suffixes: Iterable[str]) -> TaskIdsReserved:
        """Return ids for tasks that may be submitted."""
        return TaskIdsReserved(tuple(map(self._admission.mint_task_id, suffixes)))

    def count_visitor_demand(self, label: Label | None) -> VisitorDemand:
        """Return how many queued tasks a new visitor could run.

        With a label, only tasks that require it count, and the visitor has it.
        """
        return count_waiting(self._queue, label)

    def on_submitted(self, event: TasksSubmitted, now: Moment) -> list[Effect]:
        """Accept a batch; the answer waits for its commit, here and at a standby."""
        accept = partial(self._accept, event)
        # Without drafts, the tasks are known: perhaps from rows that no standby has.
        return accept(now) if event.drafts else self._journal.when_merged(accept, now)

    def _accept(self, event: TasksSubmitted, now: Moment) -> list[Effect]:
        is_strict = event.is_strict or self._is_strict
        refusal = self._refusal(event, is_strict=is_strict)
        if refusal is not None:
            return [Answer(event.ticket, refusal)]
        specs, new_specs = self._admission.specs_from_drafts(event, now)
        self._step.facts += [Submitted(spec) for spec in new_specs]
        runnable_specs = [spec for spec in new_specs if not spec.has_dependencies]
        if len(runnable_specs) < len(new_specs):
            self._dependencies.note_waiting_tasks()
        task = None
        if not is_strict and len(new_specs) == 1 and not self._committing_count:
            # It starts while it is committed: that is all the time that an idle mesh
            # takes. See docs/decisions/0014-start-while-committing.md.
            task = self._queue.admit_undurable(new_specs[0])
            if task is not None:
                self._step.pin_until_durable(task)
        unqueued_count = len(runnable_specs) if task is None else 0
        self._committing_count += unqueued_count
        admit = partial(
            self._admit, self._step.epoch, new_specs, runnable_specs, unqueued_count
        )
        return self._commit_step(
            now,
            admit,
            partial(_answer_accepted, event.ticket, tuple(specs), is_strict=is_strict),
        )

    def _admit(
        self,
        epoch: Epoch,
        new_specs: Sequence[TaskSpec],
        runnable_specs: Sequence[TaskSpec],
        unqueued_count: int,
        now: Moment,
    ) -> list[Effect]:
        """Queue what was accepted in an epoch, now that it is durable.

        A task that has started already is not among those to be queued.
        """
        self._committing_count -= unqueued_count
        self._admission.drop_durable_specs(new_specs)
        if not self.is_active:
            return []
        if self._step.epoch != epoch:
            self._queue.mark_for_reread()
        elif not self._queue.admit(runnable_specs) and runnable_specs:
            return []  # There is nothing to do: it was queued while it was committed.
        return self._commit_step(now)

    def _refusal(
        self, event: TasksSubmitted, *, is_strict: bool
    ) -> NotDispatching | NotReplicated | Unplaceable | None:
        """Return why a batch is not accepted."""
        if not self.is_accepting:
            return NotDispatching()
        if is_strict and not self._replication.has_in_sync_standby:
            return NotReplicated()
        return self._admission.find_unplaceable(event.drafts)

    def on_cancel_requested(self, event: CancelRequested, now: Moment) -> list[Effect]:
        """Cancel a task or an array."""
        if not self.is_active:
            return [Answer(event.ticket, NotDispatching())]
        if self.reconciler.is_log_behind:
            # It may have ended, by a log that is not read yet.
            self._task_changes.add_waiting(event)
            self.reconciler.read_when_trusted(event.task)
            return []
        if self._journal.is_merging and self._task_changes.has_ended(event):
            # Perhaps by rows that no standby has yet.
            again = partial(self.on_cancel_requested, event)
            return self._journal.when_merged(again, now)
        return self._task_changes.on_cancel_requested(event, now)

    def on_reprioritize_requested(
        self, event: ReprioritizeRequested, now: Moment
    ) -> list[Effect]:
        """Change the priority of a task or an array that waits."""
        if not self.is_active:
            return [Answer(event.ticket, NotDispatching())]
        return self._task_changes.on_reprioritize_requested(event, now)

    def on_copies_requested(self, ticket: int, now: Moment) -> list[Effect]:
        """Answer once all on this disk has the copies that a new task would have.

        The answer also waits, for a few seconds at most, until ends from other logs are
        repeated.
        """
        self._copies_requested.append(ticket)
        return self._wait_for_copies(now)

    def _wait_for_copies(self, now: Moment) -> list[Effect]:
        if self.reconciler.is_repeating or not self._copies_requested:
            return []
        tickets, self._copies_requested = tuple(self._copies_requested), []
        answer = partial(_answer_copied, tickets)
        wait = partial(self._replication.when_replicated, answer)
        return self._journal.when_merged(wait, now)

    def on_tasks_notified(self, event: TasksNotified, now: Moment) -> list[Effect]:
        """Record delivered notifications, so that a later dispatcher skips them."""
        if not self.is_active:
            return []
        self._step.facts += [Notified(task) for task in event.tasks]
        return self._commit_step(now)

    # --- Workers.

    def on_worker_up(self, info: NodeInfo, now: Moment) -> list[Effect]:
        """Know a follower; it gets work once it has said what it runs."""
        self._pool.add(info)
        self._queue.lanes.on_workers_changed()
        return self._commit_step(now)

    def on_worker_down(self, node: NodeId, now: Moment) -> list[Effect]:
        """Run elsewhere what the worker held, at once or after the adopt window."""
        were_lost = self.is_active and self.reconciler.on_worker_down(node, now)
        self.forget_worker(node)
        return self._settle_refused(now) if were_lost else []

    def forget_worker(self, node: NodeId) -> None:
        """Forget what a node that is gone could run, and which blobs it had."""
        self._pool.remove(node)
        self._step.locality.holdings.drop_node(node)

    def on_heartbeat_ok(
        self, node: NodeId, message: HeartbeatOk, now: Moment
    ) -> list[Effect]:
        """Learn how much a worker takes and how busy it is."""
        if message.is_merging:
            self._replication.on_merging(node, now)
        self._pool.set_load(node, message.load.cpu_percent)
        self._pool.set_credit(node, message.credit)
        # Nearly all say what is known.
        return self._commit_step(now) if self._pool.workers_with_room else []

    def on_own_heartbeat(self, now: Moment) -> list[Effect]:
        """Place what has waited long enough to have a worker kept for it."""
        return self._commit_step(now)

    def on_reattach(self, node: NodeId, message: Reattach, now: Moment) -> list[Effect]:
        """Adopt what a worker runs, kill what is void, run again what it lost."""
        if not self.is_active:
            return []
        self.reconciler.on_reattach(node, message, now)
        self._step.locality.holdings.drop_node(node)  # It reports all again.
        self._pool.set_credit(node, message.credit)
        self._pool.attach(node)
        self._step.recount_worker(node)
        return self._settle_refused(now)

    def on_held_blobs(self, node: NodeId, message: HeldBlobs) -> None:
        """Note which large blobs and whole trees a worker has."""
        holdings = self._step.locality.holdings
        holdings.remove(node, message.removed)
        holdings.add(node, message.added)

    def add_tree(self, sha256: str, sizes: TreeSizes) -> None:
        """Note the sizes of a tree that tasks name."""
        self._step.locality.add_tree(sha256, sizes)

    def record_results(
        self, node: NodeId, message: Results | RangeResults, now: Moment
    ) -> None:
        """Record how attempts ended; `commit_results` follows in the same step."""
        if not self.is_active:
            return  # The worker keeps them and tells the next dispatcher.
        self._pool.set_credit(node, message.credit)
        self._has_results = True
        if isinstance(message, RangeResults):
            self._recorded.append(self._record_members(node, message.items, now))
        elif message.reports:
            self._recorded.append(self._record_reports(node, message.reports, now))

    def commit_results(self, now: Moment) -> list[Effect]:
        """Commit the results recorded in this step; give the slots to other tasks."""
        if not self._has_results:
            return []
        recorded, self._recorded = self._recorded, []
        self._has_results = False
        acknowledge = partial(self._acknowledge, recorded) if recorded else None
        return self._commit_step(now, when_replicated=acknowledge)

    def _record_reports(
        self, node: NodeId, reports: Sequence[Report], now: Moment
    ) -> _Acknowledgement:
        """Record how attempts of one worker ended; return what tells it so."""
        for report in reports:
            self._outcome_recorder.record_report(node, report, now)
        items = tuple([(report.task, report.attempt) for report in reports])
        self._step.recount_worker(node)
        return _Acknowledgement(node, items, ResultsOk(items))

    def _record_members(
        self, node: NodeId, reports: Sequence[RangeReport], now: Moment
    ) -> _Acknowledgement:
        """Record successes of members of ranges; return what tells the worker so."""
        items: list[tuple[TaskId, AttemptId]] = []
        for report in reports:
            items += self._outcome_recorder.record_members(node, report, now)
        ok = RangeResultsOk(tuple(report.members for report in reports))
        self._step.recount_worker(node)
        return _Acknowledgement(node, items, ok)

    def _acknowledge(
        self, recorded: Sequence[_Acknowledgement], _: Moment, replicas: int
    ) -> list[Effect]:
        """Tell workers that their reports are recorded, now that this is safe."""
        # A worker keeps what only this disk holds, if that shall not do, or if there is
        # a successor to tell.
        may_be_alone = self.is_active and not self._is_strict
        if replicas == 1 and not may_be_alone:
            return []
        for each in recorded:
            self._outcome_recorder.mark_acknowledged(each.items)
        return [Send(each.node, (each.ok,)) for each in recorded]

    # --- The store and time.

    def on_store_answer(
        self,
        event: QueuedLoaded | LiveLoaded | TasksLoaded | UnblockedLoaded | FloorPlanned,
        now: Moment,
    ) -> list[Effect]:
        """Go on with what the store was asked."""
        match event:
            case QueuedLoaded():
                return self.on_queued_loaded(event, now)
            case LiveLoaded():
                return self.on_live_loaded(event, now)
            case TasksLoaded():
                return self.on_tasks_loaded(event, now)
            case UnblockedLoaded():
                return (
                    self._dependencies.on_unblocked_loaded(event, now)
                    if self.is_active
                    else []
                )
            case FloorPlanned():
                may_write = self.is_accepting
                return self.compaction.on_floor_planned(event, now, may_write=may_write)

    def on_queued_loaded(self, event: QueuedLoaded, now: Moment) -> list[Effect]:
        """Take more of the queue into the window."""
        if not self._queue.on_queued_answer(event):
            return []
        self.reconciler.decide_waiting(event.records)
        return self._settle_refused(now)

    def on_live_loaded(self, event: LiveLoaded, now: Moment) -> list[Effect]:
        """Believe the log about what runs, until the workers are heard."""
        records = self._queue.on_live_answer(event)
        if records is None:
            return []
        self._queue.add_arrays(records)
        self._adopt_records(records, now)
        return self._commit_step(now)

    def on_tasks_loaded(self, event: TasksLoaded, now: Moment) -> list[Effect]:
        """Adopt and decide the tasks that were read by their names."""
        answer = self._queue.on_lookup_answer(event)
        if answer is None:
            return []
        tasks, records = answer
        self._queue.add_arrays(records)  # They count the failures among these:
        self.reconciler.drop_ended_attempts(tasks, records)
        self._adopt_records(records, now)
        moved = [r for r in records if r.reprioritized is not None]
        self._queue.admit_records(moved)
        self.reconciler.announce_repeated(tasks)
        requests, answers = self._task_changes.take_read(tasks, records)
        effects = answers + self._commit_step(now)
        for request in requests:
            effects += self.on_cancel_requested(request, now)
        return effects + self._wait_for_copies(now)

    def _adopt_records(self, records: Sequence[TaskRecord], now: Moment) -> None:
        """Take over what the log says of live tasks and arrays.

        Members come first: one may have ended before its array was cancelled.
        """
        for record in records:
            if record.spec is not None and record.progress is None:
                self.reconciler.adopt_record(record, now)
        for record in records:
            if record.progress is not None:
                self._step.adopt_array(record)

    def on_ended_elsewhere(
        self, ended: tuple[TaskId, ...], now: Moment
    ) -> list[Effect]:
        """Begin none of these, and repeat their ends, which came from elsewhere."""
        if not self.is_active:
            return []
        self.reconciler.withdraw_ended(ended)
        self.reconciler.repeat_ends(ended, now)
        return self._commit_step(now)

    def on_log_read(self, now: Moment) -> list[Effect]:
        """Believe the log: this disk has all that the nodes here hold."""
        self.reconciler.trust_log()
        return self.on_remote_entries(now)

    @property
    def has_missing_ends(self) -> bool:
        """Return True if tasks that ended elsewhere are queued here."""
        return self.is_active and self._queue.has_missing_ends

    def give_up_missing_ends(self, now: Moment) -> list[Effect]:
        """End the tasks that ended elsewhere: no node here knows how."""
        for spec in self._queue.pop_missing_ends():
            cancel = task_rules.give_up_end(spec.id)
            if spec.array is not None:
                self._step.cancel_array(cancel)
            else:
                task = self._queue.add_shadow(TaskRecord(spec.id, spec))
                self._step.write(task, cancel)
        return self._commit_step(now)

    def on_remote_entries(self, now: Moment) -> list[Effect]:
        """Read queue and live tasks again: another node's entries are durable."""
        if not self.is_active:
            return []
        self._queue.mark_for_reread()
        self._queue.look_up_waiting()
        self._dependencies.note_waiting_tasks()
        return self._commit_step(now)

    def on_time(self, now: Moment) -> list[Effect]:
        """Do what is due: one of the timers of these machines is."""
        if not self.is_active:
            return []
        effects = self.compaction.on_time(now) if self.is_accepting else []
        effects += self._dependencies.query_unblocked(now)
        if self._step.requeue_backed_off(now):
            effects += self._commit_step(now)
        if self.reconciler.deadline() > now.mono_s:
            return effects
        effects += self.reconciler.expire_absent_workers(now)
        effects += self._settle_refused(now)
        return effects + self._wait_for_copies(now)

    def _commit_step(
        self,
        now: Moment,
        when_durable: WhenDurable | None = None,
        when_replicated: WhenReplicated | None = None,
    ) -> list[Effect]:
        """Commit the step; then query the tasks that it may have unblocked."""
        effects = self._step.commit_step(now, when_durable, when_replicated)
        if self._dependencies.has_waiting_tasks:
            effects += self._dependencies.query_unblocked(now)
        return effects

    def _settle_refused(self, now: Moment) -> list[Effect]:
        """Decide the tasks that every worker has refused, and commit."""
        self._outcome_recorder.settle_refused(self._queue.refused_tasks(), now)
        return self._commit_step(now)


def _answer_copied(tickets: tuple[int, ...], _: Moment, replicas: int) -> list[Effect]:
    """Answer clients that were shown what is on this disk."""
    return [Answer(ticket, Copied(replicas)) for ticket in tickets]


def _answer_accepted(
    ticket: int,
    accepted: tuple[TaskSpec, ...],
    _: Moment,
    replicas: int,
    *,
    is_strict: bool,
) -> list[Effect]:
    """Answer a submission, now that it is safe."""
    if is_strict and replicas == 1:
        return [Answer(ticket, NotReplicated())]
    return [Answer(ticket, TasksAccepted(accepted, replicas))]
