"""A result is kept until a dispatcher has made it durable."""

from __future__ import annotations

import math

import pytest

from octaskly.core.effects import Send, Spool, Unspool
from octaskly.core.model.ids import TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import EndReason
from octaskly.core.protocol.messages import Reattach, Report, Results, ResultsOk
from octaskly.core.worker.result_outbox import RESEND_MAX_S, RESEND_S
from octaskly.core.worker.worker import OUTBOX_BYTES_MAX
from tests.builders import (
    attempt,
    epoch,
    moment,
    outcome,
    released,
    report,
    spec,
)
from tests.hand import (
    KEY,
    ME,
    D,
    E,
    attached,
    ended,
    order,
    told,
    worker,
)


def test_a_result_goes_to_disk_before_it_is_sent() -> None:
    """If this node dies now, the result is told after its restart."""
    hand = attached()
    hand.on_assign(D, order(), moment())

    effects = hand.on_attempts_ended(ended(), moment())

    assert effects == [Spool((report(envelope=spec()),)), told(report())]
    assert hand.running == 0
    assert not hand.is_idle


def test_a_result_for_this_node_itself_goes_straight_into_the_log() -> None:
    """The dispatcher's own worker does not write everything twice."""
    hand = worker()
    hand.attach(ME, epoch(), moment())
    hand.on_assign(ME, order(sender="a"), moment())

    assert hand.on_attempts_ended(ended(), moment()) == [told(report(), to="a")]


def test_what_was_given_back_is_reported_but_not_kept_on_disk() -> None:
    """Nothing is lost if it is forgotten: the attempt is then lost, and run again."""
    hand = attached()
    hand.on_assign(D, order(), moment())
    back = report(end=released(EndReason.RETURNED))

    assert hand.on_attempts_ended(ended(back), moment()) == [told(back)]


def test_an_acknowledged_result_is_forgotten() -> None:
    """It is durable at the dispatcher."""
    hand = attached()
    hand.on_assign(D, order(), moment())
    hand.on_attempts_ended(ended(), moment())

    effects = hand.on_results_ok(ResultsOk((KEY,)), moment())

    assert effects == [Unspool((KEY,))]
    assert hand.is_idle
    assert hand.deadline() == math.inf
    assert hand.on_results_ok(ResultsOk((KEY,)), moment()) == []


def test_an_unacknowledged_result_is_sent_again_with_its_envelope() -> None:
    """More and more rarely, and the dispatcher may not know the task any more."""
    hand = attached()
    hand.on_assign(D, order(), moment())
    hand.on_attempts_ended(ended(), moment())
    again = told(report(envelope=spec()))

    assert hand.on_time(moment(RESEND_S - 0.1)) == []
    assert hand.deadline() == pytest.approx(moment(RESEND_S).mono_s)
    assert hand.on_time(moment(RESEND_S)) == [again]
    assert hand.on_time(moment(3 * RESEND_S - 0.1)) == []
    assert hand.on_time(moment(3 * RESEND_S)) == [again]
    assert hand.deadline() == pytest.approx(moment(7 * RESEND_S).mono_s)


def test_a_result_that_a_node_told_itself_is_not_repeated_while_its_disk_is_slow() -> (
    None
):
    """It cannot be lost; of 92 000 tasks in bulk 158 000 ends were told again."""
    hand = worker()
    hand.attach(ME, epoch(), moment())
    hand.on_assign(ME, order(sender="a"), moment())
    hand.on_attempts_ended(ended(), moment())

    assert hand.on_time(moment(RESEND_MAX_S - 0.1)) == []
    assert hand.deadline() == pytest.approx(moment(RESEND_MAX_S).mono_s)
    # Where it was not acknowledged for want of a standby, that has to be asked for.
    again = told(report(envelope=spec()), to="a")
    assert hand.on_time(moment(RESEND_MAX_S)) == [again]


def test_results_that_do_not_fit_into_one_frame_are_cut() -> None:
    """A frame above the limit would end the link."""
    hand = attached(limits=Limits(entries_bytes=4000))
    hand.on_assign(D, order("t", "u"), moment())
    big = outcome(stdout=b"x" * 3000)
    one, two = report("t", end=big), report("u", end=big)

    effects = hand.on_attempts_ended(ended(one, two), moment())

    assert effects[1:] == [Send(D, (Results((one,), 2), Results((two,), 2)))]


def test_the_next_repetition_follows_as_the_last_one_is_acknowledged() -> None:
    """After hours without a standby, all would else take five seconds a message."""
    hand = attached(limits=Limits(entries_bytes=4000))
    hand.on_assign(D, order("t", "u"), moment())
    big = outcome(stdout=b"x" * 3000)
    first, second = report("t", end=big), report("u", end=big)
    hand.on_attempts_ended(ended(first, second), moment())
    late = moment(RESEND_S)
    (again,) = [r for e in hand.on_time(late) if isinstance(e, Send) for r in _told(e)]

    assert hand.on_time(late) == []
    hand.on_results_ok(ResultsOk(((again.task, again.attempt),)), late)

    (other,) = [r for e in hand.on_time(late) if isinstance(e, Send) for r in _told(e)]
    assert {again.task, other.task} == {"t", "u"}


def _told(effect: Send) -> list[Report]:
    """Return what one effect reports."""
    messages = (m for m in effect.messages if isinstance(m, Results))
    return [one for message in messages for one in message.reports]


def test_a_result_of_an_unknown_attempt_is_still_reported() -> None:
    """The runner knows best what ran."""
    hand = attached()

    effects = hand.on_attempts_ended(ended(), moment())

    assert effects == [Spool((report(),)), told(report())]


def test_too_many_unacknowledged_bytes_stop_the_flow_until_they_are_acknowledged() -> (
    None
):
    """A dispatcher whose disk stalls must not fill the workers' memory."""
    hand = attached()
    hand.on_assign(D, order(), moment())
    hand.on_attempts_ended(
        ended(report(end=outcome(stdout=bytes(OUTBOX_BYTES_MAX)))), moment()
    )

    assert hand.credit == 0

    effects = hand.on_results_ok(ResultsOk((KEY,)), moment())

    assert effects == [Unspool((KEY,)), told(credit=2)]


def test_a_new_dispatcher_hears_first_what_ended_then_what_runs() -> None:
    """An attempt that is neither reported nor running would be run again."""
    hand = attached()
    hand.on_assign(D, order("t", "u"), moment())
    gone = hand.detach(moment())
    spooled = hand.on_attempts_ended(ended(), moment())

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


def test_what_a_node_has_to_tell_itself_waits_for_no_acknowledgement() -> None:
    """A strict one without a standby gives none, and none of it runs any more."""
    names = ("t", "u", "v")
    saved = [
        report(name, end=outcome(stdout=b"x" * 3000), envelope=spec(name))
        for name in names
    ]
    hand = worker(*saved, limits=Limits(entries_bytes=5000))

    told_first = hand.attach(ME, epoch(), moment())[0]
    told_later = [effect for _ in names for effect in hand.on_time(moment())]

    assert [told_first, *told_later] == [told(each, to="a") for each in saved]
    assert hand.deadline() == pytest.approx(moment(RESEND_MAX_S).mono_s)


def test_a_late_acknowledgement_ends_nothing_that_was_told_as_running() -> None:
    """The dispatcher before has the result; the present one would wait for ever."""
    saved = [
        report(name, end=outcome(stdout=b"x" * 3000), envelope=spec(name))
        for name in ("t", "u")
    ]
    hand = worker(*saved, limits=Limits(entries_bytes=5000))
    hand.attach(D, epoch(1, "d"), moment())
    late = ResultsOk(((TaskId("u"), attempt()),))

    assert hand.on_results_ok(late, moment()) == [told(saved[1])]
    assert hand.on_results_ok(late, moment()) == [Unspool(late.items)]


def test_a_dispatcher_that_follows_another_puts_its_own_results_on_disk() -> None:
    """They were meant for its own log, which it writes no more."""
    hand = worker()
    hand.attach(ME, epoch(), moment())
    hand.on_assign(ME, order(sender="a"), moment())
    hand.on_attempts_ended(ended(), moment())

    assert hand.detach(moment()) == [Spool((report(envelope=spec()),))]
    assert hand.detach(moment()) == []


def test_without_a_dispatcher_nothing_is_due_and_results_wait_on_disk() -> None:
    """A lone worker may stop: its next start tells them."""
    hand = worker(report(envelope=spec()))

    assert hand.on_time(moment(60)) == []
    assert hand.deadline() == math.inf
    assert hand.is_idle
