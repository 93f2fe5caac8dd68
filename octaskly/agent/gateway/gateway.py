"""Answers the API from the core and the store.

Writes go through the core and come back by ticket; reads come from the store, so they
show what is durable. Only the dispatcher answers for the mesh: elsewhere these calls
raise NotDispatcher and the API forwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from octaskly.agent.gateway.audit import Audit
from octaskly.agent.gateway.event_feed import Feed
from octaskly.agent.gateway.health import Fitness
from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.agent.gateway.pending_requests import Tickets, Waiters
from octaskly.agent.gateway.queue_history import History
from octaskly.agent.gateway.records import Records
from octaskly.agent.gateway.repeat import repetition
from octaskly.agent.gateway.submissions import Submission, Submissions
from octaskly.agent.gateway.task_lookup import Finder, Outputs
from octaskly.agent.gateway.tokens import TokenOffice
from octaskly.core import events as ev
from octaskly.core import replies
from octaskly.core.events import PurgeRequested
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import AttemptId, NodeId, StreamId, TaskId
from octaskly.core.model.nodes import AvailabilityCommand, LoadSample
from octaskly.core.model.tasks import TaskState
from octaskly.core.node.node import Node
from octaskly.core.protocol.messages import Roster, RosterEntry
from octaskly.core.replies import TaskExplanation, TasksPurged
from octaskly.errors import (
    NoDispatcher,
    NotDispatcher,
    PermissionDenied,
    StoreFull,
    TaskNotCancellable,
    TaskNotFound,
)
from octaskly.ports import (
    DispatcherView,
    Health,
    Log,
    MeshState,
    MeshStats,
    Principal,
    TaskPage,
    TaskQuery,
)
from octaskly.ports.output import Piece
from octaskly.system.clock import SystemClock
from octaskly.trust import Tokens

HOLD_S: Final = 10.0  #: a request waits so long; the dispatcher goes on behind it


async def forget(
    tickets: Tickets, store: Log, older_than_s: int, still_here: Callable[[], None]
) -> int | None:
    """Return how many tasks were forgotten, None while there are more to forget.

    Then nobody is shown them any more, nor given one for an `Idempotency-Key`.

    Args:
        tickets: Takes the question to the core.
        store: Deletes what was forgotten.
        older_than_s: How long ago they must have ended.
        still_here: Raises if this node is dispatcher no more, so nobody is at it.
    """
    try:
        async with asyncio.timeout(HOLD_S):
            reply = await tickets.ask(
                lambda ticket: PurgeRequested(ticket, older_than_s)
            )
            await store.purged()
    except TimeoutError:
        still_here()
        return None
    assert isinstance(reply, TasksPurged)
    return reply.count


STEERED_S = 2.0  #: what an operator says is on disk, and known, so soon


class AgentGateway:
    """Gateway port on a real agent."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        mesh_id: str | None,
        store: Log,
        clock: SystemClock,
        post: Callable[[ev.Event], None],
        captured: Callable[[TaskId, AttemptId, str], Path],
        pieces: Callable[..., AsyncIterator[Piece]],
        sample: Callable[[], LoadSample],
        fitness: Fitness,
        signer: Tokens | None,
        names: Mapping[NodeId, str],
        node: Node,
        queue_max: int,
    ) -> None:
        self._node = node
        self._node_id, self._mesh_id = node_id, mesh_id
        self._store = store
        self._clock = clock
        self._sample = sample
        self._fitness = fitness
        self._started_s = clock.now().mono_s
        self.tickets = Tickets(post)
        self.records = Records(self.tickets, store, fitness)
        self.tokens = TokenOffice(signer, self.records, clock, self._require_dispatcher)
        self.audit = Audit(self.records, clock, node_id, self._require_dispatcher)
        self.waiters = Waiters()
        self._finder = Finder(store, self.tickets)
        self._submissions = Submissions(
            mesh_id=mesh_id,
            store=store,
            clock=clock,
            tickets=self.tickets,
            find=self._finder.task,
            stream=self._stream,
            fitness=fitness,
            queue_max=queue_max,
        )
        self.view = MeshView(node_id, names)
        self.course = History(store, self.view, clock)
        self.history = self.course.points
        self.feed = Feed(store, self.view, self._stream, self.when_safe)
        self.listen, self.lately = self.feed.listen, self.feed.lately
        self.ended = store.ended
        self.outputs = Outputs(self.task, self.view, node_id, captured)
        self.output, self.local_output = self.outputs.place, self.outputs.local
        self.pieces = pieces

    def close(self) -> None:
        """Fail every request that still waits for the core."""
        self.tickets.close()

    # --- who and where -------------------------------------------------------------

    @property
    def mesh_id(self) -> str | None:
        """Public name of the mesh."""
        return self._mesh_id

    @property
    def node_id(self) -> NodeId:
        """This node."""
        return self._node_id

    def dispatcher(self) -> DispatcherView | None:
        """Return the dispatcher, or None while none is known or it is not ready."""
        return self.view.dispatcher()

    async def dispatcher_known(self, timeout_s: float) -> DispatcherView | None:
        """Wait until a dispatcher is known, at most so long."""
        known = await self.view.dispatcher_known(timeout_s)
        if known is None:
            self._fitness.require_membership()
        return known

    def roster(self) -> Roster | None:
        """Return the members of the mesh."""
        return self.view.roster

    def mesh(self) -> MeshState:
        """Return who reigns, and what the dispatcher knows of its standbys."""
        return MeshState(
            epoch=self.view.epoch,
            standbys=self._node.standbys,
            failover=self._node.last_takeover if self.view.is_serving else None,
            is_ahead=self._node.has_rows_ahead,
        )

    def seen_ms(self, node: NodeId) -> int | None:
        """Return when a member was last heard, or was found lost."""
        now = self._clock.now()
        if node == self._node_id:
            return now.wall_ms
        heard_s = self._node.last_heard_s(node)
        if heard_s is None:
            return None
        return now.wall_ms - round((now.mono_s - heard_s) * 1000)

    async def joined_ms(self, nodes: Iterable[NodeId]) -> Mapping[NodeId, int]:
        """Return of those that were met as new ones when that was."""
        return await self.audit.joins(nodes)

    def names(self) -> Mapping[NodeId, str]:
        """Return the name of every node ever met."""
        return self.view.names

    def node_named(self, name: str) -> NodeId | None:
        """Return the id of a node by name or id."""
        return self.view.node_named(name)

    # --- tasks ---------------------------------------------------------------------

    async def submit(
        self,
        drafts: Sequence[TaskDraft],
        *,
        principal: Principal,
        idempotency_key: str | None = None,
        is_strict: bool = False,
    ) -> tuple[list[TaskRecord], int]:
        """Accept all tasks durably, or none."""
        return await self._take(
            Submission(
                drafts=tuple(drafts),
                submitter=principal.subject,
                key=idempotency_key,
                is_strict=is_strict,
            )
        )

    async def new_ids(self, count: int) -> Sequence[TaskId]:
        """Return ids for tasks that may be submitted."""
        self._require_dispatcher()
        return await self._submissions.names(count)

    async def _take(self, submission: Submission) -> tuple[list[TaskRecord], int]:
        self._fitness.require_membership()
        self._require_dispatcher()
        self._fitness.require_room()
        return await self._submissions.take(submission)

    async def when_safe(self) -> None:
        """Wait until what is on this disk is as safe as an accepted task."""
        await self._submissions.when_safe()

    async def task(self, ref: str) -> TaskRecord:
        """Return one task with outputs."""
        self._require_dispatcher()
        return await self._finder.task(ref)

    def at_hand(self, ref: str) -> TaskRecord | None:
        """Return a task that has ended, where that is known without a look."""
        return self.waiters.at_hand(ref) if self.view.is_serving else None

    async def wait(self, ref: str, timeout_s: float) -> TaskRecord:
        """Return a task when it is final, or as it is when the time is over."""
        if timeout_s <= 0:
            return await self.task(ref)
        self._require_dispatcher()
        name = await self._finder.name(ref)
        return await self.waiters.until(
            name, lambda: self.task(name), lambda task: task.state.is_final, timeout_s
        )

    async def until(
        self, ref: str, is_wanted: Callable[[TaskRecord], bool], timeout_s: float
    ) -> TaskRecord:
        """Return a task once it is as wanted, or as it is when the time is over."""
        name = await self._finder.name(ref)
        return await self.waiters.until(
            name, lambda: self.task(name), is_wanted, timeout_s, is_eager=True
        )

    async def page(self, query: TaskQuery) -> TaskPage:
        """Return one page of tasks."""
        self._require_dispatcher()
        return await self._store.page(query)

    async def cancel(
        self, ref: str, *, force: bool, principal: Principal
    ) -> TaskRecord:
        """Cancel a task."""
        record = await self.task(ref)
        owner = record.spec.submitter if record.spec else ""
        if not principal.is_admin and owner != principal.subject:
            raise PermissionDenied(
                "Insufficient permissions",
                hint="a client token cancels only its own tasks",
            )
        by, array = principal.subject, record if record.progress else None
        reply = await self.tickets.ask(
            lambda ticket: ev.CancelRequested(
                ticket, record.id, record.state, force, by, array
            ),
            look=partial(self._fitness.require_writes, f"{record.id} is cancelled"),
        )
        assert isinstance(reply, replies.CancelResult)
        if reply.state is TaskState.RUNNING:
            raise TaskNotCancellable(
                "Cannot cancel running task", hint="it runs; `force` ends its processes"
            )
        if not reply.was_done:
            raise TaskNotFound("Task not found", hint=f"it has ended: {reply.state}")
        return record

    async def retry(self, ref: str, *, principal: Principal) -> tuple[TaskRecord, int]:
        """Accept a task that repeats an ended one."""
        record = await self.task(ref)
        repeat = await repetition(record, self._store, principal.subject)
        records, replicas = await self._take(repeat)
        return records[0], replicas

    async def forget(self, older_than_s: int) -> int | None:
        """Forget what ended so long ago, on all nodes."""
        self._require_dispatcher()
        here = self._require_dispatcher
        return await forget(self.tickets, self._store, older_than_s, here)

    async def explain(self, ref: str) -> tuple[TaskRecord, TaskExplanation]:
        """Return a task, and why it is where it is."""
        record = about = await self.task(ref)
        is_waiting = record.state is TaskState.QUEUED and not record.attempts
        if is_waiting and (place := split_member_id(record.id)) is not None:
            about = await self.task(place[0])  # It waits with its array.
        names = tuple((a.node, self.view.name_of(a.node)) for a in about.attempts)
        reply = await self.tickets.ask(lambda n: ev.ExplainRequested(n, about, names))
        assert isinstance(reply, TaskExplanation)
        if about is not record:
            reply = replace(reply, state=TaskState.QUEUED)  # Others of it may run.
        return record, reply

    # --- this node -----------------------------------------------------------------

    async def steer(
        self, steering: AvailabilityCommand, *, principal: Principal
    ) -> RosterEntry:
        """Drain, resume, pause or unpause this node; return it as it is then."""
        try:
            async with asyncio.timeout(STEERED_S):
                reply = await self.tickets.ask(
                    lambda ticket: ev.AvailabilityRequested(
                        ticket, steering, principal.subject
                    )
                )
        except TimeoutError:
            raise StoreFull(
                f"{steering.value} is in force, but the disk does not keep it",
                hint="it is forgotten when this agent restarts",
            ) from None
        assert isinstance(reply, replies.AvailabilityChanged)
        # The dispatcher shall know, so that whoever asks it next is told the same.
        member = await self.view.shown_as(reply.state, STEERED_S)
        if member is None:
            raise NoDispatcher(
                "no dispatcher keeps a list of nodes at this moment",
                hint=f"{steering.value} is in force all the same",
            )
        return replace(member, state=reply.state, running=reply.running)

    def urls_of(self, name: str) -> tuple[str, ...]:
        """Return where the API of a node, by name or id, is, the best first."""
        return self.view.lan_urls(name)

    # --- how things are ------------------------------------------------------------

    async def stats(self) -> MeshStats:
        """Return counts of the whole mesh and the state of this machine."""
        self._require_dispatcher()
        stored = await self._store.stats()
        live = self.view.live
        active = sum(m.running > 0 for m in live)
        load, now_s = self._sample(), self._clock.now().mono_s
        return MeshStats(
            workers_total=len(live),
            workers_active=active,
            workers_idle=len(live) - active,
            counts=stored.counts,
            uptime_s=now_s - self._started_s,
            reign_s=self.view.reign_s(now_s),
            memory_mb=load.process_mb,
            cpu_percent=load.cpu_percent,
            disk_bytes=stored.disk_bytes,
            mesh=self.mesh(),
            refused=self.view.refused(self._node.refused_counts),
        )

    def health(self) -> Health:
        """Return whether this node can serve."""
        failure = self._fitness.trouble()
        return Health(
            is_healthy=failure is None,
            uptime_s=self._clock.now().mono_s - self._started_s,
            message=failure,
        )

    def load(self) -> LoadSample:
        """Return the last sample of this machine."""
        return self._sample()

    # --- inside --------------------------------------------------------------------

    def _stream(self) -> StreamId | None:
        """Return what this node writes as dispatcher."""
        return self._node.stream

    def _require_dispatcher(self) -> None:
        if not self.view.is_serving:
            raise NotDispatcher("this node is not dispatcher")
