"""Items of arrays: the column `items`, of which one block can be read alone.

An array may have a million items, and each request for a member needs one of them. Up
to `BLOCK_ITEMS` are one JSON array. More are several, after a line with the size of
each in bytes; JSON has no line breaks in its texts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from msgspec import json

BLOCK_ITEMS: Final = 512
HEAD_BYTES: Final = 4096  #: enough for the sizes of most arrays


def encode_items(items: Sequence[str]) -> str | None:
    """Return the column `items`; None if there are none."""
    if not items:
        return None
    blocks = [
        json.encode(items[start : start + BLOCK_ITEMS])
        for start in range(0, len(items), BLOCK_ITEMS)
    ]
    if len(blocks) == 1:
        return blocks[0].decode()
    return b"\n".join((json.encode([*map(len, blocks)]), b"".join(blocks))).decode()


def decode_items(text: str | None) -> tuple[str, ...]:
    """Return all items in the column `items`."""
    if not text:
        return ()
    head, _, body = text.encode().rpartition(b"\n")
    if not head:
        return json.decode(body, type=tuple[str, ...])
    ends = [*accumulate(json.decode(head, type=list[int]))]
    items: list[str] = []
    for start, end in zip([0, *ends], ends, strict=False):
        items += json.decode(body[start:end], type=list[str])
    return tuple(items)


class ItemReader:
    """Reads single items of one array; it keeps the latest block."""

    def __init__(self, db: sqlite3.Connection, key: int) -> None:
        self._db = db
        self._key = key
        self._block: Sequence[str] = ()
        self._start = 0  #: position of the first item in `_block`

    def read_item(self, position: int) -> str:
        """Return the item at a position, from 0."""
        if not 0 <= position - self._start < len(self._block):
            self._read_block(position)
        return self._block[position - self._start]

    def _read_block(self, position: int) -> None:
        with self._db.blobopen("tasks", "items", self._key, readonly=True) as column:
            head = column.read(HEAD_BYTES)
            while b"\n" not in head and (more := column.read(HEAD_BYTES)):
                head += more
            sizes, mark, _ = head.partition(b"\n")
            if not mark:
                self._start, self._block = 0, json.decode(head, type=list[str])
                return
            number = position // BLOCK_ITEMS
            ends = [0, *accumulate(json.decode(sizes, type=list[int]))]
            column.seek(len(sizes) + 1 + ends[number])
            text = column.read(ends[number + 1] - ends[number])
        self._start = number * BLOCK_ITEMS
        self._block = json.decode(text, type=list[str])
