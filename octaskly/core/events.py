"""Events: the only inputs of `Node.step`.

Events carry batches, so the overhead per task is small. Randomness arrives as the
event's `draw`, so a replay repeats it.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct, field

from octaskly.core.log.facts import NO_FLOOR, Floor, Recorded, TaskCancelled
from octaskly.core.log.merge import TaskRecord
from octaskly.core.log.mesh_records import RecordDraft
from octaskly.core.log.retired_streams import RetiredStreams
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import (
    Address,
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.keyring_state import KeyringEvent, KeyringState
from octaskly.core.model.nodes import (
    NO_HOLD,
    AvailabilityCommand,
    LoadSample,
    OperatorHold,
)
from octaskly.core.model.task_options import Requirements
from octaskly.core.model.tasks import MEMBERS_LANE, LaneKey, TaskState
from octaskly.core.model.tree_sizes import TreeSizes
from octaskly.core.protocol.messages import Hello, Message, Report, StartOffsets


class TimerFired(Struct, frozen=True):
    """Only time has passed."""

    draw: float = 0.0  #: in [0, 1)


class Received(Struct, frozen=True):
    """Messages from a connected peer, in the order in which it sent them."""

    peer: NodeId
    messages: tuple[Message, ...]
    draw: float = 0.0  #: in [0, 1)


class PeerUp(Struct, frozen=True):
    """A link is connected: both sides sent HELLO_OK. There is one link per peer."""

    peer: NodeId
    own_hello: Hello  #: that this node sent
    peer_hello: Hello  #: that the peer sent
    address: Address  #: of the peer's peer port
    draw: float = 0.0  #: in [0, 1)
    handshake_ms: int = 0  #: since the connection; both sent Hello in that time
    visit_ends_ms: int | None = None
    """Wall clock at which the peer's certificate ends, if the peer is a visitor."""
    invited_by: str = ""  #: subject, if the peer is a visitor


class PeerDown(Struct, frozen=True):
    """The link to a peer ended."""

    peer: NodeId
    reason: str  #: `eof`, `reset`, `protocol: ...`, or the reason in its Leave
    draw: float = 0.0  #: in [0, 1)


class PeerHint(Struct, frozen=True):
    """A node that may be dialled, found by mDNS, stored peers or `--join`."""

    node: NodeId | None  #: None if only the addresses are known
    addresses: tuple[Address, ...]
    is_dispatcher: bool = False
    term: int = 0


class PeersDiscovered(Struct, frozen=True):
    """Peer hints arrived."""

    hints: tuple[PeerHint, ...]


class DialFailed(Struct, frozen=True):
    """No address of a dial led to a connected peer."""

    node: NodeId | None
    addresses: tuple[Address, ...]
    was_refused: bool  #: every address refused at once, so no process listens there


class TasksSubmitted(Struct, frozen=True):
    """A batch of tasks to accept, all or none; answered by `Answer(ticket, ...)`."""

    ticket: int
    drafts: tuple[TaskDraft, ...]
    submitter: str
    id_suffixes: tuple[str, ...]  #: 8 random hex digits for each draft
    log_ids: tuple[TaskId | None, ...]  #: `drafts.log_id_of` for each draft
    is_strict: bool = False  #: accept none if only one copy would exist


class TaskIdsRequested(Struct, frozen=True):
    """Reserve task ids for a submission; answered by `TaskIdsReserved`."""

    ticket: int
    id_suffixes: tuple[str, ...]  #: 8 random hex digits for each task


class CatchUpRequested(Struct, frozen=True):
    """Find out if a task that is unknown here is unknown on every node.

    Answered by `CatchUpStatus`, which describes a time after the request.
    """

    ticket: int


class CopiesRequested(Struct, frozen=True):
    """Wait until all on this disk has as many copies as an accepted task has.

    Answered by `Copied`.
    """

    ticket: int


class ExplainRequested(Struct, frozen=True):
    """Explain the state of a task; answered by `TaskExplanation`."""

    ticket: int
    record: TaskRecord  #: from the store
    names: tuple[tuple[NodeId, str], ...] = ()
    """Names of nodes that ran it, because the roster lacks nodes that have left."""


class VisitorDemandRequested(Struct, frozen=True):
    """Count the queued tasks that a new visitor could run; see `VisitorDemand`."""

    ticket: int
    label: tuple[str, str] | None = None  #: only tasks that require it, if given


class OutputRequested(Struct, frozen=True):
    """Read output at a visitor; answered by `VisitorOutput` or `NoVisitorOutput`."""

    ticket: int
    visitor: NodeId
    task: TaskId
    attempt: AttemptId
    starts: StartOffsets


class CancelRequested(Struct, frozen=True):
    """Cancel one task; answered by `Answer(ticket, ...)`.

    `stored_state` comes from the store. The node's state of queued and running tasks is
    newer and takes precedence.
    """

    ticket: int
    task: TaskId
    stored_state: TaskState
    force: bool
    by: str
    array_record: TaskRecord | None = (
        None  #: the task's record from the store, if it is an array
    )
    earlier_cancel: TaskCancelled | None = None
    """The verdict in the store, if the task is cancelled."""


class ReprioritizeRequested(Struct, frozen=True):
    """Change the priority of waiting work; answered by `ReprioritizeResult`."""

    ticket: int
    record: TaskRecord  #: of a task or an array, from the store
    priority: int


class PurgeRequested(Struct, frozen=True):
    """Forget tasks that ended long ago; answered by `TasksPurged`.

    The answer comes once they are forgotten, which may take minutes.
    """

    ticket: int
    older_than_s: int  #: seconds since the end; 0: all ended tasks


class RecordRequested(Struct, frozen=True):
    """Write these records, all or none; answered by `RecordsKept`."""

    ticket: int
    drafts: tuple[RecordDraft, ...]


class TasksNotified(Struct, frozen=True):
    """Notifications about the ends of these tasks were delivered or abandoned."""

    tasks: tuple[TaskId, ...]


class AttemptsEnded(Struct, frozen=True):
    """Attempts of this node ended, or the runner returns them unstarted."""

    reports: tuple[Report, ...]


class HeldBlobsChanged(Struct, frozen=True):
    """This node has other large blobs or whole trees than before."""

    added: tuple[int, ...]  #: keys; the most recent last
    removed: tuple[int, ...] = ()


class TreeSized(Struct, frozen=True):
    """The sizes of a tree that tasks name, for this dispatcher."""

    sha256: str  #: of its manifest
    sizes: TreeSizes


class Persisted(Struct, frozen=True):
    """All `Append` and `Save` effects up to this number are durable."""

    number: int


class QueuedLoaded(Struct, frozen=True):
    """Answer to `LoadQueued`: queued tasks of one lane in queue order."""

    term: int  #: as in the effect
    records: tuple[TaskRecord, ...]
    has_more: bool
    lane: LaneKey = MEMBERS_LANE  #: as in the effect
    other_lanes: tuple[tuple[LaneKey, Requirements | None], ...] = ()
    """All other lanes with queued tasks, if `MEMBERS_LANE` was read from its front."""


class LiveLoaded(Struct, frozen=True):
    """Answer to `LoadLive`: tasks with a live attempt, in the order of their keys."""

    term: int  #: as in the effect
    records: tuple[TaskRecord, ...]
    next_key: int | None = None  #: continue after it; None: these were the last


class TasksLoaded(Struct, frozen=True):
    """Answer to `LoadTasks`: what the store has of these tasks."""

    term: int  #: as in the effect
    tasks: tuple[TaskId, ...]  #: the first of the effect; the rest was too much
    records: tuple[TaskRecord, ...]  #: of those that exist, in any order


class UnblockedTask(NamedTuple):
    """A task that no longer waits for its dependencies."""

    record: TaskRecord
    failed_dependency: TaskId | None  #: did not end as required; None: the task may run


class UnblockedLoaded(Struct, frozen=True):
    """Answer to `LoadUnblocked`: tasks that no longer wait for dependencies."""

    query_number: int  #: as in the effect
    tasks: tuple[UnblockedTask, ...]
    has_more: bool  #: other tasks still wait, or exceeded the limit


class FloorPlanned(Struct, frozen=True):
    """Answer to `PlanFloor`: how far the compaction floor may rise."""

    floor: Floor | None  #: None: nothing is old enough
    carried: tuple[TaskRecord, ...] = ()  #: to write again before it, with outputs
    has_more: bool = False  #: more is old enough, but a step is bounded
    is_low_on_space: bool = False  #: little space is left, so plan again soon
    is_log_too_large: bool = False  #: too large, but no task in it may be forgotten
    purged_count: int = 0  #: tasks that this floor forgets, with started members
    records: tuple[Recorded, ...] = ()  #: to write again before it


class LoadSampled(Struct, frozen=True):
    """A measurement of this machine's load and of its launchers."""

    load: LoadSample
    are_launchers_failing: bool = False


class DiskChanged(Struct, frozen=True):
    """This node's disk started to reject writes, or accepts them again."""

    is_failing: bool
    reason: str = ""


class ApiChanged(Struct, frozen=True):
    """This node's API stopped serving other nodes, or serves them again."""

    is_failing: bool
    reason: str = ""


class AvailabilityRequested(Struct, frozen=True):
    """An operator's command to this node; answered by `Answer(ticket, ...)`."""

    ticket: int
    command: AvailabilityCommand
    by: str


class StopRequested(Struct, frozen=True):
    """Transfer the dispatcher role, drain and stop; ends with the effect `Stopped`.

    A second request stops at once.
    """

    drain_s: float
    is_leaving: bool = False  #: the node leaves the mesh, and its id never comes back


class AddressesChanged(Struct, frozen=True):
    """This machine's addresses changed."""

    addresses: tuple[str, ...]


class SavedState(Struct, frozen=True, kw_only=True):
    """A node's state from its disk, given to it at the start; not an event."""

    term: int = 0
    epoch: Epoch = Epoch(0, NodeId(""))  #: highest seen
    vector: VectorItems = ()
    epochs: tuple[tuple[StreamId, Epoch], ...] = ()  #: in which each was written
    hlc: int = 0
    floor: Floor = NO_FLOOR
    sequence: int = 0  #: highest used in a task id
    name: str | None = None  #: given by a dispatcher because this node's was taken
    reports: tuple[Report, ...] = ()  #: results that no dispatcher acknowledged
    peers: tuple[PeerHint, ...] = ()  #: stored peers, most recently met first
    names: tuple[tuple[NodeId, str], ...] = ()  #: every node ever in a roster
    hold: OperatorHold = NO_HOLD  #: set by operators' commands
    records: tuple[Recorded, ...] = ()  #: except for list-only kinds
    keys: KeyringState = KeyringState()  #: generations of the mesh secret
    log_version: int = 1  #: newest version that any writer of the log used
    retired: RetiredStreams = field(default_factory=RetiredStreams)
    """Streams that `vector` leaves out; the node adds to it, and the store reads it."""


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
    | CopiesRequested
    | ExplainRequested
    | VisitorDemandRequested
    | OutputRequested
    | CancelRequested
    | ReprioritizeRequested
    | PurgeRequested
    | RecordRequested
    | TasksNotified
    | AttemptsEnded
    | HeldBlobsChanged
    | TreeSized
    | Persisted
    | QueuedLoaded
    | LiveLoaded
    | TasksLoaded
    | UnblockedLoaded
    | FloorPlanned
    | LoadSampled
    | DiskChanged
    | ApiChanged
    | AvailabilityRequested
    | StopRequested
    | AddressesChanged
    | KeyringEvent
)
