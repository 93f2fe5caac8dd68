"""Outcomes of attempts as facts: decides if a task ends or another attempt follows.

It checks each report against the tasks in memory. `dispatcher` decides when a report is
acknowledged, and which clients are notified.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from octaskly.core.dispatcher.reconciliation import Reconciler
from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.log.facts import Finished
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.protocol.messages import Report
from octaskly.core.scheduling.queued_task import WAITING_STAGES, QueuedTask, Stage
from octaskly.core.scheduling.retry_policy import (
    FAILURE_REASONS,
    NO_TRIES,
    add_try,
    apply_retry_policy,
    retry_delay_s,
)

FINAL_STATES = {
    AttemptState.OK: TaskState.COMPLETED,
    AttemptState.FAILED: TaskState.FAILED,
}
"""Ends of an attempt that end the task."""

AttemptKey = tuple[TaskId, AttemptId]

ACKNOWLEDGED_MAX = 5000
"""Size of each of two sets of acknowledged results; more than can be in transit."""

ROOM_WAIT_S = 10.0  #: before a task is tried again for which no node had room
REFUSAL_REASONS = (EndReason.DRAINING, EndReason.STALE)
"""Reasons for which a worker would also refuse the next attempt."""


class OutcomeRecorder:
    """Records the reports of workers."""

    def __init__(self, step: DispatchStep, reconciler: Reconciler) -> None:
        self._step = step
        self._reconciler = reconciler
        self._queue = step.queue
        self._pool = step.pool
        self._unacknowledged: set[AttemptKey] = set()
        """Recorded attempts; workers repeat their reports until acknowledged."""
        self._deferred_reports: dict[
            TaskId, dict[AttemptId, tuple[NodeId, Report]]
        ] = {}
        """Reports that wait for a read of their tasks, with the reporting nodes."""
        self._acknowledged: tuple[set[AttemptKey], set[AttemptKey]] = (set(), set())
        """Recently acknowledged attempts, in a newer and an older set.

        A report may cross its acknowledgement: a worker that gets a Kill for an ended
        attempt repeats the result.
        """

    def clear_reports(self) -> None:
        """Drop all reports at the end of an epoch."""
        self._unacknowledged.clear()
        self._deferred_reports.clear()
        self._acknowledged = (set(), set())

    def defer_report(self, node: NodeId, report: Report) -> bool:
        """Defer a report until its task is read; return True if it is deferred.

        This concerns tasks that this epoch has not yet read from the log. The previous
        dispatcher may have confirmed a cancel to a client, and a counted success would
        undo it. The number of earlier failures decides if a failure ends the task.
        """
        queue, key = self._queue, (report.task, report.attempt)
        deferred = self._deferred_reports.get(report.task)
        if deferred is None:
            task = queue.tasks.get(report.task)
            if task is not None:
                is_seen = task.is_store_confirmed or task.final_state is not None
                if is_seen or task.is_end_reported(report.attempt):
                    return False
                if task.stage is Stage.LIVE:
                    report = replace(report, spec=task.spec)
            if (
                not _depends_on_log(report)
                or self._awaits_acknowledgement(task, node, key)
                or self._was_acknowledged(task, key)
            ):
                return False
            deferred = self._deferred_reports[report.task] = {}
            queue.look_up_task(report.task)
            if not _has_other_live_attempt(task, node, report):
                known: tuple[Attempt, ...] = ()
                if task is not None:
                    known = task.attempts
                    queue.end(task, None)
                # No read shall start it.
                queue.add_shadow(_spec_of(report), None).attempts = known
        deferred[report.attempt] = node, report
        shadow = queue.tasks.get(report.task)
        if shadow is not None and shadow.stage is Stage.ENDED:
            reports = [other for _, other in deferred.values()]
            is_in_vain = all(r.outcome.state is not AttemptState.OK for r in reports)
            shadow.deferred = tuple(deferred) if is_in_vain else ()
        return True

    def take_ready_reports(
        self, tasks: Iterable[TaskId], records: Iterable[TaskRecord]
    ) -> dict[NodeId, list[Report]]:
        """Return the reports that waited for a read of these tasks, by node."""
        known = {record.id: record for record in records}
        ready: dict[NodeId, list[Report]] = {}
        for task_id in tasks:
            reports = self._deferred_reports.pop(task_id, None)
            if reports is None:
                continue
            self._merge_stored_record(known.get(task_id), reports)
            for node, report in reports.values():
                ready.setdefault(node, []).append(report)
        return ready

    def _merge_stored_record(
        self, record: TaskRecord | None, reports: dict[AttemptId, tuple[NodeId, Report]]
    ) -> None:
        """Take over what the store says of a task, before ends of it are recorded."""
        queue = self._queue
        deferred = [report for _, report in reports.values()]
        specs = [report.spec for report in deferred]
        report = replace(
            deferred[0], spec=next(filter(None, specs), record.spec if record else None)
        )
        task = queue.tasks.get(report.task)
        # Else it was cancelled meanwhile, or another attempt was found.
        if task is None or _is_undecided(task):
            known = () if task is None else task.attempts
            state = TaskState.QUEUED if record is None else record.state
            state = queue.final_state_of(report.task, state)
            task = self._add_ended_shadow(report, state if state.is_final else None)
            task.attempts = known
        task.deferred = ()
        if record is not None:
            self._reconciler.merge_record(record, task)
            self._rewrite_ends(record, reports)

    def _add_ended_shadow(self, report: Report, final: TaskState | None) -> QueuedTask:
        """Add a shadow for a task with reported ends; `final` is its state if it ended.

        Without `final`, the store is read once the ends are durable. This includes a
        task that ended here: it may be forgotten here, while the other side of a
        network split reported that it continues.
        """
        spec, is_over = report.spec, self._queue.has_ended_recently(report.task)
        if spec is not None and final is None and not is_over:
            self._step.facts += self._step.resubmission_facts(spec, report.attempt)
        task = self._queue.add_shadow(_spec_of(report), final)
        self._step.pin_until_durable(task)
        return task

    def _rewrite_ends(
        self, record: TaskRecord, reports: dict[AttemptId, tuple[NodeId, Report]]
    ) -> None:
        """Write known ends again before acknowledging repeated reports of them.

        They may be known from rows of a snapshot alone, which only this node holds.
        """
        for attempt in record.attempts:
            known, deferred = attempt.outcome, reports.get(attempt.id)
            if known is None or deferred is None:
                continue
            node, report = deferred
            if known.reason is report.outcome.reason:
                outcome = replace(report.outcome, state=known.state)
                term = attempt.end_term  # The task may be cancelled since.
                end = Finished(record.id, attempt.id, node, outcome, term)
                self._step.facts.append(end)

    def mark_acknowledged(self, items: Iterable[AttemptKey]) -> None:
        """Note that these reports are acknowledged to their worker."""
        self._unacknowledged.difference_update(items)
        late, _ = self._acknowledged
        late.update(items)
        if len(late) > ACKNOWLEDGED_MAX:
            self._acknowledged = (set(), late)

    def _was_acknowledged(self, task: QueuedTask | None, item: AttemptKey) -> bool:
        """Whether it was acknowledged, and nothing else is in hand that it may end.

        Else a success that was recorded as cancelled would count after all. A task in
        hand may have the name of one that is forgotten, and its numbers.
        """
        return _is_undecided(task) and any(item in keys for keys in self._acknowledged)

    def _awaits_acknowledgement(
        self, task: QueuedTask | None, node: NodeId, item: AttemptKey
    ) -> bool:
        """Return True if the report repeats one that is recorded but unacknowledged.

        Otherwise, without a standby, each repeat would make the log grow. A live
        attempt is an exception: after a new link, a worker with too many reports for
        one message lists some ended attempts as running. These must end once more.
        """
        return item in self._unacknowledged and not _is_live_attempt(
            task, node, item[1]
        )

    def record_report(self, node: NodeId, report: Report, now: Moment) -> bool:
        """Record one report; tell whether it ended its task."""
        step = self._step
        key = (report.task, report.attempt)
        task = self._queue.tasks.get(report.task)
        if self._awaits_acknowledgement(task, node, key) or self._was_acknowledged(
            task, key
        ):
            return False
        self._unacknowledged.add(key)
        if task is None:
            task = self._add_ended_shadow(report, None)
        is_live = _is_live_attempt(task, node, report.attempt)
        if not is_live and _is_known_end(task, report):
            return False  # It was repeated because the acknowledgement was slow.
        step.pin_until_durable(task)
        was_open = task.final_state is None
        outcome = self._outcome_to_write(task, node, report, is_live=is_live)
        step.write_end(task, report.attempt, node, outcome)
        if is_live:
            self._finish_live_attempt(task, node, outcome, now)
        else:
            self._end_by_late_end(task, outcome)
        if outcome.outputs:
            step.locality.note_outputs(report.task, node, outcome)
        if was_open and task.final_state is TaskState.FAILED:
            step.count_member_failure(report.task)
        is_over = outcome.state in FINAL_STATES or task.final_state is not None
        if is_over:
            step.note_ended((report.task,))
        return is_over

    def _outcome_to_write(
        self, task: QueuedTask, node: NodeId, report: Report, *, is_live: bool
    ) -> Outcome:
        """Return what an end means for a task in hand, which may be decided already.

        A failure is judged then, too: it shall not take the place of what decided it.
        """
        reported = report.outcome
        is_loss = reported.reason is EndReason.LOST
        if is_loss and not is_live and not _is_undecided(task):
            return reported  # Another attempt stands for it.
        if (
            task.final_state is TaskState.CANCELLED
            and reported.state is AttemptState.OK
        ):
            # It ended before the kill arrived, but the client got a confirmed cancel.
            return replace(
                reported, state=AttemptState.CANCELLED, reason=EndReason.CANCELLED
            )
        if is_live and reported.reason in (EndReason.INPUTS, EndReason.ROOM):
            return self._outcome_without_inputs(task, node, reported)
        return apply_retry_policy(task.spec, report.attempt, reported, task.tries)

    def _outcome_without_inputs(
        self, task: QueuedTask, node: NodeId, reported: Outcome
    ) -> Outcome:
        """Return a failure if all workers lack an input, and no other may attach."""
        task.add_missing_inputs(node, reported.detail)
        may_run = not self._lacks_inputs_everywhere(task) or task.final_state
        if may_run or reported.reason is EndReason.ROOM:
            return reported
        if self._reconciler.is_window_open:
            return reported
        detail = task.describe_absent_inputs()
        return replace(
            reported, state=AttemptState.FAILED, exit_code=None, detail=detail
        )

    def _lacks_inputs_everywhere(self, task: QueuedTask) -> bool:
        workers = self._pool.capable_workers(task.requires)
        return task.nodes_lacking_inputs.issuperset(workers)

    def _end_by_late_end(self, task: QueuedTask, outcome: Outcome) -> None:
        """Let the end of an attempt count that is not under way here."""
        final = FINAL_STATES.get(outcome.state)
        if final is None:
            return
        if task.stage is Stage.LIVE and task.final_state is None:
            self._step.kill_live_attempt(task)
        elif task.stage in WAITING_STAGES:
            self._queue.end(task, final)
        task.final_state = _decided_state(task, final)

    def _finish_live_attempt(
        self, task: QueuedTask, node: NodeId, outcome: Outcome, now: Moment
    ) -> None:
        """Move a task whose live attempt ended."""
        final = FINAL_STATES.get(outcome.state)
        if final is not None:
            self._queue.end(task, _decided_state(task, final))
            return
        if outcome.reason in FAILURE_REASONS:
            task.missing_room = ""
            assert task.attempt is not None
            tries = add_try(task.tries, task.attempt, outcome)
            wait_s = retry_delay_s(task.spec.id, len(tries.failed))
            self._step.requeue_task(task, now, wait_s)
            return
        if outcome.reason is EndReason.ROOM and task.final_state is None:
            if self._lacks_inputs_everywhere(task):
                # There is room again once other tasks have ended, so all are asked
                # again.
                task.missing_room = task.describe_missing_inputs()
                task.nodes_lacking_inputs, task.missing_inputs = frozenset(), ()
                self._step.requeue_task(task, now, ROOM_WAIT_S)
                return
        elif outcome.reason in REFUSAL_REASONS:
            self._pool.cap_credit(node, is_refusing=True)
        elif outcome.reason is EndReason.RETURNED:
            self._pool.cap_credit(node, is_refusing=False)
        self._step.requeue_task(task, now)


def _spec_of(report: Report) -> TaskSpec:
    return report.spec or TaskSpec(id=report.task, command="")


def _is_undecided(task: QueuedTask | None) -> bool:
    """Whether what is known here of a task is at most how attempts at it ended."""
    return task is None or (task.stage is Stage.ENDED and task.final_state is None)


def _is_live_attempt(task: QueuedTask | None, node: NodeId, attempt: AttemptId) -> bool:
    """Whether this is the attempt under way, as far as is known."""
    is_live = task is not None and task.stage is Stage.LIVE
    return task is not None and is_live and (task.attempt, task.node) == (attempt, node)


def _is_known_end(task: QueuedTask, report: Report) -> bool:
    """Return True if this end is known; a presumed end counts only if it is equal."""
    known = task.end_of(report.attempt)
    is_same = known is not None and known.reason is report.outcome.reason
    return is_same or task.is_end_reported(report.attempt)


def _has_other_live_attempt(
    task: QueuedTask | None, node: NodeId, report: Report
) -> bool:
    """Whether a worker listed another attempt, which may run on."""
    is_live = task is not None and task.stage is Stage.LIVE
    return is_live and not _is_live_attempt(task, node, report.attempt)


def _depends_on_log(report: Report) -> bool:
    """Whether an end means one thing or another by what the log says of its task."""
    outcome, spec = report.outcome, report.spec
    if outcome.state in (AttemptState.OK, AttemptState.CANCELLED):
        return outcome.state is AttemptState.OK
    if spec is not None:
        outcome = apply_retry_policy(spec, report.attempt, outcome, NO_TRIES)
        if outcome.state is AttemptState.FAILED:
            return (
                split_member_id(report.task) is not None
            )  # Once, for its array counts it.
    return outcome.reason in (*FAILURE_REASONS, EndReason.LOST)


def _decided_state(task: QueuedTask, final: TaskState) -> TaskState:
    """Return how a task ends for which one more end is known: as the merge says."""
    if task.final_state is None or final is TaskState.COMPLETED:
        return final
    return task.final_state
