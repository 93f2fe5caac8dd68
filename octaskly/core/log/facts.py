"""What the log says: facts about tasks and the mesh, never orders, never overwritten.

An entry is one fact in one stream. Entries of a stream are written by one node in
one epoch, numbered from 1 without gaps, and never truncated: a `Floor` says for all
nodes alike which of them are too old to count.
"""

from __future__ import annotations

from typing import NamedTuple

from octaskly.core.model.ids import (
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.tasks import Outcome, TaskSpec
from octaskly.core.model.values import value


@value(frozen=True, slots=True)
class Submitted:
    """A task was accepted."""

    spec: TaskSpec

    @property
    def task(self) -> TaskId:
        """The task that this is about."""
        return self.spec.id


@value(frozen=True, slots=True)
class TaskCancelled:
    """Somebody cancelled the task; it wins over everything but success."""

    task: TaskId
    by: str


@value(frozen=True, slots=True)
class Assigned:
    """An attempt was handed to a worker."""

    task: TaskId
    attempt: AttemptId
    node: NodeId


@value(frozen=True, slots=True)
class Finished:
    """An attempt ended; `outcome.state` RELEASED means that another may follow."""

    task: TaskId
    attempt: AttemptId
    node: NodeId
    outcome: Outcome


@value(frozen=True, slots=True)
class Notified:
    """Who asked to be told of the task's end was told, or was given up."""

    task: TaskId


@value(frozen=True, slots=True)
class Unblocked:
    """The tasks that this one came after have ended as it asked: it may run."""

    task: TaskId


class StreamFloor(NamedTuple):
    """How far one stream is void, the entry `seq` included."""

    stream: StreamId
    seq: int
    epoch: Epoch  #: who wrote the stream


@value(frozen=True, slots=True)
class Floor:
    """Everything up to here is too old to count, for ever.

    A task without a submission beyond the marks is gone. Tasks that were still wanted
    were written again, whole, before. A node takes this fact in only when it holds what
    its writer held, so nothing is gone there before it is known to have ended.
    """

    horizon: int  #: hybrid timestamp; in the marked streams all up to it is void
    stream_floors: tuple[
        StreamFloor, ...
    ]  #: of all streams that ever had one, ordered by stream
    required_vector: VectorItems = ()  #: what the writer held beyond the marks, in other streams

    @property
    def task(self) -> TaskId:
        """No task: this is about all of them."""
        return TaskId("")


@value(frozen=True, slots=True)
class Recorded:
    """Something about no task that the whole mesh keeps; `core.records` has the kinds.

    Of several with one kind and key the first one counts, see `records.first`.
    """

    kind: str
    key: str
    body: bytes  #: means something to whoever wrote it, not to the log
    expires_ms: int  #: wall clock after which every node may forget it; 0: never
    hlc: (
        int  #: hybrid timestamp of when it was recorded; stays when it is written again
    )

    @property
    def task(self) -> TaskId:
        """No task."""
        return TaskId("")


TaskFact = Submitted | TaskCancelled | Assigned | Finished | Unblocked | Notified
Fact = TaskFact | Floor | Recorded

MESH_FACTS = (Floor, Recorded)

NO_FLOOR = Floor(0, ())


@value(frozen=True, slots=True)
class Entry:
    """One fact at its place in the log; identity is (stream, seq)."""

    stream: StreamId
    seq: int
    hlc: int  #: hybrid timestamp: milliseconds since 2020 << 15 | counter
    fact: Fact


PackedEntry = tuple[StreamId, int, int, bytes]
"""An entry as the log keeps it: its fact is packed."""
