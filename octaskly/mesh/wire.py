"""Bytes to messages and back: pure, without sockets.

A frame is a length, 4 bytes big-endian, and a msgpack array of messages as `codec`
writes them. Many messages travel in one frame. The length is checked before anything
is decoded, and the values in a frame are counted before objects are made of them; maps
and extension types never appear and are refused at the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, Final, get_args

import msgpack

from octaskly.core.log.facts import Entry, PackedEntry
from octaskly.core.model.ids import Epoch, StreamId, VectorItems
from octaskly.core.model.settings import Limits
from octaskly.core.protocol import codec
from octaskly.core.protocol.codec import NUMBERS
from octaskly.core.protocol.messages import (
    PROTOCOL_VERSION,
    Assign,
    Entries,
    Hello,
    HelloOk,
    Kill,
    Message,
    PackedMessage,
    Reattach,
    Results,
    ResultsOk,
)
from octaskly.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError

VALUES_MAX: Final = 1 << 19
"""Most values of one frame; the fullest that a node sends have half as many."""

VALUE_BYTES: Final = 40
"""Of memory at most for each byte of a frame, wide arrays apart."""

CHEAP_BYTES: Final = 8 << 20
"""Frames that cannot take so much memory are not counted, which costs time."""

PIECE_BYTES: Final = 64 << 10
"""Of a frame that are counted without a pause: some milliseconds."""

# First bytes, as the specification of msgpack calls them.
FIXARRAYS: Final = range(0x90, 0xA0)  #: the length is in the byte
FIXSTRS: Final = range(0xA0, 0xC0)  #: it is, too
BIN8, BIN16, BIN32 = 0xC4, 0xC5, 0xC6
FLOAT32, FLOAT64 = 0xCA, 0xCB
UINT8, UINT16, UINT32, UINT64 = 0xCC, 0xCD, 0xCE, 0xCF
INT8, INT16, INT32, INT64 = 0xD0, 0xD1, 0xD2, 0xD3
STR8, STR16, STR32 = 0xD9, 0xDA, 0xDB
ARRAY16, ARRAY32 = 0xDC, 0xDD

_STRINGS: Final = {BIN8: 1, BIN16: 2, BIN32: 4, STR8: 1, STR16: 2, STR32: 4}
_WIDTHS: Final = {**_STRINGS, ARRAY16: 2, ARRAY32: 4}
"""First bytes of strings and arrays, and how many bytes of length follow."""

_NUMBERS: Final = {
    FLOAT32: 5,
    FLOAT64: 9,
    UINT8: 2,
    UINT16: 3,
    UINT32: 5,
    UINT64: 9,
    INT8: 2,
    INT16: 3,
    INT32: 5,
    INT64: 9,
}


def _size(kind: int) -> int:
    """Return the size of a value with this first byte, as far as that tells."""
    if kind in FIXSTRS:
        return 1 + kind - FIXSTRS.start
    if kind in _WIDTHS or kind in FIXARRAYS:
        return 0
    return _NUMBERS.get(kind, 1)


_SIZES: Final = bytes(map(_size, range(256)))
"""Size of a value with its first byte; 0: its length follows, or it is an array."""


def count_values(body: bytes) -> Iterator[None]:
    """Refuse a frame of too many values, with pauses where that takes long.

    What an array announces counts as if it were there, so that neither a flood of
    tiny arrays nor the depth of a few bytes ever becomes memory.

    Raises:
        RemoteProtocolError: it has too many.
    """
    wide = body.count(ARRAY16) + body.count(ARRAY32)
    if len(body) * (VALUE_BYTES + 8 * wide) < CHEAP_BYTES:
        return  # Even if each of these bytes began an array as long as the frame.
    limit = min(len(body), VALUES_MAX)
    count, at = 1, 0
    while at < len(body):
        count, at = _count_piece(body, count, at, limit)
        yield


def _count_piece(body: bytes, count: int, at: int, limit: int) -> tuple[int, int]:
    """Count on from a place; return the count so far, and where that was."""
    sizes, widths, fixarray = _SIZES, _WIDTHS, FIXARRAYS.start
    end = min(len(body), at + PIECE_BYTES)
    while at < end:
        kind = body[at]
        if size := sizes[kind]:
            at += size
            continue
        width = widths.get(kind, 0)
        number = int.from_bytes(body[at + 1 : at + 1 + width], "big")
        at += 1 + width
        if kind in _STRINGS:
            at += number
            continue
        count += number if width else kind - fixarray
        if count > limit:
            raise RemoteProtocolError(
                f"a frame of {len(body)} bytes has {count} values"
            )
    return count, at


HEADER_BYTES: Final = 4
ARRAY_ITEMS_MAX: Final = 1 << 18
"""Most items of one msgpack array, far above what a frame can sensibly hold."""

LONG_FRAME_BYTES: Final = 64 << 10
"""Frames above this size are decoded with pauses,"""

ITEMS_PER_TURN: Final = 2000
"""and their lists in pieces of so many items: 10 ms of work at most."""

SPLIT_FRAME_BYTES: Final = 1 << 20
"""Batches above this size are sent in several messages."""

MESSAGE_NUMBERS_END: Final = 100
"""Type numbers below this one are those of messages, also of versions to come."""

_MESSAGE_NUMBERS: Final = frozenset(NUMBERS[kind] for kind in get_args(Message))

_BATCHES: Final[dict[type, str]] = {
    Assign: "items",
    Kill: "items",
    Results: "reports",
    ResultsOk: "items",
    Reattach: "running",
}
"""Which field of a message may come in several messages."""

_ARRAY_HEADER_BYTES: Final = 5
_FRAME_OVERHEAD_BYTES: Final = HEADER_BYTES + _ARRAY_HEADER_BYTES

CACHED_BYTES_MAX: Final = 64 << 10
"""A packer keeps room for the largest value that it has packed: for no more."""


class Decoder:
    """The receiving side of one connection; of no use after it raised.

    Frames may have `hello_bytes` until the peer said HELLO_OK, `frame_bytes` after.
    Messages of an unknown type are left out if the peer speaks a newer version.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._limit_bytes = limits.hello_bytes
        self._is_newer = False
        self._buffer = bytearray()

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Return the messages that `data` completes, in order.

        Raises:
            FrameTooLarge: a length is above the limit; its frame was not read.
            RemoteProtocolError: a frame is not what a peer of ours would send.
        """
        self.add_data(data)
        return [message for message in self.decode_messages() if message is not None]

    def add_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take what came, for `decode_messages` to decode."""
        self._buffer += data

    def decode_messages(self) -> Iterator[Message | None]:
        """Decode what is complete, message by message; one of these at a time.

        Of a long one None comes in between: its decoding may be continued later.

        Raises:
            FrameTooLarge: a length is above the limit; its frame was not read.
            RemoteProtocolError: a frame is not what a peer of ours would send.
        """
        while (body := self._next_frame()) is not None:
            for message in _frame(body, self._is_known):
                if self._limit_bytes != self._limits.frame_bytes:
                    self._apply_handshake(message)
                yield message

    def _next_frame(self) -> bytes | None:
        """Take the body of the next frame, if all of it is there."""
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
        del buffer[:end]  # That moves nothing: a bytearray keeps where it begins.
        return body

    def _is_known(self, plain: object) -> bool:
        return not (self._is_newer and _is_unknown(plain))

    def _apply_handshake(self, message: Message | None) -> None:
        """Learn from the first messages what else may come."""
        match message:
            case Hello(version=version):
                self._is_newer = version > PROTOCOL_VERSION
            case HelloOk():
                self._limit_bytes = self._limits.frame_bytes
            case _:
                pass


def _frame(body: bytes, is_known: Callable[[object], bool]) -> Iterator[Message | None]:
    """Decode the messages of one frame, with None where there may be a pause."""
    for _ in count_values(body):
        yield None
    plain = _unpack(body)
    if type(plain) is not tuple:
        raise RemoteProtocolError("a frame is not an array of messages")
    if len(body) > LONG_FRAME_BYTES:
        yield None
    for message in plain:
        if is_known(message):
            if len(body) > LONG_FRAME_BYTES:
                yield from _decode_in_pieces(message)
            else:
                yield codec.decode_message(message)


def _decode_in_pieces(plain: Any) -> Iterator[Message | None]:
    """Decode one message, long lists in pieces with None behind each."""
    match plain:
        case (int(), tuple(row)):
            number: int = plain[0]
        case _:
            number, row = 0, ()
    is_long = [type(item) is tuple and len(item) > ITEMS_PER_TURN for item in row]
    if not any(is_long):
        yield codec.decode_message(plain)
        return
    brief = [() if long else item for item, long in zip(row, is_long, strict=True)]
    message = codec.decode_message((number, brief))
    lists: dict[str, Any] = {}
    for at, field in enumerate(fields(message)[: len(row)]):
        if not is_long[at]:
            continue
        items: list[Any] = []
        for start in range(0, len(row[at]), ITEMS_PER_TURN):
            piece = brief.copy()
            piece[at] = row[at][start : start + ITEMS_PER_TURN]
            items += getattr(codec.decode_message((number, piece)), field.name)
            yield None
        lists[field.name] = tuple(items)
    yield replace(message, **lists)


def encode(messages: Iterable[Message]) -> bytes:
    """Return one frame with these messages, of whatever size.

    Raises:
        LocalProtocolError: a message cannot be sent.
    """
    return build_frame([_pack(codec.encode(message)) for message in messages])


def build_frame(parts: Sequence[bytes]) -> bytes:
    """Return one frame with messages that `pack_parts` packed."""
    size = _ARRAY_HEADER_BYTES + sum(map(len, parts))
    header = size.to_bytes(HEADER_BYTES, "big") + b"\xdd"
    return b"".join((header, len(parts).to_bytes(4, "big"), *parts))


def pack_parts(message: Message | PackedMessage, frame_bytes: int) -> list[bytes]:
    """Return a message packed, split into several where it is a large batch.

    Raises:
        LocalProtocolError: it is too large for a frame and cannot be split.
    """
    if isinstance(message, PackedMessage):
        packed = message.data
    else:
        packed = _pack(codec.encode(message))
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
    """Packs messages for links: what several peers are sent in turn is packed once."""

    def __init__(self, frame_bytes: int) -> None:
        self._frame_bytes = frame_bytes
        self._message: Message | PackedMessage | None = None
        self._parts: list[bytes] = []

    def pack_parts(self, message: Message | PackedMessage) -> list[bytes]:
        """Return what the function of this name does.

        Raises:
            LocalProtocolError: the message cannot be sent.
        """
        if message is not self._message:
            self._parts = pack_parts(message, self._frame_bytes)
            self._message = message
        return self._parts


def _split_batch(message: Message | PackedMessage) -> tuple[Message, ...]:
    """Split a batch in two that mean the same together; nothing where it is none."""
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
    """The store's way to turn facts and values into bytes; `ports.Packer`."""

    def __init__(self) -> None:
        # To make one takes longer than to pack a fact with it.
        self._packer = msgpack.Packer()

    def pack_entry_body(self, entry: Entry) -> bytes:
        """Return the fact of an entry as bytes, as `pack` would; in one thread only."""
        body = _pack(codec.encode(entry.fact), self._packer.pack)
        if len(body) > CACHED_BYTES_MAX:
            self._packer = msgpack.Packer()
        return body

    def unpack_entry(self, stream: StreamId, seq: int, hlc: int, body: bytes) -> Entry:
        """Return the entry.

        Raises:
            RemoteProtocolError: the bytes are damaged.
        """
        return Entry(stream, seq, hlc, codec.decode_fact(_unpack(body)))

    def pack_entries(
        self,
        stored: Sequence[PackedEntry],
        epochs: Sequence[tuple[StreamId, Epoch]],
        vector: VectorItems,
        *,
        more: bool,
    ) -> PackedMessage:
        """Return `Entries` of entries whose facts `pack_entry_body` has packed.

        A fact lies in the frame as it lies in the log, so nothing is decoded.
        """
        number, row = codec.encode(Entries((), tuple(epochs), more, vector))
        packer = msgpack.Packer()
        parts = [
            packer.pack_array_header(2),
            packer.pack(number),
            packer.pack_array_header(len(row)),
            packer.pack_array_header(len(stored)),
        ]
        for stream, seq, hlc, body in stored:
            parts.append(packer.pack((stream, seq, hlc, None))[:-1])
            parts.append(body)
        parts += map(packer.pack, row[1:])
        return PackedMessage(b"".join(parts))

    def pack(self, value: object) -> bytes:
        """Return a value of a class in `NUMBERS` as bytes.

        Raises:
            LocalProtocolError: its class has no number.
        """
        return _pack(codec.encode(value))

    def unpack(self, data: bytes) -> Any:
        """Reverse `pack`.

        Raises:
            RemoteProtocolError: the bytes are damaged.
        """
        return codec.decode(_unpack(data))


def _pack(plain: object, pack: Callable[[object], bytes] = msgpack.packb) -> bytes:
    try:
        return pack(plain)
    except (ValueError, TypeError, OverflowError) as error:
        raise LocalProtocolError(f"a value cannot be packed: {error}") from error


def _refuse(*_: object) -> None:
    raise RemoteProtocolError("a map or an extension type where none may be")


def _is_unknown(plain: object) -> bool:
    match plain:
        case (int(number), tuple()):
            is_message = 0 < number < MESSAGE_NUMBERS_END
            return is_message and number not in _MESSAGE_NUMBERS
        case _:
            return False


def _unpack(data: bytes | memoryview) -> Any:
    """Decode one msgpack value that fills `data`.

    The hooks end the work at the first map or extension, so that a megabyte of empty
    maps never becomes a megabyte of dicts.
    """
    try:
        return msgpack.unpackb(
            data,
            use_list=False,
            strict_map_key=True,
            object_hook=_refuse,
            ext_hook=_refuse,
            max_map_len=0,
            max_ext_len=0,
            max_array_len=min(ARRAY_ITEMS_MAX, len(data)),
        )
    except RemoteProtocolError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        reason = type(error).__name__
        raise RemoteProtocolError(f"bytes are not valid msgpack ({reason})") from error
