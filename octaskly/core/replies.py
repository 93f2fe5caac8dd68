"""Replies to requests, carried by `effects.Answer`.

A reply is sent only once its content is as durable as it states.
"""

from __future__ import annotations

from msgspec import Struct

from octaskly.core.log.facts import Recorded
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.core.model.keyring_state import RotationNotStarted, RotationStarted
from octaskly.core.model.nodes import NodeState, RejectionReason
from octaskly.core.model.tasks import TaskSpec, TaskState
from octaskly.core.protocol.messages import OutputPiece


class NodeRejection(Struct, frozen=True):
    """The reasons why one node does not run the task."""

    node: NodeId
    name: str
    state: NodeState
    reasons: tuple[RejectionReason, ...]


class QueuedAhead(Struct, frozen=True):
    """Queued work that comes before a task: an array, or tasks of one submitter."""

    submitter: str
    array: TaskId | None  #: None: single tasks
    tasks: int  #: number of single tasks that come first
    is_exact: bool  #: False: the store may have more of these tasks
    takes_turns: bool
    """True if it has the same priority, so that it takes turns with the task."""


class TaskExplanation(Struct, frozen=True):
    """An explanation of a task's state and placement."""

    state: TaskState
    summary: str  #: one sentence, without a full stop
    rejections: tuple[NodeRejection, ...] = ()  #: for a task that waits
    placement_reason: str = ""  #: why its node was chosen
    ahead: tuple[QueuedAhead, ...] = ()  #: by turn, for a task that waits for capacity


class VisitorDemand(Struct, frozen=True):
    """The queued tasks, and members of arrays, that a new visitor could run."""

    waiting: int
    is_exact: bool  #: False: the store has more tasks that were not counted


class VisitorOutput(Struct, frozen=True):
    """Output of an attempt, from its visitor."""

    pieces: tuple[OutputPiece, ...]
    is_complete: bool  #: this is the last output of the attempt


class NoVisitorOutput(Struct, frozen=True):
    """The visitor is not linked to this node, or has no output of the attempt."""


class TaskIdsReserved(Struct, frozen=True):
    """Unique ids for tasks that may be submitted."""

    ids: tuple[TaskId, ...]


class TasksAccepted(Struct, frozen=True):
    """The submission is durable."""

    specs: tuple[TaskSpec, ...]
    replicas: int = 1


class CatchUpStatus(Struct, frozen=True):
    """The state of catch-up with the logs of other nodes."""

    is_complete: bool  #: no other node may hold a task that is unknown here


class Copied(Struct, frozen=True):
    """All that was on the dispatcher's disk at the request has copies."""

    replicas: int  #: with that of the dispatcher; 1 if no standby is in sync


class CancelResult(Struct, frozen=True):
    """The result of a cancel."""

    task: TaskId
    state: TaskState  #: state of the task now
    was_done: bool  #: this request cancelled it


class ReprioritizeResult(Struct, frozen=True):
    """The result of a change of priority."""

    state: TaskState  #: state of the task now
    was_done: bool  #: it waits, or members of it do, and it has the priority


class NotDispatching(Struct, frozen=True):
    """This node is not dispatcher; nothing was accepted."""


class NotReplicated(Struct, frozen=True):
    """The request requires a copy on a standby, and there is none.

    Nothing was accepted. If the standbys failed during the request, this node's disk
    may hold the data nevertheless.
    """


class AvailabilityChanged(Struct, frozen=True):
    """The operator's command is in force and survives a restart."""

    state: NodeState
    running: int  #: attempts in slots


class Unplaceable(Struct, frozen=True):
    """No node of the mesh could ever run a fail-fast task.

    Nothing was accepted.
    """

    index: int  #: of the task in the submission
    reason: str


class TasksPurged(Struct, frozen=True):
    """The tasks are forgotten on every node that applies the new floor."""

    count: int  #: number of tasks, including started members of arrays


class RecordsKept(Struct, frozen=True):
    """The record that counts for each requested one, now durable.

    It is an earlier record if kind and key were already used.
    """

    records: tuple[Recorded, ...]
    replicas: int = 1


class RecordLimitReached(Struct, frozen=True):
    """The mesh already has the most records of a kind; none was added."""

    kind: str
    count_max: int


Reply = (
    TaskIdsReserved
    | TasksAccepted
    | RecordsKept
    | RecordLimitReached
    | CatchUpStatus
    | Copied
    | CancelResult
    | ReprioritizeResult
    | NotDispatching
    | NotReplicated
    | AvailabilityChanged
    | Unplaceable
    | TasksPurged
    | TaskExplanation
    | VisitorDemand
    | VisitorOutput
    | NoVisitorOutput
    | RotationStarted
    | RotationNotStarted
)
