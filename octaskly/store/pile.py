"""What waits for the writer, and how much of it goes into one commit."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from octaskly.core.effects import Append, Join, Save, Spool, Unspool
from octaskly.core.facts import Assigned
from octaskly.store.state import Met

Item = Append | Join | Save | Spool | Unspool | Met

BATCH_ITEMS_MAX: Final = 512
BATCH_ENTRIES_MAX: Final = 8192


class Pile:
    """Items in their order, counted."""

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.entries = 0
        self.urgent = 0  #: items for whose commit somebody waits

    def add(self, item: Item) -> None:
        """Take one more."""
        self.items.append(item)
        self.entries += weight(item)
        self.urgent += _is_urgent(item)

    def take(self) -> list[Item]:
        """Give what goes into one commit."""
        batch: list[Item] = []
        if len(self.items) <= BATCH_ITEMS_MAX and self.entries <= BATCH_ENTRIES_MAX:
            batch += self.items  # All of it, as mostly: nothing is left to be counted.
            self.items.clear()
            self.entries = self.urgent = 0
            return batch
        left = self.entries - BATCH_ENTRIES_MAX
        while self.items and len(batch) < BATCH_ITEMS_MAX and self.entries > left:
            item = self.items.popleft()
            self.entries -= weight(item)
            self.urgent -= _is_urgent(item)
            batch.append(item)
        return batch

    def put_back(self, batch: Sequence[Item]) -> None:
        """Take what was given and could not be written."""
        for item in reversed(batch):
            self.items.appendleft(item)
            self.entries += weight(item)
            self.urgent += _is_urgent(item)


def weight(item: Item) -> int:
    """Return how many entries an item counts for."""
    if isinstance(item, Append):
        return len(item.entries) or 1
    return len(item.rows) + len(item.records) or 1 if isinstance(item, Join) else 1


def last_number(batch: Sequence[Item]) -> int | None:
    """Return the number that is durable with these items, None if none is."""
    for item in reversed(batch):
        if isinstance(item, Append | Join | Save):
            return item.number
    return None


def _is_urgent(item: Item) -> bool:
    """Return whether somebody may wait for the commit of this item."""
    if not isinstance(item, Append):
        return True
    for entry in item.entries:  # noqa: SIM110  a generator is a call for each
        if not isinstance(entry.fact, Assigned):
            return True
    return False
