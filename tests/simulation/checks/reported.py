"""Reported outcomes: what a client was told of a task's end stays (G4).

The outcome is the state, the attempt and its exit code. A dispatcher announces it to
those who wait, to webhooks and to event streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product

from octaskly.core.dispatcher.reconciliation import LOG_WAIT_S_MAX, LOGS_GIVEN_UP
from octaskly.core.effects import Advertise, AnnounceTaskStates, Append, LogLine
from octaskly.core.log.facts import (
    Assigned,
    Decided,
    Finished,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import PRESUMED_REASONS, TaskRecord
from octaskly.core.log.range_facts import task_entries
from octaskly.core.model.arrays import array_of
from octaskly.core.model.ids import AttemptId, Epoch, TaskId
from octaskly.core.model.tasks import Attempt, TaskState
from tests.simulation.machine import Machine
from tests.simulation.promises import Outcome, Told
from tests.simulation.world import World

HEALED_S = 25.0  #: a split may have two dispatchers so long after its end (G6)


def watch_reports(world: World) -> None:
    """Compare each announced outcome with the one announced before."""

    def on_announced(machine: Machine, announced: AnnounceTaskStates) -> None:
        for task in announced.tasks:
            _check_task(world, machine, task)

    world.watchers.on_effect((Advertise,), partial(_note_dispatchers, world))
    world.watchers.on_effect((Append,), partial(_note_losses, world))
    world.watchers.on_effect((Append,), partial(_note_repeated, world))
    world.watchers.on_effect((LogLine,), partial(_note_unread_logs, world))
    world.watchers.on_effect((AnnounceTaskStates,), on_announced)


def reported_outcomes_stay(world: World) -> None:
    """G4: once the world is at rest, the dispatcher shows what was announced."""
    (dispatcher,) = world.dispatchers()
    for task in list(world.promises.outcomes):
        _check_task(world, world.machines[dispatcher], task)


def _note_dispatchers(world: World, machine: Machine, change: Advertise) -> None:
    """Note the start of an epoch, and the epochs of other dispatchers then."""
    if change.is_dispatcher:
        nodes = (world.machines[node].node for node in world.dispatchers())
        others = {node.epoch for node in nodes if node is not None}
        assert machine.node is not None
        world.promises.epochs[machine.node.epoch] = others


def _note_unread_logs(world: World, machine: Machine, line: LogLine) -> None:
    """Note a dispatcher that has waited as long for logs as G4 says."""
    is_given_up = line.event == LOGS_GIVEN_UP
    if is_given_up and dict(line.fields)["waited_s"] == LOG_WAIT_S_MAX:
        assert machine.node is not None
        world.promises.lacking_logs.add(machine.node.epoch)


def _note_losses(world: World, machine: Machine, append: Append) -> None:
    """Note attempts that a dispatcher takes for lost though it could know their ends.

    Their workers have said what they run, and a node that follows it has the end, on
    disk. A dispatcher that has waited long enough for logs need not know it.
    """
    assert machine.node is not None
    if machine.node.epoch in world.promises.lacking_logs:
        return
    peers = machine.node._peer_table.peers
    for entry in append.entries:
        fact = entry.fact
        if not isinstance(fact, Finished) or not _is_presumed(fact):
            continue
        if machine.disk.writers.get(entry.stream) != machine.node.epoch:
            continue  # It came with the log of another node.
        present = [
            other
            for other in world.machines.values()
            if other.node is not None and other.node.dispatcher == machine.id
        ]
        view = peers.get(fact.node)
        is_back = fact.node == machine.id or (view is not None and view.is_worker)
        if is_back and any(_has_end(o, fact.task, fact.attempt) for o in present):
            world.promises.losses_of_present.add((fact.task, fact.attempt))


def _note_repeated(world: World, machine: Machine, append: Append) -> None:
    """Note what a dispatcher without a log runs again, for want of the outcome."""
    assert machine.node is not None
    epoch, promises = machine.node.epoch, world.promises
    if epoch not in promises.lacking_logs:
        return
    for entry, fact in task_entries(append.entries):
        told = promises.outcomes.get(fact.task)
        is_own = machine.disk.writers.get(entry.stream) == epoch
        if told is None or not (isinstance(fact, Assigned) and is_own):
            continue
        held = machine.disk.shown(fact.task)
        if held is None or _outcome_of(held)[:2] != told.outcome[:2]:
            promises.repeated.add(fact.attempt)


def _has_end(machine: Machine, task: TaskId, attempt: AttemptId) -> bool:
    """Return True if the disk of a node has the reported end of an attempt."""
    record = machine.disk.shown(task)
    known = _reported_ends(record.attempts if record else ())
    return attempt in known or (task, attempt) in machine.disk.spool


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
    outcome = _outcome_of(record)
    holders = tuple(
        (other.id, other.life)
        for other in world.alive()
        if (held := other.disk.shown(record.id)) is not None
        and _outcome_of(held)[:2] == outcome[:2]  # A verdict may come without the end.
    )
    ord_ = 0 if record.spec is None else record.spec.ord
    unread = _unread_ends(world, machine, record.id)
    is_lost = any(
        each.id == outcome[1] and _is_presumed(each)
        for each in record.attempts
        if (record.id, each.id) not in world.promises.losses_of_present
    )
    return Told(outcome, machine.id, holders, unread, is_lost, ord_)


def _outcome_of(record: TaskRecord) -> Outcome:
    """Return the state of a task, the attempt that decided it, and its exit code."""
    attempt = record.deciding_attempt
    if attempt is None or record.state is TaskState.CANCELLED:
        return record.state, None, None
    code = None if attempt.outcome is None else attempt.outcome.exit_code
    return record.state, attempt.id, code


def _unread_ends(world: World, machine: Machine, task: TaskId) -> frozenset[AttemptId]:
    """Return the attempts whose ends other nodes have, and their dispatcher lacks.

    A result that is still on its way from a worker counts, too, unless its attempt was
    taken for lost while that worker was here.
    """
    here = machine.disk.shown(task)
    known = _reported_ends(here.attempts if here else ())
    ends: set[AttemptId] = set()
    for other in world.machines.values():
        record = other.disk.shown(task)
        found = [*(record.attempts if record else ())]
        results = other.disk.spool.keys() - world.promises.losses_of_present
        ends.update(ended for spooled, ended in results if spooled == task)
        ends |= _reported_ends(found)
    return frozenset(ends - known)


def _reported_ends(attempts: Iterable[Attempt]) -> set[AttemptId]:
    """Return the attempts whose ends are not presumed by a dispatcher."""
    ended = [each for each in attempts if each.outcome is not None]
    return {each.id for each in ended if not _is_presumed(each)}


def _is_presumed(end: Attempt | Finished) -> bool:
    """Return True if a dispatcher presumed this end."""
    return end.outcome is not None and end.outcome.reason in PRESUMED_REASONS


def _is_excused(world: World, record: TaskRecord, before: Told, now: Told) -> bool:
    """Return True if G4 lets the outcome change: for want of a node or of its log.

    A split counts if it cut off a node that announced the task or ran it. So it does if
    it cut off all those with the first outcome that were not down. A dispatcher runs a
    task again without those that it hears late, too.
    """
    since_s = world.storage.accepted_s.get(record.id, 0.0) - HEALED_S
    nodes = {before.node, now.node, *(each.node for each in record.attempts)}
    were_apart = any(world.was_apart(node, since_s) for node in nodes)
    ran_again = _ran_here(world, now)
    were_away = all(
        world.machines[node].life != life
        or world.was_apart(node, since_s)
        or (ran_again and world.network.was_late(node, since_s))
        for node, life in before.holders
    )
    return (
        were_apart
        or were_away
        or bool(world.restored)
        or _is_late_end(record, before, now)
        or _are_of_a_split(world, record.id, before, now)
        or _lacked_a_log(world, record.id, before, now)
    )


def _ran_here(world: World, now: Told) -> bool:
    """Return True if the dispatcher that tells an outcome assigned its attempt."""
    machine, attempt = world.machines[now.node], now.outcome[1]
    if attempt is None or machine.node is None:
        return False
    return machine.disk.writers.get(attempt.stream) == machine.node.epoch


def _is_late_end(record: TaskRecord, before: Told, now: Told) -> bool:
    """Return True if the end of an attempt came late, and replaces what was told.

    The end of the told attempt replaces its loss, unless its worker was back by then,
    and a node that was there had the end. The end of another one was in a log that had
    not arrived: a success replaces a failure, and any end the cancel of a member by its
    array.
    """
    told, told_attempt, _ = before.outcome
    state, shown, _ = now.outcome
    if shown == told_attempt:
        return before.is_lost
    # A member that its array's cancel ended has no cancellation of its own.
    is_of_array = record.cancelled_by is None and array_of(record.id) is not None
    if told is TaskState.FAILED:
        may_follow = state is TaskState.COMPLETED
    else:
        may_follow = told is TaskState.CANCELLED and is_of_array
    return may_follow and shown in before.unread_ends


def _are_of_a_split(world: World, task: TaskId, before: Told, now: Told) -> bool:
    """Return True if two halves of a split made these outcomes.

    Or one made the second, and the dispatcher of the other one had the first: that is
    still dispatcher, or tells the second now. The cancel of an array makes the outcome
    of a member at each dispatcher that tells it.
    """
    epochs = world.promises.epochs
    firsts = set(_makers(world, task, before.outcome[1]))
    holders = {node for node, _ in before.holders} & {now.node, *world.dispatchers()}
    firsts |= {epoch for epoch in epochs if epoch.node in holders}
    seconds = set(_makers(world, task, now.outcome[1]))
    teller = world.machines[now.node].node
    if now.outcome[1] is None and array_of(task) is not None and teller is not None:
        seconds.add(teller.epoch)
    return any(_are_halves(epochs, *pair) for pair in product(firsts, seconds))


def _are_halves(epochs: dict[Epoch, set[Epoch]], first: Epoch, second: Epoch) -> bool:
    """Return True if one of two dispatchers had not heard of the other.

    They were so at one time, or their terms are not in the order of time.
    """
    if first.node == second.node:
        return False
    order = list(epochs)
    earlier, later = sorted((first, second), key=order.index)
    return later.term <= earlier.term or earlier in epochs[later]


def _lacked_a_log(world: World, task: TaskId, before: Told, now: Told) -> bool:
    """Return True if a dispatcher ran the task again as it could not read a log.

    It may have read that log later, and told the first outcome once more.
    """
    if now.outcome[1] in world.promises.repeated:
        return True
    makers = set(_makers(world, task, now.outcome[1]))
    holders = {node for node, _ in before.holders}
    lacking = makers & world.promises.lacking_logs
    return any(epoch.node not in holders for epoch in lacking)


def _makers(world: World, task: TaskId, attempt: AttemptId | None) -> Iterator[Epoch]:
    """Yield the epochs that assigned an attempt, or decided a task by it.

    None stands for the cancel of the task, or of its array.
    """
    names = (task, array_of(task))
    for machine in world.machines.values():
        for stream, log in machine.disk.streams.items():
            epoch = machine.disk.writers[stream]
            if attempt is not None and attempt.stream == stream:
                yield epoch
            for _, fact in task_entries(log):
                if fact.task in names and _verdict(fact) == (attempt, epoch.term):
                    yield epoch


def _verdict(fact: TaskFact) -> tuple[AttemptId | None, int] | None:
    """Return the attempt that a verdict names, and its term; None: it is no verdict."""
    match fact:
        case TaskCancelled(term=term):
            return None, term
        case Decided(term=term, attempt=attempt):
            return attempt, term
        case Finished(attempt=attempt, decided_term=term):
            return attempt, term
        case _:
            return None
