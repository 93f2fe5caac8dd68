"""The worker: each attempt starts once, ends on order, and little is prefetched."""

from __future__ import annotations

from functools import reduce

import pytest
from msgspec.structs import replace

from octaskly.core.effects import (
    Effect,
    Freeze,
    ReleaseWaiting,
    Send,
    Spool,
    Start,
    Stop,
)
from octaskly.core.events import HeldBlobsChanged
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import TaskId
from octaskly.core.model.nodes import (
    NO_HOLD,
    Availability,
    AvailabilityCommand,
    NodeState,
    OperatorHold,
    Pressure,
)
from octaskly.core.model.task_options import Retry, TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.model.tree_sizes import HELD_MAX
from octaskly.core.protocol.messages import (
    Assign,
    HeldBlobs,
    Probe,
    ProbeOk,
    Reattach,
    Results,
    ResultsOk,
)
from octaskly.core.worker.worker import Worker
from tests.support.builders import (
    attempt,
    epoch,
    moment,
    node_id,
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
    """The simplest case."""
    worker = attached_worker()

    effects = worker.on_assign(D, assignment(), moment())

    assert effects == [Start(((attempt(), spec()),))]
    assert worker.running == 1
    assert not worker.is_idle


def test_an_assignment_of_a_deposed_dispatcher_is_refused() -> None:
    """Rule I7: a node that has seen an epoch starts nothing for an older one."""
    worker = detached_worker()
    worker.attach(E, epoch(2, "e"), moment())

    effects = worker.on_assign(D, assignment(term=1), moment())

    stale = report(end=released(EndReason.STALE), envelope=spec())
    assert effects == [send_results(stale, credit=0)]
    assert worker.is_idle


def test_orders_that_waited_during_a_pause_are_refused_and_reported() -> None:
    """The dispatcher may have given the task to another worker meanwhile."""
    worker = attached_worker()

    probes = worker.on_pause(moment(5.0))
    effects = worker.on_assign(D, assignment(), moment(5.0))

    assert probes == [Send(D, (Probe(D, 105.0),))]
    stale = report(end=released(EndReason.STALE))
    assert effects == [send_results(stale)]
    assert worker.running == 0


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(("d", 104.9, 1), id="before the end of the pause"),
        pytest.param(("d", 105.0, 2), id="of another epoch"),
        pytest.param(("e", 105.0, 1), id="of another node"),
    ],
)
def test_only_a_fresh_answer_of_the_dispatcher_ends_the_fence(
    late: tuple[str, float, int],
) -> None:
    """Answers wait in the socket as well, and a deposed dispatcher answers, too."""
    sender, sent_s, term = late
    worker = attached_worker()
    worker.on_pause(moment(5.0))

    worker.on_probe_ok(node_id(sender), ProbeOk(D, sent_s, 0.0, epoch(term, "d")))

    assert worker.probe_if_fenced(moment(5.3)) == [Send(D, (Probe(D, 105.3),))]


def test_worker_takes_orders_again_once_its_dispatcher_answers() -> None:
    """Then the dispatcher still has it as a worker."""
    worker = attached_worker()
    worker.on_pause(moment(5.0))

    worker.on_probe_ok(D, ProbeOk(D, 105.0, 0.0, epoch(1, "d")))

    assert worker.probe_if_fenced(moment(5.3)) == []
    effects = worker.on_assign(D, assignment(), moment(5.3))
    assert effects == [Start(((attempt(), spec()),))]


def test_worker_that_attaches_after_a_pause_takes_orders() -> None:
    """Nothing sent on a new link is older than the link."""
    worker = attached_worker()
    worker.on_pause(moment(5.0))

    worker.attach(D, epoch(1, "d"), moment(5.1))

    effects = worker.on_assign(D, assignment(), moment(5.2))
    assert effects == [Start(((attempt(), spec()),))]


def test_of_two_dispatchers_in_one_term_the_smaller_node_is_deposed() -> None:
    """Epochs are compared by term, then node."""
    worker = detached_worker()
    worker.attach(E, epoch(1, "e"), moment())

    effects = worker.on_assign(D, assignment(term=1, sender="d"), moment())

    stale = report(end=released(EndReason.STALE), envelope=spec())
    assert effects == [send_results(stale, credit=0)]


def test_a_known_attempt_is_not_started_twice() -> None:
    """A repeated message is harmless."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())

    assert worker.on_assign(D, assignment(), moment()) == []


def test_an_ended_attempt_is_reported_again_but_not_rerun() -> None:
    """A late repetition of the message must not run the command twice."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())
    worker.on_attempts_ended(attempts_ended(), moment())

    effects = worker.on_assign(D, assignment(), moment())

    assert effects == [send_results(report(envelope=spec()))]


def orders_after(*orders: AvailabilityCommand) -> OperatorHold:
    """Return the orders in force after these."""
    return reduce(OperatorHold.after_command, orders, NO_HOLD)


def set_orders(worker: Worker, *orders: AvailabilityCommand) -> list[Effect]:
    """Put exactly these orders into force."""
    return worker.set_availability(Availability(orders_after(*orders)), moment())


def report_of(state: NodeState, credit: int) -> Send:
    """Return the report of the node's state to the dispatcher."""
    return Send(D, (Results((), credit, state),))


def test_a_drained_worker_returns_waiting_and_new_attempts() -> None:
    """Its running attempts finish."""
    worker = attached_worker()
    drained = set_orders(worker, AvailabilityCommand.DRAIN)

    effects = worker.on_assign(D, assignment(), moment())

    assert drained == [ReleaseWaiting(), report_of(NodeState.DRAINING, 0)]
    assert effects == [send_results(report(end=released(EndReason.DRAINING)), credit=0)]
    assert worker.availability.state is NodeState.DRAINING


def test_an_attempt_that_is_to_end_only_if_it_waits_is_recalled() -> None:
    """If it has begun, it goes on, and its end counts."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())
    order = replace(
        kill_message(KEY, (TaskId("unknown"), attempt())), spares_begun=True
    )

    assert worker.on_kill(order, moment()) == [Stop((KEY,), EndReason.RETURNED)]
    effects = worker.on_attempts_ended(attempts_ended(report()), moment())

    assert effects[-1] == send_results(report())


@pytest.mark.parametrize(
    ("retry_on", "has_begun", "reason"),
    [
        (Retry(), True, EndReason.DRAINING),
        (Retry(on_lost=False), True, EndReason.LOST),
        (Retry(on_lost=False), False, EndReason.DRAINING),
    ],
)
def test_a_stopped_attempt_that_must_not_run_twice_is_lost(
    retry_on: Retry, has_begun: bool, reason: EndReason
) -> None:
    """It may have done half of its work; only one that never began is repeated."""
    worker = attached_worker()
    task = replace(spec(), options=TaskOptions(retry=retry_on))
    worker.on_assign(D, Assign(epoch(1, "d"), ((attempt(), task),)), moment())
    worker.stop_attempts()
    end = replace(
        released(EndReason.DRAINING, "ended by signal 15"),
        started_ms=5 if has_begun else None,
    )

    effects = worker.on_attempts_ended(attempts_ended(report(end=end)), moment())

    said = [m for each in effects if isinstance(each, Send) for m in each.messages]
    (reported,) = [r.outcome for m in said if isinstance(m, Results) for r in m.reports]
    assert (reported.state, reported.reason) == (AttemptState.RELEASED, reason)


def test_the_end_of_draining_is_reported_at_once() -> None:
    """The dispatcher would send it no tasks otherwise."""
    worker = attached_worker()
    set_orders(worker, AvailabilityCommand.DRAIN)

    assert set_orders(worker) == [report_of(NodeState.READY, 2)]
    assert set_orders(worker) == []


def test_a_paused_worker_freezes_running_attempts() -> None:
    """It returns waiting ones, which other nodes can run."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())

    paused = set_orders(worker, AvailabilityCommand.PAUSE)
    unpaused = set_orders(worker)

    assert paused == [
        Freeze(is_frozen=True),
        ReleaseWaiting(),
        report_of(NodeState.PAUSED, 0),
    ]
    assert unpaused == [Freeze(is_frozen=False), report_of(NodeState.READY, 2)]


@pytest.mark.parametrize(
    "word", [AvailabilityCommand.RESUME, AvailabilityCommand.UNPAUSE]
)
def test_a_resumed_worker_is_neither_paused_nor_drained(
    word: AvailabilityCommand,
) -> None:
    """An operator need not know which of both had been ordered."""
    worker = attached_worker()
    set_orders(worker, AvailabilityCommand.DRAIN)
    set_orders(worker, AvailabilityCommand.DRAIN, AvailabilityCommand.PAUSE)

    effects = set_orders(
        worker, AvailabilityCommand.DRAIN, AvailabilityCommand.PAUSE, word
    )

    assert effects == [Freeze(is_frozen=False), report_of(NodeState.READY, 2)]


def test_a_leaving_worker_accepts_no_tasks_whatever_the_orders() -> None:
    """The operator may resume it while it stops."""
    worker = attached_worker()
    worker.set_availability(Availability(is_stopping=True), moment())

    stance = Availability(
        is_stopping=True,
        hold=orders_after(AvailabilityCommand.DRAIN, AvailabilityCommand.RESUME),
    )
    assert worker.set_availability(stance, moment()) == []
    assert worker.availability.state is NodeState.DRAINING


@pytest.mark.parametrize(
    "short", [Availability(is_disk_short=True), Availability(is_memory_short=True)]
)
def test_a_worker_with_a_shortage_accepts_no_tasks(short: Availability) -> None:
    """Running attempts go on, waiting ones return; it recovers alone (B33, B41)."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())

    at_shortage = worker.set_availability(short, moment())
    refused = worker.on_assign(D, assignment("u"), moment())

    assert at_shortage == [ReleaseWaiting(), report_of(NodeState.READY, 0)]
    assert refused == [
        send_results(report("u", end=released(EndReason.DRAINING)), credit=0),
    ]
    assert worker.set_availability(short, moment()) == []
    assert worker.set_availability(Availability(), moment()) == [
        report_of(NodeState.READY, 2)
    ]


def test_a_memory_shortage_ends_with_a_margin() -> None:
    """Without the margin a node would accept and refuse tasks by turns."""
    seen = [10.0, 25.0, 10.0, 4.0, 10.0]
    stance, short = Availability(), []
    for percent in seen:
        stance = stance.with_stalled_percent(percent)
        short.append(stance.is_memory_short)

    assert short == [False, True, True, False, False]


def test_a_worker_without_a_launcher_accepts_no_tasks() -> None:
    """It reports this reason before any shortage."""
    failing = Availability().with_launchers(are_failing=True)

    assert (failing.pressure, failing.takes_work) == (Pressure.LAUNCHERS, False)
    assert failing.with_disk(is_failing=True).pressure is Pressure.DISK
    assert failing.with_launchers(are_failing=False) == Availability()


def test_a_worker_starts_with_its_stored_orders_and_reports_them() -> None:
    """A machine that was drained for a repair may start many times."""
    worker = Worker(
        settings("a", slots=2),
        (),
        TimerHeap(),
        Outbox(),
        orders_after(AvailabilityCommand.DRAIN),
    )

    effects = worker.attach(D, epoch(1, "d"), moment())

    assert effects == [Send(D, (Reattach((), 0, NodeState.DRAINING),))]


def test_a_killed_attempt_never_counts_as_success() -> None:
    """It may have exited by itself in the same instant."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())

    stopped = worker.on_kill(kill_message(), moment())
    effects = worker.on_attempts_ended(attempts_ended(), moment())

    end = replace(CANCELLED, exit_code=0)
    assert stopped == [Stop((KEY,))]
    assert effects == [
        Spool((report(end=end, envelope=spec()),)),
        send_results(report(end=end)),
    ]


def test_a_kill_of_an_unknown_attempt_is_answered_as_cancelled() -> None:
    """It will never run here, so that is a final answer."""
    worker = attached_worker()

    effects = worker.on_kill(kill_message(), moment())

    end = Outcome(
        state=AttemptState.CANCELLED,
        reason=EndReason.CANCELLED,
        ended_ms=moment().wall_ms,
    )
    assert effects == [Spool((report(end=end),)), send_results(report(end=end))]


def test_a_kill_after_the_end_is_answered_with_the_result() -> None:
    """A reported result does not change."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())
    worker.on_attempts_ended(attempts_ended(), moment())

    assert worker.on_kill(kill_message(), moment()) == [
        send_results(report(envelope=spec()))
    ]


def test_a_kill_of_a_deposed_dispatcher_is_ignored() -> None:
    """Its successor decides which attempts are void."""
    worker = detached_worker()
    worker.attach(E, epoch(2, "e"), moment())
    worker.on_assign(E, assignment(term=2, sender="e"), moment())

    assert worker.on_kill(kill_message(term=1), moment()) == []


def run_one(worker: Worker, name: str, duration_ms: int, at: float = 0.0) -> None:
    """Run one task from dispatch to acknowledgement."""
    worker.on_assign(D, assignment(name), moment(at))
    done = report(name, end=outcome(duration_ms=duration_ms))
    worker.on_attempts_ended(attempts_ended(done), moment(at))
    worker.on_results_ok(ResultsOk(((TaskId(name), attempt()),)), moment(at))


def test_a_worker_requests_only_its_slots_until_it_knows_its_tasks() -> None:
    """Prefetch is for short tasks only."""
    assert attached_worker(slots=3).credit == 3


def test_short_tasks_allow_prefetch() -> None:
    """About 50 ms of work may wait."""
    worker = attached_worker(slots=2)
    run_one(worker, "t", 2)

    assert worker.credit == 2 + 50


def test_very_short_tasks_allow_twice_the_prefetch() -> None:
    """Their ends are reported in larger batches, and slots must not wait for those."""
    worker = attached_worker(slots=2)
    run_one(worker, "t", 1)

    assert worker.credit == 2 + 200


def test_prefetch_is_bounded() -> None:
    """Tasks of less than a millisecond would allow any number."""
    worker = attached_worker(slots=8)
    run_one(worker, "t", 0)

    assert worker.credit == 8 + 256


def test_a_long_task_ends_prefetch_at_once() -> None:
    """The next ones may be long, too."""
    worker = attached_worker()
    run_one(worker, "t", 2)
    run_one(worker, "u", 2000)

    assert worker.credit == 2


def test_a_long_running_task_ends_prefetch_before_its_end() -> None:
    """No short task should be sent behind it."""
    worker = attached_worker()
    run_one(worker, "t", 2)
    worker.on_assign(D, assignment("u"), moment(1.0))

    worker.on_time(moment(1.04))
    assert worker.credit == 52
    worker.on_time(moment(1.06))
    assert worker.credit == 2


def test_waiting_time_does_not_count_as_running_time() -> None:
    """An attempt's time starts when a slot becomes free."""
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
    """Each is handled separately."""
    worker = attached_worker(slots=1)
    worker.on_assign(D, assignment("t", "u"), moment())
    worker.on_attempts_ended(attempts_ended(), moment())

    effects = worker.on_assign(D, assignment("t", "u", "v"), moment())

    assert order_of(effects) == ["Start", "Send"]
    assert effects[0] == Start(((attempt(), spec("v")),))


def test_large_blobs_are_reported_as_they_change() -> None:
    """At once to the dispatcher, and all of them to the next one."""
    worker = detached_worker()
    early = worker.on_held_blobs_changed(HeldBlobsChanged((1, 2)))
    attached = worker.attach(D, epoch(1, "d"), moment())

    changed = worker.on_held_blobs_changed(HeldBlobsChanged((3, 1), (2,)))
    worker.detach(moment())
    again = worker.attach(E, epoch(2, "e"), moment())

    reattach = Reattach((), 2, NodeState.READY)
    assert early == []
    assert attached == [Send(D, (reattach, HeldBlobs((1, 2))))]
    assert changed == [Send(D, (HeldBlobs((3, 1), (2,)),))]
    assert again == [Send(E, (reattach, HeldBlobs((3, 1))))]


def test_reported_blobs_are_bounded() -> None:
    """The oldest are withdrawn, so both sides know the same ones."""
    worker = attached_worker()
    worker.on_held_blobs_changed(HeldBlobsChanged(tuple(range(HELD_MAX))))

    effects = worker.on_held_blobs_changed(HeldBlobsChanged((HELD_MAX, HELD_MAX + 1)))
    worker.on_held_blobs_changed(HeldBlobsChanged(tuple(range(3 * HELD_MAX))))
    again = worker.attach(E, epoch(2, "e"), moment())

    assert effects == [Send(D, (HeldBlobs((HELD_MAX, HELD_MAX + 1), (0, 1)),))]
    held = HeldBlobs(tuple(range(2 * HELD_MAX, 3 * HELD_MAX)))
    assert again == [Send(E, (Reattach((), 2, NodeState.READY), held))]


def test_the_holders_of_blobs_reach_the_runner() -> None:
    """As the dispatcher knows them."""
    worker = attached_worker()
    holders = ((7, (E,)),)

    effects = worker.on_assign(D, replace(assignment(), holders=holders), moment())

    assert effects == [Start(((attempt(), spec()),), holders)]
