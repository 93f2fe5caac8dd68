"""Row counts per list filter and block of keys, for pagination.

To find a page at any offset, a query reads some hundred counts and the rows of a few
blocks, not all rows before the page. Each commit updates the counts, so they are exact.

Counts of all nodes together are ordered by state. Those of single nodes are ordered by
block: the tasks that end in one commit lie in few blocks, but may be of many nodes.
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
    blocks: list[int]
    """First keys of the blocks with matching rows, from that of the first row on."""
    skip: int  #: number of rows to skip in the first of them


def block_of(key: int) -> int:
    """Return the block of a key."""
    return key >> BLOCK_BITS


def next_block_key(key: int) -> int:
    """Return the lowest first key of a block that is at least `key`."""
    return -(-key >> BLOCK_BITS) << BLOCK_BITS


def add_counts(db: sqlite3.Connection, changes: Mapping[BlockCell, int]) -> None:
    """Add changes in the number of rows."""
    sums: defaultdict[tuple[int, int], int] = defaultdict(int)
    for (_, state, block), n in changes.items():
        sums[state, block] += n
        sums[ANY_STATE, block] += n
    moved = [(*cell, n) for cell, n in sums.items() if n]
    bulk.BLOCK_ADD.execute(db, moved)
    of_nodes = [
        (block, node, state, n)
        for (node, state, block), n in changes.items()
        if node and n
    ]
    bulk.NODE_BLOCK_ADD.execute(db, of_nodes)
    if fewer := [row[:2] for row in moved if row[2] < 0]:
        db.executemany(
            "DELETE FROM block_counts WHERE state = ? AND block = ? AND n = 0", fewer
        )
    if fewer_of_nodes := [row[:3] for row in of_nodes if row[3] < 0]:
        db.executemany(
            "DELETE FROM node_block_counts"
            " WHERE block = ? AND node = ? AND state = ? AND n = 0",
            fewer_of_nodes,
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
    total, skip = 0, 0
    blocks: list[int] = []
    for first, n in read_block_counts(db, cells, keys, is_last_first=is_last_first):
        if total <= offset < total + n:
            skip = offset - total
        if offset < total + n:
            blocks.append(first)
        total += n
    return PageStart(total, blocks, skip)


def read_block_counts(
    db: sqlite3.Connection,
    cells: tuple[str, int],
    keys: tuple[int, int],
    *,
    is_last_first: bool,
) -> list[tuple[int, int]]:
    """Read the first key and the number of rows of each block between two keys."""
    node, state = cells
    first, last = map(block_of, keys)
    if node == ANY_NODE:
        found = db.execute(
            "SELECT block, n FROM block_counts"
            " WHERE state = ? AND block BETWEEN ? AND ? ORDER BY block",
            (state, first, last),
        ).fetchall()
    else:
        found = db.execute(
            # CROSS JOIN keeps this order: one look for each block that has rows.
            "SELECT block, sum(mine.n) FROM block_counts"
            " CROSS JOIN node_block_counts AS mine USING (block)"
            " WHERE block_counts.state = ?1 AND block BETWEEN ?2 AND ?3"
            " AND mine.node = ?4 AND (mine.state = ?5 OR ?5 = ?1)"
            " GROUP BY block ORDER BY block",
            (ANY_STATE, first, last, node, state),
        ).fetchall()
    ordered = reversed(found) if is_last_first else found
    return [(block << BLOCK_BITS, n) for block, n in ordered]
