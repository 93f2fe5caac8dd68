"""Why a task does not run: for each node the true reason, in words.

It only looks: it holds what the queue has and what the pool counts against the roster,
and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil

from octaskly.core.dispatcher.step import Placing
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import Progress
from octaskly.core.model.drafts import Draft
from octaskly.core.model.ids import Moment, NodeId, TaskId, name_of
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.task_options import NO_NEEDS, Requires, requires_of
from octaskly.core.model.tasks import Attempt, AttemptState, Outcome, Reason, TaskState
from octaskly.core.protocol.messages import RosterLine
from octaskly.core.replies import Explanation, Hopeless, Verdict, Why
from octaskly.core.scheduling.queued_task import InHand, Stage
from octaskly.core.scheduling.requirements import (
    asked_for,
    has_all,
    missing,
    nobody_has,
)

PARENTS_SHOWN = 3  #: of up to a thousand


class Explaining:
    """Looks at a reign for somebody who asks."""

    def __init__(self, placing: Placing) -> None:
        self._placing = placing
        self._queue = placing.queue
        self._pool = placing.pool

    def explain(
        self,
        record: TaskRecord,
        members: Sequence[RosterLine],
        now: Moment,
        names: Mapping[NodeId, str],
    ) -> Explanation:
        """Return why a task is where it is.

        Args:
            record: The task as the store has it; what is in hand is newer.
            members: The roster.
            now: Both clocks.
            names: Of nodes, also of such that have left.
        """
        task = self._queue.tasks.get(record.id)
        if task is None or (task.stage is Stage.ENDED and task.final is None):
            if record.state is not TaskState.QUEUED and not _has_waiting(record):
                return Explanation(record.state, _told(record, names))
            if record.waits_for is not None:
                return self._awaiting(record, record.waits_for.tasks, members)
            assert record.spec is not None
            task = InHand(record.spec)
        elif task.final is not None:
            return Explanation(task.final, f"it {_ENDS[task.final]}")
        elif task.stage is Stage.LIVE and task.node is not None:
            name = names.get(task.node, task.node)
            paused = {m.id for m in members if m.state is NodeState.PAUSED}
            rest = ", which is paused" if task.node in paused else ""
            where = f"{self._whereabouts(task, name)}{rest}"
            return Explanation(TaskState.RUNNING, where)
        verdicts = tuple(self._verdict(task, member) for member in members)
        summary = self._summary(task, members, verdicts, now)
        if record.progress is None:
            return Explanation(TaskState.QUEUED, summary, verdicts)
        waiting, total = record.progress.queued, record.progress.total
        summary = f"{waiting} of {total} members are queued: {summary}"
        return Explanation(record.state, summary, verdicts)

    def placement(
        self,
        record: TaskRecord,
        members: Sequence[RosterLine],
        names: Mapping[NodeId, str],
    ) -> str:
        """Return why a task was given to the node that has or had it; "": none has.

        Follows from the rule of the pool and from what nodes have now: the log does not
        keep what else there was to choose from.
        """
        task = self._queue.tasks.get(record.id)
        node = None if task is None or task.stage is not Stage.LIVE else task.node
        chosen = record.chosen
        if node is None and record.state is not TaskState.QUEUED and chosen is not None:
            node = chosen.node
        if node is None or record.spec is None:
            return ""
        requires = requires_of(record.spec.options)
        present = {member.id for member in _present(members)} | {node}
        able = {m.id for m in _present(members) if has_all(m, requires or NO_NEEDS)}
        many, name = len(able | {node}), names.get(node, node)
        if len(present) == 1:
            return f"{name} is the only node"
        if many == 1:
            return f"no other node has what it asks for: {asked_for(requires)}"
        that = "" if requires is None else f" that have {asked_for(requires)}"
        least = f"{name} had the least work for its slots when the turn came"
        return f"of {many} nodes{that}, {least}"

    def hopeless(self, drafts: Iterable[Draft]) -> Hopeless | None:
        """Return the first task that shall fail fast and that no node could run."""
        for index, draft in enumerate(drafts):
            requires = requires_of(draft.options) if draft.is_fail_fast else None
            if requires is not None:
                lack = self._pool.nobody_has(requires)
                if lack is not None:
                    return Hopeless(index, lack)
        return None

    def _whereabouts(self, task: InHand, name: str) -> str:
        if self._placing.is_ahead(task):
            return f"it was given to {name}, where no slot is free yet"
        if not self._pool.is_attached(task.node or NodeId("")):
            return f"it was running on {name}, which is awaited"
        return f"it runs on {name}"

    # --- A task that waits.

    @staticmethod
    def _awaiting(
        record: TaskRecord, parents: Sequence[str], members: Sequence[RosterLine]
    ) -> Explanation:
        """Say for what it waits, and on which nodes that is not all there is."""
        listed = _listed([TaskId(each) for each in parents])
        options = record.spec.options if record.spec is not None else None
        requires = requires_of(options) or NO_NEEDS
        lack = nobody_has(_present(members), requires)
        also = "" if lack is None else f", and {lack}"
        wait = Why("parents", f"is not given it, as it waits for {listed}")
        verdicts = (
            Verdict(m.id, m.name, m.state, (*_withheld(m), *missing(m, requires), wait))
            for m in members
        )
        summary = f"it waits for {listed}{also}"
        return Explanation(TaskState.QUEUED, summary, tuple(verdicts))

    def _summary(
        self,
        task: InHand,
        members: Sequence[RosterLine],
        verdicts: Sequence[Verdict],
        now: Moment,
    ) -> str:
        due_s = self._placing.resting.due_s(task.spec.id)
        if task.stage is Stage.RESTING and due_s is not None:
            wait_s = max(0, ceil(due_s - now.mono_s))
            return f"its last try came to nothing, the next is in {wait_s} s"
        requires = task.requires or NO_NEEDS
        lack = nobody_has(_present(members), requires)
        if lack is not None:
            return _lost_one(members, requires) or lack
        kept = self._placing.turns.reserved
        if kept is not None and kept.ord == task.spec.ord:
            name = next((m.name for m in members if m.id == kept.node), kept.node)
            return f"{name} is kept for it until it has room"
        if any(why.code == "turn" for each in verdicts for why in each.reasons):
            return self._turn(task).text
        able = [v for v in verdicts if not any(w.is_lasting for w in v.reasons)]
        if not able:
            return _withheld_from(members, requires)
        if len(able) == 1:
            return f"{able[0].name}, which could run it, has no room"
        return f"none of the {len(able)} nodes that could run it has room"

    def _verdict(self, task: InHand, member: RosterLine) -> Verdict:
        reasons = tuple(self._reasons(task, member))
        return Verdict(member.id, member.name, member.state, reasons)

    def _reasons(self, task: InHand, member: RosterLine) -> Iterator[Why]:
        requires = task.requires or NO_NEEDS
        lasting = [*_withheld(member), *missing(member, requires)]
        if member.id in task.lacking:
            lasting.append(Why("input", f"lacks {task.lack}"))
        if lasting:
            yield from lasting
            return
        if not self._pool.is_attached(member.id):
            yield Why("joining", "has not said yet what it runs")
            return
        busy = list(self._pool.shortage(member.id, requires))
        kept = self._placing.turns.reserved
        if kept is not None and kept.node == member.id and kept.ord < task.spec.ord:
            busy.append(Why("reserved", f"is kept for {self._first_of(kept.shape)}"))
        if busy:
            yield from busy
        elif task.stage is Stage.RESTING:
            yield Why("resting", "has room, but the task rests after its last try")
        else:
            yield self._turn(task)

    def _first_of(self, shape: int) -> str:
        lane = self._queue.lanes.get(shape)
        first = None if lane is None else self._queue.first(lane)
        return "another task" if first is None else name_of(first.spec.id)

    def _turn(self, task: InHand) -> Why:
        before, is_exact = self._queue.lanes.count_before(task.spec, self._queue.tasks)
        if not before:
            return Why("turn", "it is next in the queue")
        tasks = "1 task is" if before == 1 else f"{before} tasks are"
        most = "" if is_exact else "at least "
        return Why("turn", f"{most}{tasks} before it in the queue")


def _withheld(member: RosterLine) -> Iterator[Why]:
    """Yield why a node takes no work, whatever it is."""
    if member.state is NodeState.LOST:
        yield Why("lost", "is lost")
    elif member.state is NodeState.DRAINING:
        yield Why("draining", "is draining")
    elif member.state is NodeState.PAUSED:
        yield Why("paused", "is paused")
    elif member.strain is not None:
        yield Why(f"{member.strain.value}_short", f"is short of {member.strain.value}")


def _withheld_from(members: Sequence[RosterLine], requires: Requires) -> str:
    """Say that whoever could run it takes no work; why, where only one could."""
    fit = [member for member in members if has_all(member, requires)]
    why = next(_withheld(fit[0]), None) if len(fit) == 1 else None
    if why is None:
        return "no node that could run it takes work at this moment"
    others = ", and no other node could run it" if len(members) > 1 else ""
    return f"{fit[0].name} {why.text}{others}"


def _has_waiting(record: TaskRecord) -> bool:
    """Whether it is an array of which members wait."""
    return record.progress is not None and record.progress.queued > 0


def _lost_one(members: Sequence[RosterLine], requires: Requires) -> str | None:
    """Say so where the only node that will do is lost."""
    for member in members:
        is_it = requires.node in (member.name, member.id)
        if is_it and member.state is NodeState.LOST:
            return f"{member.name} is lost"
    return None


def _present(members: Sequence[RosterLine]) -> list[RosterLine]:
    return [member for member in members if member.state is not NodeState.LOST]


def _listed(tasks: Sequence[TaskId]) -> str:
    """Name some of the tasks that one waits for; others of them may have ended."""
    names = [name_of(task) for task in tasks[:PARENTS_SHOWN]]
    more = len(tasks) - len(names)
    if len(tasks) == 1:
        return names[0]
    if more:
        names.append(f"{more} more")
    return f"at least one of {', '.join(names[:-1])} and {names[-1]}"


def _told(record: TaskRecord, names: Mapping[NodeId, str]) -> str:
    """Return where the store says that a task is, or how it ended."""
    attempt, parent = record.chosen, record.broken_parent
    if record.state is TaskState.CANCELLED and parent is not None:
        return f"it was cancelled, since {parent} did not end as it should"
    where = "" if attempt is None else f" on {names.get(attempt.node, attempt.node)}"
    if record.state is TaskState.RUNNING:
        return f"it runs{where}"
    if record.state is TaskState.CANCELLED and not _was_cancelled(attempt):
        where = ""
    how, outcome = "", attempt.outcome if attempt else None
    if record.state is TaskState.FAILED and record.progress is not None:
        how = f": {_losses(record.progress)}"
    elif record.state is TaskState.FAILED and outcome is not None:
        if outcome.reason is Reason.INPUTS:
            return f"it failed: no worker has its inputs, or room: {outcome.detail}"
        how = f": {_how(outcome)}"
    return f"it {_ENDS[record.state]}{where}{how}"


def _was_cancelled(attempt: Attempt | None) -> bool:
    """Whether a cancelled task ran then, and did not rest after a failure."""
    state = None if attempt is None else attempt.state
    return state is not None and (state.is_live or state is AttemptState.CANCELLED)


def _losses(progress: Progress) -> str:
    """Say how many members of an array that failed did not end well."""
    text = f"{progress.failed} of {progress.total} members did"
    more = progress.cancelled
    return f"{text}, {more} were cancelled" if more else text


def _how(outcome: Outcome) -> str:
    if outcome.detail:
        return outcome.detail
    if outcome.reason is Reason.EXIT:
        return f"exit code {outcome.exit_code}"
    if outcome.reason is Reason.SIGNAL:
        return f"signal {outcome.signal}"
    return outcome.reason.value


_ENDS = {
    TaskState.COMPLETED: "completed",
    TaskState.FAILED: "failed",
    TaskState.CANCELLED: "was cancelled",
}
