"""A dispatcher with workers, links, disk and reads, in steps that a test chooses.

Everything that takes time in production waits here until a test lets it happen:
commits, reads of the store, messages on links, the end of attempts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.dispatcher.task_rules import retry_policy
from octaskly.core.effects import (
    AnnounceTaskStates,
    Answer,
    Append,
    Effect,
    LoadLive,
    LoadQueued,
    LoadTasks,
    LoadUnblocked,
    Send,
    Start,
    Stop,
)
from octaskly.core.events import (
    CancelRequested,
    LiveLoaded,
    QueuedLoaded,
    SavedState,
    TasksLoaded,
    TasksSubmitted,
    UnblockedLoaded,
    UnblockedTask,
)
from octaskly.core.log.facts import (
    Assigned,
    Fact,
    Finished,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import TaskRecord, apply_fact, meets_dependency
from octaskly.core.log.range_facts import task_entries
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import AttemptId, Epoch, Moment, NodeId, StreamId, TaskId
from octaskly.core.model.nodes import Availability, LoadSample, OperatorHold
from octaskly.core.model.settings import Limits, Settings
from octaskly.core.model.task_options import (
    NO_REQUIREMENTS,
    After,
    Requirements,
    Retry,
    TaskOptions,
    requires_of,
)
from octaskly.core.model.tasks import (
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.protocol.messages import Assign as DispatchMessage
from octaskly.core.protocol.messages import (
    AssignRanges,
    HeartbeatOk,
    Kill,
    Message,
    RangeResults,
    RangeResultsOk,
    Reattach,
    Report,
    Results,
    ResultsOk,
)
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication
from octaskly.core.replies import CancelResult, TasksAccepted
from octaskly.core.worker.worker import Worker
from tests.support import builders
from tests.support.attempts_in_messages import acknowledged_keys
from tests.support.dispatcher import deliver_results

LIMITS = Limits(window_tasks=4, load_tasks=2, prefetch=3, lanes=4, lane_tasks=3)
NODES = {
    "a": builders.node_info("a", 2),
    "b": builders.node_info("b", 2, memory_mb=100, labels=(("disk", "ssd"),)),
    "c": builders.node_info("c", 4, memory_mb=50, gpus=("0", "1")),
}
NEEDS = (
    None,
    Requirements(cpus=2),
    Requirements(cpus=3),
    Requirements(cpus=4, gpus=2),
    Requirements(gpus=1),
    Requirements(memory_mb=40),
    Requirements(cpus=2, memory_mb=70),
    Requirements(labels=(("disk", "ssd"),)),
    Requirements(node="a"),
)
"""More kinds of needs than lanes."""
IMPOSSIBLE = Requirements(cpus=5)
ELSEWHERE = AttemptId(0, StreamId(7), 1, 1)  #: an attempt of another half of a split

Key = tuple[TaskId, AttemptId]
Read = LoadQueued | LoadLive | LoadTasks | LoadUnblocked
ReadAnswer = QueuedLoaded | LiveLoaded | TasksLoaded | UnblockedLoaded


@dataclass(frozen=True)
class EpochBegan:
    """A marker in a link's queue: the worker learns here of a new epoch."""

    epoch: Epoch


@dataclass
class LinkedWorker:
    """One worker with its link and its runner."""

    worker: Worker
    is_linked: bool = False
    down: deque[Message | EpochBegan] = field(default_factory=deque)
    up: deque[Message] = field(default_factory=deque)
    here: dict[Key, TaskSpec] = field(default_factory=dict)
    stopping: set[Key] = field(default_factory=set)


class DispatcherModel:
    """One dispatcher and all its peers."""

    def __init__(self, names: str = "abc") -> None:
        self.seconds = 0.0
        self.me = NodeId(names[0])
        self.journal = Journal(SavedState(), Outbox())
        self.timers = TimerHeap()  #: effects of the dispatcher
        known = builders.settings(names[0], limits=LIMITS)
        self.replication = Replication(
            known,
            self.journal,
            PeerTable(known, SavedState(), TimerHeap(), Outbox()),
            self.timers,
        )
        self.dispatch = Dispatcher(
            known,
            self.journal,
            self.replication,
            0,
            self.timers,
            lambda _: True,
        )
        self.workers = {
            NodeId(name): LinkedWorker(
                Worker(
                    Settings(node=NODES[name], limits=LIMITS), (), TimerHeap(), Outbox()
                )
            )
            for name in names
        }
        self.written: dict[TaskId, TaskRecord] = {}
        """All facts, durable or not."""
        self.durable: dict[TaskId, TaskRecord] = {}
        self.commits: deque[Append] = deque()
        self.reads: deque[Read] = deque()
        self.answers: deque[ReadAnswer] = deque()
        self.accepted: list[TaskId] = []
        self.cancelled: set[TaskId] = set()
        self.announced: set[TaskId] = set()
        self.ticket = 0
        self.asked: dict[int, TaskId] = {}
        self.term = 0
        self.last_end = builders.outcome()
        """Outcome of the attempts that are left once all faults are over."""

    @property
    def now(self) -> Moment:
        return builders.moment(self.seconds)

    # --- Possible events.

    def begin_epoch(self) -> None:
        """Begin a new epoch, after the end of the previous one."""
        self.dispatch.stop_dispatching()
        self.journal.close_stream()
        while self.commits:
            self.commit()  # The claim is a commit behind them.
        self.term += 1
        stream = StreamId(1000 + self.term)
        self.journal.open_stream(stream)
        epoch = Epoch(self.term, self.me)
        self.perform(self.dispatch.start_dispatching(epoch, stream, self.now))
        for node, linked in self.workers.items():
            if linked.is_linked:
                self.connect_follower(node)
                linked.down.append(EpochBegan(epoch))

    def connect_follower(self, node: NodeId) -> None:
        """Connect a follower to the dispatcher."""
        self.perform(self.dispatch.on_worker_up(NODES[node], self.now))

    def link(self, node: NodeId) -> None:
        linked = self.workers[node]
        if linked.is_linked:
            return
        linked.is_linked = True
        self.connect_follower(node)
        linked.down.append(EpochBegan(Epoch(self.term, self.me)))

    def cut(self, node: NodeId) -> None:
        linked = self.workers[node]
        if not linked.is_linked:
            return
        linked.is_linked = False
        linked.up.clear()
        linked.down.clear()
        self.perform(linked.worker.detach(self.now), node)
        effects = self.dispatch.on_worker_down(node, self.now)
        self.perform(effects)
        self._check_losses(node, effects)

    def _check_losses(self, node: NodeId, effects: list[Effect]) -> None:
        """Check that attempts that only waited on a lost worker do not count as lost.

        A task that must not run twice is an exception: it may have begun since.
        """
        appends = [effect for effect in effects if isinstance(effect, Append)]
        entries = [entry for append in appends for entry in append.entries]
        lost = [
            fact.task
            for _, fact in task_entries(entries)
            if isinstance(fact, Finished) and fact.outcome.reason is EndReason.LOST
        ]
        specs = [self.written[task].spec for task in lost]
        counted = [spec for spec in specs if spec is None or retry_policy(spec).on_lost]
        assert len(counted) <= NODES[node].slots, f"all of {lost} count as lost"

    def submit(
        self,
        count: int,
        requires: Requirements | None = None,
        priority: int = 0,
        retry: Retry | None = None,
        after: After | None = None,
    ) -> None:
        self.ticket += 1
        asked = TaskOptions(requires=requires, retry=retry, after=after)
        options = None if asked == TaskOptions() else asked
        draft = replace(builders.draft(), options=options, priority=priority)
        event = TasksSubmitted(
            self.ticket,
            (draft,) * count,
            "tester",
            tuple(f"{i:08x}" for i in range(count)),
            (None,) * count,
        )
        self.perform(self.dispatch.on_submitted(event, self.now))

    def cancel(self, task: TaskId, *, force: bool) -> None:
        self.ticket += 1
        self.asked[self.ticket] = task
        known = self.durable[task].state
        event = CancelRequested(self.ticket, task, known, force, "tester")
        self.perform(self.dispatch.on_cancel_requested(event, self.now))

    def commit(self) -> None:
        """Make the oldest append durable."""
        append = self.commits.popleft()
        for _, fact in task_entries(append.entries):
            self.durable[fact.task] = apply_fact(self.durable.get(fact.task), fact)
        self.journal.on_persisted(append.number)
        self.perform(self.replication.release_acks(self.now))
        self.perform(self.journal.run_deferred(self.now))

    def read(self) -> None:
        """Let the store answer the oldest read, from its durable state."""
        asked = self.reads.popleft()
        stored = list(self.stored())
        match asked:
            case LoadLive():
                reply = builders.live_reply(stored, asked, self.is_live)
                self.answers.append(reply)
            case LoadTasks():
                self.answers.append(builders.tasks_reply(stored, asked))
            case LoadUnblocked():
                self.answers.append(self._unblocked(asked))
            case LoadQueued():
                waiting = [
                    r
                    for r in stored
                    if r.spec and r.state is TaskState.QUEUED and not r.waits_for
                ]
                waiting.sort(key=lambda record: record.spec.ord if record.spec else 0)
                self.answers.append(builders.load_reply(waiting, asked))

    def _unblocked(self, asked: LoadUnblocked) -> UnblockedLoaded:
        """Return the tasks whose parents have ended, and which parent failed them."""
        waiting = [record for record in self.stored() if record.waits_for]
        unblocked = []
        for record in waiting:
            assert record.waits_for is not None
            parents = [self.durable[TaskId(task)] for task in record.waits_for.tasks]
            ended = [parent for parent in parents if parent.state.is_final]
            end = record.waits_for.end
            bad = [p.id for p in ended if not meets_dependency(end, p.state)]
            if bad or len(ended) == len(parents):
                unblocked.append(UnblockedTask(record, bad[0] if bad else None))
        return UnblockedLoaded(asked.query_number, tuple(unblocked), bool(waiting))

    def stored(self) -> Iterable[TaskRecord]:
        """Return the durable records as the store shows them, in the order of keys."""
        return self.durable.values()

    def is_live(self, record: TaskRecord) -> bool:
        """Return True if the store lists the task as live."""
        return builders.is_live(record)

    def answer(self) -> None:
        """Hand the oldest answer of the store to the dispatcher."""
        answer = self.answers.popleft()
        self.perform(self.dispatch.on_store_answer(answer, self.now))

    def absorb(self) -> None:
        self.perform(self.dispatch.on_remote_entries(self.now))

    def overtake(self, task: TaskId, end: Outcome | None) -> None:
        """Let the log of another node, which is on this disk now, end a task.

        `end` is that of an attempt there; None cancels the task.
        """
        fact: TaskFact = TaskCancelled(task, "other", self.term)
        if end is not None:
            fact = Finished(task, ELSEWHERE, NodeId("other"), end, self.term)
        for records in (self.written, self.durable):
            records[task] = apply_fact(records.get(task), fact)
        self.perform(self.dispatch.on_ended_elsewhere((task,), self.now))

    def hear_worker(self, node: NodeId) -> None:
        """Deliver the oldest message of a worker."""
        message = self.workers[node].up.popleft()
        match message:
            case Results() | RangeResults():
                effects = deliver_results(self.dispatch, node, message, self.now)
            case Reattach():
                effects = self.dispatch.on_reattach(node, message, self.now)
            case HeartbeatOk():
                effects = self.dispatch.on_heartbeat_ok(node, message, self.now)
            case _:
                raise AssertionError(message)
        self.perform(effects)

    def hear_dispatcher(self, node: NodeId) -> None:
        """Deliver the oldest message of the dispatcher to a worker."""
        linked = self.workers[node]
        worker = linked.worker
        message = linked.down.popleft()
        match message:
            case EpochBegan(epoch):
                effects = worker.attach(self.me, epoch, self.now)
            case DispatchMessage() | AssignRanges():
                effects = worker.on_assign(self.me, message, self.now)
            case Kill():
                effects = worker.on_kill(message, self.now)
            case ResultsOk() | RangeResultsOk():
                effects = worker.on_results_ok(message, self.now)
            case _:
                raise AssertionError(message)
        self.perform(effects, node)

    def beat(self, node: NodeId) -> None:
        linked = self.workers[node]
        if linked.is_linked:
            load = LoadSample(0.0, 0.0, 0, 0)
            epoch = Epoch(self.term, self.me)
            worker = linked.worker
            linked.up.append(
                HeartbeatOk(epoch, 0.0, worker.availability.state, worker.credit, load)
            )

    def finish(self, node: NodeId, outcome: Outcome) -> None:
        """End the attempt that has been on a worker for the longest time."""
        linked = self.workers[node]
        key = next(iter(linked.here))
        del linked.here[key]
        if key in linked.stopping and outcome.state is not AttemptState.OK:
            outcome = builders.outcome(AttemptState.CANCELLED)
        linked.stopping.discard(key)
        report = Report(task=key[0], attempt=key[1], outcome=outcome)
        self.perform(linked.worker.on_attempts_ended((report,), self.now), node)

    def pause(self, node: NodeId, *, is_paused: bool) -> None:
        hold = OperatorHold(is_paused=is_paused)
        effects = self.workers[node].worker.set_availability(
            Availability(hold), self.now
        )
        self.perform(effects, node)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        self.perform(self.dispatch.on_time(self.now))
        for node, linked in self.workers.items():
            self.perform(linked.worker.on_time(self.now), node)

    def check_grants(self) -> None:
        """Check that no worker has too many grants; stopping attempts do not count."""
        for name, linked in self.workers.items():
            granted = [
                requires
                for key, spec in linked.here.items()
                if key not in linked.stopping
                and (requires := requires_of(spec.options)) is not None
                and requires.needs_exclusive_resources
            ]
            info = NODES[name]
            assert sum(each.slots for each in granted) <= info.slots
            assert sum(each.memory_mb for each in granted) <= info.memory_mb
            assert sum(each.gpus for each in granted) <= len(info.gpus)

    def check_no_task_is_overlooked(self) -> None:
        """Check that waiting tasks have no room, except on a reserved worker."""
        placing = self.dispatch._step
        queue, lanes = placing.queue, placing.queue.lanes
        if placing.matcher.reservation is not None:
            return
        for group in lanes.groups():
            task = queue.first_in_group(group)
            if task is not None:
                requires = task.requires or NO_REQUIREMENTS
                node = placing.pool.take_resources(requires, group.excluded)
                assert node is None, task

    # --- Consequences.

    def perform(self, effects: list[Effect], node: NodeId | None = None) -> None:
        """Perform the effects of the dispatcher (or, with `node`, of that worker)."""
        for effect in effects:
            match effect:
                case Append():
                    self._write(effect)
                case Send(peer, messages):
                    self._send(node, peer, messages)
                case LoadQueued() | LoadLive() | LoadTasks() | LoadUnblocked():
                    self.reads.append(effect)
                case Answer(ticket, reply):
                    self._answered(ticket, reply)
                case AnnounceTaskStates(tasks):
                    shown = [self.durable[task] for task in tasks]
                    assert all(r.state.is_final or r.progress for r in shown)
                    self.announced.update(tasks)
                case Start(items):
                    assert node is not None
                    for attempt, spec in items:
                        assert (spec.id, attempt) not in self.workers[node].here
                        self.workers[node].here[spec.id, attempt] = spec
                case Stop(items):
                    assert node is not None
                    self.workers[node].stopping.update(items)
                case _:
                    pass

    def _write(self, append: Append) -> None:
        assert not self.commits or append.number == self.commits[-1].number + 1
        self.commits.append(append)
        for _, fact in task_entries(append.entries):
            self._check(fact)
            self.written[fact.task] = apply_fact(self.written.get(fact.task), fact)

    def _check(self, fact: Fact) -> None:
        """Reject a second live attempt, and one of a task that is over."""
        record = self.written.get(fact.task)
        if not isinstance(fact, Assigned) or record is None:
            return
        found = [each for each in record.attempts if each.id == fact.attempt]
        if found:
            # It is at its worker. Only if the task has not been read may it have ended.
            task = self.dispatch._queue.tasks.get(fact.task)
            may_go_on = found[0].state.is_live or (task and not task.is_read)
            assert may_go_on, f"{fact.task} runs, and is shown as waiting"
            return
        has_success = any(a.state is AttemptState.OK for a in record.attempts)
        is_over = record.state.is_final or has_success
        assert not is_over, f"{fact.task} runs again after its end"
        ours = [a for a in record.attempts if a.id.term == self.term]
        assert not any(a.state.is_live for a in ours), f"{fact.task} runs twice"
        if record.spec is not None:
            failed = [a for a in record.attempts if a.state is AttemptState.FAILED]
            retries = retry_policy(record.spec).retries
            assert len(failed) <= retries, f"{fact.task} is retried too often"

    def _send(
        self, sender: NodeId | None, peer: NodeId, messages: tuple[Message, ...]
    ) -> None:
        if sender is not None:
            if self.workers[sender].is_linked:
                self.workers[sender].up.extend(messages)
            return
        for message in messages:
            for task, attempt in acknowledged_keys(message):
                ends = {a.id: a.state for a in self.durable[task].attempts}
                assert not ends[attempt].is_live, "acknowledged, but not durable"
        if self.workers[peer].is_linked:
            self.workers[peer].down.extend(messages)

    def _answered(self, ticket: int, reply: object) -> None:
        match reply:
            case TasksAccepted(specs):
                assert all(self.durable[spec.id].spec == spec for spec in specs)
                self.accepted += [spec.id for spec in specs]
            case CancelResult(task, state, was_done):
                assert task == self.asked.pop(ticket)
                if was_done:
                    assert state is TaskState.CANCELLED
                    assert self.durable[task].cancelled_by is not None
                    self.cancelled.add(task)
            case _:
                pass

    # --- The end of all faults.

    def settle(self) -> None:
        """Let all pending events happen, except the ends of attempts."""
        for _ in range(100):
            if not self._settle_round():
                return
        raise AssertionError("it never comes to rest")

    def _settle_round(self) -> bool:
        is_busy = False
        for queue, happen in (
            (self.commits, self.commit),
            (self.reads, self.read),
            (self.answers, self.answer),
        ):
            while queue:
                is_busy = True
                happen()
        for node, linked in self.workers.items():
            while linked.down:
                is_busy = True
                self.hear_dispatcher(node)
            while linked.up:
                is_busy = True
                self.hear_worker(node)
        return is_busy

    def cancel_impossible_tasks(self) -> None:
        """Cancel the tasks that no node can run."""
        while self.commits:
            self.commit()
        for task, record in self.durable.items():
            spec = record.spec
            if spec is not None and requires_of(spec.options) == IMPOSSIBLE:
                self.cancel(task, force=True)

    def calm_down(self, rounds: int = 400) -> None:
        """Connect everything, and let all events happen until there are none."""
        for node in self.workers:
            self.link(node)
        for _ in range(rounds):
            if not self._calm_round():
                return
        raise AssertionError("it never comes to rest")

    def _calm_round(self) -> bool:
        is_busy = self._settle_round()
        for node, linked in self.workers.items():
            while linked.here:
                is_busy = True
                self.finish(node, self.last_end)
            self.beat(node)
            self.hear_worker(node)
        if self.timers.next_at() < math.inf or not self.is_calm:
            is_busy = True
        self.advance(0.5)
        return is_busy

    @property
    def is_calm(self) -> bool:
        """Return True if every accepted task is over and no component has work."""
        return all(self.durable[task].state.is_final for task in self.accepted) and all(
            linked.worker.is_idle for linked in self.workers.values()
        )
