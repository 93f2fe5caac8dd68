"""Rows of queued tasks that were read for the dispatcher, for their first change.

The dispatcher reads a long queue from the store, and soon has the writer change the
rows that it read. To read and convert each of them again took the writer 15 us.

A read sees the commits up to its begin. A row that was written since is left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Final

from octaskly.core.model.ids import TaskId
from octaskly.store.tables.rows import (
    MEMBER_KEYS_START,
    StoredTask,
    has_options_or_attempts,
    size_of_row,
)
from octaskly.store.writing.projection import ProjectedTask, task_from

QUEUE_ROWS_MAX: Final = 8_000  #: more than the dispatcher reads at once
ROW_BYTES_MAX: Final = 1_000  #: of the large columns of one row


class QueueRows:
    """The rows, between the threads that read and the thread that writes.

    Args:
        is_void: Returns True if a task is below the compaction floor.
    """

    def __init__(self, is_void: Callable[[ProjectedTask], bool]) -> None:
        self._is_void = is_void
        self._lock = threading.Lock()
        self._found: dict[TaskId, StoredTask] = {}
        self._reads: list[set[TaskId]] = []
        """For each pending read, the tasks written since it began."""
        self._in_commit: set[TaskId] = set()

    # --- Called by threads that read.

    @contextmanager
    def reading(self) -> Iterator[Callable[[Sequence[StoredTask]], None]]:
        """Read within this block; pass what was found to the function it yields.

        The block must begin before the first statement of the read.
        """
        written: set[TaskId] = set()
        with self._lock:
            self._reads.append(written)
        try:
            yield lambda found: self._keep(found, written)
        finally:
            with self._lock:
                self._reads = [read for read in self._reads if read is not written]

    def _keep(self, found: Sequence[StoredTask], written: set[TaskId]) -> None:
        plain = [each for each in found if _is_plain_and_small(each)]
        with self._lock:
            for each in plain:
                task = each.record.id
                if task not in written:
                    self._found[task] = each
            excess = len(self._found) - QUEUE_ROWS_MAX
            for task in list(islice(self._found, max(excess, 0))):
                self._found.pop(task, None)  # The writer may have taken it.

    # --- Called by the thread that writes.

    def take(self, task_id: TaskId) -> ProjectedTask | None:
        """Remove and return a task that is here as in the file, unless it is void."""
        if task_id in self._in_commit:
            return None  # A read may have brought it as it was before this commit.
        found = self._found.pop(task_id, None)
        if found is None or self._is_void(task := task_from(*found)):
            return None
        return task

    def add_to_commit(self, tasks: Iterable[TaskId]) -> None:
        """Note that the current transaction writes the rows of these tasks."""
        self._in_commit.update(tasks)

    def note_commit(self) -> None:
        """Drop rows that the last commit has changed, before the next one begins."""
        with self._lock:
            if self._found:
                for task in self._in_commit:
                    self._found.pop(task, None)
            for written in self._reads:
                written.update(self._in_commit)
        self._in_commit.clear()

    def clear(self) -> None:
        """Drop all rows, after a commit that failed."""
        with self._lock:
            self._found.clear()
        self._in_commit.clear()


def _is_plain_and_small(task: StoredTask) -> bool:
    row = task.row
    if row[0] >= MEMBER_KEYS_START or has_options_or_attempts(row):
        return False
    return size_of_row(row) <= ROW_BYTES_MAX
