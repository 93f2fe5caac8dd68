"""Journal: numbers the writes of this node, and defers actions until they are durable.

Owns the vector, the hybrid clock, this node's own stream, and the deferred actions.
Election and dispatcher share one journal because they share one writer.

A snapshot is staged on disk until its last part is there, so half of one has no effect.
Its rows are then merged part by part, with other writes in between, and the last part
raises the vector. A crash does not stop that: the store goes on before the node starts.
While rows are merged, the tables know facts that the vector does not cover, and that no
standby has. So three things wait for the end of the merge:

- the store's answer to a PULL that needs a snapshot: its rows would exceed its head,
- the store's compaction plan: its floor could exceed the vector,
- the dispatcher's answer to a request whose effect was in the tables already:
  see `when_merged`.

A result that a worker reports is always written, whatever the tables say. At the end of
a merge, each standby catches up again, so later answers wait until it has the facts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence

from msgspec.structs import replace

from octaskly.core.effects import Append, Effect, MergeRows, Save, StageRows
from octaskly.core.events import SavedState
from octaskly.core.log.facts import (
    MESH_FACTS,
    Entry,
    Fact,
    Floor,
    Recorded,
)
from octaskly.core.log.merge import join_floors
from octaskly.core.log.mesh_records import RecordTable
from octaskly.core.log.range_facts import entry_after
from octaskly.core.log.retired_streams import RetiredSummary
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
    NodeId,
    StreamId,
    Vector,
    VectorItems,
    count_entries,
)
from octaskly.core.model.nodes import OperatorHold
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.protocol.messages import Snapshot, SnapshotHead

WhenDurable = Callable[[Moment], list[Effect]]
"""An action for the time when a write is durable.

It is a method or a `partial`, never a closure: its arguments are data, so a node can be
copied, and compared, with all that it still has to do.
"""


def return_effects(effects: Sequence[Effect], *_: object) -> list[Effect]:
    """Return effects that are known before their data is durable."""
    return list(effects)


class Journal:
    """The writing side of the log, as the core uses it."""

    def __init__(self, saved: SavedState, outbox: Outbox) -> None:
        self._outbox = outbox
        self.vector: Vector = dict(saved.vector)
        """Per stream, the last sequence number passed to the writer."""
        self.retired = saved.retired
        """Void streams that the vector leaves out."""
        self.epochs: dict[StreamId, Epoch] = dict(saved.epochs)
        """The epoch, with its node, that writes each stream of the vector."""
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
        self.last_number = 0  #: of the last write
        self.persisted = 0  #: all writes up to this number are durable
        self._last_remote_number = 0  #: number of the latest write of others' entries
        self.last_append = 0
        """Number of the last `Append`."""
        self.stream: StreamId | None = None
        """This node's own stream, while it is dispatcher."""
        self._deferred: deque[tuple[int, WhenDurable]] = deque()
        self._merging: list[SnapshotHead] = []
        """Heads of complete snapshots whose rows are not all in the tables yet."""
        self._deferred_until_merged: list[WhenDurable] = []
        if saved.records:
            outbox.put(RecordsAdded())

    @property
    def is_all_durable(self) -> bool:
        """Return True if everything passed to the writer is durable."""
        return self.persisted == self.last_number

    @property
    def is_remote_durable(self) -> bool:
        """Return True if everything from other nodes is durable, hence readable."""
        return self._last_remote_number <= self.persisted

    def vector_items(self) -> VectorItems:
        """Return the vector in the form of messages, ordered by stream."""
        return tuple(sorted(self.vector.items()))

    @property
    def entry_count(self) -> int:
        """Number of entries that count as held, void ones included."""
        return count_entries(self.vector.items()) + self.retired_summary().entries

    def retired_summary(self) -> RetiredSummary:
        """Return the summary of the retired streams beside the vector."""
        return RetiredSummary(self.retired.digest, self.count_retired(self.vector))

    def vector_for(self, peer_vector: Iterable[StreamId]) -> VectorItems:
        """Return the vector with the retired streams that a peer still names."""
        vector = dict(self.vector)
        for stream in peer_vector:
            if stream not in vector and (end := self.retired.end_of(stream)):
                vector[stream] = end
        return tuple(sorted(vector.items()))

    def count_retired(self, named: Iterable[StreamId]) -> int:
        """Return the number of entries in retired streams that are not named."""
        return self.retired.entries - sum(map(self.retired.end_of, named))

    def held_seq(self, stream: StreamId) -> int:
        """Return the last entry up to which a stream is held, retired or not."""
        seq = self.vector.get(stream)
        return self.retired.end_of(stream) if seq is None else seq

    def holds(self, extent: Iterable[tuple[StreamId, int]]) -> bool:
        """Return True if every entry of `extent` is held."""
        vector = self.vector
        return all(
            vector.get(stream, 0) >= seq or self.held_seq(stream) >= seq
            for stream, seq in extent
        )

    def holds_log(
        self, extent: Iterable[tuple[StreamId, int]], retired: RetiredSummary
    ) -> bool:
        """Return True if every entry of another node's log is held."""
        return self.retired.includes(retired.digest) and self.holds(extent)

    def is_held_by(self, vector: VectorItems, digests: Container[int]) -> bool:
        """Return True if a node surely holds every entry of this log.

        `digests` are of sets of retired streams that the node knows.
        """
        held = dict(vector)
        return self.retired.digest in digests and all(
            held.get(stream, 0) >= seq for stream, seq in self.vector.items()
        )

    def retired_count_of(self, *digests: int) -> int | None:
        """Return how many of the first retired streams a node knows, or None.

        `digests` are of sets of retired streams that the node knows.
        """
        positions = (self.retired.position_of(digest) for digest in digests)
        return max((p for p in positions if p is not None), default=None)

    @property
    def is_merging(self) -> bool:
        """Return True if rows of a complete snapshot are still to be merged."""
        return bool(self._merging)

    def will_hold_log(
        self, extent: Iterable[tuple[StreamId, int]], retired: RetiredSummary
    ) -> bool:
        """Return True if a node's log is held once all merges have ended."""
        digests = [head.retired for head in self._merging]
        if retired.digest not in digests and not self.retired.includes(retired.digest):
            return False
        heads = [dict(head.vector) for head in self._merging]
        return all(
            seq <= max(self.held_seq(stream), *(h.get(stream, 0) for h in heads), 0)
            for stream, seq in extent
        )

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
        for empty in [s for s, seq in self.vector.items() if not seq]:
            del self.vector[empty]  # An earlier stream of this node, without entries.
            self.epochs.pop(empty, None)
        self.stream = stream
        self.vector[stream] = 0

    def close_stream(self) -> None:
        """Stop writing own facts; a stream never resumes after its epoch."""
        stream, self.stream = self.stream, None
        if stream is not None:
            self._leave_out_if_void(stream)

    @property
    def next_seq(self) -> int:
        """Sequence number of the next entry of the own stream."""
        assert self.stream is not None, "only a dispatcher writes"
        return self.vector[self.stream] + 1

    def append(self, facts: Sequence[Fact], now: Moment) -> Append:
        """Return the effect that appends `facts` to the own stream.

        The `ord` of a `Submitted` spec is a hybrid timestamp; callers take it from
        `reserve_timestamps` first.
        """
        stream = self.stream
        assert stream is not None, "facts need an open stream"
        seq, hlc = self.next_seq, self.reserve_timestamps(now)
        entries = []
        for fact in facts:
            entries.append(Entry(stream, seq, hlc, fact))
            count = fact.count
            seq, hlc = seq + count, hlc + count
        if entries:
            self._hlc, self.vector[stream] = hlc - 1, seq - 1
        is_retired = stream in self.retired  # Another node thought that it was over.
        epochs = ((stream, self.epochs[stream]),) if is_retired else ()
        for fact in facts:
            if isinstance(fact, MESH_FACTS):
                self._apply_mesh_fact(fact)
        return self._append(tuple(entries), epochs)

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
            if isinstance(fact, Floor) and not self._may_apply(fact):
                continue  # Treat it as a gap: the entries that it requires come first.
            held = self.held_seq(entry.stream)
            if entry.seq <= held + 1 <= entry.last_seq:
                self.vector[entry.stream] = entry.last_seq
                self._heard_hlc = max(self._heard_hlc, entry.last_hlc)
                new_entries.append(entry_after(entry, held))
                self._apply_mesh_fact(fact)
        if not new_entries:
            return None
        epochs = tuple(epochs)
        self._add_epochs(epochs)
        append = self._append(tuple(new_entries), epochs)
        self._last_remote_number = append.number
        return append

    def _may_apply(self, floor: Floor) -> bool:
        """Return True if this node holds what the writer of the floor held."""
        return self.holds(floor.required_vector)

    def _add_epochs(self, epochs: Iterable[tuple[StreamId, Epoch]]) -> None:
        """Add the epochs of streams that the vector names."""
        vector = self.vector
        self.epochs.update((s, epoch) for s, epoch in epochs if s in vector)

    def stage_rows(
        self, peer: NodeId, snapshot: int, head: SnapshotHead, part: Snapshot
    ) -> StageRows:
        """Return the effect that keeps a part of a snapshot until the last one is here.

        With the last part, `merge_rows` must follow for each part.
        """
        for record in part.records:
            self.record_table.add_record(record)
            self._outbox.put(RecordsAdded())
        if not part.has_more:
            self._merging.append(head)
        return StageRows(self._next_number(), snapshot, peer, part)

    def merge_rows(
        self, snapshot: int, head: SnapshotHead, retired: VectorItems, *, is_last: bool
    ) -> MergeRows:
        """Return the effect that merges the next part; the last one raises the vector.

        `retired` are all retired streams of the snapshot.
        """
        if is_last:
            self._merging.remove(head)
            self._heard_hlc = max(self._heard_hlc, head.hlc)
            for stream, seq in head.vector:
                if seq > self.held_seq(stream):
                    self.vector[stream] = seq
            self._add_epochs(head.epochs)
            self.raise_floor(replace(head.floor, retired=retired))
            self.retired.note_included(head.retired)
        number = self._last_remote_number = self._next_number()
        if not self._merging:
            some, self._deferred_until_merged = self._deferred_until_merged, []
            self._deferred += ((number, callback) for callback in some)
        return MergeRows(number, snapshot, head, retired, is_last)

    def floor_for_own_stream(self, floor: Floor) -> Floor:
        """Return `floor` with the vector that this node's stream requires now."""
        void = dict(floor.ends)
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
        self._outbox.put(FloorRaised())
        for mark in floor.stream_floors:
            if mark.seq > self.held_seq(mark.stream):
                self.vector[mark.stream] = mark.seq
        for stream, end in floor.retired:
            self.retired.add(stream, end)
            self._leave_out_if_void(stream)
        self._add_epochs((mark.stream, mark.epoch) for mark in floor.stream_floors)
        joined = join_floors(self.floor, floor)
        named = (mark for mark in joined.stream_floors if mark.stream in self.vector)
        joined = replace(joined, stream_floors=tuple(named))
        if joined != self.floor:
            self.floor = joined

    def _leave_out_if_void(self, stream: StreamId) -> None:
        """Leave a retired stream out of the vector, unless it is open or has more."""
        end = self.retired.end_of(stream)
        if 0 < self.vector.get(stream, 0) <= end and stream != self.stream:
            del self.vector[stream]
            self.epochs.pop(stream, None)

    def is_below_floor(self, attempt: AttemptId, spec: TaskSpec) -> bool:
        """Return True if the task is below the floor, so that only the store has it.

        Streams are pulled in the order of their epochs. So a node that holds any entry
        of the attempt's stream also holds all earlier entries of the task.
        """
        stream = attempt.stream
        is_known = stream in self.vector or stream in self.retired
        return is_known and accepted_hlc(spec) <= self.floor.horizon

    def save(
        self,
        *,
        term: int | None = None,
        epoch: Epoch | None = None,
        stream: tuple[StreamId, Epoch] | None = None,
        name: str | None = None,
        hold: OperatorHold | None = None,
        records: tuple[Recorded, ...] = (),
        log_version: int | None = None,
    ) -> Save:
        """Return the effect that makes node state durable."""
        if stream is not None:
            self.epochs.update((stream,))
        if log_version is not None:
            self.log_version = log_version
        return Save(
            number=self._next_number(),
            term=term,
            epoch=epoch,
            stream=stream,
            name=name,
            hold=hold,
            records=records,
            log_version=log_version,
        )

    def defer_until_durable(
        self, callback: WhenDurable, number: int | None = None
    ) -> None:
        """Call `callback` once `number` (default: everything so far) is durable."""
        self._deferred.append(
            (self.last_number if number is None else number, callback)
        )

    def when_durable(self, callback: WhenDurable, now: Moment) -> list[Effect]:
        """Call `callback` now if everything is durable, else once it is."""
        if self.is_all_durable:
            return callback(now)
        self.defer_until_durable(callback)
        return []

    def when_merged(self, callback: WhenDurable, now: Moment) -> list[Effect]:
        """Call `callback` now if no rows are being merged, else once they are."""
        if not self.is_merging:
            return callback(now)
        self._deferred_until_merged.append(callback)
        return []

    def on_persisted(self, number: int) -> None:
        """Record that all writes up to `number` are durable.

        The caller then runs the deferred actions with `run_deferred`.
        """
        is_news = self.persisted < self._last_remote_number <= number
        if is_news and self.stream is not None:  # Only a dispatcher reads its log.
            self._outbox.put(SyncProgressed())
        self.persisted = max(self.persisted, number)

    def run_deferred(self, now: Moment) -> list[Effect]:
        """Run the deferred actions of durable writes, in order."""
        effects: list[Effect] = []
        while self._deferred and self._deferred[0][0] <= self.persisted:
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
        self.last_number += 1
        return self.last_number
