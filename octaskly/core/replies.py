"""What a request is answered with: the replies that `effects.Answer` carries.

A reply leaves only when what it says is as durable as it says.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from octaskly.core.log.facts import Recorded
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.core.model.keys import RotationNotStarted, RotationStarted
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.tasks import TaskSpec, TaskState

TRANSIENT_CODES = frozenset(
    {
        "slots",
        "memory_granted",
        "gpus_granted",
        "reserved",
        "turn",
        "joining",
        "resting",
        "parents",
    }
)
"""Reasons that end by themselves while the node takes work."""


class RejectionReason(NamedTuple):
    """One reason why a node does not run a task."""

    code: str
    text: str  #: follows the name of the node

    @property
    def is_permanent(self) -> bool:
        """Whether it stays as long as nobody does something about it."""
        return self.code not in TRANSIENT_CODES


class NodeRejection(Struct, frozen=True):
    """Why one node does not run the task."""

    node: NodeId
    name: str
    state: NodeState
    reasons: tuple[RejectionReason, ...]


class TaskExplanation(Struct, frozen=True):
    """Why a task is where it is."""

    state: TaskState
    summary: str  #: one sentence, without a full stop
    rejections: tuple[NodeRejection, ...] = ()  #: of a task that waits
    placement_reason: str = ""  #: why it was given to the node that has or had it


class TaskIdsReserved(Struct, frozen=True):
    """Ids for tasks that may be handed in, and that no other task has."""

    ids: tuple[TaskId, ...]


class TasksAccepted(Struct, frozen=True):
    """The submission is durable."""

    specs: tuple[TaskSpec, ...]
    replicas: int = 1


class CatchUpStatus(Struct, frozen=True):
    """Whether no other node may hold a task that this one does not know."""

    is_complete: bool


class CancelResult(Struct, frozen=True):
    """What became of a cancel: the state that the task has now, and whether we did."""

    task: TaskId
    state: TaskState
    was_done: bool


class NotDispatching(Struct, frozen=True):
    """This node is not dispatcher (any more); nothing was accepted."""


class NotReplicated(Struct, frozen=True):
    """No standby keeps a copy, and the request insists on one.

    Nothing was accepted; only if the standbys failed while the request was under way
    may this node's disk hold it all the same.
    """


class AvailabilityChanged(Struct, frozen=True):
    """What the operator told this node is in force, and outlives a restart."""

    state: NodeState
    running: int  #: attempts in slots


class Unplaceable(Struct, frozen=True):
    """No node that is here could ever run a task that shall fail fast.

    Nothing was accepted.
    """

    index: int  #: of the task in the submission
    reason: str


class TasksPurged(Struct, frozen=True):
    """What was to be forgotten is void on every node that knows as much."""

    count: int  #: with the members of arrays that had begun


class RecordsKept(Struct, frozen=True):
    """Records are durable; for each that was asked for, the one that counts.

    That is an earlier one where kind and key were taken.
    """

    records: tuple[Recorded, ...]
    replicas: int = 1


class RecordLimitReached(Struct, frozen=True):
    """The mesh keeps as many records of a kind as it may; none was added."""

    kind: str
    count_max: int


Reply = (
    TaskIdsReserved
    | TasksAccepted
    | RecordsKept
    | RecordLimitReached
    | CatchUpStatus
    | CancelResult
    | NotDispatching
    | NotReplicated
    | AvailabilityChanged
    | Unplaceable
    | TasksPurged
    | TaskExplanation
    | RotationStarted
    | RotationNotStarted
)
