"""The queue of the writer: what is due, and two threads that share it."""

from __future__ import annotations

import threading

from octaskly.core.effects import Append
from octaskly.core.log.facts import Assigned, Entry, Fact, Submitted
from octaskly.core.model.ids import AttemptId, NodeId
from octaskly.core.model.tasks import TaskSpec
from octaskly.store.writing.commit_queue import BATCH_ENTRIES_MAX, CommitQueue
from tests.contract import log_kit as kit

SUBMITTED = Submitted(TaskSpec(kit.task_id(1), "true"))
ASSIGNED = Assigned(kit.task_id(1), AttemptId(1, kit.STREAM, 1, 1), NodeId("a"))


def write(number: int, *facts: Fact) -> Append:
    """Return a write of some facts."""
    return Append(
        number, tuple(Entry(kit.STREAM, at, at, fact) for at, fact in enumerate(facts))
    )


def test_facts_that_nobody_waits_for_are_due_with_the_next_urgent_item() -> None:
    """A short task then takes two commits, not three."""
    queue = CommitQueue()
    assigned, submitted = write(1, ASSIGNED), write(2, SUBMITTED, ASSIGNED)

    assert not queue.add_item(assigned)
    assert (queue.is_due, queue.urgent_items, queue.entries) == (False, 0, 1)
    assert queue.add_item(submitted)
    assert (queue.is_due, queue.urgent_items, queue.entries) == (True, 1, 3)
    assert queue.take_batch() == ([assigned, submitted], 3)
    assert (queue.is_due, queue.urgent_items, queue.entries) == (False, 0, 0)


def test_items_added_after_a_deadline_are_not_due() -> None:
    """They have a deadline of their own."""
    queue = CommitQueue()
    queue.add_item(write(1, ASSIGNED))

    queue.set_due()

    assert queue.is_due
    queue.take_batch()
    queue.add_item(write(2, ASSIGNED))
    assert not queue.is_due


def test_items_beyond_a_full_batch_stay_due() -> None:
    """Nothing else may be added that would make them due."""
    queue = CommitQueue()
    many = write(1, *[SUBMITTED] * BATCH_ENTRIES_MAX)
    last = write(2, SUBMITTED)
    queue.add_item(many)
    queue.add_item(last)

    assert queue.take_batch().items == [many]
    assert queue.is_due
    assert queue.take_batch().items == [last]


def test_threads_pass_all_items_in_order() -> None:
    """The thread that takes never finds the queue empty while an item is due."""
    queue, numbers = CommitQueue(), range(1, 5001)
    taken: list[int] = []

    def take() -> None:
        while len(taken) < len(numbers):
            if queue.is_due:
                items = queue.take_batch().items
                assert items
                taken.extend(item.number for item in items if isinstance(item, Append))

    thread = threading.Thread(target=take)
    thread.start()
    for number in numbers:
        queue.add_item(write(number, SUBMITTED))
    thread.join(60)

    assert taken == list(numbers)
    assert (queue.is_due, queue.urgent_items, queue.entries) == (False, 0, 0)
