"""Reconciliation of attempts from earlier epochs: which still count, which run again.

It applies after a change of dispatcher, and when another node's log arrives. Absent
workers get a reattach window to return. A worker's list of running attempts takes
precedence over the log. An attempt that is not on the list has ended or was lost. The
log shows which, once it holds all entries of the nodes in the mesh.

So a new dispatcher waits for catch-up before it reads the log: `CATCH_UP_S`, and up to
`CATCH_UP_S_MAX` while nodes respond. It presumes an attempt lost only after the
reattach window. Both times start again with each part of a log that is asked for or
arrives, for at most `LOG_WAIT_S_MAX`. So do they when a node with other entries
reattaches later: a part of its log may bring a task whose end is in another part. A
worker refuses orders of old epochs: see `core.worker.worker`.

An end in another node's log has a verdict of an earlier epoch, or none. Once all logs
are read, this epoch writes the verdict again, and only then is the end announced. So no
verdict that comes later, from an epoch between the two, changes what was announced.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from octaskly.core.dispatcher import task_rules
from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.effects import Effect, LogLine
from octaskly.core.log.facts import Assigned
from octaskly.core.log.merge import TaskRecord, join_records
from octaskly.core.model.arrays import array_of
from octaskly.core.model.ids import AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.tasks import Attempt, TaskSpec
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import Reattach
from octaskly.core.scheduling.queued_task import WAITING_STAGES, QueuedTask, Stage

CATCH_UP_S = 0.5  #: how long a new dispatcher waits for entries of other nodes
CATCH_UP_S_MAX = 3.0  #: the same while those nodes respond, but send no entries
LOG_WAIT_S_MAX = 30.0
"""Longest wait for the logs of other nodes, even if parts of them still arrive.

Meanwhile only queued tasks that are in memory start, so a snapshot of gigabytes, which
takes longer, is not awaited to its end.
"""
LOGS_GIVEN_UP = "logs of other nodes not read in time"  #: in the agent's log
LOSSES_PER_STEP = 1000  #: attempts given up in one step, or those of one worker
REPEATS_MAX = 10_000
"""Ends of other logs that are repeated after each wait for logs.

More are announced as they are. A standby that is in sync lacks fewer; after a split
there may be millions.
"""


class Reconciler:
    """Adopts attempts of earlier epochs, and waits for absent workers."""

    def __init__(
        self, step: DispatchStep, reattach_s: float, timers: TimerHeap
    ) -> None:
        self._step = step
        self._timers = timers
        self._queue = step.queue
        self._pool = step.pool
        self._reattach_s = reattach_s
        self._progress = 0  #: of the exchange of logs when the times last started
        self.stop_waiting()

    def stop_waiting(self) -> None:
        """Drop all waits. Each epoch starts without any."""
        self._read_delayed_until_s = 0.0  #: while the queue's reads are paused
        self._read_delay_end_s = 0.0
        self.is_log_behind = False
        """Whether nodes here may hold ends that this log does not."""
        self._log_awaited_until_s = 0.0  #: while it is behind
        self._log_wait_end_s = 0.0  #: the latest time for both, however much arrives
        self._awaited: dict[NodeId | None, float] = {}
        """Time until which the attempts of an absent worker are left alone.

        None stands for all workers of the previous epoch: the reattach window.
        """
        self._slots_of_absent: dict[NodeId, int] = {}
        """Slots of those that were linked in this epoch; others are not known."""
        self._unread: dict[TaskId, None] = {}
        """Tasks to read once the log is trusted."""
        self._unrepeated: dict[TaskId, None] = {}
        """Tasks with ends from other logs that this epoch has not repeated yet."""
        self._repeats_left = 0  #: see `REPEATS_MAX`
        self._answers_wait_until_s = math.inf  #: for these; infinite: none waits
        self._resume_reading()

    @property
    def is_repeating(self) -> bool:
        """Return True while answers wait until ends from other logs are repeated."""
        return self._answers_wait_until_s < math.inf

    @property
    def is_window_open(self) -> bool:
        """Return True while workers of the previous epoch may still reattach."""
        return None in self._awaited

    def open_reattach_window(self, now: Moment) -> None:
        """Wait for the workers of the previous epoch."""
        self._awaited = {None: now.mono_s + self._reattach_s}
        self._repeats_left = REPEATS_MAX
        self._set_timer()

    def await_logs(self, now: Moment) -> None:
        """Pause reads, and presume no attempt lost, until `trust_log`, for a time.

        A node here has entries that this log lacks, perhaps with the ends of queued
        tasks, or of attempts that its worker does not list.
        """
        if not self.is_log_behind:
            self.is_log_behind = True
            self._repeats_left = REPEATS_MAX
            self._log_wait_end_s = now.mono_s + LOG_WAIT_S_MAX
        self._start_times(now)

    def extend_waits(self, progress: int, now: Moment) -> None:
        """Wait longer for other logs: a node that has more entries has responded.

        On a slow link that response alone may take the time in which its log is to
        arrive, so the times start again when that is asked for.

        Args:
            progress: How often a part of another log was asked for or arrived so far.
            now: Both clocks.
        """
        if progress != self._progress:
            self._progress = progress
            self._start_times(now)
        self._delay_read(now)

    def _start_times(self, now: Moment) -> None:
        """Start both waits for logs afresh, because their exchange has progressed."""
        end_s, now_s = self._log_wait_end_s, now.mono_s
        self._queue.is_reading_paused = True
        self._read_delay_end_s = min(now_s + CATCH_UP_S_MAX, end_s)
        self._log_awaited_until_s = min(now_s + self._reattach_s, end_s)
        self._delay_read(now)

    def _delay_read(self, now: Moment) -> None:
        if self._queue.is_reading_paused:
            self._read_delayed_until_s = min(
                now.mono_s + CATCH_UP_S, self._read_delay_end_s
            )
            self._set_timer()

    def trust_log(self) -> None:
        """Believe the log when it is read next: it is whole now, or has to do."""
        self.is_log_behind = False
        self._resume_reading()
        self._queue.mark_for_reread()
        unread, self._unread = self._unread, {}
        for task in unread:
            self._queue.read_afresh(task)

    def read_when_trusted(self, task: TaskId) -> None:
        """Read a task once no log is awaited that may have its end."""
        if self.is_log_behind:
            self._unread[task] = None
        else:
            self._queue.look_up_task(task)

    def _resume_reading(self) -> None:
        """Read what is in the log."""
        self._queue.is_reading_paused = False
        self._set_timer()

    def _set_timer(self) -> None:
        self._timers.set(Timer.REATTACH, self.deadline())

    def deadline(self) -> float:
        """Return when `expire_absent_workers` has something to do."""
        is_delayed = self._queue.is_reading_paused
        read_s = self._read_delayed_until_s if is_delayed else math.inf
        first_s = min(read_s, self._answers_wait_until_s)
        if self.is_log_behind:  # It may have the ends of absent workers' attempts.
            return min(first_s, self._log_awaited_until_s)
        return min((first_s, *self._awaited.values()))

    def on_reattach(self, node: NodeId, message: Reattach, now: Moment) -> None:
        """Adopt what a worker runs, kill what is void, give up what it lost."""
        self._stop_awaiting(node)
        # After a repeated claim it reattaches over the same link, so attempts that this
        # epoch assigned since then may still be on their way.
        own_stream = self._step.stream if self._pool.is_attached(node) else None
        listed_attempts = set()
        for attempt, spec in message.running:
            listed_attempts.add((spec.id, attempt))
            self._adopt_attempt(node, attempt, spec, now)
        # What the worker does not know was lost with its process, or on the way to it,
        # unless a log that is not read yet has its end.
        unlisted = [
            task
            for task in self._queue.tasks.held_by(node)
            if task.attempt is not None
            and (task.spec.id, task.attempt) not in listed_attempts
            and task.attempt.stream != own_stream
        ]
        if self.is_log_behind:
            # Those of this epoch have no end in another log.
            earlier = [
                task
                for task in unlisted
                if task.attempt is not None and task.attempt.stream != self._step.stream
            ]
            for task in earlier:
                task.is_worker_confirmed = False
            unlisted = [task for task in unlisted if task not in earlier]
        self._step.lose_attempts(node, unlisted, self._pool.slots(node), now)

    def on_worker_down(self, node: NodeId, now: Moment) -> bool:
        """Give up a worker's attempts, or wait for it; tell whether they were lost."""
        held_tasks = self._queue.tasks.held_by(node)
        window_end_s = self._awaited.get(None, 0.0)
        if now.mono_s < window_end_s or self.is_log_behind:
            if held_tasks:
                self._awaited[node] = max(window_end_s, now.mono_s)
                self._slots_of_absent[node] = self._pool.slots(node)
                self._set_timer()
            return False
        self._stop_awaiting(node)
        self._step.lose_attempts(node, held_tasks, self._pool.slots(node), now)
        return True

    def _stop_awaiting(self, node: NodeId) -> None:
        self._slots_of_absent.pop(node, None)
        if self._awaited.pop(node, None) is not None:
            self._set_timer()

    def expire_absent_workers(self, now: Moment) -> list[Effect]:
        """Give up the attempts of workers that did not come back in time.

        If these are many, the rest follows in the next step, whose timer is due.
        Returns a warning if logs that may have their ends are awaited no longer.
        """
        effects: list[Effect] = []
        if self._read_delayed_until_s <= now.mono_s:
            self._resume_reading()
        if self._answers_wait_until_s <= now.mono_s:
            self._answers_wait_until_s = math.inf
        if self.is_log_behind:
            if self._log_awaited_until_s > now.mono_s:
                self._set_timer()
                return effects  # It may have the ends of their attempts.
            waited_s = now.mono_s - self._log_wait_end_s + LOG_WAIT_S_MAX
            effects.append(_gave_up_logs(waited_s))
            self.trust_log()
        lost = 0
        for node in [n for n, at_s in self._awaited.items() if at_s <= now.mono_s]:
            held_tasks = [] if node is None else self._queue.tasks.held_by(node)
            if lost and lost + len(held_tasks) > LOSSES_PER_STEP:
                break
            lost += len(held_tasks)
            del self._awaited[node]
            if node is not None:
                slots = self._slots_of_absent.pop(node, 0)
                self._step.lose_attempts(node, held_tasks, slots, now)
        self._set_timer()
        return effects

    def withdraw_ended(self, ended: Iterable[TaskId]) -> None:
        """Begin none of these: the log of another node, on this disk, has their ends.

        Or ends of attempts at them, which count. More may come for long before the
        queue is read afresh. The store is asked, as what has the name of a forgotten
        task may live on, and not all attempts may be used up.
        """
        queue = self._queue
        queue.reads.overtake(ended)
        self._step.note_changed(ended)
        for task_id in ended:
            task = queue.tasks.get(task_id)
            if task is not None:
                if task.stage is Stage.LIVE:
                    task.is_read = False
                    queue.look_up_task(task_id)
                self._withdraw_task(task)
            for member in queue.tasks.members_of(task_id):
                if member.stage is Stage.LIVE:
                    member.may_be_array_cancelled = True
                self._withdraw_task(member)
            queue.array_queue.remove_member(task_id)
        for array in dict.fromkeys(map(array_of, ended)):
            if array is not None and queue.array_queue.has_bounded_failures(array):
                self._step.recount_failures(array)

    def repeat_ends(self, ended: Iterable[TaskId], now: Moment) -> None:
        """Read these ends of other logs, and decide by them before they are announced.

        More than `REPEATS_MAX` are announced as they are. Answers wait no longer than
        an absent worker is awaited.
        """
        if not self._unrepeated and self._repeats_left:
            self._answers_wait_until_s = now.mono_s + self._reattach_s
            self._set_timer()
        for task_id in ended:
            if task_id not in self._unrepeated:
                if not self._repeats_left:
                    self._step.announce_ended((task_id,))
                    continue
                self._repeats_left -= 1
                self._unrepeated[task_id] = None
            self.read_when_trusted(task_id)

    def announce_repeated(self, tasks: Iterable[TaskId]) -> None:
        """Announce those ends of other logs that were read, and decided in this step.

        What was withdrawn from the queue is read again, until a read shows its end.
        """
        for task_id in tasks if self._unrepeated else ():
            task = self._queue.tasks.get(task_id)
            is_withdrawn = task is not None and task.stage is Stage.ENDED
            if is_withdrawn and task is not None and task.final_state is None:
                continue
            if task_id in self._unrepeated:
                del self._unrepeated[task_id]
                self._step.announce_ended((task_id,))
        if not self._unrepeated and self.is_repeating:
            self._answers_wait_until_s = math.inf
            self._set_timer()

    def _withdraw_task(self, task: QueuedTask) -> None:
        """Keep a task from starting before the store says what became of it."""
        if task.stage in WAITING_STAGES:
            self._queue.end(task)
            self._step.pin_until_durable(task)
        elif task.stage is Stage.LIVE and task.final_state is None:
            self._step.recall_prefetched(task)

    def drop_ended_attempts(
        self, tasks: Iterable[TaskId], records: Iterable[TaskRecord]
    ) -> None:
        """Drop unconfirmed attempts at these tasks that have ended in the store.

        Their ends came with another node's log, so no worker will report them.
        """
        live = {
            (record.id, attempt.id)
            for record in records
            for attempt in record.attempts
            if attempt.state.is_live
        }
        for task_id in tasks:
            task = self._queue.tasks.get(task_id)
            if task is None or task.stage is not Stage.LIVE or task.node is None:
                continue
            if not task.is_worker_confirmed and (task_id, task.attempt) not in live:
                node = task.node
                self._queue.end(task)
                self._step.pin_until_durable(task)
                self._step.recount_worker(node)

    def adopt_record(self, record: TaskRecord, now: Moment) -> None:
        """Settle on one live attempt of a task in the log; give up the others."""
        task = self._queue.tasks.get(record.id)
        if task is None:
            task = self._adopt_unknown(record)
        elif task.stage is Stage.ENDED:
            return
        else:
            was_read = task.is_read
            task.is_read = was_read or task.stage is Stage.LIVE
            self.merge_record(record, task)
            if task.is_read and not was_read:
                self._step.follow_array(task)
        if task is not None and _live_attempts(task.record):
            self._give_up_others(task, now)
            self._await_worker(task, now)

    def _give_up_others(self, task: QueuedTask, now: Moment) -> None:
        """Give up all live attempts but the one that counts, which stands for them.

        Nobody will report their ends, and no failure decides the task while one lives.
        """
        for attempt in _live_attempts(task.record):
            if attempt.id != task.attempt:
                end = task_rules.superseded_end(now)
                self._step.write_end(task, attempt.id, attempt.node, end)

    def _adopt_unknown(self, record: TaskRecord) -> QueuedTask | None:
        """Take a task into hand that is live in the log; decide one that is not."""
        live = _live_attempts(record)
        if not live:
            if task_rules.next_verdict(record, self._step.epoch.term) is not None:
                self._step.decide(self._queue.add_shadow(record))
            return None
        task = self._queue.task_from_record(record)
        chosen = self._likely_live_attempt(live)
        self._adopt_task(task, chosen.id, chosen.node)
        self._step.decide(task)
        return task

    def _adopt_task(self, task: QueuedTask, attempt: AttemptId, node: NodeId) -> None:
        """Take a task into hand that runs, unless it is over; its array may be."""
        task.may_be_array_cancelled = array_of(task.spec.id) is not None
        self._queue.adopt(task, attempt, node)
        self._step.carry_out_verdict(task, None)
        self._step.follow_array(task)

    def decide_waiting(self, records: Iterable[TaskRecord]) -> None:
        """Decide queued tasks whose attempts are used up, as no dispatcher has yet."""
        for record in records:
            task = self._queue.tasks.get(record.id) if record.attempts else None
            if task is not None and task.stage in WAITING_STAGES:
                self.merge_record(record, task)

    def merge_record(self, record: TaskRecord, task: QueuedTask) -> None:
        """Join what the log says of a task in hand, and decide it by that."""
        before = task.final_state
        self._queue.join(task, record)
        if before is None:
            self._prefer_later_attempt(task)
            self._step.carry_out_verdict(task, before)
            self._step.decide(task)

    def _prefer_later_attempt(self, task: QueuedTask) -> None:
        """Choose the latest attempt that may run, unless a worker confirmed one."""
        live = _live_attempts(task.record)
        if _is_settled(task) or not live:
            return
        chosen = self._likely_live_attempt(live)
        if task.attempt is None or task.attempt < chosen.id:
            self._switch_attempt(task, chosen.id, chosen.node)

    def _likely_live_attempt(self, live: Sequence[Attempt]) -> Attempt:
        """Return the last attempt that may run, by the workers' lists so far."""
        pool = self._pool
        may_run = [
            a for a in live if self.is_log_behind or not pool.is_attached(a.node)
        ]
        return (may_run or live)[-1]

    def _switch_attempt(
        self, task: QueuedTask, attempt: AttemptId, node: NodeId
    ) -> None:
        """Let another attempt count than before."""
        before = task.node if task.stage is Stage.LIVE else None
        self._queue.assign(task, attempt, node)
        if before is not None:
            # It may hold nothing now, and never tell of an end.
            self._step.recount_worker(before)

    def _adopt_attempt(
        self, node: NodeId, attempt: AttemptId, spec: TaskSpec, now: Moment
    ) -> None:
        """Keep an attempt that a worker runs, if it is the one that counts."""
        task = self._queue.tasks.get(spec.id)
        if task and task.final_state is None and task.is_live_at(node, attempt):
            task.is_worker_confirmed = True
            return
        if not self._may_count(task, spec.id, attempt):
            self._step.kill_attempt(node, spec.id, attempt)
            return
        # Its assignment was lost with the dispatcher before, or is still to be read.
        if task is not None and task.stage is not Stage.ENDED:
            self._switch_attempt(task, attempt, node)
        else:
            task = self._adopt_unread(task, node, attempt, spec)
        task.is_worker_confirmed = True
        self._step.facts.append(Assigned(spec.id, attempt, node))
        self._give_up_others(task, now)

    def _may_count(
        self, task: QueuedTask | None, task_id: TaskId, attempt: AttemptId
    ) -> bool:
        """Return True if an attempt that a worker lists may replace what is known."""
        if task is None:
            return not self._queue.has_ended_recently(task_id)
        is_open = task.final_state is None and not _is_settled(task)
        return is_open and task_rules.may_follow(attempt, task.record.attempts)

    def _adopt_unread(
        self, task: QueuedTask | None, node: NodeId, attempt: AttemptId, spec: TaskSpec
    ) -> QueuedTask:
        """Take a task into hand; at most some of its ends are known here."""
        record = TaskRecord(spec.id, spec)
        if task is not None:
            record = join_records(record, task.record)
            self._queue.tasks.remove(task)
        # The store may know more, as that it was cancelled; until a read says so, it is
        # asked before the task is run again.
        task = QueuedTask(record, is_read=False)
        self._queue.look_up_task(spec.id)
        self._adopt_task(task, attempt, node)
        self._step.facts += self._step.resubmission_facts(spec, attempt)
        return task

    def _await_worker(self, task: QueuedTask, now: Moment) -> None:
        """Give an absent worker time to come back to its attempt."""
        node = task.node
        if task.stage is not Stage.LIVE or node is None:
            return
        if not self._pool.is_attached(node):
            until_s = self._awaited.get(None, now.mono_s + self._reattach_s)
            self._awaited.setdefault(node, until_s)
            self._set_timer()
        elif not task.is_worker_confirmed and not self.is_log_behind:
            self._step.lose_attempt(task, now)
            self._step.recount_worker(node)


def _gave_up_logs(waited_s: float) -> LogLine:
    fields = (
        ("waited_s", round(waited_s, 1)),
        ("hint", "a task that ended on another node may run again"),
    )
    return LogLine("warning", LOGS_GIVEN_UP, fields)


def _live_attempts(record: TaskRecord) -> list[Attempt]:
    return [attempt for attempt in record.attempts if attempt.state.is_live]


def _is_settled(task: QueuedTask) -> bool:
    """Return True if a worker has confirmed that it runs the live attempt."""
    return task.stage is Stage.LIVE and task.is_worker_confirmed
