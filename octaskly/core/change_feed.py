"""Change feed: positions and cursors of log readers, and task events for clients.

The log is read in timestamp order, across streams. A position takes a few bytes and can
be resumed on every node with the same entries. The dispatcher that served the reader
writes one stream, which was read up to `seq`. All other streams were read up to a
timestamp. A digest of the other streams shows if they are the same on another node,
because a stream that arrives late may hold older entries. It is a sum, in which a
retired stream counts as before.

Source: docs/explanation/events.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Self

from msgspec import Struct
from msgspec.structs import replace

from octaskly.core.log.facts import (
    Assigned,
    Decided,
    Entry,
    Finished,
    Notified,
    Submitted,
    TaskCancelled,
)
from octaskly.core.log.merge import TaskRecord
from octaskly.core.log.retired_streams import (
    EMPTY_DIGEST,
    add_digests,
    pair_digest,
)
from octaskly.core.model.arrays import array_of
from octaskly.core.model.hlc import HLC_COUNTER_BITS, accepted_hlc, wall_ms_of
from octaskly.core.model.ids import (
    NO_EPOCH,
    Epoch,
    StreamId,
    TaskId,
    Vector,
    VectorItems,
)
from octaskly.core.model.nodes import RosterEntry
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    Outcome,
    TaskSpec,
    TaskState,
)

REWRITE_AGE_MS = 1000
"""A submission written later than this after acceptance is a rewrite, not an event."""

# Numbers below 2^63, which the store can look up.
_POSITION = re.compile(r"(?:([0-7]?[0-9a-f]{1,15})-)" * 3 + r"([0-9a-f]{16})")


class StreamExtent(NamedTuple):
    """The part of one stream that was written up to some time."""

    stream: StreamId
    epoch: Epoch  #: in which it was written
    seq: int  #: last entry up to that time
    compacted_seq: int  #: entries up to here are no longer in the log


class FeedPosition(NamedTuple):
    """A position in the log that clients can store."""

    hlc: int
    stream: StreamId  #: written by the dispatcher that served the reader
    seq: int  #: last entry of that stream that was sent
    digest: str  #: of the last entries of all other streams that were sent

    def __str__(self) -> str:
        return f"{self.hlc:x}-{self.stream:x}-{self.seq:x}-{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the position from its text; raise ValueError if it is malformed."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:80]!a} is not a position in the log")
        hlc, stream, seq = (int(part, 16) for part in match.groups()[:3])
        return cls(hlc, StreamId(stream), seq, match[4])


class FeedCursor:
    """One reader's progress through the log, on a dispatcher that writes `stream`."""

    def __init__(
        self,
        hlc: int,
        vector: Mapping[StreamId, int],
        stream: StreamId,
        retired_digest: int = EMPTY_DIGEST,
    ) -> None:
        """Start at a time; `vector` leaves out the retired streams."""
        self.hlc = hlc
        self._retired_digest = retired_digest
        self.vector: Vector = dict(vector)
        self.owed_ends: set[TaskId] = set()
        """Tasks with webhooks whose end the reader has yet to get: see `read_page`."""
        self._stream = stream
        self._digest: str | None = None

    def copy(self) -> FeedCursor:
        """Return a cursor at the same place, which advances by itself."""
        copy = FeedCursor(self.hlc, self.vector, self._stream, self._retired_digest)
        copy.owed_ends = set(self.owed_ends)
        copy._digest = self._digest
        return copy

    def is_level_with(self, other: FeedCursor) -> bool:
        """Return True if both readers get the same items from now on."""
        mine, others = ((c.position, c.vector, c.owed_ends) for c in (self, other))
        return mine == others

    @property
    def position(self) -> FeedPosition:
        """Current position of the reader."""
        if self._digest is None:
            self._digest = _digest(
                self.vector.items(), self._stream, self._retired_digest
            )
        seq = self.vector.get(self._stream, 0)
        return FeedPosition(self.hlc, self._stream, seq, self._digest)

    def advance_past(self, entry: Entry) -> bool:
        """Advance past an entry; return True if the new position can be resumed.

        A position between entries that arrived late cannot.
        """
        self.skip_entries(entry.stream, entry.seq)
        is_late = entry.hlc < self.hlc
        self.hlc = max(self.hlc, entry.hlc)
        return not is_late

    def skip_entries(self, stream: StreamId, seq: int) -> None:
        """Advance past all entries of a stream up to `seq`."""
        self.vector[stream] = max(seq, self.vector.get(stream, 0))
        if stream != self._stream:
            self._digest = None


def resume_cursor(
    position: FeedPosition,
    extents: Iterable[StreamExtent],
    stream: StreamId,
    retired_digest: int = EMPTY_DIGEST,
) -> tuple[FeedCursor, bool]:
    """Return a cursor at `position`, and True if it continues there without a gap.

    Args:
        position: Position of a client, from any dispatcher.
        extents: Extent of each stream at the position's time, except retired ones.
        stream: Stream that the current dispatcher writes.
        retired_digest: Digest of the retired streams.
    """
    extents = tuple(extents)
    known = {extent.stream: extent for extent in extents}
    writer_extent = known.get(position.stream)
    # Leave out later epochs, even if their clock was behind: the dispatcher that served
    # the client did not know them. An epoch that lost after a split is an exception.
    epoch = writer_extent.epoch if writer_extent else NO_EPOCH
    before = {
        r.stream: r.seq for r in extents if writer_extent is None or r.epoch <= epoch
    }
    everything = {extent.stream: extent.seq for extent in extents}
    is_found = writer_extent is not None or position.seq == 0
    for vector in (before, everything):
        digest = _digest(vector.items(), position.stream, retired_digest)
        if is_found and digest == position.digest:
            is_exact = (
                writer_extent is None or position.seq >= writer_extent.compacted_seq
            )
            break
    else:
        # It is better to repeat an event than to miss one.
        vector, is_exact = before, False
    # The client got entries that this node lacks, but their tasks may have continued
    # without them. So they are sent again when they arrive.
    vector[position.stream] = (
        max(min(position.seq, writer_extent.seq), writer_extent.compacted_seq)
        if writer_extent is not None
        else 0
    )
    return FeedCursor(position.hlc, vector, stream, retired_digest), is_exact


def _digest(
    items: Iterable[tuple[StreamId, int]], without: StreamId, retired_digest: int
) -> str:
    named = (pair_digest(s, seq) for s, seq in items if seq and s != without)
    return f"{add_digests(retired_digest, *named):016x}"


class TaskEvent(Struct, frozen=True):
    """A task entered a state."""

    record: TaskRecord  #: an outline; see `outline_record`
    state: TaskState  #: state at that time; the task may have changed since
    at_ms: int  #: wall clock of the dispatcher that wrote the fact
    attempt: Attempt | None = None  #: attempt that caused the state


class EndedTask(NamedTuple):
    """A task that has ended. The processes of an array have exited, too."""

    record: TaskRecord
    last_change_hlc: int  #: timestamp of the latest fact about it or a member
    is_notified: bool  #: that fact may be the one that its webhook was sent


class FeedPage(Struct, frozen=True):
    """A page of the log in timestamp order."""

    items: tuple[tuple[Entry, TaskRecord], ...]
    """Entries about known tasks, with the current record of each task."""
    ended: Mapping[TaskId, EndedTask]  #: among these tasks and their arrays
    reached: VectorItems  #: last entry read of each stream on the page
    has_more: bool
    is_whole: bool  #: no entry in its range was deleted before it was read


class NodeEvent(Struct, frozen=True):
    """A node's entry in the roster changed."""

    member: RosterEntry
    is_gone: bool = False  #: it was lost for so long that it left the roster


class FeedGap(Struct, frozen=True):
    """Events between the previous and the next item may be missing."""


FeedContent = TaskEvent | NodeEvent | FeedGap


class FeedItem(Struct, frozen=True):
    """An event, and the position after it."""

    content: FeedContent | None  #: None: only a new position
    position: FeedPosition | None = None  #: None: the previous position stays


def read_page(page: FeedPage, cursor: FeedCursor) -> list[FeedItem]:
    """Return the items of a page of the log, and advance the cursor past it.

    The other half of a split may continue a task that had ended here, and a late log
    may have facts about an array that had ended. So each end is sent again behind the
    latest fact about its task, unless the client has just received it.
    """
    items = [] if page.is_whole else [FeedItem(FeedGap())]
    ends = _PageEnds(page, cursor)
    for entry, record in page.items:
        can_resume = cursor.advance_past(entry)
        event = task_event_of(entry, record)
        events = [] if event is None else [event]
        events += ends.due_behind(entry, record, event)
        for each in events:
            # A client may resume only after the last event of an entry.
            is_last = each is events[-1] and not cursor.owed_ends
            place = cursor.position if can_resume and is_last else None
            items.append(FeedItem(each, place))
    for stream, seq in page.reached:
        cursor.skip_entries(stream, seq)
    return items


class _PageEnds:
    """The ends that are due behind the entries of a page."""

    def __init__(self, page: FeedPage, cursor: FeedCursor) -> None:
        self._page = page
        self._cursor = cursor
        self._shown: set[TaskId] = set()  #: tasks whose latest event was their end
        self._owed: set[TaskId] = set()  #: until the last entry about them
        self._last: dict[TaskId, Entry] = {}
        """Last entry about a task, or about an array or one of its members."""
        for entry, record in page.items:
            self._last[record.id] = self._last[_top_of(record)] = entry

    def due_behind(
        self, entry: Entry, record: TaskRecord, event: TaskEvent | None
    ) -> Iterator[TaskEvent]:
        """Yield the end of a task, then that of its array, if they are due."""
        if event is not None and event.state.is_final:
            self._shown.add(record.id)
            self._settle(record.id)
        elif event is not None:
            self._shown.discard(record.id)
        for task in dict.fromkeys((record.id, _top_of(record))):
            end = self._page.ended.get(task)
            if end is not None and not isinstance(entry.fact, Notified):
                self._owe(task, end)
            if entry is self._last[task]:
                yield from self._take_end(task, end, wall_ms_of(entry.hlc))

    def _owe(self, task: TaskId, end: EndedTask) -> None:
        if task not in self._shown:
            # Only the entries of others show by themselves that the end is due.
            owed = self._cursor.owed_ends if end.is_notified else self._owed
            owed.add(task)

    def _take_end(
        self, task: TaskId, end: EndedTask | None, at_ms: int
    ) -> Iterator[TaskEvent]:
        """Yield the end of a task, if it is due behind the last entry about it."""
        is_owed = task in self._owed or task in self._cursor.owed_ends
        is_latest = end is not None and self._is_latest(end)
        if end is not None and is_owed and is_latest:
            yield end_event(end.record, at_ms)
        if end is None or is_latest:
            self._settle(task)

    def _settle(self, task: TaskId) -> None:
        self._owed.discard(task)
        self._cursor.owed_ends.discard(task)

    def _is_latest(self, end: EndedTask) -> bool:
        """Return True if the reader has read all facts about an ended task."""
        return end.last_change_hlc <= self._cursor.hlc or not self._page.has_more


def _top_of(record: TaskRecord) -> TaskId:
    """Return the array of a member, or the task itself."""
    return array_of(record.id) or record.id


def task_event_of(entry: Entry, record: TaskRecord) -> TaskEvent | None:
    """Return the event that an entry means for clients, if any.

    Facts that decide nothing are no events. Examples are rewritten facts, and the end
    of a second attempt after the first one decided the task.
    """
    at_ms, fact = wall_ms_of(entry.hlc), entry.fact
    if record.progress is not None and not isinstance(fact, Submitted):
        return None  # The state of an array follows from its members.
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
            begun = Attempt(id=attempt, node=node)
            return _attempt_event(record, TaskState.RUNNING, at_ms, begun)
        case Finished():
            return _event_of_end(fact, record, at_ms)
        case Decided():
            return end_event(record, at_ms) if record.state.is_final else None
        case _:
            return None


def _event_of_end(fact: Finished, record: TaskRecord, at_ms: int) -> TaskEvent | None:
    """Return the event that the end of an attempt means."""
    outcome = fact.outcome
    ended = Attempt(fact.attempt, fact.node, outcome.state, outcome)
    if outcome.state is AttemptState.OK and not fact.decided_term:
        return end_event(record, at_ms) if record.state.is_final else None
    state = _state_by_end(outcome, is_verdict=fact.decided_term > 0)
    return _attempt_event(record, state, at_ms, ended)


def _attempt_event(
    record: TaskRecord, state: TaskState, at_ms: int, attempt: Attempt
) -> TaskEvent | None:
    """Return the event that a task entered `state` by an attempt."""
    if state.is_final and state is not record.state:
        return None
    deciding = record.deciding_attempt
    if record.state.is_final and deciding is not None:
        if deciding.id < attempt.id:
            return None
        is_end = deciding.id == attempt.id and attempt.outcome is not None
        if state.is_final or is_end:
            # Another attempt may have decided first. If a worker that was presumed lost
            # returned this one, the task is not queued again.
            return end_event(record, at_ms)
    return _task_event(record, state, at_ms, attempt)


def end_event(record: TaskRecord, at_ms: int) -> TaskEvent:
    """Return the event for the end of a task."""
    return _task_event(record, record.state, at_ms, record.deciding_attempt)


def outline_record(record: TaskRecord) -> TaskRecord:
    """Return the small part of a record that events carry, whatever its size."""
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


def _state_by_end(outcome: Outcome, *, is_verdict: bool) -> TaskState:
    """Return the state that a task entered by the end of an attempt."""
    if is_verdict:
        is_success = outcome.state is AttemptState.OK
        return TaskState.COMPLETED if is_success else TaskState.FAILED
    is_killed = outcome.state is AttemptState.CANCELLED
    return TaskState.CANCELLED if is_killed else TaskState.QUEUED


def _task_event(
    record: TaskRecord, state: TaskState, at_ms: int, attempt: Attempt | None = None
) -> TaskEvent:
    if attempt is not None and attempt.outcome is not None:
        bare = replace(attempt.outcome, stdout=b"", stderr=b"", outputs=())
        attempt = replace(attempt, outcome=bare)
    return TaskEvent(outline_record(record), state, at_ms, attempt)
