"""Bytes to messages and back: pure, without sockets.

A frame is a length, 4 bytes big-endian, and a msgpack array of messages as `codec`
writes them. Many messages travel in one frame. The length is checked before anything
is decoded; maps and extension types never appear and are refused at the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import msgpack

from octaskly.core import codec
from octaskly.core.facts import Entry
from octaskly.core.messages import Dispatch, HelloOk, Kill, Message, Results, ResultsOk
from octaskly.core.model import Limits, StreamId
from octaskly.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError

HEADER_BYTES: Final = 4
ARRAY_ITEMS_MAX: Final = 1 << 18
"""Most items of one msgpack array, far above what a frame can sensibly hold."""

_ARRAY_HEADER_BYTES: Final = 5
_FRAME_OVERHEAD_BYTES: Final = HEADER_BYTES + _ARRAY_HEADER_BYTES


class Decoder:
    """The receiving side of one connection; of no use after it raised.

    Frames may have `hello_bytes` until the peer said HELLO_OK, `frame_bytes` after.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._limit_bytes = limits.hello_bytes
        self._buffer = bytearray()

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Return the messages that `data` completes, in order.

        Raises:
            FrameTooLarge: a length is above the limit; its frame was not read.
            RemoteProtocolError: a frame is not what a peer of ours would send.
        """
        buffer = self._buffer
        buffer += data
        messages: list[Message] = []
        start = 0
        with memoryview(buffer) as view:
            while (end := self._frame_end(start)) <= len(buffer):
                messages += self._frame(view[start + HEADER_BYTES : end])
                start = end
        del buffer[:start]
        return messages

    def _frame_end(self, start: int) -> int:
        """Return where the frame ends; beyond the buffer if its length is cut off."""
        header = self._buffer[start : start + HEADER_BYTES]
        if len(header) < HEADER_BYTES:
            return start + HEADER_BYTES
        size = int.from_bytes(header, "big")
        if size > self._limit_bytes:
            raise FrameTooLarge(
                f"a frame of {size} bytes was announced; {self._limit_bytes} may come"
            )
        return start + HEADER_BYTES + size

    def _frame(self, body: memoryview) -> list[Message]:
        with body:
            plain = _unpack(body)
        if type(plain) is not tuple:
            raise RemoteProtocolError("a frame is not an array of messages")
        messages = list(map(codec.decode_message, plain))
        if self._limit_bytes != self._limits.frame_bytes and any(
            type(message) is HelloOk for message in messages
        ):
            self._limit_bytes = self._limits.frame_bytes
        return messages


def encode(messages: Iterable[Message]) -> bytes:
    """Return one frame with these messages, of whatever size.

    Raises:
        LocalProtocolError: a message cannot be sent.
    """
    return frame([_pack(codec.encode(message)) for message in messages])


def frame(parts: Sequence[bytes]) -> bytes:
    """Return one frame with messages that `parts_of` packed."""
    size = _ARRAY_HEADER_BYTES + sum(map(len, parts))
    header = size.to_bytes(HEADER_BYTES, "big") + b"\xdd"
    return b"".join((header, len(parts).to_bytes(4, "big"), *parts))


def parts_of(message: Message, frame_bytes: int) -> list[bytes]:
    """Return a message packed, split into several where a frame cannot hold it.

    Raises:
        LocalProtocolError: it is too large and cannot be split.
    """
    packed = _pack(codec.encode(message))
    if len(packed) + _FRAME_OVERHEAD_BYTES <= frame_bytes:
        return [packed]
    return [part for half in _halves(message) for part in parts_of(half, frame_bytes)]


def _halves(message: Message) -> tuple[Message, Message]:
    """Split a batch in two that mean the same together."""
    match message:
        case Results(reports) if len(reports) > 1:
            middle = len(reports) // 2
            return (
                replace(message, reports=reports[:middle]),
                replace(message, reports=reports[middle:]),
            )
        case Dispatch() | Kill() | ResultsOk() if len(message.items) > 1:
            middle = len(message.items) // 2
            return _with_items(message, middle)
        case _:
            name = type(message).__name__
            raise LocalProtocolError(f"a {name} is larger than a frame may be")


def _with_items(
    message: Dispatch | Kill | ResultsOk, middle: int
) -> tuple[Message, Message]:
    match message:
        case Dispatch(epoch, items):
            return Dispatch(epoch, items[:middle]), Dispatch(epoch, items[middle:])
        case Kill(epoch, pairs):
            return Kill(epoch, pairs[:middle]), Kill(epoch, pairs[middle:])
        case ResultsOk(pairs):
            return ResultsOk(pairs[:middle]), ResultsOk(pairs[middle:])


class WirePacker:
    """The store's way to turn facts and values into bytes; `ports.Packer`."""

    def pack_entry_body(self, entry: Entry) -> bytes:
        """Return the fact of an entry as bytes."""
        return _pack(codec.encode(entry.fact))

    def unpack_entry(self, stream: StreamId, seq: int, hlc: int, body: bytes) -> Entry:
        """Return the entry.

        Raises:
            RemoteProtocolError: the bytes are damaged.
        """
        return Entry(stream, seq, hlc, codec.decode_fact(_unpack(body)))

    def pack(self, value: object) -> bytes:
        """Return a value of a class in `codec.NUMBERS` as bytes.

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


def _pack(plain: object) -> bytes:
    try:
        return msgpack.packb(plain)  # type: ignore[no-any-return]
    except (ValueError, TypeError, OverflowError) as error:
        raise LocalProtocolError(f"a value cannot be packed: {error}") from error


def _refuse(*_: object) -> None:
    raise RemoteProtocolError("a map or an extension type where none may be")


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
            max_array_len=ARRAY_ITEMS_MAX,
        )
    except RemoteProtocolError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        reason = type(error).__name__
        raise RemoteProtocolError(f"bytes are not valid msgpack ({reason})") from error
