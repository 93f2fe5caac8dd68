"""Numbers what this node makes durable, and holds back what depends on it.

Owns the vector, the hybrid clock, this node's own stream, and the actions that wait
for a commit. One journal serves election and dispatch, since one writer serves both.
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
from octaskly.core.log.records import RecordTable
from octaskly.core.model.consequences import (
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
"""What happens once something is durable."""


class Journal:
    """The writing side of the log, seen from the rules."""

    def __init__(self, saved: SavedState, outbox: Outbox) -> None:
        self._outbox = outbox
        self.vector: Vector = dict(saved.vector)
        """Per stream the last sequence handed to the writer."""
        self._rows_ahead: Vector = dict(saved.rows_ahead)
        self.epochs: dict[StreamId, Epoch] = dict(saved.epochs)
        """Who writes each stream that is known, in which reign."""
        self.floor = saved.floor
        """What is void on every node that knows as much."""
        self.record_table = RecordTable(saved.records)
        """What is known that is about no task."""
        self.log_version = saved.log_version
        """The newest version in which anybody wrote what may be held here."""
        self._hlc = 0
        self._heard_hlc = (
            saved.hlc
        )  #: highest timestamp of others, until it was followed
        self._last_number = 0
        self._persisted = 0
        self._last_remote_number = 0  #: number of the last write with what others hold
        self.last_append = 0
        """Number of the last `Append`."""
        self.last_merge = 0
        """Number of the last `MergeRows`."""
        self.stream: StreamId | None = None
        """This node's own, while it reigns."""
        self._deferred: deque[tuple[int, WhenDurable]] = deque()
        if saved.records:
            outbox.put(RecordsAdded())

    @property
    def last_number(self) -> int:
        """Number of the last `Append`, `MergeRows` or `Save`."""
        return self._last_number

    @property
    def persisted(self) -> int:
        """Up to this number everything is durable."""
        return self._persisted

    @property
    def is_all_durable(self) -> bool:
        """Whether everything handed to the writer is durable."""
        return self._persisted == self._last_number

    @property
    def is_remote_durable(self) -> bool:
        """Whether all that came from others is durable, so that it can be read."""
        return self._last_remote_number <= self._persisted

    def vector_items(self) -> VectorItems:
        """Return the vector as messages carry it, ordered by stream."""
        return tuple(sorted(self.vector.items()))

    @property
    def has_rows_ahead(self) -> bool:
        """Whether rows of snapshots say more than the log."""
        ahead = self._rows_ahead
        return bool(ahead) and not covers(self.vector, ahead.items())

    def rows_ahead_items(self) -> VectorItems:
        """Return what rows of snapshots say beyond the log, ordered by stream."""
        vector = self.vector
        beyond = (
            (s, seq) for s, seq in self._rows_ahead.items() if seq > vector.get(s, 0)
        )
        return tuple(sorted(beyond))

    def reserve_timestamps(self, now: Moment, times: int = 1) -> int:
        """Return the next hybrid timestamp, the first of so many in a row."""
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
        """Write own facts into `stream` from now on; it must be new."""
        assert stream not in self.vector
        self.stream = stream
        self.vector[stream] = 0

    def close_stream(self) -> None:
        """Write no more own facts: the reign is over, and streams never resume."""
        self.stream = None

    def append(self, facts: Sequence[Fact], now: Moment) -> Append:
        """Return the effect that writes `facts` at the end of the own stream.

        A `Submitted` whose spec has an `ord` keeps it as its hybrid timestamp order:
        callers take timestamps by `reserve_timestamps` first.
        """
        stream = self.stream
        assert stream is not None, "no reign, no facts"
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

        Entries beyond a gap are left out: a later PULL brings them.
        """
        new_entries = []
        for entry in entries:
            if entry.stream == self.stream:
                continue  # Nobody but this node writes there.
            fact = entry.fact
            if isinstance(fact, Floor) and not covers(
                self.vector, fact.required_vector
            ):
                continue  # As a gap: first comes what it builds on.
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
        """Return the effect that stores rows; the last ones bring the vector."""
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
        """Return a floor as this node's stream says it, now."""
        void = {mark.stream: mark.seq for mark in floor.stream_floors}
        required_vector = tuple(
            (stream, seq)
            for stream, seq in self.vector_items()
            if seq > void.get(stream, 0) and stream != self.stream
        )
        return replace(floor, required_vector=required_vector)

    def _apply_mesh_fact(self, fact: Fact) -> None:
        """Go by a fact that is about no task."""
        if isinstance(fact, Floor):
            self.raise_floor(fact)
        elif isinstance(fact, Recorded):
            self.record_table.add_logged_record(fact)
            self._outbox.put(RecordsAdded())

    def raise_floor(self, floor: Floor) -> None:
        """Hold void entries for known: nobody needs them any more."""
        self.floor = join_floors(self.floor, floor)
        self._outbox.put(FloorRaised())
        for mark in floor.stream_floors:
            self.vector[mark.stream] = max(self.vector.get(mark.stream, 0), mark.seq)
            self.epochs[mark.stream] = mark.epoch

    def is_below_floor(self, attempt: AttemptId, spec: TaskSpec) -> bool:
        """Whether the floor has passed the task, so that only the store knows it.

        Streams are pulled in the order of their reigns, so who holds any of the stream
        in which the attempt was assigned holds what was said of the task before.
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
        """Do `then` once `last_number` (by default: everything so far) is durable."""
        self._deferred.append(
            (self._last_number if number is None else number, callback)
        )

    def when_durable(self, callback: WhenDurable, now: Moment) -> list[Effect]:
        """Do `then` at once if nothing is on its way to the disk, else after it."""
        if self.is_all_durable:
            return callback(now)
        self.defer_until_durable(callback)
        return []

    def on_persisted(self, number: int) -> None:
        """Everything up to `last_number` is durable; `run_deferred` does what waited for it."""
        is_news = self._persisted < self._last_remote_number <= number
        if is_news and self.stream is not None:  # Others do not read their log.
            self._outbox.put(SyncProgressed())
        self._persisted = max(self._persisted, number)

    def run_deferred(self, now: Moment) -> list[Effect]:
        """Do, in order, what waited for commits that are done."""
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
