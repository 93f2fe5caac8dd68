"""Answers the API from the core and the store.

Writes go through the core and come back by ticket; reads come from the store, so they
show what is durable. Only the dispatcher answers for the mesh: elsewhere these calls
raise NotDispatcher and the API forwards.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from octaskly.agent.clock import SystemClock
from octaskly.agent.tickets import Tickets, Waiters
from octaskly.agent.view import MeshView
from octaskly.core import effects as ef
from octaskly.core import events as ev
from octaskly.core.merge import TaskRecord
from octaskly.core.messages import Roster
from octaskly.core.model import (
    AttemptId,
    LoadSample,
    NodeId,
    TaskId,
    TaskState,
)
from octaskly.core.node import Node
from octaskly.errors import (
    CatchingUp,
    NodeNotFound,
    NotDispatcher,
    NotDurable,
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

_SEQUENCE = re.compile(r"task-(\d{1,15})")


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
        sample: Callable[[], LoadSample],
        failure: Callable[[], str | None],
        mint: Callable[[str, str, int], str],
        is_room: Callable[[], bool],
        names: Mapping[NodeId, str],
        node: Node | None = None,
    ) -> None:
        self._node = node
        self._node_id = node_id
        self._mesh_id = mesh_id
        self._store = store
        self._clock = clock
        self._captured = captured
        self._sample = sample
        self._failure = failure
        self._mint = mint
        self._is_room = is_room
        self._started_s = clock.now().mono_s
        self.tickets = Tickets(post)
        self.waiters = Waiters()
        self._claims: dict[TaskId, asyncio.Event] = {}
        self.view = MeshView(node_id, names)

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
        return await self.view.dispatcher_known(timeout_s)

    def roster(self) -> Roster | None:
        """Return the members of the mesh."""
        return self.view.roster

    def names(self) -> Mapping[NodeId, str]:
        """Return the name of every node ever met."""
        return self.view.names

    def node_named(self, name: str) -> NodeId | None:
        """Return the id of a node by name or id."""
        return self.view.node_named(name)

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
        if not chosen:
            return await self._accept(drafts, principal)
        after = (
            self._keyed_id(principal, idempotency_key, len(drafts))
            if idempotency_key is not None
            else None
        )
        async with self._alone_with(chosen):
            known = await self._known(drafts, chosen, after)
            if known is not None:
                return known, 1
            return await self._accept(drafts, principal)

    @asynccontextmanager
    async def _alone_with(self, chosen: Sequence[TaskId]) -> AsyncIterator[None]:
        """Claim ids; a request that repeats one waits until the first is answered."""
        while busy := next(filter(None, map(self._claims.get, chosen)), None):
            await busy.wait()
        answered = asyncio.Event()
        claims = dict.fromkeys(chosen, answered)
        self._claims.update(claims)
        try:
            yield
        finally:
            for task in claims:
                del self._claims[task]
            answered.set()

    async def _accept(
        self, drafts: Sequence[ev.Draft], principal: Principal
    ) -> tuple[list[TaskRecord], int]:
        suffixes = tuple(self._clock.hex_digits(8) for _ in drafts)
        reply = await self.tickets.ask(
            lambda ticket: ev.TasksSubmitted(
                ticket, tuple(drafts), principal.subject, suffixes
            )
        )
        if isinstance(reply, ef.NotDurable):
            raise NotDurable(
                "durability is strict, and no standby acknowledges",
                hint="repeat it with the same Idempotency-Key when a standby is back",
            )
        if not isinstance(reply, ef.Accepted):
            raise NotDispatcher("this node stopped being dispatcher")
        records = [TaskRecord(id=spec.id, spec=spec) for spec in reply.specs]
        return records, reply.replicas

    async def _known(
        self,
        drafts: Sequence[ev.Draft],
        chosen: Sequence[TaskId],
        after: TaskId | None,
    ) -> list[TaskRecord] | None:
        """Return the tasks of a repeated request; None if the ids are all free.

        `after` is the id that the key would give to one task more: where it is taken,
        the first request with this key was a longer one.
        """
        if len(set(chosen)) < len(chosen):
            raise TaskExists("Duplicate task ID", field="id", hint="ids repeat")
        taken = await self._store.tasks([*chosen, *([after] if after else [])])
        busy = next((task for task in chosen if task in taken), None)
        if busy is None:
            return None
        is_repeat = (
            after is not None
            and after not in taken
            and len(taken) == len(drafts)
            and all(_is_same(draft, taken) for draft in drafts)
        )
        if not is_repeat:
            raise TaskExists(
                "Duplicate task ID",
                field="Idempotency-Key" if after else "id",
                hint=f"{busy} exists already",
            )
        return [taken[task] for task in chosen]

    def _keyed_id(self, principal: Principal, key: str, index: int) -> TaskId:
        """Return the id that this key has on both sides of a split."""
        text = "\0".join((self._mesh_id or "", principal.subject, key, str(index)))
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
            self._require_complete(ref)
            raise TaskNotFound("Task not found", hint=f"no task is called {ref}")
        return record

    async def wait(self, ref: str, timeout_s: float) -> TaskRecord:
        """Return a task when it is final, or as it is when the time is over."""
        if timeout_s <= 0:
            return await self.task(ref)
        is_short = _SEQUENCE.fullmatch(ref) is not None
        task = (await self.task(ref)).id if is_short else TaskId(ref)
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
        urls = () if local else self.view.lan_urls(attempt.node)
        if local is None and not urls:
            name = self.view.names.get(attempt.node, attempt.node)
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
        live = self.view.live
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
            term=self.view.term,
            refused=self._node.refused if self._node else {},
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
        if not self.view.is_serving:
            raise NotDispatcher("this node is not dispatcher")

    def _require_complete(self, ref: str) -> None:
        """Say "not found" only where no missing node may know better."""
        if self._node is not None and not self._node.is_complete:
            raise CatchingUp(
                f"{ref} is unknown here, and a node that may know it is missing",
                hint="ask again; a node that stays away is given up after 10 minutes",
            )

    def _require_room(self) -> None:
        if failure := self._failure():
            raise StoreFull("the dispatcher cannot write its log", hint=failure)
        if not self._is_room():
            raise StoreFull(
                "the disk of the dispatcher has no room for the log",
                hint="free some space there; running tasks are not affected",
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
