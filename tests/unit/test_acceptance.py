"""Drafts become tasks with names, places in the queue, and no twins."""

from __future__ import annotations

from octaskly.core.acceptance import PRIORITY_BAND, Acceptance
from octaskly.core.facts import PRIORITY_SHIFT
from octaskly.core.model import Limits, TaskSpec
from octaskly.core.taskqueue import TaskQueue
from tests.builders import START_MS, draft, journal, moment
from tests.desk import submit


def acceptance(sequence: int = 7) -> Acceptance:
    """Return the acceptance of a mesh that has used so many numbers."""
    return Acceptance(journal(), TaskQueue(Limits()), sequence)


def names(specs: list[TaskSpec]) -> list[str]:
    """Return the ids."""
    return [spec.id for spec in specs]


def test_tasks_are_numbered_on_from_the_last_number_used() -> None:
    """The suffix keeps two halves of a split apart."""
    specs, fresh = acceptance().specs(submit(draft(), draft()), moment())

    assert names(specs) == ["task-008-00000000", "task-009-00000001"]
    assert fresh == specs


def test_a_higher_number_of_another_node_is_counted_on_from() -> None:
    """After a failover numbers go on, and a lower one changes nothing."""
    made = acceptance()
    made.raise_sequence(41)
    made.raise_sequence(12)

    assert names(made.specs(submit(), moment())[0]) == ["task-042-00000000"]


def test_tasks_stand_in_the_queue_in_the_order_of_the_request() -> None:
    """All in one band of priority, at the time of this node."""
    specs, _ = acceptance().specs(submit(draft(), draft()), moment())

    assert specs[0].ord < specs[1].ord
    assert {spec.ord >> PRIORITY_SHIFT for spec in specs} == {PRIORITY_BAND}
    assert {spec.created_ms for spec in specs} == {START_MS}


def test_an_id_that_a_client_chose_uses_no_number() -> None:
    """But it is the task's name."""
    specs, _ = acceptance().specs(submit(draft(id="mine")), moment())

    assert names(specs) == ["mine"]


def test_a_chosen_id_that_is_under_way_is_the_same_task() -> None:
    """Two requests with one key make one task, also before its commit."""
    made = acceptance()
    first, _ = made.specs(submit(draft(id="mine")), moment())
    again, fresh = made.specs(submit(draft(id="mine")), moment(1))

    assert (again, fresh) == (first, [])


def test_a_chosen_id_is_forgotten_once_it_is_durable() -> None:
    """From then on the store answers for it: memory is bounded by what is in hand."""
    made = acceptance()
    specs, _ = made.specs(submit(draft(id="mine")), moment())
    made.forget(specs)

    assert len(made.specs(submit(draft(id="mine")), moment())[1]) == 1
