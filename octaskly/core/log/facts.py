"""Facts and entries of the replicated log.

A fact states what happened; it is never a command and never overwritten. An entry is
one fact in one stream. One node writes a stream in one epoch and numbers its entries
from 1 without gaps. A stream is never truncated. Instead, a `Floor` voids old entries
on all nodes alike.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from octaskly.core.model.arrays import MEMBER_NUMBER_MAX, RANGE_MAX
from octaskly.core.model.field_types import Blob, Canceller, Count, Int, Millis, Word
from octaskly.core.model.ids import (
    STREAMS_MAX,
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.tasks import Outcome, Priority, TaskSpec, TaskState


class SingleFact(Struct, frozen=True, gc=False, array_like=True):
    """A fact that stands for itself alone."""

    count: ClassVar[int] = 1  #: number of facts for which it stands


class Submitted(SingleFact, frozen=True, gc=False, array_like=True, tag=100):
    """A task was accepted."""

    spec: TaskSpec

    @property
    def task(self) -> TaskId:
        """Id of the accepted task."""
        return self.spec.id


class TaskCancelled(SingleFact, frozen=True, gc=False, array_like=True, tag=101):
    """The verdict that a task is cancelled, unless a later epoch decided otherwise."""

    task: TaskId
    by: Canceller
    term: Count = 0  #: of the epoch that cancelled it


class Decided(SingleFact, frozen=True, gc=False, array_like=True, tag=108):
    """The verdict that a task completed or failed, apart from the end that caused it.

    Most verdicts are known when the end is recorded, and are part of `Finished`. A
    later epoch repeats a verdict with the same attempt, so the shown attempt stays.
    """

    task: TaskId
    state: TaskState  #: COMPLETED or FAILED
    term: Count  #: of the epoch that decided it
    attempt: AttemptId  #: the one whose end is shown
    node: NodeId  #: on which that attempt ran


class Assigned(SingleFact, frozen=True, gc=False, array_like=True, tag=102):
    """An attempt was assigned to a worker."""

    task: TaskId
    attempt: AttemptId
    node: NodeId


class Finished(SingleFact, frozen=True, gc=False, array_like=True, tag=103):
    """An attempt ended; `outcome` says how, whatever follows from it."""

    task: TaskId
    attempt: AttemptId
    node: NodeId
    outcome: Outcome
    decided_term: Count = 0
    """Epoch that decided the task by this end; 0: it decided nothing when written.

    The verdict is that the task completed if the attempt succeeded, else that it
    failed.
    """


class Notified(SingleFact, frozen=True, gc=False, array_like=True, tag=106):
    """The notification about the task's end was delivered or abandoned."""

    task: TaskId


class Unblocked(SingleFact, frozen=True, gc=False, array_like=True, tag=105):
    """The task's dependencies ended as required, so it may run."""

    task: TaskId


class Reprioritized(
    SingleFact, frozen=True, gc=False, array_like=True, tag=109, order=True
):
    """A task or an array got another priority; of several, the latest counts.

    The latest is that of the highest term, then with the highest timestamp.
    """

    task: TaskId
    term: Count  #: of the epoch that changed it
    hlc: Count  #: hybrid timestamp of the change
    priority: Priority


Step = Annotated[int, Meta(ge=1, le=MEMBER_NUMBER_MAX)]
"""From the number of one member to the next."""


class MembersAssigned(Struct, frozen=True, gc=False, array_like=True, tag=110):
    """First attempts at several members of an array were assigned to a worker.

    It stands for an `Assigned` of each member: see `log.range_facts`.
    """

    array: TaskId
    attempt: AttemptId  #: of the first member; the others follow in the log
    node: NodeId
    number: Count  #: of the first member
    step: Step
    count: Annotated[int, Meta(ge=2, le=RANGE_MAX)]  #: number of members

    @property
    def task(self) -> TaskId:
        """Id of the array."""
        return self.array


class SuccessTimes(Struct, frozen=True, gc=False, array_like=True):
    """Times of one member in `MembersSucceeded`, with the meaning of `Outcome`."""

    started_ms: Int  #: since that of the fact
    ended_ms: Int  #: since its start
    duration_ms: Millis
    cpu_ms: Millis | None = None
    memory_max_kb: Count | None = None


class MembersSucceeded(Struct, frozen=True, gc=False, array_like=True, tag=111):
    """Several members of a `MembersAssigned` succeeded, and so they completed.

    It stands for a `Finished` of each member: see `log.range_facts`.
    """

    array: TaskId
    attempt: AttemptId  #: of the member with offset 0
    node: NodeId
    number: Count  #: of the member with offset 0
    step: Step
    offsets: Annotated[tuple[Count, ...], Meta(min_length=2, max_length=RANGE_MAX)]
    """Places of the members among those that were assigned together, in order."""
    decided_term: Count
    started_ms: Millis
    times: Annotated[tuple[SuccessTimes, ...], Meta(max_length=RANGE_MAX)]

    @property
    def task(self) -> TaskId:
        """Id of the array."""
        return self.array

    @property
    def count(self) -> int:
        """Number of members."""
        return len(self.offsets)


ATTEMPT_FACTS = (Assigned, Finished)

RangeFact = MembersAssigned | MembersSucceeded

RANGE_FACTS = (MembersAssigned, MembersSucceeded)

RETIRED_MAX = 1000  #: streams that one floor may retire


class StreamFloor(Struct, frozen=True, gc=False, array_like=True):
    """Compaction floor of one stream: entries up to `seq`, included, are void."""

    stream: StreamId
    seq: Count
    epoch: Epoch  #: in which the stream was written


class Floor(SingleFact, frozen=True, gc=False, array_like=True, tag=104):
    """Compaction floor: all entries up to it are void for ever.

    A task without a submission above the floor is forgotten. Before it writes a floor,
    a node rewrites in full every task that must stay. A node applies the floor only
    once it holds what the writer held. So no node forgets a task before it knows the
    end.
    """

    horizon: Count  #: hybrid timestamp; entries of these streams up to it are void
    stream_floors: Annotated[tuple[StreamFloor, ...], Meta(max_length=STREAMS_MAX)]
    """Floors of all streams that have one and are not retired, ordered by stream."""
    required_vector: VectorItems = ()
    """Entries of other streams that the writer held; required to apply the floor."""
    retired: Annotated[
        tuple[tuple[StreamId, Count], ...], Meta(max_length=RETIRED_MAX)
    ] = ()
    """Streams that this floor retires, each with its last void entry."""

    @property
    def ends(self) -> VectorItems:
        """For each stream, the last void entry."""
        marks = tuple((mark.stream, mark.seq) for mark in self.stream_floors)
        return (*marks, *self.retired)

    @property
    def task(self) -> TaskId:
        """Empty: a floor is about all tasks."""
        return TaskId("")


class Recorded(SingleFact, frozen=True, gc=False, array_like=True, tag=107):
    """A record that the mesh keeps and that belongs to no task; see `log.mesh_records`.

    Of several records with one kind and key, the earliest counts.
    """

    kind: Word
    key: Word
    body: Blob  #: opaque to the log
    expires_ms: Millis  #: wall clock after which every node may forget it; 0: never
    hlc: Count
    """Hybrid timestamp of the first write; a rewrite keeps it."""

    @property
    def task(self) -> TaskId:
        """Empty: a record belongs to no task."""
        return TaskId("")


TaskFact = (
    Submitted
    | TaskCancelled
    | Assigned
    | Finished
    | Decided
    | Unblocked
    | Notified
    | Reprioritized
)
Fact = TaskFact | RangeFact | Floor | Recorded

MESH_FACTS = (Floor, Recorded)

TASK_FACTS = (
    *ATTEMPT_FACTS,
    *(Submitted, TaskCancelled, Decided, Unblocked, Notified, Reprioritized),
)
"""The facts of `TaskFact`, the most frequent ones first."""

NO_FLOOR = Floor(0, ())


class Entry(Struct, frozen=True, gc=False, array_like=True):
    """One fact at its place in the log; identity is (stream, seq).

    A fact about several members of an array takes as many numbers and timestamps as the
    facts for which it stands.
    """

    stream: StreamId
    seq: Count
    hlc: Count  #: hybrid timestamp: milliseconds since 2020 << 15 | counter
    fact: Fact

    @property
    def last_seq(self) -> int:
        """Its last sequence number."""
        return self.seq + self.fact.count - 1

    @property
    def last_hlc(self) -> int:
        """Its last timestamp."""
        return self.hlc + self.fact.count - 1


PackedEntry = tuple[StreamId, int, int, bytes]
"""An entry with a packed fact, as stored."""
