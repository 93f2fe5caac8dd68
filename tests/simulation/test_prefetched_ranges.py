"""While workers hold members of arrays ahead of free slots, others get their turns.

Source: core.scheduling.turns, core.scheduling.worker_pool.
"""

from __future__ import annotations

from octaskly.core.effects import Append, Effect
from octaskly.core.events import Event
from octaskly.core.log.facts import MembersAssigned
from tests.simulation.machine import Machine
from tests.simulation.world import World

NODES, SLOTS = 3, 2
MEMBER_S = 0.02
ARRAYS = 4
MEMBERS_MOST = 1500
TURN_S = 1.0


def test_a_single_task_starts_soon_among_prefetched_members() -> None:
    """Its turn is next, and no worker holds more than a moment's work."""
    world = World(1, nodes=NODES, slots=SLOTS)
    world.commands.duration_s = (MEMBER_S, MEMBER_S)
    world.commands.batch_s = 0.05  # Results have times, from which workers prefetch.
    world.commands.failing_share = 1e-9  # Others get no arrays.
    world.clients.array_share, world.clients.members_most = 1.0, MEMBERS_MOST
    ranges: list[int] = []

    def note(_machine: Machine, _event: Event, effects: list[Effect]) -> None:
        entries = (e for a in effects if isinstance(a, Append) for e in a.entries)
        facts = (entry.fact for entry in entries)
        ranges.extend(f.count for f in facts if isinstance(f, MembersAssigned))

    world.watchers.on_step(note)
    world.start_all()
    assert world.run_until(world.is_settled, 5.0)
    (head,) = world.dispatchers()
    world.clients.submit(head, ARRAYS)
    world.run(1.0)

    world.clients.array_share = 0.0
    known = set(world.clients.accepted)
    asked_s = world.time_s
    world.clients.submit(head)
    world.run(TURN_S)

    (single,) = world.clients.accepted.keys() - known
    (started,) = (each for each in world.commands.started if each.task == single)
    assert started.at_s - asked_s < TURN_S
    assert max(ranges) > 1
    held = [len(each.waiting) for each in world.machines.values()]
    assert any(held), "nothing was prefetched"
