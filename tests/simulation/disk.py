"""A disk in memory: what is not committed is gone after a crash.

It stands for the store: entries join into records by the same pure function, reads
see what is committed, and what lies below the floor goes at once with it.
"""

from __future__ import annotations

import copy
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from octaskly.core.arrays import member_id, member_of
from octaskly.core.effects import (
    Append,
    Join,
    Load,
    LoadLive,
    LoadRipe,
    PlanFloor,
    Save,
)
from octaskly.core.events import Advert, FloorPlanned, Loaded, Ripe, RipeLoaded, Saved
from octaskly.core.facts import (
    NO_FLOOR,
    CancelAsked,
    Entry,
    Fact,
    Finished,
    Floor,
    Mark,
    Recorded,
    Submitted,
    TaskFact,
)
from octaskly.core.inbound import highest_number
from octaskly.core.merge import (
    Birth,
    TaskRecord,
    TaskRow,
    apply,
    facts_of,
    join_births,
    join_floors,
)
from octaskly.core.messages import WHOLE, Cursor, Report, Snapshot, SnapshotHead
from octaskly.core.model import (
    NO_EPOCH,
    NO_HOLD,
    Address,
    AttemptId,
    Epoch,
    Hold,
    NodeId,
    StreamId,
    TaskId,
    TaskState,
    Vector,
)
from octaskly.core.records import first, is_over
from octaskly.core.timestamps import born_hlc
from tests.builders import answer
from tests.simulation.members import (
    BORN,
    MEMBERS,
    ROOM,
    counted,
    is_live,
    shown,
    with_rest,
)

ALL_LIVE = LoadLive()
Write = Callable[[], None]
Kept = tuple[type[Fact], TaskId, AttemptId | None]
Place = tuple[int, StreamId, int]
NOWHERE: Place = (0, StreamId(0), 0)
"""What a client or a worker may rely on: that a fact of a kind stands in the log."""

GOOD = {
    "success": {TaskState.COMPLETED},
    "failure": {TaskState.FAILED, TaskState.CANCELLED},
    "any": {TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED},
}
ENDING = (Finished, CancelAsked)  #: kinds of facts that end a task
PART_ROWS = 3  #: in one part of a snapshot, few so that several are needed
LAG_ENTRIES = 60  #: fewer are always given as entries
STEP_TASKS = 6  #: that one step of the floor passes
HELD_MAX = 8  #: members that have begun of an array that may be carried before its end


@dataclass
class Disk:
    """Everything durable of one node, and what waits for the next commit."""

    term: int = 0
    epoch: Epoch = NO_EPOCH
    name: str | None = None
    hold: Hold = NO_HOLD
    log_version: int = 1
    streams: dict[StreamId, list[Entry]] = field(default_factory=dict)
    """The entries that are left, all beyond `starts`."""
    starts: Vector = field(default_factory=dict)
    writers: dict[StreamId, Epoch] = field(default_factory=dict)
    records: dict[TaskId, TaskRecord] = field(default_factory=dict)
    """Tasks and arrays, of which each says how far it is."""
    members: dict[TaskId, dict[int, TaskRecord]] = field(default_factory=dict)
    """What was said of members, by array and number; each array is here."""
    births: dict[TaskId, Birth] = field(default_factory=dict)
    changed: dict[TaskId, int] = field(default_factory=dict)
    keys: dict[TaskId, int] = field(default_factory=dict)
    """In which order tasks came here."""
    keys_given: int = 0
    early: dict[TaskId, list[Entry]] = field(default_factory=dict)
    """What cannot count until a submission is here."""
    notes: dict[tuple[str, str], tuple[Recorded, Place]] = field(default_factory=dict)
    """Records, each with the latest entry that says it; stream 0: none here does."""
    floor: Floor = NO_FLOOR
    stands_for: Vector = field(default_factory=dict)
    """What rows of snapshots say, which may be more than the log holds."""
    spool: dict[tuple[TaskId, AttemptId], Report] = field(default_factory=dict)
    peers: dict[NodeId, tuple[Address, ...]] = field(default_factory=dict)
    waiting: list[tuple[int | None, Write]] = field(default_factory=list)
    kept: set[Kept] = field(default_factory=set)  #: what the log and the tasks say
    loose: dict[int, set[Kept]] = field(default_factory=dict)
    """The same of rows, by snapshot, until its last part brings the vector."""
    hlc: int = 0
    sequence: int = 0
    ended: list[tuple[TaskId, int, TaskState]] = field(default_factory=list)
    """Tasks that came to an end here, when and how; the world takes them away."""
    past: dict[TaskId, TaskState] = field(default_factory=dict)
    """How forgotten tasks had ended: those after them have taken note of it."""
    gone: list[TaskRow] = field(default_factory=list)  #: forgotten; taken away as well

    def saved(self) -> Saved:
        """Return what a node is told at its start."""
        return Saved(
            term=self.term,
            epoch=self.epoch,
            vector=self.vector(),
            ahead=self.ahead(),
            epochs=tuple(sorted(self.writers.items())),
            hlc=self.hlc,
            floor=self.floor,
            sequence=self.sequence,
            queued=len(self.queued()),
            name=self.name,
            hold=self.hold,
            reports=tuple(self.spool.values()),
            peers=tuple(Advert(peer, where) for peer, where in self.peers.items()),
            records=self.told(),
            log_version=self.log_version,
        )

    def told(self) -> tuple[Recorded, ...]:
        """Return the records that are committed."""
        return tuple(record for record, _ in self.notes.values())

    def copy(self) -> Disk:
        """Return what a backup of this moment holds."""
        backup = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict | list | set):
                setattr(backup, name, copy.copy(value))
        backup.streams = {stream: list(log) for stream, log in self.streams.items()}
        backup.early = {task: list(some) for task, some in self.early.items()}
        backup.members = {array: dict(some) for array, some in self.members.items()}
        backup.crash()
        return backup

    def vector(self) -> tuple[tuple[StreamId, int], ...]:
        """Return what is committed, per stream."""
        held = ((stream, self.have(stream)) for stream in sorted(self.streams))
        return tuple((stream, seq) for stream, seq in held if seq)

    def have(self, stream: StreamId) -> int:
        """Return up to where a stream is held."""
        return self.starts.get(stream, 0) + len(self.streams.get(stream, ()))

    def ahead(self) -> tuple[tuple[StreamId, int], ...]:
        """Return what rows stand for beyond the log."""
        stands_for = sorted(self.stands_for.items())
        return tuple((s, seq) for s, seq in stands_for if seq > self.have(s))

    # Writing

    def append(self, effect: Append) -> None:
        """Queue entries for the next commit."""
        self.waiting.append((effect.number, lambda: self._append(effect)))

    def save(self, effect: Save) -> None:
        """Queue node state for the next commit."""
        self.waiting.append((effect.number, lambda: self._save(effect)))

    def join(self, effect: Join) -> None:
        """Queue rows of a snapshot for the next commit."""
        self.waiting.append((effect.number, lambda: self._join(effect)))

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

    def commit(self, count: int) -> int | None:
        """Make the oldest `count` writes durable; return the highest number."""
        done, self.waiting = self.waiting[:count], self.waiting[count:]
        numbers = []
        for number, write in done:
            write()
            if number is not None:
                numbers.append(number)
        return max(numbers, default=None)

    def crash(self) -> None:
        """Lose what was not committed."""
        self.waiting = []
        self.loose = {}

    def _append(self, effect: Append) -> None:
        self._add_writers(effect.epochs)
        for entry in effect.entries:
            stream = entry.stream
            assert stream in self.writers, "a stream that nobody wrote"
            log = self.streams.setdefault(stream, [])
            start = self.starts.get(stream, 0)
            if entry.seq <= start + len(log):
                assert entry.seq <= start or log[entry.seq - start - 1] == entry, (
                    "one place, two facts"
                )
                continue
            assert entry.seq == start + len(log) + 1, "a gap in a stream"
            log.append(entry)
            self.hlc = max(self.hlc, entry.hlc)
            if isinstance(entry.fact, Floor):
                lacks = [n for n in entry.fact.needs if n[1] > self.have(n[0])]
                assert not lacks, f"a floor came before what it builds on: {lacks}"
                self._raise(entry.fact)
            elif isinstance(entry.fact, Recorded):
                self._note(entry.fact, (entry.hlc, stream, entry.seq))
                self.kept.add(kept(entry.fact))
            else:
                self._enter(entry, entry.fact)

    def _learn(self, records: tuple[Recorded, ...]) -> set[Kept]:
        """Join records that the log here does not say."""
        for record in records:
            self._note(record, NOWHERE)
        return set(map(kept, records))

    def _note(self, record: Recorded, place: Place) -> None:
        """Join a record; of two entries that say it, the later one counts."""
        key = (record.kind, record.key)
        known, at = self.notes.get(key, (record, place))
        if known == record:
            self.notes[key] = record, max(at, place)
        elif first(known, record) == record:
            self.notes[key] = record, place

    def _add_writers(self, pairs: tuple[tuple[StreamId, Epoch], ...]) -> None:
        for stream, epoch in pairs:
            known = self.writers.setdefault(stream, epoch)
            assert known == epoch, f"stream {stream} has two writers"
            self.streams.setdefault(stream, [])

    def _enter(self, entry: Entry, fact: TaskFact) -> None:
        """Fold the fact of an entry, or set it aside until it can count."""
        task = fact.task
        self.kept.add(kept(fact))
        if isinstance(fact, Submitted):
            self._bear(fact, Birth(entry.hlc, entry.hlc, entry.stream, entry.seq))
        elif self._has(task):
            self._fold(fact, entry.hlc)
        else:
            self.early.setdefault(task, []).append(entry)

    def _has(self, task: TaskId) -> bool:
        """Whether a task is here, or the array of a member."""
        place = member_of(task)
        return task in self.records if place is None else place[0] in self.members

    def _bear(self, fact: Submitted, birth: Birth) -> None:
        """Fold a submission, and what came before it and counts now."""
        task = fact.task
        joined = join_births(self.births.get(task), birth)
        assert joined is not None
        self.births[task] = joined
        if task not in self.keys:
            self.keys_given += 1
            self.keys[task] = self.keys_given
        self.sequence = max(self.sequence, highest_number((task,)))
        waiting = [task]
        if fact.spec.array is not None:
            self.members.setdefault(task, {})
            waiting += [early for early in self.early if _array_of(early) == task]
        self._fold(fact, birth.reborn)
        for early in waiting:
            for entry in self.early.pop(early, ()):
                assert not isinstance(entry.fact, Floor | Recorded)
                self._fold(entry.fact, entry.hlc)

    def _fold(self, fact: TaskFact, hlc: int) -> None:
        task = fact.task
        self.changed[task] = max(self.changed.get(task, 0), hlc)
        place = member_of(task)
        if place is None:
            self.records[task] = apply(self.records.get(task), fact)
        else:
            task, number = place
            said = self.members[task]
            said[number] = apply(said.get(number), fact)
            self.changed[task] = max(self.changed[task], hlc)
        record = self.records[task]
        if task in self.members:
            record = self.records[task] = counted(record, self.members[task])
        if isinstance(fact, ENDING) and record.state.is_final:
            self.ended.append((task, hlc, record.state))

    def _join(self, effect: Join) -> None:
        """Take a peer's rows in, and with the last ones its vector."""
        head = effect.head
        floors = _seqs(head.floor)
        loose = self.loose.setdefault(head.hlc, set())
        for row in map(self._living, effect.rows):
            if row is None or row.record.spec is None:
                continue
            task = row.record.id
            mine = self.records.get(task)
            if mine and mine.spec and mine.spec.ord != row.record.spec.ord:
                birth = self.births[task]
                if birth.seq <= floors.get(birth.stream, 0):
                    self._drop(task)  # The id is used again.
            self._drop_early(task, floors)
            for fact in facts_of(row.record):
                loose.add(kept(fact))
                if isinstance(fact, Submitted):
                    self._bear(fact, row.birth)
                else:
                    self._fold(fact, row.changed)
            self.changed[task] = max(self.changed[task], row.changed)
        for row in (row for row in effect.rows if member_of(row.record.id)):
            loose |= self._join_member(row, floors)
        loose |= self._learn(effect.records)
        for stream, seq in effect.vector:
            self.stands_for[stream] = max(self.stands_for.get(stream, 0), seq)
        if effect.is_last:
            self._end_join(head)

    def _end_join(self, head: SnapshotHead) -> None:
        """Hold all that the rows stand for, without the entries."""
        self.kept |= self.loose.pop(head.hlc)
        self._add_writers(head.epochs)
        for stream, seq in head.vector:
            self._begin_at(stream, seq)
        self.hlc = max(self.hlc, head.hlc)
        self._raise(head.floor)

    def _join_member(self, row: TaskRow, floors: Vector) -> set[Kept]:
        """Take in what a peer knows of a member, if its array is here."""
        task = row.record.id
        self._drop_early(task, floors)
        facts = facts_of(row.record) if self._has(task) else ()
        for fact in facts:
            self._fold(fact, row.changed)
        return set(map(kept, facts))

    def _living(self, row: TaskRow) -> TaskRow | None:
        """Return a row; of a void one what it adds to a task that lives on here."""
        if not self._is_void(row.birth, row.changed):
            return row
        mine = self.records.get(row.record.id)
        if mine is None or not (mine.spec and row.record.spec):
            return None
        is_same = mine.spec.ord == row.record.spec.ord
        return replace(row, birth=self.births[mine.id]) if is_same else None

    def _begin_at(self, stream: StreamId, seq: int) -> None:
        """Hold a stream up to here, without the entries, unless more is held."""
        if seq > self.have(stream):
            self.starts[stream] = seq
            self.streams[stream] = []

    def _raise(self, floor: Floor) -> None:
        """Forget what is void from now on."""
        self.floor = join_floors(self.floor, floor)
        self._add_writers(tuple((mark.stream, mark.epoch) for mark in floor.marks))
        floors = _seqs(self.floor)
        for stream, seq in floors.items():
            if seq > (start := self.starts.get(stream, 0)):
                self._begin_at(stream, seq)
                self.streams[stream] = self.streams[stream][max(0, seq - start) :]
                self.starts[stream] = max(seq, self.starts.get(stream, 0))
        horizon = self.floor.horizon
        for task, birth in list(self.births.items()):
            if self._is_void(birth, self.changed[task]):
                self._drop(task)
            elif birth.born <= horizon:
                # Its turn comes with its latest submission, or with its last fact.
                is_below = birth.seq <= floors.get(birth.stream, 0)
                turn = self.changed[task] if is_below else birth.reborn
                self.births[task] = birth._replace(born=turn)
        for task in list(self.early):
            self._drop_early(task, floors)

    def _is_void(self, birth: Birth, changed: int) -> bool:
        floor = _seqs(self.floor).get(birth.stream, 0)
        return birth.seq <= floor and changed <= self.floor.horizon

    def _drop(self, task: TaskId) -> None:
        record = self.records.pop(task)
        self.past[task] = record.state
        del self.keys[task]
        self.kept -= {kept(fact) for fact in facts_of(record)}
        for number, member in self.members.pop(task, {}).items():
            self.kept -= {kept(fact) for fact in facts_of(member)}
            del self.changed[member_id(task, number)]
        row = TaskRow(record, self.births.pop(task), self.changed.pop(task))
        self.gone.append(row)

    def _drop_early(self, task: TaskId, floors: Vector) -> None:
        """Let go of what is below the floor, of a task that is not here."""
        left = []
        for entry in self.early.pop(task, ()):
            if entry.seq > floors.get(entry.stream, 0):
                left.append(entry)
            else:
                self.kept.discard(kept(entry.fact))
        if left:
            self.early[task] = left

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
        self._learn(effect.records)
        for stream, seq in effect.retold:
            if self.stands_for.get(stream, 0) <= seq:
                self.stands_for.pop(stream, None)

    # Reading

    def shown(self, task: TaskId) -> TaskRecord | None:
        """Return a task, an array, or a member as it follows from its array."""
        place = member_of(task)
        if place is None:
            return self.records.get(task)
        array, number = place
        said = self.members.get(array)
        return None if said is None else shown(self.records[array], number, said)

    def shown_members(self) -> Iterator[TaskRecord]:
        """Yield the members of whom anything is said."""
        for array, said in self.members.items():
            for number in sorted(said):
                record = shown(self.records[array], number, said)
                assert record is not None, f"{array} has no member {number}"
                yield record

    def _raw(self, task: TaskId) -> TaskRecord:
        """Return what the facts about a task or a member say, and nothing else."""
        place = member_of(task)
        if place is not None:
            return self.members[place[0]][place[1]]
        record = self.records[task]
        return replace(record, progress=None) if task in self.members else record

    @property
    def rows(self) -> int:
        """How many tasks and members it holds."""
        return len(self.records) + sum(map(len, self.members.values()))

    def _keys(self) -> dict[TaskId, int]:
        """Return the place of each row, in order: members come behind all tasks."""
        keys = dict(self.keys) if self.members else self.keys
        for array, key in self.keys.items() if self.members else ():
            asked = self.records[array].spec
            for number in sorted(self.members.get(array, ())):
                assert asked is not None
                assert asked.array is not None
                position = asked.array.position(number)
                assert position is not None
                keys[member_id(array, number)] = MEMBERS + key * ROOM + position
        return keys

    def queued(self) -> list[TaskRecord]:
        """Return the tasks that wait, in queue order: an array before its members."""
        waiting = [
            self._with_rest(record)
            for record in self.records.values()
            if record.spec is not None
            and record.state is TaskState.QUEUED
            and record.waits_for is None
        ]
        members = self.shown_members()
        waiting += (r for r in members if r.state is TaskState.QUEUED)
        return sorted(waiting, key=_place)

    def _with_rest(self, record: TaskRecord) -> TaskRecord:
        said = self.members.get(record.id)
        return record if said is None else with_rest(record, said)

    def load(self, asked: Load) -> Loaded:
        """Read the next queued tasks of a shape."""
        return answer(self.queued(), asked)

    def live(self, ask: LoadLive = ALL_LIVE) -> tuple[TaskRecord, ...]:
        """Read tasks that run, are decided while one still does, or are named."""
        found = [
            self._with_rest(record)
            for record in self.records.values()
            if record.state is TaskState.RUNNING
            or self._is_live(record)
            or record.id in ask.named
        ]
        for record in self.shown_members():
            is_running = record.state is TaskState.RUNNING
            if is_running or is_live(record) or record.id in ask.named:
                found.append(record)
        return tuple(found)

    def _is_live(self, record: TaskRecord) -> bool:
        """Whether the latest attempt has no end, or that of a member."""
        said = self.members.get(record.id)
        return is_live(record) or (
            said is not None and any(map(is_live, said.values()))
        )

    def ripe(self, ask: LoadRipe) -> RipeLoaded:
        """Read tasks whose wait for others is over, like the port of that name."""
        waiting = [r for r in self.records.values() if r.waits_for is not None]
        found = []
        for record in waiting:
            after = record.waits_for
            assert after is not None
            parents = [TaskId(task) for task in after.tasks]
            ends = {task: self._end(task) for task in parents}
            assert record.spec is not None
            is_old = born_hlc(record.spec) < ask.before_hlc
            bad = [t for t, end in ends.items() if end and end not in GOOD[after.end]]
            is_over = all(
                end is not None or (is_old and task not in self.records)
                for task, end in ends.items()
            )
            if bad or is_over:
                found.append(Ripe(record, min(bad, default=None)))
        return RipeLoaded(ask.number, tuple(found[: ask.limit]), bool(waiting))

    def _end(self, task: TaskId) -> TaskState | None:
        """Return how a task has ended, if it has, also where it was forgotten."""
        record = self.records.get(task)
        state = self.past.get(task) if record is None else record.state
        return state if state is not None and state.is_final else None

    def _is_ended(self, task: TaskId) -> bool:
        """Whether a task is over, and nobody comes after it."""
        return self._is_over(self.records[task]) and not any(
            task in other.waits_for.tasks
            for other in self.records.values()
            if other.waits_for is not None
        )

    def _is_over(self, record: TaskRecord) -> bool:
        return record.state.is_final and not self._is_live(record)

    def entries_after(
        self, vector: Vector, most: int, draw: random.Random | None = None
    ) -> tuple[tuple[Entry, ...], tuple[tuple[StreamId, Epoch], ...], bool]:
        """Read entries beyond a vector, like the port of that name.

        With `draw` the streams come in any order, as the protocol allows.
        """
        found: list[Entry] = []
        # The oldest reign first: floors wait for what their writer held.
        order = sorted(self.streams, key=lambda s: (self.writers[s], s))
        if draw is not None:
            draw.shuffle(order)
        for stream in order:
            seen, start = vector.get(stream, 0), self.starts.get(stream, 0)
            if seen >= start:
                found += self.streams[stream][seen - start :]
        chunk = tuple(found[:most])
        streams = dict.fromkeys(entry.stream for entry in chunk)
        epochs = tuple((stream, self.writers[stream]) for stream in streams)
        return chunk, epochs, len(found) > most

    def snapshot(self, vector: Vector, cursor: Cursor | None) -> Snapshot | None:
        """Read the next part of a snapshot; None if entries serve better."""
        head = None
        if cursor in (None, WHOLE):
            head = self._head()
            if cursor is None and not self._is_wanted(vector, head):
                return None
            cursor = Cursor(head.hlc, 0)
        stands_for = dict(self.vector()) | dict(self.ahead())
        part = Snapshot(
            rows=(),
            cursor=cursor,
            more=False,
            head=head,
            vector=tuple(sorted(stands_for.items())),
        )
        told = self.told()[cursor.record :][:PART_ROWS]
        if len(told) == PART_ROWS:
            cursor = cursor._replace(record=cursor.record + PART_ROWS)
            return replace(part, records=told, cursor=cursor, more=True)
        # As they are given, so in order; a long log has thousands of parts.
        keys = self._keys()
        seen = bisect_right(list(keys.values()), cursor.key)
        tasks = list(islice(keys, seen, seen + PART_ROWS))
        rows = tuple(
            TaskRow(self._raw(task), self.births.get(task, BORN), self.changed[task])
            for task in tasks
        )
        key = keys[tasks[-1]] if tasks else cursor.key
        return replace(
            part,
            rows=rows,
            records=told,
            cursor=Cursor(cursor.series, key, cursor.record + len(told)),
            more=len(keys) > seen + len(tasks),
        )

    def _head(self) -> SnapshotHead:
        """Return what the rows stand for: all entries but those that cannot count."""
        waiting: Vector = {}
        for some in self.early.values():
            for entry in some:
                if entry.seq <= self.starts.get(entry.stream, 0):
                    continue
                first = waiting.get(entry.stream, entry.seq)
                waiting[entry.stream] = min(first, entry.seq)
        return SnapshotHead(
            vector=tuple(
                (stream, min(have, waiting.get(stream, have + 1) - 1))
                for stream, have in self.vector()
            ),
            epochs=tuple(sorted(self.writers.items())),
            floor=self.floor,
            hlc=self.hlc,
        )

    def _is_wanted(self, vector: Vector, head: SnapshotHead) -> bool:
        lag = 0
        for stream, have in head.vector:
            seen = vector.get(stream, 0)
            if seen < self.starts.get(stream, 0):
                return True
            lag += max(0, have - seen)
        return lag > max(LAG_ENTRIES, 2 * len(self.records))

    def plan(self, ask: PlanFloor) -> FloorPlanned:
        """Find the next step of the floor, like the port of that name."""
        if loose := self._upto({StreamId(0): 0}, ask.today_ms):
            return FloorPlanned(None, has_more=True, records=loose)
        if self.ahead():
            return self._plan_ahead(ask)
        floors, horizon, latest, forgotten, is_over = _seqs(self.floor), 0, 0, 0, True
        last: Vector = {}
        carried: list[TaskRecord] = []
        doubtful: list[TaskId] = []  # Ended, and submitted again, maybe beyond the cut.
        until, ended = 1 << 62, self._count_ended()
        surplus = ended - ask.tasks_max
        order = sorted((birth.born, task) for task, birth in self.births.items())
        for passed, (born, task) in enumerate(order):
            birth, whole = self.births[task], self._whole(task)
            changed, is_ended = self.changed[task], self._is_ended(task)
            before_hlc = max(ask.before_hlc, ask.forget_hlc if ended > 0 else 0)
            is_old = surplus > 0 or (changed if is_ended else born) < before_hlc
            is_large, is_full = len(whole) > 1 + HELD_MAX, passed >= STEP_TASKS
            is_stuck = is_full or (is_large and not is_ended)
            if born > horizon and (not is_old or is_stuck):
                is_over, until = not (is_old and is_full), born - 1
                break
            is_passed = birth.reborn <= max(born, horizon) and is_old
            if is_ended and (is_passed or birth.seq <= floors.get(birth.stream, 0)):
                surplus, ended = surplus - len(whole), ended - len(whole)
                forgotten += len(whole)
                latest = max(latest, changed)
            elif is_ended and is_old:
                doubtful.append(task)
            else:
                carried += whole
            horizon = max(horizon, born)
            if birth.reborn == born:
                last[birth.stream] = max(last.get(birth.stream, 0), birth.seq)
        if not horizon:
            return FloorPlanned(None)
        gone = [task for task in doubtful if self.births[task].reborn <= horizon]
        carried += [r for t in doubtful if t not in gone for r in self._whole(t)]
        latest = max([latest, *(self.changed[task] for task in gone)])
        forgotten += sum(len(self._whole(task)) for task in gone)
        horizon = max(horizon, min(latest, until))
        floor = Floor(horizon, self._marks(horizon, last))
        planned = FloorPlanned(floor, tuple(carried), not is_over, forgotten=forgotten)
        return self._with_records(planned, floor, ask)

    def _count_ended(self) -> int:
        ended = sum(map(self._is_over, self.records.values()))
        return ended + sum(member.state.is_final for member in self.shown_members())

    def _with_records(
        self, planned: FloorPlanned, floor: Floor, ask: PlanFloor
    ) -> FloorPlanned:
        """Write records again that lie below a floor, before it if they are many."""
        below = self._upto(_seqs(floor), ask.today_ms)
        if len(below) == STEP_TASKS:
            return FloorPlanned(None, has_more=True, records=below)
        return replace(planned, records=below)

    def _whole(self, task: TaskId) -> list[TaskRecord]:
        """Return what is said of a task, an array behind its members."""
        said = self.members.get(task, {})
        return [*(said[number] for number in sorted(said)), self._raw(task)]

    def _upto(self, seqs: Vector, today_ms: int) -> tuple[Recorded, ...]:
        """Return records that only entries up to there say."""
        found = [
            record
            for record, (_, stream, seq) in self.notes.values()
            if seq <= seqs.get(stream, -1) and not is_over(record, today_ms)
        ]
        return tuple(found[:STEP_TASKS])

    def _plan_ahead(self, ask: PlanFloor) -> FloorPlanned:
        """Find tasks that rows may say more of than the log, the last keys first."""
        ahead = self.ahead()
        logs = (self.streams.get(stream) for stream, _ in ahead)
        since = min(log[-1].hlc if log else 0 for log in logs)
        left = [
            (key, task)
            for task, key in reversed(self._keys().items())
            if self.changed[task] > since and (not ask.after or key < ask.after)
            for birth, record in [(self.births.get(task, BORN), self._raw(task))]
            if birth.stream != ask.stream
            or birth.born != birth.reborn
            or (record.spec and born_hlc(record.spec) <= self.floor.horizon)
        ]
        part = left[:STEP_TASKS]
        carried = tuple(self._raw(task) for _, task in part)
        after = part[-1][0] if part else ask.after
        return FloorPlanned(None, carried, len(part) < len(left), ahead, after)

    def _marks(self, horizon: int, last: Vector) -> tuple[Mark, ...]:
        """Return for each stream the last entry up to the horizon."""
        floors = _seqs(self.floor)
        marks = []
        for stream in sorted(self.streams):
            floor = max(floors.get(stream, 0), last.get(stream, 0))
            start = self.starts.get(stream, 0)
            seq = max(floor, start)
            for entry in self.streams[stream][seq - start :]:
                if entry.hlc > horizon:
                    break
                seq = entry.seq
            if seq == start > floor:
                seq = floor  # The log begins later; nothing more is known of before.
            if seq:
                marks.append(Mark(stream, seq, self.writers[stream]))
        return tuple(marks)


def _seqs(floor: Floor) -> Vector:
    return {mark.stream: mark.seq for mark in floor.marks}


def _array_of(task: TaskId) -> TaskId | None:
    """Return the array of a member."""
    place = member_of(task)
    return None if place is None else place[0]


def _place(record: TaskRecord) -> tuple[int, int, TaskId]:
    """Return the place in the queue."""
    assert record.spec is not None
    place = member_of(record.id)
    return record.spec.ord, -1 if place is None else place[1], record.id


def kept(fact: Fact) -> Kept:
    """Return what a fact, once durable, lets others rely on."""
    if isinstance(fact, Recorded):
        return Recorded, TaskId(f"{fact.kind}/{fact.key}"), None
    return type(fact), fact.task, getattr(fact, "attempt", None)
