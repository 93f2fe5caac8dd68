"""Tasks that come after others: the store is asked for each that came."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.dependencies import UNBLOCKED_MAX
from octaskly.core.dispatcher.reconciliation import CATCH_UP_S
from octaskly.core.effects import Append, LoadLive, LoadUnblocked, Send
from octaskly.core.events import LiveLoaded, UnblockedLoaded, UnblockedTask
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
    cancel_request,
    dispatcher_with,
    results_message,
    submission,
)


def late() -> TaskDraft:
    """Return a task that comes after another one."""
    return replace(draft(), options=TaskOptions(after=After(tasks=("p",))))


def test_a_late_task_that_comes_while_the_store_answers_is_asked_for() -> None:
    """The answer does not know it, so it does not say that nobody waits."""
    world = dispatcher_with()
    world.dispatch.on_submitted(submission(late()), moment())

    answer = UnblockedLoaded(2, (), has_more=False)
    effects = world.dispatch.on_store_answer(answer, moment())
    effects += world.commit()

    assert LoadUnblocked(3, UNBLOCKED_MAX) in effects


def test_nobody_is_asked_about_where_no_task_is_late() -> None:
    """Each end of a task would cost a read."""
    world = dispatcher_with()
    world.dispatch.on_store_answer(UnblockedLoaded(2, (), has_more=False), moment())
    effects = world.dispatch.on_submitted(submission(), moment()) + world.commit()

    assert not [effect for effect in effects if isinstance(effect, LoadUnblocked)]


@pytest.mark.parametrize("is_durable", [True, False])
def test_who_is_cancelled_while_the_store_answers_does_not_run(
    *, is_durable: bool
) -> None:
    """The store was asked before it knew that, or before it could write it."""
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


def test_who_ends_while_the_store_answers_does_not_run() -> None:
    """A worker tells so that began it in the reign before."""
    world = dispatcher_with(b=1)
    world.dispatch.on_store_answer(UnblockedLoaded(2, (), has_more=False), moment())
    world.dispatch.on_submitted(submission(late()), moment())
    assert LoadUnblocked(3, UNBLOCKED_MAX) in world.commit()
    waits = TaskRecord(T, replace(spec("t"), options=late().options))
    world.dispatch.on_results(B, results_message(report(envelope=waits.spec)), moment())
    world.dispatch.on_live_loaded(LiveLoaded((waits,)), moment())
    world.commit()

    answer = UnblockedLoaded(3, (UnblockedTask(waits, None),), has_more=False)
    effects = world.dispatch.on_store_answer(answer, moment()) + world.commit()

    assert not [e for e in effects if isinstance(e, Append | Send)]


def test_an_array_that_may_begin_is_read_with_what_is_known_of_its_members() -> None:
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

    assert LoadLive((T,)) in effects
    assert not [effect for effect in effects if isinstance(effect, Send)]


def test_who_was_found_to_run_is_not_cancelled_for_a_task_before_it() -> None:
    """Its reign had seen that one end well. It would be tried again, though over."""
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


def test_nobody_is_asked_about_while_others_are_read() -> None:
    """They may hold that a late task has run, and how it ended."""
    world = DispatcherWithJournal()
    world.dispatch.reconciler.delay_read(moment())

    assert world.dispatch.start_dispatching(epoch(), STREAM, moment()) == []

    assert LoadUnblocked(2, UNBLOCKED_MAX) in world.dispatch.on_time(moment(CATCH_UP_S))
