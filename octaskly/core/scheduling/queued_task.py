"""One task as a dispatcher works with it, and the moves that it may make.

Owns the life of a task in memory, as a table of transitions. Order and places are the
queue's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from octaskly.core.model.arrays import RemainingMembers
from octaskly.core.model.ids import AttemptId, NodeId
from octaskly.core.model.task_options import Requirements, requires_of, slots_of
from octaskly.core.model.tasks import TaskSpec, TaskState
from octaskly.core.scheduling.retry_policy import NO_TRIES, Tries


class Stage(IntEnum):
    """Where a task in hand stands."""

    QUEUED = 0
    LIVE = 1  #: a worker holds an attempt
    ENDED = 2  #: nothing to do; kept until that is durable
    BACKING_OFF = 3  #: it failed, and waits before it is queued again


class Transition(IntEnum):
    """What moves a task to another stage."""

    ASSIGN = 0  #: an attempt was given to a worker, or found at one
    RELEASE = 1  #: the attempt came back, another may follow
    END = 2  #: a result, a cancel, or the store is to be asked again
    BACK_OFF = 3  #: the attempt failed, another follows later
    RETRY = 4  #: it has rested


WAITING_STAGES = (
    Stage.QUEUED,
    Stage.BACKING_OFF,
)  #: nobody holds it, and it has not ended


TRANSITIONS: tuple[tuple[Stage | None, ...], ...] = (
    # ASSIGN       RELEASE        END          REST           WAKE
    (Stage.LIVE, None, Stage.ENDED, None, None),  # QUEUED
    (None, Stage.QUEUED, Stage.ENDED, Stage.BACKING_OFF, None),  # LIVE
    (None, None, Stage.ENDED, None, None),  # ENDED
    (Stage.LIVE, None, Stage.ENDED, None, Stage.QUEUED),  # RESTING
)
"""Legal moves, by stage and turn; None is a broken invariant."""


@dataclass(slots=True)
class QueuedTask:
    """One task as the dispatcher works with it."""

    spec: TaskSpec
    stage: Stage = Stage.QUEUED
    attempt: AttemptId | None = None  #: the live one, or the last one that was
    node: NodeId | None = None  #: who holds it, or held it last
    last_attempt_n: int = 0  #: highest attempt number known
    reported: tuple[AttemptId, ...] = ()  #: attempts whose end is on record
    nodes_lacking_inputs: frozenset[NodeId] = frozenset()  #: workers without an input
    missing_input: str = ""  #: the input that the last of them named
    final_state: TaskState | None = None  #: decided, though an attempt may still run
    commit_number: int = (
        0  #: of the commit that makes the last facts durable; 0: they are
    )
    is_store_confirmed: bool = True  #: the store was seen to agree that it is not final
    is_worker_confirmed: bool = (
        False  #: its worker said that it runs it, or was just given it
    )
    tries: Tries = NO_TRIES  #: attempts in vain
    may_be_array_cancelled: bool = False
    """Its array may be cancelled: before it runs again the store is asked."""
    is_array_cancelled: bool = (
        False  #: its array was cancelled while it ran: no attempt follows
    )
    remaining: RemainingMembers | None = (
        None  #: of an array: its members that were not handed out
    )
    next_member: QueuedTask | None = None  #: of an array: the member to hand out next
    failed_members: int = 0  #: of an array: its members that failed
    shape: int | None = None  #: of the lane in which it waits, once it does
    size_bytes: int = 0  #: bytes that it takes while it waits, roughly

    @property
    def requires(self) -> Requirements | None:
        """What it asks of its node."""
        return requires_of(self.spec.options)

    @property
    def slots(self) -> int:
        """How many slots it holds on its node."""
        return slots_of(self.spec.options)


@dataclass(slots=True)
class Grant:
    """What the attempts on one node were granted beyond one slot each."""

    slots: int = 0
    memory_mb: int = 0
    gpus: int = 0

    def add(self, requires: Requirements, sign: int) -> None:
        """Count what one attempt was granted (1), or no longer has (-1)."""
        self.slots += sign * (requires.slots - 1)
        self.memory_mb += sign * requires.memory_mb
        self.gpus += sign * requires.gpus
