"""Retries and arrays: rules for failing tasks and for tasks with many members.

A dispatcher starts nothing that is over by its own writes or by its disk. It counts the
failures that it wrote, those on its disk when its epoch began, and, a while later,
those that it learned from others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from octaskly.core.dispatcher.task_rules import LOSSES_MAX
from octaskly.core.effects import Append, Effect, MergeRows
from octaskly.core.events import Event, Persisted
from octaskly.core.log.facts import (
    Assigned,
    Decided,
    Entry,
    Fact,
    Finished,
    Submitted,
    TaskCancelled,
)
from octaskly.core.log.merge import TaskRecord, facts_of
from octaskly.core.log.range_facts import member_entries
from octaskly.core.model.arrays import member_id, split_member_id
from octaskly.core.model.ids import NO_EPOCH, AttemptId, Epoch, StreamId, TaskId
from octaskly.core.model.task_options import Retry
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.node.gathering import GATHER_S
from tests.simulation.faults import is_forgetful
from tests.simulation.machine import Machine
from tests.simulation.store.disk import Disk
from tests.simulation.world import World

#: time within which a dispatcher counts facts that arrived from others
LEARNED_S = 5.0
FactKey = tuple[TaskId, AttemptId | None, AttemptState]
"""A fact: an attempt ended in this state.

Without an attempt: the task is cancelled, or completed or failed by a verdict, or, for
ASSIGNED, was submitted.
"""


@dataclass
class Known:
    """What one node knows, and since when."""

    disk: Disk | None = None
    life: int = 0  #: of the process
    since_s: dict[TaskId, dict[FactKey, float]] = field(default_factory=dict)
    """The facts on its disk, by task; those of members by their array."""
    #: facts not yet on its disk
    written: list[tuple[int, FactKey]] = field(default_factory=list)
    epoch: Epoch = NO_EPOCH  #: number of its epoch
    began_s: float = 0.0  #: time at which the epoch began
    ours: dict[TaskId, set[FactKey]] = field(default_factory=dict)
    """The facts written in that epoch, likewise."""

    def says(self, key: FactKey, now_s: float) -> bool:
        """Return True if the node wrote that fact or its disk holds it.

        What it writes now, it may have decided `GATHER_S` ago.
        """
        return self._is_ours(key) or self._since_s(key, now_s) < now_s - GATHER_S

    def counts(self, key: FactKey, now_s: float) -> bool:
        """Return True if a dispatcher must count that fact."""
        since_s = self._since_s(key, now_s)
        return self._is_ours(key) or since_s < max(self.began_s, now_s - LEARNED_S)

    def write(self, key: FactKey) -> None:
        """Note a fact that the node wrote in its epoch."""
        self.ours.setdefault(_whole(key[0]), set()).add(key)

    def hold(self, key: FactKey, now_s: float) -> None:
        """Note a fact that is on the node's disk."""
        self.since_s.setdefault(_whole(key[0]), {}).setdefault(key, now_s)

    def forget(self, task: TaskId) -> None:
        """Forget a task with its members, because another task has its name now."""
        self.since_s.pop(task, None)
        self.ours.pop(task, None)

    def _is_ours(self, key: FactKey) -> bool:
        return key in self.ours.get(_whole(key[0]), ())

    def _since_s(self, key: FactKey, now_s: float) -> float:
        facts = self.since_s.get(_whole(key[0]))
        return now_s if facts is None else facts.get(key, now_s)


class TryWatch:
    """Checks each attempt that a dispatcher writes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._known = {node: Known() for node in world.machines}
        world.watchers.on_event((Persisted,), self._settle)
        world.watchers.on_effect((Append,), self._on_append)
        world.watchers.on_effect((MergeRows,), self._on_merge)
        world.watchers.on_step(self._note_epoch)

    def _note_epoch(
        self, machine: Machine, _event: Event, _effects: list[Effect]
    ) -> None:
        self._known_to(machine)

    def _on_append(self, machine: Machine, append: Append) -> None:
        known = self._known_to(machine)
        for entry in member_entries(append.entries):
            key = _key_of(entry.fact)
            self._on_entry(machine, known, entry, key)
            if key is not None:
                known.written.append((append.number, key))

    def _on_merge(self, machine: Machine, merge: MergeRows) -> None:
        known = self._known_to(machine)
        for row in machine.disk.staged[merge.snapshot].parts[0].rows:
            keys = map(_key_of, facts_of(row.record))
            known.written.extend((merge.number, key) for key in keys if key)

    def _known_to(self, machine: Machine) -> Known:
        known, node = self._known[machine.id], machine.node
        assert node is not None
        if known.disk is not machine.disk:
            known = self._known[machine.id] = Known(machine.disk)
        if known.life != machine.life:
            known.life, known.epoch = machine.life, NO_EPOCH
            known.written.clear()
        epoch = node.epoch if node.is_dispatcher else NO_EPOCH
        if known.epoch != epoch:
            known.epoch, known.began_s = epoch, self._world.time_s
            known.ours.clear()
        return known

    def _settle(self, machine: Machine, persisted: Persisted) -> None:
        known, count = self._known_to(machine), 0
        for at, key in known.written:
            if at > persisted.number:
                break
            known.hold(key, self._world.time_s)
            count += 1
        del known.written[:count]

    def _on_entry(
        self, machine: Machine, known: Known, entry: Entry, key: FactKey | None
    ) -> None:
        disk, fact = machine.disk, entry.fact
        if isinstance(fact, Submitted) and fact.task not in disk.records:
            known.forget(fact.task)
        if known.epoch == NO_EPOCH or not _is_own(disk, entry.stream, known.epoch):
            return
        if isinstance(fact, Assigned):
            if fact.attempt.stream == entry.stream:
                self._may_begin(machine, known, fact.task, fact.attempt)
        elif key is not None and not (
            isinstance(fact, Finished) and key in _ends(disk.shown(fact.task))
        ):
            known.write(key)

    def _may_follow(self, machine: Machine, known: Known, record: TaskRecord) -> None:
        """The number of attempts never exceeds the task's limit for retries."""
        if record.spec is None:
            return
        rule, now_s = rule_of(record.spec), self._world.time_s
        failed = [
            attempt.outcome
            for attempt in record.attempts
            if attempt.outcome is not None and has_failed(attempt)
            if known.counts(_end(record.id, attempt.id, attempt.outcome), now_s)
        ]
        assert all(rule.on_failure or end.exit_code in rule.codes for end in failed), (
            f"{machine.id} tries again after {failed} of {record}"
        )
        assert len(failed) <= rule.retries, (
            f"{machine.id} tries again after {len(failed)} failures of {record}"
        )

    def _may_begin(
        self, machine: Machine, known: Known, task: TaskId, attempt: AttemptId
    ) -> None:
        """No attempt starts for a task that has ended or was cancelled."""
        disk, now_s = machine.disk, self._world.time_s
        record = disk.shown(task)
        if record is None or attempt in {one.id for one in record.attempts}:
            return  # The attempt was found at its worker, or is written again.
        assert not self._is_over(known, record), f"{machine.id} begins {record}"
        self._may_follow(machine, known, record)
        if (place := split_member_id(task)) is None:
            return
        array = disk.records[place[0]]
        is_cut = array.cancelled_by is not None and known.says(_cancel(array.id), now_s)
        assert not is_cut, f"{machine.id} begins {task} of {array}"
        most = array.spec.array.max_fails if array.spec and array.spec.array else None
        failed = [
            member.id
            for member in disk.members[array.id].values()
            if member.state is TaskState.FAILED and self._is_over(known, member)
        ]
        # Ends may arrive before their array; they count when the array is read.
        is_read = known.counts(_submission(array.id), now_s)
        assert not is_read or most is None or len(failed) <= most, (
            f"{machine.id} begins {task} after {failed} of {array}"
        )

    def _is_over(self, known: Known, record: TaskRecord) -> bool:
        now_s = self._world.time_s
        by = record.cancelled_by
        is_cancelled = by is not None and known.says(_cancel(record.id), now_s)
        is_decided = record.verdict_term and known.says(_verdict(record.id), now_s)
        return (
            is_cancelled
            or bool(is_decided)
            or any(
                attempt.outcome is not None
                and (attempt.state is AttemptState.OK or attempt.decided_term)
                and known.says(_end(record.id, attempt.id, attempt.outcome), now_s)
                for attempt in record.attempts
            )
        )


def rule_of(spec: TaskSpec) -> Retry:
    """Return the retry rule of a task."""
    retry = None if spec.options is None else spec.options.retry
    return retry or Retry()


def _is_own(disk: Disk, stream: StreamId, epoch: Epoch) -> bool:
    return disk.writers.get(stream) == epoch


def _key_of(fact: Fact) -> FactKey | None:
    """Return the key of a fact that counts here; None for any other fact."""
    if isinstance(fact, Finished):
        return _end(fact.task, fact.attempt, fact.outcome)
    if isinstance(fact, TaskCancelled):
        return _cancel(fact.task)
    if isinstance(fact, Decided):
        return _verdict(fact.task)
    if isinstance(fact, Submitted):
        return _submission(fact.task)
    return None


def _end(task: TaskId, attempt: AttemptId, outcome: Outcome) -> FactKey:
    return task, attempt, outcome.state


def _cancel(task: TaskId) -> FactKey:
    return task, None, AttemptState.CANCELLED


def _verdict(task: TaskId) -> FactKey:
    return task, None, AttemptState.OK


def _submission(task: TaskId) -> FactKey:
    return task, None, AttemptState.ASSIGNED


def _ends(record: TaskRecord | None) -> set[FactKey]:
    """Return the ends of attempts that a record contains."""
    attempts = () if record is None else record.attempts
    return {_end(record.id, a.id, a.outcome) for a in attempts if record and a.outcome}


def _whole(task: TaskId) -> TaskId:
    """Return the array of a member, or the task itself."""
    place = split_member_id(task)
    return task if place is None else place[0]


def has_failed(attempt: Attempt) -> bool:
    """Return True if an attempt failed by itself, and not by the loss of its worker."""
    reason = None if attempt.outcome is None else attempt.outcome.reason
    shown_reasons = (EndReason.LOST, EndReason.POISON, EndReason.INPUTS)
    return attempt.state is AttemptState.FAILED and reason not in shown_reasons


def failures_are_tried_again(world: World) -> None:
    """A failed task was tried as often as it asked for."""
    (dispatcher,) = world.dispatchers()
    for record in _all(world.machines[dispatcher].disk):
        chosen = record.deciding_attempt
        if record.state is not TaskState.FAILED or chosen is None or world.restored:
            continue
        assert record.spec is not None
        rule, failed = rule_of(record.spec), list(filter(has_failed, record.attempts))
        # The end of an attempt that was taken for lost may come after that of the next.
        is_meant = rule.on_failure or all(
            a.outcome is not None and a.outcome.exit_code in rule.codes for a in failed
        )
        if not rule.on_lost or _losses(record) >= LOSSES_MAX:
            continue  # Its losses ended it, perhaps before its failure was known.
        tries = len(failed)
        if is_forgetful(world):
            # A late report brings a forgotten task back, without its earlier attempts.
            tries = max(attempt.id.n for attempt in record.attempts)
        assert not (is_meant and has_failed(chosen)) or tries > rule.retries, (
            f"{record} was tried {tries} times"
        )


def _losses(record: TaskRecord) -> int:
    """Return how many attempts were lost; in a split, several run at one time."""
    outcomes = [attempt.outcome for attempt in record.attempts]
    return sum(o is not None and o.reason is EndReason.LOST for o in outcomes)


def arrays_add_up(world: World) -> None:
    """All nodes agree on an array's counts, and no member waits or runs.

    A node that forgot an array before it was copied elsewhere knows less of it. Still,
    no member of an ended array waits or runs there: the dispatcher repeats its end.
    """
    (dispatcher,) = world.dispatchers()
    disk = world.machines[dispatcher].disk
    for record in disk.records.values():
        if record.progress is None:
            continue
        assert record.spec is not None
        assert record.spec.array is not None
        numbers = map(record.spec.array.number, range(record.spec.array.count))
        members = [disk.shown(member_id(record.id, number)) for number in numbers]
        assert all(member and member.state.is_final for member in members), f"{record}"
        assert record.progress.total == len(members), f"{record}"
        for machine in world.machines.values():
            other = machine.disk
            theirs = other.records.get(record.id)
            if not theirs or other.vector() != disk.vector() or other.is_merging:
                continue
            is_alike = theirs.progress == record.progress
            if world.storage.is_gone(record.id):
                is_alike = theirs.state.is_final
            assert is_alike, f"{machine.id}: {theirs.progress} of {record}"


def _all(disk: Disk) -> list[TaskRecord]:
    """Return each task and each member on its own."""
    plain = [r for r in disk.records.values() if r.spec and r.progress is None]
    return [*plain, *disk.shown_members()]


TRIED = (failures_are_tried_again, arrays_add_up)
