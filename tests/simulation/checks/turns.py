"""Turns of submitters and arrays: counts that match what runs, and order in arrays."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from octaskly.core.effects import Append, Effect
from octaskly.core.events import Event
from octaskly.core.log.facts import Assigned, Submitted
from octaskly.core.log.range_facts import member_entries
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.node.node import Node
from octaskly.core.scheduling.queued_task import QueuedTask
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
        world.watchers.append(self)

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
                # An array that was read again may have members that were withdrawn.
                array, before = last.get(place[0], (None, -1))
                now = arrays.get(place[0]) or array
                if now is not None:
                    is_in_order = now is not array or place[1] > before
                    assert is_in_order, f"{fact.task} comes too late"
                    last[place[0]] = now, place[1]


def _shares_match_what_runs(node: Node) -> None:
    queue = node._dispatcher._queue
    held: Counter[FlowKey] = Counter()
    for task in chain.from_iterable(h.values() for h in queue.tasks._held.values()):
        held[task.flow] += task.slots
    waiting = Counter(key for lane in queue.lanes.all_lanes() for key in lane.flows)
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
    """The dispatcher has the latest change of each priority that a disk has."""
    (dispatcher,) = world.dispatchers()
    known = world.machines[dispatcher].disk.records
    for machine in world.machines.values():
        for task, record in machine.disk.records.items():
            change = record.reprioritized
            if change is not None and task in known and machine.node is not None:
                mine = known[task].reprioritized
                assert mine is not None, f"{task}: {change} is lost"
                assert mine >= change, f"{task}: {mine} is older than {change}"
