"""A disk in memory: what is not committed is gone after a crash.

It stands for the store: entries join into records by the same pure function, and
reads see what is committed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from octaskly.core.effects import Append, Save
from octaskly.core.events import Advert, Loaded, Saved
from octaskly.core.facts import Entry, Fact, Floor
from octaskly.core.inbound import highest_sequence
from octaskly.core.merge import TaskRecord, apply
from octaskly.core.messages import Report
from octaskly.core.model import (
    NO_EPOCH,
    Address,
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    TaskState,
)

Write = Callable[[], None]
Kept = tuple[type[Fact], TaskId, AttemptId | None]
"""What a client or a worker may rely on: that a fact of a kind stands in the log."""


@dataclass
class Disk:
    """Everything durable of one node, and what waits for the next commit."""

    term: int = 0
    epoch: Epoch = NO_EPOCH
    name: str | None = None
    streams: dict[StreamId, list[Entry]] = field(default_factory=dict)
    writers: dict[StreamId, Epoch] = field(default_factory=dict)
    records: dict[TaskId, TaskRecord] = field(default_factory=dict)
    spool: dict[tuple[TaskId, AttemptId], Report] = field(default_factory=dict)
    peers: dict[NodeId, tuple[Address, ...]] = field(default_factory=dict)
    terms_seen: list[int] = field(default_factory=list)  #: one for each `Save`
    waiting: list[tuple[int | None, Write]] = field(default_factory=list)
    kept: set[Kept] = field(default_factory=set)  #: what the streams say
    hlc: int = 0

    def saved(self) -> Saved:
        """Return what a node is told at its start."""
        entries = [entry for log in self.streams.values() for entry in log]
        return Saved(
            term=self.term,
            epoch=self.epoch,
            vector=self.vector(),
            hlc=self.hlc,
            sequence=highest_sequence(tuple(entries)),
            queued=len(self.queued()),
            name=self.name,
            reports=tuple(self.spool.values()),
            peers=tuple(Advert(peer, where) for peer, where in self.peers.items()),
        )

    def copy(self) -> Disk:
        """Return what a backup of this moment holds."""
        return replace(
            self,
            streams={stream: list(log) for stream, log in self.streams.items()},
            writers=dict(self.writers),
            records=dict(self.records),
            spool=dict(self.spool),
            peers=dict(self.peers),
            terms_seen=list(self.terms_seen),
            waiting=[],
            kept=set(self.kept),
        )

    def vector(self) -> tuple[tuple[StreamId, int], ...]:
        """Return what is committed, per stream."""
        return tuple(sorted((s, len(log)) for s, log in self.streams.items()))

    # Writing

    def append(self, effect: Append) -> None:
        """Queue entries for the next commit."""
        self.waiting.append((effect.number, lambda: self._append(effect)))

    def save(self, effect: Save) -> None:
        """Queue node state for the next commit."""
        self.waiting.append((effect.number, lambda: self._save(effect)))

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

    def _append(self, effect: Append) -> None:
        for stream, epoch in effect.epochs:
            known = self.writers.setdefault(stream, epoch)
            assert known == epoch, f"stream {stream} has two writers"
        for entry in effect.entries:
            log = self.streams.setdefault(entry.stream, [])
            assert entry.stream in self.writers, "a stream that nobody wrote"
            if entry.seq <= len(log):
                assert log[entry.seq - 1] == entry, "one place, two facts"
                continue
            assert entry.seq == len(log) + 1, "a gap in a stream"
            log.append(entry)
            self.hlc = max(self.hlc, entry.hlc)
            if isinstance(entry.fact, Floor):
                continue
            task = entry.fact.task
            self.records[task] = apply(self.records.get(task), entry.fact)
            self.kept.add(kept(entry.fact))

    def _save(self, effect: Save) -> None:
        if effect.term is not None:
            self.term = effect.term
            self.terms_seen.append(effect.term)
        if effect.epoch is not None:
            self.epoch = effect.epoch
        if effect.stream is not None:
            stream, epoch = effect.stream
            assert stream not in self.writers, "a stream id was used twice"
            self.writers[stream] = epoch
            self.streams.setdefault(stream, [])
        if effect.name is not None:
            self.name = effect.name

    # Reading

    def queued(self) -> list[TaskRecord]:
        """Return the tasks that wait, in queue order."""
        waiting = [
            record
            for record in self.records.values()
            if record.spec is not None and record.state is TaskState.QUEUED
        ]
        return sorted(waiting, key=lambda r: (r.spec.ord if r.spec else 0, r.id))

    def load(self, after_ord: int, limit: int) -> Loaded:
        """Read the next queued tasks."""
        found = [r for r in self.queued() if r.spec and r.spec.ord > after_ord]
        return Loaded(after_ord, tuple(found[:limit]), len(found) > limit)

    def live(self) -> tuple[TaskRecord, ...]:
        """Read the tasks that have an attempt without an end."""
        return tuple(
            record
            for record in self.records.values()
            if any(attempt.state.is_live for attempt in record.attempts)
        )

    def entries_after(
        self, vector: dict[StreamId, int], most: int
    ) -> tuple[tuple[Entry, ...], tuple[tuple[StreamId, Epoch], ...], bool]:
        """Read entries beyond a vector, like the port of that name."""
        found: list[Entry] = []
        for stream in sorted(self.streams):
            found += self.streams[stream][vector.get(stream, 0) :]
        chunk = tuple(found[:most])
        streams = dict.fromkeys(entry.stream for entry in chunk)
        epochs = tuple((stream, self.writers[stream]) for stream in streams)
        return chunk, epochs, len(found) > most


def kept(fact: Fact) -> Kept:
    """Return what a fact, once durable, lets others rely on."""
    return type(fact), fact.task, getattr(fact, "attempt", None)
