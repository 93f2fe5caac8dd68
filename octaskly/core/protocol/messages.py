"""Messages between peers: a frozen struct for each, and their union `Message`.

Every message except `Hello` and `HelloOk` needs a link on which both sides sent
HelloOk. One frame carries a batch of items. A dispatcher's messages carry its `epoch`.
A node that has seen a higher epoch replies with it and ignores the message.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from octaskly.core.log.facts import Entry, Floor, Recorded
from octaskly.core.log.merge import TaskRow
from octaskly.core.log.range_rows import RangeRow
from octaskly.core.log.retired_streams import (
    EMPTY_DIGEST,
    NONE_RETIRED,
    RetiredSummary,
)
from octaskly.core.model.arrays import RANGE_MAX, MemberRange, RangeMembers
from octaskly.core.model.field_types import (
    Blob,
    Count,
    Float,
    Int,
    Millis,
    Port,
    Text,
)
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
from octaskly.core.model.keyring_state import KeyringMessage
from octaskly.core.model.nodes import (
    LoadSample,
    NodeInfo,
    NodeState,
    Pressure,
    RosterEntry,
)
from octaskly.core.model.tasks import (
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
)
from octaskly.core.model.tree_sizes import BlobKeys, HoldersByBlob

PROTOCOL_VERSION = 1
VERSION_MIN = 1  #: oldest version that this program speaks

# Reasons in `Leave` and `PeerDown` for which a link ends without counting as a loss.
STOPPING_REASON = "stopping"
LEFT_REASON = "left the mesh"  #: the sender stops, and its node id never comes back
STOPPED_REASONS = (STOPPING_REASON, LEFT_REASON)
UNNEEDED_REASON = (
    "attached"  #: in a large mesh, the sender does not need a link to the receiver
)

ENTRIES_MAX = 1 << 13  #: per message; usual messages have a few hundred
RANGE_ROWS_MAX = 1 << 9  #: per message; a row takes up to 110 kB in memory
MEMBER_FACTS_MAX = 1 << 14  #: of members of arrays, in the entries of one message
ITEMS_MAX = 1 << 16  #: per message of 1 MiB; most items take at least 16 bytes
KNOWN_BLOBS_MAX = 1 << 12  #: of one `Assign`, whose holders it names
VISITORS_MAX = 1 << 8  #: linked to one member
CONTACTS_MAX = 8  #: members whose addresses a visitor gets
OUTPUT_PIECES_MAX = 8  #: per message
OUTPUT_PIECE_BYTES_MAX = 16 << 10
MEMBERS_MAX = 1 << 11  #: per roster; a mesh has at most `Limits.peers`

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

StartOffsets = tuple[Count | None, Count | None]
"""First offset of stdout and of stderr; None leaves a stream out."""

PROTOCOL_PREFIX = "protocol: "
"""Prefix of the reason after a protocol violation; the rest is for people."""


class Hello(Struct, frozen=True, array_like=True, tag=1, kw_only=True):
    """First frame of each side; fixed once sent, so both compare the same pair."""

    version: Int = PROTOCOL_VERSION
    version_min: Int = VERSION_MIN
    node: NodeInfo
    epoch: Epoch  #: highest epoch seen
    dispatcher: NodeId | None  #: node that the sender follows; itself if dispatcher
    followers: Int = 0  #: live followers, if the sender is dispatcher
    vector: VectorItems = ()
    uptime_s: Float = 0.0
    wall_ms: Int = 0  #: to report clocks that differ
    readable_log_version: Int = 1  #: newest log version that the sender can read
    log_version: Int = 1  #: version of the sender's log
    retired: RetiredSummary = NONE_RETIRED  #: streams that `vector` leaves out


class HelloOk(Struct, frozen=True, array_like=True, tag=2):
    """The sender accepts the link, which is connected once both sides sent this."""


class Heartbeat(Struct, frozen=True, array_like=True, tag=3):
    """The dispatcher is alive and still dispatcher."""

    epoch: Epoch
    sent_s: Float  #: by the sender's clock; the receiver returns it


class HeartbeatOk(Struct, frozen=True, array_like=True, tag=4):
    """A follower is alive, and its current state."""

    epoch: Epoch
    sent_s: Float
    state: NodeState
    credit: Int  #: most attempts that it takes, running and waiting together
    load: LoadSample
    is_disk_failing: bool = False  #: then it can be neither standby nor successor
    pressure: Pressure | None = None  #: why it takes no work although it is ready
    addresses: Hosts = ()  #: current addresses, if they changed since its Hello
    is_merging: bool = False  #: it merges a snapshot, so it sends no Pull for a while
    is_api_failing: bool = False  #: then it succeeds no dispatcher whose API fails, too


class Probe(Struct, frozen=True, array_like=True, tag=5):
    """Asks a follower of `suspect` how recently it had a frame from it."""

    suspect: NodeId
    sent_s: Float


class ProbeOk(Struct, frozen=True, array_like=True, tag=6):
    """Answer to Probe: the age of the last frame from `suspect`."""

    suspect: NodeId
    sent_s: Float
    age_s: Float | None  #: None: the sender does not follow it, or has no link to it
    epoch: Epoch  #: highest that the sender has seen


class Claim(Struct, frozen=True, array_like=True, tag=7):
    """The sender is dispatcher from now on, in an epoch that is on its disk."""

    epoch: Epoch
    stream: StreamId
    vector: VectorItems
    retired: RetiredSummary = NONE_RETIRED


class ClaimOk(Struct, frozen=True, array_like=True, tag=8):
    """The sender follows; its vector shows what the claimer may lack.

    To a relay, it shows what the dispatcher may lack.
    """

    epoch: Epoch
    vector: VectorItems
    retired: RetiredSummary = NONE_RETIRED


class ClaimRejected(Struct, frozen=True, array_like=True, tag=9):
    """The claim is rejected, because the sender knows this higher epoch."""

    epoch: Epoch


class Roster(Struct, frozen=True, array_like=True, tag=10):
    """The members of the mesh, in order of succession."""

    epoch: Epoch
    version: Int
    members: Annotated[tuple[RosterEntry, ...], Meta(max_length=MEMBERS_MAX)]
    visitors: Annotated[tuple[RosterEntry, ...], Meta(max_length=VISITORS_MAX)] = ()
    """Workers that are no members: no rule of the mesh counts them."""

    @property
    def nodes(self) -> tuple[RosterEntry, ...]:
        """All nodes that run tasks: the members, then the visitors."""
        return (*self.members, *self.visitors) if self.visitors else self.members


class Redirect(Struct, frozen=True, array_like=True, tag=11):
    """The sender is not dispatcher; `dispatcher` is."""

    epoch: Epoch
    dispatcher: NodeId
    addresses: Addresses


class SnapshotCursor(Struct, frozen=True, array_like=True):
    """Position in a snapshot: retired streams, records, rows, then pending entries."""

    snapshot_id: Count  #: assigned by the sender
    row_key: Int = 0  #: key of the last row
    record_key: Int = 0  #: key of the last record
    retired_key: Int = 0  #: number of the last retired stream
    pending_key: tuple[StreamId, Count] = (StreamId(0), 0)  #: of the last entry


class Pull(Struct, frozen=True, array_like=True, tag=12):
    """Requests the entries beyond this vector.

    The vector also names retired streams that the receiver's own vector names.
    """

    vector: VectorItems
    cursor: SnapshotCursor | None = None  #: continue this snapshot
    retired: RetiredSummary = NONE_RETIRED
    included: Count = EMPTY_DIGEST
    """Digest of the receiver's retired streams, if the sender knows all of them."""


class Entries(Struct, frozen=True, array_like=True, tag=13):
    """Part of the answer to Pull, each stream in order and without gaps."""

    entries: EntryBatch
    epochs: EntryWriters  #: of the streams in `entries`
    has_more: bool  #: send another Pull with the new vector
    vector: VectorItems  #: entries that the sender holds
    retired: Count = EMPTY_DIGEST  #: digest of its retired streams; 0: not stated


class SnapshotHead(Struct, frozen=True, array_like=True, kw_only=True):
    """The state that the receiver has reached with all rows of a snapshot."""

    vector: VectorItems
    """The rows and pending entries have the facts of these entries, and no others."""
    epochs: Writers  #: of the streams in `vector`
    floor: Floor
    hlc: Count  #: highest hybrid timestamp of the sender
    retired: Count = EMPTY_DIGEST  #: digest of its retired streams


class Snapshot(Struct, frozen=True, array_like=True, tag=24, kw_only=True):
    """Part of an answer to Pull that has joined tasks instead of entries.

    All parts come from one read transaction. If the sender has ended it, the answer is
    the first part of another snapshot.
    """

    rows: Annotated[tuple[TaskRow, ...], Meta(max_length=ENTRIES_MAX)]
    cursor: SnapshotCursor  #: for the next Pull
    has_more: bool
    head: SnapshotHead | None = None  #: in the first part only
    after: SnapshotCursor | None = None  #: end of the part before
    records: RecordedFacts = ()
    retired: Annotated[
        tuple[tuple[StreamId, Count], ...], Meta(max_length=ENTRIES_MAX)
    ] = ()
    """Retired streams, each with its last void entry, in the sender's order."""
    pending: Annotated[tuple[Entry, ...], Meta(max_length=ENTRIES_MAX)] = ()
    """Entries about tasks that the sender does not know yet."""
    ranges: Annotated[tuple[RangeRow, ...], Meta(max_length=RANGE_ROWS_MAX)] = ()
    """Rows of ranges; members in them have no row in `rows` unless they are apart."""


class PackedMessage(Struct, frozen=True):
    """A message that was encoded outside the event loop, which it would delay."""

    data: bytes


class Replicate(Struct, frozen=True, array_like=True, tag=21):
    """Entries that the dispatcher appends to its own log, for a standby to append too.

    They are in the order of the dispatcher's appends, without gaps.
    """

    epoch: Epoch
    number: Count  #: of the append that this message completes; 0: more follows
    entries: EntryBatch
    epochs: EntryWriters  #: of streams that may be new to the receiver


class ReplicateOk(Struct, frozen=True, array_like=True, tag=22):
    """All appends up to this number are on the sender's disk."""

    epoch: Epoch
    number: Count


class RecordBatch(Struct, frozen=True, array_like=True, tag=25):
    """Records that every node applies; a follower stores them even without a log."""

    epoch: Epoch
    items: RecordedFacts


class Assign(Struct, frozen=True, array_like=True, tag=14):
    """Run these attempts."""

    epoch: Epoch
    items: WorkBatch
    holders: Annotated[HoldersByBlob, Meta(max_length=KNOWN_BLOBS_MAX)] = ()
    """Nodes that have the blobs that these attempts need."""


class AssignRanges(Struct, frozen=True, array_like=True, tag=32):
    """Run these members of arrays, as if `Assign` listed each of them."""

    epoch: Epoch
    items: Annotated[tuple[MemberRange, ...], Meta(max_length=ITEMS_MAX)]


class Kill(Struct, frozen=True, array_like=True, tag=15):
    """Kill these attempts, with all their processes."""

    epoch: Epoch
    items: AttemptBatch
    spares_begun: bool = False  #: only those that wait are to end, as returned


class Report(Struct, frozen=True, gc=False, array_like=True):
    """How one attempt ended; a repeated report includes the spec."""

    task: TaskId
    attempt: AttemptId
    outcome: Outcome
    spec: TaskSpec | None = None


class MemberSuccess(Struct, frozen=True, array_like=True):
    """The outcome of a member that succeeded, without output files; see `Outcome`."""

    started_ms: Millis | None
    ended_ms: Millis | None
    duration_ms: Millis | None
    stdout: Blob = b""
    stderr: Blob = b""
    stdout_bytes: Count = 0
    stderr_bytes: Count = 0
    cpu_ms: Millis | None = None
    memory_max_kb: Count | None = None

    @property
    def outcome(self) -> Outcome:
        """The same as an outcome."""
        return Outcome(
            AttemptState.OK,
            EndReason.EXIT,
            0,
            None,
            self.started_ms,
            self.ended_ms,
            self.duration_ms,
            self.stdout,
            self.stderr,
            self.stdout_bytes,
            self.stderr_bytes,
            (),
            "",
            self.cpu_ms,
            self.memory_max_kb,
        )


def member_success(end: Outcome) -> MemberSuccess | None:
    """Return an outcome in the form of `RangeReport`; None if that cannot hold it."""
    success = MemberSuccess(
        end.started_ms,
        end.ended_ms,
        end.duration_ms,
        end.stdout,
        end.stderr,
        end.stdout_bytes,
        end.stderr_bytes,
        end.cpu_ms,
        end.memory_max_kb,
    )
    return success if success.outcome == end else None


class RangeReport(Struct, frozen=True, array_like=True):
    """Successes of members of one range, in the order of their offsets."""

    members: RangeMembers
    successes: Annotated[tuple[MemberSuccess, ...], Meta(max_length=RANGE_MAX)]


class RangeResults(Struct, frozen=True, array_like=True, tag=33):
    """Successes of members of ranges; `Results` has those that are sent again."""

    items: Annotated[tuple[RangeReport, ...], Meta(max_length=ITEMS_MAX)]
    credit: Int  #: as in HeartbeatOk


class RangeResultsOk(Struct, frozen=True, array_like=True, tag=34):
    """The same as ResultsOk, for members of ranges."""

    items: Annotated[tuple[RangeMembers, ...], Meta(max_length=ITEMS_MAX)]


class Results(Struct, frozen=True, array_like=True, tag=16):
    """Attempts that ended or are returned; repeated until acknowledged."""

    reports: Annotated[tuple[Report, ...], Meta(max_length=ITEMS_MAX)]
    credit: Int  #: as in HeartbeatOk
    state: NodeState | None = None  #: if it just changed


class ResultsOk(Struct, frozen=True, array_like=True, tag=17):
    """These results are on the dispatcher's disk; the worker may forget them."""

    items: AttemptBatch


class Reattach(Struct, frozen=True, array_like=True, tag=18):
    """A worker's live attempts, sent to a new dispatcher or after a broken link.

    A long list takes several messages. An attempt that none of them lists is lost.
    """

    running: WorkBatch
    credit: Int
    state: NodeState
    has_more: bool = False  #: another part follows


class HeldBlobs(Struct, frozen=True, array_like=True, tag=30):
    """Changes of a worker's large blobs and whole trees; all, after Reattach."""

    added: BlobKeys
    removed: BlobKeys = ()


class Contact(Struct, frozen=True, array_like=True, kw_only=True):
    """Addresses of a member, for a visitor."""

    id: NodeId
    addresses: Addresses  #: with the peer port
    lan_port: Port


class Contacts(Struct, frozen=True, array_like=True, tag=31):
    """The members that a visitor may dial, the dispatcher first: all that it learns."""

    epoch: Epoch
    members: Annotated[tuple[Contact, ...], Meta(max_length=CONTACTS_MAX)]


class ReadOutput(Struct, frozen=True, array_like=True, tag=35):
    """Ask a visitor for what an attempt has written so far, from these offsets on."""

    ticket: Count  #: of the request that waits for it
    task: TaskId
    attempt: AttemptId
    starts: StartOffsets


class OutputPiece(Struct, frozen=True, array_like=True):
    """Bytes of one stream of an attempt's output."""

    stream: Count  #: 0: stdout, 1: stderr
    offset: Count  #: of the first byte in the stream
    data: Annotated[bytes, Meta(min_length=1, max_length=OUTPUT_PIECE_BYTES_MAX)]


class OutputPieces(Struct, frozen=True, array_like=True, tag=36):
    """The answer to `ReadOutput`."""

    ticket: Count  #: as in the request
    pieces: Annotated[tuple[OutputPiece, ...], Meta(max_length=OUTPUT_PIECES_MAX)]
    is_complete: bool  #: this is the last output of the attempt
    is_absent: bool = False  #: the visitor has no output of this attempt


class Transfer(Struct, frozen=True, array_like=True, tag=19):
    """A stopping dispatcher, which accepts no tasks, asks the receiver to claim."""

    epoch: Epoch
    vector: VectorItems
    retired: RetiredSummary = NONE_RETIRED


class Leave(Struct, frozen=True, array_like=True, tag=20):
    """The sender closes this link on purpose."""

    reason: Text  #: one of the reasons above, or a text for people


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
    | AssignRanges
    | Kill
    | Results
    | ResultsOk
    | RangeResults
    | RangeResultsOk
    | Reattach
    | HeldBlobs
    | Contacts
    | ReadOutput
    | OutputPieces
    | Transfer
    | Leave
    | Replicate
    | ReplicateOk
    | RecordBatch
    | KeyringMessage
)
