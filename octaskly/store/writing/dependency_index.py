"""Index of task dependencies, updated in the writer's transaction.

`dependencies` has a row for each parent of a blocked task. `unblocked_tasks` has each
blocked task with all dependencies met, or with a broken one. Both tables are derived
from `tasks`; the decision of a dispatcher is a fact in the log. A dependency on an
unknown parent stays open. An ended parent is not purged while a task depends on it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from octaskly.core.log.merge import TaskRecord, meets_dependency
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import DEPENDENCY_ENDS, After
from octaskly.core.model.tasks import TaskState
from octaskly.store.tables import rows
from octaskly.store.tables.rows import EDGE_BROKEN, EDGE_MET, EDGE_OPEN
from octaskly.store.writing.projection import ProjectedTask

_IS_UNBLOCKED: Final = (
    "(EXISTS (SELECT 1 FROM dependencies AS d"  # noqa: S608
    f" WHERE d.child = changed.child AND status = {EDGE_BROKEN})"
    " OR NOT EXISTS (SELECT 1 FROM dependencies AS d"
    f" WHERE d.child = changed.child AND status = {EDGE_OPEN}))"
)


@dataclass(slots=True)
class DependencyChanges:
    """Changes of dependencies in one commit."""

    added: list[tuple[int, After]] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    """Tasks that are no longer blocked."""
    ended_parents: list[tuple[TaskId, TaskState]] = field(default_factory=list)

    def compare_task(
        self, task: ProjectedTask, record: TaskRecord, state: TaskState
    ) -> None:
        """Note the differences between a task and its row. The task must have a key."""
        assert task.key is not None
        after = record.waits_for
        if state.is_final and not task.is_final:
            self.ended_parents.append((record.id, state))
        if after is not None and not task.is_blocked:
            self.added.append((task.key, after))
        if after is None and task.is_blocked:
            self.removed.append(task.key)
        task.is_blocked = after is not None


class DependencyIndex:
    """The dependencies of all tasks, through the writer's connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.refresh()

    def refresh(self) -> None:
        """Check if any task has dependencies: most logs have none."""
        found = self._db.execute("SELECT 1 FROM dependencies LIMIT 1").fetchone()
        self._has_any = found is not None

    def apply_changes(self, changes: DependencyChanges) -> None:
        """Apply the changes of a commit after its rows are written."""
        self._add_dependencies(changes.added)
        self._mark_parents_ended(changes.ended_parents)
        if changes.removed:
            self._delete_children(changes.removed)

    def _add_dependencies(self, added: Sequence[tuple[int, After]]) -> None:
        for child, after in added:
            states = self._read_states(after.tasks)
            wanted = DEPENDENCY_ENDS.index(after.end)
            edges = [
                (parent, child, wanted, _dependency_status(wanted, states.get(parent)))
                for parent in dict.fromkeys(after.tasks)
            ]
            self._db.executemany(
                "INSERT OR REPLACE INTO dependencies VALUES (?, ?, ?, ?)", edges
            )
        if added:
            self._has_any = True
            keys = [child for child, _ in added]
            self._update_unblocked_tasks("SELECT value FROM given", keys)

    def _mark_parents_ended(self, parents: Iterable[tuple[TaskId, TaskState]]) -> None:
        if not self._has_any:
            return
        changed: list[TaskId] = []
        for parent, state in parents:
            by_wanted_end = [
                _dependency_status(wanted, state)
                for wanted in range(len(DEPENDENCY_ENDS))
            ]
            found = self._db.execute(
                "UPDATE dependencies SET status = ? ->> wanted_end WHERE parent = ?",
                (json.dumps(by_wanted_end), parent),
            )
            if found.rowcount:
                changed.append(parent)
        if changed:
            self._update_unblocked_tasks(
                "SELECT child FROM given CROSS JOIN dependencies ON parent = value",
                changed,
            )

    def _delete_children(self, children: Sequence[int]) -> None:
        for table in ("dependencies", "unblocked_tasks"):
            self._db.executemany(
                f"DELETE FROM {table} WHERE child = ?",  # noqa: S608
                [(child,) for child in children],
            )

    def _update_unblocked_tasks(self, children: str, given: Sequence[object]) -> None:
        """Keep the tasks with a broken dependency, or with no open one.

        The late success of a parent that had failed mends a broken one. A parent may
        have a million children, so one statement changes all of them.

        Args:
            children: SQL for the tasks whose dependencies have changed.
            given: Values of the table `given` in it.
        """
        values = (json.dumps(given),)
        changed = (
            "WITH given AS (SELECT value FROM json_each(?)),"  # noqa: S608
            f" changed (child) AS ({children})"
        )
        self._db.execute(
            f"{changed} INSERT OR IGNORE INTO unblocked_tasks"  # noqa: S608
            f" SELECT child FROM changed WHERE {_IS_UNBLOCKED}",
            values,
        )
        self._db.execute(
            f"{changed} DELETE FROM unblocked_tasks WHERE child IN"  # noqa: S608
            f" (SELECT child FROM changed WHERE NOT {_IS_UNBLOCKED})",
            values,
        )

    def _read_states(self, tasks: Sequence[str]) -> dict[str, TaskState]:
        found = rows.select_in(self._db, "SELECT id, state FROM tasks WHERE id", tasks)
        return {task: rows.STATES[number] for task, number in found}


def _dependency_status(wanted: int, state: TaskState | None) -> int:
    """Return the status of a dependency, given the state of the parent."""
    if state is None or not state.is_final:
        return EDGE_OPEN
    is_met = meets_dependency(DEPENDENCY_ENDS[wanted], state)
    return EDGE_MET if is_met else EDGE_BROKEN
