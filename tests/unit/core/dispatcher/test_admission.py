"""Admission: ids, queue order, and duplicate submissions."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.admission import Admission
from octaskly.core.model.drafts import TaskDraft, log_id_of, rerun_draft
from octaskly.core.model.ids import TaskId, task_name
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import After, Retry, TaskOptions
from octaskly.core.model.tasks import PRIORITY_BAND, PRIORITY_SHIFT, TaskSpec
from octaskly.core.scheduling.task_queue import TaskQueue
from octaskly.core.scheduling.worker_pool import WorkerPool
from tests.support.builders import START_MS, draft, journal, moment
from tests.support.dispatcher import submission


def acceptance(sequence: int = 7) -> Admission:
    """Return the admission of a mesh that has used this many sequence numbers."""
    return Admission(journal(), TaskQueue(Limits()), WorkerPool(0), sequence)


def names(specs: list[TaskSpec]) -> list[str]:
    """Return the ids."""
    return [spec.id for spec in specs]


def test_tasks_are_numbered_after_the_last_used_number() -> None:
    """The suffix keeps the two halves of a split apart."""
    specs, fresh = acceptance().specs_from_drafts(
        submission(draft(), draft()), moment()
    )

    assert names(specs) == ["task-008-00000000", "task-009-00000001"]
    assert fresh == specs


def test_numbering_continues_after_a_higher_number_of_another_node() -> None:
    """After a failover numbers continue; a lower one changes nothing."""
    made = acceptance()
    made.raise_sequence(41)
    made.raise_sequence(12)

    assert names(made.specs_from_drafts(submission(), moment())[0]) == [
        "task-042-00000000"
    ]


def test_tasks_keep_the_order_of_their_request() -> None:
    """All have one priority band and this node's time."""
    specs, _ = acceptance().specs_from_drafts(submission(draft(), draft()), moment())

    assert specs[0].ord < specs[1].ord
    assert {spec.ord >> PRIORITY_SHIFT for spec in specs} == {PRIORITY_BAND}
    assert {spec.created_ms for spec in specs} == {START_MS}


def test_a_reserved_number_is_used_once() -> None:
    """A client that submits tasks with reserved ids may repeat the request."""
    made = acceptance()

    assert made.mint_task_id("0badcafe") == "task-008-0badcafe"
    assert names(made.specs_from_drafts(submission(), moment())[0]) == [
        "task-009-00000000"
    ]


def test_numbering_continues_after_the_number_of_a_submitted_id() -> None:
    """An earlier dispatcher assigned it; ids from idempotency keys do not count."""
    made = acceptance()
    made.specs_from_drafts(
        submission(draft(id="task-011-0badcafe"), draft(id=f"task-{7:012}-0badcafe")),
        moment(),
    )

    assert names(made.specs_from_drafts(submission(), moment())[0]) == [
        "task-012-00000000"
    ]


def test_an_id_chosen_by_a_client_uses_no_number() -> None:
    """But it is the task's name."""
    specs, _ = acceptance().specs_from_drafts(
        submission(draft(id="mine"), draft()), moment()
    )

    assert [task_name(spec.id) for spec in specs] == ["mine", "task-008-00000001"]


def test_one_name_for_two_different_tasks_gives_two_ids() -> None:
    """Two halves of a split do not know each other's tasks of that name."""
    one, _ = acceptance().specs_from_drafts(submission(draft(id="mine")), moment())
    other, _ = acceptance().specs_from_drafts(
        submission(draft("other", id="mine")), moment(1)
    )

    assert one[0].id != other[0].id


def test_one_name_for_one_task_gives_the_same_id_on_both_sides_of_a_split() -> None:
    """The place and time of the request do not matter."""
    one, _ = acceptance().specs_from_drafts(submission(draft(id="mine")), moment())
    other, _ = acceptance(99).specs_from_drafts(submission(draft(id="mine")), moment(5))

    assert one[0].id == other[0].id


@pytest.mark.parametrize(
    "change",
    [
        {"command": "b"},
        {"timeout_s": 7},
        {"inputs": ("b",)},
        {"outputs": ("b",)},
        {"id": TaskId("other")},
    ],
)
def test_any_difference_in_the_submission_gives_another_id(
    change: dict[str, Any],
) -> None:
    """The caller counts, too: a client cancels only its own tasks."""
    asked = TaskDraft(command="a", id=TaskId("mine"))

    assert log_id_of(replace(asked, **change), "ana") != log_id_of(asked, "ana")
    assert log_id_of(asked, "bob") != log_id_of(asked, "ana")


def test_a_repeated_id_in_flight_is_the_same_task() -> None:
    """Two requests with one key make one task, even before its commit."""
    made = acceptance()
    first, _ = made.specs_from_drafts(submission(draft(id="mine")), moment())
    again, fresh = made.specs_from_drafts(submission(draft(id="mine")), moment(1))

    assert (again, fresh) == (first, [])


def test_a_repetition_omits_the_parents() -> None:
    """Parents may have failed or be forgotten; the task would never start."""
    parents = After(tasks=(TaskId("p"),))
    asked = TaskOptions(name="n", after=parents, retry=Retry(retries=2))
    spec = TaskSpec(id=TaskId("t"), command="c", timeout_s=5, options=asked)

    draft = rerun_draft(spec)

    assert (draft.command, draft.timeout_s) == ("c", 5)
    assert draft.options == replace(asked, after=None, retry_of="t")


def test_a_chosen_id_is_forgotten_once_it_is_durable() -> None:
    """Afterwards the store knows it; memory is bounded by tasks in hand."""
    made = acceptance()
    specs, _ = made.specs_from_drafts(submission(draft(id="mine")), moment())
    made.drop_durable_specs(specs)

    assert len(made.specs_from_drafts(submission(draft(id="mine")), moment())[1]) == 1
