"""The steps of the clock that a disk keeps."""

from __future__ import annotations

from octaskly.core.log.task_ages import ClockStep
from octaskly.core.model.hlc import hlc_of
from octaskly.store.tables.node_state import read_clock_steps, write_clock_step
from tests.contract import log_kit as kit

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000


def test_steps_before_all_tasks_are_not_kept() -> None:
    """A board that boots without a clock each day gets one more each day."""
    db = kit.database()
    first, second = ClockStep(NOW_MS, DAY_MS), ClockStep(NOW_MS + DAY_MS, DAY_MS)
    third = ClockStep(NOW_MS + 9 * DAY_MS, DAY_MS)
    columns = "key, id, ord, state, command, timeout_s"
    db.execute(
        f"INSERT INTO tasks ({columns}, submitter, created_ms, first_submitted_hlc)"  # noqa: S608
        " VALUES (1, 'a', 1, 2, '', 1, '', 1, ?)",
        (hlc_of(NOW_MS + DAY_MS // 2),),
    )

    for step in (first, second):
        write_clock_step(db, step)
    kept = read_clock_steps(db)
    db.execute("UPDATE tasks SET stored_ms = ?", (NOW_MS - 1,))
    write_clock_step(db, first)
    with_old = read_clock_steps(db)
    db.execute("DELETE FROM tasks")
    write_clock_step(db, third)

    assert kept == (second,)
    assert with_old == (second, first)
    assert read_clock_steps(db) == (third,)
