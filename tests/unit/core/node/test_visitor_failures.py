"""How a visitor ends: what it reports of its tasks, and when it is not wanted."""

from __future__ import annotations

import pytest

from octaskly.core.effects import Dial, Effect, Send, Stop, Stopped
from octaskly.core.events import (
    AttemptsEnded,
    Event,
    PeerDown,
    PeerUp,
    Received,
    StopRequested,
    TimerFired,
)
from octaskly.core.model.ids import Address
from octaskly.core.model.keyring_state import OUTDATED_REASON, VISIT_ENDED_REASON
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.core.node.visitor_node import FAILURE_HOLD_S, Visit, VisitorNode
from octaskly.core.protocol.messages import Heartbeat, Hello, Results
from octaskly.core.protocol.visitor_rules import TIME_UP_REASON
from tests.support.builders import (
    epoch,
    node_moment,
    outcome,
    released,
    report,
    settings,
)
from tests.support.worker import D, assignment

FAILED = outcome(AttemptState.FAILED, EndReason.SIGNAL)
GIVEN_BACK = released(EndReason.DRAINING, "it failed while its node stopped")
BORN_S = 100.0


class Visiting:
    """A visitor that runs one task."""

    def __init__(self) -> None:
        known = settings("a")
        visit = Visit(
            seeds=((Address("10.0.0.1", 1),),), ends_ms=1 << 53, return_s=30.0
        )
        self.node = VisitorNode(known, visit)
        hello = Hello(node=known.node, epoch=epoch(1, "d"), dispatcher=D)
        self.step(PeerUp(D, hello, hello, Address("10.0.0.1", 1)))
        self.step(Received(D, (Heartbeat(epoch(1, "d"), 0.0), assignment("t"))))

    def step(self, event: Event, after_s: float = 0.0) -> list[Outcome]:
        """Handle an event a while later; return the reported outcomes."""
        effects = self.node.step(event, node_moment(BORN_S + after_s))
        return [each for effect in effects for each in outcomes_in(effect)]

    def effects(self, event: Event, after_s: float) -> list[Effect]:
        """Handle an event a while later; return all effects."""
        return self.node.step(event, node_moment(BORN_S + after_s))

    def end(self, how: Outcome, after_s: float) -> list[Outcome]:
        """End the task."""
        return self.step(AttemptsEnded((report("t", end=how),)), after_s)


def outcomes_in(effect: Effect) -> list[Outcome]:
    messages = effect.messages if isinstance(effect, Send) else ()
    results = [each for each in messages if isinstance(each, Results)]
    return [reported.outcome for each in results for reported in each.reports]


@pytest.mark.parametrize("failure", [FAILED, outcome(AttemptState.FAILED)])
def test_failure_just_before_the_stop_is_given_back(failure: Outcome) -> None:
    """Slurm signals the task and the visitor at once, and a shell ends with a code."""
    visiting = Visiting()

    assert visiting.end(failure, 1.0) == []
    assert visiting.step(StopRequested(0.0), 2.9) == [GIVEN_BACK]


@pytest.mark.parametrize("failure", [FAILED, outcome(AttemptState.FAILED)])
def test_failure_after_the_stop_is_given_back(failure: Outcome) -> None:
    """The visitor may have seen its own signal first."""
    visiting = Visiting()
    visiting.step(StopRequested(0.0), 1.0)

    assert visiting.end(failure, 2.0) == [GIVEN_BACK]


def test_failure_is_reported_when_the_visitor_stays() -> None:
    """It was the task's own, and is no later than promised."""
    visiting = Visiting()
    assert visiting.end(FAILED, 1.0) == []

    assert visiting.node.deadline() == BORN_S + 1.5
    assert visiting.step(TimerFired(), 1.4 + FAILURE_HOLD_S - 0.5) == []
    assert visiting.node.deadline() == BORN_S + 1.0 + FAILURE_HOLD_S
    assert visiting.step(TimerFired(), 1.0 + FAILURE_HOLD_S) == [FAILED]
    assert visiting.step(StopRequested(0.0), 3.5) == []


@pytest.mark.parametrize(
    "end",
    [
        outcome(),
        outcome(AttemptState.FAILED, EndReason.TIMEOUT),
        outcome(AttemptState.FAILED, EndReason.LIMIT),
    ],
)
def test_other_ends_are_reported_at_once(end: Outcome) -> None:
    """Octaskly itself ended the task, or it was done."""
    assert Visiting().end(end, 1.0) == [end]


@pytest.mark.parametrize(
    "reason", [VISIT_ENDED_REASON, OUTDATED_REASON, TIME_UP_REASON]
)
def test_a_visitor_that_is_not_wanted_ends_its_tasks_and_leaves(reason: str) -> None:
    """They run elsewhere by now, and no member will admit it again."""
    visiting = Visiting()

    told = visiting.effects(PeerDown(D, reason), 1.0)
    later = visiting.effects(TimerFired(), 1.5)
    ended = visiting.effects(AttemptsEnded((report("t", end=GIVEN_BACK),)), 2.0)

    assert [each.reason for each in told if isinstance(each, Stop)] == [
        EndReason.DRAINING
    ]
    assert not any(isinstance(each, Dial) for each in (*told, *later, *ended))
    assert Stopped() in ended


def test_a_visitor_whose_link_broke_keeps_its_tasks() -> None:
    """It finds the next dispatcher, and its tasks continue."""
    visiting = Visiting()

    told = visiting.effects(PeerDown(D, "eof"), 1.0)
    later = visiting.effects(TimerFired(), 1.5)

    assert not any(isinstance(each, Stop) for each in (*told, *later))
    assert any(isinstance(each, Dial) for each in later)
