"""What the log says: facts about tasks and the mesh, never orders, never overwritten.

An entry is one fact in one stream. Entries of a stream are written by one node in
one epoch, numbered from 1 without gaps, and never truncated: a `Floor` says for all
nodes alike which of them are too old to count.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from octaskly.core.model.field_types import Blob, Canceller, Count, Millis, Word
from octaskly.core.model.ids import (
    STREAMS_MAX,
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.tasks import Outcome, TaskSpec


class Submitted(Struct, frozen=True, array_like=True, tag=100):
    """A task was accepted."""

    spec: TaskSpec

    @property
    def task(self) -> TaskId:
        """The task that this is about."""
        return self.spec.id


class TaskCancelled(Struct, frozen=True, array_like=True, tag=101):
    """Somebody cancelled the task; it wins over everything but success."""

    task: TaskId
    by: Canceller


class Assigned(Struct, frozen=True, array_like=True, tag=102):
    """An attempt was handed to a worker."""

    task: TaskId
    attempt: AttemptId
    node: NodeId


class Finished(Struct, frozen=True, array_like=True, tag=103):
    """An attempt ended; `outcome.state` RELEASED means that another may follow."""

    task: TaskId
    attempt: AttemptId
    node: NodeId
    outcome: Outcome


class Notified(Struct, frozen=True, array_like=True, tag=106):
    """Who asked to be told of the task's end was told, or was given up."""

    task: TaskId


class Unblocked(Struct, frozen=True, array_like=True, tag=105):
    """The tasks that this one came after have ended as it asked: it may run."""

    task: TaskId


class StreamFloor(Struct, frozen=True, array_like=True):
    """How far one stream is void, the entry `seq` included."""

    stream: StreamId
    seq: Count
    epoch: Epoch  #: who wrote the stream


class Floor(Struct, frozen=True, array_like=True, tag=104):
    """Everything up to here is too old to count, for ever.

    A task without a submission beyond the marks is gone. Tasks that were still wanted
    were written again, whole, before. A node takes this fact in only when it holds what
    its writer held, so nothing is gone there before it is known to have ended.
    """

    horizon: Count  #: hybrid timestamp; in the marked streams all up to it is void
    stream_floors: Annotated[tuple[StreamFloor, ...], Meta(max_length=STREAMS_MAX)]
    """Of all streams that ever had one, ordered by stream."""
    required_vector: VectorItems = ()  #: what the writer held beyond the marks, in other streams

    @property
    def ends(self) -> VectorItems:
        """How far each of these streams is void."""
        return tuple((mark.stream, mark.seq) for mark in self.stream_floors)

    @property
    def task(self) -> TaskId:
        """No task: this is about all of them."""
        return TaskId("")


class Recorded(Struct, frozen=True, array_like=True, tag=107):
    """Something about no task that the whole mesh keeps; `core.records` has the kinds.

    Of several with one kind and key the first one counts, see `records.first`.
    """

    kind: Word
    key: Word
    body: Blob  #: means something to whoever wrote it, not to the log
    expires_ms: Millis  #: wall clock after which every node may forget it; 0: never
    hlc: Count
    """Hybrid timestamp of when it was recorded; stays when it is written again."""

    @property
    def task(self) -> TaskId:
        """No task."""
        return TaskId("")


TaskFact = Submitted | TaskCancelled | Assigned | Finished | Unblocked | Notified
Fact = TaskFact | Floor | Recorded

MESH_FACTS = (Floor, Recorded)

NO_FLOOR = Floor(0, ())


class Entry(Struct, frozen=True, array_like=True):
    """One fact at its place in the log; identity is (stream, seq)."""

    stream: StreamId
    seq: Count
    hlc: Count  #: hybrid timestamp: milliseconds since 2020 << 15 | counter
    fact: Fact


PackedEntry = tuple[StreamId, int, int, bytes]
"""An entry as the log keeps it: its fact is packed."""
