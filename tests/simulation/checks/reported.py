"""Reported outcomes: what a client was told of a task's end stays (G4).

The outcome is the state, the attempt and its exit code. A dispatcher announces it to
those who wait, to webhooks and to event streams.
"""

from __future__ import annotations

from octaskly.core.effects import AnnounceTaskStates, Effect
from octaskly.core.events import Event
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import array_of
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import TaskState
from tests.simulation.machine import Machine
from tests.simulation.promises import Told
from tests.simulation.world import World

HEALED_S = 25.0  #: a split may have two dispatchers so long after its end (G6)


def watch_reports(world: World) -> None:
    """Compare each announced outcome with the one announced before."""

    def watch(machine: Machine, _event: Event, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, AnnounceTaskStates):
                if len(dispatchers := world.dispatchers()) > 1:
                    world.network.note_apart(*dispatchers)  # Each has its own part.
                for task in effect.tasks:
                    _check_task(world, machine, task)

    world.watchers.append(watch)


def reported_outcomes_stay(world: World) -> None:
    """G4: once the world is at rest, the dispatcher shows what was announced."""
    (dispatcher,) = world.dispatchers()
    for task in list(world.promises.outcomes):
        if not world.storage.is_gone(task):
            _check_task(world, world.machines[dispatcher], task)


def _check_task(world: World, machine: Machine, task: TaskId) -> None:
    record = machine.disk.shown(task)
    if record is None or record.progress is not None or not record.state.is_final:
        return  # The state of an array follows from its members.
    now = _told(world, record, machine)
    before = world.promises.outcomes.get(task, now)
    world.promises.outcomes[task] = now
    is_same = before.outcome == now.outcome or before.ord != now.ord
    assert is_same or _is_excused(world, record, before, now), (
        f"{task} was {before}, and at {world.time_s:.3f} is {now}: {record}"
    )


def _told(world: World, record: TaskRecord, machine: Machine) -> Told:
    """Return the outcome of an ended task as a node shows it."""
    holders = tuple(
        (other.id, other.life)
        for other in world.alive()
        if (held := other.disk.shown(record.id)) is not None and held.state.is_final
    )
    state, attempt = record.state, record.deciding_attempt
    ord_ = 0 if record.spec is None else record.spec.ord
    if attempt is None or state is TaskState.CANCELLED:
        return Told((state, None, None), machine.id, holders, ord_)  # No end is shown.
    code = None if attempt.outcome is None else attempt.outcome.exit_code
    return Told((state, attempt.id, code), machine.id, holders, ord_)


def _is_excused(world: World, record: TaskRecord, before: Told, now: Told) -> bool:
    """Return True if a split, or the absence of all copies, may have changed it.

    Only nodes that announced the task or ran it count for a split. A node that reports
    a failure alone is a part of the mesh, too: the others may know of a success. So may
    a worker that was down, and nodes that came back with their log.
    """
    machines = world.machines
    was_failed_alone = (
        before.outcome[0] is TaskState.FAILED and len(before.holders) == 1
    )
    were_down = was_failed_alone or all(
        machines[node].life != life for node, life in before.holders
    )
    accepted_s = world.storage.accepted_s.get(record.id, 0.0)
    since_s = accepted_s - HEALED_S
    # The end of an attempt counts more than that it was given up for lost.
    is_of_array = record.cancelled_by is None and array_of(record.id) is not None
    may_be_given_up = before.outcome[0] is TaskState.FAILED or is_of_array
    told = {node for node, _ in before.holders}
    came_back = {node for node, _ in now.holders if node not in told}
    knew_more = {*came_back, *(attempt.node for attempt in record.attempts)}
    was_part_down = may_be_given_up and any(
        machines[node].down_s >= accepted_s for node in knew_more
    )
    nodes = {before.node, now.node, *(each.node for each in record.attempts)}
    were_apart = any(world.was_apart(node, since_s) for node in nodes)
    return were_down or were_apart or was_part_down or bool(world.restored)
