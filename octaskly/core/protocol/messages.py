"""What peers say to each other: one frozen class each, and the union `LauncherMessage`.

Every message but `Hello` travels only on a link whose both ends sent HELLO_OK.
Items travel in batches: one frame carries many. `epoch` names the reign in which a
dispatcher speaks; a node that has seen a higher one answers with it and does not act.
"""

from __future__ import annotations

from typing import NamedTuple

from octaskly.core.log.facts import Entry, Floor, Recorded
from octaskly.core.log.merge import TaskRow
from octaskly.core.model.ids import (
    Address,
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.keys import KeyringMessage
from octaskly.core.model.nodes import (
    NO_LOAD,
    LoadSample,
    NodeInfo,
    NodeState,
    Pressure,
    Role,
)
from octaskly.core.model.tasks import Outcome, TaskSpec
from octaskly.core.model.values import value

PROTOCOL_VERSION = 1
VERSION_MIN = 1  #: oldest version that this program speaks

# Why a link ends without a loss, in `CloseStream` and `PeerDown`.
STOPPING_REASON = "stopping"
UNNEEDED_REASON = (
    "attached"  #: a large mesh, and the sender needs no link to the receiver
)

PROTOCOL_PREFIX = "protocol: "
"""Begins the reason where a peer said what it must not; what follows is for people."""


@value(frozen=True, slots=True, kw_only=True)
class Hello:
    """First frame of each side; frozen when it is sent, so both compare one pair."""

    version: int = PROTOCOL_VERSION
    version_min: int = VERSION_MIN
    node: NodeInfo
    epoch: Epoch  #: highest epoch seen
    dispatcher: NodeId | None  #: whom the sender follows; itself if it is dispatcher
    followers: int = 0  #: live followers, when the sender is dispatcher
    vector: VectorItems = ()
    uptime_s: float = 0.0
    wall_ms: int = 0  #: to tell people about clocks that differ
    readable_log_version: int = 1  #: newest version of the log that the sender can read
    log_version: int = 1  #: the version of its log


@value(frozen=True, slots=True)
class HelloOk:
    """The sender accepts the link; only now is it connected."""


@value(frozen=True, slots=True)
class Heartbeat:
    """The dispatcher lives and reigns."""

    epoch: Epoch
    sent_s: float  #: sender's clock, echoed
    confirmed_sent_s: float | None = None
    """For a standby that answers wait for: `sent_s` of the last one it confirmed.

    0 while it has confirmed none. None: no answer waits for the receiver.
    """


@value(frozen=True, slots=True)
class HeartbeatOk:
    """A follower lives, and how it is."""

    epoch: Epoch
    sent_s: float
    state: NodeState
    credit: int  #: attempts that it takes in all, running and waiting
    load: LoadSample
    is_disk_failing: bool = False  #: so it can neither keep copies nor succeed
    pressure: Pressure | None = None  #: why it takes no work though it is ready
    addresses: tuple[str, ...] = ()  #: that it has since its HELLO, if it has others


@value(frozen=True, slots=True)
class Probe:
    """Has the receiver heard from this node lately?"""

    suspect: NodeId
    sent_s: float


@value(frozen=True, slots=True)
class ProbeOk:
    """How long ago the sender had a frame from the node; None: no link to it."""

    suspect: NodeId
    sent_s: float
    age_s: float | None
    epoch: Epoch  #: highest that the answering node has seen


@value(frozen=True, slots=True)
class Claim:
    """The sender reigns from now on, in an epoch that it has made durable."""

    epoch: Epoch
    stream: StreamId
    vector: VectorItems


@value(frozen=True, slots=True)
class ClaimOk:
    """The sender follows; its vector shows what the claimer may lack."""

    epoch: Epoch
    vector: VectorItems
    rows_ahead: VectorItems = ()  #: what its rows of a broken-off snapshot say beyond that


@value(frozen=True, slots=True)
class ClaimRejected:
    """A higher epoch is known."""

    epoch: Epoch


@value(frozen=True, slots=True, kw_only=True)
class RosterEntry:
    """One line of the roster."""

    id: NodeId
    name: str  #: unique in the mesh, given by the dispatcher
    role: Role
    state: NodeState
    addresses: tuple[Address, ...]  #: peer port
    lan_port: int
    slots: int
    running: int = 0
    version: str = ""
    load: LoadSample = NO_LOAD
    memory_mb: int = 0
    pressure: Pressure | None = None  #: as in HeartbeatOk
    labels: tuple[tuple[str, str], ...] = ()
    os: str = ""
    arch: str = ""
    cpus: int = 0
    gpus: tuple[str, ...] = ()


@value(frozen=True, slots=True)
class Roster:
    """Who is in the mesh; members in the order in which they would succeed."""

    epoch: Epoch
    version: int
    members: tuple[RosterEntry, ...]


@value(frozen=True, slots=True)
class Redirect:
    """The sender is not dispatcher; this node is."""

    epoch: Epoch
    dispatcher: NodeId
    addresses: tuple[Address, ...]


class SnapshotCursor(NamedTuple):
    """How far a snapshot has come."""

    snapshot_id: int  #: `hlc` of its head at first, then the name that the asker uses
    row_key: int  #: names the last row
    record_key: int = 0  #: names the last record, which come first


FULL_SNAPSHOT = SnapshotCursor(
    0, 0
)  #: asks for a snapshot, also where entries would do


@value(frozen=True, slots=True)
class Pull:
    """Send me the entries beyond this vector."""

    vector: VectorItems
    cursor: SnapshotCursor | None = (
        None  #: go on with this snapshot; `FULL_SNAPSHOT`: begin one
    )


@value(frozen=True, slots=True)
class Entries:
    """Part of the answer to PULL, each stream in order and without gaps."""

    entries: tuple[Entry, ...]
    epochs: tuple[tuple[StreamId, Epoch], ...]  #: who wrote the streams that appear
    has_more: bool  #: ask again with the new vector
    vector: VectorItems  #: what the sender holds


@value(frozen=True, slots=True, kw_only=True)
class SnapshotHead:
    """What the receiver holds once it has all rows of a snapshot."""

    vector: VectorItems  #: read before the first row, so the rows are as new or newer
    epochs: tuple[tuple[StreamId, Epoch], ...]  #: who wrote these streams
    floor: Floor
    hlc: int  #: highest hybrid timestamp of the sender


@value(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Part of an answer to PULL that gives joined tasks instead of entries."""

    rows: tuple[TaskRow, ...]
    cursor: SnapshotCursor  #: PULL it to get more
    has_more: bool
    head: SnapshotHead | None = None  #: in the first part only
    vector: VectorItems = ()  #: what the sender held when it read these rows
    records: tuple[Recorded, ...] = ()


@value(frozen=True, slots=True)
class PackedMessage:
    """A message that was packed elsewhere, so that the event loop need not."""

    data: bytes


@value(frozen=True, slots=True)
class Replicate:
    """What the dispatcher gave to its own disk, for a standby to keep as well.

    Entries come in the order of the dispatcher's appends, without gaps.
    """

    epoch: Epoch
    number: int  #: of the append that is complete with this message; 0: more follows
    entries: tuple[Entry, ...]
    epochs: tuple[tuple[StreamId, Epoch], ...]  #: who wrote streams that may be new
    acks_beyond_standbys: bool = False
    """The sender answers for more than what standbys confirm.

    It knows of tasks from rows of a snapshot alone, or has no level standby yet.
    """


@value(frozen=True, slots=True)
class ReplicateOk:
    """All appends up to this number are durable at the sender."""

    epoch: Epoch
    number: int


@value(frozen=True, slots=True)
class RecordBatch:
    """What every node goes by; a follower keeps it, though it may keep no log."""

    epoch: Epoch
    items: tuple[Recorded, ...]


@value(frozen=True, slots=True)
class Assign:
    """Run these."""

    epoch: Epoch
    items: tuple[tuple[AttemptId, TaskSpec], ...]


@value(frozen=True, slots=True)
class Kill:
    """End these attempts, the whole process tree of each."""

    epoch: Epoch
    items: tuple[tuple[TaskId, AttemptId], ...]


@value(frozen=True, slots=True)
class Report:
    """How one attempt ended; the envelope comes along when it is sent again."""

    task: TaskId
    attempt: AttemptId
    outcome: Outcome
    spec: TaskSpec | None = None


@value(frozen=True, slots=True)
class Results:
    """Attempts that ended or are given back; repeated until acknowledged."""

    reports: tuple[Report, ...]
    credit: int  #: as in HeartbeatOk
    state: NodeState | None = None  #: where it changed just now


@value(frozen=True, slots=True)
class ResultsOk:
    """These results are durable at the dispatcher; the worker may forget them."""

    items: tuple[tuple[TaskId, AttemptId], ...]


@value(frozen=True, slots=True)
class Reattach:
    """What a worker still runs, told to a new dispatcher or after a broken link.

    Much of it comes in several messages: what none of them lists is lost.
    """

    running: tuple[tuple[AttemptId, TaskSpec], ...]
    credit: int
    state: NodeState
    has_more: bool = False  #: another part follows


@value(frozen=True, slots=True)
class Transfer:
    """A stopping dispatcher asks the receiver to claim; it has accepted its last."""

    epoch: Epoch
    vector: VectorItems


@value(frozen=True, slots=True)
class Leave:
    """The sender closes this link on purpose."""

    reason: (
        str  #: `STOPPING_REASON`, `UNNEEDED_REASON`, or in words that only people read
    )


Message = (
    Hello
    | HelloOk
    | Heartbeat
    | HeartbeatOk
    | Probe
    | ProbeOk
    | Claim
    | ClaimOk
    | ClaimRejected
    | Roster
    | Redirect
    | Pull
    | Entries
    | Snapshot
    | Assign
    | Kill
    | Results
    | ResultsOk
    | Reattach
    | Transfer
    | Leave
    | Replicate
    | ReplicateOk
    | RecordBatch
    | KeyringMessage
)
