"""Dispatch steps: collect facts and messages to workers, and turn them into effects.

A step has one `Append`, then the messages that need not wait for it: kills and
assignments. The other effects follow once the append is durable. This module owns the
queue and the worker pool. `dispatcher` decides which facts are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, takewhile

from octaskly.core.dispatcher import task_rules
from octaskly.core.effects import AnnounceTaskStates, Effect, Send
from octaskly.core.log.facts import (
    Assigned,
    Fact,
    Finished,
    MembersAssigned,
    Submitted,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import TaskRecord, with_array_cancelled
from octaskly.core.log.range_facts import success_facts
from octaskly.core.model.arrays import (
    MemberRange,
    RangeMembers,
    array_of,
    part_of_array,
)
from octaskly.core.model.ids import (
    NO_EPOCH,
    AttemptId,
    Epoch,
    Moment,
    NodeId,
    StreamId,
    TaskId,
)
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.model.tree_sizes import HoldersByBlob
from octaskly.core.protocol.messages import (
    KNOWN_BLOBS_MAX,
    Assign,
    AssignRanges,
    Kill,
    Message,
)
from octaskly.core.replication.journal import Journal, WhenDurable
from octaskly.core.replication.pending_acks import WhenReplicated
from octaskly.core.replication.replication import Replication
from octaskly.core.scheduling.array_queue import goes_by_range, take_member
from octaskly.core.scheduling.live_ranges import LiveRange, PlannedRange, RangePlan
from octaskly.core.scheduling.locality import Locality
from octaskly.core.scheduling.matching import Matcher
from octaskly.core.scheduling.queued_task import WAITING_STAGES, QueuedTask, Stage
from octaskly.core.scheduling.task_queue import BackoffQueue, TaskQueue
from octaskly.core.scheduling.task_table import Held
from octaskly.core.scheduling.worker_pool import WorkerPool

Assignment = tuple[AttemptId, TaskSpec]
HoldersOf = Callable[[TaskSpec], HoldersByBlob]
HOLDERS_BYTES = 256  #: of the nodes that have one blob, in a message, roughly


def worker_messages(
    epoch: Epoch,
    kills: Mapping[tuple[NodeId, bool], Sequence[tuple[TaskId, AttemptId]]],
    batches: Mapping[NodeId, Sequence[Assignment]],
    ranges: Mapping[NodeId, Sequence[MemberRange]],
    bytes_max: int,
    holders_of: HoldersOf,
) -> list[Effect]:
    """Return one `Send` for each worker, its kills first.

    Args:
        epoch: The dispatcher's epoch.
        kills: Attempts that are to end, by node and whether those are spared that have
            begun.
        batches: Attempts that are to begin.
        ranges: Members of arrays that are to begin after these attempts.
        bytes_max: Of attempts in one message, as the bound on frames asks for.
        holders_of: Returns the nodes that have the blobs of a task.
    """
    messages: dict[NodeId, list[Message]] = {}
    for (node, spares_begun), ended in kills.items():
        kill = Kill(epoch, tuple(ended), spares_begun)
        messages.setdefault(node, []).append(kill)
    for node, items in batches.items():
        messages.setdefault(node, []).extend(
            _assign_messages(epoch, items, bytes_max, holders_of)
        )
    for node, members in ranges.items():
        messages.setdefault(node, []).extend(_range_messages(epoch, members, bytes_max))
    return [Send(node, tuple(parts)) for node, parts in messages.items()]


def _assign_messages(
    epoch: Epoch, items: Sequence[Assignment], bytes_max: int, holders_of: HoldersOf
) -> list[Message]:
    messages: list[Message] = []
    holders: dict[int, tuple[NodeId, ...]] = {}
    start = size = 0
    for index, (_, spec) in enumerate(items):
        item, is_full = spec.size_bytes, False
        found: HoldersByBlob = ()
        if spec.options is not None:
            found = holders_of(spec)
            item += HOLDERS_BYTES * len(found)
            is_full = len(holders) + len(found) > KNOWN_BLOBS_MAX
        if size and (size + item > bytes_max or is_full):
            messages.append(
                Assign(epoch, tuple(items[start:index]), tuple(holders.items()))
            )
            start, size = index, 0
            holders.clear()
        size += item
        if found:
            holders.update(found)
    messages.append(Assign(epoch, tuple(items[start:]), tuple(holders.items())))
    return messages


def _range_messages(
    epoch: Epoch, items: Sequence[MemberRange], bytes_max: int
) -> Iterator[Message]:
    part: list[MemberRange] = []
    size = 0
    for item in items:
        size += item.array.size_bytes
        if part and size > bytes_max:
            yield AssignRanges(epoch, tuple(part))
            part, size = [], item.array.size_bytes
        part.append(item)
    yield AssignRanges(epoch, tuple(part))


class DispatchStep:
    """Queue, worker pool, and the facts and messages of the current step."""

    def __init__(
        self,
        limits: Limits,
        journal: Journal,
        replication: Replication,
        timers: TimerHeap,
    ) -> None:
        self.pool = WorkerPool(limits.prefetch)
        self.queue = TaskQueue(limits, self.pool.can_run)
        self.backoff_queue = BackoffQueue(self.queue, timers)
        self.locality = Locality()
        self.matcher = Matcher(self.queue, self.pool, self.locality)
        self.epoch: Epoch = NO_EPOCH
        self.is_assigning = False
        self.changed_since_query: set[TaskId] | None = None
        """Changed since the store was asked for unblocked tasks, until it answers."""
        self.may_unblock = False
        """Some task may have become ready since the store was asked for these."""
        self.facts: list[Fact] = []
        self.stream = StreamId(0)
        self._next_seq = 0  #: of the next `Assigned`
        self._message_bytes = limits.entries_bytes
        self._journal = journal
        self._replication = replication
        self._pinned_tasks: list[QueuedTask | LiveRange] = []
        self._ended_tasks: list[TaskId] = []
        self._kills: dict[tuple[NodeId, bool], list[tuple[TaskId, AttemptId]]] = {}

    def open_epoch(self, epoch: Epoch, stream: StreamId) -> list[Effect]:
        """Start empty; workers get nothing before they attach."""
        self.epoch, self.stream = epoch, stream
        self.is_assigning = True
        return self.queue.start_reading(epoch.term)

    def close_epoch(self) -> None:
        """Drop the state of the epoch."""
        self.epoch = NO_EPOCH
        self.is_assigning = False
        self.pool.clear()
        self.matcher.reservation = None
        self.queue.clear_queue()
        self.locality.clear_epoch()

    # --- What a step may decide.

    def is_prefetched(self, task: QueuedTask | None) -> bool:
        """Return True if a worker got it behind full slots, so has not begun it.

        Workers begin in order, but an attempt takes no slot while it is prepared. If
        slots have become free meanwhile, which this node has not heard, the kill ends
        what has just begun.
        """
        if task is None or task.stage is not Stage.LIVE or task.node is None:
            return False
        held = self.queue.tasks.held_in_order(task.node)
        before = takewhile(lambda other: other is not task, held)
        taken = sum(0 if each.spec.needs_preparation else each.slots for each in before)
        return 0 < self.pool.slots(task.node) <= taken

    def recall_prefetched(self, task: QueuedTask) -> None:
        """Take a live attempt back that waits at its worker; one that runs goes on."""
        assert task.node is not None
        if task in self._prefetched_at(task.node, self.pool.slots(task.node)):
            self.kill_live_attempt(task, spares_begun=True)

    def _prefetched_at(self, node: NodeId, slots: int) -> set[Held]:
        """Return what a worker with so many slots has likely not begun; 0: unknown."""
        held = self.queue.tasks.held_in_order(node)
        taken = accumulate((task.slots for task in held), initial=0)
        return {task for task, n in zip(held, taken, strict=False) if 0 < slots <= n}

    def announce_ended(self, tasks: Iterable[TaskId]) -> None:
        """Let those know who wait for the end of these tasks, once it is safe."""
        self._ended_tasks += tasks
        self.may_unblock = True

    def note_changed(self, tasks: Iterable[TaskId]) -> None:
        """Ignore for these tasks an answer about unblocked tasks that is pending."""
        if self.changed_since_query is not None:
            self.changed_since_query.update(tasks)

    def pin_until_durable(self, task: QueuedTask | LiveRange) -> None:
        """Keep a task or a range in hand until what this step writes is durable."""
        # An earlier write may become durable before the step is committed.
        task.commit_number = self._journal.last_number + 1
        self._pinned_tasks.append(task)

    def kill_live_attempt(
        self, task: QueuedTask, *, spares_begun: bool = False
    ) -> None:
        """Order the end of the task's live attempt, or only if it has not begun."""
        assert task.node is not None
        assert task.attempt is not None
        key = task.spec.id, task.attempt
        self._kills.setdefault((task.node, spares_begun), []).append(key)

    def kill_attempt(self, node: NodeId, task_id: TaskId, attempt: AttemptId) -> None:
        """Order the end of an attempt that does not count."""
        self._kills.setdefault((node, False), []).append((task_id, attempt))

    def resubmission_facts(self, spec: TaskSpec, attempt: AttemptId) -> list[Fact]:
        """Return what a worker's envelope adds to the log.

        Nothing where the floor has passed the task: either it was carried, then the
        store has it, or it is gone, and what is said of it is never shown. Nor of a
        member, which is known by its array.
        """
        if array_of(spec.id) is not None or self._journal.is_below_floor(attempt, spec):
            return []
        return [Submitted(spec)]

    def recount_worker(self, node: NodeId) -> None:
        """Give a worker the room that its attempts in hand leave."""
        self.pool.set_held(node, self.queue.tasks.held_at(node))

    def lose_attempts(
        self, node: NodeId, tasks: Sequence[QueuedTask], slots: int, now: Moment
    ) -> None:
        """Give up live attempts of a worker; `slots`: that it has, 0 if unknown."""
        waiting = self._prefetched_at(node, slots)
        for task in tasks:
            self.lose_attempt(task, now, has_begun=task not in waiting)

    def lose_attempt(
        self, task: QueuedTask, now: Moment, *, has_begun: bool = True
    ) -> None:
        """Give up the live attempt of a task; queue the task again if it may be."""
        assert task.attempt is not None
        assert task.node is not None
        outcome = task_rules.presumed_end(task.spec, now, has_begun=has_begun)
        self.write_end(task, task.attempt, task.node, outcome)
        self.free_task(task, outcome, now)

    def free_task(self, task: QueuedTask, outcome: Outcome, now: Moment) -> None:
        """End a task whose live attempt ended, or queue it again."""
        if task.final_state is not None:
            self.queue.end(task)
            return
        attempts = task.record.attempts
        self.requeue_task(task, now, task_rules.wait_s(task.spec.id, attempts, outcome))

    def requeue_task(self, task: QueuedTask, now: Moment, wait_s: float | None) -> None:
        """Queue a task whose live attempt came to nothing, at once or after a wait."""
        if wait_s is None:
            self.queue.requeue(task)
        else:
            self.backoff_queue.add_task(task, now, wait_s)
        array = task.array if task.may_be_array_cancelled else None
        if array is not None and task.final_state is None:
            # The array may be over by that, which the store knows.
            self.announce_ended([array])

    def requeue_backed_off(self, now: Moment) -> bool:
        """Queue those that have rested; the store is asked about some before.

        Return True if there were any.
        """
        due = list(self.backoff_queue.pop_due(now))
        for task in due:
            if task.stage is Stage.QUEUED:
                task.missing_inputs.clear()
            self.queue.requeue(task)
            if task.stage is Stage.ENDED:
                self.pin_until_durable(task)
        return bool(due)

    # --- Facts about tasks in hand, and what follows from them.

    def write(self, task: QueuedTask, fact: TaskFact) -> None:
        """Write a fact about a task in hand, and carry out what follows from it.

        If it is the end of the live attempt, `free_task` follows.
        """
        before = task.final_state
        self.facts.append(fact)
        task.add_fact(fact)
        self.pin_until_durable(task)
        self.note_changed((task.spec.id,))
        final = task.final_state
        # A verdict is also announced if it repeats one: clients may not have been told.
        if final is None or (final is before and isinstance(fact, Finished)):
            return
        self.announce_ended((task.spec.id,))
        if final is before:
            return
        if task.stage is Stage.ENDED and before is None:
            self.queue.count_end(task)  # It was never queued in memory.
        if not _is_live_end(task, fact):
            self.carry_out_verdict(task, before)
        if final is TaskState.FAILED and task.array is not None:
            self._count_member_failure(task.array)

    def carry_out_verdict(self, task: QueuedTask, before: TaskState | None) -> None:
        """Start no attempt at a task that has a verdict, and end the live one.

        `before` is its final state before the verdict was written or read.
        """
        if task.final_state is None:
            return
        if task.stage in WAITING_STAGES:
            self.queue.end(task)
        elif task.stage is Stage.LIVE and before is None:
            self.kill_live_attempt(task)
        self.pin_until_durable(task)

    def write_end(
        self, task: QueuedTask, attempt: AttemptId, node: NodeId, outcome: Outcome
    ) -> None:
        """Write how an attempt ended, with the verdict on its task if there is one.

        The verdict on a task that this epoch has not read follows when it is read. So
        does that on the loss of a member whose array may have been cancelled: the
        member may have been shown as cancelled with it.
        """
        term = 0
        is_loss = outcome.state is AttemptState.RELEASED
        if task.is_read and not (is_loss and task.may_be_array_cancelled):
            end = Attempt(attempt, node, outcome.state, outcome)
            is_verdict = task_rules.decides(end, task.record, task.final_state)
            term = self.epoch.term if is_verdict else 0
        self.write(task, Finished(task.spec.id, attempt, node, outcome, term))

    def end_members(self, live: LiveRange, ends: Sequence[tuple[int, Outcome]]) -> None:
        """Write the successes of live members of a range.

        Each decides its task, as by `write_end`: there was no end or cancel before.
        """
        offsets = tuple(offset for offset, _ in ends)
        outcomes = [outcome for _, outcome in ends]
        members = RangeMembers(
            live.spec.id, live.number, live.step, live.attempt, offsets
        )
        self.facts += success_facts(members, live.node, outcomes, self.epoch.term)
        ended = [live.ids[offset] for offset in offsets]
        self.queue.end_members(live, offsets)
        self.pin_until_durable(live)
        self.announce_ended(ended)

    def decide(self, task: QueuedTask) -> None:
        """Write the verdict that the facts about a task ask for, if any."""
        record = with_array_cancelled(task.record, task.array_cancelled_by)
        verdict = task_rules.next_verdict(record, self.epoch.term)
        if verdict is not None:
            self.write(task, verdict)

    def recount_failures(self, array: TaskId) -> None:
        """Begin no members of an array before it is read with all failures so far.

        What this epoch has written is durable by then.
        """
        queue = self.queue
        queue.array_queue.forget_failures(array)
        task = queue.array_in_hand(array)
        self.pin_until_durable(task)
        for each in (task, *queue.tasks.single_members_of(array).values()):
            if each.stage in WAITING_STAGES:
                queue.end(each)
                self.pin_until_durable(each)

    def cancel_array(self, cancel: TaskCancelled) -> None:
        """Write the cancel of an array, and of its members that need their own."""
        queue, array = self.queue, cancel.task
        queue.array_queue.ignore_failures(array)
        task = queue.array_in_hand(array)
        self.write(task, cancel)
        self._cancel_live_members(self._undecided_members(array), cancel.by)
        for member in self._undecided_members(array):
            member.cancel_with_array(cancel.by)
            self.carry_out_verdict(member, None)
            if member.final_state is not None:
                self.announce_ended((member.spec.id,))

    def _cancel_live_members(self, members: Iterable[QueuedTask], by: str) -> None:
        """End the members on workers that their array's cancel, in any epoch, ends.

        One that is not read follows once it is: it may have ended before the cancel.
        """
        term = self.epoch.term
        for member in members:
            is_running = member.stage is Stage.LIVE and member.final_state is None
            if not is_running or not member.is_read:
                continue
            cancel = task_rules.cancel_member(member.spec.id, by, term)
            if cancel is not None:
                self.write(member, cancel)
            else:
                self.recall_prefetched(member)

    def follow_array(self, member: QueuedTask) -> None:
        """End a member that was found to run, if that was asked for with its array."""
        array_id = member.array
        if array_id is None or member.final_state is not None:
            return
        array = self.queue.tasks.get(array_id)
        if array is None:
            self.queue.look_up_task(array_id)
        elif (by := array.record.cancelled_by) is not None:
            self._cancel_live_members([member], by)

    def _undecided_members(self, array: TaskId) -> list[QueuedTask]:
        """Return the members of an array that are in hand, and not decided."""
        return [
            task
            for task in self.queue.tasks.members_of(array)
            if task.final_state is None
        ]

    def _count_member_failure(self, array: TaskId) -> None:
        """Begin no more members of an array of which too many have failed."""
        arrays = self.queue.array_queue
        if not arrays.knows_failures(array):
            self.recount_failures(array)
        elif arrays.add_failure(array):
            self.cancel_array(task_rules.cut_off(array, self.epoch.term))

    def adopt_array(self, record: TaskRecord) -> None:
        """Do what the log of all epochs says of an array's members.

        Too many failures cut off the rest, and a cancel by force ends those that run.
        """
        task = self.queue.tasks.get(record.id)
        is_already_ended = task is not None and task.stage is Stage.ENDED
        if task_rules.must_cut_off(record) and not is_already_ended:
            self.cancel_array(task_rules.cut_off(record.id, self.epoch.term))
        if (by := record.cancelled_by) is not None:
            self._cancel_live_members(self._undecided_members(record.id), by)

    # --- The end of a step.

    def commit_step(
        self,
        now: Moment,
        when_durable: WhenDurable | None = None,
        when_replicated: WhenReplicated | None = None,
    ) -> list[Effect]:
        """Place what can be placed, and return the effects of the step.

        Args:
            now: Both clocks.
            when_durable: Done once all that was decided so far is durable here.
            when_replicated: Done once a standby has it, too.
        """
        effects: list[Effect] = []
        self.pool.wall_ms = now.wall_ms
        batches: dict[NodeId, list[Assignment]] = {}
        ranges: dict[NodeId, list[MemberRange]] = {}
        if self.is_assigning and self.queue.may_assign:
            batches, ranges = self._assign_queued(now)
        self._pinned_tasks += self.queue.tasks.pop_changed()
        if self.facts:
            effects.append(self._journal.append(self.facts, now))
            self.facts = []
        if self._kills or batches or ranges:
            effects += worker_messages(
                self.epoch,
                self._kills,
                batches,
                ranges,
                self._message_bytes,
                self.locality.holders_of,
            )
            self._kills = {}
        if when_durable is not None or self._pinned_tasks:
            effects += self._journal.when_durable(self._unpin_later(when_durable), now)
        if when_replicated is not None or self._ended_tasks:
            announce = self._announce_later(when_replicated)
            effects += self._replication.when_replicated(announce, now)
        effects += self.queue.next_reads()
        return effects

    def _announce_later(self, callback: WhenReplicated | None) -> WhenReplicated:
        """Return what is to be done when the step is replicated."""
        if not self._ended_tasks:
            assert callback is not None
            return callback
        ended, self._ended_tasks = tuple(self._ended_tasks), []
        return partial(self._announce, self.epoch, AnnounceTaskStates(ended), callback)

    def _announce(
        self,
        epoch: Epoch,
        ended: AnnounceTaskStates,
        callback: WhenReplicated | None,
        now: Moment,
        replicas: int,
    ) -> list[Effect]:
        """Tell who waits for the end of tasks, behind what waited for the copies.

        After the epoch, an end that only this disk has is not told: the dispatcher that
        follows may not know of it, and run the task again.
        """
        effects = [] if callback is None else callback(now, replicas)
        if replicas == 1 and self.epoch != epoch:
            return effects
        return [*effects, ended]

    def _unpin_later(self, callback: WhenDurable | None) -> WhenDurable:
        """Return what is to be done when the step is durable."""
        touched, number = self._pinned_tasks, self._journal.last_number
        self._pinned_tasks = []
        for task in touched:
            task.commit_number = number
        return partial(self._unpin, touched, number, callback)

    def _unpin(
        self,
        touched: Sequence[QueuedTask | LiveRange],
        number: int,
        callback: WhenDurable | None,
        now: Moment,
    ) -> list[Effect]:
        """Drop the tasks of a step that is durable, behind what waited for it."""
        effects = [] if callback is None else callback(now)
        self.queue.drop_durable_tasks(touched, number)
        return effects + self.queue.next_reads()

    def _assign_queued(
        self, now: Moment
    ) -> tuple[dict[NodeId, list[Assignment]], dict[NodeId, list[MemberRange]]]:
        """Give queued tasks to workers that have room, the oldest first.

        Returns:
            The attempts for each worker, and the members that it gets by ranges.
        """
        queue = self.queue
        batches: dict[NodeId, list[Assignment]] = {}
        plan = RangePlan(self._message_bytes)
        self._next_seq = self._journal.next_seq + sum([f.count for f in self.facts])
        for task, node in self.matcher.match_tasks(now):
            if task.remaining is None:
                self._assign_task(task, node, batches)
            elif goes_by_range(task.spec):
                shares = queue.turns.charge(task.flow, 1)
                plan.add_member(task, task.remaining.pop(), node, shares)
            else:
                self._assign_task(take_member(task), node, batches, is_in_hand=False)
        ranges: dict[NodeId, list[MemberRange]] = {}
        for planned in plan.ranges():
            self._assign_range(planned, ranges)
        return batches, ranges

    def _assign_range(
        self, planned: PlannedRange, ranges: dict[NodeId, list[MemberRange]]
    ) -> None:
        """Give members of an array, which were never assigned, to a worker."""
        array, node, position = planned.array, planned.node, planned.position
        attempt = AttemptId(self.epoch.term, self.stream, self._next_seq, 1)
        live = LiveRange(planned, attempt, self.epoch.term)
        self.queue.tasks.add_range(live)
        if planned.count == 1:
            self._write_assignment(Assigned(live.ids[0], attempt, node))
        else:
            numbers = live.number, live.step, planned.count
            self._write_assignment(
                MembersAssigned(array.spec.id, attempt, node, *numbers)
            )
        part = part_of_array(array.spec, position, planned.count)
        members = MemberRange(part, position, attempt)
        ranges.setdefault(node, []).append(members)

    def _assign_task(
        self,
        task: QueuedTask,
        node: NodeId,
        batches: dict[NodeId, list[Assignment]],
        *,
        is_in_hand: bool = True,
    ) -> None:
        number = task.last_attempt_n + 1
        attempt = AttemptId(self.epoch.term, self.stream, self._next_seq, number)
        if is_in_hand:
            self.queue.assign(task, attempt, node)
        else:  # A member, out of an array whose members do not go by ranges.
            self.queue.adopt(task, attempt, node)
        task.is_worker_confirmed = True
        self._write_assignment(Assigned(task.spec.id, attempt, node))
        if task.spec.options is not None:
            self.locality.note_placement(task.spec, node)
        batch = batches.get(node)
        if batch is None:
            batch = batches[node] = []
        batch.append((attempt, task.spec))

    def _write_assignment(self, fact: Assigned | MembersAssigned) -> None:
        self.facts.append(fact)
        self._next_seq += fact.count


def _is_live_end(task: QueuedTask, fact: TaskFact) -> bool:
    return isinstance(fact, Finished) and task.is_live_at(fact.node, fact.attempt)
