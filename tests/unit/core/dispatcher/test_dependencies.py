"""Tasks with parents: the dispatcher asks the store whether they may start."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.dependencies import UNBLOCKED_MAX
from octaskly.core.dispatcher.reconciliation import CATCH_UP_S
from octaskly.core.effects import (
    Append,
    LoadQueued,
    LoadTasks,
    LoadUnblocked,
    Send,
)
from octaskly.core.events import (
    ReprioritizeRequested,
    UnblockedLoaded,
    UnblockedTask,
)
from octaskly.core.log.facts import Reprioritized
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import ArrayProgress
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.task_options import After, ArraySpec, TaskOptions
from octaskly.core.protocol.messages import Reattach
from tests.support.builders import STREAM, attempt, draft, epoch, moment, report, spec
from tests.support.dispatcher import (
    A,
    B,
    DispatcherWithJournal,
    T,
    appended_facts,
    cancel_request,
    deliver_results,
    dispatcher_with,
    ended_attempt,
    found,
    results_message,
    submission,
)


def late() -> TaskDraft:
    """Return a task with a parent."""
    return replace(draft(), options=TaskOptions(after=After(tasks=("p",))))


def test_a_dependent_task_that_arrives_during_a_read_is_read_next() -> None:
    """The answer does not know it, so it does not say that no task waits."""
    world = dispatcher_with()
    world.dispatch.on_submitted(submission(late()), moment())

    answer = UnblockedLoaded(2, (), has_more=False)
    effects = world.dispatch.on_store_answer(answer, moment())
    effects += world.commit()

    assert LoadUnblocked(3, UNBLOCKED_MAX) in effects


def test_the_store_is_not_asked_without_dependent_tasks() -> None:
    """Each end of a task would cost a read."""
    world = dispatcher_with()
    world.dispatch.on_store_answer(UnblockedLoaded(2, (), has_more=False), moment())
    effects = world.dispatch.on_submitted(submission(), moment()) + world.commit()

    assert not [effect for effect in effects if isinstance(effect, LoadUnblocked)]


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_task_that_is_cancelled_during_a_read_does_not_run(
    *, is_durable: bool
) -> None:
    """The read is older than the cancel, or than its write."""
    world = dispatcher_with(b=1)
    world.dispatch.on_store_answer(UnblockedLoaded(2, (), has_more=False), moment())
    world.dispatch.on_submitted(submission(late()), moment())
    assert LoadUnblocked(3, UNBLOCKED_MAX) in world.commit()
    waits = replace(spec("t"), options=late().options)

    world.dispatch.on_cancel_requested(cancel_request(), moment())
    effects = world.commit() if is_durable else []
    answer = UnblockedLoaded(
        3, (UnblockedTask(TaskRecord(T, waits), None),), has_more=False
    )
    effects += world.dispatch.on_store_answer(answer, moment()) + world.commit()

    assert not [effect for effect in effects if isinstance(effect, Send)]


def test_a_task_whose_priority_changes_during_a_read_gets_its_new_place() -> None:
    """That read misses the change, and the one that follows it misses the release."""
    world = dispatcher_with()
    world.dispatch.on_store_answer(UnblockedLoaded(2, (), has_more=False), moment())
    world.dispatch.on_submitted(submission(late()), moment())
    assert LoadUnblocked(3, UNBLOCKED_MAX) in world.commit()
    waits = TaskRecord(T, replace(spec("t"), options=late().options))
    change = ReprioritizeRequested(7, waits, 5)
    (fact,) = appended_facts(world.dispatch.on_reprioritize_requested(change, moment()))
    assert isinstance(fact, Reprioritized)
    number = world.journal.last_number

    answer = UnblockedLoaded(3, (UnblockedTask(waits, None),), has_more=False)
    world.dispatch.on_store_answer(answer, moment())
    world.journal.on_persisted(number)
    assert LoadTasks(1, (T,)) in world.journal.run_deferred(moment())
    moved = replace(waits, reprioritized=fact)
    found(world, moved)
    world.commit()
    again = UnblockedLoaded(4, (UnblockedTask(moved, None),), has_more=False)
    world.dispatch.on_store_answer(again, moment())
    world.commit()

    (queued,) = world.dispatch._queue.tasks.waiting
    assert queued.ord == moved.ord


def test_a_task_that_ends_during_a_read_does_not_run() -> None:
    """A worker that started it in the previous epoch reports the end."""
    world = dispatcher_with(b=1)
    world.dispatch.on_store_answer(UnblockedLoaded(2, (), has_more=False), moment())
    world.dispatch.on_submitted(submission(late()), moment())
    assert LoadUnblocked(3, UNBLOCKED_MAX) in world.commit()
    waits = TaskRecord(T, replace(spec("t"), options=late().options))
    deliver_results(
        world.dispatch, B, results_message(report(envelope=waits.spec)), moment()
    )
    world.commit()
    found(world, replace(waits, attempts=(ended_attempt(B),)))
    world.commit()

    answer = UnblockedLoaded(3, (UnblockedTask(waits, None),), has_more=False)
    effects = world.dispatch.on_store_answer(answer, moment()) + world.commit()

    assert not [e for e in effects if isinstance(e, Append | Send)]


def test_an_answer_that_is_durable_after_its_epoch_begins_no_task() -> None:
    """A queue that another dispatcher has now would be read, and decided on."""
    world = dispatcher_with(b=1)
    world.dispatch.on_store_answer(UnblockedLoaded(2, (), has_more=False), moment())
    world.dispatch.on_submitted(submission(late()), moment())
    assert LoadUnblocked(3, UNBLOCKED_MAX) in world.commit()
    waits = TaskRecord(T, replace(spec("t"), options=late().options))
    answer = UnblockedLoaded(3, (UnblockedTask(waits, None),), has_more=False)
    world.dispatch.on_store_answer(answer, moment())

    world.dispatch.stop_dispatching()
    effects = world.commit()

    assert not [e for e in effects if isinstance(e, LoadQueued | Append)]


def test_an_array_that_may_start_is_read_with_the_state_of_its_members() -> None:
    """Some were cancelled while it waited."""
    world = dispatcher_with(b=3)
    world.dispatch.on_store_answer(UnblockedLoaded(2, (), has_more=False), moment())
    world.dispatch.on_submitted(submission(late()), moment())
    world.commit()
    options = TaskOptions(after=After(tasks=("p",)), array=ArraySpec(count=2))
    waits = replace(spec("t"), options=options)
    record = TaskRecord(T, waits, progress=ArrayProgress(queued=1, cancelled=1))

    answer = UnblockedLoaded(3, (UnblockedTask(record, None),), has_more=False)
    effects = world.dispatch.on_store_answer(answer, moment()) + world.commit()

    assert LoadTasks(1, (T,)) in effects
    assert not [effect for effect in effects if isinstance(effect, Send)]


def test_a_running_task_is_not_cancelled_for_its_parent() -> None:
    """Its first dispatcher saw the parent succeed; here the ended parent is retried."""
    world = dispatcher_with(a=1)
    world.dispatch.on_store_answer(UnblockedLoaded(2, (), has_more=False), moment())
    world.dispatch.on_submitted(submission(late()), moment())
    world.commit()
    waits = TaskRecord(T, replace(spec("t"), options=late().options))
    assert waits.spec is not None
    back = Reattach(((attempt(), waits.spec),), 1, NodeState.READY)
    world.dispatch.on_reattach(A, back, moment())

    answer = UnblockedLoaded(3, (UnblockedTask(waits, TaskId("p")),), has_more=False)
    effects = world.dispatch.on_store_answer(answer, moment()) + world.commit()

    assert not [effect for effect in effects if isinstance(effect, Append)]


def test_the_store_is_not_asked_during_a_queue_read() -> None:
    """The read may show that a dependent task has run, and how it ended."""
    world = DispatcherWithJournal()
    world.dispatch.reconciler.await_logs(moment())

    assert world.dispatch.start_dispatching(epoch(), STREAM, moment()) == []

    assert LoadUnblocked(2, UNBLOCKED_MAX) in world.dispatch.on_time(moment(CATCH_UP_S))
