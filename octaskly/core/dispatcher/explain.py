"""Explanations: why a task does not run, with the reasons of each node in words.

The explainer compares the queue, the worker pool and the roster. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from operator import attrgetter

from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.end_text import end_text
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import ArrayProgress
from octaskly.core.model.ids import Moment, NodeId, TaskId, is_visitor, task_name
from octaskly.core.model.nodes import NodeState, RejectionReason, RosterEntry
from octaskly.core.model.task_options import (
    NO_REQUIREMENTS,
    Requirements,
    is_stdin_freed,
    requires_of,
)
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskState,
)
from octaskly.core.replies import NodeRejection, QueuedAhead, TaskExplanation
from octaskly.core.scheduling.queue_lanes import Group
from octaskly.core.scheduling.queued_task import (
    VISITOR_RETURNS_MAX,
    QueuedTask,
    Stage,
)
from octaskly.core.scheduling.requirements import (
    describe_requirements,
    meets_requirements,
    unmet_requirements,
    why_none_meets,
)

PARENTS_SHOWN_MAX = 3  #: of up to a thousand
OUTPUTS_SHOWN_MAX = 3  #: of up to ten thousand
NODES_SHOWN_MAX = 3  #: paused nodes that run members of an array
AHEAD_SHOWN_MAX = 3  #: arrays and submitters that a sentence names
AHEAD_MAX = 20  #: of these in an explanation
MISSING_END_TEXT = "it ended on another node, whose log has not arrived here"


class Explainer:
    """Explains the states of tasks on the current dispatcher."""

    def __init__(self, step: DispatchStep) -> None:
        self._step = step
        self._queue = step.queue
        self._pool = step.pool

    def explain_task(
        self,
        record: TaskRecord,
        members: Sequence[RosterEntry],
        now: Moment,
        names: Mapping[NodeId, str],
    ) -> TaskExplanation:
        """Return why a task is where it is.

        Args:
            record: The task as the store has it; what is in hand is newer.
            members: The roster.
            now: Both clocks.
            names: Of nodes, also of such that have left.
        """
        task = self._queue.tasks.get(record.id)
        if task is None or (task.stage is Stage.ENDED and task.final_state is None):
            if record.state is not TaskState.QUEUED and not _has_queued_members(record):
                text = _describe_record(record, names)
                if record.progress is not None and record.state is TaskState.RUNNING:
                    text = self._describe_last_members(
                        record.id, record.progress, members, names
                    )
                return TaskExplanation(record.state, text)
            if record.waits_for is not None:
                return self._explain_dependencies(
                    record, record.waits_for.tasks, members, now
                )
            assert record.spec is not None
            if is_stdin_freed(record.spec.options):
                return TaskExplanation(record.state, MISSING_END_TEXT)
            task = QueuedTask(record)
        elif task.final_state is not None:
            return TaskExplanation(
                task.final_state, f"it {_END_VERBS[task.final_state]}"
            )
        elif task.stage is Stage.LIVE and task.node is not None:
            name = names.get(task.node, task.node)
            paused = {m.id for m in members if m.state is NodeState.PAUSED}
            rest = ", which is paused" if task.node in paused else ""
            where = f"{self._describe_location(task, name)}{rest}"
            return TaskExplanation(TaskState.RUNNING, where)
        resting = self._next_resting_member(record)
        return self._explain_waiting(resting or task, record, members, now)

    def _next_resting_member(self, array: TaskRecord) -> QueuedTask | None:
        """Return the member that is tried again first, if all that wait back off."""
        known = self._queue.tasks.single_members_of(array.id).values()
        resting = [task for task in known if task.stage is Stage.BACKING_OFF]
        if array.progress is None or len(resting) < array.progress.queued:
            return None
        return min(resting, key=attrgetter("retry_s"), default=None)

    def explain_placement(
        self,
        record: TaskRecord,
        members: Sequence[RosterEntry],
        now: Moment,
        names: Mapping[NodeId, str],
    ) -> str:
        """Return why a task was given to the node that has or had it; "": none has.

        Follows from the rule of the pool and from what nodes have now: the log does not
        keep what else there was to choose from.
        """
        task = self._queue.tasks.get(record.id)
        node = None if task is None or task.stage is not Stage.LIVE else task.node
        attempt = record.deciding_attempt
        if (
            node is None
            and record.state is not TaskState.QUEUED
            and attempt is not None
        ):
            node = attempt.node
        if node is None or record.spec is None:
            return ""
        requires = requires_of(record.spec.options)
        present = {member.id for member in _present_members(members)} | {node}
        capable = {
            m.id
            for m in _present_members(members)
            if meets_requirements(m, requires or NO_REQUIREMENTS, now.wall_ms)
        }
        capable_count, name = len(capable | {node}), names.get(node, node)
        if len(present) == 1:
            return f"{name} is the only node"
        if capable_count == 1:
            return (
                f"no other node has what it requires: {describe_requirements(requires)}"
            )
        requirement_text = (
            "" if requires is None else f" that have {describe_requirements(requires)}"
        )
        choice_text = f"{name} had the lowest load per slot when the task was assigned"
        placement = self._step.locality.placement_of(record.id, node)
        if placement is not None:
            total_mb, missing_mb = placement.total / 1e6, placement.missing / 1e6
            choice_text = (
                f"{name} had a free slot and lacked the fewest bytes of its files:"
                f" {missing_mb:.0f} of {total_mb:.0f} MB"
            )
        return f"of {capable_count} nodes{requirement_text}, {choice_text}"

    def _describe_location(self, task: QueuedTask, name: str) -> str:
        if self._step.is_prefetched(task):
            return f"it was assigned to {name}, where no slot is free yet"
        if not self._pool.is_attached(task.node or NodeId("")):
            return f"it was running on {name}, which has not reconnected yet"
        return f"it runs on {name}"

    def _describe_last_members(
        self,
        array: TaskId,
        progress: ArrayProgress,
        members: Sequence[RosterEntry],
        names: Mapping[NodeId, str],
    ) -> str:
        """Say how many members of an array run, which has none that wait."""
        running = progress.running
        text = f"{running} of {progress.total} members {_are(running)} running"
        tasks = self._queue.tasks
        held = {live.node for live in tasks.ranges.of_array(array) if live.live_count}
        for member in tasks.single_members_of(array).values():
            if member.stage is Stage.LIVE and member.node is not None:
                held.add(member.node)
        paused = [m for m in members if m.state is NodeState.PAUSED and m.id in held]
        if len(held) == 1:
            (node,) = held
            rest = ", which is paused" if paused else ""
            return f"{text} on {names.get(node, node)}{rest}"
        if not paused:
            return text
        some = [member.name for member in paused[:NODES_SHOWN_MAX]]
        listed = _join_names(some, len(paused) - len(some))
        return f"{text}; {listed} {_are(len(paused))} paused"

    # --- A task that waits.

    def _explain_waiting(
        self,
        task: QueuedTask,
        record: TaskRecord,
        members: Sequence[RosterEntry],
        now: Moment,
    ) -> TaskExplanation:
        """Say what keeps a task from each node, and what comes before it."""
        rejections = tuple(
            NodeRejection(m.id, m.name, m.state, (*self._reasons(task, m, now),))
            for m in members
        )
        summary = self._obstacle(task, members, rejections, now)
        is_obstructed = summary is not None
        ahead: tuple[QueuedAhead, ...] = ()
        text = ""
        if summary is None:
            ahead = self._queue.lanes.ahead_of(task, self._queue.tasks)
            text = _describe_ahead(ahead, task.spec.submitter)
            has_room = any(w.code == "turn" for v in rejections for w in v.reasons)
            summary = text if has_room else f"{_describe_full(rejections)}; {text}"
        if record.progress is None:
            state = TaskState.QUEUED
        elif record.progress.running and not is_obstructed:
            # It runs as well as the mesh permits, so no node is to blame.
            flow_text = _describe_flow(record.progress)
            summary = f"{flow_text}; {text}" if ahead else flow_text
            state, rejections = record.state, ()
        else:
            waiting, total = record.progress.queued, record.progress.total
            summary = f"{waiting} of {total} members {_are(waiting)} queued: {summary}"
            state = record.state
        shown = ahead[:AHEAD_MAX]
        return TaskExplanation(state, summary, rejections, ahead=shown)

    @staticmethod
    def _explain_dependencies(
        record: TaskRecord,
        parents: Sequence[str],
        members: Sequence[RosterEntry],
        now: Moment,
    ) -> TaskExplanation:
        """Say for what it waits, and on which nodes that is not all there is."""
        listed = _describe_parents([TaskId(each) for each in parents])
        options = record.spec.options if record.spec is not None else None
        requires = requires_of(options) or NO_REQUIREMENTS
        missing_text = why_none_meets(_present_members(members), requires, now.wall_ms)
        missing_suffix = "" if missing_text is None else f", and {missing_text}"
        wait_reason = RejectionReason(
            "parents", f"does not get it yet, because it waits for {listed}"
        )
        rejections = (
            NodeRejection(
                m.id,
                m.name,
                m.state,
                (
                    *_unavailability_reasons(m),
                    *unmet_requirements(m, requires, now.wall_ms),
                    wait_reason,
                ),
            )
            for m in members
        )
        summary = f"it waits for {listed}{missing_suffix}"
        return TaskExplanation(TaskState.QUEUED, summary, tuple(rejections))

    def _obstacle(
        self,
        task: QueuedTask,
        members: Sequence[RosterEntry],
        rejections: Sequence[NodeRejection],
        now: Moment,
    ) -> str | None:
        """Return what keeps a task in the queue; None if the nodes are just full."""
        if task.stage is Stage.BACKING_OFF:
            wait_s = max(0, ceil(task.retry_s - now.mono_s))
            if task.missing_room:
                missing = f"no node that could run it has {task.missing_room}"
                return f"{missing}; the next attempt starts in {wait_s} s"
            return f"its last attempt failed; the next one starts in {wait_s} s"
        requires = task.requires or NO_REQUIREMENTS
        missing_text = why_none_meets(_present_members(members), requires, now.wall_ms)
        if missing_text is not None:
            return _describe_lost_node(members, requires) or missing_text
        reservation = self._step.matcher.reservation
        if reservation is not None and reservation.ord == task.ord:
            name = next(
                (m.name for m in members if m.id == reservation.node), reservation.node
            )
            return f"{name} is reserved for it until enough of its capacity is free"
        is_full = bool(_capable(rejections))
        if is_full:
            return None
        return _describe_unavailable(members, requires, now)

    def _reasons(
        self, task: QueuedTask, member: RosterEntry, now: Moment
    ) -> Iterator[RejectionReason]:
        requires = requires_of(task.spec.options) or NO_REQUIREMENTS
        permanent = [
            *_unavailability_reasons(member),
            *unmet_requirements(member, requires, now.wall_ms),
        ]
        if is_visitor(member.id) and task.avoids_visitors:
            permanent.append(
                RejectionReason(
                    "visitor_returns",
                    f"is a visitor, and {VISITOR_RETURNS_MAX} visitors have returned"
                    " the task, so it waits for a node without an end time",
                )
            )
        if member.id in task.missing_inputs:
            what = task.missing_inputs[member.id] or "an input"
            permanent.append(RejectionReason("input", f"lacks {what}"))
        if permanent:
            yield from permanent
            return
        if not self._pool.is_attached(member.id):
            yield RejectionReason("joining", "has not reported yet what it runs")
            return
        transient = list(self._pool.shortage_reasons(member.id, requires))
        reservation = self._step.matcher.reservation
        if (
            reservation is not None
            and reservation.node == member.id
            and self._step.matcher.reserved_from(task)
        ):
            transient.append(
                RejectionReason(
                    "reserved",
                    f"is reserved for {self._first_task_name(reservation.group)}",
                )
            )
        if transient:
            yield from transient
        elif task.stage is Stage.BACKING_OFF:
            yield RejectionReason(
                "resting",
                "has free capacity, but the task waits before its next attempt",
            )
        else:
            yield RejectionReason(
                "turn", "has free capacity, and gets the next task in the queue"
            )

    def _first_task_name(self, group: Group) -> str:
        first = self._queue.first_in_group(group)
        return "another task" if first is None else task_name(first.spec.id)


def _capable(rejections: Sequence[NodeRejection]) -> list[NodeRejection]:
    """Return the nodes that could run the task later."""
    return [v for v in rejections if not any(w.is_permanent for w in v.reasons)]


def _describe_full(rejections: Sequence[NodeRejection]) -> str:
    capable = _capable(rejections)
    if len(capable) == 1:
        return f"{capable[0].name}, which could run it, has no free capacity"
    return f"none of the {len(capable)} nodes that could run it has free capacity"


def _describe_ahead(ahead: Sequence[QueuedAhead], submitter: str) -> str:
    """Say what comes before a task, as the end of a sentence about it."""
    first = [each for each in ahead if not each.takes_turns]
    turns = [each for each in ahead if each.takes_turns]
    parts = []
    if first:
        is_one = len(first) == first[0].tasks == 1 and first[0].is_exact
        verb = "comes" if is_one else "come"
        parts.append(f"{_list_ahead(first, submitter)} {verb} first")
    if turns:
        parts.append(f"it takes turns with {_list_ahead(turns, submitter)}")
    return ", and ".join(parts) or "it is next in the queue"


def _list_ahead(ahead: Sequence[QueuedAhead], submitter: str) -> str:
    """Name some of what comes before a task of `submitter`."""
    names = []
    for each in ahead[:AHEAD_SHOWN_MAX]:
        what = "1 task" if each.tasks == 1 else f"{each.tasks} tasks"
        if each.array is not None:
            what = f"array {task_name(each.array)}"
        elif not each.is_exact:
            what = f"at least {what}"
        others = "" if each.submitter == submitter else f" of {each.submitter}"
        names.append(f"{what}{others}")
    return _join_names(names, len(ahead) - len(names))


def _join_names(names: Sequence[str], more: int) -> str:
    """Return a list of names, and of how many there are more."""
    *before, last = [*names, f"{more} more"] if more else names
    return f"{', '.join(before)} and {last}" if before else last


def _describe_flow(progress: ArrayProgress) -> str:
    running, waiting = progress.running, progress.queued
    return (
        f"{running} of {progress.total} members {_are(running)} running,"
        f" {waiting} wait{'s' * (waiting == 1)} for a free slot"
    )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _unavailability_reasons(member: RosterEntry) -> Iterator[RejectionReason]:
    """Yield why a node takes no work, whatever it is."""
    if member.state is NodeState.LOST:
        yield RejectionReason("lost", "is lost")
    elif member.state is NodeState.DRAINING:
        yield RejectionReason("draining", "is draining")
    elif member.state is NodeState.PAUSED:
        yield RejectionReason("paused", "is paused")
    elif member.pressure is not None:
        yield RejectionReason(
            f"{member.pressure.value}_short", f"is short of {member.pressure.value}"
        )


def _describe_unavailable(
    members: Sequence[RosterEntry], requires: Requirements, now: Moment
) -> str:
    """Say that whoever could run it takes no work; why, where only one could."""
    capable = [m for m in members if meets_requirements(m, requires, now.wall_ms)]
    why = next(_unavailability_reasons(capable[0]), None) if len(capable) == 1 else None
    if why is None:
        return "no node that could run it accepts tasks now"
    others = ", and no other node could run it" if len(members) > 1 else ""
    return f"{capable[0].name} {why.text}{others}"


def _has_queued_members(record: TaskRecord) -> bool:
    """Whether it is an array of which members wait."""
    return record.progress is not None and record.progress.queued > 0


def _describe_lost_node(
    members: Sequence[RosterEntry], requires: Requirements
) -> str | None:
    """Say so where the only node that will do is lost."""
    for member in members:
        is_it = requires.node in (member.name, member.id)
        if is_it and member.state is NodeState.LOST:
            return f"{member.name} is lost"
    return None


def _present_members(members: Sequence[RosterEntry]) -> list[RosterEntry]:
    return [member for member in members if member.state is not NodeState.LOST]


def _describe_parents(tasks: Sequence[TaskId]) -> str:
    """Name some of the tasks that one waits for; others of them may have ended."""
    names = [task_name(task) for task in tasks[:PARENTS_SHOWN_MAX]]
    more = len(tasks) - len(names)
    if len(tasks) == 1:
        return names[0]
    if more:
        names.append(f"{more} more")
    return f"at least one of {', '.join(names[:-1])} and {names[-1]}"


def _describe_record(record: TaskRecord, names: Mapping[NodeId, str]) -> str:
    """Return where the store says that a task is, or how it ended."""
    attempt, parent = record.deciding_attempt, record.failed_dependency
    if record.state is TaskState.CANCELLED and parent is not None:
        return f"it was cancelled, because {parent} did not end as required"
    where = "" if attempt is None else f" on {names.get(attempt.node, attempt.node)}"
    if record.state is TaskState.RUNNING:
        return f"it runs{where}"
    if record.state is TaskState.CANCELLED and not _was_cancelled(attempt):
        where = ""
    how, outcome = "", attempt.outcome if attempt else None
    if record.progress is not None:
        how = _describe_member_ends(record.progress, record.state)
    elif record.state is TaskState.FAILED and outcome is not None:
        if outcome.reason is EndReason.INPUTS:
            return f"it failed: {outcome.detail}"
        end = outcome.reason, outcome.exit_code, outcome.signal, outcome.detail
        how = f": {end_text(*end)}"
    elif record.state is TaskState.COMPLETED and outcome is not None:
        how = _describe_lacks(outcome)
    return f"it {_END_VERBS[record.state]}{where}{how}"


def _was_cancelled(attempt: Attempt | None) -> bool:
    """Whether a cancelled task ran then, and did not rest after a failure."""
    state = None if attempt is None else attempt.state
    return state is not None and (state.is_live or state is AttemptState.CANCELLED)


def _describe_member_ends(progress: ArrayProgress, state: TaskState) -> str:
    """Say how many members of an array did not end well, as the end of a sentence."""
    failed, cancelled, total = progress.failed, progress.cancelled, progress.total
    were = "was" if cancelled == 1 else "were"
    if state is TaskState.FAILED:
        more = f", {cancelled} {were} cancelled" if cancelled else ""
        return f": {failed} of {total} members did{more}"
    if state is TaskState.CANCELLED and cancelled < total:
        return f": {cancelled} of {total} members {were}"
    return ""


def _describe_lacks(outcome: Outcome) -> str:
    """Return what a completed task did not leave, and why, if a reason is known."""
    lacking = [file.path for file in outcome.outputs if file.size_bytes is None]
    if outcome.detail or not lacking:
        return f"; {outcome.detail}" if outcome.detail else ""
    more = len(lacking) - OUTPUTS_SHOWN_MAX
    shown = ", ".join(lacking[:OUTPUTS_SHOWN_MAX])
    return f"; it did not make {shown}{f' and {more} more' if more > 0 else ''}"


_END_VERBS = {
    TaskState.COMPLETED: "completed",
    TaskState.FAILED: "failed",
    TaskState.CANCELLED: "was cancelled",
}
