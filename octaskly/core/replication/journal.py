"""Numbers what this node makes durable, and holds back what depends on it.

Owns the vector, the hybrid clock, this node's own stream, and the actions that wait
for a commit. One journal serves election and dispatch, since one writer serves both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count, repeat

from octaskly.core.effects import Append, Effect, Join, Save
from octaskly.core.events import Saved
from octaskly.core.log.facts import ABOUT_NO_TASK, Entry, Fact, Floor, Recorded
from octaskly.core.log.merge import join_floors
from octaskly.core.log.records import Book
from octaskly.core.model.hlc import born_hlc, hlc_ahead, hlc_next
from octaskly.core.model.ids import (
    AttemptId,
    Epoch,
    Holdings,
    Moment,
    StreamId,
    Vector,
    covers,
)
from octaskly.core.model.nodes import Hold
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.protocol.messages import Snapshot, SnapshotHead

WhenDurable = Callable[[Moment], list[Effect]]
"""What happens once something is durable."""


class Journal:
    """The writing side of the log, seen from the rules."""

    def __init__(self, saved: Saved) -> None:
        self.vector: Vector = dict(saved.vector)
        """Per stream the last sequence handed to the writer."""
        self._ahead: Vector = dict(saved.ahead)
        self.epochs: dict[StreamId, Epoch] = dict(saved.epochs)
        """Who writes each stream that is known, in which reign."""
        self.floor = saved.floor
        """What is void on every node that knows as much."""
        self.book = Book(saved.records)
        """What is known that is about no task."""
        self.version = saved.log_version
        """The newest version in which anybody wrote what may be held here."""
        self._hlc = 0
        self._heard = saved.hlc  #: highest timestamp of others, until it was followed
        self._number = 0
        self._persisted = 0
        self._absorbed = 0  #: number of the last write with what others hold
        self.appended = 0
        """Number of the last `Append`."""
        self.joined = 0
        """Number of the last `Join`."""
        self.stream: StreamId | None = None
        """This node's own, while it reigns."""
        self._waiting: deque[tuple[int, WhenDurable]] = deque()

    @property
    def number(self) -> int:
        """Number of the last `Append`, `Join` or `Save`."""
        return self._number

    @property
    def persisted(self) -> int:
        """Up to this number everything is durable."""
        return self._persisted

    @property
    def is_settled(self) -> bool:
        """Whether everything handed to the writer is durable."""
        return self._persisted == self._number

    @property
    def is_merged(self) -> bool:
        """Whether all that came from others is durable, so that it can be read."""
        return self._absorbed <= self._persisted

    def vector_items(self) -> Holdings:
        """Return the vector as messages carry it, ordered by stream."""
        return tuple(sorted(self.vector.items()))

    @property
    def is_ahead(self) -> bool:
        """Whether rows of snapshots say more than the log."""
        ahead = self._ahead
        return bool(ahead) and not covers(self.vector, ahead.items())

    def ahead_items(self) -> Holdings:
        """Return what rows of snapshots say beyond the log, ordered by stream."""
        have = self.vector
        ahead = ((s, seq) for s, seq in self._ahead.items() if seq > have.get(s, 0))
        return tuple(sorted(ahead))

    def tick(self, now: Moment, times: int = 1) -> int:
        """Return the next hybrid timestamp, the first of so many in a row."""
        if self._heard:
            heard, self._heard = min(self._heard, hlc_ahead(now.wall_ms)), 0
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
        callers take timestamps by `tick` first.
        """
        stream = self.stream
        assert stream is not None, "no reign, no facts"
        first, hlc = self.vector[stream] + 1, self.tick(now)
        entries = tuple(map(Entry, repeat(stream), count(first), count(hlc), facts))
        if entries:
            self._hlc, self.vector[stream] = entries[-1].hlc, entries[-1].seq
        for fact in facts:
            if isinstance(fact, ABOUT_NO_TASK):
                self._heed(fact)
        return self._append(entries)

    def absorb(
        self,
        entries: Iterable[Entry],
        epochs: Iterable[tuple[StreamId, Epoch]],
    ) -> Append | None:
        """Return the effect that stores a peer's entries; None if all are known.

        Entries beyond a gap are left out: a later PULL brings them.
        """
        fresh = []
        for entry in entries:
            if entry.stream == self.stream:
                continue  # Nobody but this node writes there.
            fact = entry.fact
            if isinstance(fact, Floor) and not covers(self.vector, fact.needs):
                continue  # As a gap: first comes what it builds on.
            if entry.seq == self.vector.get(entry.stream, 0) + 1:
                self.vector[entry.stream] = entry.seq
                self._heard = max(self._heard, entry.hlc)
                fresh.append(entry)
                self._heed(fact)
        if not fresh:
            return None
        epochs = tuple(epochs)
        self.epochs.update(epochs)
        append = self._append(tuple(fresh), epochs)
        self._absorbed = append.number
        return append

    def join(self, part: Snapshot, head: SnapshotHead) -> Join:
        """Return the effect that stores rows; the last ones bring the vector."""
        for record in part.records:
            self.book.learn(record)
        if not part.more:
            self._heard = max(self._heard, head.hlc)
            self.epochs.update(head.epochs)
            for stream, seq in head.vector:
                self.vector[stream] = max(self.vector.get(stream, 0), seq)
            self.raise_floor(head.floor)
        for stream, seq in part.vector:
            self._ahead[stream] = max(self._ahead.get(stream, 0), seq)
        self.joined = self._absorbed = self._next()
        return Join(
            self.joined, part.rows, head, not part.more, part.vector, part.records
        )

    def stated(self, floor: Floor) -> Floor:
        """Return a floor as this node's stream says it, now."""
        void = {mark.stream: mark.seq for mark in floor.marks}
        needs = tuple(
            (stream, seq)
            for stream, seq in self.vector_items()
            if seq > void.get(stream, 0) and stream != self.stream
        )
        return replace(floor, needs=needs)

    def _heed(self, fact: Fact) -> None:
        """Go by a fact that is about no task."""
        if isinstance(fact, Floor):
            self.raise_floor(fact)
        elif isinstance(fact, Recorded):
            self.book.log(fact)

    def raise_floor(self, floor: Floor) -> None:
        """Hold void entries for known: nobody needs them any more."""
        self.floor = join_floors(self.floor, floor)
        for stream, seq, epoch in floor.marks:
            self.vector[stream] = max(self.vector.get(stream, 0), seq)
            self.epochs[stream] = epoch

    def is_void(self, attempt: AttemptId, spec: TaskSpec) -> bool:
        """Whether the floor has passed the task, so that only the store knows it.

        Streams are pulled in the order of their reigns, so who holds any of the stream
        in which the attempt was assigned holds what was said of the task before.
        """
        return born_hlc(spec) <= self.floor.horizon and attempt.stream in self.vector

    def save(
        self,
        *,
        term: int | None = None,
        epoch: Epoch | None = None,
        stream: tuple[StreamId, Epoch] | None = None,
        name: str | None = None,
        retold: Holdings = (),
        hold: Hold | None = None,
        records: tuple[Recorded, ...] = (),
        log_version: int | None = None,
    ) -> Save:
        """Return the effect that makes node state durable."""
        if stream is not None:
            self.epochs.update((stream,))
        if log_version is not None:
            self.version = log_version
        for said, seq in retold:
            if self._ahead.get(said, 0) <= seq:
                self._ahead.pop(said, None)
        return Save(
            number=self._next(),
            term=term,
            epoch=epoch,
            stream=stream,
            name=name,
            retold=retold,
            hold=hold,
            records=records,
            log_version=log_version,
        )

    def after(self, then: WhenDurable, number: int | None = None) -> None:
        """Do `then` once `number` (by default: everything so far) is durable."""
        self._waiting.append((self._number if number is None else number, then))

    def when_durable(self, then: WhenDurable, now: Moment) -> list[Effect]:
        """Do `then` at once if nothing is on its way to the disk, else after it."""
        if self.is_settled:
            return then(now)
        self.after(then)
        return []

    def on_persisted(self, number: int) -> None:
        """Everything up to `number` is durable; `release` does what waited for it."""
        self._persisted = max(self._persisted, number)

    def release(self, now: Moment) -> list[Effect]:
        """Do, in order, what waited for commits that are done."""
        effects: list[Effect] = []
        while self._waiting and self._waiting[0][0] <= self._persisted:
            effects += self._waiting.popleft()[1](now)
        return effects

    def _append(
        self,
        entries: tuple[Entry, ...],
        epochs: tuple[tuple[StreamId, Epoch], ...] = (),
    ) -> Append:
        self.appended = self._next()
        return Append(self.appended, entries, epochs)

    def _next(self) -> int:
        self._number += 1
        return self._number
