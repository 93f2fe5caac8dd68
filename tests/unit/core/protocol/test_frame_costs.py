"""The largest cost of one frame from a peer, within all bounds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, Final, get_args

import pytest
from msgspec import Struct, inspect, msgpack

from octaskly.core.log.range_rows import MemberEnd, RangeRow
from octaskly.core.model.arrays import RANGE_MAX
from octaskly.core.model.ids import AttemptId, NodeId, StreamId, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import (
    RANGE_ROWS_MAX,
    Message,
    Snapshot,
    SnapshotCursor,
)
from octaskly.errors import RemoteProtocolError
from octaskly.mesh import wire

MEMORY_MAX: Final = 64 << 20
HELLO_OK: Final = wire.build_frame([b"\x91\x02"])


def dense(kind: Any, most: int, *, are_tasks_short: bool) -> Any:
    """Return a value of a type with lists of `most` items, or of the allowed length.

    With `brief`, it omits optional fields at its end.
    """
    inner = partial(dense, most=most, are_tasks_short=are_tasks_short)
    match kind:
        case inspect.StructType(tag=tag, fields=fields):
            needed = [
                field for field in fields if field.required or not are_tasks_short
            ]
            plain = [inner(field.type) for field in needed]
            return plain if tag is None else [tag, *plain]
        case inspect.NamedTupleType(fields=fields):
            return [inner(field.type) for field in fields]
        case inspect.TupleType(item_types=types):
            return [inner(one) for one in types]
        case inspect.VarTupleType(item_type=item, max_length=bound):
            assert bound is not None
            return [inner(item, most=min(most, 1))] * min(most, bound)
        case inspect.UnionType(types=types):
            return inner(types[0])
        case _:
            return dense_scalar(kind)


def dense_scalar(kind: Any) -> Any:
    """Return the value with the most memory for each byte on the wire."""
    match kind:
        case inspect.EnumType(cls=cls):
            return next(iter(cls)).value
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.StrType():
            return "ab"  # Texts of one character are shared.
        case inspect.BytesType():
            return b"ab"
        case inspect.FloatType():
            return 1  # One byte becomes a float.
        case inspect.IntType(le=most, lt=below):
            return min(most or below or 0, 300)  # Numbers up to 256 are shared.
        case _:
            return False


def filled(item: bytes, most: int, room: int) -> list[bytes]:
    """Return as many copies of a packed item as fit into these bytes, less one."""
    return [item] * min(most, 1 + room // len(item))


def listed(parts: list[bytes]) -> bytes:
    """Return a packed list of packed items."""
    return b"\xdd" + len(parts).to_bytes(4, "big") + b"".join(parts)


def frames_of(kind: type[Struct]) -> Iterator[bytes]:
    """Yield frames with the largest messages of a class for several items."""
    shape = inspect.type_info(kind)
    assert isinstance(shape, inspect.StructType)
    before = b""
    for most, are_tasks_short in (
        (0, True),
        (1, False),
        (1 << 15, False),
        (1 << 18, False),
    ):
        make = partial(dense, most=most, are_tasks_short=are_tasks_short)
        fields = [msgpack.encode(shape.tag)]
        for field in shape.fields:
            if not isinstance(field.type, inspect.VarTupleType):
                fields.append(msgpack.encode(make(field.type)))
                continue
            assert field.type.max_length is not None
            is_batch = wire._LARGE.get(kind) == field.name
            room = wire.SPLIT_FRAME_BYTES if is_batch else Limits().frame_bytes
            item = msgpack.encode(make(field.type.item_type))
            fields.append(listed(filled(item, field.type.max_length, room)))
        frame = wire.build_frame([bytes([0x90 + len(fields)]) + b"".join(fields)])
        if frame != before and len(frame) <= Limits().frame_bytes:
            yield frame  # Bounds may make the next one the same.
        before = frame


@pytest.mark.slow
@pytest.mark.parametrize("kind", get_args(Message))
def test_the_largest_message_of_each_class_stays_below_64_mb(
    kind: type[Struct],
) -> None:
    """A hostile member of the mesh cannot exhaust the memory of a small machine."""
    for frame in frames_of(kind):
        decoder = wire.Decoder(Limits())
        decoder.receive_data(HELLO_OK)
        tracemalloc.start()
        try:
            (message,) = decoder.receive_data(frame)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert type(message) is kind
        assert peak < MEMORY_MAX, f"{len(frame)} bytes"


def test_the_largest_ranges_of_a_snapshot_stay_below_64_mb() -> None:
    """Each of their members is as small as it can be."""
    end = MemberEnd(0, 1, 0, 0, 0, 0, 0)
    attempt, node = AttemptId(1, StreamId(1), 1, 1), NodeId("n" * 16)
    array = TaskId("task-001-0000000a")
    row = RangeRow(array, 1, 1, attempt, node, 9, (end,) * RANGE_MAX)
    rows = (row,) * RANGE_ROWS_MAX
    cursor = SnapshotCursor(1)
    message = Snapshot(rows=(), ranges=rows, cursor=cursor, has_more=True)
    frame = wire.build_frame([wire.WirePacker().pack(message)])
    decoder = wire.Decoder(Limits())
    decoder.receive_data(HELLO_OK)
    tracemalloc.start()
    try:
        decoder.receive_data(frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_MAX


@pytest.mark.parametrize("kind", wire._LARGE)
def test_a_large_batch_that_was_not_split_is_refused(kind: type[Struct]) -> None:
    """In memory its small items would take many times as much."""
    *_, frame = islice(frames_of(kind), 2)
    (plain,) = msgpack.decode(frame[wire.HEADER_BYTES :])
    at = 1 + kind.__struct_fields__.index(wire._LARGE[kind])
    item = plain[at][0]
    plain[at] = [item] * (3 + wire.SPLIT_FRAME_BYTES // len(msgpack.encode(item)))
    packed = msgpack.encode(plain)
    decoder = wire.Decoder(Limits())
    decoder.receive_data(HELLO_OK)

    with pytest.raises(RemoteProtocolError, match="was not split"):
        decoder.receive_data(wire.build_frame([packed]))
