"""A dispatcher with workers, which places tasks at once: its disk never waits."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Append, Effect, LoadQueued
from octaskly.core.log.facts import Assigned
from octaskly.core.log.range_facts import task_entries
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.nodes import NodeInfo, NodeState, Pressure, Role, RosterEntry
from octaskly.core.model.task_options import ArraySpec, Requirements, TaskOptions
from octaskly.core.model.tasks import EndReason, Outcome
from octaskly.core.protocol.messages import Results
from tests.support.builders import (
    STREAM,
    draft,
    epoch,
    load_reply,
    moment,
    outcome,
    released,
    report,
)
from tests.support.dispatcher import (
    DispatcherWithJournal,
    deliver_results,
    reattach_report,
    submission,
)


class DispatcherWithWorkers(DispatcherWithJournal):
    """A dispatcher with workers, whose disk commits at once."""

    def __init__(self, *nodes: NodeInfo) -> None:
        super().__init__()
        self.dispatch.start_dispatching(epoch(), STREAM, moment())
        self.dispatch.on_queued_loaded(
            load_reply([], LoadQueued(1, -1, 5000)), moment()
        )
        self.live: dict[str, tuple[TaskId, AttemptId, NodeId]] = {}
        for node in nodes:
            self.dispatch.on_worker_up(node, moment())
            came = self.dispatch.on_reattach(
                *reattach_report(node.id, node.slots), moment()
            )
            self.note(came)

    def note(self, effects: list[Effect]) -> list[str]:
        """Record the placement of each command; return the placed commands."""
        commands = []
        appends = [effect for effect in effects if isinstance(effect, Append)]
        entries = [entry for each in appends for entry in each.entries]
        for _, fact in task_entries(entries):
            if isinstance(fact, Assigned):
                task = self.dispatch._queue.tasks.get(fact.task)
                assert task is not None
                command = task.spec.command
                self.live[command] = (fact.task, fact.attempt, fact.node)
                commands.append(command)
        return commands

    def ask(self, *drafts: TaskDraft, at: float = 0.0, by: str = "tester") -> list[str]:
        """Submit tasks; return the placed commands."""
        effects = self.dispatch.on_submitted(submission(*drafts, by=by), moment(at))
        return self.note(effects) + self.note(self.commit(at))

    def end(
        self, command: str, at: float = 0.0, how: Outcome | None = None
    ) -> list[str]:
        """End a command; return the placed commands."""
        task, attempt, node = self.live.pop(command)
        ended = report(str(task), attempt, how or outcome(duration_ms=900))
        results = Results((ended,), self.dispatch._pool.slots(node))
        placed = self.note(deliver_results(self.dispatch, node, results, moment(at)))
        return placed + self.note(self.commit(at))

    def give_back(self, *commands: str, at: float = 0.0) -> list[str]:
        """Let one worker give these commands back; return the placed commands."""
        ends = [self.live.pop(command) for command in commands]
        outcome_ = released(EndReason.RETURNED)
        reports = tuple(report(str(task), a, outcome_) for task, a, _ in ends)
        node = ends[0][2]
        results = Results(reports, self.dispatch._pool.slots(node))
        placed = self.note(deliver_results(self.dispatch, node, results, moment(at)))
        return placed + self.note(self.commit(at))

    def where(self, command: str) -> str:
        return str(self.live[command][2])


def array_draft(
    command: str, count: int, requires: Requirements | None = None, first: int = 0
) -> TaskDraft:
    """Return an array whose members have their number as argument."""
    options = TaskOptions(array=ArraySpec(count=count, first=first), requires=requires)
    return replace(draft(f"{command} {{}}"), options=options)


def draft_requiring(
    command: str, requires: Requirements, priority: int = 0
) -> TaskDraft:
    """Return a task with requirements."""
    options = TaskOptions(requires=requires)
    return replace(draft(command), options=options, priority=priority)


def roster_line(
    info: NodeInfo, state: NodeState = NodeState.READY, strain: Pressure | None = None
) -> RosterEntry:
    """Return a node's line of the roster."""
    return RosterEntry(
        id=info.id,
        name=info.name,
        role=Role.WORKER,
        state=state,
        addresses=(),
        lan_port=1,
        slots=info.slots,
        memory_mb=info.memory_mb,
        pressure=strain,
        labels=info.labels,
        os=info.os,
        arch=info.arch,
        cpus=info.cpus,
        gpus=info.gpus,
    )
