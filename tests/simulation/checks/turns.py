"""Turns of submitters and arrays: who is next, counts that match, order in arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from octaskly.core.effects import Append, Effect
from octaskly.core.events import Event
from octaskly.core.log.facts import Assigned, Submitted
from octaskly.core.log.range_facts import member_entries
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.task_options import is_stdin_freed
from octaskly.core.model.tasks import PRIORITY_SHIFT
from octaskly.core.node.node import Node
from octaskly.core.scheduling.matching import Matcher
from octaskly.core.scheduling.queued_task import QueuedTask
from octaskly.core.scheduling.task_queue import TaskQueue
from octaskly.core.scheduling.turns import FlowKey
from tests.simulation.machine import Machine
from tests.simulation.world import World


class TurnWatch:
    """Checks after every step of a dispatcher."""

    def __init__(self, world: World) -> None:
        self._last: dict[NodeId, tuple[Node, dict[TaskId, tuple[QueuedTask, int]]]] = {}
        """Arrays in memory of each process, with the member that it assigned last."""
        self._assigned: set[tuple[TaskId, AttemptId]] = set()
        """Compaction writes facts again."""
        world.watchers.on_step(self)

    def __call__(self, machine: Machine, event: Event, effects: list[Effect]) -> None:
        """Check one step and its effects."""
        del event
        node = machine.node
        assert node is not None
        if not node.is_dispatcher:
            self._last.pop(machine.id, None)
            return
        self._members_keep_their_order(machine, node, effects)
        _shares_match_what_runs(node)

    def _members_keep_their_order(
        self, machine: Machine, node: Node, effects: list[Effect]
    ) -> None:
        # A copy of the node checks its own queue, too.
        node._dispatcher._step.matcher.__class__ = _CheckedMatcher
        known, last = self._last.get(machine.id, (node, {}))
        if known is not node:
            last = {}
        self._last[machine.id] = node, last
        arrays = node._dispatcher._queue.tasks
        appends = (a for a in effects if isinstance(a, Append))
        facts = (e.fact for a in appends for e in member_entries(a.entries))
        for fact in facts:
            if isinstance(fact, Submitted) and fact.task in last:
                if last[fact.task][0].spec.ord != fact.spec.ord:
                    del last[fact.task]  # Another array uses the id of a forgotten one.
                continue
            place = split_member_id(fact.task)
            if place is None or not isinstance(fact, Assigned):
                continue
            is_own = fact.attempt.stream == node._dispatcher._step.stream
            key = fact.task, fact.attempt
            if is_own and fact.attempt.n == 1 and key not in self._assigned:
                self._assigned.add(key)
                array, before = last.get(place[0], (None, -1))
                now = arrays.get(place[0]) or array
                if now is not None:
                    is_in_order = now is not array or place[1] > before
                    assert is_in_order, f"{fact.task} comes too late"
                    last[place[0]] = now, place[1]
        # An array that is read again may have members that were withdrawn, or that an
        # absent node brought back without their ends.
        for array_id in [each for each in last if each not in arrays]:
            del last[array_id]


class _CheckedMatcher(Matcher):
    """Checks each match of a task and a worker, before the task is assigned."""

    def match_tasks(self, now: Moment) -> Iterator[tuple[QueuedTask, NodeId]]:
        planned: Counter[FlowKey] = Counter()
        for task, worker in super().match_tasks(now):
            _turn_is_right(self._queue, task, planned)
            if task.remaining is not None:
                planned[task.flow] += 1  # Its range is made after the last match.
            yield task, worker


def _turn_is_right(
    queue: TaskQueue, task: QueuedTask, planned: Counter[FlowKey]
) -> None:
    """Check that none of those who could have run instead holds fewer slots."""
    chosen, priority = task.flow, task.ord >> PRIORITY_SHIFT
    others = {
        each.flow
        for lane in queue.lanes.all_lanes()
        if not lane.key.shape
        for flow in lane.flows()
        for _, each in flow.entries(queue.tasks)
        if each.ord >> PRIORITY_SHIFT == priority and _may_be_next(queue, each)
    }
    if not others - {chosen}:
        return
    held = _held_slots(queue) + planned
    of_submitters: Counter[str] = Counter()
    for (submitter, _), slots in held.items():
        of_submitters[submitter] += slots
    least = min(of_submitters[submitter] for submitter, _ in (*others, chosen))
    assert of_submitters[chosen[0]] == least, f"not the turn of {chosen[0]}"
    least = min(held[flow] for flow in others | {chosen} if flow[0] == chosen[0])
    assert held[chosen] == least, f"not the turn of {chosen}"


def _may_be_next(queue: TaskQueue, task: QueuedTask) -> bool:
    """Return True if a task that waits can be assigned to any worker with a slot."""
    if task.exclusions or is_stdin_freed(task.spec.options):
        return False
    if task.remaining is None:
        return True
    return bool(task.remaining) and not queue.tasks.single_members_of(task.spec.id)


def _held_slots(queue: TaskQueue) -> Counter[FlowKey]:
    held: Counter[FlowKey] = Counter()
    for task in chain.from_iterable(
        worker.by_key.values() for worker in queue.tasks._held.values()
    ):
        held[task.flow] += task.slots
    return held


def _shares_match_what_runs(node: Node) -> None:
    queue = node._dispatcher._queue
    held = _held_slots(queue)
    waiting = Counter(key for group in queue.lanes.groups() for key in group.flows)
    of_submitters: Counter[str] = Counter()
    for submitter, share in queue.turns._submitters.shares.items():
        of_submitters[submitter] = share.held
        for array, flow in share.flows.shares.items():
            key = submitter, array
            assert (flow.held, flow.waiting) == (held.pop(key, 0), waiting.pop(key, 0))
            of_submitters[submitter] -= flow.held
    assert not +held, f"not counted: {held}"
    assert not +waiting, f"not waiting: {waiting}"
    assert not any(of_submitters.values()), of_submitters


def latest_priorities_count(world: World) -> None:
    """The dispatcher has the latest change of each priority that a disk has.

    A node may have a task below the floor as it was before others wrote it again.
    """
    (dispatcher,) = world.dispatchers()
    known = world.machines[dispatcher].disk.records
    for machine in world.machines.values():
        for task, record in machine.disk.records.items():
            change = record.reprioritized
            if world.storage.is_gone(task) or task not in known:
                continue
            if change is not None and machine.node is not None:
                mine = known[task].reprioritized
                assert mine is not None, f"{task}: {change} is lost"
                assert mine >= change, f"{task}: {mine} is older than {change}"
