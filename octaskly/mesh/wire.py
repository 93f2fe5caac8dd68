"""Wire format: converts bytes to messages and back, without sockets.

A frame is a length (4 bytes, big-endian) followed by a msgpack array of messages. A
message is an array: its type number, then its fields in declaration order. The length
is checked before anything is decoded. The message classes in the core declare the
types and bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Final, TypeVar, get_args

from msgspec import DecodeError, Meta, Raw, Struct, msgpack
from msgspec.structs import replace

from octaskly.core.log.facts import Entry, Fact, PackedEntry
from octaskly.core.model.ids import Epoch, StreamId, VectorItems
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import (
    ITEMS_MAX,
    PROTOCOL_VERSION,
    Assign,
    AssignRanges,
    Entries,
    Hello,
    HelloOk,
    Kill,
    Message,
    PackedMessage,
    RangeResults,
    RangeResultsOk,
    Reattach,
    Replicate,
    Results,
    ResultsOk,
    Snapshot,
)
from octaskly.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError

HEADER_BYTES: Final = 4
MESSAGES_MAX: Final = 1 << 16
"""Maximum number of messages in one frame; a node sends far fewer."""

SPLIT_FRAME_BYTES: Final = 1 << 20
"""Batches above this size are split into several messages."""

MESSAGE_NUMBERS_END: Final = 100
"""Type numbers below this one are reserved for messages, in future versions too."""

_BATCHES: Final[dict[type, str]] = {
    Assign: "items",
    AssignRanges: "items",
    Kill: "items",
    Results: "reports",
    ResultsOk: "items",
    RangeResults: "items",
    RangeResultsOk: "items",
    Reattach: "running",
}
"""Batch messages: the field that may be split over several messages."""

_LARGE: Final[dict[type, str]] = {
    **_BATCHES,
    Entries: "entries",
    Replicate: "entries",
    Snapshot: "rows",
}
"""The field that may hold many items, in each message that has one."""

_ARRAY_HEADER_BYTES: Final = 5
_FRAME_OVERHEAD_BYTES: Final = HEADER_BYTES + _ARRAY_HEADER_BYTES

T = TypeVar("T")


class Decoder:
    """Decoder for one connection; unusable after it has raised.

    A frame may have `hello_bytes` until the peer sends HELLO_OK, then `frame_bytes`.
    Messages of an unknown type are skipped if the peer speaks a newer version.
    """

    def __init__(self, limits: Limits) -> None:
        self._hello_bytes, self._frame_bytes = limits.hello_bytes, limits.frame_bytes
        self._limit_bytes = limits.hello_bytes
        self._allowed: frozenset[int] | None = None
        self._is_newer = False
        self._buffer = bytearray()

    def restrict(
        self, allowed: frozenset[int], *, hello_bytes: int, frame_bytes: int
    ) -> None:
        """Accept only messages with these numbers, and smaller frames.

        Call it before the first byte arrives.
        """
        self._allowed = allowed
        self._hello_bytes = min(hello_bytes, self._hello_bytes)
        self._frame_bytes = min(frame_bytes, self._frame_bytes)
        self._limit_bytes = self._hello_bytes

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Return the messages that `data` completes, in order.

        Raises:
            FrameTooLarge: A length is above the limit; its frame was not read.
            RemoteProtocolError: A frame is malformed.
        """
        self.add_data(data)
        return list(self.decode_messages())

    @property
    def buffered_bytes(self) -> int:
        """Number of bytes that `decode_messages` has not taken yet."""
        return len(self._buffer)

    def add_data(self, data: bytes | bytearray | memoryview) -> None:
        """Buffer received bytes for `decode_messages`."""
        self._buffer += data

    def decode_messages(self) -> Iterator[Message]:
        """Decode the complete frames, one message at a time.

        Exhaust one iterator before starting the next.

        Raises:
            FrameTooLarge: A length is above the limit; its frame was not read.
            RemoteProtocolError: A frame is malformed.
        """
        while (body := self._next_frame()) is not None:
            packed_messages = _decode(_FRAME, body)
            if self._allowed is not None and not packed_messages:
                # Nobody sends it, and what counts messages would not notice a flood.
                raise RemoteProtocolError("a frame without a message")
            for packed in packed_messages:
                if len(body) > SPLIT_FRAME_BYTES:
                    _check_batch(packed)
                message = self._message(packed)
                if message is None:
                    continue
                if self._limit_bytes != self._frame_bytes:
                    self._apply_handshake(message)
                yield message

    def _next_frame(self) -> bytes | None:
        """Remove and return the body of the next frame, or None if it is incomplete."""
        buffer = self._buffer
        if len(buffer) < HEADER_BYTES:
            return None
        size = int.from_bytes(buffer[:HEADER_BYTES], "big")
        if size > self._limit_bytes:
            raise FrameTooLarge(
                f"a frame of {size} bytes was announced; {self._limit_bytes} may come"
            )
        end = HEADER_BYTES + size
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            body = bytes(view[HEADER_BYTES:end])
        del buffer[:end]  # This copies nothing: a bytearray keeps a start offset.
        return body

    def _message(self, packed: Raw) -> Message | None:
        """Decode one message; return None for a type that only newer versions know."""
        if self._allowed is not None:
            number = _decode(_NUMBER, packed).number
            if number not in self._allowed:
                raise RemoteProtocolError(f"message {number} may not pass here")
        try:
            return _decode(_MESSAGE, packed)
        except RemoteProtocolError:
            number = _decode(_NUMBER, packed).number
            is_message = 0 < number < MESSAGE_NUMBERS_END
            if self._is_newer and is_message and number not in _KINDS:
                return None
            raise

    def _apply_handshake(self, message: Message) -> None:
        """Set the frame limit and the peer's version from its handshake messages."""
        match message:
            case Hello(version=version):
                self._is_newer = version > PROTOCOL_VERSION
            case HelloOk():
                self._limit_bytes = self._frame_bytes
            case _:
                pass


class _Number(Struct, array_like=True):
    """The first element of every message."""

    number: int


def _tag(kind: type[Struct]) -> int:
    number = kind.__struct_config__.tag
    assert isinstance(number, int)
    return number


_KINDS: Final = {_tag(kind): kind for kind in get_args(Message)}
_FRAME: Final = msgpack.Decoder(Annotated[list[Raw], Meta(max_length=MESSAGES_MAX)])
_ITEMS: Final = msgpack.Decoder(Annotated[list[Raw], Meta(max_length=ITEMS_MAX)])
_NUMBER: Final = msgpack.Decoder(_Number)
_MESSAGE: Final[msgpack.Decoder[Message]] = msgpack.Decoder(Message)
_FACT: Final[msgpack.Decoder[Fact]] = msgpack.Decoder(Fact)


def _check_batch(packed: Raw) -> None:
    """Reject a batch above `SPLIT_FRAME_BYTES` that the sender should have split.

    Small values take 30 times as much memory as in a frame. A node splits batches above
    this size, so only a single large item can make a message larger. The largest item
    therefore does not count.

    Raises:
        RemoteProtocolError: The items without the largest exceed the bound.
    """
    kind = _KINDS.get(_decode(_NUMBER, packed).number)
    if kind not in _LARGE:
        return
    at = 1 + kind.__struct_fields__.index(_LARGE[kind])
    sizes = [
        memoryview(item).nbytes
        for field in _decode(_ITEMS, packed)[at : at + 1]
        for item in _decode(_ITEMS, field)
    ]
    if sum(sizes) - max(sizes, default=0) > SPLIT_FRAME_BYTES:
        raise RemoteProtocolError(f"a batch of {sum(sizes)} bytes was not split")


def _decode(decoder: msgpack.Decoder[T], data: bytes | Raw) -> T:
    try:
        return decoder.decode(data)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"{error}") from error


def encode(messages: Iterable[Message]) -> bytes:
    """Return one frame with these messages, without a size limit.

    Raises:
        LocalProtocolError: A message cannot be packed.
    """
    return build_frame([_pack(message) for message in messages])


def build_frame(parts: Sequence[bytes]) -> bytes:
    """Return one frame of messages that `pack_parts` has packed."""
    size = _ARRAY_HEADER_BYTES + sum(map(len, parts))
    header = size.to_bytes(HEADER_BYTES, "big") + b"\xdd"
    return b"".join((header, len(parts).to_bytes(4, "big"), *parts))


def pack_parts(message: Message | PackedMessage, frame_bytes: int) -> list[bytes]:
    """Pack a message; split it into several if it is a large batch.

    Raises:
        LocalProtocolError: It is too large for a frame and cannot be split.
    """
    packed = message.data if isinstance(message, PackedMessage) else _pack(message)
    size = len(packed) + _FRAME_OVERHEAD_BYTES
    if size <= min(frame_bytes, SPLIT_FRAME_BYTES):
        return [packed]
    halves = _split_batch(message)
    if halves:
        return [part for half in halves for part in pack_parts(half, frame_bytes)]
    if size > frame_bytes:
        name = type(message).__name__
        raise LocalProtocolError(f"a {name} is larger than a frame may be")
    return [packed]


class MessagePacker:
    """Packs messages, and keeps the last one packed.

    A message that goes to several peers in turn is thus packed once.
    """

    def __init__(self, frame_bytes: int) -> None:
        self._frame_bytes = frame_bytes
        self._message: Message | PackedMessage | None = None
        self._parts: list[bytes] = []

    def pack_parts(self, message: Message | PackedMessage) -> list[bytes]:
        """Call the function `pack_parts`, unless `message` is the last one packed.

        Raises:
            LocalProtocolError: The message cannot be sent.
        """
        if message is not self._message:
            self._parts = pack_parts(message, self._frame_bytes)
            self._message = message
        return self._parts


def _split_batch(message: Message | PackedMessage) -> tuple[Message, ...]:
    """Split a batch into two equivalent halves; return () if it cannot be split."""
    batch: Any = message
    field = _BATCHES.get(type(message), "")
    items = getattr(batch, field, ())
    middle = len(items) // 2
    if not middle:
        return ()
    first = replace(batch, **{field: items[:middle]})
    if isinstance(first, Reattach):
        first = replace(first, has_more=True)
    return first, replace(batch, **{field: items[middle:]})


class WirePacker:
    """Serialises facts and values for the store; implements `ports.Packer`."""

    def unpack_entry(self, stream: StreamId, seq: int, hlc: int, body: bytes) -> Entry:
        """Return the entry with the fact that `body` holds.

        Raises:
            RemoteProtocolError: The bytes are damaged.
        """
        return Entry(stream, seq, hlc, _decode(_FACT, body))

    def pack_entries(
        self,
        stored: Sequence[PackedEntry],
        epochs: Sequence[tuple[StreamId, Epoch]],
        vector: VectorItems,
        *,
        more: bool,
        retired: int,
    ) -> PackedMessage:
        """Return an `Entries` message built from facts that are already packed.

        A fact has the same bytes in a frame as in the log, so nothing is decoded.
        """
        entries = [(stream, seq, hlc, Raw(body)) for stream, seq, hlc, body in stored]
        fields = (_tag(Entries), entries, epochs, more, vector, retired)
        return PackedMessage(_pack(fields))

    def pack(self, value: Struct) -> bytes:
        """Return a value as bytes.

        Raises:
            LocalProtocolError: It cannot be packed.
        """
        return _pack(value)

    def unpack(self, data: bytes, kind: type[T]) -> T:
        """Return the value of class `kind` that `pack` has packed.

        Raises:
            RemoteProtocolError: The bytes are damaged.
        """
        return _decode(msgpack.Decoder(kind), data)


def _pack(value: object) -> bytes:
    try:
        return msgpack.encode(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise LocalProtocolError(f"a value cannot be packed: {error}") from error
