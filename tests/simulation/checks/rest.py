"""Whether a world has come to rest, and what it still has to do.

Nothing is asserted here: worlds wait for it before they are checked.
"""

from __future__ import annotations

from octaskly.core.model.ids import TaskId, covers
from tests.simulation.store.disk import Disk
from tests.simulation.world import World


def is_quiet(world: World) -> bool:
    """Whether the world has come to rest after its faults."""
    machines = world.machines.values()
    if any(m.running or m.disk.spool or m.disk.waiting for m in machines):
        return False
    if len(world.alive()) < len(machines) or not world.is_settled():
        return False
    (dispatcher,) = world.dispatchers()
    held = dict(world.machines[dispatcher].disk.vector())
    reign = world.machines[dispatcher].node
    assert reign is not None
    if len(list(reign._peer_table.followers(reign.epoch))) < len(machines) - 1:
        return False  # Who came last is told nothing before it has confirmed the reign.
    others = (m.id for m in machines if m.id != dispatcher)
    if not all(world.network.is_up(dispatcher, other) for other in others):
        return False  # A link that broke silently still has to be noticed.
    if not world.network.is_prompt:
        return False  # What all go by may be on its way.
    is_whole = all(covers(held, m.disk.vector()) for m in machines)
    if world.machines[dispatcher].disk.ahead():
        return False  # It still has to write again what only rows have told it.
    return is_whole and _is_finished(world, world.machines[dispatcher].disk)


def unfinished(world: World) -> list[str]:
    """Return the tasks that the dispatcher knows, or ought to, and that are open."""
    reigning = world.dispatchers()
    if len(reigning) != 1:
        return [f"dispatchers: {reigning}"]
    records = world.machines[reigning[0]].disk.records
    unknown = [task for task in promised(world) if task not in records]
    return sorted(unknown) + [
        f"{record}"
        for record in records.values()
        if record.spec is not None and not record.state.is_final
    ]


def promised(world: World) -> list[TaskId]:
    """Return the accepted tasks that a disk still holds which held them then."""
    return [
        task
        for task, holders in world.promises.tasks.items()
        if holders and task not in world.storage.forgotten
    ]


def _is_finished(world: World, disk: Disk) -> bool:
    """Whether `unfinished` would have nothing to say of who has this disk."""
    records = disk.records
    if any(task not in records for task in promised(world)):
        return False
    # The latest are the last to end.
    return all(r.spec is None or r.state.is_final for r in reversed(records.values()))
