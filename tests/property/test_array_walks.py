"""Long random walks through epochs with arrays: waiting, failing, cancelled."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from octaskly.core.events import CancelRequested, TasksSubmitted
from octaskly.core.log.facts import Assigned, Fact, Submitted
from octaskly.core.log.merge import TaskRecord, join_records, with_array_cancelled
from octaskly.core.model.arrays import (
    ArrayProgress,
    member_id,
    member_spec,
    split_member_id,
)
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import ArraySpec, Retry, TaskOptions
from octaskly.core.model.tasks import TaskState
from octaskly.store.tables import rows
from tests.property.test_epoch_walks import Walk
from tests.support import builders
from tests.support.dispatcher import queued_count
from tests.support.dispatcher_model import DispatcherModel

SEEDS = int(os.environ.get("REIGN_SEEDS", "60"))
#: seeds that once failed, beyond those that are always walked
FAILED_ONCE = (547, 2599, 7763)


class Shown(dict[TaskId, TaskRecord]):
    """The durable records; a task is found by its id as the store shows it."""

    def __getitem__(self, task: TaskId) -> TaskRecord:
        place = split_member_id(task)
        if place is not None:
            return self.member(*place)
        record = super().__getitem__(task)
        if record.spec is None or record.spec.array is None:
            return record
        numbers = range(record.spec.array.count)
        tally = Counter(self.member(task, number).state for number in numbers)
        queued, running, completed, failed, cancelled = (tally[s] for s in rows.STATES)
        is_over = record.cancelled_by is not None
        left = [n for n in numbers if member_id(task, n) not in self and not is_over]
        rest = tuple((n, n) for n in left)
        progress = ArrayProgress(queued, running, completed, failed, cancelled, rest)
        return replace(record, progress=progress)

    def member(self, array: TaskId, number: int) -> TaskRecord:
        whole = super().__getitem__(array)
        assert whole.spec is not None
        spec = member_spec(whole.spec, number)
        assert spec is not None
        known = self.get(spec.id, TaskRecord(id=spec.id))
        return with_array_cancelled(
            join_records(known, TaskRecord(id=spec.id, spec=spec)), whole.cancelled_by
        )

    def arrays(self) -> list[TaskRecord]:
        return [record for record in map(self.__getitem__, self) if record.progress]


class ArrayDispatcherModel(DispatcherModel):
    """A world with arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.durable: Shown = Shown()
        self.ours: set[TaskId] = set()
        """Arrays whose members' fate this epoch knows in full."""

    def begin_epoch(self) -> None:
        super().begin_epoch()
        self.ours.clear()

    def submit_array(
        self, array: ArraySpec, retries: int = 0, *, on_lost: bool = True
    ) -> None:
        self.ticket += 1
        retry = Retry(retries=retries, on_lost=on_lost)
        options = TaskOptions(array=array, retry=retry)
        draft = replace(builders.draft(), options=options)
        event = TasksSubmitted(
            self.ticket, (draft,), "tester", (f"{self.ticket:08x}",), (None,)
        )
        self.perform(self.dispatch.on_submitted(event, self.now))

    def cancel(self, task: TaskId, *, force: bool) -> None:
        record = self.durable[task]
        if record.progress is None:
            super().cancel(task, force=force)
            return
        self.ticket += 1
        self.asked[self.ticket] = task
        event = CancelRequested(
            self.ticket, task, record.state, force, "tester", record
        )
        self.perform(self.dispatch.on_cancel_requested(event, self.now))

    def stored(self) -> Iterable[TaskRecord]:
        return (self.durable[task] for task in self.durable)

    def is_live(self, record: TaskRecord) -> bool:
        is_array = record.progress is not None
        is_running_array = is_array and record.state is TaskState.RUNNING
        return super().is_live(record) or is_running_array

    def _check(self, fact: Fact) -> None:
        super()._check(fact)
        if isinstance(fact, Submitted):
            self.ours.add(fact.task)
        place = split_member_id(fact.task)
        record = self.written.get(fact.task)
        known = () if record is None else (a.id for a in record.attempts)
        if place is None or not isinstance(fact, Assigned) or fact.attempt in known:
            return
        array = self.written[place[0]]
        is_ours = fact.attempt.term == self.term
        assert not is_ours or array.cancelled_by is None, f"{fact.task} begins too late"
        most = array.spec.array.max_fails if array.spec and array.spec.array else None
        if is_ours and most is not None and place[0] in self.ours:
            assert self.failed(place[0]) <= most, f"{fact.task} begins after failures"

    def failed(self, array: TaskId) -> int:
        return sum(
            record.state is TaskState.FAILED
            for task, record in self.written.items()
            if (split_member_id(task) or ("",))[0] == array
        )


class ArrayWalk(Walk):
    """Like other walks, but with arrays among the submitted tasks."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, ArrayDispatcherModel())
        self.failing = self.rng.choice([2, 2, 30])

    def submit(self) -> None:
        world = self.world
        assert isinstance(world, ArrayDispatcherModel)
        if sum(not array.state.is_final for array in world.durable.arrays()) < 4:
            most = self.rng.choice([None, None, 0, 2])
            count = self.rng.randint(1, 12)
            retries = self.rng.choice([0, 1, 3])
            world.submit_array(ArraySpec(count=count, max_fails=most), retries)
        if self.rng.random() < 0.3:
            world.submit(self.rng.randint(1, 3))


@pytest.mark.parametrize("seed", [*range(SEEDS), *FAILED_ONCE])
def test_every_member_ends_or_never_starts(seed: int) -> None:
    """No member runs twice in an epoch, and none starts after a cancel of the rest."""
    walk = ArrayWalk(seed)

    walk.go()
    walk.world.calm_down()

    world = walk.world
    assert isinstance(world, ArrayDispatcherModel)
    assert all(world.durable[task].state.is_final for task in world.accepted)
    for array in world.durable.arrays():
        assert array.progress is not None
        assert array.cancelled_by or not array.progress.remaining_runs
    queue = world.dispatch._queue
    assert queue.tasks.count == 0
    assert not queue.tasks.ranges
    assert queued_count(queue) == 0
