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

_NODE_COLUMNS: Final = ("running", "completed", "failed", "cancelled")
"""Those of `node_block_counts`, by state from 1 on: a queued task has no node."""
_ALL_OF_NODE: Final = f"({' + '.join(_NODE_COLUMNS)})"
_COUNTED: Final = {
    ANY_STATE: _ALL_OF_NODE,
    **dict(enumerate(("0", *_NODE_COLUMNS))),
}
"""SQL for the rows of a node in a block, by state."""


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
    of_nodes: dict[tuple[int, str], list[int]] = {}
    for (node, state, block), n in changes.items():
        sums[state, block] += n
        sums[ANY_STATE, block] += n
        if node:
            assert state, "a queued task has no node"
            counts = of_nodes.get((block, node))
            if counts is None:
                counts = of_nodes[block, node] = [0, 0, 0, 0]
            counts[state - 1] += n
    moved = [(*cell, n) for cell, n in sums.items() if n]
    bulk.BLOCK_ADD.execute(db, moved)
    bulk.NODE_BLOCK_ADD.execute(db, [(*cell, *ns) for cell, ns in of_nodes.items()])
    if fewer := [row[:2] for row in moved if row[2] < 0]:
        db.executemany(
            "DELETE FROM block_counts WHERE state = ? AND block = ? AND n = 0", fewer
        )
    if fewer_of_nodes := [cell for cell, ns in of_nodes.items() if sum(ns) < 0]:
        db.executemany(
            "DELETE FROM node_block_counts WHERE block = ? AND node = ?"  # noqa: S608
            f" AND {_ALL_OF_NODE} = 0",
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
            f"SELECT block, {_COUNTED[state]} AS of_node FROM block_counts"  # noqa: S608
            " CROSS JOIN node_block_counts AS mine USING (block)"
            " WHERE block_counts.state = ? AND block BETWEEN ? AND ?"
            " AND mine.node = ? AND of_node > 0 ORDER BY block",
            (ANY_STATE, first, last, node),
        ).fetchall()
    ordered = reversed(found) if is_last_first else found
    return [(block << BLOCK_BITS, n) for block, n in ordered]
