"""Task outcomes at the end of a world: I3, I9, liveness.

Each task ends, all nodes agree on the outcome, and no task started too early or twice.
"""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from octaskly.core.log.facts import TaskCancelled
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import TaskState
from tests.simulation.checks.rest import unfinished
from tests.simulation.commands import Started
from tests.simulation.store.disk import Disk
from tests.simulation.world import World


def every_accepted_task_is_final(world: World) -> None:
    """Liveness: once faults stop, every accepted task ends."""
    open_ = unfinished(world)
    assert not open_, f"{len(open_)} of {len(world.clients.accepted)} open: {open_[:3]}"


def one_outcome(world: World) -> None:
    """I3: nodes with the same facts of a task show the same; none knows more."""
    (dispatcher,) = world.dispatchers()
    disk = world.machines[dispatcher].disk
    for machine in world.machines.values():
        for stream in machine.disk.streams:
            held = disk.have(stream)
            assert held >= machine.disk.have(stream), (
                f"{machine.id} holds {machine.disk.have(stream)} entries of {stream}, "
                f"the dispatcher {dispatcher} {held}"
            )
        if machine.disk.vector() == disk.vector():
            ours, theirs = _counting(disk), _counting(machine.disk)
            # A node that forgot a task before the task was copied elsewhere knows less
            # of it.
            for task in sorted(ours.keys() | theirs.keys()):
                if world.storage.is_gone(task):
                    continue
                mine, its = ours.get(task), theirs.get(task)
                assert mine == its, f"{task} differs: {mine} and {its}"


def cancelled_stays_cancelled(world: World) -> None:
    """Only a verdict of a later epoch overrides a cancel, as G4 says.

    It did not know of the cancel, so there was a split. The halves of a split may have
    epochs of one term; then a success counts.
    """
    (dispatcher,) = world.dispatchers()
    disk = world.machines[dispatcher].disk
    terms = Counter(epoch.term for epoch in disk.writers.values())
    for kind, task, _ in disk.kept:
        record = disk.shown(task) if kind is TaskCancelled else None
        if record is not None and record.progress is None:
            told_in = world.clients.cancelled_in.get(task, 0)
            least = told_in if terms[told_in] > 1 else told_in + 1
            has_later_verdict = record.verdict_term >= least
            assert record.state is TaskState.CANCELLED or has_later_verdict, f"{record}"


def nothing_runs_before_its_parents(world: World) -> None:
    """A task starts only after its parents ended as it requires."""
    assert not world.commands.early, f"began too early: {world.commands.early[:3]}"


def nothing_runs_twice(world: World) -> None:
    """I9: no task starts again unless the node that ran it died."""
    first: dict[str, Started] = {}
    for started in world.commands.started:
        earlier = first.setdefault(started.task, started)
        if earlier is started or earlier.node in world.died:
            continue
        raise AssertionError(f"started twice: {earlier} and {started}")


def _counting(disk: Disk) -> dict[TaskId, TaskRecord]:
    """Return the tasks whose submission is not void.

    Tasks behind a void submission wait until a late fact is void as well. Arrays come
    with their members.
    """
    marks = {mark.stream: mark.seq for mark in disk.floor.stream_floors}
    found = {
        task: record
        for task, record in disk.records.items()
        for birth in [disk.births[task]]
        if marks.get(birth.stream, 0) < birth.seq
    }
    for array, said in disk.members.items():
        if array in found:
            found[array] = replace(found[array], progress=None)
            found.update((record.id, record) for record in said.values())
    return found
