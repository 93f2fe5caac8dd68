"""Answers the API from the core and the store.

Writes go through the core and come back by ticket; reads come from the store, so they
show what is durable. Only the dispatcher answers for the mesh: elsewhere these calls
raise NotDispatcher and the API forwards.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from octaskly.agent.clock import SystemClock
from octaskly.agent.tickets import Tickets, Waiters
from octaskly.core import effects as ef
from octaskly.core import events as ev
from octaskly.core.merge import TaskRecord
from octaskly.core.messages import Roster
from octaskly.core.model import (
    AttemptId,
    LoadSample,
    NodeId,
    NodeState,
    Role,
    TaskId,
    TaskState,
)
from octaskly.errors import (
    NodeNotFound,
    NotDispatcher,
    OutputNotFound,
    PermissionDenied,
    StoreFull,
    TaskAmbiguous,
    TaskExists,
    TaskNotCancellable,
    TaskNotFound,
)
from octaskly.ports import (
    DispatcherView,
    Health,
    Log,
    MeshStats,
    OutputPlace,
    Principal,
    TaskPage,
    TaskQuery,
)

ROOM_BYTES_MIN = 64 << 20  #: below this much free disk no task is accepted

_SEQUENCE = re.compile(r"task-(\d{1,15})")


class AgentGateway:
    """Gateway port on a real agent."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        mesh_id: str,
        store: Log,
        clock: SystemClock,
        post: Callable[[ev.Event], None],
        captured: Callable[[TaskId, AttemptId, str], Path],
        sample: Callable[[], LoadSample],
        failure: Callable[[], str | None],
        mint: Callable[[str, str, int], str],
        state_dir: Path,
        names: Mapping[NodeId, str],
    ) -> None:
        self._node_id = node_id
        self._mesh_id = mesh_id
        self._store = store
        self._clock = clock
        self._captured = captured
        self._sample = sample
        self._failure = failure
        self._mint = mint
        self._state_dir = state_dir
        self._names = dict(names)
        self._started_s = clock.now().mono_s
        self.tickets = Tickets(post)
        self.waiters = Waiters()
        self._claimed_ids: set[TaskId] = set()
        self._news: ef.Publish | None = None
        self._changed = asyncio.Event()

    # --- what the loop tells -------------------------------------------------------

    def published(self, news: ef.Publish) -> None:
        """Remember who is dispatcher and who is in the mesh."""
        self._news = news
        if news.roster is not None:
            self._names.update((m.id, m.name) for m in news.roster.members)
        self._changed.set()
        self._changed = asyncio.Event()

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
        news = self._news
        if news is None or news.dispatcher is None:
            return None
        if news.dispatcher == self._node_id:
            if not news.is_serving:
                return None
            return DispatcherView(is_self=True, node=self._node_id, epoch=news.epoch)
        urls = self._lan_urls(news.dispatcher)
        if not urls:
            return None
        return DispatcherView(
            is_self=False, node=news.dispatcher, epoch=news.epoch, lan_urls=urls
        )

    async def dispatcher_known(self, timeout_s: float) -> DispatcherView | None:
        """Wait until a dispatcher is known, at most so long."""
        try:
            async with asyncio.timeout(timeout_s):
                while (view := self.dispatcher()) is None:
                    await self._changed.wait()
                return view
        except TimeoutError:
            return None

    def roster(self) -> Roster | None:
        """Return the members of the mesh."""
        return self._news.roster if self._news else None

    def names(self) -> Mapping[NodeId, str]:
        """Return the name of every node ever met."""
        return self._names

    def node_named(self, name: str) -> NodeId | None:
        """Return the id of a node by name or id."""
        if name in self._names:
            return NodeId(name)
        return next((id_ for id_, known in self._names.items() if known == name), None)

    # --- tasks ---------------------------------------------------------------------

    async def submit(
        self,
        drafts: Sequence[ev.Draft],
        *,
        principal: Principal,
        idempotency_key: str | None = None,
    ) -> tuple[list[TaskRecord], int]:
        """Accept all tasks durably, or none."""
        self._require_dispatcher()
        self._require_room()
        if idempotency_key is not None:
            drafts = [
                replace(draft, id=self._keyed_id(principal, idempotency_key, index))
                if draft.id is None
                else draft
                for index, draft in enumerate(drafts)
            ]
        chosen = [draft.id for draft in drafts if draft.id is not None]
        if chosen:
            known = await self._known(drafts, chosen, idempotency_key)
            if known is not None:
                return known, 1
        self._claimed_ids.update(chosen)
        try:
            return await self._accept(drafts, principal)
        finally:
            self._claimed_ids.difference_update(chosen)

    async def _accept(
        self, drafts: Sequence[ev.Draft], principal: Principal
    ) -> tuple[list[TaskRecord], int]:
        suffixes = tuple(self._clock.hex_digits(8) for _ in drafts)
        reply = await self.tickets.ask(
            lambda ticket: ev.TasksSubmitted(
                ticket, tuple(drafts), principal.subject, suffixes
            )
        )
        if not isinstance(reply, ef.Accepted):
            raise NotDispatcher("this node stopped being dispatcher")
        records = [TaskRecord(id=spec.id, spec=spec) for spec in reply.specs]
        return records, reply.replicas

    async def _known(
        self,
        drafts: Sequence[ev.Draft],
        chosen: Sequence[TaskId],
        idempotency_key: str | None,
    ) -> list[TaskRecord] | None:
        """Return the tasks of a repeated request; None if the ids are all free."""
        if len(set(chosen)) < len(chosen):
            raise TaskExists("Duplicate task ID", field="id", hint="ids repeat")
        taken = await self._store.tasks(chosen)
        busy = next((c for c in chosen if c in self._claimed_ids or c in taken), None)
        if busy is None:
            return None
        is_repeat = (
            idempotency_key is not None
            and len(taken) == len(drafts)
            and all(_is_same(draft, taken) for draft in drafts)
        )
        if not is_repeat:
            raise TaskExists(
                "Duplicate task ID",
                field="Idempotency-Key" if idempotency_key else "id",
                hint=f"{busy} exists already",
            )
        return [taken[task] for task in chosen]

    def _keyed_id(self, principal: Principal, key: str, index: int) -> TaskId:
        """Return the id that this key has on both sides of a split."""
        text = "\0".join((self._mesh_id, principal.subject, key, str(index)))
        digest = hashlib.sha256(text.encode()).hexdigest()
        return TaskId(f"task-{int(digest[:16], 16) % 10**12:012d}-{digest[16:24]}")

    async def task(self, ref: str) -> TaskRecord:
        """Return one task with outputs."""
        self._require_dispatcher()
        record = await self._store.task(TaskId(ref))
        if record is None and (match := _SEQUENCE.fullmatch(ref)):
            ids = await self._store.resolve(int(match[1]))
            if len(ids) > 1:
                raise TaskAmbiguous(
                    f"{ref} fits several tasks", hint=f"use {ids[0]} or {ids[1]}"
                )
            record = await self._store.task(ids[0]) if ids else None
        if record is None:
            raise TaskNotFound("Task not found", hint=f"no task is called {ref}")
        return record

    async def wait(self, ref: str, timeout_s: float) -> TaskRecord:
        """Return a task when it is final, or as it is when the time is over."""
        record = await self.task(ref)
        if record.state.is_final or timeout_s <= 0:
            return record
        task = record.id
        return await self.waiters.until_final(task, lambda: self.task(task), timeout_s)

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
        reply = await self.tickets.ask(
            lambda ticket: ev.CancelRequested(
                ticket, record.id, record.state, force, principal.subject
            )
        )
        if not isinstance(reply, ef.CancelDone):
            raise NotDispatcher("this node stopped being dispatcher")
        if reply.state is TaskState.RUNNING:
            raise TaskNotCancellable(
                "Cannot cancel running task", hint="?force=true ends its processes"
            )
        if not reply.was_done:
            raise TaskNotFound("Task not found", hint=f"it is {reply.state} already")
        return record

    # --- outputs -------------------------------------------------------------------

    async def output(self, ref: str, path: str) -> OutputPlace:
        """Return where a declared output lies."""
        record = await self.task(ref)
        attempt = record.chosen
        outputs = attempt.outcome.outputs if attempt and attempt.outcome else ()
        size = next((o.size_bytes for o in outputs if o.path == path), None)
        if attempt is None or size is None:
            raise OutputNotFound(
                "Output not found",
                field="path",
                hint="only declared outputs that existed at the end are kept",
            )
        local = None
        if attempt.node == self._node_id:
            local = self._captured(record.id, attempt.id, path)
        urls = () if local else self._lan_urls(attempt.node)
        if local is None and not urls:
            name = self._names.get(attempt.node, attempt.node)
            raise NodeNotFound(f"node {name}, which has this output, is gone")
        return OutputPlace(
            node=attempt.node,
            task=record.id,
            attempt=attempt.id,
            path=path,
            size_bytes=size,
            local=local,
            lan_urls=urls,
        )

    def local_output(self, task: str, attempt: AttemptId, path: str) -> Path:
        """Return the file of an output that this node captured."""
        return self._captured(TaskId(task), attempt, path)

    # --- how things are ------------------------------------------------------------

    async def stats(self) -> MeshStats:
        """Return counts of the whole mesh and the state of this machine."""
        self._require_dispatcher()
        stored = await self._store.stats()
        news = self._news
        members = news.roster.members if news and news.roster else ()
        live = [m for m in members if m.state is not NodeState.LOST]
        active = sum(m.running > 0 for m in live)
        load = self._sample()
        return MeshStats(
            workers_total=len(live),
            workers_active=active,
            workers_idle=len(live) - active,
            counts=stored.counts,
            uptime_s=self._clock.now().mono_s - self._started_s,
            memory_mb=load.process_mb,
            cpu_percent=load.cpu_percent,
            disk_bytes=stored.disk_bytes,
            term=news.epoch.term if news else 0,
        )

    def health(self) -> Health:
        """Return whether this node can serve."""
        failure = self._failure()
        return Health(
            is_healthy=failure is None,
            uptime_s=self._clock.now().mono_s - self._started_s,
            message=failure,
        )

    def load(self) -> LoadSample:
        """Return the last sample of this machine."""
        return self._sample()

    def mint_token(self, *, subject: str, role: str, expires_s: int) -> str:
        """Return a new token of this mesh."""
        return self._mint(subject, role, expires_s)

    # --- inside --------------------------------------------------------------------

    def _require_dispatcher(self) -> None:
        news = self._news
        if news is None or not news.is_serving or news.dispatcher != self._node_id:
            raise NotDispatcher("this node is not dispatcher")

    def _require_room(self) -> None:
        if shutil.disk_usage(self._state_dir).free < ROOM_BYTES_MIN:
            raise StoreFull(
                f"less than {ROOM_BYTES_MIN >> 20} MiB are free for the log",
                hint=f"free some space below {self._state_dir}",
            )

    def _lan_urls(self, node: NodeId) -> tuple[str, ...]:
        roster = self.roster()
        for member in roster.members if roster else ():
            if member.id == node and member.state is not NodeState.LOST:
                return tuple(
                    _url(address.host, member.lan_port) for address in member.addresses
                )
        return ()


def status_line(news: ef.Publish, node: NodeId) -> str:
    """Return one line on this node for `systemctl status`."""
    members = news.roster.members if news.roster else ()
    live = [m for m in members if m.state is not NodeState.LOST]
    running = sum(member.running for member in live)
    if news.dispatcher is None:
        role = "looking for a dispatcher"
    elif news.dispatcher == node:
        role = str(Role.DISPATCHER)
    else:
        role = str(Role.WORKER)
    return f"{role}, {len(live)} nodes, {running} running"


def _url(host: str, port: int) -> str:
    # A scope in a URL is written with %25 (RFC 6874).
    return (
        f"https://[{host.replace('%', '%25')}]:{port}"
        if ":" in host
        else (f"https://{host}:{port}")
    )


def _is_same(draft: ev.Draft, taken: Mapping[TaskId, TaskRecord]) -> bool:
    """Return whether the task of a draft's id is what the draft asks for."""
    record = taken.get(draft.id) if draft.id else None
    spec = record.spec if record else None
    return spec is not None and (
        draft.command,
        draft.timeout_s,
        draft.inputs,
        draft.outputs,
    ) == (spec.command, spec.timeout_s, spec.inputs, spec.outputs)
