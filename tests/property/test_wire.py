"""Frames survive any split of their bytes; no bytes break the decoder."""

from __future__ import annotations

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.model.ids import AttemptId, NodeId, StreamId, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import Leave, Message, Probe, Pull, ResultsOk
from octaskly.errors import RemoteProtocolError
from octaskly.mesh import wire

LIMITS = Limits(hello_bytes=1 << 16, frame_bytes=1 << 16)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
STREAMS = st.integers(1, 2**63 - 1).map(StreamId)
NUMBERS = st.integers(1, 99)
ATTEMPTS = st.builds(AttemptId, st.integers(0, 2**40), STREAMS, NUMBERS, NUMBERS)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Leave, TEXT),
    st.builds(Pull, st.lists(st.tuples(STREAMS, st.integers(0, 2**62 - 1))).map(tuple)),
    st.builds(Probe, st.just(NodeId("abcdefgh234567xy")), st.floats(0, 1e9)),
    st.builds(
        ResultsOk, st.lists(st.tuples(st.just(TaskId("t-1")), ATTEMPTS)).map(tuple)
    ),
)


@given(st.lists(st.lists(MESSAGES, max_size=5), max_size=5), st.data())
def test_any_split_of_the_bytes_gives_the_same_messages(
    frames: list[list[Message]], data: st.DataObject
) -> None:
    """Frames and messages come out in order, however TCP splits them."""
    stream = b"".join(map(wire.encode, frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    decoder = wire.Decoder(LIMITS)

    arrived: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        arrived += decoder.receive_data(stream[start:end])

    assert arrived == [message for frame in frames for message in frame]


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_random_bytes_raise_nothing_but_remote_protocol_error(
    chunks: list[bytes],
) -> None:
    """The link can be closed with a reason after any bytes of a peer."""
    decoder = wire.Decoder(LIMITS)
    try:
        for chunk in chunks:
            decoder.receive_data(chunk)
    except RemoteProtocolError:
        return


@given(st.binary(max_size=200))
def test_random_body_raises_nothing_but_remote_protocol_error(body: bytes) -> None:
    """The same with a correct length in front, so that msgpack sees the whole body."""
    try:
        wire.Decoder(LIMITS).receive_data(len(body).to_bytes(4, "big") + body)
    except RemoteProtocolError:
        return


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.data())
def test_flipped_byte_raises_nothing_but_remote_protocol_error(
    messages: list[Message], data: st.DataObject
) -> None:
    """Damage to valid frames reaches deeper than random bytes do."""
    stream = bytearray(wire.encode(messages))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] = data.draw(st.integers(0, 255))
    try:
        wire.Decoder(LIMITS).receive_data(stream)
    except RemoteProtocolError:
        return


@given(st.binary(max_size=100))
def test_damaged_stored_bytes_raise_nothing_but_remote_protocol_error(
    body: bytes,
) -> None:
    """A damaged database is reported, and does not crash the agent."""
    packer = wire.WirePacker()
    for data in (body, msgpack.packb([100, [body]])):
        try:
            packer.unpack_entry(StreamId(1), 1, 1, data)
        except RemoteProtocolError:
            continue
