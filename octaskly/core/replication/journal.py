"""Journal: numbers the writes of this node, and defers actions until they are durable.

Owns the vector, the hybrid clock, this node's own stream, and the deferred actions.
Election and dispatcher share one journal because they share one writer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count, repeat

from msgspec.structs import replace

from octaskly.core.effects import Append, Effect, MergeRows, Save
from octaskly.core.events import SavedState
from octaskly.core.log.facts import MESH_FACTS, Entry, Fact, Floor, Recorded
from octaskly.core.log.merge import join_floors
from octaskly.core.log.mesh_records import RecordTable
from octaskly.core.model.component_signals import (
    FloorRaised,
    Outbox,
    RecordsAdded,
    SyncProgressed,
)
from octaskly.core.model.hlc import accepted_hlc, hlc_next, hlc_of_latest_remote
from octaskly.core.model.ids import (
    AttemptId,
    Epoch,
    Moment,
    StreamId,
    Vector,
    VectorItems,
    covers,
)
from octaskly.core.model.nodes import OperatorHold
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.protocol.messages import Snapshot, SnapshotHead

WhenDurable = Callable[[Moment], list[Effect]]
"""An action for the time when a write is durable."""


class Journal:
    """The writing side of the log, as the core uses it."""

    def __init__(self, saved: SavedState, outbox: Outbox) -> None:
        self._outbox = outbox
        self.vector: Vector = dict(saved.vector)
        """Per stream, the last sequence number passed to the writer."""
        self._rows_ahead: Vector = dict(saved.rows_ahead)
        self.epochs: dict[StreamId, Epoch] = dict(saved.epochs)
        """The epoch, with its node, that writes each known stream."""
        self.floor = saved.floor
        """The compaction floor: entries below it are void."""
        self.record_table = RecordTable(saved.records)
        """The records of the mesh, which belong to no task."""
        self.log_version = saved.log_version
        """The newest version of any entry that this log may hold."""
        self._hlc = 0
        self._heard_hlc = (
            saved.hlc
        )  #: highest timestamp of other nodes that `_hlc` has not adopted yet
        self._last_number = 0
        self._persisted = 0
        self._last_remote_number = 0  #: number of the latest write of others' entries
        self.last_append = 0
        """Number of the last `Append`."""
        self.last_merge = 0
        """Number of the last `MergeRows`."""
        self.stream: StreamId | None = None
        """This node's own stream, while it is dispatcher."""
        self._deferred: deque[tuple[int, WhenDurable]] = deque()
        if saved.records:
            outbox.put(RecordsAdded())

    @property
    def last_number(self) -> int:
        """Number of the last `Append`, `MergeRows` or `Save`."""
        return self._last_number

    @property
    def persisted(self) -> int:
        """All writes up to this number are durable."""
        return self._persisted

    @property
    def is_all_durable(self) -> bool:
        """Return True if everything passed to the writer is durable."""
        return self._persisted == self._last_number

    @property
    def is_remote_durable(self) -> bool:
        """Return True if everything from other nodes is durable, hence readable."""
        return self._last_remote_number <= self._persisted

    def vector_items(self) -> VectorItems:
        """Return the vector in the form of messages, ordered by stream."""
        return tuple(sorted(self.vector.items()))

    @property
    def has_rows_ahead(self) -> bool:
        """Return True if rows of snapshots are ahead of the log."""
        ahead = self._rows_ahead
        return bool(ahead) and not covers(self.vector, ahead.items())

    def rows_ahead_items(self) -> VectorItems:
        """Return the extent of snapshot rows beyond the log, ordered by stream."""
        vector = self.vector
        beyond = (
            (s, seq) for s, seq in self._rows_ahead.items() if seq > vector.get(s, 0)
        )
        return tuple(sorted(beyond))

    def reserve_timestamps(self, now: Moment, times: int = 1) -> int:
        """Return the first of `times` consecutive hybrid timestamps."""
        if self._heard_hlc:
            heard, self._heard_hlc = (
                min(self._heard_hlc, hlc_of_latest_remote(now.wall_ms)),
                0,
            )
            self._hlc = max(self._hlc, heard)
        first = hlc_next(self._hlc, now.wall_ms)
        self._hlc = first + times - 1
        return first

    def open_stream(self, stream: StreamId) -> None:
        """Start to write own facts into `stream`, which must be new."""
        assert stream not in self.vector
        self.stream = stream
        self.vector[stream] = 0

    def close_stream(self) -> None:
        """Stop writing own facts; a stream never resumes after its epoch."""
        self.stream = None

    def append(self, facts: Sequence[Fact], now: Moment) -> Append:
        """Return the effect that appends `facts` to the own stream.

        The `ord` of a `Submitted` spec is a hybrid timestamp; callers take it from
        `reserve_timestamps` first.
        """
        stream = self.stream
        assert stream is not None, "facts need an open stream"
        first, hlc = self.vector[stream] + 1, self.reserve_timestamps(now)
        entries = tuple(map(Entry, repeat(stream), count(first), count(hlc), facts))
        if entries:
            self._hlc, self.vector[stream] = entries[-1].hlc, entries[-1].seq
        for fact in facts:
            if isinstance(fact, MESH_FACTS):
                self._apply_mesh_fact(fact)
        return self._append(entries)

    def append_remote(
        self,
        entries: Iterable[Entry],
        epochs: Iterable[tuple[StreamId, Epoch]],
    ) -> Append | None:
        """Return the effect that stores a peer's entries; None if all are known.

        Entries beyond a gap are left out, because a later PULL fetches them.
        """
        new_entries = []
        for entry in entries:
            if entry.stream == self.stream:
                continue  # Only this node writes there.
            fact = entry.fact
            if isinstance(fact, Floor) and not covers(
                self.vector, fact.required_vector
            ):
                continue  # Treat it as a gap: the entries that it requires come first.
            if entry.seq == self.vector.get(entry.stream, 0) + 1:
                self.vector[entry.stream] = entry.seq
                self._heard_hlc = max(self._heard_hlc, entry.hlc)
                new_entries.append(entry)
                self._apply_mesh_fact(fact)
        if not new_entries:
            return None
        epochs = tuple(epochs)
        self.epochs.update(epochs)
        append = self._append(tuple(new_entries), epochs)
        self._last_remote_number = append.number
        return append

    def merge_rows(self, part: Snapshot, head: SnapshotHead) -> MergeRows:
        """Return the effect that stores rows; the last part also raises the vector."""
        for record in part.records:
            self.record_table.add_record(record)
            self._outbox.put(RecordsAdded())
        if not part.has_more:
            self._heard_hlc = max(self._heard_hlc, head.hlc)
            self.epochs.update(head.epochs)
            for stream, seq in head.vector:
                self.vector[stream] = max(self.vector.get(stream, 0), seq)
            self.raise_floor(head.floor)
        for stream, seq in part.vector:
            self._rows_ahead[stream] = max(self._rows_ahead.get(stream, 0), seq)
        self.last_merge = self._last_remote_number = self._next_number()
        return MergeRows(
            self.last_merge,
            part.rows,
            head,
            not part.has_more,
            part.vector,
            part.records,
        )

    def floor_for_own_stream(self, floor: Floor) -> Floor:
        """Return `floor` with the vector that this node's stream requires now."""
        void = {mark.stream: mark.seq for mark in floor.stream_floors}
        required_vector = tuple(
            (stream, seq)
            for stream, seq in self.vector_items()
            if seq > void.get(stream, 0) and stream != self.stream
        )
        return replace(floor, required_vector=required_vector)

    def _apply_mesh_fact(self, fact: Fact) -> None:
        """Apply a fact that belongs to no task."""
        if isinstance(fact, Floor):
            self.raise_floor(fact)
        elif isinstance(fact, Recorded):
            self.record_table.add_logged_record(fact)
            self._outbox.put(RecordsAdded())

    def raise_floor(self, floor: Floor) -> None:
        """Raise the compaction floor; the void entries below it count as known."""
        self.floor = join_floors(self.floor, floor)
        self._outbox.put(FloorRaised())
        for mark in floor.stream_floors:
            self.vector[mark.stream] = max(self.vector.get(mark.stream, 0), mark.seq)
            self.epochs[mark.stream] = mark.epoch

    def is_below_floor(self, attempt: AttemptId, spec: TaskSpec) -> bool:
        """Return True if the task is below the floor, so that only the store has it.

        Streams are pulled in the order of their epochs. So a node that holds any entry
        of the attempt's stream also holds all earlier entries of the task.
        """
        return (
            accepted_hlc(spec) <= self.floor.horizon and attempt.stream in self.vector
        )

    def save(
        self,
        *,
        term: int | None = None,
        epoch: Epoch | None = None,
        stream: tuple[StreamId, Epoch] | None = None,
        name: str | None = None,
        rewritten_rows: VectorItems = (),
        hold: OperatorHold | None = None,
        records: tuple[Recorded, ...] = (),
        log_version: int | None = None,
    ) -> Save:
        """Return the effect that makes node state durable."""
        if stream is not None:
            self.epochs.update((stream,))
        if log_version is not None:
            self.log_version = log_version
        for row_stream, seq in rewritten_rows:
            if self._rows_ahead.get(row_stream, 0) <= seq:
                self._rows_ahead.pop(row_stream, None)
        return Save(
            number=self._next_number(),
            term=term,
            epoch=epoch,
            stream=stream,
            name=name,
            rewritten_rows=rewritten_rows,
            hold=hold,
            records=records,
            log_version=log_version,
        )

    def defer_until_durable(
        self, callback: WhenDurable, number: int | None = None
    ) -> None:
        """Call `callback` once `number` (default: everything so far) is durable."""
        self._deferred.append(
            (self._last_number if number is None else number, callback)
        )

    def when_durable(self, callback: WhenDurable, now: Moment) -> list[Effect]:
        """Call `callback` now if everything is durable, else once it is."""
        if self.is_all_durable:
            return callback(now)
        self.defer_until_durable(callback)
        return []

    def on_persisted(self, number: int) -> None:
        """Record that all writes up to `number` are durable.

        The caller then runs the deferred actions with `run_deferred`.
        """
        is_news = self._persisted < self._last_remote_number <= number
        if is_news and self.stream is not None:  # Only a dispatcher reads its log.
            self._outbox.put(SyncProgressed())
        self._persisted = max(self._persisted, number)

    def run_deferred(self, now: Moment) -> list[Effect]:
        """Run the deferred actions of durable writes, in order."""
        effects: list[Effect] = []
        while self._deferred and self._deferred[0][0] <= self._persisted:
            effects += self._deferred.popleft()[1](now)
        return effects

    def _append(
        self,
        entries: tuple[Entry, ...],
        epochs: tuple[tuple[StreamId, Epoch], ...] = (),
    ) -> Append:
        self.last_append = self._next_number()
        return Append(self.last_append, entries, epochs)

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number
