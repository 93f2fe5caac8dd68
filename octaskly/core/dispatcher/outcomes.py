"""Outcomes of attempts: writes them to the log, and follows what they decide.

An end is written as reported, whether or not this epoch has read the task from the log.
`task_rules` has the rules for what follows. `dispatcher` decides when a report is
acknowledged, and which clients are notified.
"""

from __future__ import annotations

from collections.abc import Iterable

from octaskly.core.dispatcher import task_rules
from octaskly.core.dispatcher.reconciliation import Reconciler
from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.log.facts import Decided
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.core.protocol.messages import RangeReport, Report
from octaskly.core.scheduling.queued_task import QueuedTask, Stage

AttemptKey = tuple[TaskId, AttemptId]

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

    def clear_reports(self) -> None:
        """Drop all reports at the end of an epoch."""
        self._unacknowledged.clear()

    def mark_acknowledged(self, items: Iterable[AttemptKey]) -> None:
        """Note that these reports are acknowledged to their worker."""
        self._unacknowledged.difference_update(items)

    def is_unacknowledged(self, key: AttemptKey) -> bool:
        """Return True if a report is recorded, and its worker may repeat it."""
        return key in self._unacknowledged

    def record_report(self, node: NodeId, report: Report, now: Moment) -> None:
        """Record one report.

        A report that repeats one is ignored until that is acknowledged. Otherwise,
        without a standby, each repeat would make the log grow. A live attempt is an
        exception: after a new link, a worker with too many reports for one message
        lists some ended attempts as running. These must end once more.
        """
        step, key = self._step, (report.task, report.attempt)
        task = self._queue.tasks.take_reported(report.task, report.attempt, node)
        is_live = task is not None and task.is_live_at(node, report.attempt)
        if key in self._unacknowledged and not is_live:
            return
        self._unacknowledged.add(key)
        outcome = report.outcome
        if task is None:
            task = self._add_unread_task(report)
        if is_live:
            self._end_live_attempt(task, node, report, now)
        else:
            step.write_end(task, report.attempt, node, outcome)
        if outcome.outputs:
            step.locality.note_outputs(report.task, report.attempt, node, outcome)

    def record_members(
        self, node: NodeId, report: RangeReport, now: Moment
    ) -> list[AttemptKey]:
        """Record successes of members of one range; return their attempts.

        Those that the worker holds by this range are recorded together, the others
        like any other report: a member may have been cancelled or given up.
        """
        members = report.members
        live = self._queue.tasks.range_of(members, node)
        if live is None:
            keys = members.attempt_keys()
        else:
            keys = [(live.ids[at], live.attempts[at]) for at in members.offsets]
        ended: list[tuple[int, Outcome]] = []
        ended_keys: list[AttemptKey] = []
        others: list[Report] = []
        for key, offset, success in zip(
            keys, members.offsets, report.successes, strict=True
        ):
            if live is not None and live.is_live(offset):
                ended.append((offset, success.outcome))
                ended_keys.append(key)
            else:
                others.append(Report(*key, success.outcome))
        if live is not None and ended:
            self._unacknowledged.update(ended_keys)
            self._step.end_members(live, ended)
        for other in others:
            self.record_report(node, other, now)
        return keys

    def _add_unread_task(self, report: Report) -> QueuedTask:
        """Add a task that this epoch has not read; it is read after this step."""
        spec = report.spec
        if spec is not None and not self._queue.has_ended_recently(report.task):
            self._step.facts += self._step.resubmission_facts(spec, report.attempt)
        self._queue.look_up_array_of(report.task)
        return self._queue.add_shadow(TaskRecord(report.task, spec))

    def _end_live_attempt(
        self, task: QueuedTask, node: NodeId, report: Report, now: Moment
    ) -> None:
        """Record the end of the attempt that is under way, and do what follows."""
        outcome = report.outcome
        self._step.write_end(task, report.attempt, node, outcome)
        if outcome.state is AttemptState.FAILED:
            task.missing_room = ""
        elif outcome.reason in REFUSAL_REASONS:
            self._pool.cap_credit(node, is_refusing=True)
        elif outcome.reason is EndReason.RETURNED:
            self._pool.cap_credit(node, is_refusing=False)
        elif outcome.reason in (EndReason.INPUTS, EndReason.ROOM):
            task.add_missing_inputs(node, outcome.detail)
        self._step.free_task(task, outcome, now)
        if task.missing_inputs:
            self.settle_refused((task,), now)

    def settle_refused(self, tasks: Iterable[QueuedTask], now: Moment) -> None:
        """Fail the queued tasks that every worker has refused, or let them wait.

        None fails while absent workers may still come back.
        """
        for task in tasks:
            if task.stage is not Stage.QUEUED or not task.missing_inputs:
                continue
            workers = set(self._pool.capable_workers(task.requires))
            refused = workers & task.missing_inputs.keys()
            if not refused:
                continue
            term = self._step.epoch.term
            follows = task_rules.after_refusals(task.record, refused, term)
            if not isinstance(follows, Decided):
                self._retry_refused(task, follows, now, by_all=refused == workers)
            elif refused == workers and not self._reconciler.is_window_open:
                self._step.write(task, follows)

    def _retry_refused(
        self, task: QueuedTask, wait_s: float, now: Moment, *, by_all: bool
    ) -> None:
        """Ask all workers again after a wait.

        Until then, those that have not refused may take the task. They may be paused
        or busy for days, though, while others have room again.
        """
        if by_all:
            task.missing_room = task.describe_missing_inputs()
            task.missing_inputs.clear()
            self._step.requeue_task(task, now, wait_s)
        else:
            self._step.backoff_queue.end_refusals(task, now, wait_s)
