"""Queue of items for the writer, and the batches for its commits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from octaskly.core.effects import Append, MergeRows, Save, Spool, StageRows, Unspool
from octaskly.core.log.facts import Assigned, MembersAssigned
from octaskly.store.tables.node_state import PeerContact


class ClockCheck(NamedTuple):
    """An item without content: each commit records a step of the wall clock."""


TableItem = Append | StageRows | MergeRows
"""An item for `TableWriter`, which needs them in order."""
QueueItem = TableItem | Save | Spool | Unspool | PeerContact | ClockCheck

BATCH_ITEMS_MAX: Final = 512
BATCH_ENTRIES_MAX: Final = 8192


class Batch(NamedTuple):
    """The items of one commit."""

    items: list[QueueItem]
    entries: int  #: as many as the items count as


class CommitQueue:
    """Items in order, with counts of entries and urgent items."""

    def __init__(self) -> None:
        self.items: deque[QueueItem] = deque()
        self.entries = 0
        self.urgent_items = 0  #: items whose commit a caller may wait for

    def add_item(self, item: QueueItem) -> None:
        """Append one item."""
        self.items.append(item)
        self.entries += _count_entries(item)
        self.urgent_items += _is_urgent(item)

    def next_batch(self) -> Batch:
        """Remove and return the items of the next commit."""
        before = self.entries
        if len(self.items) <= BATCH_ITEMS_MAX and before <= BATCH_ENTRIES_MAX:
            items = list(self.items)  # The usual case: take everything.
            self.items.clear()
            self.entries = self.urgent_items = 0
            return Batch(items, before)
        items, left = [], before - BATCH_ENTRIES_MAX
        while self.items and len(items) < BATCH_ITEMS_MAX and self.entries > left:
            item = self.items.popleft()
            self.entries -= _count_entries(item)
            self.urgent_items -= _is_urgent(item)
            items.append(item)
        return Batch(items, before - self.entries)


def _count_entries(item: QueueItem) -> int:
    """Return the number of entries that an item counts as, at least 1."""
    if isinstance(item, Append):
        count = 0
        for entry in item.entries:
            count += entry.fact.count
        return count or 1
    if isinstance(item, StageRows):
        return len(item.part.rows) + len(item.part.ranges) or 1
    return 1


def last_number(batch: Sequence[QueueItem]) -> int | None:
    """Return the highest number that this batch makes durable, or None."""
    for item in reversed(batch):
        if isinstance(item, TableItem | Save):
            return item.number
    return None


def _is_urgent(item: QueueItem) -> bool:
    """Return True if a caller may wait for the commit of this item."""
    if not isinstance(item, Append):
        return True
    for entry in item.entries:
        if not isinstance(entry.fact, Assigned | MembersAssigned):
            return True
    return False
