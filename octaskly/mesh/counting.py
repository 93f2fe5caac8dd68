"""How many values a frame has, by their first bytes alone: before it costs memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from octaskly.errors import RemoteProtocolError

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
