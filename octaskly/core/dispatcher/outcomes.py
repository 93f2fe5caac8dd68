"""How attempts ended, as facts: what ends a task, and what another attempt follows.

Owns the judgement of one report against what is in hand. When it is acknowledged and
who hears of it is decided in `dispatch`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from octaskly.core.dispatcher.reconciliation import Adoption
from octaskly.core.dispatcher.step import Placing
from octaskly.core.log.facts import Finished
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import member_of
from octaskly.core.model.ids import AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.tasks import AttemptState, Outcome, Reason, TaskSpec, TaskState
from octaskly.core.protocol.messages import Report
from octaskly.core.scheduling.queued_task import WAITING, InHand, Stage
from octaskly.core.scheduling.retry_policy import (
    FAILURES,
    NO_TRIES,
    counted,
    judged,
    rest_s,
)

FINAL_STATES = {
    AttemptState.OK: TaskState.COMPLETED,
    AttemptState.FAILED: TaskState.FAILED,
}
"""Ends of an attempt that end the task."""

Key = tuple[TaskId, AttemptId]

TOLD_MAX = 5000
"""Results that are remembered, and as many before them: more than are on their way."""

NO_MORE_WORK = (Reason.DRAINING, Reason.STALE)
"""Reasons of workers that would hand the next attempt back, too."""


class Recording:
    """Reports of workers, judged one by one."""

    def __init__(self, placing: Placing, adoption: Adoption) -> None:
        self._placing = placing
        self._adoption = adoption
        self._queue = placing.queue
        self._pool = placing.pool
        self._waiting: set[Key] = set()
        """What is recorded, and told again until it may be acknowledged."""
        self._put_off: dict[TaskId, dict[AttemptId, tuple[NodeId, Report]]] = {}
        """Ends that wait for what the store says of their tasks, and who told."""
        self._told: tuple[set[Key], set[Key]] = (set(), set())
        """What was acknowledged of late, and before that: it is told again where it
        crossed that, as who is told to end what has ended repeats its result."""

    def forget(self) -> None:
        """The reign is over."""
        self._waiting.clear()
        self._put_off.clear()
        self._told = (set(), set())

    def put_off(self, node: NodeId, report: Report) -> bool:
        """Let an end wait for a read of the store; tell whether it does.

        That is where this reign has not seen the task in its log. Who cancelled it may
        have been told so, by the dispatcher before, and a success that counts would
        undo it; and how often it has failed says whether a failure ends it.
        """
        queue, item = self._queue, (report.task, report.attempt)
        others = self._put_off.get(report.task)
        if others is None:
            task = queue.tasks.get(report.task)
            if task is not None:
                is_seen = task.is_sure or task.final is not None
                if is_seen or report.attempt in task.reported:
                    return False
                if task.stage is Stage.LIVE:
                    report = replace(report, spec=task.spec)
            if (
                not _hangs_on_the_log(report)
                or self._is_recorded(task, node, item)
                or self._is_settled(task, item)
            ):
                return False
            others = self._put_off[report.task] = {}
            queue.seek(report.task)
            if not _is_elsewhere(task, node, report):
                tries = NO_TRIES
                if task is not None:
                    tries = task.tries
                    queue.end(task, None)
                # No read shall start it.
                queue.shadow(_spec_of(report), None).tries = tries
        others[report.attempt] = node, report
        shadow = queue.tasks.get(report.task)
        if shadow is not None and shadow.stage is Stage.ENDED:
            told = [other for _, other in others.values()]
            is_in_vain = all(r.outcome.state is not AttemptState.OK for r in told)
            shadow.reported = tuple(others) if is_in_vain else ()
        return True

    def overtake(self, over: Iterable[TaskId]) -> None:
        """Have the store asked anew where an end that waits hangs on what came now."""
        queue, stale = self._queue, self._put_off.keys() & set(over)
        queue.named = tuple(task for task in queue.named if task not in stale)
        for task in stale:
            queue.seek(task)

    def take_up(self, records: Iterable[TaskRecord]) -> dict[NodeId, list[Report]]:
        """Return the reports that waited for the last read, by who told them."""
        known = {record.id: record for record in records}
        ready: dict[NodeId, list[Report]] = {}
        for task_id in self._queue.named:
            reports = self._put_off.pop(task_id, None)
            if reports is None:
                continue
            self._learn(known.get(task_id), reports)
            for node, report in reports.values():
                ready.setdefault(node, []).append(report)
        return ready

    def _learn(
        self, record: TaskRecord | None, reports: dict[AttemptId, tuple[NodeId, Report]]
    ) -> None:
        """Take over what the store says of a task, before ends of it are recorded."""
        queue = self._queue
        told = [report for _, report in reports.values()]
        specs = [report.spec for report in told]
        report = replace(
            told[0], spec=next(filter(None, specs), record.spec if record else None)
        )
        task = queue.tasks.get(report.task)
        # Else it was cancelled meanwhile, or another attempt was found.
        if task is None or _is_open(task):
            tries = NO_TRIES if task is None else task.tries
            state = TaskState.QUEUED if record is None else record.state
            state = queue.settled(report.task, state)
            task = self._meet(report, state if state.is_final else None)
            task.tries = tries
        # What was put off is not recorded yet.
        task.reported = tuple(name for name in task.reported if name not in reports)
        if record is not None:
            self._adoption.learn(record, task)
            self._write_again(record, reports)

    def _meet(self, report: Report, final: TaskState | None) -> InHand:
        """Take in hand a task of which ends are told; `final` if it is over.

        Else the store is asked when they are durable, also of a task that ended here:
        that may be forgotten, and another half of a split has told that it goes on.
        """
        spec, is_over = report.spec, self._queue.is_final(report.task)
        if spec is not None and final is None and not is_over:
            self._placing.facts += self._placing.told_again(spec, report.attempt)
        task = self._queue.shadow(_spec_of(report), final)
        self._placing.touch(task)
        return task

    def _write_again(
        self, record: TaskRecord, reports: dict[AttemptId, tuple[NodeId, Report]]
    ) -> None:
        """Write what is known of ends that are told again, before that is said.

        It may be so from rows of a snapshot, which this node alone holds.
        """
        for attempt in record.attempts:
            known, told = attempt.outcome, reports.get(attempt.id)
            if known is None or told is None:
                continue
            node, report = told
            if known.reason is report.outcome.reason:
                outcome = replace(report.outcome, state=known.state)
                end = Finished(record.id, attempt.id, node, outcome)
                self._placing.facts.append(end)

    def acknowledged(self, items: Iterable[Key]) -> None:
        """The worker is told that these are safe."""
        self._waiting.difference_update(items)
        late, _ = self._told
        late.update(items)
        if len(late) > TOLD_MAX:
            self._told = (set(), late)

    def _is_settled(self, task: InHand | None, item: Key) -> bool:
        """Whether it was acknowledged, and nothing else is in hand that it may end.

        Else a success that was recorded as cancelled would count after all. A task in
        hand may have the name of one that is forgotten, and its numbers.
        """
        return _is_open(task) and any(item in told for told in self._told)

    def _is_recorded(self, task: InHand | None, node: NodeId, item: Key) -> bool:
        """Whether an end is told again that waits to be acknowledged.

        Else a log without a standby would grow with each repeat. What is too much for
        one message is listed as running by a new link, and ends once more where it was
        taken in hand again by that.
        """
        return item in self._waiting and not _is_live(task, node, item[1])

    def record(self, node: NodeId, report: Report, now: Moment) -> bool:
        """Record one report; tell whether it ended its task."""
        placing = self._placing
        item = (report.task, report.attempt)
        task = self._queue.tasks.get(report.task)
        if self._is_recorded(task, node, item) or self._is_settled(task, item):
            return False
        self._waiting.add(item)
        if task is None:
            task = self._meet(report, None)
        if report.attempt in task.reported:
            return False  # Told again because the acknowledgement was slow.
        task.reported += (report.attempt,)
        placing.touch(task)
        was_open = task.final is None
        if _is_live(task, node, report.attempt):
            outcome = _outcome(task, report.attempt, report.outcome)
            outcome = self._finish(task, node, outcome, now)
        else:
            outcome = self._hear_late(task, report.attempt, report.outcome)
        placing.facts.append(Finished(report.task, report.attempt, node, outcome))
        if was_open and task.final is TaskState.FAILED:
            placing.count_failure(report.task)
        is_over = outcome.state in FINAL_STATES or task.final is not None
        if is_over:
            placing.note_over((report.task,))
        return is_over

    def _hear_late(self, task: InHand, attempt: AttemptId, told: Outcome) -> Outcome:
        """Let the end of an attempt count that is not under way here; return it."""
        if told.reason is Reason.LOST and not _is_open(task):
            task.tries = counted(task.tries, attempt, told)
            return told  # Another attempt stands for it.
        outcome = _outcome(task, attempt, told)
        final = FINAL_STATES.get(outcome.state)
        if final is None:
            task.tries = counted(task.tries, attempt, outcome)
            return outcome
        if task.stage is Stage.LIVE and task.final is None:
            self._placing.kill(task)
        elif task.stage in WAITING:
            self._queue.end(task, final)
        task.final = _decided(task, final)
        return outcome

    def _finish(
        self, task: InHand, node: NodeId, outcome: Outcome, now: Moment
    ) -> Outcome:
        """Move a task whose live attempt ended; return the outcome to record."""
        final = FINAL_STATES.get(outcome.state)
        if final is not None:
            self._queue.end(task, _decided(task, final))
            return outcome
        assert task.attempt is not None
        task.tries = counted(task.tries, task.attempt, outcome)
        if outcome.reason in FAILURES:
            wait_s = rest_s(task.spec.id, len(task.tries.failed))
            self._placing.take_back(task, now, wait_s)
            return outcome
        if outcome.reason is Reason.INPUTS:
            task.lacking |= {node}
            task.lack = outcome.detail
            workers = self._pool.able(task.requires)
            if task.lacking.issuperset(workers) and task.final is None:
                return self._finish_lacking(task, outcome, now)
        elif outcome.reason in NO_MORE_WORK:
            self._pool.cap_credit(node, is_refusing=True)
        elif outcome.reason is Reason.RETURNED:
            self._pool.cap_credit(node, is_refusing=False)
        self._placing.take_back(task, now)
        return outcome

    def _finish_lacking(self, task: InHand, outcome: Outcome, now: Moment) -> Outcome:
        """Fail a task that no worker can run, unless more workers may come."""
        if self._adoption.is_open:
            self._placing.take_back(task, now)
            return outcome
        self._queue.end(task, TaskState.FAILED)
        return replace(outcome, state=AttemptState.FAILED, exit_code=None)


def _spec_of(report: Report) -> TaskSpec:
    return report.spec or TaskSpec(id=report.task, command="")


def _is_open(task: InHand | None) -> bool:
    """Whether what is known here of a task is at most how attempts at it ended."""
    return task is None or (task.stage is Stage.ENDED and task.final is None)


def _is_live(task: InHand | None, node: NodeId, attempt: AttemptId) -> bool:
    """Whether this is the attempt under way, as far as is known."""
    is_live = task is not None and task.stage is Stage.LIVE
    return task is not None and is_live and (task.attempt, task.node) == (attempt, node)


def _is_elsewhere(task: InHand | None, node: NodeId, report: Report) -> bool:
    """Whether a worker listed another attempt, which may run on."""
    is_live = task is not None and task.stage is Stage.LIVE
    return is_live and not _is_live(task, node, report.attempt)


def _hangs_on_the_log(report: Report) -> bool:
    """Whether an end means one thing or another by what the log says of its task."""
    outcome, spec = report.outcome, report.spec
    if outcome.state in (AttemptState.OK, AttemptState.CANCELLED):
        return outcome.state is AttemptState.OK
    if spec is not None:
        outcome = judged(spec, report.attempt, outcome, NO_TRIES)
        if outcome.state is AttemptState.FAILED:
            return member_of(report.task) is not None  # Once, for its array counts it.
    return outcome.reason in (*FAILURES, Reason.LOST)


def _outcome(task: InHand, attempt: AttemptId, told: Outcome) -> Outcome:
    """Return what an end means for a task in hand, which may be decided already.

    A failure is judged then, too: it shall not take the place of what decided it.
    """
    if task.final is TaskState.CANCELLED and told.state is AttemptState.OK:
        # It ended while that was on its way, but who cancelled it was told so.
        return replace(told, state=AttemptState.CANCELLED, reason=Reason.CANCELLED)
    return judged(task.spec, attempt, told, task.tries)


def _decided(task: InHand, final: TaskState) -> TaskState:
    """Return how a task ends for which one more end is known: as the merge says."""
    if task.final is None or final is TaskState.COMPLETED:
        return final
    return task.final
