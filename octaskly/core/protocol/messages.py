"""What peers say to each other: one frozen class each, and the union `LauncherMessage`.

Every message but `Hello` travels only on a link whose both ends sent HELLO_OK.
Items travel in batches: one frame carries many. `epoch` names the reign in which a
dispatcher speaks; a node that has seen a higher one answers with it and does not act.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from octaskly.core.log.facts import Entry, Floor, Recorded
from octaskly.core.log.merge import TaskRow
from octaskly.core.model.field_types import Count, Float, Int, NodeWord, Text, Title
from octaskly.core.model.ids import (
    Addresses,
    AttemptId,
    Epoch,
    Hosts,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
    Writers,
)
from octaskly.core.model.keys import KeyringMessage
from octaskly.core.model.nodes import (
    NO_LOAD,
    Gpus,
    LoadSample,
    NodeInfo,
    NodeLabels,
    NodeState,
    Pressure,
    Role,
)
from octaskly.core.model.tasks import (
    Outcome,
    TaskSpec,
)

PROTOCOL_VERSION = 1
VERSION_MIN = 1  #: oldest version that this program speaks

# Why a link ends without a loss, in `Leave` and `PeerDown`.
STOPPING_REASON = "stopping"
UNNEEDED_REASON = (
    "attached"  #: a large mesh, and the sender needs no link to the receiver
)

ENTRIES_MAX = 1 << 13  #: of a message, which has a few hundred
ITEMS_MAX = 1 << 16  #: of a message: most have 16 bytes at least, and a part has 1 MiB
MEMBERS_MAX = 1 << 11  #: of a roster; a mesh has `Limits.peers`

EntryBatch = Annotated[tuple[Entry, ...], Meta(max_length=ENTRIES_MAX)]
EntryWriters = Annotated[
    tuple[tuple[StreamId, Epoch], ...], Meta(max_length=ENTRIES_MAX)
]
RecordedFacts = Annotated[tuple[Recorded, ...], Meta(max_length=ENTRIES_MAX)]
AttemptBatch = Annotated[
    tuple[tuple[TaskId, AttemptId], ...], Meta(max_length=ITEMS_MAX)
]
WorkBatch = Annotated[
    tuple[tuple[AttemptId, TaskSpec], ...], Meta(max_length=ITEMS_MAX)
]

PROTOCOL_PREFIX = "protocol: "
"""Begins the reason where a peer said what it must not; what follows is for people."""


class Hello(Struct, frozen=True, array_like=True, tag=1, kw_only=True):
    """First frame of each side; frozen when it is sent, so both compare one pair."""

    version: Int = PROTOCOL_VERSION
    version_min: Int = VERSION_MIN
    node: NodeInfo
    epoch: Epoch  #: highest epoch seen
    dispatcher: NodeId | None  #: whom the sender follows; itself if it is dispatcher
    followers: Int = 0  #: live followers, when the sender is dispatcher
    vector: VectorItems = ()
    uptime_s: Float = 0.0
    wall_ms: Int = 0  #: to tell people about clocks that differ
    readable_log_version: Int = 1  #: newest version of the log that the sender can read
    log_version: Int = 1  #: the version of its log


class HelloOk(Struct, frozen=True, array_like=True, tag=2):
    """The sender accepts the link; only now is it connected."""


class Heartbeat(Struct, frozen=True, array_like=True, tag=3):
    """The dispatcher lives and reigns."""

    epoch: Epoch
    sent_s: Float  #: sender's clock, echoed
    confirmed_sent_s: Float | None = None
    """For a standby that answers wait for: `sent_s` of the last one it confirmed.

    0 while it has confirmed none. None: no answer waits for the receiver.
    """


class HeartbeatOk(Struct, frozen=True, array_like=True, tag=4):
    """A follower lives, and how it is."""

    epoch: Epoch
    sent_s: Float
    state: NodeState
    credit: Int  #: attempts that it takes in all, running and waiting
    load: LoadSample
    is_disk_failing: bool = False  #: so it can neither keep copies nor succeed
    pressure: Pressure | None = None  #: why it takes no work though it is ready
    addresses: Hosts = ()  #: that it has since its HELLO, if it has others


class Probe(Struct, frozen=True, array_like=True, tag=5):
    """Has the receiver heard from this node lately?"""

    suspect: NodeId
    sent_s: Float


class ProbeOk(Struct, frozen=True, array_like=True, tag=6):
    """How long ago the sender had a frame from the node; None: no link to it."""

    suspect: NodeId
    sent_s: Float
    age_s: Float | None
    epoch: Epoch  #: highest that the answering node has seen


class Claim(Struct, frozen=True, array_like=True, tag=7):
    """The sender reigns from now on, in an epoch that it has made durable."""

    epoch: Epoch
    stream: StreamId
    vector: VectorItems


class ClaimOk(Struct, frozen=True, array_like=True, tag=8):
    """The sender follows; its vector shows what the claimer may lack."""

    epoch: Epoch
    vector: VectorItems
    rows_ahead: VectorItems = ()  #: what its rows of a broken-off snapshot say beyond that


class ClaimRejected(Struct, frozen=True, array_like=True, tag=9):
    """A higher epoch is known."""

    epoch: Epoch


class RosterEntry(Struct, frozen=True, array_like=True, kw_only=True):
    """One line of the roster."""

    id: NodeId
    name: Title  #: unique in the mesh, given by the dispatcher
    role: Role
    state: NodeState
    addresses: Addresses  #: peer port
    lan_port: Int
    slots: Int
    running: Int = 0
    version: Title = ""
    load: LoadSample = NO_LOAD
    memory_mb: Count = 0
    pressure: Pressure | None = None  #: as in HeartbeatOk
    labels: NodeLabels = ()
    os: NodeWord = ""
    arch: NodeWord = ""
    cpus: Count = 0
    gpus: Gpus = ()


class Roster(Struct, frozen=True, array_like=True, tag=10):
    """Who is in the mesh; members in the order in which they would succeed."""

    epoch: Epoch
    version: Int
    members: Annotated[tuple[RosterEntry, ...], Meta(max_length=MEMBERS_MAX)]


class Redirect(Struct, frozen=True, array_like=True, tag=11):
    """The sender is not dispatcher; this node is."""

    epoch: Epoch
    dispatcher: NodeId
    addresses: Addresses


class SnapshotCursor(Struct, frozen=True, array_like=True):
    """How far a snapshot has come."""

    snapshot_id: Count  #: `hlc` of its head at first, then the name that the asker uses
    row_key: Int  #: names the last row
    record_key: Int = 0  #: names the last record, which come first


FULL_SNAPSHOT = SnapshotCursor(
    0, 0
)  #: asks for a snapshot, also where entries would do


class Pull(Struct, frozen=True, array_like=True, tag=12):
    """Send me the entries beyond this vector."""

    vector: VectorItems
    cursor: SnapshotCursor | None = (
        None  #: go on with this snapshot; `WHOLE`: begin one
    )


class Entries(Struct, frozen=True, array_like=True, tag=13):
    """Part of the answer to PULL, each stream in order and without gaps."""

    entries: EntryBatch
    epochs: EntryWriters  #: of the streams that appear
    has_more: bool  #: ask again with the new vector
    vector: VectorItems  #: what the sender holds


class SnapshotHead(Struct, frozen=True, array_like=True, kw_only=True):
    """What the receiver holds once it has all rows of a snapshot."""

    vector: VectorItems  #: read before the first row, so the rows are as new or newer
    epochs: Writers  #: of these streams
    floor: Floor
    hlc: Count  #: highest hybrid timestamp of the sender


class Snapshot(Struct, frozen=True, array_like=True, tag=24, kw_only=True):
    """Part of an answer to PULL that gives joined tasks instead of entries."""

    rows: Annotated[tuple[TaskRow, ...], Meta(max_length=ENTRIES_MAX)]
    cursor: SnapshotCursor  #: PULL it to get more
    has_more: bool
    head: SnapshotHead | None = None  #: in the first part only
    vector: VectorItems = ()  #: what the sender held when it read these rows
    records: RecordedFacts = ()


class PackedMessage(Struct, frozen=True):
    """A message that was packed elsewhere, so that the event loop need not."""

    data: bytes


class Replicate(Struct, frozen=True, array_like=True, tag=21):
    """What the dispatcher gave to its own disk, for a standby to keep as well.

    Entries come in the order of the dispatcher's appends, without gaps.
    """

    epoch: Epoch
    number: Count  #: of the append that is complete with this message; 0: more follows
    entries: EntryBatch
    epochs: EntryWriters  #: of streams that may be new
    acks_beyond_standbys: bool = False
    """The sender answers for more than what standbys confirm.

    It knows of tasks from rows of a snapshot alone, or has no level standby yet.
    """


class ReplicateOk(Struct, frozen=True, array_like=True, tag=22):
    """All appends up to this number are durable at the sender."""

    epoch: Epoch
    number: Count


class RecordBatch(Struct, frozen=True, array_like=True, tag=25):
    """What every node goes by; a follower keeps it, though it may keep no log."""

    epoch: Epoch
    items: RecordedFacts


class Assign(Struct, frozen=True, array_like=True, tag=14):
    """Run these."""

    epoch: Epoch
    items: WorkBatch


class Kill(Struct, frozen=True, array_like=True, tag=15):
    """End these attempts, the whole process tree of each."""

    epoch: Epoch
    items: AttemptBatch


class Report(Struct, frozen=True, array_like=True):
    """How one attempt ended; the envelope comes along when it is sent again."""

    task: TaskId
    attempt: AttemptId
    outcome: Outcome
    spec: TaskSpec | None = None


class Results(Struct, frozen=True, array_like=True, tag=16):
    """Attempts that ended or are given back; repeated until acknowledged."""

    reports: Annotated[tuple[Report, ...], Meta(max_length=ITEMS_MAX)]
    credit: Int  #: as in HeartbeatOk
    state: NodeState | None = None  #: where it changed just now


class ResultsOk(Struct, frozen=True, array_like=True, tag=17):
    """These results are durable at the dispatcher; the worker may forget them."""

    items: AttemptBatch


class Reattach(Struct, frozen=True, array_like=True, tag=18):
    """What a worker still runs, told to a new dispatcher or after a broken link.

    Much of it comes in several messages: what none of them lists is lost.
    """

    running: WorkBatch
    credit: Int
    state: NodeState
    has_more: bool = False  #: another part follows


class Transfer(Struct, frozen=True, array_like=True, tag=19):
    """A stopping dispatcher asks the receiver to claim; it has accepted its last."""

    epoch: Epoch
    vector: VectorItems


class Leave(Struct, frozen=True, array_like=True, tag=20):
    """The sender closes this link on purpose."""

    reason: Text  #: `STOPPING`, `ATTACHED`, or in words that only people read


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
