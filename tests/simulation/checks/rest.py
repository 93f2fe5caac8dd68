"""Quiescence: whether a world is at rest, and which work is left.

Nothing is asserted here. Worlds wait for rest before they are checked.
"""

from __future__ import annotations

from collections.abc import Mapping

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import TaskId
from tests.simulation.store.disk import Disk
from tests.simulation.world import World


def is_quiet(world: World) -> bool:
    """Return True if the world is at rest after its faults."""
    machines = world.machines.values()
    if any(m.running or m.disk.spool or m.disk.waiting for m in machines):
        return False
    if len(world.alive()) < len(machines) or not world.is_settled():
        return False
    (dispatcher,) = world.dispatchers()
    if not _is_finished(world, world.machines[dispatcher].disk):
        return False
    node = world.machines[dispatcher].node
    assert node is not None
    if len(list(node._peer_table.followers(node.epoch))) < len(machines) - 1:
        # A node that joined last receives nothing before it has confirmed the epoch.
        return False
    others = (m.id for m in machines if m.id != dispatcher)
    if not all(world.network.is_up(dispatcher, other) for other in others):
        return False  # A link that broke silently is still to be noticed.
    if not world.network.is_prompt:
        return False  # A record in effect may still be on its way.
    if any(machine.disk.is_merging for machine in machines):
        return False
    # A follower that receives no log may still have streams that are retired elsewhere.
    held = world.machines[dispatcher].disk.have
    return all(held(s) >= seq for m in machines for s, seq in m.disk.vector())


def unfinished(world: World) -> list[str]:
    """Return the open tasks that the dispatcher knows or should know."""
    reigning = world.dispatchers()
    if len(reigning) != 1:
        return [f"dispatchers: {reigning}"]
    records = world.machines[reigning[0]].disk.records
    unknown = [task for task in promised(world) if task not in records]
    return sorted(unknown) + [
        f"{record}" for record in records.values() if _is_open(world, records, record)
    ]


def promised(world: World) -> list[TaskId]:
    """Return the accepted tasks that a disk has held since their acceptance."""
    return [
        task
        for task, holders in world.promises.tasks.items()
        if holders and task not in world.storage.forgotten
    ]


def _is_open(
    world: World, records: Mapping[TaskId, TaskRecord], record: TaskRecord
) -> bool:
    """Return True if a task has not ended, and can before the world is checked.

    How long a task waits for an unknown parent goes by its timestamp. If a clock was
    set back, that may be up to an hour longer: see docs/explanation/scheduling.md.
    """
    if record.spec is None or record.state.is_final:
        return False
    after = record.waits_for if world.is_skewed else None
    return after is None or all(parent in records for parent in after.tasks)


def _is_finished(world: World, disk: Disk) -> bool:
    """Return True if `unfinished` would return nothing for the node with this disk."""
    records = disk.records
    # The latest tasks are the last to end.
    latest_first = reversed(records.values())
    if any(_is_open(world, records, record) for record in latest_first):
        return False
    return all(task in records for task in promised(world))
