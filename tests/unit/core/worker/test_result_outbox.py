"""The result outbox, which keeps each result until it is durable elsewhere."""

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
from tests.support.builders import (
    attempt,
    epoch,
    moment,
    outcome,
    released,
    report,
    spec,
)
from tests.support.worker import (
    KEY,
    ME,
    D,
    E,
    assignment,
    attached_worker,
    attempts_ended,
    detached_worker,
    send_results,
)


def test_a_result_goes_to_disk_before_it_is_sent() -> None:
    """If this node dies now, it reports the result after its restart."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())

    effects = worker.on_attempts_ended(attempts_ended(), moment())

    assert effects == [Spool((report(envelope=spec()),)), send_results(report())]
    assert worker.running == 0
    assert not worker.is_idle


def test_a_dispatcher_s_own_result_goes_straight_into_its_log() -> None:
    """Its worker does not write every result twice."""
    worker = detached_worker()
    worker.attach(ME, epoch(), moment())
    worker.on_assign(ME, assignment(sender="a"), moment())

    assert worker.on_attempts_ended(attempts_ended(), moment()) == [
        send_results(report(), to="a")
    ]


def test_a_returned_attempt_is_reported_but_not_kept_on_disk() -> None:
    """A forgotten report loses nothing: the attempt counts as lost, and runs again."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())
    back = report(end=released(EndReason.RETURNED))

    assert worker.on_attempts_ended(attempts_ended(back), moment()) == [
        send_results(back)
    ]


def test_an_acknowledged_result_is_forgotten() -> None:
    """It is durable at the dispatcher."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())
    worker.on_attempts_ended(attempts_ended(), moment())

    effects = worker.on_results_ok(ResultsOk((KEY,)), moment())

    assert effects == [Unspool((KEY,))]
    assert worker.is_idle
    assert worker._timers.next_at() == math.inf
    assert worker.on_results_ok(ResultsOk((KEY,)), moment()) == []


def test_an_unacknowledged_result_is_sent_again_with_its_envelope() -> None:
    """The pauses grow, and a new dispatcher may not know the task."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())
    worker.on_attempts_ended(attempts_ended(), moment())
    again = send_results(report(envelope=spec()))

    assert worker.on_time(moment(RESEND_S - 0.1)) == []
    assert worker._timers.next_at() == pytest.approx(moment(RESEND_S).mono_s)
    assert worker.on_time(moment(RESEND_S)) == [again]
    assert worker.on_time(moment(3 * RESEND_S - 0.1)) == []
    assert worker.on_time(moment(3 * RESEND_S)) == [again]
    assert worker._timers.next_at() == pytest.approx(moment(7 * RESEND_S).mono_s)


def test_a_dispatcher_s_own_result_is_not_repeated_while_its_disk_is_slow() -> None:
    """It cannot be lost; 92 000 tasks in bulk once caused 158 000 repeated ends."""
    worker = detached_worker()
    worker.attach(ME, epoch(), moment())
    worker.on_assign(ME, assignment(sender="a"), moment())
    worker.on_attempts_ended(attempts_ended(), moment())

    assert worker.on_time(moment(RESEND_MAX_S - 0.1)) == []
    assert worker._timers.next_at() == pytest.approx(moment(RESEND_MAX_S).mono_s)
    # Without a standby it was not acknowledged, so it must be sent again.
    again = send_results(report(envelope=spec()), to="a")
    assert worker.on_time(moment(RESEND_MAX_S)) == [again]


def test_results_beyond_one_frame_are_split() -> None:
    """A frame above the limit would end the link."""
    worker = attached_worker(limits=Limits(entries_bytes=4000))
    worker.on_assign(D, assignment("t", "u"), moment())
    big = outcome(stdout=b"x" * 3000)
    one, two = report("t", end=big), report("u", end=big)

    effects = worker.on_attempts_ended(attempts_ended(one, two), moment())

    assert effects[1:] == [Send(D, (Results((one,), 2), Results((two,), 2)))]


def test_the_next_repetition_follows_the_acknowledgement_of_the_last() -> None:
    """After hours without a standby each message would else take five seconds."""
    worker = attached_worker(limits=Limits(entries_bytes=4000))
    worker.on_assign(D, assignment("t", "u"), moment())
    big = outcome(stdout=b"x" * 3000)
    first, second = report("t", end=big), report("u", end=big)
    worker.on_attempts_ended(attempts_ended(first, second), moment())
    late = moment(RESEND_S)
    (again,) = [
        r for e in worker.on_time(late) if isinstance(e, Send) for r in reported(e)
    ]

    assert worker.on_time(late) == []
    worker.on_results_ok(ResultsOk(((again.task, again.attempt),)), late)

    (other,) = [
        r for e in worker.on_time(late) if isinstance(e, Send) for r in reported(e)
    ]
    assert {again.task, other.task} == {"t", "u"}


def reported(effect: Send) -> list[Report]:
    """Return the reports in one effect."""
    messages = (m for m in effect.messages if isinstance(m, Results))
    return [one for message in messages for one in message.reports]


def test_a_result_of_an_unknown_attempt_is_still_reported() -> None:
    """The runner has started it, so its report is right."""
    worker = attached_worker()

    effects = worker.on_attempts_ended(attempts_ended(), moment())

    assert effects == [Spool((report(),)), send_results(report())]


def test_too_many_unacknowledged_bytes_stop_further_results() -> None:
    """A dispatcher with a blocked disk must not fill the workers' memory."""
    worker = attached_worker()
    worker.on_assign(D, assignment(), moment())
    worker.on_attempts_ended(
        attempts_ended(report(end=outcome(stdout=bytes(OUTBOX_BYTES_MAX)))), moment()
    )

    assert worker.credit == 0

    effects = worker.on_results_ok(ResultsOk((KEY,)), moment())

    assert effects == [Unspool((KEY,)), send_results(credit=2)]


def test_a_new_dispatcher_gets_ended_attempts_before_running_ones() -> None:
    """An attempt in neither list would run again."""
    worker = attached_worker()
    worker.on_assign(D, assignment("t", "u"), moment())
    gone = worker.detach(moment())
    spooled = worker.on_attempts_ended(attempts_ended(), moment())

    effects = worker.attach(E, epoch(2, "e"), moment())

    assert gone == []
    assert spooled == [Spool((report(envelope=spec()),))]
    assert effects == [
        send_results(report(envelope=spec()), to="e"),
        Send(E, (Reattach(((attempt(), spec("u")),), 2, NodeState.READY),)),
    ]


def test_results_that_survived_a_restart_are_sent() -> None:
    """The spool exists so that no result is lost."""
    worker = detached_worker(report(envelope=spec()))

    effects = worker.attach(D, epoch(1, "d"), moment())

    assert effects == [
        send_results(report(envelope=spec())),
        Send(D, (Reattach((), 2, NodeState.READY),)),
    ]
    assert worker.on_results_ok(ResultsOk((KEY,)), moment()) == [Unspool((KEY,))]


def test_results_beyond_one_message_are_listed_as_running_first() -> None:
    """A new dispatcher is not flooded, and counts none of them as lost."""
    saved = [
        report(name, end=outcome(stdout=b"x" * 3000), envelope=spec(name))
        for name in ("t", "u")
    ]
    worker = detached_worker(*saved, limits=Limits(entries_bytes=5000))

    effects = worker.attach(D, epoch(1, "d"), moment())
    more = worker.on_results_ok(ResultsOk((KEY,)), moment())

    assert effects == [
        send_results(saved[0]),
        Send(D, (Reattach(((attempt(), spec("u")),), 2, NodeState.READY),)),
    ]
    assert more == [Unspool((KEY,)), send_results(saved[1])]


def test_a_dispatcher_s_own_results_wait_for_no_acknowledgement() -> None:
    """A strict dispatcher without a standby sends none, and none of them runs."""
    names = ("t", "u", "v")
    saved = [
        report(name, end=outcome(stdout=b"x" * 3000), envelope=spec(name))
        for name in names
    ]
    worker = detached_worker(*saved, limits=Limits(entries_bytes=5000))

    first = worker.attach(ME, epoch(), moment())[0]
    later = [effect for _ in names for effect in worker.on_time(moment())]

    assert [first, *later] == [send_results(each, to="a") for each in saved]
    assert worker._timers.next_at() == pytest.approx(moment(RESEND_MAX_S).mono_s)


def test_a_late_acknowledgement_removes_no_result_listed_as_running() -> None:
    """The previous dispatcher has the result; the present one would wait for ever."""
    saved = [
        report(name, end=outcome(stdout=b"x" * 3000), envelope=spec(name))
        for name in ("t", "u")
    ]
    worker = detached_worker(*saved, limits=Limits(entries_bytes=5000))
    worker.attach(D, epoch(1, "d"), moment())
    late = ResultsOk(((TaskId("u"), attempt()),))

    assert worker.on_results_ok(late, moment()) == [send_results(saved[1])]
    assert worker.on_results_ok(late, moment()) == [Unspool(late.items)]


def test_a_dispatcher_that_steps_down_writes_its_own_results_to_disk() -> None:
    """They were meant for its own log, which it no longer writes."""
    worker = detached_worker()
    worker.attach(ME, epoch(), moment())
    worker.on_assign(ME, assignment(sender="a"), moment())
    worker.on_attempts_ended(attempts_ended(), moment())

    assert worker.detach(moment()) == [Spool((report(envelope=spec()),))]
    assert worker.detach(moment()) == []


def test_without_a_dispatcher_nothing_is_due_and_results_wait_on_disk() -> None:
    """A lone worker may stop: it sends them after its next start."""
    worker = detached_worker(report(envelope=spec()))

    assert worker.on_time(moment(60)) == []
    assert worker._timers.next_at() == math.inf
    assert worker.is_idle
