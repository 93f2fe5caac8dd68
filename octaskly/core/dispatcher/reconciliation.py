"""Which attempts that were running before still count, and which are run again.

Owns the time that absent workers get to come back: after a change of dispatcher, and
when another node's log arrives. What a worker says it runs counts more than the log.
What it does not list has ended or was lost. The log tells which once it holds what the
nodes here hold. A new reign waits for that before it reads the log: a moment, and some
seconds for nodes that speak. It waits up to the adopt window before it takes an attempt
for lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from octaskly.core.dispatcher.step import Placing
from octaskly.core.log.facts import Assigned
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import member_of
from octaskly.core.model.ids import AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.tasks import Attempt, TaskSpec
from octaskly.core.protocol.messages import Reattach
from octaskly.core.scheduling.queued_task import WAITING, InHand, Stage
from octaskly.core.scheduling.retry_policy import NO_TRIES, told_of, tries_of

READ_S = 0.5  #: how long a new reign waits for what others hold;
READ_MAX_S = 3.0  #: and for those that are not silent


class Adoption:
    """Attempts that this reign did not start, and workers that are awaited."""

    def __init__(self, placing: Placing, adopt_s: float) -> None:
        self._placing = placing
        self._queue = placing.queue
        self._pool = placing.pool
        self._adopt_s = adopt_s
        self._until_s = 0.0
        self.is_open = False
        """Whether workers of the reign before may still come."""
        self._held_until_s = math.inf
        self._held_most_s = 0.0
        self.is_behind = False
        """Whether nodes here may hold ends that this log does not."""
        self._absent: dict[NodeId, float] = {}
        """Nodes whose attempts are left alone until then, in seconds."""
        self._over: set[TaskId] = set()
        """What ended elsewhere, until no read that is under way may be older."""

    def begin(self, now: Moment) -> None:
        """Wait for the workers of the reign before."""
        self._until_s = now.mono_s + self._adopt_s
        self._absent.clear()
        self.is_open = True

    def hold(self, now: Moment) -> None:
        """Read nothing until `catch_up`, for a while: others have ends to tell."""
        self.is_behind = self._queue.is_held = True
        self._held_most_s = now.mono_s + READ_MAX_S
        self.hold_on(now)

    def hold_on(self, now: Moment) -> None:
        """Wait on for what others hold, as one that is not read yet speaks."""
        if self._queue.is_held:
            self._held_until_s = min(now.mono_s + READ_S, self._held_most_s)

    def catch_up(self) -> None:
        """Believe the log when it is read next: it is whole now, or has to do."""
        self._go_on()
        self.is_behind = False
        self._queue.reread()

    def _go_on(self) -> None:
        """Read what is in the log."""
        self._queue.is_held = False
        self._held_until_s = math.inf

    def end(self) -> None:
        """Wait for nobody."""
        self._go_on()
        self.is_behind = False
        self._absent.clear()
        self._over.clear()
        self.is_open = False

    def deadline(self) -> float:
        """Return when `expire` has something to do."""
        due_s = self._held_until_s
        if self.is_open:
            due_s = min(due_s, self._until_s)
        return min(due_s, *self._absent.values()) if self._absent else due_s

    def on_reattach(self, node: NodeId, message: Reattach, now: Moment) -> None:
        """Adopt what a worker runs, kill what is void, give up what it lost."""
        self._absent.pop(node, None)
        # By the same link it reattaches where it was claimed twice: what this reign
        # gave it since is on its way.
        given = self._placing.stream if self._pool.is_attached(node) else None
        listed = set()
        for attempt, spec in message.running:
            listed.add((spec.id, attempt))
            self._adopt(node, attempt, spec)
        # What the worker does not know was lost with its process, or on the way to it.
        missing = [
            task
            for task in self._held_by(node)
            if task.attempt is not None
            and (task.spec.id, task.attempt) not in listed
            and task.attempt.stream != given
            and (task.is_heard or not self.is_behind)
        ]
        self._placing.lose_all(missing, now)

    def on_down(self, node: NodeId, now: Moment) -> bool:
        """Give up a worker's attempts, or wait for it; tell whether they were lost."""
        held = self._held_by(node)
        if self.is_open and now.mono_s < self._until_s:
            if held:
                self._absent[node] = self._until_s
            return False
        self._absent.pop(node, None)
        self._placing.lose_all(held, now)
        return True

    def expire(self, now: Moment) -> None:
        """Give up the attempts of workers that did not come back in time."""
        if self._held_until_s <= now.mono_s:
            self._go_on()
        for node in [node for node, at_s in self._absent.items() if at_s <= now.mono_s]:
            del self._absent[node]
            self._placing.lose_all(self._held_by(node), now)
        self.is_open = now.mono_s < self._until_s
        if self.is_open:
            return
        if self.is_behind:
            self.catch_up()

    def overtake(self, over: Iterable[TaskId]) -> None:
        """Begin none of these: the log of another node, on this disk, has their ends.

        Or ends of attempts at them, which count. More may come for long before the
        queue is read afresh. The store is asked, as what has the name of a forgotten
        task may live on, and not all attempts may be used up.
        """
        self._over.update(over)
        self._placing.note_over(self._over)
        self.overtake_again()

    def overtake_again(self) -> None:
        """Do so with what a read has brought, which may be older than that."""
        queue, over = self._queue, self._over
        if not over:
            return
        for task_id, task in queue.tasks.items():
            place = member_of(task_id)
            is_cut = place is not None and place[0] in over
            if task_id not in over and not is_cut:
                continue
            if task.stage in WAITING:
                queue.end(task, None)
                self._placing.touch(task)
            elif task.stage is Stage.LIVE:
                task.is_sure = task.is_sure and task_id not in over
                task.may_be_cut = task.may_be_cut or is_cut
                if task.final is None and self._placing.is_ahead(task):
                    self._placing.kill(task)  # Its worker has not begun it.
        for task_id in over:
            queue.arrays.withdraw(task_id)
        if not queue.is_reading:
            over.clear()

    def let_go(self, records: Iterable[TaskRecord]) -> None:
        """Have the store say what became of attempts that it says are live no more.

        Their ends came with another node's log; no worker is going to tell them.
        """
        live = {
            (record.id, attempt.id)
            for record in records
            for attempt in record.attempts
            if attempt.state.is_live
        }
        for node, held in self._queue.held.items():
            for task in tuple(held.values()):
                if (task.spec.id, task.attempt) in live:
                    continue
                if task.is_heard:
                    self._look_up(task)
                else:
                    self._queue.end(task, task.final)
                    self._placing.touch(task)
                    self._count(node)

    def _look_up(self, task: InHand) -> None:
        """Ask once whether a task is over that its worker was found to run.

        The reign before may have taken the worker for lost, and then ended the task.
        """
        queue, attempt = self._queue, task.attempt
        is_found = attempt is not None and attempt.stream != self._placing.stream
        if is_found and task.final is None and task.spec.id not in queue.named:
            queue.seek(task.spec.id)

    def believe(self, record: TaskRecord, now: Moment) -> None:
        """Settle on one live attempt of a task in the log; give up the others."""
        task = self._queue.tasks.get(record.id)
        told = () if task is None else task.reported  # Since the store was asked.
        live = [a for a in record.attempts if a.state.is_live and a.id not in told]
        if task is not None and task.stage is Stage.ENDED:
            return
        if not live:
            if task is not None:  # It rests, or who runs it was taken for lost.
                self.learn(record, task)
            return
        likely = self._likely(live)
        if task is None:
            task = self._queue.from_record(record)
            task.may_be_cut = member_of(record.id) is not None
            self._queue.adopt(task, likely.id, likely.node)
            self._placing.cancel_found(task)
        else:
            is_live = task.stage is Stage.LIVE
            task.is_sure = task.is_sure or is_live
            is_settled = is_live and (task.is_heard or task.final is not None)
            is_later = task.attempt is None or task.attempt < likely.id
            if is_later and not is_settled:
                self._move(task, likely.id, likely.node)
        task.n = max(task.n, *(attempt.id.n for attempt in record.attempts))
        self.learn(record, task)
        for attempt in live:
            if attempt.id != task.attempt:
                self._placing.write_lost(record.id, attempt.id, attempt.node, now)
        self._expect(task, now)

    def learn(self, record: TaskRecord, task: InHand) -> None:
        """Take over what the log says of a task in hand."""
        task.tries |= tries_of(record.attempts)
        # A worker is going to report what it still runs, whatever the log says.
        live = task.attempt if task.stage is Stage.LIVE else None
        told = (attempt for attempt in told_of(record.attempts) if attempt != live)
        task.reported += tuple(a for a in told if a not in task.reported)
        self._end_with(record, task)

    def _end_with(self, record: TaskRecord, task: InHand) -> None:
        """End what the log says is over."""
        if not record.state.is_final or task.final is not None:
            return
        if task.stage is Stage.LIVE:
            task.final = record.state
            self._placing.kill(task)
        else:
            self._queue.end(task, record.state)
            self._placing.touch(task)

    def _likely(self, live: Sequence[Attempt]) -> Attempt:
        """Return the last attempt that may run, as far as workers have told."""
        pool = self._pool
        may_run = [a for a in live if self.is_behind or not pool.is_attached(a.node)]
        return (may_run or live)[-1]

    def _move(self, task: InHand, attempt: AttemptId, node: NodeId) -> None:
        """Let another attempt count than before."""
        before = task.node if task.stage is Stage.LIVE else None
        if before is not None:
            self._queue.rest(task)
        self._queue.assign(task, attempt, node)
        if before is not None:
            self._count(before)  # It may hold nothing now, and never tell of an end.

    def _adopt(self, node: NodeId, attempt: AttemptId, spec: TaskSpec) -> None:
        """Keep an attempt that a worker runs, if it is the one that counts."""
        task, tries = self._queue.tasks.get(spec.id), NO_TRIES
        if task is not None and _has_followed(task, attempt):
            tries = task.tries
            del self._queue.tasks[spec.id]
            task = None
        if task is None and not self._queue.is_final(spec.id):
            # The store may know more, as that it was cancelled; until a read says so,
            # it is asked before the task is run again.
            task = InHand(spec, is_sure=False, tries=tries)
            self._queue.seek(spec.id)
            if (place := member_of(spec.id)) is not None:
                task.may_be_cut = True
                self._queue.look_for(place[0])
            self._queue.adopt(task, attempt, node)
            task.is_heard = True
            self._placing.facts += self._placing.told_again(spec, attempt)
            self._placing.facts.append(Assigned(spec.id, attempt, node))
            self._placing.cancel_found(task)
        elif task is None or not self._is_counting(task, node, attempt):
            self._placing.kill_attempt(node, spec.id, attempt)
        else:
            self._hear(task, node, attempt)

    def _is_counting(self, task: InHand, node: NodeId, attempt: AttemptId) -> bool:
        is_live = task.stage is Stage.LIVE and task.final is None
        if is_live and (task.attempt, task.node) == (attempt, node):
            return True
        if attempt in task.reported:
            return False  # Its end is known, and told again would move nothing.
        # Its assignment was lost with the dispatcher before, or is still to be read.
        is_doubted = is_live and not task.is_heard
        is_news = task.attempt is None or task.attempt < attempt
        return is_news and (is_doubted or task.stage in WAITING)

    def _hear(self, task: InHand, node: NodeId, attempt: AttemptId) -> None:
        if task.attempt != attempt:
            self._move(task, attempt, node)
            self._placing.facts.append(Assigned(task.spec.id, attempt, node))
        task.is_heard = True

    def _expect(self, task: InHand, now: Moment) -> None:
        """Give an absent worker time to come back to its attempt."""
        node = task.node
        if task.stage is not Stage.LIVE or node is None:
            return
        if not self._pool.is_attached(node):
            until_s = self._until_s if self.is_open else now.mono_s + self._adopt_s
            self._absent.setdefault(node, until_s)
        elif not task.is_heard and not self.is_behind:
            self._placing.lose_task(task, now)
            self._count(node)

    def _count(self, node: NodeId) -> None:
        """Let a worker have room again for what was counted as its own."""
        queue = self._queue
        self._pool.hold(node, queue.outstanding(node), queue.granted(node))

    def _held_by(self, node: NodeId) -> list[InHand]:
        return list(self._queue.held.get(node, {}).values())


def _has_followed(task: InHand, attempt: AttemptId) -> bool:
    """Whether all that is known of a task are earlier attempts that came to nothing.

    Their ends are told again by workers that the dispatcher before did not acknowledge.
    """
    is_shadow = task.stage is Stage.ENDED and task.attempt is None
    is_open = is_shadow and task.final is None and bool(task.reported)
    return is_open and max(task.reported) < attempt
