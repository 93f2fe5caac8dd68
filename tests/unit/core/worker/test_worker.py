"""A worker starts each attempt once, ends it when told, and asks for little ahead."""

from __future__ import annotations

from functools import reduce

import pytest

from octaskly.core.effects import (
    Effect,
    Freeze,
    ReleaseWaiting,
    Send,
    Spool,
    Start,
    Stop,
)
from octaskly.core.model.consequences import Outbox
from octaskly.core.model.ids import TaskId
from octaskly.core.model.nodes import (
    NO_HOLD,
    Availability,
    AvailabilityCommand,
    NodeState,
    OperatorHold,
    Pressure,
)
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.protocol.messages import Reattach, Results, ResultsOk
from octaskly.core.worker.worker import Worker
from tests.support.builders import (
    attempt,
    epoch,
    moment,
    outcome,
    released,
    report,
    settings,
    spec,
)
from tests.support.worker import (
    CANCELLED,
    KEY,
    D,
    E,
    assignment,
    attached_worker,
    attempts_ended,
    detached_worker,
    kill_message,
    send_results,
)


def test_a_dispatched_attempt_is_started() -> None:
    """That is what workers are for."""
    worker = attached_worker()

    effects = worker.on_assign(D, assignment(), moment())

    assert effects == [Start(((attempt(), spec()),))]
    assert worker.running == 1
    assert not worker.is_idle


def test_work_of_a_deposed_dispatcher_is_refused_and_never_started() -> None:
    """Rule I7: who has seen an epoch starts nothing for an older one."""
    worker = detached_worker()
    worker.attach(E, epoch(2, "e"), moment())

    effects = worker.on_assign(D, assignment(term=1), moment())

    stale = report(end=released(EndReason.STALE), envelope=spec())
    assert effects == [send_results(stale, credit=0)]
    assert worker.is_idle


def test_of_two_dispatchers_in_one_term_the_smaller_node_is_deposed() -> None:
    """Epochs are compared by term, then node."""
    worker = detached_worker()
    worker.attach(E, epoch(1, "e"), moment())

    effects = worker.on_assign(D, assignment(term=1, sender="d"), moment())

    stale = report(end=released(EndReason.STALE), envelope=spec())
    assert effects == [send_results(stale, credit=0)]


def test_an_attempt_that_is_here_is_not_started_twice() -> None:
    """A repeated message is harmless."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())

    assert worker.on_assign(D, assignment(), moment()) == []


def test_an_attempt_that_has_ended_is_reported_again_not_run_again() -> None:
    """A dispatch that was repeated late must not run the command twice."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())
    worker.on_attempts_ended(attempts_ended(), moment())

    effects = worker.on_assign(D, assignment(), moment())

    assert effects == [send_results(report(envelope=spec()))]


def steered(*orders: AvailabilityCommand) -> OperatorHold:
    """Return what holds after these orders."""
    return reduce(OperatorHold.after_command, orders, NO_HOLD)


def steer(worker: Worker, *orders: AvailabilityCommand) -> list[Effect]:
    """Have nothing hold but these orders."""
    return worker.set_availability(Availability(steered(*orders)), moment())


def news(state: NodeState, credit: int) -> Send:
    """Return how the dispatcher hears that this node is steered."""
    return Send(D, (Results((), credit, state),))


def test_a_drained_worker_hands_back_what_waits_and_what_comes() -> None:
    """It ends what runs, and takes no more."""
    worker = attached_worker()
    drained = steer(worker, AvailabilityCommand.DRAIN)

    effects = worker.on_assign(D, assignment(), moment())

    assert drained == [ReleaseWaiting(), news(NodeState.DRAINING, 0)]
    assert effects == [send_results(report(end=released(EndReason.DRAINING)), credit=0)]
    assert worker.availability.state is NodeState.DRAINING


def test_the_end_of_draining_is_told_at_once() -> None:
    """Nobody would give it work otherwise."""
    worker = attached_worker()
    steer(worker, AvailabilityCommand.DRAIN)

    assert steer(worker) == [news(NodeState.READY, 2)]
    assert steer(worker) == []


def test_a_paused_worker_freezes_what_runs() -> None:
    """And hands back what waits, which other nodes can run."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())

    paused = steer(worker, AvailabilityCommand.PAUSE)
    unpaused = steer(worker)

    assert paused == [
        Freeze(is_frozen=True),
        ReleaseWaiting(),
        news(NodeState.PAUSED, 0),
    ]
    assert unpaused == [Freeze(is_frozen=False), news(NodeState.READY, 2)]


def test_a_worker_that_was_drained_and_paused_is_drained_when_it_thaws() -> None:
    """Each order is taken back by its own opposite."""
    worker = attached_worker()
    steer(worker, AvailabilityCommand.DRAIN)
    steer(worker, AvailabilityCommand.DRAIN, AvailabilityCommand.PAUSE)

    effects = steer(
        worker,
        AvailabilityCommand.DRAIN,
        AvailabilityCommand.PAUSE,
        AvailabilityCommand.UNPAUSE,
    )

    assert effects == [Freeze(is_frozen=False), news(NodeState.DRAINING, 0)]


def test_a_leaving_worker_takes_no_work_whatever_it_is_told() -> None:
    """The operator may resume it while it stops."""
    worker = attached_worker()
    worker.set_availability(Availability(is_stopping=True), moment())

    stance = Availability(
        is_stopping=True,
        hold=steered(AvailabilityCommand.DRAIN, AvailabilityCommand.RESUME),
    )
    assert worker.set_availability(stance, moment()) == []
    assert worker.availability.state is NodeState.DRAINING


@pytest.mark.parametrize(
    "short", [Availability(is_disk_short=True), Availability(is_memory_short=True)]
)
def test_a_worker_that_lacks_something_takes_no_work(short: Availability) -> None:
    """What runs goes on, what waits is handed back; it recovers alone (B33, B41)."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())

    begun = worker.set_availability(short, moment())
    refused = worker.on_assign(D, assignment("u"), moment())

    assert begun == [ReleaseWaiting(), news(NodeState.READY, 0)]
    assert refused == [
        send_results(report("u", end=released(EndReason.DRAINING)), credit=0),
    ]
    assert worker.set_availability(short, moment()) == []
    assert worker.set_availability(Availability(), moment()) == [
        news(NodeState.READY, 2)
    ]


def test_memory_is_short_until_it_has_eased() -> None:
    """Else a node would take and refuse work by turns."""
    seen = [10.0, 25.0, 10.0, 4.0, 10.0]
    stance, short = Availability(), []
    for percent in seen:
        stance = stance.with_stalled_percent(percent)
        short.append(stance.is_memory_short)

    assert short == [False, True, True, False, False]


def test_a_node_on_which_no_launcher_starts_takes_no_work() -> None:
    """It says why, and so does one that is short of something else first."""
    failing = Availability().with_launchers(are_failing=True)

    assert (failing.pressure, failing.takes_work) == (Pressure.LAUNCHERS, False)
    assert failing.with_disk(is_failing=True).pressure is Pressure.DISK
    assert failing.with_launchers(are_failing=False) == Availability()


def test_a_worker_starts_as_it_was_held_and_says_so() -> None:
    """A machine that was drained for a repair may start many times."""
    worker = Worker(
        settings("a", slots=2),
        (),
        TimerHeap(),
        Outbox(),
        steered(AvailabilityCommand.DRAIN),
    )

    effects = worker.attach(D, epoch(1, "d"), moment())

    assert effects == [Send(D, (Reattach((), 0, NodeState.DRAINING),))]


def test_a_killed_attempt_never_counts_as_success() -> None:
    """It may have exited by itself in the same instant."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())

    stopped = worker.on_kill(kill_message(), moment())
    effects = worker.on_attempts_ended(attempts_ended(), moment())

    assert stopped == [Stop((KEY,))]
    assert effects == [
        Spool((report(end=CANCELLED, envelope=spec()),)),
        send_results(report(end=CANCELLED)),
    ]


def test_a_kill_of_an_unknown_attempt_is_answered_as_cancelled() -> None:
    """It will never run here: that is an answer, too."""
    worker = attached_worker()

    effects = worker.on_kill(kill_message(), moment())

    end = Outcome(
        state=AttemptState.CANCELLED,
        reason=EndReason.CANCELLED,
        ended_ms=moment().wall_ms,
    )
    assert effects == [Spool((report(end=end),)), send_results(report(end=end))]


def test_a_kill_after_the_end_is_answered_with_the_result() -> None:
    """What was reported stays reported."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())
    worker.on_attempts_ended(attempts_ended(), moment())

    assert worker.on_kill(kill_message(), moment()) == [
        send_results(report(envelope=spec()))
    ]


def test_a_kill_of_a_deposed_dispatcher_is_ignored() -> None:
    """Its successor decides what is void."""
    worker = detached_worker()
    worker.attach(E, epoch(2, "e"), moment())
    worker.on_assign(E, assignment(term=2, sender="e"), moment())

    assert worker.on_kill(kill_message(term=1), moment()) == []


def run_one(worker: Worker, name: str, duration_ms: int, at: float = 0.0) -> None:
    """Let one task run from dispatch to acknowledgement."""
    worker.on_assign(D, assignment(name), moment(at))
    done = report(name, end=outcome(duration_ms=duration_ms))
    worker.on_attempts_ended(attempts_ended(done), moment(at))
    worker.on_results_ok(ResultsOk(((TaskId(name), attempt()),)), moment(at))


def test_a_worker_asks_for_its_slots_until_it_knows_its_tasks() -> None:
    """Work ahead is for short tasks only."""
    assert attached_worker(slots=3).credit == 3


def test_short_tasks_earn_work_ahead() -> None:
    """About 50 ms of work may wait."""
    worker = attached_worker(slots=2)
    run_one(worker, "t", 2)

    assert worker.credit == 2 + 50


def test_brief_tasks_earn_twice_as_much_time_ahead() -> None:
    """Their ends are told in larger batches, and slots must not wait for those."""
    worker = attached_worker(slots=2)
    run_one(worker, "t", 1)

    assert worker.credit == 2 + 200


def test_work_ahead_is_bounded() -> None:
    """Tasks of less than a millisecond would ask for any number."""
    worker = attached_worker(slots=8)
    run_one(worker, "t", 0)

    assert worker.credit == 8 + 256


def test_a_long_task_ends_work_ahead_at_once() -> None:
    """The next ones may be long, too."""
    worker = attached_worker()
    run_one(worker, "t", 2)
    run_one(worker, "u", 2000)

    assert worker.credit == 2


def test_a_task_that_runs_long_ends_work_ahead_before_it_ends() -> None:
    """Nothing short should be sent behind it."""
    worker = attached_worker()
    run_one(worker, "t", 2)
    worker.on_assign(D, assignment("u"), moment(1.0))

    worker.on_time(moment(1.04))
    assert worker.credit == 52
    worker.on_time(moment(1.06))
    assert worker.credit == 2


def test_a_waiting_attempt_is_not_taken_for_a_long_one() -> None:
    """Its time counts from when a slot became free."""
    worker = attached_worker(slots=1)
    run_one(worker, "t", 2)
    worker.on_assign(D, assignment("u", "v", "w"), moment(1.0))
    worker.on_attempts_ended(
        attempts_ended(report("v", end=released(EndReason.RETURNED))), moment(1.0)
    )

    worker.on_attempts_ended(
        attempts_ended(report("u", end=outcome(duration_ms=2))), moment(1.06)
    )

    assert worker.running == 1
    assert worker.credit > 1


def order_of(effects: list[Effect]) -> list[str]:
    """Return the kinds of effects."""
    return [type(effect).__name__ for effect in effects]


def test_one_message_may_bring_new_known_and_ended_attempts() -> None:
    """Each is treated for itself."""
    worker = attached_worker(slots=1)
    worker.on_assign(D, assignment("t", "u"), moment())
    worker.on_attempts_ended(attempts_ended(), moment())

    effects = worker.on_assign(D, assignment("t", "u", "v"), moment())

    assert order_of(effects) == ["Start", "Send"]
    assert effects[0] == Start(((attempt(), spec("v")),))
