"""Submissions with a client's id, which may be known or belong to another task."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Effect
from octaskly.core.events import LiveLoaded
from octaskly.core.log.facts import Decided, Finished, Submitted, TaskCancelled
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.drafts import log_id_of
from octaskly.core.model.ids import TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import Reattach
from tests.support.builders import (
    attempt,
    draft,
    moment,
    node_info,
    outcome,
    report,
    spec,
)
from tests.support.dispatcher import (
    A,
    B,
    DispatcherWithJournal,
    appended_facts,
    cancel_request,
    deliver_results,
    dispatcher_with,
    follow_reads,
    results_message,
    submission,
)

NIGHTLY = draft(id="nightly")


def name() -> TaskId:
    """Return the id of the task with the name chosen here."""
    known = log_id_of(NIGHTLY, "tester")
    assert known is not None
    return known


ENVELOPE = replace(spec(name()), command=NIGHTLY.command)


def led(limits: Limits | None = None) -> DispatcherWithJournal:
    """Return a dispatcher with room on node b; node a is about to report its tasks."""
    world = dispatcher_with(limits=limits, b=1)
    world.dispatch.on_worker_up(node_info("a", 1), moment())
    return world


def submit(world: DispatcherWithJournal) -> list[Effect]:
    """Submit the task and make it durable."""
    effects = world.dispatch.on_submitted(submission(NIGHTLY), moment())
    world.commit()
    return effects


def test_a_resubmission_does_not_start_a_task_that_a_worker_runs() -> None:
    """The previous dispatcher gave no answer, and its log is gone."""
    world = led()
    back = Reattach(((attempt(), ENVELOPE),), 1, NodeState.READY)
    world.dispatch.on_reattach(A, back, moment())

    effects = submit(world)

    assert [type(fact) for fact in appended_facts(effects)] == [Submitted]
    deliver_results(world.dispatch, A, results_message(report(name())), moment())
    world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())
    assert world.dispatch.outstanding(A) == 0


def test_a_resubmission_of_an_ended_task_waits_for_the_store() -> None:
    """Its worker reported the end, and this dispatcher does not know the task."""
    world = led()
    late = report(name(), envelope=ENVELOPE)
    effects = deliver_results(world.dispatch, A, results_message(late), moment())

    effects += world.dispatch.on_submitted(submission(NIGHTLY), moment())
    effects += world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())

    first, ended, again, *rest = follow_reads(world, TaskRecord(name()), effects)
    assert (first, ended) == (
        Submitted(ENVELOPE),
        Finished(name(), attempt(), A, outcome()),
    )
    assert isinstance(again, Submitted)
    assert rest == [Decided(name(), TaskState.COMPLETED, 1, attempt(), A)]


def test_a_new_task_with_a_forgotten_id_can_be_cancelled() -> None:
    """It waits in the store, because the memory is full."""
    world = led(Limits(window_tasks=1))
    submit(world)
    end = results_message(report(name(), of=attempt(seq=2)))
    deliver_results(world.dispatch, B, end, moment())
    world.commit()
    world.dispatch.on_submitted(submission(draft(), draft(), draft()), moment())
    world.commit()
    submit(world)

    effects = world.dispatch.on_cancel_requested(cancel_request(task=name()), moment())

    assert appended_facts(effects) == [TaskCancelled(name(), "ann", term=1)]
