"""Effects: the only outputs of `Node.step`, which the agent performs in order.

The agent passes `Append` and `Save` to the writer without waiting. When they are
durable, `Persisted(number)` comes back. Only then does the node emit the effects that
depend on them, such as acknowledgements and claims. So a slow disk never delays
heartbeats, and no message claims durability too early.
"""

from __future__ import annotations

from msgspec import Struct

from octaskly.core.log.facts import Entry, Recorded
from octaskly.core.model.ids import (
    Address,
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.keyring_state import KeyringEffect
from octaskly.core.model.nodes import OperatorHold
from octaskly.core.model.tasks import MEMBERS_LANE, EndReason, LaneKey, TaskSpec
from octaskly.core.model.tree_sizes import HoldersByBlob
from octaskly.core.protocol.messages import (
    Message,
    ReadOutput,
    Report,
    Roster,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.core.replies import Reply


class Append(Struct, frozen=True):
    """Make entries durable and join them into the task table, in one transaction.

    `epochs` names the writer of each stream that the store may not know yet.
    The store skips entries that it already holds; a gap fails an assertion.
    """

    number: int  #: higher than that of the previous write
    entries: tuple[Entry, ...]
    epochs: tuple[tuple[StreamId, Epoch], ...] = ()


class Save(Struct, frozen=True, kw_only=True):
    """Make the node's own state durable; fields that are None do not change."""

    number: int
    term: int | None = None
    epoch: Epoch | None = None
    stream: tuple[StreamId, Epoch] | None = None  #: a new stream of this node
    name: str | None = None
    hold: OperatorHold | None = None
    records: tuple[Recorded, ...] = ()  #: that the dispatcher sent outside the log
    log_version: int | None = None


class StageRows(Struct, frozen=True):
    """Keep a part of a peer's snapshot on disk until the last part is there, too.

    Its records count at once, as each stands alone. The first part replaces those of an
    incomplete snapshot of this peer.
    """

    number: int  #: as in `Append`
    snapshot: int  #: greater than that of any earlier snapshot
    peer: NodeId
    part: Snapshot


class MergeRows(Struct, frozen=True):
    """Join the next staged part of a complete snapshot into the tables, and delete it.

    With the last part, `head` and `retired` take effect in the same transaction.
    """

    number: int  #: as in `Append`
    snapshot: int  #: as in `StageRows`
    head: SnapshotHead
    retired: VectorItems  #: all retired streams of the snapshot
    is_last: bool


LogWrite = Append | MergeRows
"""The effects that write facts about tasks to the log or the tables."""

NumberedWrite = LogWrite | Save | StageRows
"""The effects whose commits `Persisted` reports; they keep their order."""


class Send(Struct, frozen=True):
    """Put messages into the peer's bounded outbox, without waiting for the network."""

    peer: NodeId
    messages: tuple[Message, ...]


class Dial(Struct, frozen=True):
    """Try these addresses in order until one leads to a connected peer.

    Idempotent: it does nothing while the peer is connected or a dial to it runs.
    """

    node: NodeId | None
    addresses: tuple[Address, ...]


class Disconnect(Struct, frozen=True):
    """Send a peer the reason, then close the link to it."""

    peer: NodeId
    reason: str


class ServePull(Struct, frozen=True):
    """Read the log beyond `vector` and send it to the peer.

    It is sent as `Entries`, or as a `Snapshot` if entries are compacted or far larger.
    """

    peer: NodeId
    vector: VectorItems
    cursor: SnapshotCursor | None = None  #: continue this snapshot
    retired_count: int | None = 0
    """The peer knows this many of the streams that this node retired first.

    None: this node cannot tell which of them the peer knows.
    """


class ServeOutput(Struct, frozen=True):
    """Read output of an attempt of this visitor, and send it as `OutputPieces`."""

    peer: NodeId
    read: ReadOutput


class Browse(Struct, frozen=True):
    """Start a new mDNS browser, or stop browsing."""

    is_wanted: bool


class Advertise(Struct, frozen=True):
    """Advertise this node's current role over mDNS."""

    is_dispatcher: bool
    term: int


class Start(Struct, frozen=True):
    """Run these attempts; `AttemptsEnded` reports each of them once."""

    items: tuple[tuple[AttemptId, TaskSpec], ...]
    holders: HoldersByBlob = ()  #: nodes that have the blobs that they need


class Stop(Struct, frozen=True):
    """Kill these attempts, waiting ones included, with all their processes.

    They are reported as CANCELLED, or as RELEASED if the reason is DRAINING. If it is
    RETURNED, only those that have not begun end, as RELEASED.
    """

    items: tuple[tuple[TaskId, AttemptId], ...]
    reason: EndReason = EndReason.CANCELLED


class ReleaseWaiting(Struct, frozen=True):
    """Report the attempts that have not started as released, for other nodes to run."""


class Freeze(Struct, frozen=True):
    """Freeze or continue all processes of all attempts."""

    is_frozen: bool


class Spool(Struct, frozen=True):
    """Store results on disk until `Unspool`, without waiting for the disk."""

    reports: tuple[Report, ...]


class Unspool(Struct, frozen=True):
    """Delete stored results that a dispatcher has made durable."""

    items: tuple[tuple[TaskId, AttemptId], ...]


class LoadQueued(Struct, frozen=True):
    """Read queued tasks of a lane beyond `after_ord`; answered by `QueuedLoaded`."""

    term: int  #: of the epoch that asks; repeated in the answer
    after_ord: int
    limit: int
    lane: LaneKey = MEMBERS_LANE


class LoadUnblocked(Struct, frozen=True):
    """Read tasks whose dependencies have ended; answered by `UnblockedLoaded`."""

    query_number: int  #: repeated in the answer
    limit: int
    before_hlc: int = 0
    """Tasks accepted earlier no longer wait for tasks that the store does not know."""


class LoadLive(Struct, frozen=True):
    """Read some of the tasks with a live attempt; answered by `LiveLoaded`."""

    term: int  #: of the epoch that asks; repeated in the answer
    after_key: int  #: as in `LiveLoaded`; 0: read from the start
    limit: int


class LoadTasks(Struct, frozen=True):
    """Read tasks and arrays by id, live or not; answered by `TasksLoaded`."""

    term: int  #: of the epoch that asks; repeated in the answer
    tasks: tuple[TaskId, ...]


class PlanFloor(Struct, frozen=True):
    """Find how far the compaction floor may rise; answered by `FloorPlanned`."""

    before_hlc: int  #: tasks that ended earlier are old enough
    tasks_max: int  #: beyond this, the oldest are forgotten at any age
    stream: StreamId = StreamId(0)  #: of this epoch; its submissions are in the log
    purge_hlc: int = 0
    """Forget tasks that ended earlier; carry only the waiting tasks that must stay."""
    wall_ms: int = 0  #: wall clock; records that expired earlier are not carried
    is_log_complete: bool = True
    """A task that is unknown here is unknown everywhere.

    Otherwise results of unknown tasks are carried at any age.
    """


class Answer(Struct, frozen=True):
    """Answer the request with this ticket."""

    ticket: int
    reply: Reply


class AnnounceTaskStates(Struct, frozen=True):
    """Wake the clients that wait for these tasks, whose new states are durable."""

    tasks: tuple[TaskId, ...]


class ApplyRecords(Struct, frozen=True):
    """Apply records that are new on this node's disk; after a start, all of them.

    Kinds that are only listed (`records.RecordKind.is_list_only`) are left out.
    """

    records: tuple[Recorded, ...]


class Relay(Struct, frozen=True):
    """A peer that relays requests to a dispatcher without a link to this node."""

    node: NodeId
    dispatcher: NodeId
    addresses: tuple[Address, ...]  #: of the relay, best first
    lan_port: int


class PublishMeshState(Struct, frozen=True):
    """Publish a change of role, dispatcher or members to API, log and systemd."""

    epoch: Epoch
    dispatcher: NodeId | None
    is_serving: bool  #: this node is dispatcher and accepts tasks
    roster: Roster | None
    relay: Relay | None = None  #: only if `dispatcher` is None


class SavePeer(Struct, frozen=True):
    """Store a peer's addresses for the next start."""

    peer: NodeId
    name: str
    addresses: tuple[Address, ...]


class RenameNode(Struct, frozen=True):
    """Store the name under which a node that never comes back is shown."""

    node: NodeId
    name: str


class LogLine(Struct, frozen=True):
    """A line for the agent's log: a constant event name and its fields."""

    level: str  #: `debug`, `info`, `warning` or `error`
    event: str
    fields: tuple[tuple[str, str | int | float], ...] = ()


class Stopped(Struct, frozen=True):
    """Transfer and drain are complete, so the process may exit."""


Effect = (
    Append
    | Save
    | StageRows
    | MergeRows
    | Send
    | Dial
    | Disconnect
    | ServePull
    | ServeOutput
    | Browse
    | Advertise
    | Start
    | Stop
    | ReleaseWaiting
    | Freeze
    | Spool
    | Unspool
    | LoadQueued
    | LoadLive
    | LoadTasks
    | LoadUnblocked
    | PlanFloor
    | Answer
    | AnnounceTaskStates
    | ApplyRecords
    | PublishMeshState
    | SavePeer
    | RenameNode
    | LogLine
    | Stopped
    | KeyringEffect
)
