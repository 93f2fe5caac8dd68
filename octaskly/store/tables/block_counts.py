"""How many rows each filter of lists finds, counted in blocks of keys.

So however deep a page lies, it takes some hundred rows of `blocks` and the rows of one
block to find it, not all that come before. Kept with each commit, so it is exact.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from octaskly.store.tables import bulk

BLOCK_BITS: Final = 10  #: of a key, within its block
ANY_NODE: Final = ""  #: rows of all nodes, and those of none
ANY_STATE: Final = -1

BlockCell = tuple[str, int, int]
"""Node (empty: none), number of the state, and block."""


@dataclass(frozen=True, slots=True)
class PageStart:
    """Where a page begins."""

    total: int  #: rows that match in all
    start: int  #: key from which on to read,
    skip: int  #: and how many rows to leave out


def block_of(key: int) -> int:
    """Return the block of a key."""
    return key >> BLOCK_BITS


def next_block_key(key: int) -> int:
    """Return the first key of a block that is not before `key`."""
    return -(-key >> BLOCK_BITS) << BLOCK_BITS


def add_counts(db: sqlite3.Connection, changes: Mapping[BlockCell, int]) -> None:
    """Count rows that came or went, for each filter that finds them."""
    sums: defaultdict[BlockCell, int] = defaultdict(int)
    for (node, state, block), n in changes.items():
        for nodes in dict.fromkeys((node, ANY_NODE)):
            # What has no node is found by no filter for one.
            sums[nodes, state, block] += n
            sums[nodes, ANY_STATE, block] += n
    moved = [(*cell, n) for cell, n in sums.items() if n]
    bulk.BLOCK_ADD.execute(db, moved)
    if fewer := [row[:3] for row in moved if row[3] < 0]:
        db.executemany(
            "DELETE FROM block_counts WHERE node = ? AND state = ? AND block = ? AND n = 0",
            fewer,
        )


def last_key_of_block(start: int) -> int:
    """Return the last key of the block that begins with `start`."""
    return start + (1 << BLOCK_BITS) - 1


def find_page_start(
    db: sqlite3.Connection,
    cells: tuple[str, int],
    keys: tuple[int, int],
    offset: int,
    *,
    is_last_first: bool = False,
) -> PageStart:
    """Find the row with so many before it, among all between two keys.

    The first of the keys begins a block, and nothing else is in the block of the last.

    Args:
        db: Where to look.
        cells: Node and state of the rows; `ANY_NODE`, `ANY_STATE` for all.
        keys: The first and the last key.
        offset: How many rows come before.
        is_last_first: Count from the last key on, and read downwards.
    """
    total, start, skip = 0, keys[1] + 1, 0
    for first, n in read_block_counts(db, cells, keys, is_last_first=is_last_first):
        if total <= offset < total + n:
            start = last_key_of_block(first) if is_last_first else first
            skip = offset - total
        total += n
    return PageStart(total, start, skip)


def read_block_counts(
    db: sqlite3.Connection,
    cells: tuple[str, int],
    keys: tuple[int, int],
    *,
    is_last_first: bool,
) -> list[tuple[int, int]]:
    """Return the first key of each block between two keys, and its number of rows."""
    found = db.execute(
        "SELECT block, n FROM block_counts"
        " WHERE node = ? AND state = ? AND block BETWEEN ? AND ? ORDER BY block",
        (*cells, *map(block_of, keys)),
    ).fetchall()
    ordered = reversed(found) if is_last_first else found
    return [(block << BLOCK_BITS, n) for block, n in ordered]
