"""Index of task dependencies, updated in the writer's transaction.

`dependencies` has a row for each parent of a blocked task. `unblocked_tasks` has each
blocked task with all dependencies met, or with a broken one. Both tables are derived
from `tasks`; the decision of a dispatcher is a fact in the log. A dependency on an
unknown parent stays open. An ended parent is not purged while a task depends on it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from octaskly.core.log.merge import TaskRecord, meets_dependency
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import DEPENDENCY_ENDS, After
from octaskly.core.model.tasks import TaskState
from octaskly.store.tables import rows
from octaskly.store.tables.rows import EDGE_BROKEN, EDGE_MET, EDGE_OPEN
from octaskly.store.writing.projection import ProjectedTask


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
        for child, after in changes.added:
            self._add_dependencies(child, after)
        self._mark_parents_ended(changes.ended_parents)
        if changes.removed:
            self._delete_children(changes.removed)

    def _add_dependencies(self, child: int, after: After) -> None:
        states = self._read_states(after.tasks)
        wanted = DEPENDENCY_ENDS.index(after.end)
        edges = [
            (parent, child, wanted, _dependency_status(wanted, states.get(parent)))
            for parent in dict.fromkeys(after.tasks)
        ]
        self._db.executemany(
            "INSERT OR REPLACE INTO dependencies VALUES (?, ?, ?, ?)", edges
        )
        self._has_any = True
        self._update_unblocked_tasks([child])

    def _mark_parents_ended(self, parents: Iterable[tuple[TaskId, TaskState]]) -> None:
        if not self._has_any:
            return
        for parent, state in parents:
            found = self._db.execute(
                "SELECT child, wanted_end FROM dependencies WHERE parent = ?", (parent,)
            ).fetchall()
            self._db.executemany(
                "UPDATE dependencies SET status = ? WHERE parent = ? AND child = ?",
                [
                    (_dependency_status(wanted, state), parent, child)
                    for child, wanted in found
                ],
            )
            self._update_unblocked_tasks(child for child, _ in found)

    def _delete_children(self, children: Sequence[int]) -> None:
        for table in ("dependencies", "unblocked_tasks"):
            self._db.executemany(
                f"DELETE FROM {table} WHERE child = ?",  # noqa: S608
                [(child,) for child in children],
            )

    def _update_unblocked_tasks(self, children: Iterable[int]) -> None:
        """Keep the tasks with a broken dependency, or with no open one.

        The late success of a parent that had failed mends a broken one.
        """
        changed = [(child, EDGE_BROKEN, EDGE_OPEN) for child in children]
        for statement in (
            "INSERT OR IGNORE INTO unblocked_tasks SELECT ?1 WHERE",
            "DELETE FROM unblocked_tasks WHERE child = ?1 AND NOT",
        ):
            self._db.executemany(
                f"{statement} (EXISTS"  # noqa: S608
                " (SELECT 1 FROM dependencies WHERE child = ?1 AND status = ?2)"
                " OR NOT EXISTS"
                " (SELECT 1 FROM dependencies WHERE child = ?1 AND status = ?3))",
                changed,
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
