"""An in-memory Gateway: one node's view of a mesh, which a test arranges."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from octaskly.core.change_feed import FeedItem, FeedPosition
from octaskly.core.log.facts import Assigned, Finished, Reprioritized, TaskCancelled
from octaskly.core.log.merge import TaskRecord, apply_fact
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.drafts import TaskDraft, rerun_draft
from octaskly.core.model.ids import Address, AttemptId, Epoch, NodeId, StreamId, TaskId
from octaskly.core.model.nodes import (
    NO_HOLD,
    AvailabilityCommand,
    LoadSample,
    NodeState,
    RejectionReason,
    Role,
    RosterEntry,
    StandbyView,
)
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import (
    PRIORITY_BAND,
    PRIORITY_SHIFT,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.protocol.messages import Roster, StartOffsets
from octaskly.core.replies import NodeRejection, TaskExplanation, VisitorDemand
from octaskly.errors import (
    CatchingUp,
    NotAMember,
    NotDispatcher,
    NotDurable,
    OutputNotFound,
    PermissionDenied,
    TaskAmbiguous,
    TaskExists,
    TaskNotCancellable,
    TaskNotEnded,
    TaskNotFound,
    TaskNotWaiting,
)
from octaskly.files.captured_tree import CapturedTree
from octaskly.files.manifest import (
    TreeFile,
    content_digest,
    encode_manifest,
    make_manifest,
)
from octaskly.ports.events import (
    AttemptWithTask,
    EndedMember,
    EventSubscription,
    RecentAttempts,
)
from octaskly.ports.files import InputSources, KeptOutput
from octaskly.ports.gateway import (
    DispatcherView,
    Health,
    MeshStats,
    OutputHolder,
    OutputLocation,
    QueueSample,
    ReplicationState,
)
from octaskly.ports.output import OutputChunk
from octaskly.ports.store import (
    DisplayFacts,
    MemberFailure,
    TaskListPage,
    TaskParts,
    TaskQuery,
    TaskSearch,
)
from octaskly.ports.tokens import Principal
from tests.support.fake_audit import FakeAudit
from tests.support.fake_tokens import FakeTokens

NOW_MS = 1_770_379_200_000  # 2026-02-06T12:00:00Z
STREAM = StreamId(7)


class FakeGateway:
    """A Gateway port without an agent; alone and dispatcher by default."""

    def __init__(
        self,
        node: str = "node-a",
        *,
        name: str = "laptop-01",
        mesh_id: str | None = "test-mesh",
    ) -> None:
        self._node = NodeId(node)
        self._mesh_id = mesh_id
        self._sequence = 0
        self._changed = asyncio.Event()
        self.records: dict[TaskId, TaskRecord] = {}
        self.keys: dict[tuple[str, str], tuple[list[TaskDraft], list[TaskId]]] = {}
        self.known_names: dict[NodeId, str] = {self._node: name}
        self.state = ReplicationState(epoch=Epoch(1, self._node))
        self.view: DispatcherView | None = self.view_of(self._node)
        self.files: dict[tuple[TaskId, str], Path] = {}
        self.lan_urls: dict[NodeId, tuple[str, ...]] = {}
        self.input_sources: dict[TaskId, InputSources] = {}
        self.wrote: dict[tuple[TaskId, AttemptId], list[OutputChunk]] = {}
        self.visitors: set[NodeId] = set()  #: that are linked to this node
        self.submissions: list[tuple[Principal, str | None]] = []
        self.raised: list[Exception] = []  #: raised by the next calls, in order
        self.steered: list[tuple[AvailabilityCommand, str]] = []
        self.ended_visits: list[NodeId] = []
        self.hold = NO_HOLD
        self.audit = FakeAudit(self._require_dispatcher)
        self.tokens = FakeTokens(NOW_MS, self._require_dispatcher)
        self.lost: set[NodeId] = set()
        self.points: list[QueueSample] = []
        self.began_ms = NOW_MS  #: start of running work
        self.first_failures: dict[TaskId, MemberFailure] = {}
        self.failure: str | None = None
        self.left: str | None = None  #: the reason why this node left the mesh
        self.is_complete = True  #: no other node may know a task that is unknown here
        self.held = asyncio.Event()  #: submissions wait for it
        self.held.set()

        self.news: asyncio.Queue[Sequence[FeedItem]] = asyncio.Queue()
        self.heard_from: list[FeedPosition | None] = []

    # --- arrangements of a test ----------------------------------------------------

    def view_of(
        self, node: str, *, term: int = 1, lan_urls: Sequence[str] = ()
    ) -> DispatcherView:
        """Return this node's view of a dispatcher."""
        return DispatcherView(
            is_self=node == self._node,
            node=NodeId(node),
            epoch=Epoch(term, NodeId(node)),
            lan_urls=tuple(lan_urls),
        )

    def elect(self, view: DispatcherView | None) -> None:
        """Change the dispatcher."""
        self.view = view
        self._notify()

    def keep_copies(self, *nodes: str) -> None:
        """Set these nodes as standbys in sync."""
        standbys = tuple(StandbyView(NodeId(node), True, 0) for node in nodes)
        self.state = dataclasses.replace(self.state, standbys=standbys)

    def start(self, task: str, node: str | None = None) -> AttemptId:
        """Start a queued task."""
        record = self.records[TaskId(task)]
        number = len(record.attempts) + 1
        attempt = AttemptId(1, STREAM, number, number)
        fact = Assigned(record.id, attempt, NodeId(node or self._node))
        self.records[record.id] = apply_fact(record, fact)
        self._notify()
        return attempt

    def finish(self, task: str, outcome: Outcome | None = None) -> None:
        """End the last attempt of a task, by default as completed."""
        record = self.records[TaskId(task)]
        last = record.attempts[-1]
        ended = outcome or Outcome(
            state=AttemptState.OK,
            reason=EndReason.EXIT,
            exit_code=0,
            started_ms=NOW_MS,
            ended_ms=NOW_MS + 1500,
            duration_ms=1500,
            stdout=b"hello\n",
            stdout_bytes=6,
        )
        is_verdict = ended.state in (AttemptState.OK, AttemptState.FAILED)
        fact = Finished(record.id, last.id, last.node, ended, int(is_verdict))
        self.records[record.id] = apply_fact(record, fact)
        self._notify()

    # --- Gateway -------------------------------------------------------------------

    @property
    def mesh_id(self) -> str | None:
        return self._mesh_id

    @property
    def node_id(self) -> NodeId:
        return self._node

    def dispatcher(self) -> DispatcherView | None:
        return self.view

    async def wait_for_dispatcher(self, timeout_s: float) -> DispatcherView | None:
        try:
            async with asyncio.timeout(timeout_s):
                while self.view is None:
                    await self._changed.wait()
        except TimeoutError:
            if self.left is not None:
                raise NotAMember(self.left) from None
            return None
        return self.view

    async def submit_tasks(
        self,
        drafts: Sequence[TaskDraft],
        *,
        principal: Principal,
        idempotency_key: str | None = None,
        is_strict: bool = False,
    ) -> tuple[list[TaskRecord], int]:
        self._require_dispatcher()
        self.submissions.append((principal, idempotency_key))
        if is_strict and self.state.replicas == 1:
            raise NotDurable("no standby acknowledges")
        await self.held.wait()
        self._require_dispatcher()
        if idempotency_key is not None:
            known = self.keys.get((principal.subject, idempotency_key))
            if known is not None:
                if known[0] != list(drafts):
                    raise TaskExists(
                        "the key was used for another body", field="Idempotency-Key"
                    )
                return [self.records[task] for task in known[1]], self.state.replicas
        for index, draft in enumerate(drafts):
            if draft.id in self.records:
                place = "$.id" if len(drafts) == 1 else f"$[{index}].id"
                raise TaskExists(f"{draft.id} already exists", field=place)
        records = [self._accept(draft, principal) for draft in drafts]
        if idempotency_key is not None:
            ids = [record.id for record in records]
            self.keys[principal.subject, idempotency_key] = (list(drafts), ids)
        return records, self.state.replicas

    async def reserve_task_ids(self, count: int) -> Sequence[TaskId]:
        self._require_dispatcher()
        numbers = range(self._sequence + 1, self._sequence + count + 1)
        self._sequence += count
        return [TaskId(f"task-{number:03d}-{number:08x}") for number in numbers]

    async def find_task(
        self, ref: str, detail: TaskParts = TaskParts.ALL
    ) -> TaskRecord:
        self._require_dispatcher()
        record = self.records.get(TaskId(ref))
        if record is not None:
            return record
        found = [task for task in self.records if task.rpartition("-")[0] == ref]
        if len(found) > 1:
            raise TaskAmbiguous(f"{ref} fits {', '.join(found)}")
        if not found and not self.is_complete:
            raise CatchingUp(f"{ref} is unknown here")
        if not found:
            raise TaskNotFound(f"no task is called {ref}")
        return self.records[found[0]]

    async def find_by_short_id(self, text: str) -> Sequence[TaskRecord]:
        self._require_dispatcher()
        digits = text if len(text) >= 4 else "-"
        return [
            record
            for record in self.records.values()
            for match in [re.fullmatch(r"task-0*(\d+)-(\w{8})", record.id)]
            if match and (match[1] == text or match[2].startswith(digits))
        ]

    async def read_display_facts(
        self, records: Sequence[TaskRecord]
    ) -> Mapping[TaskId, DisplayFacts]:
        return {
            record.id: DisplayFacts(
                re.sub(r"task-0*(\d+)-\w{8}", r"\1", record.id),
                self.began_ms if record.state is TaskState.RUNNING else None,
                self.first_failures.get(record.id),
            )
            for record in records
        }

    def at_hand(self, ref: str) -> TaskRecord | None:
        return None

    async def wait_for_end(self, ref: str) -> TaskRecord:
        while not (record := await self.find_task(ref)).state.is_final:
            await self._changed.wait()
        return record

    async def wait_until(
        self, ref: str, is_wanted: Callable[[TaskRecord], bool], timeout_s: float
    ) -> TaskRecord:
        record = await self.find_task(ref)
        try:
            async with asyncio.timeout(timeout_s):
                while not is_wanted(record):
                    await self._changed.wait()
                    record = await self.find_task(ref)
        except TimeoutError:
            pass
        return record

    async def stream_visitor_output(
        self,
        visitor: NodeId,
        task: TaskId,
        attempt: AttemptId,
        starts: StartOffsets,
        *,
        follow: bool,
    ) -> AsyncIterator[OutputChunk]:
        if visitor not in self.visitors:
            raise OutputNotFound(f"{visitor} is not linked here")
        found = self.stream_output(task, attempt, starts, follow=follow)
        async for piece in found:
            yield piece

    async def stream_output(
        self,
        task: TaskId,
        attempt: AttemptId,
        starts: tuple[int | None, int | None],
        *,
        follow: bool,
    ) -> AsyncIterator[OutputChunk]:
        wrote = self.wrote.get((task, attempt))
        if wrote is None:
            raise OutputNotFound(f"{task} has no file here")
        for piece in wrote:
            start = starts[piece.stream]
            if start is None:
                continue
            if piece.offset < start < piece.end_offset:
                piece = OutputChunk(
                    piece.stream, start, piece.data[start - piece.offset :]
                )
            if piece.offset >= start:
                yield piece

    async def list_tasks(self, query: TaskQuery) -> TaskListPage:
        self._require_dispatcher()
        found = [
            record
            for record in self.records.values()
            if query.state in (None, record.state)
            and (
                query.node is None
                or (
                    record.deciding_attempt is not None
                    and record.deciding_attempt.node == query.node
                )
            )
            and (query.search is None or _is_like(record, query.search))
            and (not query.is_arrays_only or record.progress is not None)
        ]
        if query.is_newest_first:
            found.reverse()
        ids = [record.id for record in found]
        start = query.offset
        if query.after in ids:
            start = ids.index(query.after) + 1
        part = tuple(found[start : start + query.limit])
        has_more = query.search is not None and start + len(part) < len(found)
        return TaskListPage(part, len(found), part[-1].name if has_more else None)

    async def find_forgotten(
        self, kept: Sequence[KeptOutput]
    ) -> tuple[Sequence[int], int]:
        self._require_dispatcher()
        if not self.is_complete:
            raise CatchingUp("a missing node may know more tasks")
        gone = [n for n, each in enumerate(kept) if each.task not in self.records]
        return gone, NOW_MS

    async def find_retry(self, ref: str) -> TaskRecord | None:
        name = (await self.find_task(ref)).name
        specs = ((record, record.spec) for record in self.records.values())
        retries = (
            record
            for record, spec in specs
            if spec and spec.options and spec.options.retry_of == name
        )
        return next(retries, None)

    async def retry_task(
        self, ref: str, *, principal: Principal
    ) -> tuple[TaskRecord, int]:
        record = await self.find_task(ref)
        if record.spec is None or not record.state.is_final:
            raise TaskNotEnded(f"{ref} is {record.state}")
        key = f"retry {record.name}"
        records, replicas = await self.submit_tasks(
            [rerun_draft(record.spec)], principal=principal, idempotency_key=key
        )
        return records[0], replicas

    async def purge_ended_tasks(self, older_than_s: int) -> int | None:
        if older_than_s:
            return None  # As if there were many.
        ended = [task for task, r in self.records.items() if r.state.is_final]
        for task in ended:
            del self.records[task]
        return len(ended)

    async def explain_task(self, ref: str) -> tuple[TaskRecord, TaskExplanation]:
        record = await self.find_task(ref)
        why = RejectionReason("paused", "is paused")
        verdict = NodeRejection(self._node, "ana", NodeState.PAUSED, (why,))
        return record, TaskExplanation(record.state, "it waits", (verdict,))

    async def visitor_demand(self, label: tuple[str, str] | None) -> VisitorDemand:
        return VisitorDemand(0 if label else len(self.records), is_exact=True)

    async def cancel_task(
        self, ref: str, *, force: bool, principal: Principal
    ) -> TaskRecord:
        record = await self.find_task(ref)
        owner = record.spec.submitter if record.spec else ""
        if not principal.is_admin and owner != principal.subject:
            raise PermissionDenied(f"{record.id} was submitted by somebody else")
        if record.state in (TaskState.COMPLETED, TaskState.FAILED):
            raise TaskNotFound(f"{record.id} has ended")
        if record.state is TaskState.RUNNING and not force:
            raise TaskNotCancellable(f"{record.id} runs", hint="use ?force=true")
        record = apply_fact(record, TaskCancelled(record.id, principal.subject))
        self.records[record.id] = record
        self._notify()
        return record

    async def reprioritize_task(
        self, ref: str, priority: int, *, principal: Principal
    ) -> TaskRecord:
        record = await self.find_task(ref)
        owner = record.spec.submitter if record.spec else ""
        if not principal.is_admin and owner != principal.subject:
            raise PermissionDenied(f"{record.id} was submitted by somebody else")
        if record.state is not TaskState.QUEUED:
            raise TaskNotWaiting(f"{record.id} does not wait", hint="it has ended")
        change = Reprioritized(record.id, 1, len(self.records), priority)
        self.records[record.id] = apply_fact(record, change)
        return record

    @asynccontextmanager
    async def subscribe(
        self, after: FeedPosition | None
    ) -> AsyncIterator[EventSubscription]:
        self._require_dispatcher()
        self.heard_from.append(after)
        yield _FakeSubscription(self.news)

    async def read_recent_attempts(self, since_ms: int, limit: int) -> RecentAttempts:
        self._require_dispatcher()
        runs = [
            AttemptWithTask(r, a) for r in self.records.values() for a in r.attempts
        ]
        running = [
            dataclasses.replace(r, assigned_ms=NOW_MS)
            for r in runs
            if not r.attempt.outcome
        ]
        ended = [
            run
            for run in runs
            if run.attempt.outcome and (run.attempt.outcome.ended_ms or 0) >= since_ms
        ]
        is_cut = len(ended) > limit
        return RecentAttempts(
            tuple(running[:limit]), tuple(ended[::-1][:limit]), is_cut
        )

    async def read_ended_members(
        self, array: TaskId, first: int, last: int, limit: int
    ) -> tuple[EndedMember, ...]:
        members = (
            (place[1], record)
            for record in self.records.values()
            if (place := split_member_id(record.id)) is not None and place[0] == array
        )
        found = [
            (number, record)
            for number, record in sorted(members, key=lambda member: member[0])
            if first <= number <= last and record.state.is_final
        ]
        return tuple(found[:limit])

    async def locate_output(self, ref: str, path: str | None) -> OutputLocation:
        record = await self.find_task(ref)
        chosen = record.deciding_attempt
        files = chosen.outcome.outputs if chosen and chosen.outcome else ()
        kept = [file for file in files if file.size_bytes is not None]
        if chosen is None or not any(
            path in (None, file.path) or file.file_count is not None for file in kept
        ):
            raise OutputNotFound(f"{record.id} has no output {path}")
        is_here = chosen.node == self._node
        urls = self.lan_urls.get(chosen.node, ())
        holder = OutputHolder(node=chosen.node, is_local=is_here, lan_urls=urls)
        is_lost = not is_here and not urls
        return OutputLocation(
            task=record.id,
            attempt=chosen.id,
            holders=() if is_lost else (holder,),
            lost=chosen.node if is_lost else "",
        )

    async def locate_outputs(self, ref: str) -> list[OutputLocation]:
        return [await self.locate_output(ref, None)]

    async def make_output_tree(self, task: TaskId, attempt: AttemptId) -> str:
        tree = await self.captured_outputs(task, attempt)
        return content_digest(encode_manifest(tree.manifest))

    def read_input_sources(
        self, task: TaskId, _attempt: AttemptId
    ) -> InputSources | None:
        return self.input_sources.get(task)

    async def captured_outputs(self, task: str, attempt: AttemptId) -> CapturedTree:
        paths = {path: file for (of, path), file in self.files.items() if of == task}
        if not paths:
            raise OutputNotFound(f"{task} left no outputs here")
        digests = {p: hashlib.sha256(f.read_bytes()).digest() for p, f in paths.items()}
        contents = {digests[path]: file for path, file in paths.items()}
        manifest = make_manifest(
            TreeFile(path, digests[path], file.stat().st_size, 1_000_000_000)
            for path, file in paths.items()
        )
        return CapturedTree(manifest, contents.__getitem__)

    async def set_availability(
        self, steering: AvailabilityCommand, *, principal: Principal
    ) -> RosterEntry:
        if self.raised:
            raise self.raised.pop(0)
        self.steered.append((steering, principal.subject))
        self.hold = self.hold.after_command(steering)
        state = NodeState.DRAINING if self.hold.is_drained else NodeState.READY
        own = next(m for m in self.roster().members if m.id == self._node)
        return replace(own, state=NodeState.PAUSED if self.hold.is_paused else state)

    def api_urls_of(self, name: str) -> tuple[str, ...]:
        return self.lan_urls.get(NodeId(name), ())

    def roster(self) -> Roster:
        dispatcher = self.view.node if self.view else self._node
        members = tuple(
            RosterEntry(
                id=node,
                name=name,
                role=Role.DISPATCHER if node == dispatcher else Role.WORKER,
                state=NodeState.LOST if node in self.lost else NodeState.READY,
                addresses=(Address("127.0.0.1", 7878), Address("::1", 7878)),
                lan_port=3443,
                slots=2,
                version="0.0.0",
                load=LoadSample(12.5, 0.5, 800, 60),
                memory_mb=4096,
            )
            for node, name in self.known_names.items()
        )
        return Roster(Epoch(1, dispatcher), 1, members)

    def replication_state(self) -> ReplicationState:
        return self.state

    def last_heard_ms(self, node: NodeId) -> int | None:
        return NOW_MS if node in self.known_names else None

    def node_names(self) -> Mapping[NodeId, str]:
        return self.known_names

    def find_node_id(self, name: str) -> NodeId | None:
        for node, known in self.known_names.items():
            if name in (node, known):
                return node
        return None

    async def end_visit(self, visitor: NodeId) -> None:
        self._require_dispatcher()
        self.ended_visits.append(visitor)

    async def mesh_stats(self) -> MeshStats:
        self._require_dispatcher()
        counts = dict.fromkeys(TaskState, 0)
        for record in self.records.values():
            counts[record.state] += 1
        return MeshStats(
            workers_total=3,
            workers_active=2,
            workers_idle=1,
            counts=counts,
            uptime_s=86400.7,
            memory_mb=512,
            cpu_percent=25.54,
            disk_bytes=15_000_000,
            replication=self.state,
        )

    def queue_history(self) -> Sequence[QueueSample]:
        return self.points

    def health(self) -> Health:
        return Health(
            is_healthy=self.failure is None, uptime_s=3600.9, message=self.failure
        )

    # --- inside --------------------------------------------------------------------

    def _accept(self, draft: TaskDraft, principal: Principal) -> TaskRecord:
        self._sequence += 1
        name = f"task-{self._sequence:03d}"
        digest = hashlib.sha256(f"{self._node}{name}".encode()).hexdigest()[:8]
        task = draft.id or TaskId(f"{name}-{digest}")
        spec = TaskSpec(
            id=task,
            command=draft.command,
            timeout_s=draft.timeout_s,
            inputs=draft.inputs,
            outputs=draft.outputs,
            submitter=principal.subject,
            created_ms=NOW_MS,
            ord=((PRIORITY_BAND - draft.priority) << PRIORITY_SHIFT) | self._sequence,
            options=draft.options,
        )
        record = TaskRecord(id=task, spec=spec)
        self.records[task] = record
        return replace(record)

    def _require_dispatcher(self) -> None:
        if self.raised:
            raise self.raised.pop(0)
        if self.view is None or not self.view.is_self:
            raise NotDispatcher(f"{self._node} is not dispatcher")

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _FakeSubscription:
    """Returns the items that a test supplies."""

    def __init__(self, news: asyncio.Queue[Sequence[FeedItem]]) -> None:
        self._news = news

    async def next_items(self) -> Sequence[FeedItem]:
        return await self._news.get()


def _ended_ms(record: TaskRecord) -> int:
    attempt = record.deciding_attempt
    outcome = None if attempt is None else attempt.outcome
    return (outcome and outcome.ended_ms) or 0


def _is_like(record: TaskRecord, search: TaskSearch) -> bool:
    assert record.spec is not None
    options = record.spec.options or TaskOptions()
    labels = dict(options.labels)
    text = (search.text or "").casefold()
    return (
        search.name in (None, options.name)
        and search.submitter in (None, record.spec.submitter)
        and _ended_ms(record) >= (search.ended_after_ms or 0)
        and all(n in labels and v in (None, labels[n]) for n, v in search.labels)
        and (text in record.spec.command.casefold() or text in options.name.casefold())
    )
