"""The tasks that a dispatcher has in hand: the front of the queue, and what runs.

Owns which tasks are in hand, and how they follow the store. The order of what waits is
in `lanes`. It does not choose workers and writes no facts.

Memory follows running work: the store holds the whole queue, the lanes its front.
A read of the store may be older than what this node decided meanwhile, so a task
stays in hand until the facts about it are durable, and as a shadow until no read is
under way that could still show it as it was.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import islice

from octaskly.core.effects import Effect, LoadLive
from octaskly.core.events import Loaded
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import Requires
from octaskly.core.model.tasks import Reason, TaskSpec, TaskState
from octaskly.core.scheduling.array_queue import (
    Unpacking,
    learn,
    numbers_in_hand,
    unpacked,
)
from octaskly.core.scheduling.lanes import Lane, Lanes
from octaskly.core.scheduling.queued_task import (
    TRANSITIONS,
    WAITING,
    Grant,
    InHand,
    Stage,
    Turn,
)
from octaskly.core.scheduling.retry_policy import told_of, tries_of

PICKY_LOOK = 32  #: tasks with excluded workers that one placement looks at


class TaskQueue:
    """Tasks in hand, the front of the queue, and the reads that feed it.

    Args:
        limits: How much of the queue is in memory.
        can_run: Whether some worker has what is asked for, busy or not.
    """

    def __init__(
        self, limits: Limits, can_run: Callable[[Requires], bool] = lambda _: True
    ) -> None:
        self._window_tasks = limits.window_tasks
        self.tasks: dict[TaskId, InHand] = {}
        self.held: dict[NodeId, dict[TaskId, InHand]] = {}
        """Live tasks by the node that holds them."""
        self.arrays = Unpacking(self.tasks)
        self._granted: dict[NodeId, Grant] = {}
        self.lanes = Lanes(limits, can_run)
        self._picky: dict[TaskId, InHand] = {}
        self._shadows: list[InHand] = []
        # A plain dict would look for its first key behind all that were deleted.
        self._finals: OrderedDict[TaskId, TaskState] = OrderedDict()
        self.ended = dict.fromkeys(TaskState, 0)
        """How many tasks and members ended here, by state, since the start."""
        self._sought: dict[TaskId, None] = {}
        self.named: tuple[TaskId, ...] = ()
        """What the last read of live tasks was to bring, live or not."""
        self.is_held = False
        """Nothing is read: others may hold newer facts than this node's disk."""
        self._term = 0
        self._live_reads = 0
        self._is_live_dirty = False
        self._stale_live_reads = 0

    # --- The lanes and the store.

    @property
    def is_reading(self) -> bool:
        """Whether an answer of the store is awaited."""
        return self.lanes.is_reading or self._live_reads > 0

    def forget(self) -> None:
        """Drop everything: the reign is over."""
        self.tasks.clear()
        self.held.clear()
        self._granted.clear()
        self.lanes.forget()
        self._picky.clear()
        self._shadows.clear()
        self._finals.clear()
        self._sought.clear()
        self.arrays.forget()
        self._is_live_dirty = False
        self._stale_live_reads += self._live_reads
        self._live_reads = 0

    def begin(self, term: int) -> list[Effect]:
        """Read everything: the front of the queue, and what the log says is live."""
        self.forget()
        self._term = term
        self.reread()
        return self.refill()

    def reread(self) -> None:
        """Read the queue from its front, and what is live, at the next `refill`."""
        self.lanes.is_dirty = self._is_live_dirty = True

    def _restart(self) -> None:
        waiting = [task for task in self.tasks.values() if task.stage is Stage.QUEUED]
        for task in waiting:
            if task.number == 0:
                del self.tasks[task.spec.id]
                self._picky.pop(task.spec.id, None)
                if task.rest is not None:
                    self.arrays.count_on(task)
                    self.look_for(task.spec.id)
        self.lanes.restart(task for task in waiting if task.number)

    def look_for(self, task: TaskId) -> None:
        """Read what is not in hand by its id at the next `refill`, live or not."""
        if task not in self.tasks:
            self.seek(task)

    def seek(self, task: TaskId) -> None:
        """Read a task or an array by its id at the next `refill`, live or not."""
        self._sought[task] = None
        self._is_live_dirty = True

    def seek_waiting(self) -> None:
        """Read what waits in hand and is not read with the queue: it may be over."""
        for task in self.tasks.values():
            if task.stage is Stage.RESTING or (task.stage in WAITING and task.number):
                self.seek(task.spec.id)

    def live_read(self) -> bool:
        """Count an answer to `LoadLive`; tell whether it counts for this reign."""
        if self._stale_live_reads:
            self._stale_live_reads -= 1
            return False
        if not self._live_reads:
            return False
        self._live_reads -= 1
        return True

    def refill(self) -> list[Effect]:
        """Read what is out of date, and more when the window is below half."""
        effects: list[Effect] = []
        if self.is_held:
            return effects
        if not self.is_reading:
            self._drop_shadows()
            # Of what is dropped, no read that is under way may bring an older state.
            if self.lanes.is_dirty:
                self._restart()
        if self._is_live_dirty and not self._live_reads:
            self._is_live_dirty = False
            self._live_reads += 1
            self.named = tuple(self._sought)
            self._sought.clear()
            effects.append(LoadLive(self.named))
        load = None if self.lanes.is_dirty else self.lanes.next_read()
        return effects if load is None else [*effects, load]

    def loaded(self, answer: Loaded) -> bool:
        """Take what the store answered; tell whether it counts for this reign."""
        if not self.lanes.answered(answer):
            return False
        lane = self.lanes.get(answer.shape)
        if lane is not None and not self.lanes.is_dirty:
            before, last_ord = len(self.tasks), lane.cursor
            self.add_arrays(answer.records)
            for record in answer.records:
                self._add(record, answer.shape)
                assert record.spec is not None
                last_ord = max(last_ord, record.spec.ord)
            is_news = len(self.tasks) > before
            lane.read(last_ord, is_news=is_news, has_more=answer.has_more)
        return True

    def add_arrays(self, records: Iterable[TaskRecord]) -> None:
        """Queue what is left of arrays of the store, or learn what others have run."""
        arrays = [record for record in records if record.progress is not None]
        numbers = numbers_in_hand(self.tasks) if arrays else {}
        for record in arrays:
            assert record.spec is not None
            known = self.tasks.get(record.id)
            task = known or InHand(record.spec)
            if task.stage is Stage.QUEUED:
                learn(task, record, numbers)
            if known is None and record.cancelled_by is None:
                self.arrays.count_on(task)
                if task.rest:
                    self._enqueue(task)

    def _add(self, record: TaskRecord, shape: int) -> None:
        """Queue a task of the store, unless it is in hand already."""
        if record.progress is not None:
            return
        if (known := self.tasks.get(record.id)) is not None:
            if known.stage is not Stage.ENDED:  # Else more is known of it than that.
                known.is_sure = True
                known.tries |= tries_of(record.attempts)
                known.n = max(known.n, *(a.id.n for a in record.attempts), 0)
        elif record.state is TaskState.QUEUED and not self.arrays.is_cut(record.id):
            task = self.from_record(record)
            task.shape = shape
            self._enqueue(task)

    def from_record(self, record: TaskRecord) -> InHand:
        """Return a task as the log knows it, not yet in hand."""
        assert record.spec is not None
        task = InHand(record.spec, tries=tries_of(record.attempts))
        task.reported = told_of(record.attempts)
        for attempt in record.attempts:
            task.n = max(task.n, attempt.id.n)
            task.attempt, task.node = attempt.id, attempt.node
            outcome = attempt.outcome
            # What a worker lacked in an earlier reign it may have got since.
            is_lack = outcome is not None and outcome.reason is Reason.INPUTS
            if outcome is not None and is_lack and attempt.id.term == self._term:
                task.lacking |= {attempt.node}
                task.lack = outcome.detail
        return task

    def outstanding(self, node: NodeId) -> int:
        """Return how many attempts the node holds, as far as is known."""
        return len(self.held.get(node, ()))

    def granted(self, node: NodeId) -> Grant:
        """Return what its attempts were granted beyond one slot each."""
        return self._granted.get(node) or Grant()

    def _grant(self, task: InHand, node: NodeId, sign: int) -> None:
        requires = task.requires
        if requires is not None and requires.is_heavy:
            self._granted.setdefault(node, Grant()).add(requires, sign)

    # --- The life of a task.

    def admit(self, specs: Iterable[TaskSpec]) -> None:
        """Queue tasks that became durable, or leave them in the store for later."""
        for spec in specs:
            if spec.id in self.tasks:
                continue  # A read was faster than the news of the commit.
            self.arrays.uncount(spec.id)  # Of one of its name that is forgotten.
            if (lane := self.lanes.entry(spec)) is not None:
                task = self.tasks[spec.id] = unpacked(spec)
                lane.push(task)
        for task in self.lanes.trim(self.tasks):
            del self.tasks[task.spec.id]

    def put(self, spec: TaskSpec) -> InHand:
        """Queue a task that is not durable yet; the caller must `touch` it."""
        task = InHand(spec)
        self._enqueue(task)
        return task

    def first(self, lane: Lane) -> InHand | None:
        """Return the task of a lane that is next, if any worker will do for it."""
        while (task := lane.first(self.tasks)) is not None:
            if task.rest is None:
                return task
            if (member := self.arrays.next_of(task)) is not None:
                return member
            self._forget_array(task)
        return None

    def _forget_array(self, array: InHand) -> None:
        """Let go of an array all of whose members were handed out."""
        self._leave(array)
        self.arrays.count_on(array)
        del self.tasks[array.spec.id]
        if not array.is_sure:
            self.reread()

    def picky(self) -> list[InHand]:
        """Return some of the tasks that not every worker can run, each in its turn."""
        some = list(islice(self._picky.values(), PICKY_LOOK))
        for task in some:
            del self._picky[task.spec.id]
            self._picky[task.spec.id] = task
        return some

    def all_picky(self) -> list[InHand]:
        """Return all queued tasks that some worker could not run."""
        return list(self._picky.values())

    def assign(self, task: InHand, attempt: AttemptId, node: NodeId) -> None:
        """Say that `node` holds the task."""
        self._move(task, Turn.ASSIGN)
        task.attempt, task.node, task.is_heard = attempt, node, False
        task.n = max(task.n, attempt.n)
        self.held.setdefault(node, {})[task.spec.id] = task
        if task.shape:
            self._grant(task, node, 1)

    def adopt(self, task: InHand, attempt: AttemptId, node: NodeId) -> None:
        """Take a task in hand that `node` was found to hold."""
        known = self.tasks.setdefault(task.spec.id, task)
        assert known is task
        self.arrays.withdraw(task.spec.id)
        self.lanes.of(task).enter(task)
        self.assign(task, attempt, node)

    def release(self, task: InHand) -> None:
        """Queue the task again at its old place; final ones end instead."""
        if task.final is not None or not task.is_sure or task.may_be_cut:
            self.end(task, task.final)
            return
        self._move(task, Turn.RELEASE)

    def rest(self, task: InHand) -> None:
        """Take the task back, but let it wait until `wake`."""
        self._move(task, Turn.REST)

    def wake(self, task: InHand) -> None:
        """Queue a task that has rested."""
        self._move(task, Turn.WAKE)

    def end(self, task: InHand, final: TaskState | None) -> None:
        """Take the task out of the queue; without `final` the store is asked."""
        if final is not None:
            task.final = final
            self.ended[final] += task.rest is None  # Of an array its members count.
        self._move(task, Turn.END)

    def shadow(self, spec: TaskSpec, final: TaskState | None) -> InHand:
        """Remember a task that is not in hand and must not be read as it was."""
        task = InHand(spec, stage=Stage.ENDED, final=final, is_sure=False)
        self.tasks[spec.id] = task
        self.arrays.withdraw(spec.id)
        return task

    def settle(self, tasks: Iterable[InHand], number: int) -> None:
        """Let go of what commit `number` made durable."""
        is_read = self.is_reading
        for task in tasks:
            if task.number != number:
                continue  # Later facts are still on their way.
            task.number = 0
            if task.stage is Stage.ENDED and is_read:
                self._shadows.append(task)
            elif task.stage is Stage.ENDED:
                self._retire(task)

    def is_final(self, task_id: TaskId) -> bool:
        """Whether a task that is not in hand is known to have ended a while ago."""
        return task_id in self._finals

    def renew(self, task_id: TaskId) -> None:
        """Forget how a task ended: another one has the name of one that is gone."""
        self._finals.pop(task_id, None)

    def settled(self, task_id: TaskId, known: TaskState) -> TaskState:
        """Return how a task ended that is not in hand; the store said it is `known`."""
        return self._finals.get(task_id, known)

    def _move(self, task: InHand, turn: Turn) -> None:
        """Change the stage by the table and keep counts and places in step."""
        before = task.stage
        after = TRANSITIONS[before][turn]
        assert after is not None, f"{task.spec.id}: {turn.name} in {before.name}"
        if before is Stage.QUEUED:
            self._leave(task)
        elif before is Stage.LIVE:
            assert task.node is not None
            del self.held[task.node][task.spec.id]
            if task.shape:
                self._grant(task, task.node, -1)
        task.stage = after
        if after is Stage.QUEUED:
            self._enqueue(task)

    def _enqueue(self, task: InHand) -> None:
        self.tasks[task.spec.id] = task
        self.lanes.of(task).push(task)
        if task.lacking:
            self._picky[task.spec.id] = task

    def _leave(self, task: InHand) -> None:
        self.lanes.of(task).leave(task)
        if task.lacking:
            self._picky.pop(task.spec.id, None)

    def _drop_shadows(self) -> None:
        """Let go of ended tasks once no read can bring them back."""
        for task in self._shadows:
            if task.number == 0:
                self._retire(task)
        self._shadows.clear()

    def _retire(self, task: InHand) -> None:
        if self.tasks.get(task.spec.id) is not task:
            return  # Of an earlier reign, or more was told of it since.
        del self.tasks[task.spec.id]
        if task.final is None:
            self.reread()
            return
        self._finals[task.spec.id] = task.final
        if len(self._finals) > self._window_tasks:
            self._finals.popitem(last=False)


RESTING_MAX = 10_000


class Resting:
    """Who waits, and until when."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._due: list[tuple[float, TaskId]] = []

    def forget(self) -> None:
        """Let nobody wait: the reign is over."""
        self._due.clear()

    def deadline(self) -> float:
        """Return when `rested` has something to yield."""
        return self._due[0][0] if self._due else math.inf

    def due_s(self, task: TaskId) -> float | None:
        """Return until when a task waits, None if it does not."""
        return next((due_s for due_s, id_ in self._due if id_ == task), None)

    def take(self, task: InHand, now: Moment, rest_s: float) -> None:
        """Let a task wait whose live attempt came to nothing, or queue it at once."""
        if task.final is not None or not task.is_sure or len(self._due) >= RESTING_MAX:
            self._queue.release(task)
            return
        self._queue.rest(task)
        heappush(self._due, (now.mono_s + rest_s, task.spec.id))

    def rested(self, now: Moment) -> Iterator[InHand]:
        """Yield the tasks that have waited long enough."""
        while self._due and self._due[0][0] <= now.mono_s:
            task = self._queue.tasks.get(heappop(self._due)[1])
            if task is not None and task.stage is Stage.RESTING:
                yield task
