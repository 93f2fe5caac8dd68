"""How many values a frame has, by their first bytes alone: before it costs memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from octaskly.errors import RemoteProtocolError

VALUES_MAX: Final = 1 << 19
"""Most values of one frame; the fullest that a node sends have half as many."""

VALUE_BYTES: Final = (
    40  #: of memory at most for each byte of a frame, wide arrays apart
)
CHEAP_BYTES: Final = 8 << 20
"""Frames that cannot take so much memory are not counted, which costs time."""

PIECE_BYTES: Final = 64 << 10
"""Of a frame that are counted without a pause: some milliseconds."""

_FIXARRAY_MASK: Final = 0x0F
_STRINGS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_WIDTHS: Final = {**_STRINGS, 0xDC: 2, 0xDD: 4}
"""First bytes of strings and arrays, and how many bytes of length follow."""

_NUMBERS: Final = {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
_NUMBERS_SIGNED: Final = {0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
_SIZES: Final = bytes(
    0
    if kind in _WIDTHS or 0x90 <= kind <= 0x9F  # noqa: PLR2004 (arrays)
    else 1 + (kind & 0x1F)
    if 0xA0 <= kind <= 0xBF  # noqa: PLR2004 (short strings)
    else (_NUMBERS | _NUMBERS_SIGNED).get(kind, 1)
    for kind in range(256)
)
"""Size of a value with its first byte; 0: its length follows, or it is an array."""


def count_values(body: bytes) -> Iterator[None]:
    """Refuse a frame of too many values, with pauses where that takes long.

    What an array announces counts as if it were there, so that neither a flood of
    tiny arrays nor the depth of a few bytes ever becomes memory.

    Raises:
        RemoteProtocolError: it has too many.
    """
    wide = body.count(0xDC) + body.count(0xDD)
    if len(body) * (VALUE_BYTES + 8 * wide) < CHEAP_BYTES:
        return  # Even if each of these bytes began an array as long as the frame.
    limit = min(len(body), VALUES_MAX)
    count, at = 1, 0
    while at < len(body):
        count, at = _count_piece(body, count, at, limit)
        yield


def _count_piece(body: bytes, count: int, at: int, limit: int) -> tuple[int, int]:
    """Count on from a place; return the count so far, and where that was."""
    sizes, widths = _SIZES, _WIDTHS
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
        count += number if width else kind & _FIXARRAY_MASK
        if count > limit:
            raise RemoteProtocolError(
                f"a frame of {len(body)} bytes has {count} values"
            )
    return count, at
