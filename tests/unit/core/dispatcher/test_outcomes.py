"""A failure that is tried again: in hand, at rest, queued, and in the log."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.cancellation import visible_state
from octaskly.core.effects import AnnounceTaskStates, Append, LoadLive, Send
from octaskly.core.events import LiveLoaded, QueuedLoaded
from octaskly.core.log.facts import Assigned, Finished, TaskCancelled
from octaskly.core.log.merge import PRESUMED_REASONS, TaskRecord
from octaskly.core.model.drafts import log_id_of
from octaskly.core.model.ids import AttemptId, StreamId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.task_options import Retry, TaskOptions
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.protocol.messages import Reattach, ResultsOk
from octaskly.core.scheduling.queued_task import Stage
from octaskly.core.scheduling.retry_policy import LOSSES_MAX, retry_delay_s
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
    dispatcher_running_t,
    dispatcher_with,
    live_attempt,
    results_message,
    send_acknowledgement,
    send_kill,
    submission,
)

AGAIN = replace(FAILED, state=AttemptState.RELEASED)
REST_S = retry_delay_s(T, 1)


def stubborn(*attempts: Attempt, **rule: object) -> TaskRecord:
    """Return task t that is tried again after a failure."""
    retry = Retry(**{"retries": 2, **rule})  # type: ignore[arg-type]
    task = replace(spec(), options=TaskOptions(retry=retry))
    return TaskRecord(id=task.id, spec=task, attempts=attempts)


def resting() -> DispatcherWithJournal:
    """Return a reign in which task t has failed once on node a."""
    world = dispatcher_with(stubborn(), a=1)
    effects = world.dispatch.on_results(
        A, results_message(report(end=FAILED)), moment()
    )
    assert appended_facts(effects) == [Finished(T, attempt(), A, AGAIN)]
    world.commit()
    return world


def test_a_failed_task_rests_and_runs_again() -> None:
    """Nobody hears of an end, and the worker is free meanwhile."""
    world = resting()
    assert world.dispatch.on_time(moment(REST_S * 0.9)) == []

    effects = world.dispatch.on_time(moment(REST_S))

    assert appended_facts(effects) == [Assigned(T, attempt(2), A)]


def test_the_node_is_woken_when_the_rest_is_over() -> None:
    """Not a quarter of a second later."""
    world = resting()

    assert world.timers.next_at() == moment(REST_S).mono_s


def test_the_last_failure_is_the_end() -> None:
    """With its own code and reason."""
    released = [
        Attempt(id=attempt(n), node=A, state=AttemptState.RELEASED, outcome=AGAIN)
        for n in (1, 2)
    ]
    world = dispatcher_with(stubborn(*released), a=1)
    last = report(of=attempt(3), end=FAILED)

    effects = world.dispatch.on_results(A, results_message(last), moment())

    assert appended_facts(effects) == [Finished(T, attempt(3), A, FAILED)]
    assert AnnounceTaskStates((T,)) in world.commit()


def test_a_resting_task_is_cancelled_like_a_queued_one() -> None:
    """It never runs again."""
    world = resting()

    effects = world.dispatch.on_cancel_requested(cancel_request(), moment())

    assert appended_facts(effects) == [TaskCancelled(T, "ann")]
    assert cancel_reply() in world.commit()
    assert world.dispatch.on_time(moment(REST_S)) == []


def test_a_success_that_met_its_cancel_on_the_way_is_none() -> None:
    """Who cancelled was answered that it is so; an end is an end once."""
    world = dispatcher_running_t(b=1)
    world.dispatch.on_cancel_requested(cancel_request(force=True), moment())
    assert cancel_reply() in world.commit()

    effects = world.dispatch.on_results(
        B, results_message(report(end=outcome())), moment()
    )

    end = outcome(AttemptState.CANCELLED, EndReason.CANCELLED)
    assert appended_facts(effects) == [Finished(T, attempt(), B, end)]


def test_a_success_told_again_to_who_cancelled_it_is_none_either() -> None:
    """The worker repeats it, as it was told to end what had ended: it crossed the
    acknowledgement, and is acknowledged once more.
    """
    world = dispatcher_running_t(b=1)
    world.dispatch.on_cancel_requested(cancel_request(force=True), moment())
    world.commit()
    world.dispatch.on_results(B, results_message(report(end=outcome())), moment())
    world.commit()

    effects = world.dispatch.on_results(
        B, results_message(report(end=outcome())), moment()
    )

    assert effects == [Send(B, (ResultsOk(((T, attempt()),)),))]


def test_a_task_that_takes_the_name_of_a_forgotten_one_ends_as_well() -> None:
    """Its first attempt has the number that the other one's had in this reign."""
    world = dispatcher_with(b=1)
    nightly = draft(id="nightly")
    name = log_id_of(nightly, "tester")
    assert name is not None
    for _ in range(2):
        world.dispatch.on_submitted(submission(nightly), moment())
        world.commit()

        effects = world.dispatch.on_results(B, results_message(report(name)), moment())
        world.commit()

        assert appended_facts(effects) == [Finished(name, attempt(), B, outcome())]


def test_a_resting_task_survives_a_new_read_of_the_queue() -> None:
    """The store shows it as queued, and it is not queued twice."""
    world = resting()
    world.dispatch.on_remote_entries(moment())

    assert world.dispatch.on_time(moment(REST_S * 0.9)) == []


def test_a_failure_of_a_task_that_is_not_in_hand_asks_the_store() -> None:
    """Which knows how often it failed before."""
    world = dispatcher_with(a=1)
    envelope = stubborn().spec
    late = report(end=FAILED, envelope=envelope)

    asked = world.dispatch.on_results(A, results_message(late), moment())
    effects = world.dispatch.on_live_loaded(LiveLoaded((stubborn(),)), moment())

    assert asked == [LoadLive((T,))]
    assert appended_facts(effects)[-1] == Finished(T, attempt(), A, AGAIN)


def new_reign(**workers: int) -> DispatcherWithJournal:
    """Return a reign that has not read its log yet; these workers are linked."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(-1, (), has_more=False), moment())
    for name, slots in workers.items():
        world.dispatch.on_worker_up(node_info(name, slots), moment())
    return world


def listing(of: AttemptId, task: TaskSpec | None) -> Reattach:
    """Return how a worker tells that it runs one attempt."""
    assert task is not None
    return Reattach(((of, task),), 1, NodeState.READY)


ONCE = stubborn(replace(live_attempt(A), state=AGAIN.state, outcome=AGAIN), retries=1)
"""It failed, and may be tried once more."""


@pytest.mark.parametrize("is_listed", [False, True])
def test_the_last_failure_is_the_end_also_for_a_reign_that_did_not_see_the_first(
    is_listed: bool,
) -> None:
    """It was told, or ended, before the log was read: one retry is one retry."""
    world = new_reign(a=1)
    if is_listed:
        world.dispatch.on_reattach(A, listing(attempt(2), ONCE.spec), moment())
    late = report(of=attempt(2), end=FAILED, envelope=ONCE.spec)
    assert not any(
        isinstance(fact, Finished)
        for effect in world.dispatch.on_results(A, results_message(late), moment())
        if isinstance(effect, Append)
        for fact in (entry.fact for entry in effect.entries)
    )
    world.commit()

    log = replace(ONCE, attempts=(*ONCE.attempts, live_attempt(A, attempt(2))))
    world.dispatch.on_live_loaded(LiveLoaded(()), moment())
    effects = world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())

    assert appended_facts(effects)[-1] == Finished(T, attempt(2), A, FAILED)


def test_a_reign_that_reads_its_log_later_learns_how_often_a_task_failed() -> None:
    """A worker listed it before: what it runs is the last attempt."""
    world = new_reign(a=1)
    world.dispatch.on_reattach(A, listing(attempt(2), ONCE.spec), moment())
    log = replace(ONCE, attempts=(*ONCE.attempts, live_attempt(A, attempt(2))))
    world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())

    late = report(of=attempt(2), end=FAILED)
    effects = world.dispatch.on_results(A, results_message(late), moment())

    assert appended_facts(effects) == [Finished(T, attempt(2), A, FAILED)]


def test_an_attempt_that_followed_a_failure_goes_on_though_that_is_told_again() -> None:
    """The reign before had recorded both, and died before it acknowledged."""
    world = new_reign(a=1, b=1)
    again = report(end=FAILED, envelope=ONCE.spec)
    world.dispatch.on_results(A, results_message(again), moment())

    effects = world.dispatch.on_reattach(B, listing(attempt(2), ONCE.spec), moment())

    assert Assigned(T, attempt(2), B) in appended_facts(effects)
    assert send_kill(B, attempt(2)) not in effects
    log = replace(ONCE, attempts=(*ONCE.attempts, live_attempt(B, attempt(2))))
    world.dispatch.on_live_loaded(LiveLoaded(()), moment())
    world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())
    assert world.dispatch.outstanding(B) == 1
    late = report(of=attempt(2))
    effects = world.dispatch.on_results(B, results_message(late), moment())
    assert appended_facts(effects) == [Finished(T, attempt(2), B, outcome())]


def test_a_failure_told_again_after_the_next_one_counts_no_second_time() -> None:
    """The log has the first; it was told here last, and ended the task."""
    world = new_reign(a=1, b=1)
    twice = stubborn(ONCE.attempts[0], retries=2)
    late = report(of=attempt(2), end=FAILED, envelope=twice.spec)
    world.dispatch.on_results(B, results_message(late), moment())
    log = replace(twice, attempts=(*twice.attempts, live_attempt(B, attempt(2))))
    world.dispatch.on_live_loaded(LiveLoaded(()), moment())
    effects = world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())
    assert appended_facts(effects)[-1] == Finished(T, attempt(2), B, AGAIN)

    again = report(end=FAILED, envelope=twice.spec)
    assert world.dispatch.on_results(A, results_message(again), moment()) == []


def test_a_failure_that_is_heard_late_does_not_take_the_place_of_the_end() -> None:
    """Another attempt followed it, and how that one failed was told to all."""
    world = dispatcher_with(a=1)
    end = replace(FAILED, exit_code=1)
    over = Attempt(id=attempt(2), node=A, state=AttemptState.FAILED, outcome=end)
    log = stubborn(lost(1), over, on_failure=False, codes=(7,))
    late = report(end=replace(FAILED, exit_code=7), envelope=log.spec)
    world.dispatch.on_results(B, results_message(late), moment())

    effects = world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())

    known = replace(late.outcome, state=AttemptState.RELEASED)
    assert appended_facts(effects) == [Finished(T, attempt(), B, known)]


def test_an_end_that_was_acknowledged_waits_for_the_log_where_it_is_told_again() -> (
    None
):
    """Acknowledgements got lost; others have ended since, and what this one's log says
    is not in hand. The worker lists what it may say again, the first failure first.
    """
    world = new_reign(a=1)
    over = Attempt(id=attempt(2), node=A, state=FAILED.state, outcome=FAILED)
    log = replace(ONCE, attempts=(*ONCE.attempts, over))
    late = report(of=attempt(2), end=FAILED, envelope=ONCE.spec)
    world.dispatch.on_results(A, results_message(late), moment())
    world.dispatch.on_live_loaded(LiveLoaded(()), moment())
    world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())
    assert send_acknowledgement(A, attempt(2)) in world.commit()
    # Only the last ones are remembered.
    world.dispatch._queue._recent_finals.clear()
    assert ONCE.spec is not None
    listed = ((attempt(), ONCE.spec), (attempt(2), ONCE.spec))
    world.dispatch.on_reattach(A, Reattach(listed, 0, NodeState.READY), moment())

    assert world.dispatch.on_results(A, results_message(late), moment()) == []

    world.commit()
    world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())
    assert send_acknowledgement(A, attempt(2)) in world.commit()


def test_an_attempt_whose_end_is_known_is_not_taken_for_live_where_it_is_listed() -> (
    None
):
    """Its worker tells it once more, which moves nothing: the task would hang."""
    theirs = AttemptId(1, StreamId(99), 1)  # Of another half, so behind ours in order.
    log = stubborn(Attempt(id=theirs, node=B, state=AGAIN.state, outcome=AGAIN))
    world = dispatcher_with(log, a=1)
    ours = report(of=attempt(2), end=FAILED)
    effects = world.dispatch.on_results(A, results_message(ours), moment())
    assert appended_facts(effects) == [Finished(T, ours.attempt, A, AGAIN)]
    world.commit()
    world.dispatch.on_worker_up(node_info("b", 1), moment())

    effects = world.dispatch.on_reattach(B, listing(theirs, log.spec), moment())

    assert send_kill(B, theirs) in effects
    assert not [e for e in effects if isinstance(e, Append)]


def test_an_attempt_whose_end_is_known_is_not_taken_for_live_by_an_older_read() -> None:
    """The store was asked before it was told, and says that it runs."""
    theirs = AttemptId(1, StreamId(99), 1)
    world = dispatcher_with(stubborn(retries=5), a=1)
    world.dispatch.reconciler.trust_log()
    assert LoadLive() in world.dispatch.on_submitted(submission(), moment())
    world.dispatch.on_results(
        B, results_message(report(of=theirs, end=FAILED)), moment()
    )
    world.dispatch.on_results(A, results_message(report(end=FAILED)), moment())
    world.commit()
    log = stubborn(live_attempt(A), live_attempt(B, theirs), retries=5)

    world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())

    assert world.dispatch._queue.tasks[T].stage is Stage.BACKING_OFF


def test_another_failure_of_what_a_worker_listed_waits_for_the_log_as_well() -> None:
    """It may be the last one: what is listed was taken for lost before."""
    world = new_reign(a=1, b=1)
    world.dispatch.on_reattach(A, listing(attempt(2), ONCE.spec), moment())
    late = report(of=attempt(3), end=FAILED, envelope=ONCE.spec)

    assert world.dispatch.on_results(B, results_message(late), moment()) == []

    world.commit()
    log = replace(ONCE, attempts=(*ONCE.attempts, live_attempt(A, attempt(2))))
    world.dispatch.on_live_loaded(LiveLoaded(()), moment())
    effects = world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())
    assert appended_facts(effects) == [Finished(T, attempt(3), B, FAILED)]
    assert send_kill(A, attempt(2)) in effects


def test_failures_behind_the_attempt_that_a_worker_listed_count_too() -> None:
    """Each half of a split tried the task again; now there is one reign."""
    world = new_reign(a=1)
    listed = AttemptId(1, StreamId(1), 1)
    world.dispatch.on_reattach(A, listing(listed, ONCE.spec), moment())
    here = live_attempt(A, listed)
    log = replace(ONCE, attempts=(here, *ONCE.attempts))
    world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())

    late = report(of=listed, end=FAILED)
    effects = world.dispatch.on_results(A, results_message(late), moment())

    assert appended_facts(effects) == [Finished(T, listed, A, FAILED)]


def test_a_failure_told_beside_what_was_given_back_waits_for_the_log_as_well() -> None:
    """All that is known of the task is that: not even how often it may be tried."""
    world = new_reign(a=1, b=1)
    back = Outcome(state=AttemptState.RELEASED, reason=EndReason.RETURNED)
    world.dispatch.on_results(
        A, results_message(report(of=attempt(3), end=back)), moment()
    )

    late = report(of=attempt(2), end=FAILED)
    assert world.dispatch.on_results(B, results_message(late), moment()) == []

    world.commit()
    world.dispatch.on_live_loaded(LiveLoaded(()), moment())
    log = replace(ONCE, attempts=(*ONCE.attempts, live_attempt(B, attempt(2))))
    effects = world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())
    assert appended_facts(effects)[-1] == Finished(T, attempt(2), B, FAILED)


def test_an_attempt_that_was_lost_meanwhile_is_not_run_twice_if_that_was_asked() -> (
    None
):
    """Its launcher was killed while nobody reigned; the new reign knows nothing."""
    world = dispatcher_with(a=1)
    once = stubborn(retries=0, on_lost=False).spec
    late = report(end=LOST_OUTCOME, envelope=once)

    effects = world.dispatch.on_results(A, results_message(late), moment())

    end = appended_facts(effects)[-1]
    assert isinstance(end, Finished)
    assert (end.outcome.state, end.outcome.reason) == (
        AttemptState.FAILED,
        EndReason.LOST,
    )


def test_the_end_of_another_attempt_at_what_ended_here_asks_the_store() -> None:
    """It may be forgotten, and another half of a split has told that it goes on."""
    world = dispatcher_with(stubborn(), a=1, b=1)
    world.dispatch.on_results(A, results_message(), moment())
    world.commit()
    back = Reattach(((attempt(2), spec()),), 1, NodeState.READY)
    assert send_kill(B, attempt(2)) in world.dispatch.on_reattach(B, back, moment())
    gone = replace(AGAIN, state=AttemptState.CANCELLED, reason=EndReason.CANCELLED)
    world.dispatch.on_results(
        B, results_message(report(of=attempt(2), end=gone)), moment()
    )

    effects = world.commit()

    assert [e for e in effects if isinstance(e, LoadLive)] == [LoadLive()]


def lost(n: int) -> Attempt:
    """Return an attempt whose worker was lost."""
    outcome = Outcome(state=AttemptState.RELEASED, reason=EndReason.LOST)
    return Attempt(id=attempt(n), node=B, state=AttemptState.RELEASED, outcome=outcome)


def test_a_task_that_takes_down_its_workers_is_stopped() -> None:
    """It would take down one after the other."""
    before = [lost(n) for n in range(1, LOSSES_MAX)]
    world = dispatcher_with(replace(stubborn(), attempts=tuple(before)), a=1)
    world.dispatch.on_time(moment(LATE))

    (end,) = appended_facts(world.dispatch.on_worker_down(A, moment(LATE)))

    assert isinstance(end, Finished)
    assert (end.outcome.state, end.outcome.reason) == (
        *(AttemptState.FAILED, EndReason.POISON),
    )
    assert AnnounceTaskStates((T,)) in world.commit()


def test_who_waits_on_a_lost_worker_did_not_take_it_down() -> None:
    """Only what was in a slot can have."""
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
def test_at_most_once_means_that_a_doubt_is_an_end(on_lost: bool) -> None:
    """A worker that does not know the attempt may be another process by now."""
    world = dispatcher_with(stubborn(on_lost=on_lost), a=1)
    world.dispatch.on_worker_down(A, moment())
    world.dispatch.on_worker_up(node_info("a", 1), moment())

    effects = world.dispatch.on_reattach(
        A, Reattach((), 1, NodeState.READY), moment(LATE)
    )

    end, *more = appended_facts(effects)
    assert isinstance(end, Finished)
    state = AttemptState.RELEASED if on_lost else AttemptState.FAILED
    assert end.outcome.state is state
    assert bool(more) is on_lost


def test_a_resting_task_is_queued_for_clients() -> None:
    """A cancel without force is enough."""
    world = resting()
    task = world.dispatch._queue.tasks[T]

    assert visible_state(task, TaskState.RUNNING) is TaskState.QUEUED


@pytest.mark.parametrize("reason", PRESUMED_REASONS)
def test_the_end_of_an_attempt_of_which_only_a_guess_is_known_counts(
    reason: EndReason,
) -> None:
    """A dispatcher supposed that it never began, or was lost: its worker was away."""
    state = AttemptState.RELEASED
    supposed = Outcome(state=state, reason=reason)
    log = stubborn(replace(live_attempt(A), state=state, outcome=supposed))
    world = dispatcher_with(log)
    world.dispatch.on_worker_up(node_info("a", 1), moment())

    effects = world.dispatch.on_results(A, results_message(), moment())

    assert appended_facts(effects) == [Finished(T, attempt(), A, outcome())]


def test_failures_that_the_queue_shows_count_for_what_a_worker_listed() -> None:
    """It was read before the task was, by which the reign knows all of it."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_worker_up(node_info("a", 1), moment())
    world.dispatch.on_reattach(A, listing(attempt(2), ONCE.spec), moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(-1, (ONCE,), has_more=False), moment())

    late = report(of=attempt(2), end=FAILED)
    effects = world.dispatch.on_results(A, results_message(late), moment())

    assert appended_facts(effects) == [Finished(T, attempt(2), A, FAILED)]


def test_what_is_known_only_by_its_ends_is_not_known_by_the_queue() -> None:
    """The end that was told came without what the task may be tried again by."""
    world = dispatcher_with(a=1, b=1)
    world.dispatch.on_remote_entries(moment())
    back = Outcome(state=AttemptState.RELEASED, reason=EndReason.RETURNED)
    world.dispatch.on_results(A, results_message(report(end=back)), moment())
    world.dispatch.on_queued_loaded(
        QueuedLoaded(-2, (stubborn(),), has_more=False), moment()
    )

    late = report(of=attempt(2), end=FAILED, envelope=stubborn().spec)
    assert world.dispatch.on_results(B, results_message(late), moment()) == []

    world.dispatch.on_live_loaded(LiveLoaded(()), moment())
    effects = world.dispatch.on_live_loaded(LiveLoaded((stubborn(),)), moment())
    assert appended_facts(effects)[-1] == Finished(T, attempt(2), B, AGAIN)


def test_a_task_stays_in_hand_while_an_end_of_it_waits_for_the_log() -> None:
    """Of an earlier end all is durable by then, and that one is let go of."""
    world = dispatcher_with(a=1, b=1)
    first = report(end=FAILED, envelope=stubborn().spec)
    world.dispatch.on_results(A, results_message(first), moment())
    world.dispatch.on_live_loaded(LiveLoaded((stubborn(live_attempt(A)),)), moment())
    world.dispatch.on_remote_entries(moment())
    world.commit()
    world.dispatch.on_reattach(B, listing(attempt(2), stubborn().spec), moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(-2, (), has_more=False), moment())
    world.dispatch.on_results(B, results_message(report(of=attempt(2))), moment())
    world.dispatch.on_live_loaded(LiveLoaded(()), moment())

    log = stubborn(*ONCE.attempts)
    effects = world.dispatch.on_queued_loaded(
        QueuedLoaded(-3, (log,), has_more=False), moment()
    )

    assert not [effect for effect in effects if isinstance(effect, Append)]


def test_a_loss_that_is_told_beside_another_attempt_counts() -> None:
    """Nobody had taken that one for lost; the third time is the last."""
    world = new_reign(a=1, b=1)
    world.dispatch.on_reattach(B, listing(attempt(3), stubborn().spec), moment())
    log = stubborn(lost(1), live_attempt(B, attempt(3)))
    world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())
    gone = report(of=attempt(2), end=LOST_OUTCOME)
    world.dispatch.on_results(A, results_message(gone), moment())
    world.dispatch.on_time(moment(LATE))

    (end,) = appended_facts(world.dispatch.on_worker_down(B, moment(LATE)))

    assert isinstance(end, Finished)
    assert end.outcome.reason is EndReason.POISON


@pytest.mark.parametrize("state", [AttemptState.OK, AttemptState.CANCELLED])
def test_what_is_listed_though_its_end_waits_to_be_acknowledged_ends_once_more(
    state: AttemptState,
) -> None:
    """A new link lists results as running that are too many for one message."""
    world = DispatcherWithJournal(is_strict=True)
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_worker_up(node_info("a", 1), moment())
    late = report(end=outcome(state), envelope=spec())
    world.dispatch.on_results(A, results_message(late), moment())
    log = replace(stubborn(), attempts=(replace(live_attempt(A), state=state),))
    world.dispatch.on_live_loaded(LiveLoaded(()), moment())
    world.dispatch.on_live_loaded(LiveLoaded((log,)), moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(-1, (), has_more=False), moment())
    world.commit()
    # Only the last ones are remembered.
    world.dispatch._queue._recent_finals.clear()
    world.dispatch.on_worker_down(A, moment())
    world.dispatch.on_worker_up(node_info("a", 1), moment())
    world.dispatch.on_reattach(A, listing(attempt(), spec()), moment())
    world.commit()
    assert world.dispatch.outstanding(A) == 1

    world.dispatch.on_results(A, results_message(late), moment())

    assert world.dispatch.outstanding(A) == 0


def lacking_in_the_adopt_window() -> DispatcherWithJournal:
    """Return a reign whose only worker lacks an input, while others may yet come."""
    world = dispatcher_with(stubborn(), a=1)
    lack = released(EndReason.INPUTS, "data.csv")
    world.dispatch.on_results(A, results_message(report(end=lack)), moment())
    world.commit()
    return world


def test_what_every_worker_lacks_fails_also_when_it_is_read_after_the_window() -> None:
    """As that closed it was not in hand."""
    world = lacking_in_the_adopt_window()
    lack = released(EndReason.INPUTS, "data.csv")
    ended = replace(live_attempt(A), state=lack.state, outcome=lack)
    world.dispatch.on_remote_entries(moment())
    world.dispatch.on_time(moment(LATE))

    log = (stubborn(ended),)
    effects = world.dispatch.on_queued_loaded(
        QueuedLoaded(-2, log, has_more=False), moment(LATE)
    )

    (end,) = appended_facts(effects)
    assert isinstance(end, Finished)
    assert end.outcome.state is AttemptState.FAILED


def test_what_every_worker_lacks_fails_also_when_they_come_after_the_window() -> None:
    """As that closed nobody was there."""
    world = lacking_in_the_adopt_window()
    world.dispatch.on_worker_down(A, moment())
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_worker_up(node_info("a", 1), moment(LATE))

    back = Reattach((), 1, NodeState.READY)
    effects = world.dispatch.on_reattach(A, back, moment(LATE))

    (end,) = appended_facts(effects)
    assert isinstance(end, Finished)
    assert end.outcome.state is AttemptState.FAILED
