"""What can happen to a node: the only inputs of `Node.step`.

Events carry batches, so that purity costs nothing per task. Where a rule needs
chance, the event carries a `draw`, so that a replay repeats it.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from octaskly.core.log.facts import NO_FLOOR, Floor, Recorded
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import (
    Address,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.keys import KeyringEvent, KeyringState
from octaskly.core.model.nodes import (
    NO_HOLD,
    AvailabilityCommand,
    LoadSample,
    OperatorHold,
)
from octaskly.core.model.task_options import Requirements
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import Hello, Message, Report


class TimerFired(Struct, frozen=True):
    """Nothing happened but time."""

    draw: float = 0.0  #: in [0, 1)


class Received(Struct, frozen=True):
    """Messages from a connected peer, in the order in which it sent them."""

    peer: NodeId
    messages: tuple[Message, ...]
    draw: float = 0.0  #: in [0, 1)


class PeerUp(Struct, frozen=True):
    """A link is connected: both sides sent HELLO_OK. There is one link per peer."""

    peer: NodeId
    own_hello: Hello  #: what this node had said
    peer_hello: Hello  #: what the peer said
    address: Address  #: where the peer's peer port can be dialled
    draw: float = 0.0  #: in [0, 1)
    handshake_ms: int = (
        0  #: from the connection until now; both said HELLO in that time
    )


class PeerDown(Struct, frozen=True):
    """The link to a peer ended."""

    peer: NodeId
    reason: str  #: `eof`, `reset`, `protocol: ...`, or what its Leave said
    draw: float = 0.0  #: in [0, 1)


class PeerHint(Struct, frozen=True):
    """One node as mDNS, the memory of peers or `--join` names it: a hint to dial."""

    node: NodeId | None  #: None where only an address is known
    addresses: tuple[Address, ...]
    is_dispatcher: bool = False
    term: int = 0


class PeersDiscovered(Struct, frozen=True):
    """Hints arrived."""

    hints: tuple[PeerHint, ...]


class DialFailed(Struct, frozen=True):
    """No address of a dial led to a connected peer."""

    node: NodeId | None
    addresses: tuple[Address, ...]
    was_refused: bool  #: every address refused at once: no process listens there


class TasksSubmitted(Struct, frozen=True):
    """A batch of tasks to accept, all or none; answered by `Answer(ticket, ...)`."""

    ticket: int
    drafts: tuple[TaskDraft, ...]
    submitter: str
    id_suffixes: tuple[str, ...]  #: 8 random hex digits for each draft
    is_strict: bool = False  #: rather none than with only one copy
    log_ids: tuple[TaskId | None, ...] = ()
    """`acceptance.logged_id` of each draft, if that was worked out beforehand."""


class TaskIdsRequested(Struct, frozen=True):
    """Name tasks that are to be handed in; answered by `Answer(ticket, Named)`."""

    ticket: int
    id_suffixes: tuple[str, ...]  #: 8 random hex digits for each task


class CatchUpRequested(Struct, frozen=True):
    """Say whether what is unknown here is unknown everywhere.

    Answered by `Answer(ticket, Passed)`, with what is so after the question.
    """

    ticket: int


class ExplainRequested(Struct, frozen=True):
    """Say why a task is where it is; answered by `Answer(ticket, Explanation)`."""

    ticket: int
    record: TaskRecord  #: as the store has it
    names: tuple[tuple[NodeId, str], ...] = ()
    """Of nodes that had it: the roster lacks those that have left."""


class CancelRequested(Struct, frozen=True):
    """Cancel one task; answered by `Answer(ticket, ...)`.

    `stored_state` is what the store says; the node's own knowledge of queued and running
    tasks is newer and wins.
    """

    ticket: int
    task: TaskId
    stored_state: TaskState
    force: bool
    by: str
    array_record: TaskRecord | None = (
        None  #: the task as the store has it, if it is one
    )


class PurgeRequested(Struct, frozen=True):
    """Forget tasks that ended so long ago, now; answered by `Answer(ticket, Forgot)`.

    The answer comes when that is done, which may take minutes.
    """

    ticket: int
    older_than_s: int  #: 0: all that have ended


class RecordDraft(NamedTuple):
    """Something to record; see `facts.Recorded`."""

    kind: str
    key: str
    body: bytes
    expires_ms: int = 0


class RecordRequested(Struct, frozen=True):
    """Record these, all or none; answered by `Answer(ticket, Kept)`."""

    ticket: int
    drafts: tuple[RecordDraft, ...]


class TasksNotified(Struct, frozen=True):
    """Who asked for it was told how these tasks ended, or was given up."""

    tasks: tuple[TaskId, ...]


class AttemptsEnded(Struct, frozen=True):
    """The runner saw attempts of this node end, or gives them back unstarted."""

    reports: tuple[Report, ...]


class Persisted(Struct, frozen=True):
    """All `Append` and `Save` effects up to this number are durable."""

    number: int


class QueuedLoaded(Struct, frozen=True):
    """Queued tasks of one shape in queue order, the answer to `LoadQueued`."""

    after_ord: int  #: as in the effect
    records: tuple[TaskRecord, ...]
    has_more: bool
    shape: int = 0  #: as in the effect
    other_shapes: tuple[tuple[int, Requirements], ...] = ()
    """The other shapes that wait, where shape 0 was read from its front."""


class LiveLoaded(Struct, frozen=True):
    """Tasks whose latest attempt has no end in the log: the answer to `LoadLive`."""

    records: tuple[TaskRecord, ...]


class UnblockedTask(NamedTuple):
    """A task whose wait for others is over."""

    record: TaskRecord
    failed_dependency: (
        TaskId | None
    )  #: the one that did not end as it should; None: it may run


class UnblockedLoaded(Struct, frozen=True):
    """Tasks that wait for nobody any more: the answer to `LoadUnblocked`."""

    query_number: int  #: as in the effect
    tasks: tuple[UnblockedTask, ...]
    has_more: bool  #: others wait, or were beyond the limit


class FloorPlanned(Struct, frozen=True):
    """How far the floor may rise: the answer to `PlanFloor`."""

    floor: Floor | None  #: None: nothing is old enough
    carried: tuple[TaskRecord, ...] = ()  #: to be written again before it, with outputs
    has_more: bool = False  #: more is old enough; a step is bounded
    rows_ahead: VectorItems = ()
    """Rows of snapshots stand for so much that the log lacks. As long as that is so,
    `carried` are tasks that it may say less of, and there is no floor."""
    after_key: int = 0  #: how far these tasks were read; ask on from there
    is_low_on_space: bool = False  #: little room is left: look again soon
    is_log_too_large: bool = False  #: the log is, and no task in it may be forgotten
    purged_count: int = 0  #: tasks that this floor ends, begun members included
    records: tuple[Recorded, ...] = ()  #: to be written again before it


class LoadSampled(Struct, frozen=True):
    """How busy this machine is, and whether it can begin tasks at all."""

    load: LoadSample
    are_launchers_failing: bool = False


class DiskChanged(Struct, frozen=True):
    """The disk of this node takes no more writes, or it takes them again."""

    is_failing: bool
    reason: str = ""


class AvailabilityRequested(Struct, frozen=True):
    """An operator steers this node; answered by `Answer(ticket, ...)`."""

    ticket: int
    command: AvailabilityCommand
    by: str


class StopRequested(Struct, frozen=True):
    """Hand over, drain and stop; the node says `Stopped` when it is done.

    A second one stops at once.
    """

    drain_s: float


class AddressesChanged(Struct, frozen=True):
    """This machine has other addresses than before."""

    addresses: tuple[str, ...]


class SavedState(Struct, frozen=True, kw_only=True):
    """What a node knew when it last stopped: given to it at the start, no event."""

    term: int = 0
    epoch: Epoch = Epoch(0, NodeId(""))  #: highest seen
    vector: VectorItems = ()
    rows_ahead: VectorItems = ()  #: what rows of broken-off snapshots say beyond that
    epochs: tuple[tuple[StreamId, Epoch], ...] = ()  #: who wrote each stream
    hlc: int = 0
    floor: Floor = NO_FLOOR
    sequence: int = 0  #: highest used in a task id
    queued: int = 0  #: tasks that wait in the store
    name: str | None = None  #: given by a dispatcher because ours was taken
    reports: tuple[Report, ...] = ()  #: results that no dispatcher acknowledged
    peers: tuple[PeerHint, ...] = ()  #: remembered, most recently met first
    names: tuple[tuple[NodeId, str], ...] = ()  #: every node ever in a roster
    hold: OperatorHold = NO_HOLD  #: what operators told this node
    records: tuple[Recorded, ...] = ()  #: but for kinds that are only listed
    keys: KeyringState = KeyringState()  #: the generations of the mesh secret
    log_version: int = 1  #: the newest of who wrote what the log holds


Event = (
    TimerFired
    | Received
    | PeerUp
    | PeerDown
    | PeersDiscovered
    | DialFailed
    | TaskIdsRequested
    | TasksSubmitted
    | CatchUpRequested
    | ExplainRequested
    | CancelRequested
    | PurgeRequested
    | RecordRequested
    | TasksNotified
    | AttemptsEnded
    | Persisted
    | QueuedLoaded
    | LiveLoaded
    | UnblockedLoaded
    | FloorPlanned
    | LoadSampled
    | DiskChanged
    | AvailabilityRequested
    | StopRequested
    | AddressesChanged
    | KeyringEvent
)
