"""While many reports arrive, they wait for each other; else nothing waits."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from octaskly.core.effects import Append, Save, Send
from octaskly.core.events import AttemptsEnded, Event, Received, TimerFired
from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Fact,
    Finished,
    MembersSucceeded,
    Submitted,
)
from octaskly.core.log.range_facts import success_facts
from octaskly.core.model.arrays import RangeMembers, member_id
from octaskly.core.model.ids import Epoch, TaskId
from octaskly.core.model.nodes import LoadSample, NodeState
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import AttemptState
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.node.gathering import (
    ACK_WAIT_S,
    ENTRY_BYTES,
    GATHER_S,
    REPORT_WAIT_S,
    REPORTS_MAX,
    GatheredEffect,
    Gathering,
)
from octaskly.core.protocol.messages import (
    HeartbeatOk,
    HelloOk,
    Leave,
    MemberSuccess,
    Message,
    RangeReport,
    RangeResults,
    Results,
    ResultsOk,
)
from tests.support.builders import (
    STREAM,
    attempt,
    moment,
    node_id,
    outcome,
    report,
    spec,
)
from tests.support.dispatcher import results_message

MANY = 3
A, B = node_id("a"), node_id("b")
T, U = TaskId("t"), TaskId("u")
END = Finished(T, attempt(), A, outcome())
ARRAY = TaskId("task-001-0000000a")
MEMBERS = RangeMembers(ARRAY, 1, 1, attempt(), (0, 1))
MEMBER_END = Finished(member_id(ARRAY, 1), attempt(), A, outcome())
(MEMBERS_END,) = success_facts(
    MEMBERS,
    A,
    [replace(outcome(duration_ms=1), started_ms=2, ended_ms=3)] * 2,
    term=1,
)
ORDER = Assigned(U, attempt(), A)
ENTRIES_MAX = 4  #: in one write
REPORT = Received(B, (results_message(),))


class Writes:
    """A gathering, and numbered writes as a journal makes them."""

    def __init__(self) -> None:
        limits = Limits(many_reports=MANY, entries_bytes=ENTRIES_MAX * ENTRY_BYTES)
        self.timers = TimerHeap()
        self.unended: set[TaskId] = set()
        """The arrays with members that have not ended."""
        self.gathering = Gathering(limits, self.timers, self.unended.__contains__)
        self._number = self._seq = 0

    def write(self, *facts: Fact) -> Append:
        """Return the next write."""
        self._number += 1
        first, self._seq = self._seq + 1, self._seq + len(facts)
        entries = (Entry(STREAM, first + n, 1, fact) for n, fact in enumerate(facts))
        return Append(self._number, tuple(entries))

    def hold(self, effect: GatheredEffect, at_s: float = 0.0) -> bool:
        """Return True if an effect waits."""
        return self.gathering.hold(effect, moment(at_s))

    def report(self, at_s: float = 0.0, event: Event | None = None) -> bool:
        """Return True if a report waits."""
        event = event or REPORT
        return self.gathering.hold_report(event, moment(at_s), lambda: True)

    def report_many(self, at_s: float = 0.0) -> None:
        """Bring so many reports that the next one waits."""
        for _ in range(MANY - 1):
            assert not self.report(at_s)
        assert self.report(at_s)
        assert self.gathering.take_reports() == [REPORT]
        assert self.due(at_s) == []

    def due(self, at_s: float, *, may_wait: bool = True) -> list[Append | Send]:
        """Return what has waited long enough."""
        return self.gathering.take_due(moment(at_s), may_wait=may_wait)

    def next_due_s(self) -> float:
        """Return the time of the timer, from the start of the test."""
        return self.timers.next_at() - moment().mono_s


def joined(*writes: Append) -> Append:
    """Return writes as one."""
    entries = tuple(entry for write in writes for entry in write.entries)
    return Append(writes[-1].number, entries)


def ack(task: TaskId = T, *others: Message) -> Send:
    """Return a message to worker b that acknowledges the end of a task."""
    return Send(B, (ResultsOk(((task, attempt()),)), *others))


def test_a_report_on_an_idle_mesh_is_written_and_acknowledged_at_once() -> None:
    """Each comes later than the time in which many would wait for each other."""
    writes = Writes()

    for at_s in (0.0, GATHER_S, 2 * GATHER_S, 3 * GATHER_S, 4 * GATHER_S):
        assert not writes.report(at_s)
        assert not writes.hold(writes.write(END, ORDER), at_s)
        assert not writes.hold(ack(), at_s)
        assert writes.due(at_s) == []

    assert writes.next_due_s() == math.inf


def test_many_reports_are_written_together_after_a_bounded_time() -> None:
    """The time counts from the first that waits, so that a steady stream ends it."""
    writes = Writes()
    writes.report_many()
    first, second = writes.write(END, ORDER), writes.write(END)

    assert writes.hold(first, 0.01)
    assert writes.hold(second, 0.03)
    assert writes.due(0.03) == []
    assert writes.next_due_s() == pytest.approx(0.01 + GATHER_S)
    assert writes.due(0.01 + GATHER_S) == [joined(first, second)]
    assert writes.next_due_s() == math.inf


def test_many_reports_wait_for_each_other_for_a_moment() -> None:
    """One step then frees all their slots."""
    writes = Writes()
    writes.report_many()
    here = AttemptsEnded((report(),))

    assert writes.report(0.01)
    assert writes.report(0.011, here)
    assert writes.due(0.011) == []
    assert writes.next_due_s() == pytest.approx(0.01 + REPORT_WAIT_S)
    assert writes.gathering.take_reports() == [REPORT, here]
    assert writes.gathering.take_reports() == []


@pytest.mark.parametrize(
    ("took_ms", "wait_s"),
    [(None, REPORT_WAIT_S), (50, REPORT_WAIT_S), (500, 0.005), (5000, 0.01)],
)
def test_a_report_waits_for_a_small_share_of_its_attempt(
    took_ms: int | None, wait_s: float
) -> None:
    """The slot of a long attempt may be free for longer, within bounds."""
    writes = Writes()
    writes.report_many()
    ended = report(end=outcome(duration_ms=took_ms))
    success = MemberSuccess(None, None, took_ms)

    for event in (
        AttemptsEnded((ended,)),
        Received(B, (results_message(ended),)),
        Received(B, (RangeResults((RangeReport(MEMBERS, (success,)),), 2),)),
    ):
        assert writes.report(event=event)
        assert writes.next_due_s() == pytest.approx(wait_s)
        assert writes.gathering.take_reports() == [event]
        assert writes.due(0.0) == []


def test_the_shortest_of_several_attempts_ends_the_wait() -> None:
    """It does not wait for longer because others came before."""
    writes = Writes()
    writes.report_many()
    long = AttemptsEnded((report(end=outcome(duration_ms=500)),))

    assert writes.report(event=long)
    assert writes.report(0.001)
    assert writes.next_due_s() == pytest.approx(0.001 + REPORT_WAIT_S)


def test_a_heartbeat_waits_only_with_reports() -> None:
    """A hundred workers send as many of these in a second."""
    writes = Writes()
    writes.report_many()
    heartbeat = HeartbeatOk(
        Epoch(1, A), 0.0, NodeState.READY, 2, LoadSample(0, 0, 0, 0)
    )
    health = Received(B, (heartbeat,))
    both = Received(B, (results_message(), heartbeat))

    assert not writes.report(event=health)
    assert writes.report(event=both)
    assert writes.report(event=health)
    assert writes.gathering.take_reports() == [both, health]


def test_of_all_events_only_reports_and_heartbeats_wait() -> None:
    """A worker that has just become free gets work at once."""
    writes = Writes()
    writes.report_many()
    others: list[Message] = [Results((), 2), HelloOk()]

    for other in others:
        assert not writes.report(event=Received(B, (other,)))
        assert not writes.report(event=Received(B, (results_message(), other)))
    assert not writes.report(event=TimerFired())


def test_the_reports_that_wait_are_bounded() -> None:
    """Each may hold as much output as a frame may."""
    writes = Writes()
    writes.report_many()

    assert [writes.report() for _ in range(REPORTS_MAX + 1)] == [
        *[True] * REPORTS_MAX,
        False,
    ]


def test_another_write_takes_along_what_waits() -> None:
    """Numbers of writes rise, and the client of a submission waits."""
    writes = Writes()
    writes.report_many()
    waiting = writes.write(END)

    assert writes.hold(waiting)
    assert not writes.hold(writes.write(END, Submitted(spec("u"))))
    assert not writes.hold(Save(number=9, term=2))
    assert writes.gathering.take_writes() == [waiting]
    assert writes.gathering.take_writes() == []


def test_assignments_wait_only_together_with_ends() -> None:
    """Alone, they are not the consequence of a report."""
    writes = Writes()
    writes.report_many()

    assert not writes.hold(writes.write(ORDER))
    assert writes.hold(writes.write(END, ORDER))


@pytest.mark.parametrize("state", [*AttemptState][:-1])
def test_an_attempt_that_did_not_succeed_is_written_at_once(
    state: AttemptState,
) -> None:
    """It takes along what waits; few of all ends are such."""
    writes = Writes()
    writes.report_many()
    failed = Finished(T, attempt(), A, outcome(state=state))

    assert writes.hold(writes.write(END))
    assert not writes.hold(writes.write(END, failed, ORDER))


@pytest.mark.parametrize("end", [MEMBER_END, MEMBERS_END])
def test_the_end_of_the_last_member_of_an_array_is_written_at_once(
    end: Finished | MembersSucceeded,
) -> None:
    """Whoever waits for the array gets it now; the end of another member waits."""
    writes = Writes()
    writes.report_many()
    writes.unended.add(ARRAY)

    assert writes.hold(writes.write(END, end, ORDER))
    writes.unended.remove(ARRAY)
    assert not writes.hold(writes.write(END, end, ORDER))


def test_a_large_write_does_not_wait() -> None:
    """Memory is bounded, also while the output of many tasks arrives."""
    writes = Writes()
    writes.report_many()
    large = Finished(T, attempt(), A, outcome(stdout=b"x" * ENTRIES_MAX * ENTRY_BYTES))

    assert not writes.hold(writes.write(large))
    assert writes.hold(writes.write(*[END] * ENTRIES_MAX))
    assert not writes.hold(writes.write(END))


def test_an_acknowledgement_goes_with_the_next_message_to_its_worker() -> None:
    """A frame for it alone would cost as much as the order."""
    writes = Writes()
    writes.report_many()
    writes.hold(writes.write(END))
    to_a, to_b = Send(A, (HelloOk(),)), Send(B, (HelloOk(),))
    both = ResultsOk(((T, attempt()), (U, attempt())))

    assert writes.hold(ack())
    assert writes.hold(ack(U))
    assert writes.gathering.with_ack(to_a) == to_a
    assert writes.gathering.with_ack(to_b) == Send(B, (both, HelloOk()))
    assert writes.gathering.with_ack(to_b) == to_b


def test_an_acknowledgement_without_another_message_leaves_in_time() -> None:
    """Else the worker would repeat its report."""
    writes = Writes()
    writes.report_many()
    writes.hold(writes.write(END))
    writes.due(GATHER_S)

    assert writes.hold(ack(), 0.01)
    assert not writes.hold(ack(U, Leave("")), 0.01)
    assert writes.due(0.01) == []
    assert writes.next_due_s() == pytest.approx(0.01 + ACK_WAIT_S)
    assert writes.due(0.01 + ACK_WAIT_S) == [ack()]
    assert writes.due(0.01 + 2 * ACK_WAIT_S) == []


def test_nothing_waits_at_a_node_that_does_not_dispatch() -> None:
    """A successor needs all of the log, and a standby acknowledges it."""
    writes = Writes()
    writes.report_many()
    waiting = writes.write(END)
    writes.hold(waiting)
    writes.hold(ack())

    assert not writes.gathering.hold_report(REPORT, moment(), lambda: False)
    assert writes.due(0.0, may_wait=False) == [waiting, ack()]
    assert writes.next_due_s() == math.inf
