"""How attempts ended, as facts: what ends a task, and what another attempt follows.

Owns the judgement of one report against what is in hand. When it is acknowledged and
who hears of it is decided in `dispatch`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from octaskly.core.adoption import Adoption
from octaskly.core.arrays import member_of
from octaskly.core.facts import Finished
from octaskly.core.inhand import WAITING, InHand, Stage
from octaskly.core.merge import TaskRecord
from octaskly.core.messages import Report
from octaskly.core.model import (
    Attempt,
    AttemptId,
    AttemptState,
    Moment,
    NodeId,
    Outcome,
    Reason,
    TaskId,
    TaskSpec,
    TaskState,
)
from octaskly.core.placing import Placing
from octaskly.core.retry import (
    FAILURES,
    NO_TRIES,
    counted,
    judged,
    rest_s,
    told_of,
    tries_of,
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
        self._before: dict[Key, tuple[Attempt, ...]] = {}
        """What the store said just now of attempts at such a task."""
        self._told: tuple[set[Key], set[Key]] = (set(), set())
        """What was acknowledged of late, and before that: it is told again where it
        crossed that, as who is told to end what has ended repeats its result."""

    def forget(self) -> None:
        """The reign is over."""
        self._waiting.clear()
        self._put_off.clear()
        self._before.clear()
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
                if not _is_unseen(task):
                    return False
                report = replace(report, spec=task.spec)
            if (
                not _hangs_on_the_log(report)
                or item in self._waiting
                or self._was_told(item)
            ):
                return False
            others = self._put_off[report.task] = {}
            queue.seek(report.task)
            if task is None or (task.attempt, task.node) == (report.attempt, node):
                if task is not None:
                    queue.end(task, None)
                queue.shadow(_spec_of(report), None)  # No read shall start it.
        others[report.attempt] = node, report
        shadow = queue.tasks.get(report.task)
        if shadow is not None and shadow.stage is Stage.ENDED:
            told = [other for _, other in others.values()]
            is_in_vain = all(r.outcome.state is not AttemptState.OK for r in told)
            shadow.reported = tuple(others) if is_in_vain else ()
        return True

    def take_up(self, records: Iterable[TaskRecord]) -> dict[NodeId, list[Report]]:
        """Return the reports that waited for the last read, by who told them."""
        queue = self._queue
        known = {record.id: record for record in records}
        self._before = {}
        ready: dict[NodeId, list[Report]] = {}
        for task_id in queue.named:
            reports = self._put_off.pop(task_id, None)
            if reports is None:
                continue
            record = known.get(task_id)
            spec = None if record is None else record.spec
            for node, report in reports.values():
                report = replace(report, spec=report.spec or spec)
                ready.setdefault(node, []).append(report)
            task = queue.tasks.get(task_id)
            # Else it was cancelled meanwhile, or another attempt was found.
            if task is None or (task.stage is Stage.ENDED and task.final is None):
                state = TaskState.QUEUED if record is None else record.state
                state = queue.settled(task_id, state)
                if not state.is_final:
                    queue.tasks.pop(task_id, None)
                    attempts = () if record is None else record.attempts
                    self._before |= {(task_id, name): attempts for name in reports}
                    continue
                task = queue.shadow(_spec_of(report), state)
                self._placing.touch(task)
            if record is not None:
                self._adoption.learn(record, task)
                self._write_again(record, reports)
        return ready

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

    def _was_told(self, item: Key) -> bool:
        return any(item in told for told in self._told)

    def record(self, node: NodeId, report: Report, now: Moment) -> bool:
        """Record one report; tell whether it ended its task."""
        placing = self._placing
        item = (report.task, report.attempt)
        if item in self._waiting:
            return False  # Else a log without a standby would grow with each repeat.
        task = self._queue.tasks.get(report.task)
        if task is None and self._was_told(item):
            # Else a success that was recorded as cancelled would count after all. A
            # task in hand may have the name of one that is forgotten, and its numbers.
            return False
        self._waiting.add(item)
        if task is None:
            return self._record_unknown(node, report)
        if report.attempt in task.reported:
            return False  # Told again because the acknowledgement was slow.
        task.reported += (report.attempt,)
        placing.touch(task)
        was_open = task.final is None
        is_live = task.stage is Stage.LIVE
        if is_live and (task.attempt, task.node) == (report.attempt, node):
            outcome = _outcome(task, report.attempt, report.outcome)
            outcome = self._finish(task, node, outcome, now)
        else:
            outcome = self._hear_late(task, report.attempt, report.outcome)
        placing.facts.append(Finished(report.task, report.attempt, node, outcome))
        if was_open and task.final is TaskState.FAILED:
            placing.count_failure(report.task)
        return outcome.state in FINAL_STATES or task.final is not None

    def _hear_late(self, task: InHand, attempt: AttemptId, told: Outcome) -> Outcome:
        """Let the end of an attempt count that was taken for lost; return it."""
        if told.reason is Reason.LOST:
            return told  # That much was known, and counted.
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

    def _record_unknown(self, node: NodeId, report: Report) -> bool:
        """Record the end of an attempt whose task is not in hand."""
        placing = self._placing
        spec = report.spec
        if spec is not None and not self._queue.is_final(report.task):
            placing.facts += placing.told_again(spec, report.attempt)
        outcome = report.outcome
        before = self._before.get((report.task, report.attempt))
        tries = tries_of(before or ())
        if spec is not None:
            outcome = judged(spec, report.attempt, outcome, tries)
        placing.facts.append(Finished(report.task, report.attempt, node, outcome))
        final = FINAL_STATES.get(outcome.state)
        # Without one the store is asked, also of a task that ended here: that may be
        # forgotten, and another half of a split has told that the task goes on.
        task = self._queue.shadow(_spec_of(report), final)
        # Another may be told, too: one that the log has counts once.
        task.reported = (*told_of(before or ()), report.attempt)
        task.tries = counted(tries, report.attempt, outcome)
        placing.touch(task)
        if before is not None and final is TaskState.FAILED:
            placing.count_failure(report.task)
        return final is not None


def _spec_of(report: Report) -> TaskSpec:
    return report.spec or TaskSpec(id=report.task, command="")


def _is_unseen(task: InHand) -> bool:
    """Whether all that is known of a task is that a worker listed an attempt."""
    return task.stage is Stage.LIVE and task.final is None and not task.is_sure


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
