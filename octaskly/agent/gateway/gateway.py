"""The `Gateway` port: answers the API from the core and the store.

Writes are requests to the core, matched to their replies by ticket. Reads come from
the store, so they show durable state. Only the dispatcher answers for the mesh. On
other nodes these calls raise NotDispatcher, and the API forwards the request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from functools import partial
from typing import Final

from msgspec.structs import replace

from octaskly.agent.gateway.audit import AgentAuditLog
from octaskly.agent.gateway.event_feed import EventFeed
from octaskly.agent.gateway.mesh_records import Records
from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.agent.gateway.parent_lookup import FilesOfTree
from octaskly.agent.gateway.pending_requests import PendingRequests
from octaskly.agent.gateway.queue_history import QueueHistorySampler
from octaskly.agent.gateway.rerun import build_retry, retry_key
from octaskly.agent.gateway.submissions import (
    QueueLimits,
    Submission,
    SubmissionService,
)
from octaskly.agent.gateway.task_lookup import (
    LocalFiles,
    OutputLocator,
    TaskFinder,
    stream_visitor_output,
)
from octaskly.agent.gateway.task_waiters import TaskWaiters
from octaskly.agent.gateway.tokens import TokenService
from octaskly.agent.health import HealthChecks
from octaskly.core import events as ev
from octaskly.core import replies
from octaskly.core.events import PurgeRequested
from octaskly.core.log.merge import TaskRecord, cancel_of
from octaskly.core.log.mesh_records import VISIT_ENDED, RecordDraft
from octaskly.core.model.arrays import array_of
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import AttemptId, NodeId, StreamId, TaskId, task_name
from octaskly.core.model.nodes import AvailabilityCommand, LoadSample, RosterEntry
from octaskly.core.model.tasks import TaskState
from octaskly.core.node.node import Node
from octaskly.core.protocol.messages import Roster, StartOffsets
from octaskly.core.protocol.visitor_rules import STAY_S_MAX
from octaskly.core.replies import TaskExplanation, TasksPurged, VisitorDemand
from octaskly.errors import (
    DispatcherUnknown,
    NotDispatcher,
    OutcomeUnknown,
    PermissionDenied,
    StoreFull,
    TaskNotCancellable,
    TaskNotFound,
    TaskNotWaiting,
)
from octaskly.ports.events import EndedMember, RecentAttempts
from octaskly.ports.files import KeptOutput
from octaskly.ports.gateway import DispatcherView, Health, MeshStats, ReplicationState
from octaskly.ports.output import OutputChunk
from octaskly.ports.store import TaskListPage, TaskParts, TaskQuery
from octaskly.ports.tokens import Principal
from octaskly.store import Store
from octaskly.system.clock import SystemClock
from octaskly.trust import TokenSigner

HOUR_MS: Final = 3_600_000
PURGE_WAIT_S: Final = 10.0  #: longest wait of a request; the purge continues


async def purge_ended_tasks(
    pending_requests: PendingRequests,
    store: Store,
    older_than_s: int,
    require_dispatcher: Callable[[], None],
) -> int | None:
    """Purge ended tasks; return their number, or None while the purge continues.

    A purged task is not shown any more, nor returned for an `Idempotency-Key`.

    Args:
        pending_requests: Sends the request to the core.
        store: Deletes the purged tasks.
        older_than_s: Purge only tasks that ended at least this long ago.
        require_dispatcher: Raises if this node is not dispatcher any more; then no
            node continues the purge.
    """
    try:
        async with asyncio.timeout(PURGE_WAIT_S):
            reply = await pending_requests.send_request(
                lambda ticket: PurgeRequested(ticket, older_than_s)
            )
            await store.wait_until_purged()
    except TimeoutError:
        require_dispatcher()
        return None
    assert isinstance(reply, TasksPurged)
    return reply.count


def require_owner(record: TaskRecord, principal: Principal) -> None:
    """Check that a principal may cancel, retry and reprioritize a task.

    A retry runs with the stdin of the task, which no token may read, and its submitter
    could cancel it.

    Raises:
        PermissionDenied: the task is somebody else's, and the principal is no admin.
    """
    owner = record.spec.submitter if record.spec else ""
    if not principal.is_admin and owner != principal.subject:
        raise PermissionDenied(
            "Insufficient permissions",
            hint="a client token cancels, retries and reprioritizes only its own tasks",
        )


AVAILABILITY_CHANGE_S = 2.0  #: longest wait for the disk, then for the roster


class AgentGateway:
    """The `Gateway` port of a running agent."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        mesh_id: str | None,
        store: Store,
        clock: SystemClock,
        post: Callable[[ev.Event], None],
        files: LocalFiles,
        stream_output: Callable[..., AsyncIterator[OutputChunk]],
        last_load: Callable[[], LoadSample],
        health_checks: HealthChecks,
        signer: TokenSigner | None,
        names: Mapping[NodeId, str],
        node: Node,
        queue_limits: QueueLimits,
    ) -> None:
        self._node = node
        self.node_id, self.mesh_id = node_id, mesh_id
        self._store = store
        self._clock = clock
        self.last_load = last_load
        self._health_checks = health_checks
        self._started_s = clock.now().mono_s
        self.pending_requests = PendingRequests(post)
        self.records = Records(self.pending_requests, store, health_checks)
        self.tokens = TokenService(
            signer, self.records, clock, self._require_dispatcher
        )
        self.audit = AgentAuditLog(
            self.records, clock, node_id, self._require_dispatcher
        )
        self.waiters = TaskWaiters()
        self._task_finder = TaskFinder(store, self.pending_requests)
        self._submissions = self._build_submissions(queue_limits, files.files_of_tree)
        self.wait_until_replicated = self._submissions.wait_until_replicated
        self.view = MeshView(node_id, names)
        self.history_sampler = QueueHistorySampler(store, self.view, clock)
        self.feed = EventFeed(
            store, self.view, self._own_stream, self.wait_until_replicated
        )
        self._connect_reads()
        self._connect_files(files)
        self.stream_output = stream_output
        #: called once tasks were purged by request
        self.on_purged: Callable[[], None] = lambda: None

    def _connect_reads(self) -> None:
        self.queue_history = self.history_sampler.samples
        self.subscribe = self.feed.subscribe
        self.dispatcher = self.view.dispatcher
        self.find_node_id = self.view.find_node_id
        self.api_urls_of = self.view.lan_urls_of
        self.read_display_facts = self._store.read_display_facts

    def _connect_files(self, files: LocalFiles) -> None:
        self.outputs = OutputLocator(
            partial(self.find_task, parts=TaskParts.BRIEF),
            self.view,
            self.node_id,
            files,
            self._store.read_ended_members,
        )
        self.locate_output = self.outputs.locate_output
        self.locate_outputs = self.outputs.locate_outputs
        self.make_output_tree = self.outputs.make_output_tree
        self.captured_outputs = self.outputs.captured_outputs
        self.read_input_sources = files.read_input_sources
        self._size_trees = files.size_trees
        self._note_needed_outputs = files.note_needed_outputs

    def _build_submissions(
        self, queue_limits: QueueLimits, files_of: FilesOfTree
    ) -> SubmissionService:
        return SubmissionService(
            mesh_id=self.mesh_id,
            store=self._store,
            clock=self._clock,
            pending_requests=self.pending_requests,
            find_task=partial(self._task_finder.find_task, parts=TaskParts.BRIEF),
            files_of=files_of,
            stream=self._own_stream,
            health_checks=self._health_checks,
            queue_limits=queue_limits,
        )

    def close(self) -> None:
        """Fail every request that still waits for the core."""
        self.pending_requests.close()

    # --- mesh and nodes ------------------------------------------------------------

    async def wait_for_dispatcher(self, timeout_s: float) -> DispatcherView | None:
        """Wait up to `timeout_s` until a dispatcher is known."""
        known = await self.view.wait_for_dispatcher(timeout_s)
        if known is None:
            self._health_checks.require_membership()
        return known

    def roster(self) -> Roster | None:
        """Return the members of the mesh."""
        return self.view.roster

    def replication_state(self) -> ReplicationState:
        """Return the epoch and the replication state of the standbys."""
        return ReplicationState(
            epoch=self.view.epoch,
            standbys=self._node.standbys,
            last_takeover=self._node.last_takeover if self.view.is_serving else None,
            is_merging=self._node.is_merging,
        )

    def last_heard_ms(self, node: NodeId) -> int | None:
        """Return when a member was last heard or found lost, in wall-clock ms."""
        now = self._clock.now()
        if node == self.node_id:
            return now.wall_ms
        heard_s = self._node.last_heard_s(node)
        if heard_s is None:
            return None
        return now.wall_ms - round((now.mono_s - heard_s) * 1000)

    def node_names(self) -> Mapping[NodeId, str]:
        """Return the name of every node that this node has ever known."""
        return self.view.names

    async def end_visit(self, visitor: NodeId) -> None:
        """Have all members refuse a visitor for as long as its certificate may last."""
        ends_ms = self._clock.now().wall_ms + STAY_S_MAX * 1000
        await self.records.write_records(
            RecordDraft(VISIT_ENDED, visitor, b"", ends_ms)
        )

    # --- tasks ---------------------------------------------------------------------

    async def submit_tasks(
        self,
        drafts: Sequence[TaskDraft],
        *,
        principal: Principal,
        idempotency_key: str | None = None,
        is_strict: bool = False,
    ) -> tuple[list[TaskRecord], int]:
        """Accept all tasks durably, or none."""
        return await self._accept_submission(
            Submission(
                drafts=tuple(drafts),
                submitter=principal.subject,
                idempotency_key=idempotency_key,
                is_strict=is_strict,
            )
        )

    async def reserve_task_ids(self, count: int) -> Sequence[TaskId]:
        """Return ids for tasks that may be submitted."""
        self._require_dispatcher()
        return await self._submissions.reserve_task_ids(count)

    async def _accept_submission(
        self, submission: Submission
    ) -> tuple[list[TaskRecord], int]:
        self._health_checks.require_membership()
        self._require_dispatcher()
        self._health_checks.require_disk_room()
        asking = [draft.options for draft in submission.drafts if draft.options]
        if trees := {options.tree for options in asking if options.tree}:
            await self._size_trees(trees)
        accepted = await self._submissions.accept_submission(submission)
        if any(options.outputs_of for options in asking):
            self._note_needed_outputs()
        return accepted

    async def find_task(self, ref: str, parts: TaskParts = TaskParts.ALL) -> TaskRecord:
        """Return one task; its end only once that is as durable as an event."""
        self._require_dispatcher()
        record = await self._task_finder.find_task(ref, parts)
        await self._confirm_ends((record,))
        return record

    async def find_by_short_id(self, text: str) -> Sequence[TaskRecord]:
        """Return the tasks that a short id may mean, without outputs."""
        self._require_dispatcher()
        names = await self._store.names_with_short_id(text)
        found = [await self._store.read_task(name, TaskParts.BRIEF) for name in names]
        records = [record for record in found if record is not None]
        await self._confirm_ends(records)
        return records

    async def _confirm_ends(self, records: Iterable[TaskRecord]) -> None:
        """Wait until no failover can take back the ends that these tasks show."""
        if any(record.state.is_final for record in records):
            await self._wait_for_copies()

    async def _wait_for_copies(self) -> None:
        """Wait until a standby has all that is on this disk, if one is in sync."""
        if self._node.has_copies_of_all(self._clock.now()):
            return
        try:
            self._require_commits()
            await self.pending_requests.send_request(
                ev.CopiesRequested, check=self._require_commits
            )
        except StoreFull:
            return  # What was read is on this disk, and no standby takes it back.
        except OutcomeUnknown as error:
            raise NotDispatcher(str(error)) from None

    def _require_commits(self) -> None:
        """Raise StoreFull if this disk takes no writes, and there is no standby."""
        if not self._node.standbys:
            self._health_checks.require_writable_log()

    def at_hand(self, ref: str) -> TaskRecord | None:
        """Return an ended task that is in memory; None if it must be read."""
        return self.waiters.at_hand(ref) if self.view.is_serving else None

    async def wait_for_end(self, ref: str) -> TaskRecord:
        """Return a task once it is final."""
        self._require_dispatcher()
        name = await self._task_finder.find_name(ref)
        return await self.waiters.wait_until(
            name, lambda: self.find_task(name), lambda task: task.state.is_final
        )

    async def wait_until(
        self, ref: str, is_wanted: Callable[[TaskRecord], bool], timeout_s: float
    ) -> TaskRecord:
        """Return a task once `is_wanted` accepts it, or at the timeout."""
        name = await self._task_finder.find_name(ref)
        read = partial(self._task_finder.find_task, name)
        try:
            async with asyncio.timeout(timeout_s):
                record = await self.waiters.wait_until(
                    name, read, is_wanted, accepts_local_commit=True
                )
        except TimeoutError:
            record = await read()
        await self._confirm_ends((record,))
        return record

    async def list_tasks(self, query: TaskQuery) -> TaskListPage:
        """Return one page of tasks."""
        self._require_dispatcher()
        page = await self._store.read_task_page(query)
        await self._confirm_ends(page.records)
        return page

    async def read_ended_members(
        self, array: TaskId, first: int, last: int, limit: int
    ) -> tuple[EndedMember, ...]:
        """Return members of an array that have ended."""
        members = await self._store.read_ended_members(array, first, last, limit)
        if members:
            await self._wait_for_copies()
        return members

    async def cancel_task(
        self, ref: str, *, force: bool, principal: Principal
    ) -> TaskRecord:
        """Cancel a task."""
        record = await self.find_task(ref, TaskParts.BRIEF)
        require_owner(record, principal)
        by, array = principal.subject, record if record.progress else None
        earlier = cancel_of(record)
        reply = await self.pending_requests.send_request(
            lambda ticket: ev.CancelRequested(
                ticket, record.id, record.state, force, by, array, earlier
            ),
            check=partial(
                self._health_checks.require_durable, f"{record.id} is cancelled"
            ),
        )
        assert isinstance(reply, replies.CancelResult)
        if reply.state is TaskState.RUNNING:
            raise TaskNotCancellable(
                "Cannot cancel running task",
                hint="it is running; `force` cancels it and ends its processes",
            )
        if not reply.was_done:
            raise TaskNotFound("Task not found", hint=f"it has ended: {reply.state}")
        return record

    async def reprioritize_task(
        self, ref: str, priority: int, *, principal: Principal
    ) -> TaskRecord:
        """Change the priority of a task or an array that waits."""
        record = await self.find_task(ref)
        require_owner(record, principal)
        if (array := array_of(record.id)) is not None:
            raise TaskNotWaiting(
                "Cannot change the priority of this task",
                hint="it is a member; its priority is that of array "
                f"{task_name(array)}",
            )
        reply = await self.pending_requests.send_request(
            lambda ticket: ev.ReprioritizeRequested(ticket, record, priority),
            check=partial(
                self._health_checks.require_durable, f"{record.id} has a new priority"
            ),
        )
        assert isinstance(reply, replies.ReprioritizeResult)
        if reply.was_done:
            return record
        if reply.state is TaskState.RUNNING:
            hint = "it runs already; a priority counts only while a task waits"
        elif reply.state is TaskState.QUEUED:
            hint = "none of its members wait"
        else:
            hint = f"it has ended: {reply.state}"
        raise TaskNotWaiting("Cannot change the priority of this task", hint=hint)

    async def find_retry(self, ref: str) -> TaskRecord | None:
        """Return the task that a retry of this task has made, None if it has none."""
        record = await self.find_task(ref, TaskParts.BRIEF)
        if record.spec is None:
            return None
        with contextlib.suppress(TaskNotFound):
            key = retry_key(record.name, record.spec)
            repeat = self._submissions.id_of_shared_key(key)
            return await self.find_task(repeat, TaskParts.BRIEF)
        return None

    async def retry_task(
        self, ref: str, *, principal: Principal
    ) -> tuple[TaskRecord, int]:
        """Accept a task that repeats an ended one."""
        record = await self.find_task(ref, TaskParts.SPEC)
        require_owner(record, principal)
        repeat = await build_retry(record, self._store, principal.subject)
        records, replicas = await self._accept_submission(repeat)
        return records[0], replicas

    async def read_recent_attempts(self, since_ms: int, limit: int) -> RecentAttempts:
        """Read running attempts, and those that ended since `since_ms`."""
        found = await self.feed.read_recent_attempts(since_ms, limit)
        if found.ended:
            await self._wait_for_copies()
        return found

    async def purge_ended_tasks(self, older_than_s: int) -> int | None:
        """Purge tasks that ended at least this long ago, on all nodes."""
        self._require_dispatcher()
        here = self._require_dispatcher
        count = await purge_ended_tasks(
            self.pending_requests, self._store, older_than_s, here
        )
        self.on_purged()
        return count

    async def find_forgotten(
        self, kept: Sequence[KeptOutput]
    ) -> tuple[Sequence[int], int]:
        """Find outputs of tasks that are forgotten on all nodes."""
        self._require_dispatcher()
        return await self._task_finder.find_forgotten(kept)

    async def explain_task(self, ref: str) -> tuple[TaskRecord, TaskExplanation]:
        """Return a task and the reason for its state."""
        record = about = await self.find_task(ref, TaskParts.BRIEF)
        is_waiting = record.state is TaskState.QUEUED and not record.attempts
        if is_waiting and (array := array_of(record.id)) is not None:
            # It is queued with its array.
            about = await self.find_task(array, TaskParts.BRIEF)
        names = tuple((a.node, self.view.name_of(a.node)) for a in about.attempts)
        reply = await self.pending_requests.send_request(
            lambda n: ev.ExplainRequested(n, about, names)
        )
        assert isinstance(reply, TaskExplanation)
        if about is not record:
            reply = replace(
                reply, state=TaskState.QUEUED
            )  # Other members of the array may run.
        return record, reply

    async def visitor_demand(self, label: tuple[str, str] | None) -> VisitorDemand:
        """Return how many queued tasks a new visitor could run."""
        self._require_dispatcher()
        reply = await self.pending_requests.send_request(
            lambda n: ev.VisitorDemandRequested(n, label)
        )
        assert isinstance(reply, VisitorDemand)
        return reply

    def stream_visitor_output(
        self,
        visitor: NodeId,
        task: TaskId,
        attempt: AttemptId,
        starts: StartOffsets,
        *,
        follow: bool,
    ) -> AsyncIterator[OutputChunk]:
        """Return the output of an attempt at a visitor of this node."""
        return stream_visitor_output(
            self.pending_requests, visitor, (task, attempt), starts, follow=follow
        )

    # --- this node -----------------------------------------------------------------

    async def set_availability(
        self, steering: AvailabilityCommand, *, principal: Principal
    ) -> RosterEntry:
        """Drain, resume, pause or unpause this node; return its new roster entry."""
        try:
            async with asyncio.timeout(AVAILABILITY_CHANGE_S):
                reply = await self.pending_requests.send_request(
                    lambda ticket: ev.AvailabilityRequested(
                        ticket, steering, principal.subject
                    )
                )
        except TimeoutError:
            raise StoreFull(
                f"{steering.value} is in effect, but could not be written to disk",
                hint="it ends when this agent restarts",
            ) from None
        assert isinstance(reply, replies.AvailabilityChanged)
        # Wait for the dispatcher, so that its next answer shows the new state.
        member = await self.view.wait_for_own_state(reply.state, AVAILABILITY_CHANGE_S)
        if member is None:
            raise DispatcherUnknown(
                "no dispatcher has this node in its roster at the moment",
                hint=f"{steering.value} is in effect on this node nevertheless",
            )
        return replace(member, state=reply.state, running=reply.running)

    # --- state ---------------------------------------------------------------------

    async def mesh_stats(self) -> MeshStats:
        """Return counts of the whole mesh, and the load of this machine."""
        self._require_dispatcher()
        now = self._clock.now()
        stored = await self._store.read_stats()
        failed = await self._store.count_failures(now.wall_ms - HOUR_MS)
        live = self.view.live_members
        active = sum(m.running > 0 for m in live)
        load = self.last_load()
        return MeshStats(
            workers_total=len(live),
            workers_active=active,
            workers_idle=len(live) - active,
            counts=stored.counts,
            uptime_s=now.mono_s - self._started_s,
            dispatching_s=self.view.dispatching_s(now.mono_s),
            memory_mb=load.process_mb,
            cpu_percent=load.cpu_percent,
            disk_bytes=stored.disk_bytes,
            replication=self.replication_state(),
            refused_counts=self.view.refused_counts(self._node.refused_counts),
            failed_last_hour=failed,
        )

    def health(self) -> Health:
        """Return the health of this node, with the reason if it cannot serve."""
        failure = self._health_checks.failure_reason()
        return Health(
            is_healthy=failure is None,
            uptime_s=self._clock.now().mono_s - self._started_s,
            message=failure,
            warnings=self._health_checks.warnings,
        )

    # --- internal ------------------------------------------------------------------

    def _own_stream(self) -> StreamId | None:
        """Return the stream that this node writes as dispatcher."""
        return self._node.stream

    def _require_dispatcher(self) -> None:
        if not self.view.is_serving:
            raise NotDispatcher("this node is not the dispatcher")
