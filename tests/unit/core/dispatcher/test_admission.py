"""Drafts become tasks with names, places in the queue, and no twins."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.admission import Admission
from octaskly.core.model.drafts import PRIORITY_BAND, TaskDraft, log_id_of, rerun_draft
from octaskly.core.model.ids import TaskId, task_name
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import After, Retry, TaskOptions
from octaskly.core.model.tasks import PRIORITY_SHIFT, TaskSpec
from octaskly.core.scheduling.task_queue import TaskQueue
from tests.support.builders import START_MS, draft, journal, moment
from tests.support.dispatcher import submission


def acceptance(sequence: int = 7) -> Admission:
    """Return the acceptance of a mesh that has used so many numbers."""
    return Admission(journal(), TaskQueue(Limits()), sequence)


def names(specs: list[TaskSpec]) -> list[str]:
    """Return the ids."""
    return [spec.id for spec in specs]


def test_tasks_are_numbered_on_from_the_last_number_used() -> None:
    """The suffix keeps two halves of a split apart."""
    specs, fresh = acceptance().specs_from_drafts(
        submission(draft(), draft()), moment()
    )

    assert names(specs) == ["task-008-00000000", "task-009-00000001"]
    assert fresh == specs


def test_a_higher_number_of_another_node_is_counted_on_from() -> None:
    """After a failover numbers go on, and a lower one changes nothing."""
    made = acceptance()
    made.raise_sequence(41)
    made.raise_sequence(12)

    assert names(made.specs_from_drafts(submission(), moment())[0]) == [
        "task-042-00000000"
    ]


def test_tasks_stand_in_the_queue_in_the_order_of_the_request() -> None:
    """All in one band of priority, at the time of this node."""
    specs, _ = acceptance().specs_from_drafts(submission(draft(), draft()), moment())

    assert specs[0].ord < specs[1].ord
    assert {spec.ord >> PRIORITY_SHIFT for spec in specs} == {PRIORITY_BAND}
    assert {spec.created_ms for spec in specs} == {START_MS}


def test_a_number_is_given_once_also_where_it_is_asked_for_beforehand() -> None:
    """Whoever submits tasks with the names that it got may repeat that."""
    made = acceptance()

    assert made.mint_task_id("0badcafe") == "task-008-0badcafe"
    assert names(made.specs_from_drafts(submission(), moment())[0]) == [
        "task-009-00000000"
    ]


def test_a_number_that_comes_with_a_task_is_counted_on_from() -> None:
    """An earlier dispatcher gave it; a number that follows from a key is none."""
    made = acceptance()
    made.specs_from_drafts(
        submission(draft(id="task-011-0badcafe"), draft(id=f"task-{7:012}-0badcafe")),
        moment(),
    )

    assert names(made.specs_from_drafts(submission(), moment())[0]) == [
        "task-012-00000000"
    ]


def test_an_id_that_a_client_chose_uses_no_number() -> None:
    """But it is the task's name."""
    specs, _ = acceptance().specs_from_drafts(
        submission(draft(id="mine"), draft()), moment()
    )

    assert [task_name(spec.id) for spec in specs] == ["mine", "task-008-00000001"]


def test_a_name_for_two_different_tasks_makes_two() -> None:
    """Two halves of a split cannot know what the other one calls so."""
    one, _ = acceptance().specs_from_drafts(submission(draft(id="mine")), moment())
    other, _ = acceptance().specs_from_drafts(
        submission(draft("other", id="mine")), moment(1)
    )

    assert one[0].id != other[0].id


def test_a_name_for_one_task_makes_one_on_both_sides_of_a_split() -> None:
    """Wherever and whenever the same is asked for."""
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
def test_whatever_is_asked_for_tells_tasks_of_one_name_apart(
    change: dict[str, Any],
) -> None:
    """So does who asks: a client cancels its own tasks only."""
    asked = TaskDraft(command="a", id=TaskId("mine"))

    assert log_id_of(replace(asked, **change), "ana") != log_id_of(asked, "ana")
    assert log_id_of(asked, "bob") != log_id_of(asked, "ana")


def test_a_chosen_id_that_is_under_way_is_the_same_task() -> None:
    """Two requests with one key make one task, also before its commit."""
    made = acceptance()
    first, _ = made.specs_from_drafts(submission(draft(id="mine")), moment())
    again, fresh = made.specs_from_drafts(submission(draft(id="mine")), moment(1))

    assert (again, fresh) == (first, [])


def test_a_repetition_asks_for_all_but_the_parents() -> None:
    """They may have failed for good, or be forgotten: it would never begin."""
    parents = After(tasks=(TaskId("p"),))
    asked = TaskOptions(name="n", after=parents, retry=Retry(retries=2))
    spec = TaskSpec(id=TaskId("t"), command="c", timeout_s=5, options=asked)

    wish = rerun_draft(spec)

    assert (wish.command, wish.timeout_s) == ("c", 5)
    assert wish.options == replace(asked, after=None, retry_of="t")


def test_a_chosen_id_is_forgotten_once_it_is_durable() -> None:
    """From then on the store answers for it: memory is bounded by what is in hand."""
    made = acceptance()
    specs, _ = made.specs_from_drafts(submission(draft(id="mine")), moment())
    made.drop_durable_specs(specs)

    assert len(made.specs_from_drafts(submission(draft(id="mine")), moment())[1]) == 1
