"""Reported outcomes: what a client was told of a task's end stays (G4).

The outcome is the state, the attempt and its exit code. A dispatcher announces it to
those who wait, to webhooks and to event streams.
"""

from __future__ import annotations

from collections.abc import Iterable

from octaskly.core.effects import AnnounceTaskStates, Effect
from octaskly.core.events import Event
from octaskly.core.log.merge import PRESUMED_REASONS, TaskRecord
from octaskly.core.model.arrays import array_of
from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.model.tasks import Attempt, TaskState
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
        _check_task(world, world.machines[dispatcher], task)


def _check_task(world: World, machine: Machine, task: TaskId) -> None:
    if world.storage.is_gone(task):
        return  # A node that was away may bring it back, and it runs as a new one.
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
    ord_ = 0 if record.spec is None else record.spec.ord
    attempt = record.deciding_attempt
    outcome: tuple[TaskState, AttemptId | None, int | None] = (record.state, None, None)
    if attempt is not None and record.state is not TaskState.CANCELLED:
        code = None if attempt.outcome is None else attempt.outcome.exit_code
        outcome = (record.state, attempt.id, code)
    unread = _unread_ends(world, machine, record.id, outcome[1])
    return Told(outcome, machine.id, holders, unread, ord_)


def _unread_ends(
    world: World, machine: Machine, task: TaskId, shown: AttemptId | None
) -> frozenset[AttemptId]:
    """Return the attempts whose ends other nodes have, and their dispatcher lacks.

    The end of the shown attempt does not count if its own worker is back with it.
    """
    here = machine.disk.shown(task)
    known = _reported_ends(here.attempts if here else ())
    ends: set[AttemptId] = set()
    for other in world.machines.values():
        record = other.disk.shown(task)
        found = [*(record.attempts if record else ())]
        is_back = other.node is not None and other.node.dispatcher == machine.id
        if is_back:
            found = [a for a in found if (a.id, a.node) != (shown, other.id)]
        else:
            ends.update(ended for spooled, ended in other.disk.spool if spooled == task)
        ends |= _reported_ends(found)
    return frozenset(ends - known)


def _reported_ends(attempts: Iterable[Attempt]) -> set[AttemptId]:
    """Return the attempts whose ends are not presumed by a dispatcher."""
    ended = [(each.id, each.outcome) for each in attempts if each.outcome is not None]
    return {name for name, end in ended if end.reason not in PRESUMED_REASONS}


def _is_excused(world: World, record: TaskRecord, before: Told, now: Told) -> bool:
    """Return True if a split, or the absence of all copies, may have changed it.

    Only nodes that announced the task or ran it count for a split. An end that was only
    in a log which had not arrived yet replaces a failure or a loss.
    """
    machines = world.machines
    were_down = all(machines[node].life != life for node, life in before.holders)
    accepted_s = world.storage.accepted_s.get(record.id, 0.0)
    nodes = {before.node, now.node, *(each.node for each in record.attempts)}
    were_apart = any(world.was_apart(n, accepted_s - HEALED_S) for n in nodes)
    # A member that its array's cancel ended has no cancellation of its own.
    is_of_array = record.cancelled_by is None and array_of(record.id) is not None
    may_be_replaced = before.outcome[0] is TaskState.FAILED or is_of_array
    was_unread = may_be_replaced and now.outcome[1] in before.unread_ends
    return were_down or were_apart or was_unread or bool(world.restored)
