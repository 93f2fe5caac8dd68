"""A disk in memory, which loses uncommitted writes in a crash.

It stands for the store, and passes the store's contract tests. `Disk` has the durable
state and the writes that wait for the next commit. Functions do the rest, sorted as in
the store: `folding`, `joining` and `purge` change a disk in a commit; `queue`,
`snapshot` and `plan` read committed state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from octaskly.core.effects import Append, MergeRows, Save, StageRows
from octaskly.core.events import PeerHint, SavedState
from octaskly.core.log.facts import NO_FLOOR, RANGE_FACTS, Entry, Floor, Recorded
from octaskly.core.log.merge import SubmissionTimes, TaskRecord, TaskRow
from octaskly.core.log.range_facts import member_entries
from octaskly.core.log.retired_streams import RetiredStreams
from octaskly.core.log.task_ages import ClockStep, ClockWatch
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import (
    NO_EPOCH,
    Address,
    AttemptId,
    Epoch,
    Moment,
    NodeId,
    StreamId,
    TaskId,
    Vector,
)
from octaskly.core.model.nodes import NO_HOLD, OperatorHold
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import Report, Snapshot
from tests.simulation.store.ages import FIRST_MOMENT, note_stored, watch_clock
from tests.simulation.store.folding import Kept, Place, enter, kept, learn, note
from tests.simulation.store.freeing import free_stdin, freed_entry
from tests.simulation.store.joining import (
    Staged,
    finish_merges,
    join_rows,
    stage_rows,
)
from tests.simulation.store.members import shown
from tests.simulation.store.purge import raise_floor

Write = Callable[[], None]


@dataclass
class Disk:
    """All durable state of one node, and the writes that wait for the next commit."""

    term: int = 0
    epoch: Epoch = NO_EPOCH
    name: str | None = None
    hold: OperatorHold = NO_HOLD
    log_version: int = 1
    streams: dict[StreamId, list[Entry]] = field(default_factory=dict)
    """The remaining entries, all beyond `starts`."""
    starts: Vector = field(default_factory=dict)
    writers: dict[StreamId, Epoch] = field(default_factory=dict)
    records: dict[TaskId, TaskRecord] = field(default_factory=dict)
    """Tasks, and arrays with their counts."""
    with_stdin: set[TaskId] = field(default_factory=set)
    """Tasks that may have stdin, which is freed at their end."""
    with_parents: dict[TaskId, None] = field(default_factory=dict)
    """Tasks that may have to wait for others, in the order of `records`."""
    members: dict[TaskId, dict[int, TaskRecord]] = field(default_factory=dict)
    """Facts of members, by array and number; each array is here."""
    births: dict[TaskId, SubmissionTimes] = field(default_factory=dict)
    changed: dict[TaskId, int] = field(default_factory=dict)
    now: Moment = FIRST_MOMENT  #: clocks of the machine, as seen last
    stored: dict[TaskId, int] = field(default_factory=dict)
    """Wall-clock times of storing, of tasks whose timestamps are not trusted."""
    steps: list[ClockStep] = field(default_factory=list)
    watch: ClockWatch = field(default_factory=lambda: watch_clock(FIRST_MOMENT))
    keys: dict[TaskId, int] = field(default_factory=dict)
    """The order in which tasks arrived."""
    keys_given: int = 0
    early: dict[TaskId, list[Entry]] = field(default_factory=dict)
    """Facts that cannot count until a submission is here."""
    notes: dict[tuple[str, str], tuple[Recorded, Place]] = field(default_factory=dict)
    """Records, each with its latest entry; stream 0: no entry here has it."""
    floor: Floor = NO_FLOOR
    retired: RetiredStreams = field(default_factory=RetiredStreams)
    """Streams of which nothing is left, and that the vector leaves out."""
    staged: dict[int, Staged] = field(default_factory=dict)
    """Snapshots of peers that are not merged yet, by number."""
    sent: dict[NodeId, tuple[int, list[Snapshot]]] = field(default_factory=dict)
    """Snapshots that peers get, each with its id and all its parts."""
    sent_count: int = 0  #: snapshots sent so far
    spool: dict[tuple[TaskId, AttemptId], Report] = field(default_factory=dict)
    peers: dict[NodeId, tuple[Address, ...]] = field(default_factory=dict)
    waiting: list[tuple[int | None, Write]] = field(default_factory=list)
    kept: set[Kept] = field(default_factory=set)  #: facts of the log and of the tasks
    hlc: int = 0
    sequence: int = 0
    ended: list[tuple[TaskId, int, TaskState]] = field(default_factory=list)
    """Ended tasks with the time and outcome; the world takes them out."""
    past: dict[TaskId, TaskState] = field(default_factory=dict)
    """Outcomes of forgotten tasks, which their children already know."""
    #: forgotten tasks; the reader takes them out
    gone: list[TaskRow] = field(default_factory=list)

    def saved(self) -> SavedState:
        """Return the state that a node receives at its start."""
        return SavedState(
            term=self.term,
            epoch=self.epoch,
            vector=self.vector(),
            epochs=self.epochs(),
            hlc=self.hlc,
            floor=self.floor,
            sequence=self.sequence,
            name=self.name,
            hold=self.hold,
            reports=tuple(self.spool.values()),
            peers=tuple(
                PeerHint(peer, where) for peer, where in self.peers.items() if where
            ),
            records=self.committed_records(),
            log_version=self.log_version,
            retired=self.retired.copy(),
        )

    def committed_records(self) -> tuple[Recorded, ...]:
        """Return the committed records."""
        return tuple(record for record, _ in self.notes.values())

    def copy(self) -> Disk:
        """Return a backup of this moment."""
        backup = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict | list | set):
                setattr(backup, name, copy.copy(value))
        backup.retired = self.retired.copy()
        backup.staged = {n: staged.copy() for n, staged in self.staged.items()}
        backup.streams = {stream: list(log) for stream, log in self.streams.items()}
        backup.early = {task: list(some) for task, some in self.early.items()}
        backup.members = {array: dict(some) for array, some in self.members.items()}
        backup.crash()
        return backup

    def vector(self) -> tuple[tuple[StreamId, int], ...]:
        """Return the committed vector."""
        held = ((stream, self.have(stream)) for stream in sorted(self.streams))
        return tuple((stream, seq) for stream, seq in held if seq)

    def have(self, stream: StreamId) -> int:
        """Return up to where a stream is held."""
        if stream not in self.streams:
            return self.retired.end_of(stream)
        return self.starts.get(stream, 0) + len(self.streams.get(stream, ()))

    def epochs(self) -> tuple[tuple[StreamId, Epoch], ...]:
        """Return who wrote which stream, of those that are not retired."""
        writers = sorted(self.writers.items())
        return tuple((s, epoch) for s, epoch in writers if s in self.streams)

    @property
    def is_merging(self) -> bool:
        """Return True if rows of a complete snapshot are still to be merged."""
        return any(staged.is_complete for staged in self.staged.values())

    # Tasks

    def has(self, task: TaskId) -> bool:
        """Return True if a task is here, or the array of a member."""
        place = split_member_id(task)
        return task in self.records if place is None else place[0] in self.members

    def shown(self, task: TaskId) -> TaskRecord | None:
        """Return a task, an array, or a member as derived from its array."""
        place = split_member_id(task)
        if place is None:
            return self.records.get(task)
        array, number = place
        said = self.members.get(array)
        return None if said is None else shown(self.records[array], number, said)

    def shown_members(
        self, is_wanted: Callable[[TaskRecord], bool] = lambda _raw: True
    ) -> Iterator[TaskRecord]:
        """Yield the members with facts of their own, if these facts alone match."""
        for array, said in self.members.items():
            for number in sorted(said):
                if not is_wanted(said[number]):
                    continue
                record = shown(self.records[array], number, said)
                assert record is not None, f"{array} has no member {number}"
                yield record

    def raw(self, task: TaskId) -> TaskRecord:
        """Return the facts about a task or a member alone."""
        place = split_member_id(task)
        if place is not None:
            return self.members[place[0]][place[1]]
        record = self.records[task]
        return replace(record, progress=None) if task in self.members else record

    @property
    def rows(self) -> int:
        """The number of tasks and members."""
        return len(self.records) + sum(map(len, self.members.values()))

    # Writing

    def append(self, effect: Append) -> None:
        """Queue entries for the next commit."""
        self.waiting.append((effect.number, lambda: self._append(effect)))

    def save(self, effect: Save) -> None:
        """Queue node state for the next commit."""
        self.waiting.append((effect.number, lambda: self._save(effect)))

    def stage(self, effect: StageRows) -> None:
        """Queue a part of a snapshot for the next commit."""
        self.waiting.append((effect.number, lambda: stage_rows(self, effect)))

    def join(self, effect: MergeRows) -> None:
        """Queue the merge of the next part for the next commit."""
        self.waiting.append((effect.number, lambda: join_rows(self, effect)))

    def keep(self, reports: tuple[Report, ...]) -> None:
        """Queue results for the spool."""
        items = {(r.task, r.attempt): r for r in reports}
        self.waiting.append((None, lambda: self.spool.update(items)))

    def forget(self, items: tuple[tuple[TaskId, AttemptId], ...]) -> None:
        """Queue the end of spooled results."""

        def write() -> None:
            for item in items:
                self.spool.pop(item, None)

        self.waiting.append((None, write))

    def start(self, now: Moment) -> None:
        """Watch the clock of a process that starts, and end interrupted merges."""
        self.now, self.watch = now, watch_clock(now)
        finish_merges(self)

    def record_clock_step(self, now: Moment) -> None:
        """Store a step of the wall clock."""
        step = self.watch.find_step(now)
        if step is not None:
            self.steps = [*self.steps, step]
        self.watch.follow_clock(now)
        self.now = now

    def commit(self, count: int, now: Moment) -> int | None:
        """Make the oldest `count` writes durable; return the highest number."""
        self.record_clock_step(now)
        done, self.waiting = self.waiting[:count], self.waiting[count:]
        numbers = []
        for number, write in done:
            write()
            if number is not None:
                numbers.append(number)
        free_stdin(self)
        return max(numbers, default=None)

    def crash(self) -> None:
        """Lose all uncommitted writes."""
        self.waiting = []
        self.sent = {}

    def _append(self, effect: Append) -> None:
        self.add_writers(effect.epochs)
        for entry in member_entries(effect.entries):
            stream = entry.stream
            assert stream in self.writers, "a stream that nobody wrote"
            if stream not in self.streams:
                if entry.seq <= self.retired.end_of(stream):
                    continue
                self.begin_at(stream, self.retired.end_of(stream))
            log = self.streams[stream]
            start = self.starts.get(stream, 0)
            end = start + len(log)
            if entry.seq <= end:
                known = entry if entry.seq <= start else log[entry.seq - start - 1]
                assert freed_entry(known) == freed_entry(entry), "one place, two facts"
                continue
            assert entry.seq == end + 1, "a gap in a stream"
            log.append(entry)
            self.hlc = max(self.hlc, entry.hlc)
            if isinstance(entry.fact, Floor):
                lacks = [
                    n for n in entry.fact.required_vector if n[1] > self.have(n[0])
                ]
                assert not lacks, f"a floor came before what it builds on: {lacks}"
                raise_floor(self, entry.fact)
            elif isinstance(entry.fact, Recorded):
                note(self, entry.fact, (entry.hlc, stream, entry.seq))
                self.kept.add(kept(entry.fact))
            else:
                assert not isinstance(entry.fact, RANGE_FACTS)
                enter(self, entry, entry.fact)
                note_stored(self, entry.fact.task)

    def _save(self, effect: Save) -> None:
        if effect.term is not None:
            self.term = effect.term
        if effect.epoch is not None:
            self.epoch = effect.epoch
        if effect.stream is not None:
            stream, epoch = effect.stream
            assert stream not in self.writers, "a stream id was used twice"
            self.writers[stream] = epoch
            self.streams.setdefault(stream, [])
        if effect.name is not None:
            self.name = effect.name
        if effect.hold is not None:
            self.hold = effect.hold
        if effect.log_version is not None:
            self.log_version = effect.log_version
        learn(self, effect.records)

    def add_writers(self, pairs: tuple[tuple[StreamId, Epoch], ...]) -> None:
        """Note the writers of streams."""
        for stream, epoch in pairs:
            known = self.writers.setdefault(stream, epoch)
            assert known == epoch, f"stream {stream} has two writers"
            if stream not in self.retired:
                self.streams.setdefault(stream, [])

    def begin_at(self, stream: StreamId, seq: int) -> None:
        """Hold a stream up to here, without the entries, unless more is held."""
        if seq > self.have(stream) or stream not in self.streams:
            self.starts[stream] = seq
            self.streams[stream] = []
