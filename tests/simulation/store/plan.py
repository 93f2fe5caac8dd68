"""Compaction plans: how far the floor may rise, and the facts to write again before.

Steps are small here, so that a few tasks need several. A plan changes nothing. The
dispatcher writes it, and `purge` acts on the written entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from octaskly.core.effects import PlanFloor
from octaskly.core.events import FloorPlanned
from octaskly.core.log.facts import (
    MESH_FACTS,
    Finished,
    Floor,
    Recorded,
    StreamFloor,
)
from octaskly.core.log.merge import (
    SubmissionTimes,
    TaskRecord,
    record_of,
    with_array_cancelled,
)
from octaskly.core.log.mesh_records import is_expired
from octaskly.core.model.hlc import wall_ms_of
from octaskly.core.model.ids import StreamId, TaskId, Vector
from tests.simulation.store.ages import task_ages
from tests.simulation.store.purge import floors_of, seqs_of
from tests.simulation.store.queue import is_any_live

if TYPE_CHECKING:
    from tests.simulation.store.disk import Disk

STREAMS_KEPT = 6  #: beyond, streams without facts about tasks are passed at once
STEP_TASKS = 6  #: tasks that one step of the floor passes
HELD_MAX = 8  #: started members of an array that may be carried before its end


def plan_floor(disk: Disk, ask: PlanFloor) -> FloorPlanned:
    """Find the next step of the floor, like the port of that name."""
    if disk.is_merging:
        return FloorPlanned(None, has_more=True)
    if loose := _upto(disk, {StreamId(0): 0}, ask.wall_ms):
        return FloorPlanned(None, has_more=True, records=loose)
    floors, horizon, latest, forgotten, is_over = floors_of(disk), 0, 0, 0, True
    births, carried = list[SubmissionTimes](), list[TaskRecord]()
    doubtful: list[TaskId] = []  # Ended, and submitted again, perhaps beyond the cut.
    until, ended = 1 << 62, _count_ended(disk)
    surplus = ended - ask.tasks_max
    order = sorted((birth.first_hlc, task) for task, birth in disk.births.items())
    for passed, (born, task) in enumerate(order):
        birth, whole = disk.births[task], _whole(disk, task)
        changed, is_ended = disk.changed[task], _is_ended(disk, task)
        is_requested = ended > 0 and (changed if is_ended else born) < ask.purge_hlc
        is_aged = (_since_hlc(disk, task) if is_ended else born) < ask.before_hlc
        must_pass = not is_ended and born < latest
        is_old = surplus > 0 or is_aged or is_requested or must_pass
        is_full = passed >= STEP_TASKS
        is_stuck = is_full or (len(whole) > 1 + HELD_MAX and not is_ended)
        if born > horizon and (not is_old or is_stuck):
            is_over, until = not (is_old and is_full), born - 1
            break
        is_passed = birth.last_hlc <= max(born, horizon) and is_old
        if is_ended and (is_passed or birth.seq <= floors.get(birth.stream, 0)):
            surplus, ended = surplus - len(whole), ended - len(whole)
            forgotten, latest = forgotten + len(whole), max(latest, changed)
        elif is_ended and is_old:
            doubtful.append(task)
        else:
            carried += whole
        horizon = max(horizon, born)
        births.append(birth)
    if not horizon:
        return _without_tasks(disk, ask)
    latest = max([latest, *(disk.changed[task] for task in doubtful)])
    horizon = max(horizon, min(latest, until))
    gone = [task for task in doubtful if disk.births[task].last_hlc <= horizon]
    forgotten += sum(len(_whole(disk, task)) for task in gone)
    carried += [r for t in doubtful if t not in gone for r in _whole(disk, t)]
    marks = _marks(disk, horizon, _last_submissions(births, horizon))
    marks, has_more = _with_taskless(disk, ask, marks)
    floor = Floor(horizon, marks, retired=_retirable(disk, ask))
    planned = FloorPlanned(
        floor, tuple(carried), has_more or not is_over, purged_count=forgotten
    )
    return _with_results(disk, _with_records(disk, planned, floor, ask), ask)


def _last_submissions(births: list[SubmissionTimes], horizon: int) -> Vector:
    """Return the number of the last submission up to the horizon, by stream."""
    last = Vector()
    for birth in births:
        if birth.last_hlc <= horizon:
            last[birth.stream] = max(last.get(birth.stream, 0), birth.seq)
    return last


def _since_hlc(disk: Disk, task: TaskId) -> int:
    """Return the timestamp from which the age of an ended task counts."""
    stored_ms = disk.stored.get(task, 0)
    return task_ages(disk).since_hlc(disk.changed[task], stored_ms)


def _with_records(
    disk: Disk, planned: FloorPlanned, floor: Floor, ask: PlanFloor
) -> FloorPlanned:
    """Plan records below a floor to be written again, before it if they are many."""
    below = _upto(disk, seqs_of(floor), ask.wall_ms)
    if len(below) == STEP_TASKS:
        return FloorPlanned(None, has_more=True, records=below)
    return replace(planned, records=below)


def _with_results(disk: Disk, planned: FloorPlanned, ask: PlanFloor) -> FloorPlanned:
    """Plan results of tasks that only other nodes know, before a floor if many."""
    if planned.floor is None:
        return planned
    results = _results_from_elsewhere(disk, seqs_of(planned.floor), ask)
    if len(results) > STEP_TASKS:
        return FloorPlanned(None, results[:STEP_TASKS], has_more=True)
    return replace(planned, carried=planned.carried + results)


def _results_from_elsewhere(
    disk: Disk, seqs: Vector, ask: PlanFloor
) -> tuple[TaskRecord, ...]:
    """Return results up to there, except those that are beyond it as well."""
    before_ms = wall_ms_of(ask.before_hlc) if ask.is_log_complete else 0
    above, below = set[Finished](), list[Finished]()
    for entry in (entry for some in disk.early.values() for entry in some):
        fact = entry.fact
        if not isinstance(fact, Finished):
            continue
        if entry.seq > seqs.get(entry.stream, 0):
            above.add(fact)
        elif disk.have(fact.attempt.stream) < fact.attempt.seq:
            ended_ms = fact.outcome.ended_ms
            if ended_ms is None or ended_ms >= before_ms:
                below.append(fact)
    return tuple(record_of(fact) for fact in below if fact not in above)


def _marks(disk: Disk, horizon: int, last: Vector) -> tuple[StreamFloor, ...]:
    """Return for each stream the last entry up to the horizon."""
    floors = seqs_of(disk.floor)
    marks = []
    for stream in sorted(disk.streams):
        floor = max(floors.get(stream, 0), last.get(stream, 0))
        start = disk.starts.get(stream, 0)
        seq = max(floor, start)
        for entry in disk.streams[stream][seq - start :]:
            if entry.hlc > horizon:
                break
            seq = entry.seq
        if seq == start > floor:
            # The log begins later, and knows nothing about the time before.
            seq = floor
        if seq:
            marks.append(StreamFloor(stream, seq, disk.writers[stream]))
    return tuple(marks)


def _without_tasks(disk: Disk, ask: PlanFloor) -> FloorPlanned:
    """Plan a floor that passes no task, if there is reason for one."""
    marks, has_more = _with_taskless(disk, ask, ())
    retired = _retirable(disk, ask)
    if not marks and not retired:
        return FloorPlanned(None)
    floor = Floor(0, marks, retired=retired)
    return _with_records(disk, FloorPlanned(floor, has_more=has_more), floor, ask)


def _with_taskless(
    disk: Disk, ask: PlanFloor, marks: tuple[StreamFloor, ...]
) -> tuple[tuple[StreamFloor, ...], bool]:
    """Pass streams that say nothing of tasks, if there are many streams."""
    if len(disk.vector()) <= STREAMS_KEPT:
        return marks, False
    floors = seqs_of(disk.floor)
    joined = {mark.stream: mark for mark in marks}
    taskless = []
    for stream, log in disk.streams.items():
        start, floor = disk.starts.get(stream, 0), floors.get(stream, 0)
        if stream == ask.stream or start > floor or not log:
            continue
        if all(isinstance(entry.fact, MESH_FACTS) for entry in log):
            taskless.append(StreamFloor(stream, log[-1].seq, disk.writers[stream]))
    joined |= {mark.stream: mark for mark in taskless}
    return tuple(joined[stream] for stream in sorted(joined)), bool(taskless)


def _retirable(disk: Disk, ask: PlanFloor) -> tuple[tuple[StreamId, int], ...]:
    """Return streams of which all is void."""
    floors = seqs_of(disk.floor)
    found = (
        (stream, seq)
        for stream, seq in disk.vector()
        if seq == floors.get(stream) and stream != ask.stream
    )
    return tuple(found)[:STEP_TASKS]


def _whole(disk: Disk, task: TaskId) -> list[TaskRecord]:
    """Return all facts about a task; an array comes behind its members."""
    said = disk.members.get(task, {})
    return [*(said[number] for number in sorted(said)), disk.raw(task)]


def _upto(disk: Disk, seqs: Vector, today_ms: int) -> tuple[Recorded, ...]:
    """Return records that only entries up to there hold."""
    found = [
        record
        for record, (_, stream, seq) in disk.notes.values()
        if seq <= seqs.get(stream if stream in disk.streams else StreamId(0), -1)
        if not is_expired(record, today_ms)
    ]
    return tuple(found[:STEP_TASKS])


def _count_ended(disk: Disk) -> int:
    ended = sum(_is_over(disk, record) for record in disk.records.values())
    return ended + sum(
        with_array_cancelled(raw, disk.records[array].cancelled_by).state.is_final
        for array, said in disk.members.items()
        for raw in said.values()
    )


def _is_ended(disk: Disk, task: TaskId) -> bool:
    """Return True if a task is over and no other one waits for it or its outputs."""
    record = disk.records[task]
    if not _is_over(disk, record):
        return False
    waits = (disk.records[child].waits_for for child in disk.with_parents)
    if any(wait is not None and task in wait.tasks for wait in waits):
        return False
    if record.spec is None or not record.spec.outputs:
        return True
    return not any(_gets_outputs(other, task) for other in disk.records.values())


def _gets_outputs(record: TaskRecord, task: TaskId) -> bool:
    options = None if record.spec is None else record.spec.options
    if options is None or record.state.is_final:
        return False
    return task in options.outputs_of


def _is_over(disk: Disk, record: TaskRecord) -> bool:
    return record.state.is_final and not is_any_live(disk, record)
