"""Where a reader of the log stands, and what an entry means to people.

The log is read in the order of its timestamps, across streams. A place in it can be
named in a few bytes, and found again on every node that holds the same entries: the
reign that told of it has been read up to `seq`, all other streams up to a timestamp.
A digest tells whether they are the same, since a stream that comes to light later may
hold entries from before.

Source: docs/explanation/events.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple, Self

from msgspec import Struct
from msgspec.structs import replace

from octaskly.core.log.facts import Assigned, Entry, Finished, Submitted, TaskCancelled
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.hlc import HLC_COUNTER_BITS, accepted_hlc, wall_ms_of
from octaskly.core.model.ids import (
    NO_EPOCH,
    Epoch,
    StreamId,
    TaskId,
    Vector,
    VectorItems,
)
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import Attempt, AttemptState, TaskSpec, TaskState
from octaskly.core.protocol.messages import RosterEntry

REWRITE_AGE_MS = 1000
"""A submission that is written later than this after its task was accepted is no news:
it was written again."""

_POSITION = re.compile(r"(?:([0-9a-f]{1,16})-)" * 3 + r"([0-9a-f]{16})")
_STATES = {
    AttemptState.OK: TaskState.COMPLETED,
    AttemptState.FAILED: TaskState.FAILED,
    AttemptState.CANCELLED: TaskState.CANCELLED,
    AttemptState.RELEASED: TaskState.QUEUED,
}


class StreamExtent(NamedTuple):
    """How far one stream goes at some time."""

    stream: StreamId
    epoch: Epoch  #: who wrote it
    seq: int  #: last entry from before that time
    compacted_seq: int  #: what it says up to here is in the log no more


class FeedPosition(NamedTuple):
    """A place in the log, as clients keep it."""

    hlc: int
    stream: StreamId  #: the reign that told of it
    seq: int  #: what was told of that stream
    digest: str  #: of how far all others were told

    def __str__(self) -> str:
        return f"{self.hlc:x}-{self.stream:x}-{self.seq:x}-{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the place that was shown as `text`; raise ValueError if none was."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:80]!a} is no place in the log")
        hlc, stream, seq = (int(part, 16) for part in match.groups()[:3])
        return cls(hlc, StreamId(stream), seq, match[4])


class FeedCursor:
    """How far one reader has come, for a dispatcher that writes `stream`."""

    def __init__(
        self, hlc: int, vector: Mapping[StreamId, int], stream: StreamId
    ) -> None:
        self.hlc = hlc
        self.vector: Vector = dict(vector)
        self.corrected_ends: dict[TaskId, TaskEvent] = {}
        """Ends of tasks of which something else was told last.

        The other half of a split may have gone on with a task that had ended here.
        """
        self._stream = stream
        self._digest: str | None = None

    @property
    def position(self) -> FeedPosition:
        """Where the reader is."""
        if self._digest is None:
            self._digest = _digest(self.vector.items(), self._stream)
        seq = self.vector.get(self._stream, 0)
        return FeedPosition(self.hlc, self._stream, seq, self._digest)

    def advance_past(self, entry: Entry) -> bool:
        """Move behind an entry; return whether the place can be found again.

        It cannot in the midst of entries that came to light late.
        """
        self.skip_entries(entry.stream, entry.seq)
        is_late = entry.hlc < self.hlc
        self.hlc = max(self.hlc, entry.hlc)
        return not is_late

    def skip_entries(self, stream: StreamId, seq: int) -> None:
        """Move behind all entries of a stream up to `seq`."""
        self.vector[stream] = max(seq, self.vector.get(stream, 0))
        if stream != self._stream:
            self._digest = None


def resume_cursor(
    position: FeedPosition, extents: Iterable[StreamExtent], stream: StreamId
) -> tuple[FeedCursor, bool]:
    """Return a bookmark at a place, and whether nothing is missing between the two.

    Args:
        position: How far a client got, by the word of any dispatcher.
        extents: How far each stream goes at the time of the place.
        stream: What the dispatcher of this day writes.
    """
    extents = tuple(extents)
    known = {reach.stream: reach for reach in extents}
    told_extent = known.get(position.stream)
    # A reign that came later is not known to the one that told, though its clock may
    # be behind; unless it lost against that one when a split healed.
    epoch = told_extent.epoch if told_extent else NO_EPOCH
    before = {
        r.stream: r.seq for r in extents if told_extent is None or r.epoch <= epoch
    }
    everything = {reach.stream: reach.seq for reach in extents}
    is_found = told_extent is not None or position.seq == 0
    for vector in (before, everything):
        if is_found and _digest(vector.items(), position.stream) == position.digest:
            is_exact = told_extent is None or position.seq >= told_extent.compacted_seq
            break
    else:
        # Rather tell something twice than not at all.
        vector, is_exact = before, False
    # What is lacking here was told, but a task may have gone on without it: it is told
    # again when it comes.
    vector[position.stream] = (
        max(min(position.seq, told_extent.seq), told_extent.compacted_seq)
        if told_extent is not None
        else 0
    )
    return FeedCursor(position.hlc, vector, stream), is_exact


def _digest(items: Iterable[tuple[StreamId, int]], without: StreamId) -> str:
    hashed = blake2b(digest_size=8)
    for stream, seq in sorted(items):
        if seq and stream != without:
            hashed.update(b"%x:%x;" % (stream, seq))
    return hashed.hexdigest()


class TaskEvent(Struct, frozen=True):
    """A task went into a state."""

    record: TaskRecord  #: its outline
    state: TaskState  #: where it went at the time; it may be somewhere else by now
    at_ms: int  #: wall clock of the dispatcher that wrote it
    attempt: Attempt | None = None  #: that made it so


class FeedPage(Struct, frozen=True):
    """A part of the log in the order of timestamps, as people read it."""

    items: tuple[tuple[Entry, TaskRecord], ...]
    """Entries about tasks that are known, with what is known of the task now."""
    arrays: Mapping[TaskId, TaskRecord]  #: that those tasks are, or are members of
    reached: VectorItems  #: how far the streams concerned are read now
    has_more: bool
    is_whole: bool  #: nothing in between had been deleted before it was read


class NodeEvent(Struct, frozen=True):
    """A node is in the mesh like this now."""

    member: RosterEntry
    is_gone: bool = False  #: it was lost for so long that it is listed no more


class FeedGap(Struct, frozen=True):
    """What happened between the last news and the next is not known in full."""


FeedContent = TaskEvent | NodeEvent | FeedGap


class FeedItem(Struct, frozen=True):
    """Something that happened, and where to go on after it."""

    content: FeedContent | None  #: None: nothing but the place
    position: FeedPosition | None = None  #: None: none but the one before


def task_event_of(entry: Entry, record: TaskRecord) -> TaskEvent | None:
    """Return what an entry says that people wait for, if it does.

    Facts that decide nothing are no news: what is written again before it is
    forgotten, or how a second attempt ended whose task was decided by the first.
    """
    at_ms, fact = wall_ms_of(entry.hlc), entry.fact
    if record.progress is not None and not isinstance(fact, Submitted):
        return None  # What becomes of an array follows from its members.
    match fact:
        case Submitted(spec):
            is_fresh = (
                entry.hlc - accepted_hlc(spec) < REWRITE_AGE_MS << HLC_COUNTER_BITS
            )
            return _task_event(record, TaskState.QUEUED, at_ms) if is_fresh else None
        case TaskCancelled():
            is_cancelled = record.state is TaskState.CANCELLED
            return (
                _task_event(record, TaskState.CANCELLED, at_ms)
                if is_cancelled
                else None
            )
        case Assigned(_, attempt, node):
            shown_attempt = Attempt(id=attempt, node=node)
            state = TaskState.RUNNING
        case Finished(_, attempt, node, outcome):
            shown_attempt = Attempt(
                id=attempt, node=node, state=outcome.state, outcome=outcome
            )
            state = _STATES.get(outcome.state, TaskState.RUNNING)
        case _:
            return None
    if state.is_final and state is not record.state:
        return None
    deciding = record.deciding_attempt
    if record.state.is_final and deciding is not None:
        if deciding.id < attempt:
            return None
        if deciding.id == attempt and state is TaskState.QUEUED:
            # Given back by a worker that was taken for lost: nobody has the task again.
            return end_event(record, at_ms)
    return _task_event(record, state, at_ms, shown_attempt)


def array_event_of(entry: Entry, array: TaskRecord) -> TaskEvent | None:
    """Return that an array has ended, as far as is known; `entry` is of a member."""
    is_ended = array.state.is_final
    return _task_event(array, array.state, wall_ms_of(entry.hlc)) if is_ended else None


def end_event(record: TaskRecord, at_ms: int) -> TaskEvent:
    """Return how a task ended."""
    return _task_event(record, record.state, at_ms, record.deciding_attempt)


def array_id_of(task: TaskId) -> TaskId:
    """Return the array of a member; all other tasks as they are."""
    array_and_number = split_member_id(task)
    return task if array_and_number is None else array_and_number[0]


def outline_record(record: TaskRecord) -> TaskRecord:
    """Return what news show of a task: little, however much it asks for."""
    spec = record.spec
    if spec is None:
        return replace(record, attempts=())
    array = None if spec.array is None else replace(spec.array, items=())
    small = TaskSpec(
        id=spec.id,
        command="",
        created_ms=spec.created_ms,
        ord=spec.ord,
        options=None if array is None else TaskOptions(array=array),
    )
    return replace(record, attempts=(), spec=small)


def _task_event(
    record: TaskRecord, state: TaskState, at_ms: int, attempt: Attempt | None = None
) -> TaskEvent:
    if attempt is not None and attempt.outcome is not None:
        bare = replace(attempt.outcome, stdout=b"", stderr=b"", outputs=())
        attempt = replace(attempt, outcome=bare)
    return TaskEvent(outline_record(record), state, at_ms, attempt)
