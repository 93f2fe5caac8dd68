"""What is handed in under a chosen name may be known already, or be another task."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Effect, LoadLive
from octaskly.core.events import LiveLoaded
from octaskly.core.log.facts import Finished, Submitted, TaskCancelled
from octaskly.core.model.drafts import log_id_of
from octaskly.core.model.ids import TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.settings import Limits
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
    dispatcher_with,
    results_message,
    submission,
)

NIGHTLY = draft(id="nightly")


def name() -> TaskId:
    """Return the id of the task whose name is chosen here."""
    known = log_id_of(NIGHTLY, "tester")
    assert known is not None
    return known


ENVELOPE = replace(spec(name()), command=NIGHTLY.command)


def led(limits: Limits | None = None) -> DispatcherWithJournal:
    """Return a reign with room on node b, in which node a is about to tell."""
    world = dispatcher_with(limits=limits, b=1)
    world.dispatch.on_worker_up(node_info("a", 1), moment())
    return world


def hand_in(world: DispatcherWithJournal) -> list[Effect]:
    """Hand the task in, and let that be durable."""
    effects = world.dispatch.on_submitted(submission(NIGHTLY), moment())
    world.commit()
    return effects


def test_what_a_worker_was_found_to_run_is_not_begun_by_who_hands_it_in_again() -> None:
    """Whoever did had no answer of the dispatcher before, whose log is gone."""
    world = led()
    back = Reattach(((attempt(), ENVELOPE),), 1, NodeState.READY)
    world.dispatch.on_reattach(A, back, moment())

    effects = hand_in(world)

    assert [type(fact) for fact in appended_facts(effects)] == [Submitted]
    world.dispatch.on_results(A, results_message(report(name())), moment())
    world.dispatch.on_live_loaded(LiveLoaded(()), moment())
    assert world.dispatch.outstanding(A) == 0


def test_what_has_ended_is_not_begun_while_the_store_is_asked_about_it() -> None:
    """Its worker told how, and this reign knows nothing of the task."""
    world = led()
    late = report(name(), envelope=ENVELOPE)
    assert world.dispatch.on_results(A, results_message(late), moment()) == [
        LoadLive((name(),))
    ]

    effects = hand_in(world)

    assert [type(fact) for fact in appended_facts(effects)] == [Submitted]
    effects = world.dispatch.on_live_loaded(LiveLoaded(()), moment())
    assert appended_facts(effects)[-1] == Finished(name(), attempt(), A, outcome())


def test_who_has_the_name_of_what_ended_here_and_was_forgotten_can_be_cancelled() -> (
    None
):
    """It waits in the store, as more is in hand than that holds."""
    world = led(Limits(window_tasks=1))
    hand_in(world)
    world.dispatch.on_results(B, results_message(report(name())), moment())
    world.commit()
    world.dispatch.on_submitted(submission(draft(), draft(), draft()), moment())
    world.commit()
    hand_in(world)

    effects = world.dispatch.on_cancel_requested(cancel_request(task=name()), moment())

    assert appended_facts(effects) == [TaskCancelled(name(), "ann")]
