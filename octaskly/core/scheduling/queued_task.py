"""A queued task in the dispatcher's memory, and the stages that follow each other.

`queue_lanes` keeps the order of `TaskSpec.ord`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from octaskly.core.log.facts import Finished, TaskFact
from octaskly.core.log.merge import (
    TaskRecord,
    apply_fact,
    join_records,
    ord_after,
    with_array_cancelled,
    with_attempt,
)
from octaskly.core.log.shown_end import (
    INPUT_TEXTS_MAX,
    cut_missing_text,
    missing_texts,
)
from octaskly.core.model.arrays import RemainingMembers, split_member_id
from octaskly.core.model.ids import (
    VISITOR_PREFIX,
    AttemptId,
    NodeId,
    TaskId,
    is_visitor,
)
from octaskly.core.model.task_options import (
    Requirements,
    VisitorRule,
    requires_of,
    slots_of,
)
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    LaneKey,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.scheduling.turns import FlowKey, Shares, flow_of

VISITOR_RETURNS_MAX: Final = 2
"""Attempts that visitors returned or lost, after which a task goes to none."""
ANY_VISITOR: Final = NodeId(VISITOR_PREFIX)
"""Stands for all visitors among the workers that must not get a task."""
_NO_SPEC: Final = TaskSpec(TaskId(""), "")
_NOT_RUN: Final = (AttemptState.RELEASED, AttemptState.CANCELLED)


class Stage(IntEnum):
    """The stage of a task in memory."""

    QUEUED = 0
    LIVE = 1  #: a worker holds an attempt
    ENDED = 2  #: nothing to do; kept until the end is durable
    BACKING_OFF = 3  #: it failed, and waits before it is queued again


WAITING_STAGES = (
    Stage.QUEUED,
    Stage.BACKING_OFF,
)  #: no worker holds it, and it has not ended


class QueuedTask(Struct, eq=False, gc=False):
    """A task in the dispatcher's memory, with all that is known of it."""

    record: TaskRecord
    """The join of what was read and of the facts of this epoch, without outputs."""
    stage: Stage = Stage.QUEUED
    attempt: AttemptId | None = None  #: the live or else the last one
    node: NodeId | None = None  #: worker of that attempt
    missing_inputs: dict[NodeId, str] = field(default_factory=dict)
    """The nodes that lack inputs; of the first few, what each lacks."""
    missing_room: str = ""  #: for its files, at any node, when it was last tried
    retry_s: float = 0.0
    """Time at which its backoff ends, or its exclusions while it is queued."""
    commit_number: int = (
        0  #: commit that makes its last facts durable; 0: they are durable
    )
    last_read: int = 0  #: once it has ended, the last read that may not show so
    is_read: bool = True
    """The log was read; otherwise it may have a verdict that is not known here."""
    is_worker_confirmed: bool = (
        False  #: its worker reported it as running, or was just assigned it
    )
    may_be_array_cancelled: bool = False
    """Its array may be cancelled, so the store is read before it runs again."""
    array_cancelled_by: str | None = None
    """Canceller of its array: no attempt follows, but a success still counts."""
    remaining: RemainingMembers | None = (
        None  #: for an array, its members that were never assigned
    )
    lane: LaneKey | None = None  #: its lane, once it is in one
    excluded: frozenset[NodeId] = frozenset()
    """The workers that must not get it, by which its lane groups its tasks."""
    place: int = 0  #: its place there, which other entries of the lane do not have
    shares: Shares | None = None  #: those that hold the slots of its live attempt
    size_bytes: int = 0  #: its size while it waits, roughly
    # Derived from the record:
    spec: TaskSpec = _NO_SPEC  #: without a command while it is not known
    array: TaskId | None = None  #: its array, if it is a member
    number: int = 0  #: of a member in its array
    flow: FlowKey = ("", None)  #: with which it takes turns
    slots: int = 1  #: that an attempt holds
    final_state: TaskState | None = None
    """The state by the last verdict, even if an attempt still runs; None: none."""

    def __post_init__(self) -> None:
        """Derive from the record what is needed often."""
        record = self.record
        spec = self.spec = record.spec or TaskSpec(id=record.id, command="")
        if (place := split_member_id(record.id)) is not None:
            self.array, self.number = place
        if spec.options is None:  # A shortcut for most tasks.
            self.flow = spec.submitter, self.array
        else:
            self.flow, self.slots = flow_of(spec), slots_of(spec.options)
        if record.attempts or record.cancelled_by:
            self._update_final_state()

    @property
    def ord(self) -> int:
        """Its place in its flow: first by priority, then by age."""
        return ord_after(self.spec, self.record.reprioritized)

    @property
    def requires(self) -> Requirements | None:
        """The task's requirements, if any, with those that its attempts add."""
        requires = requires_of(self.spec.options)
        if requires is not None and self.avoids_visitors:
            return replace(requires, visitors=VisitorRule.REFUSED)
        return requires

    @property
    def last_attempt_n(self) -> int:
        """Highest number of an attempt, in any epoch; 0 if there is none."""
        attempts = self.record.attempts
        return max(attempt.id.n for attempt in attempts) if attempts else 0

    @property
    def avoids_visitors(self) -> bool:
        """Return True if visitors have returned, cancelled or lost it too often.

        Only a hostile visitor ends as cancelled what nobody has cancelled.
        """
        attempts = self.record.attempts
        if len(attempts) < VISITOR_RETURNS_MAX:
            return False
        returned = (
            attempt.state in _NOT_RUN and is_visitor(attempt.node)
            for attempt in attempts
        )
        return sum(returned) >= VISITOR_RETURNS_MAX

    @property
    def exclusions(self) -> frozenset[NodeId]:
        """The workers of its shape that must not get it, as is known now."""
        if not self.record.attempts:  # A shortcut for most tasks.
            return frozenset()
        visitors = (ANY_VISITOR,) if self.avoids_visitors else ()
        return frozenset((*self.missing_inputs, *visitors))

    def is_live_at(self, node: NodeId, attempt: AttemptId) -> bool:
        """Return True if a node holds an attempt, and that is the live one."""
        is_live = self.stage is Stage.LIVE and self.node == node
        return is_live and self.attempt == attempt

    def add_fact(self, fact: TaskFact) -> None:
        """Join a fact of this epoch."""
        if isinstance(fact, Finished):
            full = fact.outcome
            end = Outcome(full.state, full.reason, full.exit_code)
            self.record = with_attempt(
                self.record,
                Attempt(fact.attempt, fact.node, full.state, end, fact.decided_term),
            )
        else:
            self.record = apply_fact(self.record, fact)
        self._update_final_state()

    def add_live_attempt(self, attempt: AttemptId, node: NodeId) -> None:
        """Join an attempt that was assigned, or found at a worker."""
        self.record = with_attempt(self.record, Attempt(attempt, node))
        if self.final_state is not None:
            self._update_final_state()

    def join(self, record: TaskRecord) -> None:
        """Join what the store, or another epoch, knows.

        A cancel of a member's array is kept apart, because it does not end what runs.
        """
        is_member = self.array is not None
        if is_member and record.cancelled_by is not None and not record.cancel_term:
            self.array_cancelled_by = record.cancelled_by
            record = replace(record, cancelled_by=None)
        self.record = join_records(self.record, record)
        self._update_final_state()

    def cancel_with_array(self, by: str) -> None:
        """Note that its array was cancelled, so that no further attempt starts."""
        self.array_cancelled_by = by
        self._update_final_state()

    def _update_final_state(self) -> None:
        record, by = self.record, self.array_cancelled_by
        # What is not read may run, by an assignment that is not known here.
        if by is not None and self.is_read:
            record = with_array_cancelled(record, by)
        state = record.state
        self.final_state = state if state.is_final else None

    def add_missing_inputs(self, node: NodeId, text: str) -> None:
        """Record what a node lacks to run the task."""
        known = self.missing_inputs
        is_shown = known.get(node) or len(known) < INPUT_TEXTS_MAX
        known[node] = cut_missing_text(text) if is_shown else ""

    def describe_missing_inputs(self) -> str:
        """Return what the nodes lack, each text once."""
        return "; ".join(missing_texts(self.missing_inputs.values()))
