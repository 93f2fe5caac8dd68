"""Encoding and decoding of msgpack values, and refusals of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
from msgspec import Struct, inspect, msgpack
from msgspec.structs import replace

from octaskly.core.log.facts import (
    Decided,
    Entry,
    Fact,
    Notified,
    Reprioritized,
    Submitted,
    Unblocked,
)
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import RANGE_MAX, RangeMembers
from octaskly.core.model.ids import StreamId
from octaskly.core.model.keyring_state import KeyringTransfer, MergeKeyring
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import (
    After,
    Requirements,
    TaskLimits,
    TaskOptions,
)
from octaskly.core.model.tasks import Attempt, OutputFile, TaskSpec, TaskState
from octaskly.core.protocol.messages import (
    ClaimOk,
    Entries,
    Hello,
    Leave,
    MemberSuccess,
    Message,
    Probe,
    ProbeOk,
    Pull,
    RangeReport,
    RangeResults,
    RangeResultsOk,
    Report,
    Results,
    SnapshotCursor,
)
from octaskly.errors import RemoteProtocolError
from octaskly.mesh import wire
from tests.support.sample_messages import (
    ATTEMPT,
    ENTRIES,
    EPOCH,
    FLOOR,
    MESSAGES,
    NODE,
    OUTCOME,
    RECORD,
    SPEC,
    STREAM,
    TASK,
    VECTOR,
    WRITERS,
)

STREAM_MAX = StreamId(2**63 - 1)
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
FACTS: tuple[Fact, ...] = (
    *(entry.fact for entry in ENTRIES),
    Submitted(replace(SPEC, options=OPTIONS)),
    Decided(TASK, TaskState.COMPLETED, 3, ATTEMPT, NODE),
    Notified(TASK),
    Unblocked(TASK),
    FLOOR,
    RECORD,
    Reprioritized(TASK, 3, 99, -7),
)
REPORT = Report(
    task=TASK,
    attempt=replace(ATTEMPT, stream=STREAM_MAX),
    outcome=replace(OUTCOME, outputs=(OutputFile("d", 4), OutputFile("e", None))),
)
HELLO = next(message for message in MESSAGES if isinstance(message, Hello))
OTHERS = (
    *FACTS,
    *(Entry(STREAM_MAX, i + 1, 99, fact) for i, fact in enumerate(FACTS)),
    TaskRecord(id=TASK),
    TaskRecord(
        id=TASK,
        spec=SPEC,
        cancelled_by="x",
        attempts=(Attempt(id=ATTEMPT, node=NODE, outcome=OUTCOME),),
    ),
    REPORT,
    OPTIONS,
    OUTCOME,
    Attempt(id=ATTEMPT, node=NODE),
    Entries(
        tuple(Entry(STREAM, i + 1, 99, fact) for i, fact in enumerate(FACTS)),
        WRITERS,
        has_more=False,
        vector=VECTOR,
    ),
    Results((REPORT,), 5),
    replace(HELLO, dispatcher=NODE, node=replace(HELLO.node, name="häuschen")),
    ProbeOk(NODE, 2.0, 0.5, EPOCH),
    ClaimOk(EPOCH, ()),
    Pull(VECTOR, SnapshotCursor(99, 9)),
)


PACKER = wire.WirePacker()


def _acknowledging(count: int) -> RangeResultsOk:
    return RangeResultsOk((RangeMembers(TASK, 1, 1, ATTEMPT, tuple(range(count))),))


def _succeeding(count: int) -> RangeResults:
    success = MemberSuccess(None, None, None)
    (members,) = _acknowledging(1).items
    return RangeResults((RangeReport(members, (success,) * count),), 1)


@pytest.mark.parametrize("build", [_acknowledging, _succeeding])
def test_a_range_of_a_million_members_is_refused_while_it_is_read(
    build: Callable[[int], RangeResultsOk | RangeResults],
) -> None:
    """A node could fill a frame with them."""
    decoder = wire.Decoder(Limits(hello_bytes=16 << 20))
    frame = wire.build_frame([PACKER.pack(build(RANGE_MAX))])
    assert len(decoder.receive_data(frame)) == 1

    with pytest.raises(RemoteProtocolError):
        decoder.receive_data(wire.build_frame([PACKER.pack(build(1_000_000))]))


def test_samples_cover_every_message_and_fact() -> None:
    """A new message or stored class cannot be forgotten here."""
    assert {type(message) for message in MESSAGES} == set(get_args(Message))
    assert {type(fact) for fact in FACTS} == set(get_args(Fact))


def test_type_numbers_are_unique() -> None:
    """A number stays with its class, and is never reused."""
    kinds = (*get_args(Message), *get_args(Fact))

    assert len({kind.__struct_config__.tag for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("value", [*MESSAGES, *OTHERS], ids=lambda v: type(v).__name__)
def test_a_value_survives_encoding_and_decoding(value: Struct) -> None:
    """Everything is equal and of the same class after decoding."""
    back = PACKER.unpack(PACKER.pack(value), type(value))

    assert back == value
    assert repr(back) == repr(value)


def test_unknown_trailing_fields_are_ignored() -> None:
    """A newer peer may send more than this node understands."""
    assert decode_body(20, "x", "new", 5) == [Leave("x")]


def test_missing_trailing_fields_take_their_defaults() -> None:
    """An older peer sends less."""
    brief = msgpack.encode([TASK, "true"])

    assert PACKER.unpack(brief, TaskSpec) == TaskSpec(id=TASK, command="true")


def test_a_missing_field_without_default_is_refused() -> None:
    """An incomplete message is refused."""
    with pytest.raises(RemoteProtocolError, match="at least length"):
        PACKER.unpack(msgpack.encode([TASK]), TaskSpec)


def _spec(**changes: Any) -> list[Any]:
    """Return the number of a fact, and a changed envelope."""
    values = {name: getattr(SPEC, name) for name in SPEC.__struct_fields__}
    return [100, list({**values, **changes}.values())]


@pytest.mark.parametrize(
    "plain",
    [
        None,
        5,
        [],
        [1],
        [1, 2],
        [0],
        [True],
        ["1"],
        [[1]],
        [99999],
        {"reason": "x"},
        [20, b"stopping"],
        [20, None],
        _spec(id=5),
        _spec(id="../etc"),
        _spec(id="x" * 97),
        _spec(id="x\n"),
        _spec(id=""),
        _spec(command=b"true"),
        _spec(timeout_s=True),
        _spec(timeout_s=1.0),
        _spec(timeout_s="none"),
        _spec(timeout_s=-1),
        _spec(ord=2**63),
        _spec(inputs="abc"),
        _spec(inputs=(1,)),
        _spec(inputs=(("a",),)),
        _spec(inputs={"a": 1}),
        [3, [1, "node"], float("nan")],
        [3, [1, "node"], float("inf")],
        [3, [1, "node"], float("-inf")],
        [3, [1, "no de"], 1.0],
        [3, [1], 1.0],
        [103, TASK, [1, 1, 1], NODE, [9, "exit"]],
        [103, TASK, [1, 1, 1], NODE, [5, "no reason"]],
        [103, TASK, [1, 1, 1], NODE, ["5", "exit"]],
        [14, [1, "node"], [[1, 2, 3]]],
        [13, [[1, 1, 1, [999]]], [], False, []],
        [13, [[1, 1, 1, [20, "x"]]], [], False, []],
    ],
)
def test_values_that_no_correct_peer_sends_are_refused(plain: object) -> None:
    """Types, enum values, names and ranges are checked at every depth."""
    body = msgpack.encode(plain)

    with pytest.raises(RemoteProtocolError):
        wire.Decoder(Limits()).receive_data(wire.build_frame([body]))
    with pytest.raises(RemoteProtocolError):
        PACKER.unpack_entry(STREAM, 1, 1, body)


def test_only_messages_are_accepted_as_messages() -> None:
    """A fact has a number, too, but is never sent on its own."""
    fact = FACTS[0]

    with pytest.raises(RemoteProtocolError):
        wire.Decoder(Limits()).receive_data(wire.build_frame([PACKER.pack(fact)]))
    with pytest.raises(RemoteProtocolError):
        PACKER.unpack_entry(STREAM, 1, 1, PACKER.pack(Leave("x")))


def test_whole_numbers_become_floats_in_float_fields() -> None:
    """A clock at exactly 3 seconds is no protocol violation."""
    (back,) = decode_body(5, NODE, 3)

    assert isinstance(back, Probe)
    assert type(back.sent_s) is float


def test_the_text_of_a_keyring_is_never_shown() -> None:
    """It is a secret, and values end up in logs and failed assertions."""
    assert "okm1" not in repr(KeyringTransfer("okm1-x"))
    assert "okm1" not in repr(MergeKeyring(NODE, "okm1-x"))


def test_every_field_from_a_peer_is_bounded() -> None:
    """Numbers fit into the database and are finite; all lengths have a limit."""
    seen: set[str] = set()

    assert _unbounded(inspect.type_info(Message | Fact), "", seen) == []
    assert {"TaskSpec", "RosterEntry", "Outcome", "StreamFloor", "KeyringState"} <= seen


def _unbounded(kind: Any, where: str, seen: set[str]) -> list[str]:
    """Return the fields in a type that have no bounds."""
    match kind:
        case inspect.StructType(cls=cls, fields=fields):
            if cls.__name__ in seen:
                return []
            seen.add(cls.__name__)
            inner = [(f.type, f"{cls.__name__}.{f.name}") for f in fields]
        case inspect.NamedTupleType(cls=cls, fields=fields):
            inner = [(f.type, f"{cls.__name__}.{f.name}") for f in fields]
        case inspect.UnionType(types=types):
            inner = [(one, where) for one in types]
        case inspect.TupleType(item_types=types):
            inner = [(one, where) for one in types]
        case inspect.VarTupleType(item_type=item, max_length=most):
            found = _unbounded(item, where, seen)
            return found if most is not None else [where, *found]
        case inspect.StrType() | inspect.BytesType():
            is_bounded = kind.max_length or getattr(kind, "pattern", None)
            return [] if is_bounded else [where]
        case inspect.IntType() | inspect.FloatType():
            low = kind.ge if kind.gt is None else kind.gt
            high = kind.le if kind.lt is None else kind.lt
            return [where] if low is None or high is None else []
        case _:
            bare = inspect.EnumType | inspect.BoolType | inspect.NoneType
            is_bare = isinstance(kind, bare | inspect.LiteralType)
            return [] if is_bare else [where]
    return [one for part, place in inner for one in _unbounded(part, place, seen)]


def decode_body(*plain: object) -> list[Message]:
    """Return the message that a peer decodes."""
    return wire.Decoder(Limits()).receive_data(
        wire.build_frame([msgpack.encode(plain)])
    )
