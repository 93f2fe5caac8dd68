"""A dispatcher with its journal, and builders of its inputs and outputs."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import (
    Answer,
    Append,
    Effect,
    LoadLive,
    LoadQueued,
    LoadTasks,
    Send,
)
from octaskly.core.events import (
    CancelRequested,
    LiveLoaded,
    QueuedLoaded,
    SavedState,
    TasksLoaded,
    TasksSubmitted,
)
from octaskly.core.log.facts import Fact
from octaskly.core.log.merge import TaskRecord, apply_fact
from octaskly.core.log.range_facts import member_entries, task_entries
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.drafts import TaskDraft, log_id_of
from octaskly.core.model.ids import AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.protocol.messages import Assign as DispatchMessage
from octaskly.core.protocol.messages import (
    Kill,
    RangeResults,
    Reattach,
    Report,
    Results,
    ResultsOk,
)
from octaskly.core.replication.replication import Replication
from octaskly.core.replies import CancelResult
from octaskly.core.scheduling.task_queue import TaskQueue
from tests.support.builders import (
    STREAM,
    attempt,
    draft,
    epoch,
    is_live,
    journal,
    live_reply,
    load_reply,
    moment,
    node_id,
    node_info,
    outcome,
    report,
    settings,
    spec,
    tasks_reply,
)

A, B = node_id("a"), node_id("b")
T = TaskId("t")
FAILED = outcome(AttemptState.FAILED)
LOST_OUTCOME = Outcome(
    state=AttemptState.RELEASED, reason=EndReason.LOST, ended_ms=moment(9).wall_ms
)
LATE = 9.0  #: seconds: the adopt window is over


class DispatcherWithJournal:
    """A dispatcher on node a with its journal; the test makes the disk commit."""

    def __init__(
        self, limits: Limits | None = None, *, is_strict: bool = False
    ) -> None:
        self.journal = journal()
        known = replace(settings("a", limits=limits), is_strict=is_strict)
        self.replication = Replication(
            known,
            self.journal,
            PeerTable(known, SavedState(), TimerHeap(), Outbox()),
            TimerHeap(),
        )
        self.timers = TimerHeap()  #: effects of the dispatcher
        self.is_log_complete = True
        self.dispatch = Dispatcher(
            known,
            self.journal,
            self.replication,
            7,
            self.timers,
            lambda _: self.is_log_complete,
        )

    def commit(self, at: float = 0.0) -> list[Effect]:
        now = moment(at)
        self.journal.on_persisted(self.journal.last_number)
        return self.replication.release_acks(now) + self.journal.run_deferred(now)


def dispatcher_with(
    *records: TaskRecord,
    live: tuple[TaskRecord, ...] = (),
    limits: Limits | None = None,
    **workers: int,
) -> DispatcherWithJournal:
    """Return dispatcher a, whose store held these tasks, with these workers."""
    world = DispatcherWithJournal(limits)
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(1, records, has_more=False), moment())
    for name, slots in workers.items():
        world.dispatch.on_worker_up(node_info(name, slots), moment())
        world.dispatch.on_reattach(
            NodeId(name), Reattach((), slots, NodeState.READY), moment()
        )
    world.dispatch.on_live_loaded(LiveLoaded(1, live), moment())
    world.commit()
    return world


def found(
    world: DispatcherWithJournal, *records: TaskRecord, task: str = "t", at: float = 0.0
) -> list[Effect]:
    """Let the store answer a read of tasks by id: of these records, or of none."""
    asked = {TaskId(task), *(record.id for record in records)}
    answer = TasksLoaded(1, tuple(sorted(asked)), records)
    return world.dispatch.on_tasks_loaded(answer, moment(at))


def follow_reads(
    world: DispatcherWithJournal, log: TaskRecord, effects: list[Effect]
) -> list[Fact]:
    """Let commits and reads of one task happen; return the facts that are written.

    Args:
        world: The dispatcher, without a read of live tasks that is still to come.
        log: What is known of the task before the facts of `effects`.
        effects: The first effects.
    """
    facts: list[Fact] = []
    pending = deque(effects)
    while pending or (pending := deque(world.commit())):
        match pending.popleft():
            case Append(entries=entries):
                facts += [entry.fact for entry in entries]
                for _, fact in task_entries(entries):
                    log = apply_fact(log, fact)
            case LoadTasks() as asked:
                reply = tasks_reply([log], asked)
                pending += world.dispatch.on_tasks_loaded(reply, moment())
            case LoadLive() as asked:
                live = live_reply([log], asked, is_live)
                pending += world.dispatch.on_live_loaded(live, moment())
            case LoadQueued() as asked:
                waiting = [log] if log.state is TaskState.QUEUED else []
                loaded = load_reply(waiting, asked)
                pending += world.dispatch.on_queued_loaded(loaded, moment())
            case _:
                pass
    return facts


def reattach_report(name: str, credit: int) -> tuple[NodeId, Reattach]:
    """Return the first message of a worker that runs nothing."""
    return NodeId(name), Reattach((), credit, NodeState.READY)


def dispatcher_running_t(**workers: int) -> DispatcherWithJournal:
    """Return a dispatcher that has assigned task t to one of these workers."""
    return dispatcher_with(task_record(), live=(), limits=None, **workers)


def task_record(
    name: str = "t", *attempts: Attempt, place: int = 1, cancelled: str | None = None
) -> TaskRecord:
    """Return a task as the store has it."""
    task = spec(name, ord=place)
    return TaskRecord(id=task.id, spec=task, attempts=attempts, cancelled_by=cancelled)


def live_attempt(node: NodeId, of: AttemptId | None = None) -> Attempt:
    """Return an attempt that is live in the log."""
    return Attempt(id=of or attempt(), node=node)


def ended_attempt(node: NodeId, of: AttemptId | None = None) -> Attempt:
    """Return an attempt that succeeded, by which no dispatcher has decided its task."""
    return Attempt(of or attempt(), node, AttemptState.OK, outcome())


def submission(
    *drafts: TaskDraft, ticket: int = 1, by: str = "tester"
) -> TasksSubmitted:
    """Return a submission."""
    drafts = drafts or (draft(),)
    suffixes = tuple(f"0000000{index}" for index in range(len(drafts)))
    log_ids = tuple(log_id_of(draft, by) for draft in drafts)
    return TasksSubmitted(ticket, drafts, by, suffixes, log_ids)


def cancel_request(
    known: TaskState = TaskState.QUEUED, *, force: bool = False, task: TaskId = T
) -> CancelRequested:
    """Return a request to cancel task t."""
    return CancelRequested(5, task, known, force, "ann")


def cancel_reply(
    was_done: bool = True, state: TaskState = TaskState.CANCELLED
) -> Answer:
    """Return the answer to `cancel`."""
    return Answer(5, CancelResult(T, state, was_done))


def appended_facts(effects: list[Effect]) -> list[Fact]:
    """Return the facts of the one append, which comes first."""
    assert isinstance(effects[0], Append)
    assert not any(isinstance(effect, Append) for effect in effects[1:])
    return [entry.fact for entry in member_entries(effects[0].entries)]


def send_assignment(node: NodeId, *items: tuple[AttemptId, TaskSpec]) -> Send:
    """Return the message that hands attempts to a worker."""
    return Send(node, (DispatchMessage(epoch(), items),))


def send_kill(node: NodeId, of: AttemptId | None = None) -> Send:
    """Return the message that ends an attempt of task t."""
    return Send(node, (Kill(epoch(), ((T, of or attempt()),)),))


def send_acknowledgement(node: NodeId, of: AttemptId | None = None) -> Send:
    """Return the message that acknowledges the end of an attempt of task t."""
    return Send(node, (ResultsOk(((T, of or attempt()),)),))


def results_message(*reports: Report, credit: int = 2) -> Results:
    """Return the message by which a worker reports ends."""
    return Results(reports or (report(),), credit)


def deliver_results(
    dispatch: Dispatcher, node: NodeId, message: Results | RangeResults, now: Moment
) -> list[Effect]:
    """Let a dispatcher handle the results of a worker in a step of their own."""
    dispatch.record_results(node, message, now)
    return dispatch.commit_results(now)


def queued_count(queue: TaskQueue) -> int:
    """Return the number of queued tasks in memory."""
    return sum(lane.queued for lane in queue.lanes.all_lanes())
