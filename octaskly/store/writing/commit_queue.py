"""What waits for the writer, and how much of it goes into one commit."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from octaskly.core.effects import Append, MergeRows, Save, Spool, Unspool
from octaskly.core.log.facts import Assigned
from octaskly.store.tables.node_state import PeerContact

QUICK_S: Final = 0.002  #: where commits take no longer, the loop makes small ones
MEAN_OF: Final = 8  #: so many count, roughly
SLOW_S: Final = 0.008  #: nothing counts for more, and at first all are taken for slow
TURN: Final = 32  #: of so many the thread makes one, behind which it tidies up


class Pace:
    """The mean of what commits took, and how many the loop made in a row."""

    def __init__(self) -> None:
        self._mean_s = SLOW_S
        self.own = 0  #: commits that the loop made since the thread's last

    @property
    def is_quick(self) -> bool:
        """Whether the loop shall make the next one, if that is small."""
        return self._mean_s <= QUICK_S and self.own < TURN

    def note(self, took_s: float) -> None:
        """Count a commit."""
        self._mean_s += (min(took_s, SLOW_S) - self._mean_s) / MEAN_OF

    def fail(self) -> None:
        """A commit failed: the thread tries again, and makes the next ones."""
        self._mean_s = SLOW_S


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

    def requeue(self, batch: Sequence[QueueItem]) -> None:
        """Take what was given and could not be written."""
        for item in reversed(batch):
            self.items.appendleft(item)
            self.entries += count_entries(item)
            self.urgent_items += _is_urgent(item)


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
