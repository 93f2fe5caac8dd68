"""Arrays in the queue: each is one entry, out of which members come one by one.

Owns which members of an array in hand are still to be handed out. A member becomes a
task in hand when a worker gets it, and is like any other from then on.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import RUNS_MAX, Rest, member_id, member_of, member_spec
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.scheduling.queued_task import InHand, Stage

COUNTED_MAX = 10_000  #: arrays that are not in hand and whose failures are counted

Numbers = Mapping[TaskId, list[int]]
"""Numbers of members in hand, by array."""


def unpacked(spec: TaskSpec) -> InHand:
    """Return a new task as it waits; an array with all its members."""
    task = InHand(spec)
    if spec.array is not None:
        task.rest = Rest([(0, spec.array.count - 1)])
    return task


def numbers_in_hand(tasks: Iterable[TaskId]) -> Numbers:
    """Return which members are in hand, so that a read may be older than that."""
    found: defaultdict[TaskId, list[int]] = defaultdict(list)
    for place in map(member_of, tasks):
        if place is not None:
            found[place[0]].append(place[1])
    return found


def learn(task: InHand, record: TaskRecord, numbers: Numbers) -> None:
    """Take over what the store says of the members of an array."""
    progress, array = record.progress, task.spec.array
    assert progress is not None
    assert array is not None
    task.is_sure = len(progress.rest) < RUNS_MAX
    if task.rest is None:
        task.rest, task.failed = Rest(progress.rest), progress.failed
    else:
        task.rest.keep(progress.rest)
        task.failed = max(task.failed, progress.failed)
    for number in numbers.get(task.spec.id, ()):
        position = array.position(number)
        if position is not None:
            task.rest.remove(position)


class Unpacking:
    """The arrays among the tasks in hand."""

    def __init__(self, tasks: dict[TaskId, InHand]) -> None:
        self._tasks = tasks
        self._counted: OrderedDict[TaskId, InHand] = OrderedDict()
        """Those with a bound on failures, without items and rest: their members may
        fail when all of them were handed out, or while the store is read."""

    def counted(self, member: TaskId) -> InHand | None:
        """Return the array of a member that counts its failures, if one does."""
        place = member_of(member)
        if place is None:
            return None
        array = self._tasks.get(place[0]) or self._counted.get(place[0])
        return array if array is not None and array.stage is Stage.QUEUED else None

    def count_on(self, array: InHand) -> None:
        """Count the failures of an array whether it is in hand or not."""
        asked, id_ = array.spec.array, array.spec.id
        if asked is None or asked.max_fails is None:
            return
        known = self._counted.pop(id_, None)
        if known is not None:
            array.failed = max(array.failed, known.failed)
        bound = TaskOptions(array=replace(asked, has_items=False, items=()))
        spec = TaskSpec(id=id_, command="", options=bound)
        self._counted[id_] = InHand(spec, failed=array.failed)
        if len(self._counted) > COUNTED_MAX:
            self._counted.popitem(last=False)

    def uncount(self, array: TaskId) -> None:
        """Count no more failures of an array that is over, or not the same any more."""
        self._counted.pop(array, None)

    def forget(self) -> None:
        """The reign is over."""
        self._counted.clear()

    def of(self, member: TaskId) -> InHand | None:
        """Return the array of a member, if it waits in hand."""
        place = member_of(member)
        array = None if place is None else self._tasks.get(place[0])
        is_waiting = array is not None and array.stage is Stage.QUEUED
        return array if is_waiting else None

    def is_cut(self, member: TaskId) -> bool:
        """Whether the rest of its array was cancelled just now."""
        place = member_of(member)
        array = None if place is None else self._tasks.get(place[0])
        return array is not None and array.stage is Stage.ENDED

    def next_of(self, array: InHand) -> InHand | None:
        """Return the member that is next, not yet in hand; None: none is left."""
        asked = array.spec.array
        assert asked is not None
        if array.ahead is not None and array.ahead.spec.id in self._tasks:
            array.ahead = None  # A read of the store was newer.
        while array.ahead is None and array.rest:
            number = asked.number(array.rest.pop())
            if member_id(array.spec.id, number) not in self._tasks:
                spec = member_spec(array.spec, number)
                assert spec is not None
                array.ahead = InHand(spec)
        return array.ahead

    def withdraw(self, member: TaskId) -> None:
        """Note that a member is in hand otherwise, and not to be handed out."""
        array = self.of(member)
        if array is None or array.rest is None or array.spec.array is None:
            return
        if array.ahead is not None and array.ahead.spec.id == member:
            array.ahead = None
            return
        place = member_of(member)
        position = None if place is None else array.spec.array.position(place[1])
        if position is not None:
            array.rest.remove(position)
