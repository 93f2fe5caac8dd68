"""A worker starts each attempt once and keeps its end until it is acknowledged."""

from __future__ import annotations

import pytest

from octaskly.core.effects import Effect, Send, Spool, Start, Stop, Unspool
from octaskly.core.events import AttemptsEnded
from octaskly.core.messages import Dispatch, Kill, Reattach, Report, Results, ResultsOk
from octaskly.core.model import (
    AttemptState,
    Limits,
    NodeState,
    Outcome,
    Reason,
    TaskId,
)
from octaskly.core.results import RESEND_S
from octaskly.core.worker import KEPT_BYTES_MAX, Worker
from tests.builders import (
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

ME, D, E = node_id("a"), node_id("d"), node_id("e")
KEY = (TaskId("t"), attempt())
CANCELLED = outcome(AttemptState.CANCELLED, Reason.CANCELLED)


def worker(*saved: Report, slots: int = 2, limits: Limits | None = None) -> Worker:
    """Return a worker that follows nobody yet."""
    return Worker(settings("a", slots=slots, limits=limits), saved)


def attached(slots: int = 2, limits: Limits | None = None) -> Worker:
    """Return a worker that follows D in epoch 1."""
    made = worker(slots=slots, limits=limits)
    made.attach(D, epoch(1, "d"), moment())
    return made


def order(*names: str, term: int = 1, sender: str = "d") -> Dispatch:
    """Return what a dispatcher sends to have these tasks run."""
    items = tuple((attempt(), spec(name)) for name in names or ("t",))
    return Dispatch(epoch(term, sender), items)


def kill(*keys: tuple[TaskId, object], term: int = 1) -> Kill:
    """Return an order to end attempts."""
    return Kill(epoch(term, "d"), keys or (KEY,))  # type: ignore[arg-type]


def ended(*reports: Report) -> AttemptsEnded:
    """Return what the runner says."""
    return AttemptsEnded(reports or (report(),))


def told(*reports: Report, credit: int = 2, to: str = "d") -> Send:
    """Return the message that carries results."""
    return Send(node_id(to), (Results(reports, credit),))


# --- Taking work.


def test_a_dispatched_attempt_is_started() -> None:
    """That is what workers are for."""
    hand = attached()

    effects = hand.on_dispatch(D, order(), moment())

    assert effects == [Start(((attempt(), spec()),))]
    assert hand.running == 1
    assert not hand.is_idle


def test_work_of_a_deposed_dispatcher_is_refused_and_never_started() -> None:
    """Rule I7: who has seen an epoch starts nothing for an older one."""
    hand = worker()
    hand.attach(E, epoch(2, "e"), moment())

    effects = hand.on_dispatch(D, order(term=1), moment())

    stale = report(end=released(Reason.STALE), envelope=spec())
    assert effects == [told(stale, credit=0)]
    assert hand.is_idle


def test_of_two_dispatchers_in_one_term_the_smaller_node_is_deposed() -> None:
    """Epochs are compared by term, then node."""
    hand = worker()
    hand.attach(E, epoch(1, "e"), moment())

    effects = hand.on_dispatch(D, order(term=1, sender="d"), moment())

    stale = report(end=released(Reason.STALE), envelope=spec())
    assert effects == [told(stale, credit=0)]


def test_an_attempt_that_is_here_is_not_started_twice() -> None:
    """A repeated message is harmless."""
    hand = attached()
    hand.on_dispatch(D, order(), moment())

    assert hand.on_dispatch(D, order(), moment()) == []


def test_an_attempt_that_has_ended_is_reported_again_not_run_again() -> None:
    """A dispatch that was repeated late must not run the command twice."""
    hand = attached()
    hand.on_dispatch(D, order(), moment())
    hand.on_ended(ended(), moment())

    effects = hand.on_dispatch(D, order(), moment())

    assert effects == [told(report(envelope=spec()))]


def test_a_draining_worker_hands_new_work_back() -> None:
    """It ends what it has, and takes no more."""
    hand = attached()
    drained = hand.drain(True, moment())

    effects = hand.on_dispatch(D, order(), moment())

    assert drained == [told(credit=0)]
    assert effects == [told(report(end=released(Reason.DRAINING)), credit=0)]
    assert hand.state is NodeState.DRAINING


def test_the_end_of_draining_is_told_at_once() -> None:
    """Nobody would give it work otherwise."""
    hand = attached()
    hand.drain(True, moment())

    assert hand.drain(False, moment()) == [told(credit=2)]
    assert hand.state is NodeState.READY


# --- Reporting.


def test_a_result_goes_to_disk_before_it_is_sent() -> None:
    """If this node dies now, the result is told after its restart."""
    hand = attached()
    hand.on_dispatch(D, order(), moment())

    effects = hand.on_ended(ended(), moment())

    assert effects == [Spool((report(envelope=spec()),)), told(report())]
    assert hand.running == 0
    assert not hand.is_idle


def test_a_result_for_this_node_itself_goes_straight_into_the_log() -> None:
    """The dispatcher's own worker does not write everything twice."""
    hand = worker()
    hand.attach(ME, epoch(), moment())
    hand.on_dispatch(ME, order(sender="a"), moment())

    assert hand.on_ended(ended(), moment()) == [told(report(), to="a")]


def test_what_was_given_back_is_reported_but_not_kept_on_disk() -> None:
    """Nothing is lost if it is forgotten: the attempt is then lost, and run again."""
    hand = attached()
    hand.on_dispatch(D, order(), moment())
    back = report(end=released(Reason.RETURNED))

    assert hand.on_ended(ended(back), moment()) == [told(back)]


def test_an_acknowledged_result_is_forgotten() -> None:
    """It is durable at the dispatcher."""
    hand = attached()
    hand.on_dispatch(D, order(), moment())
    hand.on_ended(ended(), moment())

    effects = hand.on_results_ok(ResultsOk((KEY,)), moment())

    assert effects == [Unspool((KEY,))]
    assert hand.is_idle
    assert hand.deadline() is None
    assert hand.on_results_ok(ResultsOk((KEY,)), moment()) == []


def test_an_unacknowledged_result_is_sent_again_with_its_envelope() -> None:
    """More and more rarely, and the dispatcher may not know the task any more."""
    hand = attached()
    hand.on_dispatch(D, order(), moment())
    hand.on_ended(ended(), moment())
    again = told(report(envelope=spec()))

    assert hand.on_time(moment(0.1)) == []
    assert hand.deadline() == pytest.approx(moment(RESEND_S).mono_s)
    assert hand.on_time(moment(0.2)) == [again]
    assert hand.on_time(moment(0.5)) == []
    assert hand.on_time(moment(0.61)) == [again]
    assert hand.deadline() == pytest.approx(moment(0.61 + 0.8).mono_s)


def test_results_that_do_not_fit_into_one_frame_are_cut() -> None:
    """A frame above the limit would end the link."""
    hand = attached(limits=Limits(entries_bytes=4000))
    hand.on_dispatch(D, order("t", "u"), moment())
    big = outcome(stdout=b"x" * 3000)
    one, two = report("t", end=big), report("u", end=big)

    effects = hand.on_ended(ended(one, two), moment())

    assert effects[1:] == [Send(D, (Results((one,), 2), Results((two,), 2)))]


def test_a_result_of_an_unknown_attempt_is_still_reported() -> None:
    """The runner knows best what ran."""
    hand = attached()

    effects = hand.on_ended(ended(), moment())

    assert effects == [Spool((report(),)), told(report())]


def test_too_many_unacknowledged_bytes_stop_the_flow_until_they_are_acknowledged() -> (
    None
):
    """A dispatcher whose disk stalls must not fill the workers' memory."""
    hand = attached()
    hand.on_dispatch(D, order(), moment())
    hand.on_ended(ended(report(end=outcome(stdout=bytes(KEPT_BYTES_MAX)))), moment())

    assert hand.credit == 0

    effects = hand.on_results_ok(ResultsOk((KEY,)), moment())

    assert effects == [Unspool((KEY,)), told(credit=2)]


# --- Killing.


def test_a_killed_attempt_never_counts_as_success() -> None:
    """It may have exited by itself in the same instant."""
    hand = attached()
    hand.on_dispatch(D, order(), moment())

    stopped = hand.on_kill(D, kill(), moment())
    effects = hand.on_ended(ended(), moment())

    assert stopped == [Stop((KEY,))]
    assert effects == [
        Spool((report(end=CANCELLED, envelope=spec()),)),
        told(report(end=CANCELLED)),
    ]


def test_a_kill_of_an_unknown_attempt_is_answered_as_cancelled() -> None:
    """It will never run here: that is an answer, too."""
    hand = attached()

    effects = hand.on_kill(D, kill(), moment())

    end = Outcome(
        state=AttemptState.CANCELLED,
        reason=Reason.CANCELLED,
        ended_ms=moment().wall_ms,
    )
    assert effects == [Spool((report(end=end),)), told(report(end=end))]


def test_a_kill_after_the_end_is_answered_with_the_result() -> None:
    """What was reported stays reported."""
    hand = attached()
    hand.on_dispatch(D, order(), moment())
    hand.on_ended(ended(), moment())

    assert hand.on_kill(D, kill(), moment()) == [told(report(envelope=spec()))]


def test_a_kill_of_a_deposed_dispatcher_is_ignored() -> None:
    """Its successor decides what is void."""
    hand = worker()
    hand.attach(E, epoch(2, "e"), moment())
    hand.on_dispatch(E, order(term=2, sender="e"), moment())

    assert hand.on_kill(D, kill(term=1), moment()) == []


# --- Dispatchers come and go.


def test_a_new_dispatcher_hears_first_what_ended_then_what_runs() -> None:
    """An attempt that is neither reported nor running would be run again."""
    hand = attached()
    hand.on_dispatch(D, order("t", "u"), moment())
    gone = hand.detach(moment())
    spooled = hand.on_ended(ended(), moment())

    effects = hand.attach(E, epoch(2, "e"), moment())

    assert gone == []
    assert spooled == [Spool((report(envelope=spec()),))]
    assert effects == [
        told(report(envelope=spec()), to="e"),
        Send(E, (Reattach(((attempt(), spec("u")),), 2, NodeState.READY),)),
    ]


def test_results_that_survived_a_restart_are_told() -> None:
    """The spool is why no result is lost."""
    hand = worker(report(envelope=spec()))

    effects = hand.attach(D, epoch(1, "d"), moment())

    assert effects == [
        told(report(envelope=spec())),
        Send(D, (Reattach((), 2, NodeState.READY),)),
    ]
    assert hand.on_results_ok(ResultsOk((KEY,)), moment()) == [Unspool((KEY,))]


def test_results_beyond_one_message_are_told_as_running_and_follow() -> None:
    """A new dispatcher is not flooded, and takes nothing for lost meanwhile."""
    saved = [
        report(name, end=outcome(stdout=b"x" * 3000), envelope=spec(name))
        for name in ("t", "u")
    ]
    hand = worker(*saved, limits=Limits(entries_bytes=5000))

    effects = hand.attach(D, epoch(1, "d"), moment())
    more = hand.on_results_ok(ResultsOk((KEY,)), moment())

    assert effects == [
        told(saved[0]),
        Send(D, (Reattach(((attempt(), spec("u")),), 2, NodeState.READY),)),
    ]
    assert more == [Unspool((KEY,)), told(saved[1])]


def test_a_dispatcher_that_follows_another_puts_its_own_results_on_disk() -> None:
    """They were meant for its own log, which it writes no more."""
    hand = worker()
    hand.attach(ME, epoch(), moment())
    hand.on_dispatch(ME, order(sender="a"), moment())
    hand.on_ended(ended(), moment())

    assert hand.detach(moment()) == [Spool((report(envelope=spec()),))]
    assert hand.detach(moment()) == []


def test_without_a_dispatcher_nothing_is_due_and_results_wait_on_disk() -> None:
    """A lone worker may stop: its next start tells them."""
    hand = worker(report(envelope=spec()))

    assert hand.on_time(moment(60)) == []
    assert hand.deadline() is None
    assert hand.is_idle


# --- Credit.


def run_one(hand: Worker, name: str, duration_ms: int, at: float = 0.0) -> None:
    """Let one task run from dispatch to acknowledgement."""
    hand.on_dispatch(D, order(name), moment(at))
    done = report(name, end=outcome(duration_ms=duration_ms))
    hand.on_ended(ended(done), moment(at))
    hand.on_results_ok(ResultsOk(((TaskId(name), attempt()),)), moment(at))


def test_a_worker_asks_for_its_slots_until_it_knows_its_tasks() -> None:
    """Work ahead is for short tasks only."""
    assert attached(slots=3).credit == 3


def test_short_tasks_earn_work_ahead() -> None:
    """About 30 ms of work may wait."""
    hand = attached(slots=2)
    run_one(hand, "t", 2)

    assert hand.credit == 2 + 30


def test_work_ahead_is_bounded() -> None:
    """Tasks of less than a millisecond would ask for any number."""
    hand = attached(slots=8)
    run_one(hand, "t", 0)

    assert hand.credit == 8 + 64


def test_a_long_task_ends_work_ahead_at_once() -> None:
    """The next ones may be long, too."""
    hand = attached()
    run_one(hand, "t", 2)
    run_one(hand, "u", 2000)

    assert hand.credit == 2


def test_a_task_that_runs_long_ends_work_ahead_before_it_ends() -> None:
    """Nothing short should be sent behind it."""
    hand = attached()
    run_one(hand, "t", 2)
    hand.on_dispatch(D, order("u"), moment(1.0))

    hand.on_time(moment(1.04))
    assert hand.credit == 32
    hand.on_time(moment(1.06))
    assert hand.credit == 2


def test_a_waiting_attempt_is_not_taken_for_a_long_one() -> None:
    """Its time counts from when a slot became free."""
    hand = attached(slots=1)
    run_one(hand, "t", 2)
    hand.on_dispatch(D, order("u", "v", "w"), moment(1.0))
    hand.on_ended(ended(report("v", end=released(Reason.RETURNED))), moment(1.0))

    hand.on_ended(ended(report("u", end=outcome(duration_ms=2))), moment(1.06))

    assert hand.running == 1
    assert hand.credit > 1


def order_of(effects: list[Effect]) -> list[str]:
    """Return the kinds of effects."""
    return [type(effect).__name__ for effect in effects]


def test_one_message_may_bring_new_known_and_ended_attempts() -> None:
    """Each is treated for itself."""
    hand = attached(slots=1)
    hand.on_dispatch(D, order("t", "u"), moment())
    hand.on_ended(ended(), moment())

    effects = hand.on_dispatch(D, order("t", "u", "v"), moment())

    assert order_of(effects) == ["Start", "Send"]
    assert effects[0] == Start(((attempt(), spec("v")),))
