"""Reads of the store that are not answered yet, and what they may not have seen.

The reads are numbered in the order in which they were asked for. A read sees all that
was durable at that time. What became durable later, it may have missed: for these tasks
its answer is outdated.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, auto

from octaskly.core.model.arrays import array_of
from octaskly.core.model.ids import TaskId


class Read(IntEnum):
    """The kinds of reads; at most one of each kind is pending."""

    QUEUED = auto()
    LIVE = auto()
    NAMED = auto()


class PendingReads:
    """The pending reads of an epoch."""

    def __init__(self) -> None:
        self.term = 0  #: of the epoch that reads
        self.last = 0  #: number of the last read
        self._numbers: dict[Read, int] = {}
        self._overtaken: dict[TaskId, int] = {}
        """Last read that may not have seen what another node's log says of a task."""

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def __contains__(self, read: Read) -> bool:
        return read in self._numbers

    @property
    def oldest(self) -> int:
        """Number of the oldest pending read, or of the next one."""
        return min(self._numbers.values(), default=self.last + 1)

    def start(self, read: Read) -> None:
        """Note that a read is asked for."""
        if not self._numbers:
            self._overtaken.clear()
        self.last += 1
        self._numbers[read] = self.last

    def end(self, read: Read, term: int) -> int | None:
        """Note that a read is answered; return its number, None if of another epoch."""
        return self._numbers.pop(read, None) if term == self.term else None

    def overtake(self, tasks: Iterable[TaskId]) -> None:
        """Note that ends of these tasks came with the log of another node."""
        for task in tasks if self._numbers else ():
            self._overtaken[task] = self.last
            if (array := array_of(task)) is not None:  # Its progress is outdated, too.
                self._overtaken[array] = self.last

    def is_overtaken(self, task: TaskId, number: int) -> bool:
        """Return True if read `number` may lack the end of a task or of its array."""
        overtaken = self._overtaken
        if not overtaken:
            return False
        array = array_of(task) or task
        return number <= max(overtaken.get(task, 0), overtaken.get(array, 0))
