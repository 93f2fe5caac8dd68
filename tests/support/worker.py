"""A single worker, and builders of its inputs and outputs."""

from __future__ import annotations

from octaskly.core.effects import Send
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import AttemptState, EndReason
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.protocol.messages import Assign, Kill, Report, Results
from octaskly.core.worker.worker import Worker
from tests.support.builders import (
    attempt,
    epoch,
    moment,
    node_id,
    outcome,
    report,
    settings,
    spec,
)

ME, D, E = node_id("a"), node_id("d"), node_id("e")
KEY = (TaskId("t"), attempt())
CANCELLED = outcome(AttemptState.CANCELLED, EndReason.CANCELLED)


def detached_worker(
    *saved: Report, slots: int = 2, limits: Limits | None = None
) -> Worker:
    """Return a worker without a dispatcher."""
    return Worker(
        settings("a", slots=slots, limits=limits), saved, TimerHeap(), Outbox()
    )


def attached_worker(slots: int = 2, limits: Limits | None = None) -> Worker:
    """Return a worker that follows D in epoch 1."""
    made = detached_worker(slots=slots, limits=limits)
    made.attach(D, epoch(1, "d"), moment())
    return made


def assignment(*names: str, term: int = 1, sender: str = "d") -> Assign:
    """Return a dispatcher's message that assigns these tasks."""
    items = tuple((attempt(), spec(name)) for name in names or ("t",))
    return Assign(epoch(term, sender), items)


def kill_message(*keys: tuple[TaskId, object], term: int = 1) -> Kill:
    """Return a message to end attempts."""
    return Kill(epoch(term, "d"), keys or (KEY,))  # type: ignore[arg-type]


def attempts_ended(*reports: Report) -> tuple[Report, ...]:
    """Return the reports with which the runner ends these attempts."""
    return reports or (report(),)


def send_results(*reports: Report, credit: int = 2, to: str = "d") -> Send:
    """Return the message that carries results."""
    return Send(node_id(to), (Results(reports, credit),))
