"""Clients: their requests to nodes, and the answers.

This module also draws the submitted tasks: their parents, requirements and retries. The
promises in answers go to `promises`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from octaskly.core import replies
from octaskly.core.events import (
    CancelRequested,
    CatchUpRequested,
    RecordRequested,
    ReprioritizeRequested,
    TasksSubmitted,
)
from octaskly.core.log import mesh_records
from octaskly.core.log.facts import Submitted
from octaskly.core.log.merge import cancel_of
from octaskly.core.log.mesh_records import RecordDraft
from octaskly.core.model.drafts import TaskDraft, log_id_of
from octaskly.core.model.ids import NodeId, TaskId, task_name
from octaskly.core.model.task_options import (
    After,
    ArraySpec,
    Requirements,
    Retry,
    TaskOptions,
)
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.replies import (
    AvailabilityChanged,
    CancelResult,
    CatchUpStatus,
    Reply,
    TasksAccepted,
)
from tests.simulation.machine import MEMORY_MB, Machine
from tests.simulation.store.folding import kept

if TYPE_CHECKING:
    from tests.simulation.world import World

RULES = (
    None,
    None,
    Retry(retries=1),
    Retry(retries=5),
    Retry(retries=2, on_failure=False, codes=(7,)),
    Retry(retries=1, on_lost=False),
    Retry(on_lost=False),
)
"""Of tasks that may fail."""


class Clients:
    """Submits tasks, cancels and records, and receives the answers."""

    child_share = 0.0  #: share of tasks with a parent
    demanding_share = 0.0  #: share of tasks that need much of a machine
    array_share = 0.0  #: share of tasks that are arrays
    members_most = 12  #: members of one array
    has_stdin = False  #: each task has stdin, which disks free after its end
    #: tasks of the last answer that were accepted before
    repeated: tuple[TaskSpec, ...] = ()

    submitters: tuple[str, ...] = ("client",)  #: they submit in turn

    def __init__(self, world: World) -> None:
        self._world = world
        self.accepted: dict[TaskId, TaskSpec] = {}
        #: commands; tasks have no ids before the answer
        self.asked: set[str] = set()
        self.wanted: set[tuple[TaskId, str]] = set()
        """Specifications of accepted tasks."""
        self.cancelled_in: dict[TaskId, int] = {}
        """Term of the dispatcher that cancelled each task and confirmed it."""
        self._cancels: dict[int, int] = {}
        """Term in which each cancel was requested; the answer may come later."""
        self.refused = 0
        self.answer_watchers: list[Callable[[Machine, Reply, float], None]] = []
        self._ticket = 0
        self._drafts: dict[int, tuple[TaskDraft, ...]] = {}  #: requests, by ticket
        #: the request that each one repeats
        self._held: dict[int, tuple[TaskSpec, ...]] = {}
        #: open requests, and the time since when
        self._asked_s: dict[int, float] = {}
        #: callbacks, by ticket
        self._barriers: dict[int, Callable[[Machine], None]] = {}

    def submit(
        self, node_id: NodeId, count: int = 1, task_id: TaskId | None = None
    ) -> None:
        """Submit tasks through one node, or one of two clients' tasks with this id."""
        machine = self._world.machines[node_id]
        if machine.node is None or machine.is_failing:
            return  # The gateway refuses requests that cannot be written.
        if task_id is not None and (held := self._named(machine, task_id)):
            self._repeat(machine, held)
            return
        suffixes = tuple(
            f"{self._world.random.getrandbits(32):08x}" for _ in range(count)
        )
        drafts = tuple(
            TaskDraft(command=f"run {suffix}", id=None)
            if task_id is None
            else TaskDraft(command=f"run {task_id} {int(suffix, 16) % 2}", id=task_id)
            for suffix in suffixes
        )
        if task_id is None:
            drafts = tuple(self._with_parents(draft, machine) for draft in drafts)
            drafts = tuple(self._with_requirements(draft, machine) for draft in drafts)
        drafts = tuple(map(self._with_retries, drafts))
        drafts = tuple(map(self._with_stdin, drafts))
        self.asked.update(draft.command for draft in drafts)
        ticket = self.next_ticket()
        self._drafts[ticket] = drafts
        who = self.submitters[ticket % len(self.submitters)]
        log_ids = tuple(log_id_of(draft, who) for draft in drafts)
        event = TasksSubmitted(ticket, drafts, who, suffixes, log_ids)
        self._world.feed(machine, event)

    def cancel(self, node_id: NodeId, task: TaskId, *, force: bool) -> None:
        """Cancel a task, an array or one of its members through one node."""
        machine = self._world.machines[node_id]
        record = machine.disk.shown(task)
        if machine.node is None or record is None:
            return
        array = record if record.progress else None
        ticket = self.next_ticket()
        self._cancels[ticket] = machine.node.epoch.term
        event = CancelRequested(
            ticket, task, record.state, force, "client", array, cancel_of(record)
        )
        self._world.feed(machine, event)

    def reprioritize(self, node_id: NodeId, task: TaskId, priority: int) -> None:
        """Change the priority of a task or an array through one node."""
        machine = self._world.machines[node_id]
        record = machine.disk.shown(task)
        if machine.node is not None and record is not None:
            event = ReprioritizeRequested(self.next_ticket(), record, priority)
            self._world.feed(machine, event)

    def record(self, node_id: NodeId) -> None:
        """Write one record; few keys exist, so that records collide."""
        machine = self._world.machines[node_id]
        if machine.node is None or machine.is_failing:
            return
        draw = self._world.notes
        kind, few = draw.choice(
            (
                (mesh_records.TOKEN_REVOKED, True),
                (mesh_records.TOKEN_REVOKED, False),
                (mesh_records.AUDIT, False),
            )
        )
        key = str(draw.randrange(6)) if few else f"{draw.getrandbits(64):x}"
        drafts = (RecordDraft(kind, key, draw.randbytes(4)),)
        self._world.feed(machine, RecordRequested(self.next_ticket(), drafts))

    def on_unknown(self, machine: Machine, say: Callable[[Machine], None]) -> None:
        """Request a task that the node does not know; call `say` if it answers 404."""
        ticket = self.next_ticket()
        self._barriers[ticket] = say
        self._world.feed(machine, CatchUpRequested(ticket))

    def answer(self, machine: Machine, ticket: int, reply: Reply) -> None:
        """Take in an answer; its promises must be true from now on."""
        promises = self._world.promises
        if isinstance(reply, AvailabilityChanged):
            return
        match reply:
            case CatchUpStatus(is_complete):
                say = self._barriers.pop(ticket)
                if is_complete:
                    say(machine)
            case TasksAccepted(specs, replicas):
                self.repeated = self._held.pop(ticket, ())
                reply = TasksAccepted((*specs, *self.repeated), replicas)
                for spec, draft in zip(specs, self._drafts[ticket], strict=True):
                    self.accepted[spec.id] = spec
                    self.wanted.add((spec.id, draft.command))
                    promises.make((Submitted, spec.id, None))
            case replies.RecordsKept(some):
                promises.make(*map(kept, some))
            case CancelResult(task, _, was_done) if was_done:
                promises.make(*promises.cancelled_as(task))
                if machine.node is not None and machine.node.is_dispatcher:
                    self.cancelled_in[task] = self._cancels[ticket]
            case _:
                self.refused += 1
        waited_s = self._world.time_s - self._asked_s.pop(ticket)
        for watch in self.answer_watchers:
            watch(machine, reply, waited_s)

    def next_ticket(self) -> int:
        """Return the number of the next request."""
        self._ticket += 1
        self._asked_s[self._ticket] = self._world.time_s
        return self._ticket

    def _named(self, machine: Machine, name: TaskId) -> list[TaskSpec]:
        """Return the tasks of that name on a node's disk."""
        records = machine.disk.records.values()
        return [r.spec for r in records if r.spec and task_name(r.id) == name]

    def _repeat(self, machine: Machine, held: list[TaskSpec]) -> None:
        """Let the gateway answer from its log once the entry is safe."""
        ticket = self.next_ticket()
        self._drafts[ticket] = ()
        self._held[ticket] = tuple(held)
        self._world.feed(machine, TasksSubmitted(ticket, (), "client", (), ()))

    def _with_parents(self, draft: TaskDraft, machine: Machine) -> TaskDraft:
        """Give some tasks a parent that this node knows."""
        known, draw = list(machine.disk.records), self._world.late
        if not known or draw.random() >= self.child_share:
            return draft
        after = After(tasks=(draw.choice(known),), end=draw.choice(("success", "any")))
        return replace(draft, options=TaskOptions(after=after))

    def _with_requirements(self, draft: TaskDraft, machine: Machine) -> TaskDraft:
        """Let some tasks require a whole machine, or most of its memory."""
        if self._world.needy.random() >= self.demanding_share:
            return draft
        requires = self._world.needy.choice(
            (
                Requirements(cpus=machine.slots),
                Requirements(memory_mb=MEMORY_MB - 1),
                Requirements(os="linux"),
            )
        )
        options = replace(draft.options or TaskOptions(), requires=requires)
        return replace(draft, options=options)

    def _with_stdin(self, draft: TaskDraft) -> TaskDraft:
        """Give a task stdin, if all have it."""
        if not self.has_stdin:
            return draft
        options = replace(
            draft.options or TaskOptions(), stdin=f"of {draft.command}".encode()
        )
        return replace(draft, options=options)

    def _with_retries(self, draft: TaskDraft) -> TaskDraft:
        """Give tasks retries, and make some of them arrays.

        A named task has the same specification each time it is submitted.
        """
        if not self._world.commands.failing_share:
            return draft
        draw = self._world.tries if draft.id is None else random.Random(draft.command)
        options = replace(draft.options or TaskOptions(), retry=draw.choice(RULES))
        if draw.random() < self.array_share:
            array = ArraySpec(
                count=draw.randint(1, self.members_most),
                first=draw.choice((0, 7)),
                step=draw.choice((1, 3)),
                max_fails=draw.choice((None, None, 0, 2)),
            )
            options = replace(options, array=array)
        if options == TaskOptions():
            return draft
        return replace(draft, options=options)
