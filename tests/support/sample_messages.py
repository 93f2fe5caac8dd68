"""One sample of each message, and the values in them.

`tests/golden/frames.txt` has these messages as frames, so a sample never changes.
"""

from __future__ import annotations

from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Finished,
    Floor,
    MembersAssigned,
    MembersSucceeded,
    Recorded,
    StreamFloor,
    Submitted,
    SuccessTimes,
    TaskCancelled,
)
from octaskly.core.log.merge import SubmissionTimes, TaskRecord, TaskRow
from octaskly.core.log.range_rows import APART, RUNNING, MemberEnd, RangeRow
from octaskly.core.model.arrays import MemberRange, RangeMembers
from octaskly.core.model.ids import Address, AttemptId, Epoch, NodeId, StreamId, TaskId
from octaskly.core.model.keyring_state import (
    KeyringState,
    KeyringStatus,
    KeyringTransfer,
)
from octaskly.core.model.nodes import LoadSample, NodeInfo, NodeState, Role, RosterEntry
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import (
    AttemptState,
    EndReason,
    Outcome,
    OutputFile,
    TaskSpec,
)
from octaskly.core.protocol.messages import (
    Assign,
    AssignRanges,
    Claim,
    ClaimOk,
    ClaimRejected,
    Contact,
    Contacts,
    Entries,
    Heartbeat,
    HeartbeatOk,
    HeldBlobs,
    Hello,
    HelloOk,
    Kill,
    Leave,
    MemberSuccess,
    Message,
    OutputPiece,
    OutputPieces,
    Probe,
    ProbeOk,
    Pull,
    RangeReport,
    RangeResults,
    RangeResultsOk,
    ReadOutput,
    Reattach,
    RecordBatch,
    Redirect,
    Replicate,
    ReplicateOk,
    Report,
    Results,
    ResultsOk,
    Roster,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
    Transfer,
)

NODE, OTHER = NodeId("abcdefgh234567ab"), NodeId("zyxwvuts765432zy")
EPOCH = Epoch(7, NODE)
STREAM = StreamId(0x1234_5678_9ABC_DEF0)
VECTOR = ((STREAM, 41), (StreamId(5), 1))
TASK = TaskId("task-012-deadbeef")
ATTEMPT = AttemptId(7, STREAM, 2, 2)
SPEC = TaskSpec(
    id=TASK,
    command="echo ü",
    timeout_s=60,
    inputs=("in.txt",),
    outputs=("out.txt",),
    submitter="local:ana@desk",
    created_ms=1_700_000_000_123,
    ord=(50 << 56) + 99,
)
OUTCOME = Outcome(
    state=AttemptState.FAILED,
    reason=EndReason.SIGNAL,
    exit_code=137,
    signal=9,
    started_ms=1_700_000_000_200,
    ended_ms=1_700_000_000_300,
    duration_ms=100,
    stdout=b"\x00\xff",
    stderr=b"oh",
    stdout_bytes=2,
    stderr_bytes=7,
    outputs=(OutputFile("out.txt", None),),
    detail="why",
)
ARRAY = TaskSpec(
    id=TASK,
    command="echo {}",
    ord=(50 << 56) + 99,
    options=TaskOptions(array=ArraySpec(count=3, first=9, step=2)),
)
MEMBERS = RangeMembers(TASK, 9, 2, ATTEMPT, (0, 2))
SUCCESS = MemberSuccess(
    1_700_000_000_200, 1_700_000_000_300, 100, b"\x00\xff", b"", 2, 0, 1, None
)
LOAD = LoadSample(12.5, 0.25, 900, 60)
ENTRIES = (
    Entry(STREAM, 1, 1001, Submitted(SPEC)),
    Entry(STREAM, 2, 1002, Assigned(TASK, ATTEMPT, OTHER)),
    Entry(STREAM, 3, 1003, Finished(TASK, ATTEMPT, OTHER, OUTCOME)),
    Entry(STREAM, 4, 1004, TaskCancelled(TASK, "local:ana@desk")),
    Entry(STREAM, 5, 1005, MembersAssigned(TASK, ATTEMPT, OTHER, 9, 2, 3)),
    Entry(
        *(STREAM, 8, 1008),
        MembersSucceeded(
            *(TASK, ATTEMPT, OTHER, 9, 2, (0, 2), 7, 1_700_000_000_200),
            (SuccessTimes(0, 100, 100), SuccessTimes(-1, 99, 100, 1, 30_000)),
        ),
    ),
)
RECORD = Recorded("token-revoked", "0f" * 16, b"{}", 1_700_000_000_000, 1006)
WRITERS = ((STREAM, EPOCH),)
FLOOR = Floor(1000, (StreamFloor(StreamId(5), 1, EPOCH),), VECTOR)
MESSAGES: tuple[Message, ...] = (
    Hello(
        version=1,
        node=NodeInfo(
            id=NODE,
            boot="b00t",
            name="desk",
            slots=4,
            version="0.1.0",
            peer_port=7878,
            lan_port=3443,
            addresses=("192.168.1.5",),
            memory_mb=2048,
            labels=(("gpu", "no"),),
        ),
        epoch=EPOCH,
        dispatcher=None,
        followers=3,
        vector=VECTOR,
        uptime_s=1.5,
        wall_ms=1_700_000_000_000,
    ),
    HelloOk(),
    Heartbeat(EPOCH, 12.25),
    HeartbeatOk(EPOCH, 12.25, NodeState.READY, 9, LOAD),
    Probe(OTHER, 3.5),
    ProbeOk(OTHER, 3.5, None, EPOCH),
    Claim(EPOCH, STREAM, VECTOR),
    ClaimOk(EPOCH, VECTOR),
    ClaimRejected(EPOCH),
    Roster(
        EPOCH,
        2,
        (
            RosterEntry(
                id=NODE,
                name="desk",
                role=Role.DISPATCHER,
                state=NodeState.READY,
                addresses=(Address("fe80::1%eth0", 7878),),
                lan_port=3443,
                slots=4,
                running=1,
                version="0.1.0",
                load=LOAD,
                memory_mb=2048,
            ),
        ),
    ),
    Redirect(EPOCH, OTHER, (Address("192.168.1.6", 7878),)),
    Pull(VECTOR),
    Entries(ENTRIES, WRITERS, True, VECTOR),
    Assign(EPOCH, ((ATTEMPT, SPEC),)),
    AssignRanges(EPOCH, (MemberRange(ARRAY, 4, ATTEMPT),)),
    Kill(EPOCH, ((TASK, ATTEMPT),)),
    Results((Report(task=TASK, attempt=ATTEMPT, outcome=OUTCOME, spec=SPEC),), 5),
    ResultsOk(((TASK, ATTEMPT),)),
    RangeResults((RangeReport(MEMBERS, (SUCCESS, SUCCESS)),), 5),
    RangeResultsOk((MEMBERS,)),
    Reattach(((ATTEMPT, SPEC),), 5, NodeState.DRAINING),
    HeldBlobs((1 << 59, 7), (8,)),
    Contacts(
        EPOCH,
        (Contact(id=NODE, addresses=(Address("192.168.1.5", 7878),), lan_port=3443),),
    ),
    ReadOutput(5, TASK, ATTEMPT, (0, None)),
    OutputPieces(5, (OutputPiece(0, 0, b"line"),), is_complete=False),
    Transfer(EPOCH, VECTOR),
    Leave("stopping"),
    Replicate(EPOCH, 17, ENTRIES, WRITERS),
    RecordBatch(EPOCH, (RECORD,)),
    ReplicateOk(EPOCH, 17),
    Snapshot(
        rows=(
            TaskRow(
                TaskRecord(id=TASK, spec=SPEC), SubmissionTimes(3, 4, STREAM, 5), 6
            ),
        ),
        ranges=(
            RangeRow(
                *(TASK, 5, 1, ATTEMPT, NODE, 1005),
                (RUNNING, MemberEnd(2, 1, 1_700_000_000_000, 9, 8, 7, 4096), APART),
            ),
        ),
        cursor=SnapshotCursor(1005, 7),
        has_more=True,
        head=SnapshotHead(vector=VECTOR, epochs=WRITERS, floor=FLOOR, hlc=1005),
    ),
    KeyringStatus(
        KeyringState(
            oldest=1,
            generation=1,
            newest=2,
            fingerprint="0123456789abcdef",
            is_urgent=True,
            phase_since_ms=1_700_000_000_000,
            revoked=(OTHER,),
        )
    ),
    KeyringTransfer("okm1-x generation=2"),
)
