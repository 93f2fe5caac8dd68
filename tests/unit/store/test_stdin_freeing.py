"""Stdin of ended tasks leaves the tables and the log."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from octaskly.core.effects import Append
from octaskly.core.log.facts import Fact, Finished, Submitted
from octaskly.core.model.arrays import member_id
from octaskly.core.model.ids import StreamId
from octaskly.core.model.task_options import (
    ArraySpec,
    TaskOptions,
    is_stdin_freed,
    without_stdin,
)
from octaskly.core.model.tasks import AttemptState
from octaskly.store.reading import queries
from octaskly.store.tables.database import used_bytes
from octaskly.store.writing import stdin_freeing
from octaskly.store.writing.stdin_freeing import UNFREED_BYTES_MAX
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit

SIZE_BYTES = 1 << 20
LARGE = TaskOptions(name="n", stdin=b"x" * SIZE_BYTES)


def failed(number: int) -> Finished:
    """Return the failure of a task."""
    return kit.finished(number, state=AttemptState.FAILED, exit_code=1)


class Tables:
    """The tables of one node, written without a thread."""

    def __init__(self) -> None:
        self.db = kit.database()
        self.writer = TableWriter(self.db, kit.PicklePacker(), kit.HandClock())
        self._seqs: dict[StreamId, int] = {}

    def add(self, *facts: Fact, stream: StreamId = kit.STREAM) -> None:
        """Append facts in one commit."""
        seq = self._seqs.get(stream, 0)
        self._seqs[stream] = seq + len(facts)
        entries = kit.entries(facts, stream=stream, after=seq)
        self.writer.append_entries([Append(1, tuple(entries), kit.EPOCHS)])

    def free(self) -> None:
        """Free until nothing is left to be freed."""
        while not self.writer.stdin_freeing.is_done:
            self.writer.stdin_freeing.free_some()

    def freed(self, *numbers: int) -> list[bool]:
        """Return for each task whether its stdin was freed."""
        found = [queries.read_task(self.db, kit.task_id(n)) for n in numbers]
        specs = [record.spec for record in found if record is not None]
        return [spec is not None and is_stdin_freed(spec.options) for spec in specs]

    def submissions(self, number: int) -> list[TaskOptions | None]:
        """Return the options of each submission of a task in the log."""
        facts = [entry.fact for entry in kit.logged_entries(self.db)]
        return [
            fact.spec.options
            for fact in facts
            if isinstance(fact, Submitted) and fact.task == kit.task_id(number)
        ]


@pytest.fixture
def tables() -> Iterable[Tables]:
    made = Tables()
    yield made
    made.db.close()


def test_the_stdin_of_a_completed_task_leaves_table_and_log(tables: Tables) -> None:
    """Digest and size stay, and SQLite has the pages back."""
    tables.add(kit.submitted(1, options=LARGE), kit.assigned(1))
    tables.free()
    assert tables.freed(1) == [False]
    assert used_bytes(tables.db) > 2 * SIZE_BYTES

    tables.add(kit.finished(1))
    tables.free()

    assert tables.freed(1) == [True]
    assert tables.submissions(1) == [without_stdin(LARGE)]
    assert used_bytes(tables.db) < SIZE_BYTES // 2


def test_small_stdin_stays_for_a_retry(tables: Tables) -> None:
    """It takes no pages of its own."""
    small = TaskOptions(stdin=b"x" * UNFREED_BYTES_MAX)
    tables.add(kit.submitted(1, options=small), kit.finished(1))

    tables.free()

    assert tables.freed(1) == [False]
    assert tables.submissions(1) == [small]


def test_a_failed_or_cancelled_task_keeps_its_stdin_for_a_retry(
    tables: Tables,
) -> None:
    """So does one that waits to be tried again."""
    tables.add(*(kit.submitted(n, options=LARGE) for n in (1, 2, 3)))
    tables.add(failed(1), kit.cancelled(2))
    tables.add(kit.finished(3, state=AttemptState.RELEASED))

    tables.free()

    assert tables.freed(1, 2, 3) == [False, False, False]


def test_the_oldest_failed_tasks_of_a_submitter_are_freed_beyond_its_bound(
    tables: Tables,
) -> None:
    """Other submitters keep theirs."""
    tables.writer.stdin_freeing.kept_bytes_max = 3 * SIZE_BYTES
    for n in range(1, 5):
        by = "bob" if n == 1 else "ada"
        tables.add(kit.submitted(n, options=LARGE, submitter=by))
        tables.add(kit.cancelled(n) if n % 2 else failed(n))
    tables.free()
    assert tables.freed(1, 2, 3, 4) == [False] * 4

    tables.add(kit.submitted(5, options=LARGE, submitter="ada"), kit.cancelled(5))
    tables.free()

    assert tables.freed(1, 2, 3, 4, 5) == [False, True, True, False, False]
    assert tables.writer.stdin_freeing.is_done


def test_surplus_is_freed_in_several_steps(tables: Tables) -> None:
    """A task that is forgotten between two steps is left out."""
    freeing, numbers = tables.writer.stdin_freeing, range(1, 6)
    tables.add(*(kit.submitted(n, options=LARGE) for n in numbers))
    tables.add(*map(kit.cancelled, numbers))
    freeing.free_some()
    freeing.kept_bytes_max = SIZE_BYTES

    freeing.free_some()
    assert tables.freed(*numbers) == [True, False, False, False, False]
    assert freeing.is_step_full
    tables.db.execute("DELETE FROM tasks WHERE id = ?", (kit.task_id(2),))
    tables.free()

    assert tables.freed(1, 3, 4, 5) == [True, True, True, True]


def test_the_bound_holds_after_a_restart(tables: Tables) -> None:
    """The tables say what is kept, also in the file of an older version."""
    tables.add(*(kit.submitted(n, options=LARGE) for n in (1, 2, 3)))
    tables.add(kit.cancelled(1), kit.cancelled(2), kit.finished(3))

    tables.writer.reload()
    tables.writer.stdin_freeing.kept_bytes_max = SIZE_BYTES + SIZE_BYTES // 2
    tables.free()

    assert tables.freed(1, 2, 3) == [True, False, True]


def test_a_second_submission_of_an_ended_task_is_freed_too(tables: Tables) -> None:
    """The other half of a split accepted the same request."""
    tables.add(kit.submitted(1, options=LARGE), kit.finished(1))
    tables.free()

    tables.add(kit.submitted(1, options=LARGE), stream=kit.OTHER)
    assert tables.freed(1) == [False]
    tables.free()

    assert tables.freed(1) == [True]
    assert tables.submissions(1) == [without_stdin(LARGE)] * 2


def test_both_submissions_of_a_task_are_freed_at_its_end(tables: Tables) -> None:
    """Each has the bytes in the log."""
    tables.add(kit.submitted(1, options=LARGE))
    tables.add(kit.submitted(1, options=LARGE), stream=kit.OTHER)
    tables.add(kit.finished(1))

    tables.free()

    assert tables.submissions(1) == [without_stdin(LARGE)] * 2


def test_an_array_is_freed_when_its_last_member_has_ended(tables: Tables) -> None:
    """All members read the same stdin."""
    array = TaskOptions(stdin=LARGE.stdin, array=ArraySpec(count=2))
    tables.add(kit.submitted(1, options=array))
    ends = [kit.finished(1) for _ in range(2)]
    members = [member_id(kit.task_id(1), n) for n in range(2)]

    for member, end in zip(members, ends, strict=True):
        tables.free()
        assert tables.freed(1) == [False]
        tables.add(replace(end, task=member))
    tables.free()

    assert tables.freed(1) == [True]
    record = queries.read_task(tables.db, members[0])
    assert record is not None
    assert record.spec is not None
    assert is_stdin_freed(record.spec.options)


def test_a_step_is_bounded_in_bytes_and_in_tasks(tables: Tables) -> None:
    """Writes wait for a step."""
    freeing, small = tables.writer.stdin_freeing, TaskOptions(stdin=b"x" * 5000)
    numbers = range(1, 100)
    tables.add(*(kit.submitted(n, options=small) for n in numbers))
    tables.add(*map(kit.finished, numbers))
    assert freeing.is_step_full

    freeing.free_some()
    assert sum(tables.freed(*numbers)) == stdin_freeing.TASKS_PER_STEP

    tables.free()
    assert all(tables.freed(*numbers))


def test_a_failed_commit_frees_nothing_and_is_repeated(tables: Tables) -> None:
    """A disk that is full for a while loses no step."""
    tables.add(kit.submitted(1, options=LARGE), kit.finished(1))
    tables.db.execute("BEGIN")
    tables.free()
    tables.db.execute("ROLLBACK")
    tables.writer.reload()
    assert tables.freed(1) == [False]

    tables.free()

    assert tables.freed(1) == [True]


def test_a_task_without_stdin_costs_no_index_entry(tables: Tables) -> None:
    """Most logs have only such tasks."""
    tables.add(kit.submitted(1, options=TaskOptions(name="n")), kit.finished(1))

    condition = f"> {UNFREED_BYTES_MAX}"
    indexed = [
        *tables.db.execute(
            "SELECT 1 FROM tasks INDEXED BY tasks_stdin"  # noqa: S608
            f" WHERE length(stdin) {condition} AND state > 1"
        ),
        *tables.db.execute(
            "SELECT 1 FROM log INDEXED BY log_large WHERE task_id IS NOT NULL"
        ),
    ]

    assert indexed == []
    assert tables.writer.stdin_freeing.is_step_full is False
