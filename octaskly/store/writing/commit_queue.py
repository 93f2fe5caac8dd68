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
    """Items in order, which one thread adds and another takes.

    It needs no lock: each count is written by one of the threads and only grows, and an
    item is in the queue before it is counted.
    """

    def __init__(self) -> None:
        self._items: deque[tuple[QueueItem, int, bool]] = deque()
        """Each with its number of entries, and whether it is urgent."""
        self._added_entries = self._added_urgent = 0
        self._taken_entries = self._taken_urgent = 0
        self._due_entries = 0  #: of those added, that are committed in any case

    def __bool__(self) -> bool:
        """Return True if there are items."""
        return bool(self._items)

    @property
    def entries(self) -> int:
        """Number of entries that wait."""
        return self._added_entries - self._taken_entries

    @property
    def urgent_items(self) -> int:
        """Number of items whose commit a caller may wait for."""
        return self._added_urgent - self._taken_urgent

    @property
    def is_due(self) -> bool:
        """Return True if an item is to be committed now."""
        return self._due_entries > self._taken_entries

    def add_item(self, item: QueueItem) -> bool:
        """Append one item. Return True if it is urgent, so that all are due."""
        entries, is_urgent = _count_entries(item), _is_urgent(item)
        self._items.append((item, entries, is_urgent))
        self._added_entries += entries
        if is_urgent:
            self._added_urgent += 1
            self._due_entries = self._added_entries
        return is_urgent

    def set_due(self) -> None:
        """Have all items that were added so far committed, urgent or not."""
        self._due_entries = self._added_entries

    def take_batch(self) -> Batch:
        """Remove and return the items of the next commit."""
        waiting, items = self._items, list[QueueItem]()
        entries = urgent = 0
        while waiting and len(items) < BATCH_ITEMS_MAX and entries < BATCH_ENTRIES_MAX:
            item, count, is_urgent = waiting.popleft()
            items.append(item)
            entries += count
            urgent += is_urgent
        self._taken_entries += entries
        self._taken_urgent += urgent
        return Batch(items, entries)


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
