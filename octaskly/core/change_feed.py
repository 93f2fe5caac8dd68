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
from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple, Self

from octaskly.core.log.facts import Assigned, CancelAsked, Entry, Finished, Submitted
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import member_of
from octaskly.core.model.hlc import HLC_COUNTER_BITS, born_hlc, wall_ms_of
from octaskly.core.model.ids import NO_EPOCH, Epoch, Holdings, StreamId, TaskId, Vector
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import Attempt, AttemptState, TaskSpec, TaskState
from octaskly.core.model.values import value
from octaskly.core.protocol.messages import RosterLine

FRESH_MS = 1000
"""A submission that is written later than this after its task was accepted is no news:
it was written again."""

_PLACE = re.compile(r"(?:([0-9a-f]{1,16})-)" * 3 + r"([0-9a-f]{16})")
_STATES = {
    AttemptState.OK: TaskState.COMPLETED,
    AttemptState.FAILED: TaskState.FAILED,
    AttemptState.CANCELLED: TaskState.CANCELLED,
    AttemptState.RELEASED: TaskState.QUEUED,
}


class Reach(NamedTuple):
    """How far one stream goes at some time."""

    stream: StreamId
    epoch: Epoch  #: who wrote it
    seq: int  #: last entry from before that time
    start: int  #: what it says up to here is in the log no more


class Place(NamedTuple):
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
        match = _PLACE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:80]!a} is no place in the log")
        hlc, stream, seq = (int(part, 16) for part in match.groups()[:3])
        return cls(hlc, StreamId(stream), seq, match[4])


class Bookmark:
    """How far one reader has come, for a dispatcher that writes `stream`."""

    def __init__(
        self, hlc: int, vector: Mapping[StreamId, int], stream: StreamId
    ) -> None:
        self.hlc = hlc
        self.vector: Vector = dict(vector)
        self.owed: dict[TaskId, TaskNews] = {}
        """Ends of tasks of which something else was told last.

        The other half of a split may have gone on with a task that had ended here.
        """
        self._stream = stream
        self._digest: str | None = None

    @property
    def place(self) -> Place:
        """Where the reader is."""
        if self._digest is None:
            self._digest = _digest(self.vector.items(), self._stream)
        seq = self.vector.get(self._stream, 0)
        return Place(self.hlc, self._stream, seq, self._digest)

    def pass_over(self, entry: Entry) -> bool:
        """Move behind an entry; return whether the place can be found again.

        It cannot in the midst of entries that came to light late.
        """
        self.skip(entry.stream, entry.seq)
        is_late = entry.hlc < self.hlc
        self.hlc = max(self.hlc, entry.hlc)
        return not is_late

    def skip(self, stream: StreamId, seq: int) -> None:
        """Move behind all entries of a stream up to `seq`."""
        self.vector[stream] = max(seq, self.vector.get(stream, 0))
        if stream != self._stream:
            self._digest = None


def resumed(
    place: Place, reaches: Iterable[Reach], stream: StreamId
) -> tuple[Bookmark, bool]:
    """Return a bookmark at a place, and whether nothing is missing between the two.

    Args:
        place: How far a client got, by the word of any dispatcher.
        reaches: How far each stream goes at the time of the place.
        stream: What the dispatcher of this day writes.
    """
    reaches = tuple(reaches)
    known = {reach.stream: reach for reach in reaches}
    told = known.get(place.stream)
    # A reign that came later is not known to the one that told, though its clock may
    # be behind; unless it lost against that one when a split healed.
    epoch = told.epoch if told else NO_EPOCH
    before = {r.stream: r.seq for r in reaches if told is None or r.epoch <= epoch}
    everything = {reach.stream: reach.seq for reach in reaches}
    is_found = told is not None or place.seq == 0
    for vector in (before, everything):
        if is_found and _digest(vector.items(), place.stream) == place.digest:
            is_exact = told is None or place.seq >= told.start
            break
    else:
        # Rather tell something twice than not at all.
        vector, is_exact = before, False
    # What is lacking here was told, but a task may have gone on without it: it is told
    # again when it comes.
    vector[place.stream] = (
        max(min(place.seq, told.seq), told.start) if told is not None else 0
    )
    return Bookmark(place.hlc, vector, stream), is_exact


def _digest(items: Iterable[tuple[StreamId, int]], without: StreamId) -> str:
    hashed = blake2b(digest_size=8)
    for stream, seq in sorted(items):
        if seq and stream != without:
            hashed.update(b"%x:%x;" % (stream, seq))
    return hashed.hexdigest()


@value(frozen=True, slots=True)
class TaskNews:
    """A task went into a state."""

    record: TaskRecord  #: its outline
    state: TaskState  #: where it went at the time; it may be somewhere else by now
    at_ms: int  #: wall clock of the dispatcher that wrote it
    attempt: Attempt | None = None  #: that made it so


@value(frozen=True, slots=True)
class History:
    """A part of the log in the order of timestamps, as people read it."""

    items: tuple[tuple[Entry, TaskRecord], ...]
    """Entries about tasks that are known, with what is known of the task now."""
    arrays: Mapping[TaskId, TaskRecord]  #: that those tasks are, or are members of
    reached: Holdings  #: how far the streams concerned are read now
    has_more: bool
    is_whole: bool  #: nothing in between had been deleted before it was read


@value(frozen=True, slots=True)
class NodeNews:
    """A node is in the mesh like this now."""

    member: RosterLine
    is_gone: bool = False  #: it was lost for so long that it is listed no more


@value(frozen=True, slots=True)
class Gap:
    """What happened between the last news and the next is not known in full."""


About = TaskNews | NodeNews | Gap


@value(frozen=True, slots=True)
class News:
    """Something that happened, and where to go on after it."""

    about: About | None  #: None: nothing but the place
    place: Place | None = None  #: None: none but the one before


def news_of(entry: Entry, record: TaskRecord) -> TaskNews | None:
    """Return what an entry says that people wait for, if it does.

    Facts that decide nothing are no news: what is written again before it is
    forgotten, or how a second attempt ended whose task was decided by the first.
    """
    at_ms, fact = wall_ms_of(entry.hlc), entry.fact
    if record.progress is not None and not isinstance(fact, Submitted):
        return None  # What becomes of an array follows from its members.
    match fact:
        case Submitted(spec):
            is_fresh = entry.hlc - born_hlc(spec) < FRESH_MS << HLC_COUNTER_BITS
            return _news(record, TaskState.QUEUED, at_ms) if is_fresh else None
        case CancelAsked():
            is_so = record.state is TaskState.CANCELLED
            return _news(record, TaskState.CANCELLED, at_ms) if is_so else None
        case Assigned(_, attempt, node):
            made = Attempt(id=attempt, node=node)
            state = TaskState.RUNNING
        case Finished(_, attempt, node, outcome):
            made = Attempt(id=attempt, node=node, state=outcome.state, outcome=outcome)
            state = _STATES.get(outcome.state, TaskState.RUNNING)
        case _:
            return None
    if state.is_final and state is not record.state:
        return None
    chosen = record.chosen
    if record.state.is_final and chosen is not None:
        if chosen.id < attempt:
            return None
        if chosen.id == attempt and state is TaskState.QUEUED:
            # Given back by a worker that was taken for lost: nobody has the task again.
            return end_of(record, at_ms)
    return _news(record, state, at_ms, made)


def array_news(entry: Entry, array: TaskRecord) -> TaskNews | None:
    """Return that an array has ended, as far as is known; `entry` is of a member."""
    is_ended = array.state.is_final
    return _news(array, array.state, wall_ms_of(entry.hlc)) if is_ended else None


def end_of(record: TaskRecord, at_ms: int) -> TaskNews:
    """Return how a task ended."""
    return _news(record, record.state, at_ms, record.chosen)


def array_of(task: TaskId) -> TaskId:
    """Return the array of a member; all other tasks as they are."""
    place = member_of(task)
    return task if place is None else place[0]


def outline(record: TaskRecord) -> TaskRecord:
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


def _news(
    record: TaskRecord, state: TaskState, at_ms: int, attempt: Attempt | None = None
) -> TaskNews:
    if attempt is not None and attempt.outcome is not None:
        bare = replace(attempt.outcome, stdout=b"", stderr=b"", outputs=())
        attempt = replace(attempt, outcome=bare)
    return TaskNews(outline(record), state, at_ms, attempt)
