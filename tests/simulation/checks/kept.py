"""Durability at the end of a world: nothing is lost (I1, I5) or made up (I2).

A promise is void only if every disk that held it when it was made is lost.
"""

from __future__ import annotations

from octaskly.core.log.facts import Fact, Finished, Recorded, Submitted, TaskCancelled
from octaskly.core.log.mesh_records import KINDS, earlier_record
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.hlc import HLC_MAX, accepted_hlc
from octaskly.core.model.ids import TaskId, task_name
from tests.simulation.store.disk import Disk
from tests.simulation.store.folding import ENDING, Kept
from tests.simulation.world import World


def nothing_accepted_is_lost(world: World) -> None:
    """I1: every accepted task is known to the dispatcher after the heal."""
    _is_kept(world, Submitted)


def accepted_tasks_match_their_requests(world: World) -> None:
    """I1: so is each task's specification, even if two tasks share a name."""
    (dispatcher,) = world.dispatchers()
    records = world.machines[dispatcher].disk.records.values()
    known = {(task_name(r.id), r.spec.command) for r in records if r.spec is not None}
    gone = {task_name(task) for task in world.storage.forgotten}
    for task, command in sorted(world.clients.wanted):
        if (
            world.promises.holders.get((Submitted, task, None))
            and task_name(task) not in gone
        ):
            assert (task_name(task), command) in known, f"{task} is not {command!r}"


def cancels_are_kept(world: World) -> None:
    """I1: so is every confirmed cancel."""
    _is_kept(world, TaskCancelled)


def acknowledged_results_are_present(world: World) -> None:
    """I5: a result that a worker was allowed to delete is in the log."""
    _is_kept(world, Finished)


def records_are_kept(world: World) -> None:
    """Every confirmed record is in the log, also after the compaction floor rose."""
    _is_kept(world, Recorded)
    (dispatcher,) = world.dispatchers()
    known = {f"{kind}/{key}" for kind, key in world.machines[dispatcher].disk.notes}
    for kind, place, _ in world.machines[dispatcher].disk.kept:
        assert kind is not Recorded or place in known, f"{place} is in no table"


def all_nodes_use_the_same_records(world: World) -> None:
    """Every node knows the records in effect, with or without a log of its own."""
    (dispatcher,) = world.dispatchers()
    for key, (record, _) in world.machines[dispatcher].disk.notes.items():
        if KINDS[record.kind].is_broadcast:
            for machine in world.alive():
                mine = machine.learnt.get(key)
                assert mine is not None, f"{machine.id} has not received {key}"
                # The node may know an earlier record whose log is lost.
                counts = earlier_record(mine, record)
                assert counts == mine, f"{machine.id} goes by {mine}, not {record}"


def results_are_kept(world: World) -> None:
    """I5: no worker has spooled results left once the world is quiet.

    Exception: only the dispatcher's disk can hold them, and the settings forbid that.
    """
    (dispatcher,) = world.dispatchers()
    reads = world.machines[dispatcher].log_version
    others = [one for one in world.alive() if one.id != dispatcher]
    if world.is_strict and all(one.log_version < reads for one in others):
        return
    for machine in world.machines.values():
        keys = sorted(machine.disk.spool)
        assert not keys, f"{machine.id} still keeps {keys[:3]}"


def no_phantom_tasks(world: World) -> None:
    """I2: a client submitted every task that is on a disk."""
    for machine in world.machines.values():
        for record in machine.disk.records.values():
            if record.spec is not None:
                assert record.spec.command in world.clients.asked, (
                    f"phantom {record.id}"
                )


def _is_kept(world: World, kind: type[Fact]) -> None:
    """A promise is kept while one of the disks that held it then still exists."""
    (dispatcher,) = world.dispatchers()
    disk = world.machines[dispatcher].disk
    lost = sorted(
        f"{key[1:]} on {sorted(holders)}"
        for key, holders in world.promises.holders.items()
        if key[0] is kind and holders and key not in disk.kept
        if not world.storage.is_gone(key[1])
        if kind not in ENDING or not _has_no_disk(world, disk, key[1])
        if not world.promises.has_expired(key)
    )
    assert not lost, f"lost {len(lost)} of {len(world.promises.holders)}: {lost[:3]}"


def _has_no_disk(world: World, disk: Disk, task: TaskId) -> bool:
    """Return True if all disks with a task are lost and the task is too old to return.

    Its results then have no effect, and there is nothing to cancel. A worker's copy is
    written again only while the floor has not passed the submission time.
    """
    if (place := split_member_id(task)) is not None:
        task = place[0]  # An array is lost together with the facts of its members.
        key: Kept = (Submitted, task, None)
        return not any(key in m.disk.kept for m in world.machines.values())
    key = (Submitted, task, None)
    born = [started.born for started in world.commands.started if started.task == task]
    if task in world.clients.accepted:
        born.append(accepted_hlc(world.clients.accepted[task]))
    is_old = max(born, default=HLC_MAX) <= disk.floor.horizon
    return is_old and not any(key in m.disk.kept for m in world.machines.values())
