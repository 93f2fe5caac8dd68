"""What one reign has decided in a step: facts to write, orders to workers.

Owns the queue and the pool of workers together, and turns what a step collected into
effects: one `Append`, then what may leave at once (kills, dispatches: an assignment
is not awaited), and when the append is durable what had to wait for it. Why a fact
is written is decided in `dispatch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from octaskly.core.effects import Announce, Effect, Send
from octaskly.core.log.facts import Assigned, CancelAsked, Fact, Finished, Submitted
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import BY_FAILURES, FORCED, member_of
from octaskly.core.model.ids import (
    NO_EPOCH,
    AttemptId,
    Epoch,
    Moment,
    NodeId,
    StreamId,
    TaskId,
)
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import AttemptState, Outcome, Reason, TaskSpec, TaskState
from octaskly.core.protocol.messages import Dispatch, Kill, Message
from octaskly.core.replication.journal import Journal, WhenDurable
from octaskly.core.replication.pending_acks import WhenSafe
from octaskly.core.replication.replication import Replication
from octaskly.core.scheduling.matching import Turns
from octaskly.core.scheduling.queued_task import WAITING, InHand, Stage
from octaskly.core.scheduling.retry_policy import (
    LOSS_REST_S,
    LOSSES_MAX,
    counted,
    judged,
    loss,
    may_run_twice,
)
from octaskly.core.scheduling.task_queue import Resting, TaskQueue
from octaskly.core.scheduling.worker_pool import WorkerPool

Item = tuple[AttemptId, TaskSpec]


def orders(
    epoch: Epoch,
    kills: Mapping[NodeId, Sequence[tuple[TaskId, AttemptId]]],
    batches: Mapping[NodeId, Sequence[Item]],
    bytes_max: int,
) -> list[Effect]:
    """Return one `Send` for each worker, its kills first.

    Args:
        epoch: Of the reign.
        kills: Attempts that are to end.
        batches: Attempts that are to begin.
        bytes_max: Of attempts in one message, as the bound on frames asks for.
    """
    messages: dict[NodeId, list[Message]] = {}
    for node, ended in kills.items():
        messages[node] = [Kill(epoch, tuple(ended))]
    for node, items in batches.items():
        messages.setdefault(node, []).extend(_dispatches(epoch, items, bytes_max))
    return [Send(node, tuple(parts)) for node, parts in messages.items()]


def _dispatches(epoch: Epoch, items: Sequence[Item], bytes_max: int) -> list[Message]:
    messages: list[Message] = []
    start = size = 0
    for index, (_, spec) in enumerate(items):
        item = spec.size_bytes
        if size and size + item > bytes_max:
            messages.append(Dispatch(epoch, tuple(items[start:index])))
            start, size = index, 0
        size += item
    messages.append(Dispatch(epoch, tuple(items[start:])))
    return messages


FORCED_MAX = 1000  #: arrays cancelled of late whose members still end when found
NOWHERE = Outcome(state=AttemptState.FAILED, reason=Reason.INPUTS)


class Placing:
    """Queue, workers, and the facts and orders of the step under way."""

    def __init__(
        self, limits: Limits, journal: Journal, replication: Replication
    ) -> None:
        self.pool = WorkerPool(limits.prefetch)
        self.queue = TaskQueue(limits, self.pool.can_run)
        self.resting = Resting(self.queue)
        self.turns = Turns(self.queue, self.pool)
        self.epoch: Epoch = NO_EPOCH
        self.is_placing = False
        self.forced: dict[TaskId, str] = {}
        """Arrays cancelled with what runs, some of which may yet be found, by whom."""
        self.over: set[TaskId] | None = None
        """Since the store was asked whose wait for others is over, if it is."""
        self.facts: list[Fact] = []
        self.stream = StreamId(0)
        self._message_bytes = limits.entries_bytes
        self._journal = journal
        self._replication = replication
        self._touched: list[InHand] = []
        self._ended: list[TaskId] = []
        self._has_news = False
        self._kills: dict[NodeId, list[tuple[TaskId, AttemptId]]] = {}

    def begin(self, epoch: Epoch, stream: StreamId) -> list[Effect]:
        """Start empty; workers get nothing before they attach."""
        self.epoch, self.stream = epoch, stream
        self.is_placing = True
        self.pool.detach_all()
        return self.queue.begin(epoch.term)

    def end(self) -> None:
        """Forget what the reign had in hand."""
        self.epoch = NO_EPOCH
        self.is_placing = False
        self.pool.detach_all()
        self.turns.forget()
        self.queue.forget()
        self.forced.clear()

    # --- What a step may decide.

    def is_ahead(self, task: InHand | None) -> bool:
        """Whether a worker got the attempt ahead of a free slot, so has not begun it.

        Workers begin in order. If slots have become free meanwhile, which this node
        has not heard, the kill ends what has just begun.
        """
        if task is None or task.stage is not Stage.LIVE or task.node is None:
            return False
        slots = self.pool.slots(task.node)
        held = self.queue.held[task.node].values()
        before = takewhile(lambda other: other is not task, held)
        return 0 < slots <= sum(other.slots for other in before)

    def tell(self, tasks: Iterable[TaskId]) -> None:
        """Let those know who wait for the end of these tasks, once it is safe."""
        self._ended += tasks
        self.note_end()

    def note_over(self, tasks: Iterable[TaskId]) -> None:
        """Let no older word of the store begin these."""
        if self.over is not None:
            self.over.update(tasks)

    def note_end(self) -> None:
        """Some task has ended: others may have waited for it."""
        self._has_news = True

    def take_news(self) -> bool:
        """Whether a task has ended since this was asked last."""
        has_news, self._has_news = self._has_news, False
        return has_news

    def touch(self, task: InHand) -> None:
        """Keep the task in hand until what this step writes is durable."""
        self._touched.append(task)

    def kill(self, task: InHand) -> None:
        """Order the end of the task's live attempt."""
        assert task.node is not None
        assert task.attempt is not None
        self.kill_attempt(task.node, task.spec.id, task.attempt)

    def kill_attempt(self, node: NodeId, task_id: TaskId, attempt: AttemptId) -> None:
        """Order the end of an attempt that does not count."""
        self._kills.setdefault(node, []).append((task_id, attempt))

    def told_again(self, spec: TaskSpec, attempt: AttemptId) -> list[Fact]:
        """Return what a worker's envelope adds to the log.

        Nothing where the floor has passed the task: either it was carried, then the
        store has it, or it is gone, and what is said of it is never shown. Nor of a
        member, which is known by its array.
        """
        if member_of(spec.id) is not None or self._journal.is_void(attempt, spec):
            return []
        return [Submitted(spec)]

    def lose_all(self, tasks: Sequence[InHand], now: Moment) -> None:
        """Give up the live attempts of one worker."""
        waiting = [task for task in tasks if self.is_ahead(task)]
        for task in tasks:
            self.lose_task(task, now, was_running=task not in waiting)

    def lose_task(self, task: InHand, now: Moment, *, was_running: bool = True) -> None:
        """Give up the live attempt of a task; queue the task again if it may be."""
        assert task.attempt is not None
        assert task.node is not None
        outcome = loss(now)
        if not was_running and may_run_twice(task.spec):
            outcome = replace(outcome, reason=Reason.RETURNED)
        if task.final is None:
            outcome = judged(task.spec, task.attempt, outcome, task.tries)
        self.facts.append(Finished(task.spec.id, task.attempt, task.node, outcome))
        if outcome.state is AttemptState.FAILED:
            self._fail(task)
        else:
            task.tries = counted(task.tries, task.attempt, outcome)
            is_last = len(task.tries.lost) == LOSSES_MAX - 1
            rests = outcome.reason is Reason.LOST and is_last
            self.take_back(task, now, LOSS_REST_S if rests else None)
            self.touch(task)

    def take_back(self, task: InHand, now: Moment, wait_s: float | None = None) -> None:
        """Queue a task whose live attempt came to nothing, at once or after a wait.

        A member of an array that was cancelled meanwhile ends, as those that wait did.
        """
        if task.is_cut and task.final is None:
            self.queue.end(task, TaskState.CANCELLED)
            self.tell([task.spec.id])
            return
        if wait_s is None:
            self.queue.release(task)
        else:
            self.resting.take(task, now, wait_s)
        place = member_of(task.spec.id) if task.may_be_cut else None
        if place is not None:  # It may be over by that, as the store is going to say.
            self.tell([place[0]])

    def wake(self, now: Moment) -> None:
        """Queue those that have rested; the store is asked about some before."""
        for task in self.resting.rested(now):
            if task.may_be_cut:
                self.queue.end(task, None)
                self.touch(task)
            else:
                self.queue.wake(task)

    def write_lost(
        self, task_id: TaskId, attempt: AttemptId, node: NodeId, now: Moment
    ) -> None:
        """Write that nobody will report this attempt's end, and that it is not missed.

        Another attempt of the task stands for it.
        """
        self.facts.append(Finished(task_id, attempt, node, loss(now)))

    def _fail(self, task: InHand) -> None:
        """End a task; that is told to who waits for it once it is safe."""
        self.queue.end(task, TaskState.FAILED)
        self.touch(task)
        self.tell([task.spec.id])
        self.count_failure(task.spec.id)

    def cut_off(self, array: TaskSpec, by: str, final: TaskState) -> list[TaskId]:
        """Begin no more members of an array; return what has ended by that.

        One fact says it of all: those that wait have none of their own.
        """
        queue = self.queue
        queue.arrays.uncount(array.id)
        self.facts.append(CancelAsked(array.id, by))
        task = queue.tasks.get(array.id)
        if task is None:
            self.touch(queue.shadow(array, final))
        elif task.stage in WAITING:
            queue.end(task, final)
            self.touch(task)
        ended = [array.id]
        for member in self._members(array.id):
            if member.stage in WAITING:
                queue.end(member, TaskState.CANCELLED)
                self.touch(member)
                ended.append(member.spec.id)
            elif self.is_ahead(member):
                ended.append(self._cancel_live(member, by))
            else:
                member.is_cut = True
        return ended

    def cancel_live(self, array: TaskSpec, by: str) -> list[TaskId]:
        """End the members of an array that run; return them."""
        self.forced[array.id] = by
        if len(self.forced) > FORCED_MAX:
            del self.forced[next(iter(self.forced))]
        return [
            self._cancel_live(member, by)
            for member in self._members(array.id)
            if member.stage is Stage.LIVE and member.final is None
        ]

    def recall_forced(self, array: TaskRecord) -> None:
        """End what runs of an array that another reign cancelled by force."""
        by = array.cancelled_by
        if array.spec is not None and by is not None and by.startswith(FORCED):
            self.cancel_live(array.spec, by.removeprefix(FORCED))

    def cancel_found(self, member: InHand) -> None:
        """End a member that was found to run, if that was asked for with its array."""
        place = member_of(member.spec.id)
        by = self.forced.get(place[0]) if place else None
        if by is not None and member.final is None:
            self._cancel_live(member, by)

    def _cancel_live(self, member: InHand, by: str) -> TaskId:
        member.final = TaskState.CANCELLED
        self.kill(member)
        self.touch(member)
        self.facts.append(CancelAsked(member.spec.id, by))
        return member.spec.id

    def _members(self, array: TaskId) -> list[InHand]:
        """Return the members of an array that are in hand, and not decided."""
        return [
            task
            for task_id, task in self.queue.tasks.items()
            if task.final is None and (member_of(task_id) or ("",))[0] == array
        ]

    def count_failure(self, member: TaskId) -> None:
        """Begin no more members of an array of which too many have failed."""
        array = self.queue.arrays.counted(member)
        asked = None if array is None else array.spec.array
        if array is None or asked is None or asked.max_fails is None:
            return
        array.failed += 1
        if array.failed > asked.max_fails:
            self._ended += self.cut_off(array.spec, BY_FAILURES, TaskState.FAILED)

    def give_up(self, records: Iterable[TaskRecord]) -> None:
        """Begin no more members of arrays of which too many failed in all reigns."""
        for record in records:
            spec, task = record.spec, self.queue.tasks.get(record.id)
            is_cut = task is not None and task.stage is Stage.ENDED
            if spec is not None and record.is_failing and not is_cut:
                self._ended += self.cut_off(spec, BY_FAILURES, TaskState.FAILED)

    def fail_lacking(self) -> None:
        """End the queued tasks of which every worker lacks an input."""
        for task in self.queue.all_picky():
            workers = self.pool.able(task.requires)
            if workers and task.lacking.issuperset(workers):
                assert task.attempt is not None
                assert task.node is not None
                outcome = replace(NOWHERE, detail=task.lack)
                self.facts.append(
                    Finished(task.spec.id, task.attempt, task.node, outcome)
                )
                self._fail(task)

    # --- The end of a step.

    def commit(
        self,
        now: Moment,
        when_durable: WhenDurable | None = None,
        when_safe: WhenSafe | None = None,
    ) -> list[Effect]:
        """Place what can be placed, and return the effects of the step.

        Args:
            now: Both clocks.
            when_durable: Done once all that was decided so far is durable here.
            when_safe: Done once a standby has it, too.
        """
        effects: list[Effect] = []
        batches = self._place(now) if self.is_placing else {}
        if self.facts:
            effects.append(self._journal.append(self.facts, now))
            self.facts = []
        if self._kills or batches:
            effects += orders(self.epoch, self._kills, batches, self._message_bytes)
            self._kills = {}
        if when_durable is not None or self._touched:
            effects += self._journal.when_durable(self._settling(when_durable), now)
        if self._ended:
            ended, self._ended = tuple(self._ended), []
            effects += self._replication.when_safe(lambda *_: [Announce(ended)], now)
        if when_safe is not None:
            effects += self._replication.when_safe(when_safe, now)
        effects += self.queue.refill()
        return effects

    def _settling(self, then: WhenDurable | None) -> WhenDurable:
        """Return what is to be done when the step is durable."""
        touched, number = self._touched, self._journal.number
        self._touched = []
        for task in touched:
            task.number = number

        def durable(now: Moment) -> list[Effect]:
            effects = [] if then is None else then(now)
            self.queue.settle(touched, number)
            return effects + self.queue.refill()

        return durable

    def _place(self, now: Moment) -> dict[NodeId, list[Item]]:
        """Give queued tasks to workers that have room, the oldest first."""
        queue, pool = self.queue, self.pool
        batches: dict[NodeId, list[Item]] = {}
        for task in queue.picky():
            excluded = (*task.lacking, *self.turns.kept_from(task, task.shape))
            requires = task.requires
            if requires is None:
                node = pool.take(excluded)
            else:
                node = pool.take_for(requires, excluded)
            if node is not None:
                self._assign(task, node, batches)
        for task, node in self.turns.turns(now):
            self._assign(task, node, batches)
        return batches

    def _assign(
        self, task: InHand, node: NodeId, batches: dict[NodeId, list[Item]]
    ) -> None:
        attempt = AttemptId(self.epoch.term, self.stream, task.n + 1)
        if task.spec.id in self.queue.tasks:
            self.queue.assign(task, attempt, node)
        else:  # A member, out of its array.
            self.queue.adopt(task, attempt, node)
        task.is_heard = True
        self.facts.append(Assigned(task.spec.id, attempt, node))
        batch = batches.get(node)
        if batch is None:
            batch = batches[node] = []
        batch.append((attempt, task.spec))
