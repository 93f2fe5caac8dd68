"""Retries after failures: in hand, in backoff, queued, and in the log."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.task_changes import visible_state
from octaskly.core.dispatcher.task_rules import LOSSES_MAX, ROOM_WAIT_S, retry_delay_s
from octaskly.core.effects import AnnounceTaskStates, Append, LoadLive, LoadTasks
from octaskly.core.events import LiveLoaded, QueuedLoaded
from octaskly.core.log.facts import Assigned, Decided, Finished, TaskCancelled
from octaskly.core.log.merge import PRESUMED_REASONS, TaskRecord, apply_fact
from octaskly.core.model.drafts import log_id_of
from octaskly.core.model.ids import VISITOR_PREFIX, AttemptId, NodeId, StreamId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.task_options import (
    Requirements,
    Retry,
    TaskOptions,
    VisitorRule,
)
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.protocol.messages import Reattach, Results
from octaskly.core.scheduling import task_queue
from octaskly.core.scheduling.queued_task import VISITOR_RETURNS_MAX, Stage
from tests.support.builders import (
    STREAM,
    attempt,
    draft,
    epoch,
    moment,
    node_info,
    outcome,
    released,
    report,
    spec,
)
from tests.support.dispatcher import (
    FAILED,
    LATE,
    LOST_OUTCOME,
    A,
    B,
    DispatcherWithJournal,
    T,
    appended_facts,
    cancel_reply,
    cancel_request,
    deliver_results,
    dispatcher_running_t,
    dispatcher_with,
    follow_reads,
    found,
    live_attempt,
    reattach_report,
    results_message,
    send_acknowledgement,
    send_kill,
    submission,
)
from tests.support.dispatcher_with_workers import DispatcherWithWorkers

BACKOFF_S = retry_delay_s(T, 1)


def retried(*attempts: Attempt, **rule: object) -> TaskRecord:
    """Return task t, which is retried after a failure."""
    retry = Retry(**{"retries": 2, **rule})  # type: ignore[arg-type]
    task = replace(spec(), options=TaskOptions(retry=retry))
    return TaskRecord(id=task.id, spec=task, attempts=attempts)


def backing_off() -> DispatcherWithJournal:
    """Return a dispatcher whose task t has failed once on node a."""
    world = dispatcher_with(retried(), a=1)
    effects = deliver_results(
        world.dispatch, A, results_message(report(end=FAILED)), moment()
    )
    assert appended_facts(effects) == [Finished(T, attempt(), A, FAILED)]
    world.commit()
    return world


def test_a_failed_task_backs_off_and_runs_again() -> None:
    """Clients get no end, and the worker is free meanwhile."""
    world = backing_off()
    assert world.dispatch.on_time(moment(BACKOFF_S * 0.9)) == []

    effects = world.dispatch.on_time(moment(BACKOFF_S))

    assert appended_facts(effects) == [Assigned(T, attempt(2, seq=3), A)]


def test_the_node_wakes_when_the_backoff_is_over() -> None:
    """Not a quarter of a second later."""
    world = backing_off()

    assert world.timers.next_at() == moment(BACKOFF_S).mono_s


def test_the_last_failure_is_the_end() -> None:
    """With its own code and reason."""
    released = [
        Attempt(id=attempt(n), node=A, state=FAILED.state, outcome=FAILED)
        for n in (1, 2)
    ]
    world = dispatcher_with(retried(*released), a=1)
    assigned = attempt(3, seq=1)
    last = report(of=assigned, end=FAILED)

    effects = deliver_results(world.dispatch, A, results_message(last), moment())

    assert appended_facts(effects) == [Finished(T, assigned, A, FAILED, decided_term=1)]
    assert AnnounceTaskStates((T,)) in world.commit()


def test_a_task_in_backoff_is_cancelled_like_a_queued_one() -> None:
    """It never runs again."""
    world = backing_off()

    effects = world.dispatch.on_cancel_requested(cancel_request(), moment())

    assert appended_facts(effects) == [TaskCancelled(T, "ann", term=1)]
    assert cancel_reply() in world.commit()
    assert world.dispatch.on_time(moment(BACKOFF_S)) == []


def test_a_success_after_a_confirmed_cancel_is_ignored() -> None:
    """The client was told that the task is cancelled; a task ends once."""
    world = dispatcher_running_t(b=1)
    world.dispatch.on_cancel_requested(cancel_request(force=True), moment())
    assert cancel_reply() in world.commit()

    effects = deliver_results(
        world.dispatch, B, results_message(report(end=outcome())), moment()
    )

    assert appended_facts(effects) == [Finished(T, attempt(), B, outcome())]


def test_a_repeated_success_after_a_cancel_is_ignored_too() -> None:
    """The kill crossed the acknowledgement, so the worker repeats the success."""
    world = dispatcher_running_t(b=1)
    world.dispatch.on_cancel_requested(cancel_request(force=True), moment())
    world.commit()
    deliver_results(world.dispatch, B, results_message(report(end=outcome())), moment())
    world.commit()

    effects = deliver_results(
        world.dispatch, B, results_message(report(end=outcome())), moment()
    )

    assert appended_facts(effects) == [Finished(T, attempt(), B, outcome())]
    assert send_acknowledgement(B) in world.commit()


def test_a_new_task_with_a_forgotten_id_ends_as_well() -> None:
    """Its first attempt is not the other task's first attempt in this epoch."""
    world = dispatcher_with(b=1)
    nightly = draft(id="nightly")
    name = log_id_of(nightly, "tester")
    assert name is not None
    for assigned in (attempt(seq=2), attempt(seq=5)):
        world.dispatch.on_submitted(submission(nightly), moment())
        world.commit()

        end = results_message(report(name, of=assigned))
        effects = deliver_results(world.dispatch, B, end, moment())
        world.commit()

        assert appended_facts(effects) == [
            Finished(name, assigned, B, outcome(), decided_term=1)
        ]


def test_a_task_in_backoff_survives_a_new_read_of_the_queue() -> None:
    """The store shows it as queued, and it is not queued twice."""
    world = backing_off()
    world.dispatch.on_remote_entries(moment())

    assert world.dispatch.on_time(moment(BACKOFF_S * 0.9)) == []


@pytest.mark.parametrize("retries", [0, 1])
def test_a_failure_of_a_task_that_is_not_in_hand_is_decided_when_it_is_read(
    retries: int,
) -> None:
    """It is recorded and acknowledged at once."""
    world, log = dispatcher_with(a=1), retried(retries=retries)
    late = report(end=FAILED, envelope=log.spec)

    effects = deliver_results(world.dispatch, A, results_message(late), moment())
    later = world.commit()
    facts = follow_reads(world, log, [*effects, *later])

    assert later[:2] == [send_acknowledgement(A), LoadTasks(1, (T,))]
    assert facts[1:] == [
        Finished(T, attempt(), A, FAILED),
        Assigned(T, attempt(2, seq=3), A)
        if retries
        else Decided(T, TaskState.FAILED, 1, attempt(), A),
    ]


def new_dispatcher(**workers: int) -> DispatcherWithJournal:
    """Return a dispatcher with these workers that has not read its log yet."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(1, (), has_more=False), moment())
    for name, slots in workers.items():
        world.dispatch.on_worker_up(node_info(name, slots), moment())
    return world


def listing(of: AttemptId, task: TaskSpec | None) -> Reattach:
    """Return a worker's report that it runs one attempt."""
    assert task is not None
    return Reattach(((of, task),), 1, NodeState.READY)


ONCE = retried(replace(live_attempt(A), state=FAILED.state, outcome=FAILED), retries=1)
"""It failed, and may be tried once more."""


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_new_dispatcher_counts_failures_of_earlier_epochs(
    is_listed: bool,
) -> None:
    """The end was reported before the log was read: one retry is one retry."""
    world = new_dispatcher(a=1)
    if is_listed:
        world.dispatch.on_reattach(A, listing(attempt(2), ONCE.spec), moment())
    late = report(of=attempt(2), end=FAILED, envelope=ONCE.spec)
    effects = deliver_results(world.dispatch, A, results_message(late), moment())
    if is_listed:
        effects = [*effects, LoadTasks(1, (T,))]
    effects += world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())

    facts = follow_reads(world, ONCE, effects)

    assert Finished(T, attempt(2), A, FAILED) in facts
    assert facts[-1] == Decided(T, TaskState.FAILED, 1, attempt(2), A)


def test_reading_the_log_late_restores_the_failure_count() -> None:
    """A worker listed the task before; its running attempt is the last."""
    world = new_dispatcher(a=1)
    world.dispatch.on_reattach(A, listing(attempt(2), ONCE.spec), moment())
    log = replace(ONCE, attempts=(*ONCE.attempts, live_attempt(A, attempt(2))))
    world.dispatch.on_live_loaded(LiveLoaded(1, (log,)), moment())

    late = report(of=attempt(2), end=FAILED)
    effects = deliver_results(world.dispatch, A, results_message(late), moment())

    assert appended_facts(effects) == [
        Finished(T, attempt(2), A, FAILED, decided_term=1)
    ]


def test_a_repeated_failure_does_not_end_the_following_attempt() -> None:
    """The previous dispatcher recorded both and died before its acknowledgement."""
    world = new_dispatcher(a=1, b=1)
    again = report(end=FAILED, envelope=ONCE.spec)
    deliver_results(world.dispatch, A, results_message(again), moment())

    effects = world.dispatch.on_reattach(B, listing(attempt(2), ONCE.spec), moment())

    assert Assigned(T, attempt(2), B) in appended_facts(effects)
    assert send_kill(B, attempt(2)) not in effects
    log = replace(ONCE, attempts=(*ONCE.attempts, live_attempt(B, attempt(2))))
    world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())
    found(world, log)
    assert world.dispatch.outstanding(B) == 1
    late = report(of=attempt(2))
    effects = deliver_results(world.dispatch, B, results_message(late), moment())
    assert appended_facts(effects) == [
        Finished(T, attempt(2), B, outcome(), decided_term=1)
    ]


def test_a_repeated_failure_is_not_counted_twice() -> None:
    """The log has the first already; its acknowledgement was lost."""
    world = new_dispatcher(a=1, b=1)
    twice = retried(ONCE.attempts[0], retries=2)
    reports = [report(of=attempt(n), end=FAILED, envelope=twice.spec) for n in (2, 1)]

    effects = deliver_results(world.dispatch, A, results_message(*reports), moment())
    effects += world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())

    facts = follow_reads(world, twice, effects)

    assert not [fact for fact in facts if isinstance(fact, Decided)]


def test_a_late_failure_does_not_replace_the_end() -> None:
    """Another attempt followed it, and clients know the failure of that one."""
    world = dispatcher_with(a=1)
    end = replace(FAILED, exit_code=1)
    over = Attempt(attempt(2), A, AttemptState.FAILED, end, decided_term=1)
    log = retried(lost(1), over, on_failure=False, codes=(7,))
    late = report(end=replace(FAILED, exit_code=7), envelope=log.spec)

    effects = deliver_results(world.dispatch, B, results_message(late), moment())

    ended = Finished(T, attempt(), B, late.outcome)
    assert appended_facts(effects)[-1] == ended
    assert follow_reads(world, log, effects[1:]) == []
    assert apply_fact(log, ended).deciding_attempt == over


def test_a_verdict_of_an_earlier_epoch_is_repeated() -> None:
    """Acknowledgements were lost, and the log has the end.

    An epoch between the two may have cancelled the task, and its log may come later.
    """
    world = dispatcher_with(a=1)
    world.dispatch._step.epoch = epoch(3)
    over = Attempt(attempt(2), A, FAILED.state, FAILED, decided_term=1)
    log = replace(ONCE, attempts=(*ONCE.attempts, over))
    late = report(of=attempt(2), end=FAILED, envelope=ONCE.spec)

    effects = deliver_results(world.dispatch, A, results_message(late), moment())

    facts = follow_reads(world, log, effects)
    assert facts[-2:] == [
        Finished(T, attempt(2), A, FAILED),
        Decided(T, TaskState.FAILED, 3, attempt(2), A),
    ]


def test_a_listed_attempt_with_a_known_end_is_not_live() -> None:
    """The worker's repetition changes nothing, so the task would hang."""
    # Of another half, so behind ours in order.
    theirs = AttemptId(1, StreamId(99), 1, 1)
    log = retried(Attempt(id=theirs, node=B, state=FAILED.state, outcome=FAILED))
    world = dispatcher_with(log, a=1)
    ours = report(of=attempt(2), end=FAILED)
    effects = deliver_results(world.dispatch, A, results_message(ours), moment())
    assert appended_facts(effects) == [Finished(T, ours.attempt, A, FAILED)]
    world.commit()
    world.dispatch.on_worker_up(node_info("b", 1), moment())

    effects = world.dispatch.on_reattach(B, listing(theirs, log.spec), moment())

    assert send_kill(B, theirs) in effects
    assert not [e for e in effects if isinstance(e, Append)]


def test_an_older_read_does_not_revive_an_ended_attempt() -> None:
    """The store was asked before the end arrived, and says that it runs."""
    theirs = AttemptId(1, StreamId(99), 1, 1)
    world = dispatcher_with(retried(retries=5), a=1)
    world.dispatch.reconciler.trust_log()
    assert LoadLive(1, 0, 1000) in world.dispatch.on_submitted(submission(), moment())
    deliver_results(
        world.dispatch, B, results_message(report(of=theirs, end=FAILED)), moment()
    )
    deliver_results(world.dispatch, A, results_message(report(end=FAILED)), moment())
    world.commit()
    log = retried(live_attempt(A), live_attempt(B, theirs), retries=5)

    world.dispatch.on_live_loaded(LiveLoaded(1, (log,)), moment())

    assert world.dispatch._queue.tasks._tasks[T].stage is Stage.BACKING_OFF


@pytest.mark.parametrize("last", [FAILED, outcome()])
def test_failures_that_are_read_decide_nothing_while_an_attempt_runs(
    last: Outcome,
) -> None:
    """They are more than the task may have, but the listed attempt may succeed."""
    world = new_dispatcher(a=1, b=1)
    world.dispatch.on_reattach(A, listing(attempt(2), ONCE.spec), moment())
    late = report(of=attempt(3), end=FAILED, envelope=ONCE.spec)
    ended = Finished(T, attempt(3), B, FAILED)

    effects = deliver_results(world.dispatch, B, results_message(late), moment())
    assert appended_facts(effects) == [ended]

    world.commit()
    log = replace(ONCE, attempts=(*ONCE.attempts, live_attempt(A, attempt(2))))
    world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())
    assert found(world, apply_fact(log, ended)) == []

    effects = deliver_results(
        world.dispatch, A, results_message(report(of=attempt(2), end=last)), moment()
    )
    assert appended_facts(effects) == [Finished(T, attempt(2), A, last, decided_term=1)]


def test_later_failures_than_the_listed_attempt_count_too() -> None:
    """Each half of a split retried the task; now there is one dispatcher."""
    world = new_dispatcher(a=1)
    listed = AttemptId(1, StreamId(1), 1, 1)
    world.dispatch.on_reattach(A, listing(listed, ONCE.spec), moment())
    here = live_attempt(A, listed)
    log = replace(ONCE, attempts=(here, *ONCE.attempts))
    world.dispatch.on_live_loaded(LiveLoaded(1, (log,)), moment())

    late = report(of=listed, end=FAILED)
    effects = deliver_results(world.dispatch, A, results_message(late), moment())

    assert appended_facts(effects) == [Finished(T, listed, A, FAILED, decided_term=1)]


def test_a_failure_beside_a_returned_attempt_is_decided_when_it_is_read() -> None:
    """Nothing else is known of the task, not even its retry limit."""
    world = new_dispatcher(a=1, b=1)
    back = report(of=attempt(3), end=released(EndReason.RETURNED))
    effects = deliver_results(world.dispatch, A, results_message(back), moment())
    late = report(of=attempt(2), end=FAILED)

    effects += deliver_results(world.dispatch, B, results_message(late), moment())
    effects += world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())

    assert follow_reads(world, ONCE, effects) == [
        Finished(T, attempt(3), A, back.outcome),
        Finished(T, attempt(2), B, FAILED),
        Decided(T, TaskState.FAILED, 1, attempt(2), B),
    ]


def test_a_lost_attempt_of_an_at_most_once_task_is_not_rerun() -> None:
    """Its launcher was killed while no dispatcher existed, so the log has no end."""
    world = dispatcher_with(a=1)
    once = retried(retries=0, on_lost=False)
    late = report(end=LOST_OUTCOME, envelope=once.spec)

    effects = deliver_results(world.dispatch, A, results_message(late), moment())

    assert follow_reads(world, once, effects)[-2:] == [
        Finished(T, attempt(), A, LOST_OUTCOME),
        Decided(T, TaskState.FAILED, 1, attempt(), A),
    ]


def test_the_end_of_another_attempt_at_an_ended_task_asks_the_store() -> None:
    """It may be forgotten, and another half of a split may have continued it."""
    world = dispatcher_with(retried(), a=1, b=1)
    deliver_results(world.dispatch, A, results_message(), moment())
    world.commit()
    back = Reattach(((attempt(2), spec()),), 1, NodeState.READY)
    assert send_kill(B, attempt(2)) in world.dispatch.on_reattach(B, back, moment())
    gone = replace(FAILED, state=AttemptState.CANCELLED, reason=EndReason.CANCELLED)
    deliver_results(
        world.dispatch, B, results_message(report(of=attempt(2), end=gone)), moment()
    )

    effects = world.commit()

    assert LoadTasks(1, (T,)) in effects


def lost(n: int) -> Attempt:
    """Return the end of an attempt whose worker was lost."""
    outcome = Outcome(state=AttemptState.RELEASED, reason=EndReason.LOST)
    return Attempt(id=attempt(n), node=B, state=AttemptState.RELEASED, outcome=outcome)


def test_a_task_that_crashes_its_workers_is_stopped() -> None:
    """It would crash one after the other."""
    before = [lost(n) for n in range(1, LOSSES_MAX)]
    world = dispatcher_with(replace(retried(), attempts=tuple(before)), a=1)
    world.dispatch.on_time(moment(LATE))

    (end,) = appended_facts(world.dispatch.on_worker_down(A, moment(LATE)))

    assert end == Finished(
        T, attempt(LOSSES_MAX, seq=1), A, LOST_OUTCOME, decided_term=1
    )
    assert AnnounceTaskStates((T,)) in world.commit()


def test_a_task_that_waits_on_a_lost_worker_is_not_blamed() -> None:
    """Only a task in a slot can have crashed it."""
    world = dispatcher_with(a=1)
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_submitted(submission(), moment())
    world.commit()
    running, waiting = "task-008-00000000", "task-009-00000000"
    world.dispatch._pool.set_credit(A, 2)
    world.dispatch.on_submitted(submission(), moment())
    world.commit()

    ends = appended_facts(world.dispatch.on_worker_down(A, moment(LATE)))

    assert [
        (end.task, end.outcome.reason) for end in ends if isinstance(end, Finished)
    ] == [(running, EndReason.LOST), (waiting, EndReason.RETURNED)]


@pytest.mark.parametrize("on_lost", [True, False])
def test_at_most_once_ends_an_uncertain_attempt(on_lost: bool) -> None:
    """A worker that does not know the attempt may be a new process."""
    world = dispatcher_with(retried(on_lost=on_lost), a=1)
    world.dispatch.on_worker_down(A, moment())
    world.dispatch.on_worker_up(node_info("a", 1), moment())

    effects = world.dispatch.on_reattach(
        A, Reattach((), 1, NodeState.READY), moment(LATE)
    )

    end, *more = appended_facts(effects)
    assert isinstance(end, Finished)
    assert end.decided_term == (0 if on_lost else 1)
    assert bool(more) is on_lost


def test_a_task_in_backoff_is_queued_for_clients() -> None:
    """A cancel without force is enough."""
    world = backing_off()
    task = world.dispatch._queue.tasks._tasks[T]

    assert visible_state(task, TaskState.RUNNING) is TaskState.QUEUED


@pytest.mark.parametrize("reason", PRESUMED_REASONS)
def test_the_real_end_replaces_an_assumed_one(
    reason: EndReason,
) -> None:
    """A dispatcher assumed that it never started or was lost: its worker was away."""
    state = AttemptState.RELEASED
    supposed = Outcome(state=state, reason=reason)
    log = retried(replace(live_attempt(A), state=state, outcome=supposed))
    world = dispatcher_with(log)
    world.dispatch.on_worker_up(node_info("a", 1), moment())

    effects = deliver_results(world.dispatch, A, results_message(), moment())

    assert appended_facts(effects) == [
        Finished(T, attempt(), A, outcome(), decided_term=1)
    ]


def test_failures_in_the_queue_count_for_a_listed_task() -> None:
    """The queue was read before the task was listed, so all of it is known."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_worker_up(node_info("a", 1), moment())
    world.dispatch.on_reattach(A, listing(attempt(2), ONCE.spec), moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(1, (ONCE,), has_more=False), moment())

    late = report(of=attempt(2), end=FAILED)
    effects = deliver_results(world.dispatch, A, results_message(late), moment())

    assert appended_facts(effects) == [
        Finished(T, attempt(2), A, FAILED, decided_term=1)
    ]


def test_a_task_known_by_its_ends_only_is_not_known_by_the_queue() -> None:
    """The reported end does not include the retry limit."""
    world = dispatcher_with(a=1, b=1)
    world.dispatch.on_remote_entries(moment())
    back = report(end=released(EndReason.RETURNED))
    deliver_results(world.dispatch, A, results_message(back), moment())
    world.dispatch.on_queued_loaded(
        QueuedLoaded(1, (retried(),), has_more=False), moment()
    )

    late = report(of=attempt(2), end=FAILED, envelope=retried().spec)
    effects = deliver_results(world.dispatch, B, results_message(late), moment())

    assert appended_facts(effects) == [Finished(T, attempt(2), B, FAILED)]


def test_a_task_stays_in_hand_while_an_end_of_it_waits_for_the_log() -> None:
    """An earlier end is durable by then, and is dropped."""
    world = dispatcher_with(a=1, b=1)
    first = report(end=FAILED, envelope=retried().spec)
    deliver_results(world.dispatch, A, results_message(first), moment())
    world.dispatch.on_live_loaded(LiveLoaded(1, (retried(live_attempt(A)),)), moment())
    world.dispatch.on_remote_entries(moment())
    world.commit()
    world.dispatch.on_reattach(B, listing(attempt(2), retried().spec), moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(1, (), has_more=False), moment())
    deliver_results(world.dispatch, B, results_message(report(of=attempt(2))), moment())
    world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())

    log = retried(*ONCE.attempts)
    effects = world.dispatch.on_queued_loaded(
        QueuedLoaded(1, (log,), has_more=False), moment()
    )

    assert not [effect for effect in effects if isinstance(effect, Append)]


def test_a_loss_reported_beside_another_attempt_counts() -> None:
    """No dispatcher counted that loss before; the third loss is the last."""
    world = new_dispatcher(a=1, b=1)
    world.dispatch.on_reattach(B, listing(attempt(3), retried().spec), moment())
    log = retried(lost(1), live_attempt(B, attempt(3)))
    world.dispatch.on_live_loaded(LiveLoaded(1, (log,)), moment())
    gone = report(of=attempt(2), end=LOST_OUTCOME)
    deliver_results(world.dispatch, A, results_message(gone), moment())
    world.dispatch.on_time(moment(LATE))

    (end,) = appended_facts(world.dispatch.on_worker_down(B, moment(LATE)))

    assert end == Finished(T, attempt(3), B, LOST_OUTCOME, decided_term=1)


@pytest.mark.parametrize("state", [AttemptState.OK, AttemptState.CANCELLED])
def test_a_listed_attempt_with_an_unacknowledged_end_ends_once_more(
    state: AttemptState,
) -> None:
    """A new link lists results as running if they exceed one message."""
    world = DispatcherWithJournal(is_strict=True)
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_worker_up(node_info("a", 1), moment())
    late = report(end=outcome(state), envelope=spec())
    deliver_results(world.dispatch, A, results_message(late), moment())
    log = replace(retried(), attempts=(replace(live_attempt(A), state=state),))
    world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())
    found(world, log)
    world.dispatch.on_queued_loaded(QueuedLoaded(1, (), has_more=False), moment())
    world.commit()
    # Only the last ones are remembered.
    world.dispatch._queue._recent_finals.clear()
    world.dispatch.on_worker_down(A, moment())
    world.dispatch.on_worker_up(node_info("a", 1), moment())
    world.dispatch.on_reattach(A, listing(attempt(), spec()), moment())
    world.commit()
    assert world.dispatch.outstanding(A) == 1

    deliver_results(world.dispatch, A, results_message(late), moment())

    assert world.dispatch.outstanding(A) == 0


def lacking_in_the_adopt_window() -> DispatcherWithJournal:
    """Return a dispatcher whose only worker lacks an input; others may yet come."""
    world = dispatcher_with(retried(), a=1)
    lack = released(EndReason.INPUTS, "data.csv")
    deliver_results(world.dispatch, A, results_message(report(end=lack)), moment())
    world.commit()
    return world


def test_a_task_that_is_read_after_the_adopt_window_fails_without_its_input() -> None:
    """It was not in hand as the window closed."""
    world = lacking_in_the_adopt_window()
    lack = released(EndReason.INPUTS, "data.csv")
    ended = replace(live_attempt(A), state=lack.state, outcome=lack)
    world.dispatch.on_remote_entries(moment())
    world.dispatch.on_time(moment(LATE))

    log = (retried(ended),)
    effects = world.dispatch.on_queued_loaded(
        QueuedLoaded(1, log, has_more=False), moment(LATE)
    )

    assert appended_facts(effects) == [Decided(T, TaskState.FAILED, 1, attempt(), A)]


def test_a_task_fails_when_late_workers_lack_its_input() -> None:
    """No worker was attached as the window closed."""
    world = lacking_in_the_adopt_window()
    world.dispatch.on_worker_down(A, moment())
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_worker_up(node_info("a", 1), moment(LATE))

    back = Reattach((), 1, NodeState.READY)
    effects = world.dispatch.on_reattach(A, back, moment(LATE))

    assert appended_facts(effects) == [Decided(T, TaskState.FAILED, 1, attempt(), A)]


def test_a_task_is_offered_again_to_a_worker_that_had_no_room() -> None:
    """After a wait, although another one is paused and has never refused it."""
    mesh = DispatcherWithWorkers(node_info("a", 1), node_info("b", 1))
    mesh.ask(draft("one"))
    first = mesh.where("one")
    other = NodeId("b" if first == "a" else "a")
    paused = Results((), 0, NodeState.PAUSED)
    deliver_results(mesh.dispatch, other, paused, moment())

    assert mesh.end("one", how=released(EndReason.ROOM, "space")) == []
    waits = mesh.dispatch.on_time(moment(ROOM_WAIT_S - 1.0))
    again = mesh.dispatch.on_time(moment(ROOM_WAIT_S))

    assert (mesh.note(waits), mesh.note(again)) == ([], ["one"])
    assert mesh.where("one") == first


def test_tasks_that_wait_for_room_shorten_no_backoff(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are in the queue, whose length has a bound of its own."""
    monkeypatch.setattr(task_queue, "BACKING_OFF_MAX", 1)
    mesh = DispatcherWithWorkers(node_info("a", 1), node_info("b", 1))
    mesh.ask(draft("full"))
    other = NodeId("b" if mesh.where("full") == "a" else "a")
    paused = Results((), 0, NodeState.PAUSED)
    deliver_results(mesh.dispatch, other, paused, moment())
    mesh.end("full", how=released(EndReason.ROOM, "space"))

    failing = replace(draft("failing"), options=TaskOptions(retry=Retry(retries=1)))

    assert mesh.ask(failing) == ["failing"]
    assert mesh.end("failing", how=FAILED) == []


@pytest.mark.parametrize(
    ("reason", "follows"), [(EndReason.INPUTS, "failed"), (EndReason.ROOM, "waits")]
)
def test_no_visitor_is_awaited_for_a_task_that_visitors_returned_too_often(
    reason: EndReason, follows: str
) -> None:
    """It goes to no visitor, so none can refuse it."""
    visitor = NodeId(VISITOR_PREFIX + "v" * 16)
    returned = tuple(
        replace(live_attempt(visitor, attempt(n)), state=end.state, outcome=end)
        for n, end in enumerate(
            [released(EndReason.RETURNED)] * VISITOR_RETURNS_MAX, start=1
        )
    )
    asked = Requirements(visitors=VisitorRule.ALLOWED)
    task = replace(spec(), options=TaskOptions(requires=asked))
    world = dispatcher_with(TaskRecord(T, task, attempts=returned))
    for name, leaves_ms in ((A, None), (visitor, 10**15)):
        info = replace(node_info(name, 1), leaves_ms=leaves_ms)
        world.dispatch.on_worker_up(info, moment())
        world.dispatch.on_reattach(*reattach_report(name, 1), moment())
    world.commit()
    world.dispatch.on_time(moment(LATE))
    world.commit(LATE)
    given = world.dispatch._queue.tasks.get(T)
    assert given is not None
    assert given.node == A

    ended = report(of=given.attempt, end=released(reason, "data.csv"))
    effects = deliver_results(
        world.dispatch, A, results_message(ended, credit=1), moment(LATE)
    )

    decided = any(isinstance(fact, Decided) for fact in appended_facts(effects))
    assert ("failed" if decided else "waits") == follows
    assert decided or given.stage is Stage.BACKING_OFF
