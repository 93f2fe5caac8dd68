"""While many tasks end, their ends wait for each other; none is lost or counted twice.

Source: core.node.gathering.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from octaskly.core.effects import Append, Effect
from octaskly.core.events import Event
from octaskly.core.log.facts import Finished
from octaskly.core.log.range_facts import member_entries
from octaskly.core.model.ids import TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import TaskState
from octaskly.core.node.gathering import ENTRY_BYTES
from tests.simulation.machine import Machine
from tests.simulation.world import World

NODES, SLOTS = 5, 16
TASKS = 400
STALL_S = 2.0
ENTRIES_MAX = 64  #: that may wait


class WrittenEnds:
    """The ends that dispatchers wrote, and how many writes held them."""

    def __init__(self, world: World) -> None:
        self.writes = 0
        self.entries_max = 0  #: in one of them
        self.ends: Counter[TaskId] = Counter()
        world.watchers.on_step(self._note)

    def _note(self, machine: Machine, _event: Event, effects: list[Effect]) -> None:
        if machine.node is None or not machine.node.is_dispatcher:
            return
        for effect in effects:
            entries = effect.entries if isinstance(effect, Append) else ()
            facts = list(member_entries(entries))
            ended = [e.fact.task for e in facts if isinstance(e.fact, Finished)]
            self.writes += bool(ended)
            self.entries_max = max(self.entries_max, len(facts) if ended else 0)
            self.ends.update(ended)


@pytest.mark.parametrize("seed", range(2))
def test_ends_that_are_gathered_while_the_disk_stalls_all_count_once(seed: int) -> None:
    """The disk answers nothing for two seconds, in which most of the tasks end."""
    world = World(seed, nodes=NODES, slots=SLOTS)
    world.limits = replace(
        Limits(), many_reports=2, entries_bytes=ENTRIES_MAX * ENTRY_BYTES
    )
    world.commands.duration_s = (0.2, 1.0)
    world.start_all()
    assert world.run_until(world.is_settled, 5.0)
    (head,) = world.dispatchers()
    node, disk = world.machines[head].node, world.machines[head].disk
    assert node is not None
    written = WrittenEnds(world)
    world.clients.submit(head, TASKS)
    assert world.run_until(lambda: written.ends.total() > TASKS // 8, 5.0)

    world.machines[head].stall_s = world.time_s + STALL_S
    world.run(STALL_S)

    assert written.ends.total() > TASKS // 2
    assert world.run_until(lambda: not disk.waiting, 5.0)
    world.run(1.0)
    accepted = world.clients.accepted
    assert len(accepted) == TASKS
    assert {disk.records[task].state for task in accepted} == {TaskState.COMPLETED}
    assert {len(disk.records[task].attempts) for task in accepted} == {1}
    assert node.ended_counts[TaskState.COMPLETED] == TASKS
    assert set(written.ends) == set(accepted)
    assert written.writes < TASKS // 4
    assert written.entries_max <= ENTRIES_MAX
