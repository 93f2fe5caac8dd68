"""Steps of the wall clock ahead, which age nothing that was stored before them."""

from __future__ import annotations

import sqlite3

from octaskly.core.log.task_ages import ClockStep, TaskAges, join_steps


def write_clock_step(db: sqlite3.Connection, step: ClockStep) -> None:
    """Add a step, and delete those before every task that is left."""
    (oldest_hlc,) = db.execute("SELECT min(first_submitted_hlc) FROM tasks").fetchone()
    (oldest_ms,) = db.execute(
        "SELECT min(stored_ms) FROM tasks WHERE stored_ms > 0"
    ).fetchone()
    kept = [s for s in read_clock_steps(db) if _affects(s, oldest_hlc, oldest_ms)]
    db.execute("DELETE FROM clock_steps")
    db.executemany(
        "INSERT INTO clock_steps (before_ms, gained_ms) VALUES (?, ?)", [*kept, step]
    )


def read_clock_steps(db: sqlite3.Connection) -> tuple[ClockStep, ...]:
    """Return all steps in their order."""
    found = db.execute("SELECT before_ms, gained_ms FROM clock_steps ORDER BY number")
    return tuple(ClockStep(*row) for row in found)


def read_task_ages(
    db: sqlite3.Connection, wall_ms: int, unrecorded: ClockStep | None
) -> TaskAges:
    """Return what the age of a task is computed from.

    Args:
        db: A reader in a transaction.
        wall_ms: The wall clock now.
        unrecorded: A step that may not be stored yet, found before the transaction
            began. A step that is stored since then counts twice, so tasks seem younger.
    """
    return TaskAges(wall_ms, join_steps(read_clock_steps(db), unrecorded))


def _affects(step: ClockStep, oldest_hlc: int | None, oldest_ms: int | None) -> bool:
    """Return True if a task may have been stored before a step."""
    if oldest_ms is not None and oldest_ms <= step.before_ms:
        return True
    if oldest_hlc is None:
        return False
    return TaskAges(0, (step,)).since_hlc(oldest_hlc, 0) > oldest_hlc
