"""Freeing of the stdin of ended tasks, in small steps between commits.

The bytes are in the row of a task and in each log entry with its submission. A step
replaces them by digest and size, so SQLite reuses their pages. Stdin of at most 4096
bytes, which takes no page of its own, is kept like the command.

A completed task is freed at once. A failed or cancelled one may be retried, so it keeps
its stdin while its submitter has no more than `KEPT_BYTES_MAX` of it.

Source: docs/decisions/0032-stdin-of-ended-tasks.md.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from octaskly.core.log.facts import Submitted
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import without_stdin
from octaskly.core.model.tasks import TaskSpec, TaskState
from octaskly.ports.store import Packer
from octaskly.store.tables import log_rows, rows
from octaskly.store.tables.log_rows import LARGE_BYTES

UNFREED_BYTES_MAX: Final = LARGE_BYTES  #: of stdin that stays, as in `tasks_stdin`
KEPT_BYTES_MAX: Final = 64 << 20  #: of failed and cancelled tasks, for each submitter
SURPLUS_DIVISOR: Final = 16  #: part of these bytes that is freed too, beyond the bound
TASKS_PER_STEP: Final = 64
BYTES_PER_STEP: Final = 1 << 20  #: a step ends with the task that reaches it

_COMPLETED: Final = rows.NUMBER_OF[TaskState.COMPLETED]
# The planner uses a partial index only if the query repeats its condition.
_ENDED_WITH_STDIN: Final = (
    f"FROM tasks INDEXED BY tasks_stdin WHERE length(stdin) > {UNFREED_BYTES_MAX}"
    " AND state > 1"
)


class StdinFreeing:
    """Finds and frees the stdin of ended tasks; the caller opens transactions."""

    def __init__(self, db: sqlite3.Connection, packer: Packer) -> None:
        self._db = db
        self._packer = packer
        self.kept_bytes_max = KEPT_BYTES_MAX
        self.restart()

    def restart(self) -> None:
        """Search all tasks again."""
        self._completed_tasks, self._completed_bytes = 1, 0
        self._surplus: list[tuple[int, int]] = []
        """Keys and sizes of failed and cancelled tasks to free, the oldest last."""
        self._kept_bytes: dict[str, int] = dict(
            self._db.execute(
                f"SELECT submitter, sum(length(stdin)) {_ENDED_WITH_STDIN}"
                " AND state <> ? GROUP BY submitter",
                (_COMPLETED,),
            )
        )

    @property
    def is_done(self) -> bool:
        """Return True if nothing is to be freed."""
        return not self._completed_tasks and not self._has_surplus

    @property
    def is_step_full(self) -> bool:
        """Return True if there is enough to free for a commit of its own."""
        return (
            self._completed_tasks >= TASKS_PER_STEP
            or self._completed_bytes >= BYTES_PER_STEP
            or self._has_surplus
        )

    def note_end(self, spec: TaskSpec, state: int) -> None:
        """Note that a task was written in a final state, given by its number."""
        size = 0 if spec.options is None else len(spec.options.stdin)
        if size <= UNFREED_BYTES_MAX:
            return
        if state == _COMPLETED:
            self._completed_tasks += 1
            self._completed_bytes += size
        else:
            kept = self._kept_bytes.get(spec.submitter, 0)
            self._kept_bytes[spec.submitter] = kept + size

    def free_some(self) -> None:
        """Free the stdin of some tasks, in a transaction of the caller."""
        if self._completed_tasks:
            found = self._db.execute(
                f"SELECT key, length(stdin) {_ENDED_WITH_STDIN} AND state = ? LIMIT ?",
                (_COMPLETED, TASKS_PER_STEP),
            ).fetchall()
            count, size = self._free_tasks(found)
            is_last = count == len(found) < TASKS_PER_STEP
            # Ends are noted more than once, so the count is only an upper bound.
            self._completed_tasks = (
                0 if is_last else max(1, self._completed_tasks - count)
            )
            self._completed_bytes = (
                0 if is_last else max(0, self._completed_bytes - size)
            )
            return
        if not self._surplus and (submitter := self._submitter_above_max()) is not None:
            self._find_surplus(submitter)
        count, _ = self._free_tasks(reversed(self._surplus))
        del self._surplus[len(self._surplus) - count :]

    @property
    def _has_surplus(self) -> bool:
        if not self._kept_bytes:  # Few tasks with long stdin fail.
            return False
        return bool(self._surplus) or self._submitter_above_max() is not None

    def _submitter_above_max(self) -> str | None:
        for submitter, kept in self._kept_bytes.items():
            if kept > self.kept_bytes_max:
                return submitter
        return None

    def _find_surplus(self, submitter: str) -> None:
        """Find the oldest failed and cancelled tasks of a submitter beyond the bound.

        More than necessary are freed, so that this search is rare.
        """
        latest_first = self._db.execute(
            f"SELECT key, length(stdin) {_ENDED_WITH_STDIN}"
            " AND state IN (?, ?) AND submitter = ? ORDER BY key DESC",
            (
                rows.NUMBER_OF[TaskState.FAILED],
                rows.NUMBER_OF[TaskState.CANCELLED],
                submitter,
            ),
        ).fetchall()
        kept = sum(size for _, size in latest_first)
        limit, surplus = self.kept_bytes_max, []
        if kept > limit:
            while kept > limit - limit // SURPLUS_DIVISOR:
                surplus.append(latest_first.pop())
                kept -= surplus[-1][1]
        self._surplus = surplus[::-1]
        self._kept_bytes[submitter] = kept

    def _free_tasks(self, tasks: Iterable[tuple[int, int]]) -> tuple[int, int]:
        """Free tasks, given by key and size, as far as one step goes.

        Returns:
            Number of freed tasks, and of their bytes.
        """
        count = freed = 0
        for key, size in tasks:
            self._free_task(key)
            count, freed = count + 1, freed + size
            if count == TASKS_PER_STEP or freed >= BYTES_PER_STEP:
                break
        return count, freed

    def _free_task(self, key: int) -> None:
        found = self._db.execute(
            "SELECT id, options, stdin FROM tasks WHERE key = ? AND stdin NOT NULL",
            (key,),
        ).fetchone()
        if found is None:
            return  # It was forgotten, or it completed, after it was found.
        task, options, stdin = found
        self._db.execute(
            "UPDATE tasks SET options = ?, stdin = NULL WHERE key = ?",
            (rows.options_without_stdin(options, stdin), key),
        )
        self._free_entries(task)

    def _free_entries(self, task: TaskId) -> None:
        """Free the entries with a submission of a task; a split can leave several."""
        for stored in log_rows.read_large_entries(self._db, task):
            entry = self._packer.unpack_entry(*stored.packed)
            fact = entry.fact
            if not isinstance(fact, Submitted) or fact.spec.options is None:
                continue
            options = without_stdin(fact.spec.options)
            freed = Submitted(replace(fact.spec, options=options))
            body = self._packer.pack(freed)
            log_rows.replace_large_body(self._db, stored, body)
