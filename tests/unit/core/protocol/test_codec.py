"""Values become rows and come back; what is wrong is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, get_args

import pytest

from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Fact,
    Finished,
    Floor,
    Notified,
    Recorded,
    StreamFloor,
    Submitted,
    TaskCancelled,
    Unblocked,
)
from octaskly.core.log.merge import SubmissionTimes, TaskRecord, TaskRow
from octaskly.core.model.ids import Address, AttemptId, Epoch, NodeId, StreamId, TaskId
from octaskly.core.model.keys import KeyringState, KeyringStatus, KeyringTransfer
from octaskly.core.model.nodes import LoadSample, NodeInfo, NodeState, Role
from octaskly.core.model.task_options import (
    After,
    Requirements,
    TaskLimits,
    TaskOptions,
)
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    OutputFile,
    TaskSpec,
)
from octaskly.core.protocol import codec
from octaskly.core.protocol.codec import NUMBERS
from octaskly.core.protocol.messages import (
    Assign,
    Claim,
    ClaimOk,
    ClaimRejected,
    Entries,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Kill,
    Leave,
    Message,
    Probe,
    ProbeOk,
    Pull,
    Reattach,
    RecordBatch,
    Redirect,
    Replicate,
    ReplicateOk,
    Report,
    Results,
    ResultsOk,
    Roster,
    RosterEntry,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
    Transfer,
)
from octaskly.errors import LocalProtocolError, RemoteProtocolError

NODE = NodeId("abcdefgh234567xy")
EPOCH = Epoch(3, NODE)
STREAM = StreamId(2**63 - 1)
TASK = TaskId("task-001-deadbeef")
ATTEMPT = AttemptId(3, STREAM, 1)
VECTOR = ((STREAM, 7), (StreamId(1), 2))
LOAD = LoadSample(12.5, 0.25, 100, 30)
ADDRESS = Address("fe80::1%eth0", 7878)
OPTIONS = TaskOptions(
    name="ü",
    labels=(("a", ""),),
    env=(("A", "1"), ("B", "2")),
    stdin=b"\xff\x00",
    is_scratch=True,
    grace_s=0,
    requires=Requirements(labels=(("disk", "ssd"),), cpus=2),
    limits=TaskLimits(processes=9),
    after=After(tasks=("a", "b"), end="any"),
)
SPEC = TaskSpec(
    id=TASK,
    command="printf 'é'",
    inputs=("a", "b/c"),
    outputs=("d",),
    submitter="local:root@a",
    created_ms=1_790_000_000_000,
    ord=3 << 56,
)
OUTCOME = Outcome(
    state=AttemptState.FAILED,
    reason=EndReason.SIGNAL,
    exit_code=137,
    signal=9,
    started_ms=1,
    ended_ms=2,
    duration_ms=1,
    stdout=b"\xff\x00",
    stdout_bytes=2,
    outputs=(OutputFile("d", 4), OutputFile("e", None)),
    detail="killed",
)
INFO = NodeInfo(
    id=NODE,
    boot="b",
    name="häuschen",
    slots=2,
    version="1.0",
    peer_port=7878,
    lan_port=3443,
    addresses=("10.0.0.1",),
    labels=(("gpu", "none"),),
    electable=False,
)
MEMBER = RosterEntry(
    id=NODE,
    name="a",
    role=Role.STANDBY,
    state=NodeState.PAUSED,
    addresses=(ADDRESS,),
    lan_port=3443,
    slots=2,
    load=LOAD,
)
REPORT = Report(task=TASK, attempt=ATTEMPT, outcome=OUTCOME, spec=SPEC)
FLOOR = Floor(
    5, (StreamFloor(STREAM, 7, EPOCH), StreamFloor(StreamId(1), 2, EPOCH)), VECTOR
)
RECORD = Recorded("node-revoked", NODE, b"\xff", 0, 98)
FACTS: tuple[Fact, ...] = (
    Submitted(SPEC),
    TaskCancelled(TASK, "me"),
    Notified(TASK),
    Assigned(TASK, ATTEMPT, NODE),
    Finished(TASK, ATTEMPT, NODE, OUTCOME),
    FLOOR,
    Unblocked(TASK),
    RECORD,
)
ENTRIES = tuple(Entry(STREAM, i + 1, 99, fact) for i, fact in enumerate(FACTS))
MESSAGES: tuple[Message, ...] = (
    Hello(node=INFO, epoch=EPOCH, dispatcher=None, vector=VECTOR, uptime_s=1.5),
    Hello(node=INFO, epoch=EPOCH, dispatcher=NODE, followers=3, wall_ms=5),
    HelloOk(),
    Heartbeat(EPOCH, 1.25),
    HeartbeatOk(EPOCH, 1.25, NodeState.DRAINING, 3, LOAD),
    Probe(NODE, 2.0),
    ProbeOk(NODE, 2.0, None, EPOCH),
    ProbeOk(NODE, 2.0, 0.5, EPOCH),
    Claim(EPOCH, STREAM, VECTOR),
    ClaimOk(EPOCH, ()),
    ClaimRejected(EPOCH),
    Roster(EPOCH, 4, (MEMBER,)),
    Redirect(EPOCH, NODE, (ADDRESS,)),
    Pull(VECTOR),
    Pull(VECTOR, SnapshotCursor(99, 9)),
    Entries(ENTRIES, ((STREAM, EPOCH),), has_more=True, vector=VECTOR),
    KeyringStatus(KeyringState(newest=2, fingerprint="ab", revoked=(NodeId("n"),))),
    KeyringTransfer("okm1-x"),
    Snapshot(
        rows=(
            TaskRow(
                TaskRecord(id=TASK, spec=SPEC), SubmissionTimes(1, 2, STREAM, 3), 4
            ),
        ),
        cursor=SnapshotCursor(99, 9),
        has_more=True,
        head=SnapshotHead(
            vector=VECTOR, epochs=((STREAM, EPOCH),), floor=FLOOR, hlc=99
        ),
    ),
    Assign(EPOCH, ((ATTEMPT, SPEC),)),
    Kill(EPOCH, ((TASK, ATTEMPT),)),
    Results((REPORT, Report(task=TASK, attempt=ATTEMPT, outcome=OUTCOME)), 5),
    ResultsOk(((TASK, ATTEMPT),)),
    Reattach(((ATTEMPT, SPEC),), 2, NodeState.READY),
    Transfer(EPOCH, VECTOR),
    Leave("stopping"),
    Replicate(EPOCH, 7, ENTRIES, ((STREAM, EPOCH),)),
    ReplicateOk(EPOCH, 7),
    RecordBatch(EPOCH, (RECORD,)),
)
OTHERS = (
    *FACTS,
    *ENTRIES,
    TaskRecord(id=TASK),
    TaskRecord(
        id=TASK,
        spec=SPEC,
        cancelled_by="x",
        attempts=(Attempt(id=ATTEMPT, node=NODE, outcome=OUTCOME),),
    ),
    REPORT,
    SPEC,
    replace(SPEC, options=OPTIONS),
    OPTIONS,
    OUTCOME,
    Attempt(id=ATTEMPT, node=NODE),
    INFO,
    MEMBER,
    ADDRESS,
)


def test_samples_cover_every_class_that_has_a_number() -> None:
    """A new message or stored class cannot be forgotten here."""
    assert {type(message) for message in MESSAGES} == set(get_args(Message))
    assert {type(value) for value in (*MESSAGES, *OTHERS)} == set(NUMBERS)


def test_no_number_is_given_twice() -> None:
    """Two classes with one number could not be told apart."""
    assert len(set(NUMBERS.values())) == len(NUMBERS)


@pytest.mark.parametrize("value", [*MESSAGES, *OTHERS], ids=lambda v: type(v).__name__)
def test_value_survives_the_way_to_plain_data_and_back(value: object) -> None:
    """Everything is equal and of the same class after decoding."""
    back = codec.decode(_plain(codec.encode(value)))

    assert back == value
    assert repr(back) == repr(value)


def test_unknown_trailing_fields_are_ignored() -> None:
    """A newer peer may say more than this node understands."""
    number, row = codec.encode(Leave("x"))

    assert codec.decode((number, (*row, "new", 5))) == Leave("x")


def test_missing_trailing_fields_take_their_defaults() -> None:
    """An older peer says less."""
    number, row = codec.encode(TaskSpec(id=TASK, command="true"))

    assert codec.decode((number, row[:2])) == TaskSpec(id=TASK, command="true")


def test_a_missing_field_without_default_is_refused() -> None:
    """Half a message is none."""
    number, row = codec.encode(SPEC)

    with pytest.raises(RemoteProtocolError, match="TaskSpec lacks fields"):
        codec.decode((number, row[:1]))


def _spec(**changes: Any) -> tuple[int, list[Any]]:
    number, row = codec.encode(SPEC)
    names = [field.name for field in fields(TaskSpec)]
    values = list(row)
    for name, value in changes.items():
        values[names.index(name)] = value
    return number, values


@pytest.mark.parametrize(
    "plain",
    [
        None,
        5,
        (),
        (1,),
        (1, 2),
        (1, (), ()),
        (0, ()),
        (True, ()),
        ("1", ()),
        ([1], ()),
        (99999, ()),
        (20, {"reason": "x"}),
        (20, b"stopping"),
        (20, (b"stopping",)),
        (20, (None,)),
        _spec(id=5),
        _spec(id="../etc"),
        _spec(id="x" * 97),
        _spec(id=""),
        _spec(command=b"true"),
        _spec(timeout_s=True),
        _spec(timeout_s=1.0),
        _spec(timeout_s=None),
        _spec(ord=2**63),
        _spec(inputs="abc"),
        _spec(inputs=(1,)),
        _spec(inputs=(("a",),)),
        _spec(inputs={"a": 1}),
        (3, ((1, "node"), float("nan"))),
        (3, ((1, "node"), float("inf"))),
        (3, ((1, "no de"), 1.0)),
        (3, ((1,), 1.0)),
        (124, (9, "exit")),
        (124, (5, "no reason")),
        (124, ("5", "exit")),
        (14, ((1, "node"), (((1, 2, 3),),))),
        (13, ((((1, 1, 1, (999, ()))),), (), False, ())),
        (13, ((((1, 1, 1, (20, ("x",)))),), (), False, ())),
    ],
)
def test_what_no_peer_would_send_is_refused(plain: object) -> None:
    """Types, enum values, names and ranges are checked, whatever the nesting."""
    with pytest.raises(RemoteProtocolError):
        codec.decode(plain)


def test_only_messages_are_taken_for_messages() -> None:
    """A fact has a number, too, but is never said on its own."""
    with pytest.raises(RemoteProtocolError):
        codec.decode_message(codec.encode(FACTS[0]))
    with pytest.raises(RemoteProtocolError):
        codec.decode_fact(codec.encode(Leave("x")))


def test_whole_numbers_become_floats_where_floats_are_meant() -> None:
    """A clock at exactly 3 seconds is no protocol violation."""
    back = codec.decode(codec.encode(Probe(NODE, 3)))

    assert type(back.sent_s) is float


def test_a_class_without_number_is_our_own_mistake() -> None:
    """It is reported where it is sent, not where it arrives."""
    with pytest.raises(LocalProtocolError):
        codec.encode(object())


def _plain(value: Any) -> Any:
    """Do what msgpack does: members become their values, and lists tuples."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return getattr(value, "value", value)
