"""Log tail: the latest appends, in memory, from which a follower can catch up.

It is bounded in entries and bytes. Older entries are on disk, and followers pull them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from octaskly.core.effects import Append
from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Finished,
    Floor,
    MembersAssigned,
    MembersSucceeded,
    Recorded,
    Submitted,
    TaskCancelled,
)
from octaskly.core.log.range_facts import MEMBER_BYTES
from octaskly.core.model.ids import (
    DispatcherEpoch,
    Epoch,
    Moment,
    StreamId,
    Vector,
    covers,
)
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import CHAR_BYTES
from octaskly.core.protocol.messages import Replicate

ENTRY_BYTES = 200  #: approximate size of an entry without its texts
MARK_BYTES = 64  #: size of one stream's mark in a floor, roughly


@dataclass(slots=True)
class UnackedPart:
    """Appends in transit to a standby, not acknowledged yet."""

    number: int
    sent_s: float
    entry_count: int
    size_bytes: int
    last_seqs: dict[StreamId, int]  #: last sequence number of each stream in it


class LogTail:
    """The latest appends of an epoch, in order."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._appends: deque[tuple[Append, int]] = deque()  #: with their sizes in bytes
        self._entry_count = self._size_bytes = 0
        self._base_vector: Vector = {}
        """The entries that a node must hold to catch up from the tail."""
        self._retired: set[StreamId] = set()
        """Streams that were retired since the tail started; the base leaves them out.

        The caller checks that a node holds the retired streams.
        """

    def restart_from(self, vector: Vector) -> None:
        """Clear the tail; it starts after the entries that `vector` covers."""
        self._appends.clear()
        self._entry_count = self._size_bytes = 0
        self._base_vector = dict(vector)
        self._retired.clear()

    def may_keep(self, append: Append) -> bool:
        """Return True if an append has few enough entries for the tail."""
        return len(append.entries) <= self._limits.tail_entries

    def add(self, append: Append, size_bytes: int) -> None:
        """Add an append, and remove the oldest ones beyond the bounds."""
        self._appends.append((append, size_bytes))
        for floor in [e.fact for e in append.entries if type(e.fact) is Floor]:
            self._raise_base(floor)
        if self._retired:  # These entries are new, so they are not void.
            self._retired.difference_update(e.stream for e in append.entries)
        self._entry_count += len(append.entries)
        self._size_bytes += size_bytes
        limits = self._limits
        while self._appends and (
            self._entry_count > limits.tail_entries
            or self._size_bytes > limits.tail_bytes
        ):
            old, old_bytes = self._appends.popleft()
            self._entry_count -= len(old.entries)
            self._size_bytes -= old_bytes
            for stream, last in _last_entries(old.entries).items():
                if stream not in self._retired:
                    before = self._base_vector.get(stream, 0)
                    self._base_vector[stream] = max(before, last.last_seq)

    def _raise_base(self, floor: Floor) -> None:
        """Never stream to a node that lacks void entries, because no row has them.

        After a partition, these entries must still be merged with tasks of the other
        side.
        """
        for stream, seq in floor.ends:
            self._base_vector[stream] = max(self._base_vector.get(stream, 0), seq)
        for stream, _ in floor.retired:
            self._base_vector.pop(stream, None)
            self._retired.add(stream)

    def appends_missing_in(
        self, peer_vector: Mapping[StreamId, int]
    ) -> list[Append] | None:
        """Return the appends that a peer lacks; None: the tail starts too late."""
        if not covers(peer_vector, self._base_vector.items()):
            return None
        missing = []
        for append, _ in self._appends:
            entries = tuple(
                e for e in append.entries if peer_vector.get(e.stream, 0) < e.last_seq
            )
            missing.append(Append(append.number, entries, append.epochs))
        return missing


def replicate_messages(
    dispatcher_epoch: DispatcherEpoch,
    appends: Iterable[Append],
    number: int,
    bytes_max: int,
) -> tuple[Replicate, ...]:
    """Return appends as messages of about `bytes_max` at most.

    The last message has `number`. The others have the number 0, because they complete
    no append.
    """
    epoch = dispatcher_epoch.epoch
    messages = []
    entries: list[Entry] = []
    epochs: list[tuple[StreamId, Epoch]] = [(dispatcher_epoch.stream, epoch)]
    size = 0
    for append in appends:
        epochs += append.epochs
        for entry in append.entries:
            size += _entry_size_bytes(entry)
            if size > bytes_max and entries:
                messages.append(Replicate(epoch, 0, tuple(entries), tuple(epochs)))
                entries, size = [], _entry_size_bytes(entry)
                epochs = [(dispatcher_epoch.stream, epoch), *append.epochs]
            entries.append(entry)
    messages.append(Replicate(epoch, number, tuple(entries), tuple(epochs)))
    return tuple(messages)


def append_size_bytes(append: Append) -> int:
    """Return the approximate size of an append on the wire, in bytes."""
    size = ENTRY_BYTES * len(append.entries)
    for entry in append.entries:
        fact = entry.fact
        if type(fact) is Submitted:  # Common: ten thousand in one append.
            size += fact.spec.size_bytes
        else:
            size += _entry_size_bytes(entry) - ENTRY_BYTES
    return size


def _entry_size_bytes(entry: Entry) -> int:
    fact = entry.fact
    if isinstance(fact, Assigned):  # First, because every third entry is one.
        return ENTRY_BYTES
    if isinstance(fact, Finished):
        return ENTRY_BYTES + fact.outcome.size_bytes
    if isinstance(fact, Submitted):
        return ENTRY_BYTES + fact.spec.size_bytes
    if isinstance(fact, MembersAssigned | MembersSucceeded):
        return ENTRY_BYTES + MEMBER_BYTES * fact.count
    if isinstance(fact, TaskCancelled):
        return ENTRY_BYTES + CHAR_BYTES * len(fact.by)
    if isinstance(fact, Recorded):
        return ENTRY_BYTES + len(fact.body) + CHAR_BYTES * len(fact.key)
    if isinstance(fact, Floor):
        marks = len(fact.ends) + len(fact.required_vector)
        return ENTRY_BYTES + MARK_BYTES * marks
    return ENTRY_BYTES


def unacked_part(
    appends: Sequence[Append], number: int, size_bytes: int, now: Moment
) -> UnackedPart:
    """Return the bookkeeping for appends in transit."""
    entries = [entry for append in appends for entry in append.entries]
    ends = {s: last.last_seq for s, last in _last_entries(entries).items()}
    return UnackedPart(number, now.mono_s, len(entries), size_bytes, ends)


def _last_entries(entries: Iterable[Entry]) -> dict[StreamId, Entry]:
    """Return the last entry of each stream."""
    return {entry.stream: entry for entry in entries}
