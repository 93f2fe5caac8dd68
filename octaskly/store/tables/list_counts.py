"""Row counts per list filter and block of keys, for pagination.

To find a page at any offset, a query reads some hundred rows of `block_counts` and the
rows of one block, not all rows before the page. Each commit updates the counts, so
they are exact.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from octaskly.store.tables import bulk

BLOCK_BITS: Final = 10  #: low bits of a key: its position in the block
ANY_NODE: Final = ""  #: rows with any node or none
ANY_STATE: Final = -1

BlockCell = tuple[str, int, int]
"""Node (empty for none), number of the state, and block."""


@dataclass(frozen=True, slots=True)
class PageStart:
    """The first row of a page."""

    total: int  #: number of all matching rows
    start: int  #: key at which reading starts
    skip: int  #: number of rows to skip from there


def block_of(key: int) -> int:
    """Return the block of a key."""
    return key >> BLOCK_BITS


def next_block_key(key: int) -> int:
    """Return the lowest first key of a block that is at least `key`."""
    return -(-key >> BLOCK_BITS) << BLOCK_BITS


def add_counts(db: sqlite3.Connection, changes: Mapping[BlockCell, int]) -> None:
    """Add changes in the number of rows to each filter that matches them."""
    sums: defaultdict[BlockCell, int] = defaultdict(int)
    for (node, state, block), n in changes.items():
        for nodes in dict.fromkeys((node, ANY_NODE)):
            # For rows without a node both strings are equal, so they count once.
            sums[nodes, state, block] += n
            sums[nodes, ANY_STATE, block] += n
    moved = [(*cell, n) for cell, n in sums.items() if n]
    bulk.BLOCK_ADD.execute(db, moved)
    if fewer := [row[:3] for row in moved if row[3] < 0]:
        db.executemany(
            "DELETE FROM block_counts"
            " WHERE node = ? AND state = ? AND block = ? AND n = 0",
            fewer,
        )


def last_key_of_block(start: int) -> int:
    """Return the last key of the block that starts with `start`."""
    return start + (1 << BLOCK_BITS) - 1


def find_page_start(
    db: sqlite3.Connection,
    cells: tuple[str, int],
    keys: tuple[int, int],
    offset: int,
    *,
    is_last_first: bool = False,
) -> PageStart:
    """Find the row at `offset` among the rows between two keys.

    The first key must be the first of its block. The block of the last key must hold
    no other rows.

    Args:
        db: The database.
        cells: Node and state of the rows; `ANY_NODE` and `ANY_STATE` match all.
        keys: The first and the last key.
        offset: Number of rows before the page.
        is_last_first: Count and read downwards from the last key.
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
    """Read the first key and the number of rows of each block between two keys."""
    found = db.execute(
        "SELECT block, n FROM block_counts"
        " WHERE node = ? AND state = ? AND block BETWEEN ? AND ? ORDER BY block",
        (*cells, *map(block_of, keys)),
    ).fetchall()
    ordered = reversed(found) if is_last_first else found
    return [(block << BLOCK_BITS, n) for block, n in ordered]
