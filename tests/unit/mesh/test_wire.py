"""Frames: lengths, limits, and bombs."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import pytest
from msgspec import msgpack

from octaskly.core.log.facts import Entry, Submitted, TaskCancelled
from octaskly.core.model.ids import AttemptId, Epoch, NodeId, StreamId, TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.core.protocol.messages import (
    ITEMS_MAX,
    Assign,
    Entries,
    HelloOk,
    Leave,
    Message,
    PackedMessage,
    Pull,
    Reattach,
    Report,
    Results,
)
from octaskly.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError
from octaskly.mesh import wire
from tests.support.frames import length_prefixed

LIMITS = Limits(hello_bytes=1000, frame_bytes=1 << 20)
FAILURE = Report(
    TaskId("task-001-deadbeef.1"),
    AttemptId(1, StreamId(1), 1, 1),
    Outcome(AttemptState.FAILED, EndReason.EXIT, exit_code=1),
)


def connected(limits: Limits = LIMITS) -> wire.Decoder:
    """Return a decoder that has seen HELLO_OK, so that large frames are allowed."""
    decoder = wire.Decoder(limits)
    decoder.receive_data(wire.encode([HelloOk()]))
    return decoder


def test_one_frame_carries_many_messages() -> None:
    """Batching makes the mesh fast."""
    messages: list[Message] = [Leave("a"), Pull(()), HelloOk()]

    assert wire.Decoder(LIMITS).receive_data(wire.encode(messages)) == messages


def test_frames_that_arrive_byte_by_byte_are_complete_with_the_last_one() -> None:
    """A slow peer works like a fast one."""
    decoder = wire.Decoder(LIMITS)
    data = wire.encode([Leave("a")]) + wire.encode([Leave("b")])

    arrived = [decoder.receive_data(data[i : i + 1]) for i in range(len(data))]

    assert [m for messages in arrived for m in messages] == [Leave("a"), Leave("b")]
    assert arrived[-1] == [Leave("b")]


def test_an_oversize_frame_is_refused_from_its_length_alone() -> None:
    """Four bytes are enough; nothing is buffered or decoded."""
    with pytest.raises(FrameTooLarge, match="4294967295"):
        wire.Decoder(LIMITS).receive_data(b"\xff\xff\xff\xff")


def test_a_large_frame_is_allowed_only_after_hello_ok() -> None:
    """An unauthenticated peer may send little."""
    large = wire.encode([Leave("x" * 2000)])

    assert connected().receive_data(large) == [Leave("x" * 2000)]
    with pytest.raises(FrameTooLarge):
        wire.Decoder(LIMITS).receive_data(large)


def test_a_large_frame_may_follow_hello_ok_in_the_same_bytes() -> None:
    """TCP does not keep message boundaries."""
    data = wire.encode([HelloOk()]) + wire.encode([Leave("x" * 2000)])

    assert len(wire.Decoder(LIMITS).receive_data(data)) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x80",
        b"\xc1",
        b"\x91\x80",
        b"\x91\x81\xa1a\x01",
        b"\x91\x81\x01\x01",
        b"\x91\xd4\x01\x00",
        b"\x91\xd6\xff\x00\x00\x00\x00",
        b"\x91\xc7\x00\x05",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91\x92\x14\xa2\xff\xfe",
        b"\x90\x90",
        msgpack.encode([[20, "x"]])[:-1],
        msgpack.encode([[3, [1, "a"], float("nan")]]),
        msgpack.encode([[77]]),
        b"\x91" * 1100,
        b"\x91" * 500 + b"\xc0",
    ],
    ids=lambda body: body[:8].hex() or "empty",
)
def test_an_invalid_body_is_refused(body: bytes) -> None:
    """Maps, extensions, cut and trailing bytes, depth bombs, false lengths."""
    with pytest.raises(RemoteProtocolError):
        connected().receive_data(length_prefixed(body))


def test_a_megabyte_of_empty_maps_costs_almost_nothing() -> None:
    """The first map ends the decoding; all of them would take 73 MB."""
    count = (1 << 20) - 16
    for size in (100_000, count):
        data = length_prefixed(b"\xdd" + size.to_bytes(4, "big") + b"\x80" * size)

        assert peak_of(connected(), data) < 4 * len(data)


def peak_of(decoder: wire.Decoder, data: bytes) -> int:
    """Return the peak memory of a read in bytes, whether it is refused or not."""
    tracemalloc.start()
    try:
        with suppress(RemoteProtocolError):
            decoder.receive_data(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [b"\x91" * (1 << 20), b"\xdd\x00\x00\xff\xff" * 200_000, b"\x90" * (1 << 20)],
    ids=["depth", "depth of wide arrays", "arrays of nothing"],
)
def test_an_invalid_message_costs_no_memory(body: bytes) -> None:
    """The decoder allocates no arrays in wrong places, whatever their length."""
    assert peak_of(connected(), length_prefixed(body)) < 4 * len(body)


def test_a_worker_report_may_come_in_parts() -> None:
    """Only the last part ends it."""
    spec = TaskSpec(id=TaskId("task-001-deadbeef"), command="x" * 1000)
    running = tuple((AttemptId(1, StreamId(9), n, n), spec) for n in range(1, 3001))
    message = Reattach(running, 7, NodeState.READY)
    decoder = connected()

    parts = wire.pack_parts(message, LIMITS.frame_bytes)
    got = [m for part in parts for m in decoder.receive_data(wire.build_frame([part]))]

    assert all(isinstance(m, Reattach) and m.credit == 7 for m in got)
    assert [m.has_more for m in got if isinstance(m, Reattach)] == [True] * (
        len(got) - 1
    ) + [False]
    assert (
        tuple(r for m in got if isinstance(m, Reattach) for r in m.running) == running
    )


def test_a_batch_that_is_too_large_for_a_frame_is_split() -> None:
    """Many large results still arrive, in order."""
    results = Results(tuple(report(i, 300_000) for i in range(7)), 5)
    parts = wire.pack_parts(results, LIMITS.frame_bytes)
    decoder = connected()

    got = [m for part in parts for m in decoder.receive_data(wire.build_frame([part]))]

    assert len(parts) > 1
    assert all(isinstance(m, Results) and m.credit == 5 for m in got)
    assert [r for m in got if isinstance(m, Results) for r in m.reports] == list(
        results.reports
    )


def test_a_message_that_cannot_be_split_is_a_local_error() -> None:
    """The sender keeps the bound, too."""
    with pytest.raises(LocalProtocolError, match="a Leave is larger"):
        wire.pack_parts(Leave("x" * 2_000_000), LIMITS.frame_bytes)


def test_text_that_is_not_unicode_cannot_be_sent() -> None:
    """A lone surrogate is found before it reaches a socket."""
    with pytest.raises(LocalProtocolError):
        wire.encode([Leave("\udc80")])


def test_the_store_s_packer_restores_entries_and_values() -> None:
    """The disk is read with it, and damage is noticed."""
    packer = wire.WirePacker()
    spec = TaskSpec(id=TaskId("task-001-deadbeef"), command="true")
    entry = Entry(StreamId(5), 1, 9, Submitted(spec))
    body = packer.pack(entry.fact)

    assert packer.unpack_entry(StreamId(5), 1, 9, body) == entry
    assert packer.unpack(packer.pack(spec), TaskSpec) == spec
    with pytest.raises(RemoteProtocolError):
        packer.unpack_entry(StreamId(5), 1, 9, body[:-1])


def test_a_dispatch_of_a_hundred_tasks_takes_less_than_100_bytes_each() -> None:
    """Rows are compact: field names are not sent."""
    epoch = Epoch(1, NodeId("abcdefgh234567xy"))
    items = tuple(
        (
            AttemptId(1, StreamId(2**62), 1, 1),
            TaskSpec(id=TaskId(f"task-{i:03}-deadbeef"), command="echo hello"),
        )
        for i in range(100)
    )

    assert len(wire.encode([Assign(epoch, items)])) < 100 * 100


def test_a_million_failures_in_one_message_are_refused_by_their_length() -> None:
    """Nothing is decoded of them."""
    data = length_prefixed(_failures(1_000_000))

    with pytest.raises(FrameTooLarge, match="was announced; 8388608 may come"):
        connected(Limits()).receive_data(data)


def test_as_many_failures_as_a_frame_holds_are_refused_in_one_message() -> None:
    """They would take 30 times as much memory as the frame."""
    limits = Limits()
    most = limits.frame_bytes // len(_failures(1))
    for count, error in ((ITEMS_MAX, "was not split"), (most, "length <= 65536")):
        data = length_prefixed(_failures(count))
        with pytest.raises(RemoteProtocolError, match=error):
            connected(limits).receive_data(data)
        assert peak_of(connected(limits), data) < 3 * len(data)


def test_failures_of_a_worker_arrive_in_parts_each_once() -> None:
    """More than one message may hold are split before they are sent."""
    count = 100_000
    decoder = connected(Limits())
    parts = wire.pack_parts(Results((FAILURE,) * count, 5), Limits().frame_bytes)

    arrived = 0
    for part in parts:
        (message,) = decoder.receive_data(wire.build_frame([part]))
        assert isinstance(message, Results)
        arrived += len(message.reports)

    assert arrived == count


def _failures(count: int) -> bytes:
    """Return the body of a frame with one `Results` that reports so many failures."""
    packed = msgpack.encode(FAILURE)
    array = b"\xdd" + count.to_bytes(4, "big")
    return b"\x91\x93\x10" + array + packed * count + b"\x05"


def report(number: int, size: int) -> Report:
    return Report(
        task=TaskId(f"task-{number:03}-deadbeef"),
        attempt=AttemptId(1, StreamId(1), 1, 1),
        outcome=Outcome(
            state=AttemptState.OK, reason=EndReason.EXIT, stdout=b"x" * size
        ),
    )


def test_a_message_to_several_peers_is_packed_once() -> None:
    """The standbys get the same appends, and all followers the same heartbeat."""
    packing = wire.MessagePacker(LIMITS.frame_bytes)
    first, second = Leave("a"), Leave("b")

    parts = packing.pack_parts(first)

    assert packing.pack_parts(first) is parts
    assert packing.pack_parts(second) == wire.pack_parts(second, LIMITS.frame_bytes)
    assert packing.pack_parts(first) == parts


def test_stored_facts_are_sent_in_their_stored_bytes() -> None:
    """A peer gets the same bytes as from a fresh encoding."""
    stream = StreamId(2**62 - 1)
    entries = (
        Entry(stream, 1, 2**52, TaskCancelled(TaskId("t"), "me")),
        Entry(stream, 2, 7, Submitted(TaskSpec(id=TaskId("u"), command="x"))),
    )
    writers = ((stream, Epoch(1, NodeId("a"))),)
    vector = ((stream, 2),)
    packer = wire.WirePacker()
    stored = [(e.stream, e.seq, e.hlc, packer.pack(e.fact)) for e in entries]

    for count, more in ((2, False), (0, True)):
        packed = packer.pack_entries(
            stored[:count], writers, vector, more=more, retired=5
        )
        made = Entries(entries[:count], writers, more, vector, 5)
        assert wire.pack_parts(packed, LIMITS.frame_bytes) == wire.pack_parts(
            made, LIMITS.frame_bytes
        )


def test_prepacked_messages_have_the_same_bound() -> None:
    """A frame that the peer would refuse is not sent."""
    with pytest.raises(LocalProtocolError):
        wire.pack_parts(PackedMessage(bytes(2000)), 1000)
