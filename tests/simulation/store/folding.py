"""Facts of the log, folded into tasks and records by the function that the store uses.

Facts that come before their task's submission wait in `early`. `kept` names the
promises of a fact that is durable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octaskly.core.log.facts import (
    Decided,
    Entry,
    Fact,
    Finished,
    Recorded,
    Submitted,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import SubmissionTimes, apply_fact, join_submission_times
from octaskly.core.log.mesh_records import earlier_record
from octaskly.core.log.range_facts import task_entries
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.core.node.log_receiver import highest_id_sequence
from tests.simulation.store.freeing import has_stdin
from tests.simulation.store.members import counted

if TYPE_CHECKING:
    from tests.simulation.store.disk import Disk

Kept = tuple[type[Fact], TaskId, AttemptId | None]
"""A promise to a client or a worker: a fact of this kind is in the log."""
Place = tuple[int, StreamId, int]  #: the time of an entry, and its position
NOWHERE: Place = (0, StreamId(0), 0)  #: the position of facts that no entry here has
ENDING = (Finished, TaskCancelled, Decided)  #: kinds of facts that end a task


def kept(fact: Fact) -> Kept:
    """Return the promises that a durable fact makes."""
    if isinstance(fact, Recorded):
        return Recorded, TaskId(f"{fact.kind}/{fact.key}"), None
    return kept_of_task(fact)


def kept_of_task(fact: Fact) -> Kept:
    """Return the promises that a durable fact about a task makes."""
    return type(fact), fact.task, getattr(fact, "attempt", None)


def enter(disk: Disk, entry: Entry, fact: TaskFact) -> None:
    """Fold the fact of an entry, or set it aside until it can count."""
    disk.kept.add(kept_of_task(fact))
    if isinstance(fact, Submitted):
        fold_submission(
            disk, fact, SubmissionTimes(entry.hlc, entry.hlc, entry.stream, entry.seq)
        )
    else:
        fold_or_wait(disk, entry, fact)


def fold_or_wait(disk: Disk, entry: Entry, fact: TaskFact) -> None:
    """Fold the fact of an entry, or set it aside until its task is here."""
    if disk.has(fact.task):
        fold(disk, fact, entry.hlc)
    else:
        disk.early.setdefault(fact.task, []).append(entry)


def fold_submission(disk: Disk, fact: Submitted, birth: SubmissionTimes) -> None:
    """Fold a submission, and the earlier facts that count from now on."""
    task = fact.task
    joined = join_submission_times(disk.births.get(task), birth)
    assert joined is not None
    disk.births[task] = joined
    if task not in disk.keys:
        disk.keys_given += 1
        disk.keys[task] = disk.keys_given
    disk.sequence = max(disk.sequence, highest_id_sequence((task,)))
    waiting = [task]
    if fact.spec.array is not None:
        disk.members.setdefault(task, {})
        waiting += [early for early in disk.early if _array_of(early) == task]
    fold(disk, fact, birth.last_hlc)
    spec = disk.records[task].spec
    assert spec is not None
    if has_stdin(spec):
        disk.with_stdin.add(task)
    if spec.options is not None and spec.options.after is not None:
        disk.with_parents.setdefault(task)
    for early in waiting:
        for entry in disk.early.pop(early, ()):
            for _, later in task_entries([entry]):
                fold(disk, later, entry.hlc)


def fold(disk: Disk, fact: TaskFact, hlc: int) -> None:
    """Apply a fact about a task that is here."""
    task = fact.task
    disk.changed[task] = max(disk.changed.get(task, 0), hlc)
    place = split_member_id(task)
    if place is None:
        disk.records[task] = apply_fact(disk.records.get(task), fact)
    else:
        task, number = place
        said = disk.members[task]
        said[number] = apply_fact(said.get(number), fact)
        disk.changed[task] = max(disk.changed[task], hlc)
    record = disk.records[task]
    if task in disk.members:
        record = disk.records[task] = counted(record, disk.members[task])
    if type(fact) in ENDING and record.state.is_final:
        disk.ended.append((task, hlc, record.state))


def learn(disk: Disk, records: tuple[Recorded, ...]) -> set[Kept]:
    """Join records that the log here does not have."""
    for record in records:
        note(disk, record, NOWHERE)
    return set(map(kept, records))


def note(disk: Disk, record: Recorded, place: Place) -> None:
    """Join a record; of two entries with it, the later one counts."""
    key = (record.kind, record.key)
    known, at = disk.notes.get(key, (record, place))
    if known == record:
        disk.notes[key] = record, max(at, place)
    elif earlier_record(known, record) == record:
        disk.notes[key] = record, place


def _array_of(task: TaskId) -> TaskId | None:
    """Return the array of a member."""
    place = split_member_id(task)
    return None if place is None else place[0]
