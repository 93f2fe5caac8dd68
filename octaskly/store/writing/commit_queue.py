"""What waits for the writer, and how much of it goes into one commit."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from octaskly.core.effects import Append, MergeRows, Save, Spool, Unspool
from octaskly.core.log.facts import Assigned
from octaskly.store.tables.node_state import PeerContact

QueueItem = Append | MergeRows | Save | Spool | Unspool | PeerContact

BATCH_ITEMS_MAX: Final = 512
BATCH_ENTRIES_MAX: Final = 8192


class CommitQueue:
    """Items in their order, counted."""

    def __init__(self) -> None:
        self.items: deque[QueueItem] = deque()
        self.entries = 0
        self.urgent_items = 0  #: items for whose commit somebody waits

    def add_item(self, item: QueueItem) -> None:
        """Take one more."""
        self.items.append(item)
        self.entries += count_entries(item)
        self.urgent_items += _is_urgent(item)

    def next_batch(self) -> list[QueueItem]:
        """Give what goes into one commit."""
        batch: list[QueueItem] = []
        if len(self.items) <= BATCH_ITEMS_MAX and self.entries <= BATCH_ENTRIES_MAX:
            batch += self.items  # All of it, as mostly: nothing is left to be counted.
            self.items.clear()
            self.entries = self.urgent_items = 0
            return batch
        left = self.entries - BATCH_ENTRIES_MAX
        while self.items and len(batch) < BATCH_ITEMS_MAX and self.entries > left:
            item = self.items.popleft()
            self.entries -= count_entries(item)
            self.urgent_items -= _is_urgent(item)
            batch.append(item)
        return batch


def count_entries(item: QueueItem) -> int:
    """Return how many entries an item counts for."""
    if isinstance(item, Append):
        return len(item.entries) or 1
    return len(item.rows) + len(item.records) or 1 if isinstance(item, MergeRows) else 1


def last_number(batch: Sequence[QueueItem]) -> int | None:
    """Return the number that is durable with these items, None if none is."""
    for item in reversed(batch):
        if isinstance(item, Append | MergeRows | Save):
            return item.number
    return None


def _is_urgent(item: QueueItem) -> bool:
    """Return whether somebody may wait for the commit of this item."""
    if not isinstance(item, Append):
        return True
    for entry in item.entries:  # noqa: SIM110  a generator is a call for each
        if not isinstance(entry.fact, Assigned):
            return True
    return False
