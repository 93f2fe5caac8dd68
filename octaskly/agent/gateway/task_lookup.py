"""Lookup of tasks, of the nodes that have their captured outputs, and at visitors.

Nobody can dial a visitor. So a node asks the dispatcher for the output of an attempt
there, which asks the visitor for each part once the reader has taken the part before.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple

from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.agent.gateway.parent_lookup import MEMBERS_MAX, FilesOfTree
from octaskly.agent.gateway.pending_requests import PendingRequests
from octaskly.core.events import CatchUpRequested, OutputRequested
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, NodeId, TaskId, is_visitor
from octaskly.core.model.task_options import InputTree
from octaskly.core.model.tasks import Attempt, OutputFile
from octaskly.core.protocol.messages import StartOffsets
from octaskly.core.replies import CatchUpStatus, VisitorOutput
from octaskly.errors import (
    CatchingUp,
    OctasklyError,
    OutputNotFound,
    TaskAmbiguous,
    TaskNotFound,
)
from octaskly.files.captured_tree import CapturedTree
from octaskly.ports.events import EndedMember
from octaskly.ports.files import InputSources, KeptOutput
from octaskly.ports.gateway import OutputHolder, OutputLocation
from octaskly.ports.output import OutputChunk
from octaskly.ports.store import TaskParts
from octaskly.store import Store

ANSWER_S: Final = 10.0  #: a visitor that takes longer counts as having no output
OUTPUT_BYTES_MAX: Final = 1000 << 20
"""Limit on the output that is read from a visitor, as on a file of output."""
POLL_S: Final = 0.1  #: first pause between two reads while nothing is written
POLL_S_MAX: Final = 0.5

ReadEndedMembers = Callable[[TaskId, int, int, int], Awaitable[tuple[EndedMember, ...]]]

_SEQUENCE = re.compile(r"task-(\d{1,15})")


class TaskFinder:
    """Finds tasks in this node's copy of the log.

    Args:
        store: The log.
        pending_requests: Asks the core if catch-up is complete.
    """

    def __init__(self, store: Store, pending_requests: PendingRequests) -> None:
        self._store = store
        self._pending_requests = pending_requests

    async def find_task(self, ref: str, parts: TaskParts = TaskParts.ALL) -> TaskRecord:
        """Return one task.

        Raises:
            TaskNotFound: there is no such task.
            CatchingUp: the task is unknown here, but another node may know it.
            TaskAmbiguous: several tasks have this number.
            NotDispatcher, DispatcherUnknown, OutcomeUnknown: the task is unknown here,
                and this node is not dispatcher, is overloaded, or stops.
        """
        record = await self._read_task(ref, parts)
        if record is None:
            await self._require_caught_up(
                f"{ref} is unknown here, but a missing node may know it"
            )
            # Entries may have arrived since the first read.
            record = await self._read_task(ref, parts)
        if record is None:
            raise TaskNotFound("Task not found", hint=f"no task is called {ref}")
        return record

    async def find_forgotten(
        self, kept: Sequence[KeptOutput]
    ) -> tuple[Sequence[int], int]:
        """Find outputs of tasks that are forgotten on all nodes.

        Raises:
            CatchingUp: a missing node may know tasks that are unknown here.
            NotDispatcher, DispatcherUnknown, OutcomeUnknown: see `find_task`.
        """
        if kept:
            await self._require_caught_up("a missing node may know more tasks")
        return await self._store.find_forgotten(kept)

    async def _require_caught_up(self, why: str) -> None:
        reply = await self._pending_requests.send_request(CatchUpRequested)
        assert isinstance(reply, CatchUpStatus)
        if not reply.is_complete:
            raise CatchingUp(
                why,
                hint="ask again; a missing node is awaited for at most 10 minutes",
            )

    async def find_name(self, ref: str) -> str:
        """Return the name of a task; `ref` may be its number."""
        is_short = _SEQUENCE.fullmatch(ref) is not None
        return (await self.find_task(ref, TaskParts.BRIEF)).name if is_short else ref

    async def _read_task(self, ref: str, parts: TaskParts) -> TaskRecord | None:
        record = await self._store.read_task(ref, parts)
        if record is None and (match := _SEQUENCE.fullmatch(ref)):
            names = await self._store.names_with_sequence(int(match[1]))
            if len(names) > 1:
                raise TaskAmbiguous(
                    f"{ref} matches several tasks", hint=f"use {names[0]} or {names[1]}"
                )
            record = await self._store.read_task(names[0], parts) if names else None
        return record


COPY_HOLDERS_MAX: Final = 8  #: nodes that are asked for a second copy
ReadTree = Callable[[TaskId, AttemptId], CapturedTree]
"""Returns the outputs of an attempt that this node captured; blocks."""


class LocalFiles(NamedTuple):
    """The components with the files of tasks, as the gateway uses them."""

    read_outputs: ReadTree
    read_input_sources: Callable[[TaskId, AttemptId], InputSources | None]
    """Returns where the files of an attempt of this node came from, if known."""
    make_output_tree: Callable[[TaskId, AttemptId], str]
    """Makes captured outputs available as a tree; returns its SHA-256. Blocks."""
    size_trees: Callable[[Iterable[InputTree]], Awaitable[None]]
    """Passes the sizes of trees on to the core."""
    files_of_tree: FilesOfTree
    note_needed_outputs: Callable[[], None]
    """Notes that tasks which need outputs of others are being submitted."""


class OutputLocator:
    """Finds captured outputs in the mesh.

    Args:
        find_task: Returns a task by name or number.
        view: The members of the mesh.
        node_id: This node.
        files: Has the outputs of attempts on this node.
        read_ended_members: Returns members of an array that have ended.
    """

    def __init__(
        self,
        find_task: Callable[[str], Awaitable[TaskRecord]],
        view: MeshView,
        node_id: NodeId,
        files: LocalFiles,
        read_ended_members: ReadEndedMembers,
    ) -> None:
        self._find_task = find_task
        self._read_ended_members = read_ended_members
        self._view = view
        self._node_id = node_id
        self._files = files

    async def locate_output(self, ref: str, path: str | None) -> OutputLocation:
        """Return the location of a declared output, or of all of them.

        A path below a folder may be captured or not; only its node knows.
        """
        record = await self._find_task(ref)
        attempt = record.deciding_attempt
        if attempt is None or not any(
            path in (None, output.path) or output.file_count is not None
            for output in _kept_outputs(attempt)
        ):
            raise OutputNotFound(
                "Output not found",
                field=None if path is None else "path",
                hint="only declared outputs that existed at the end are kept",
            )
        return self._location(record.id, attempt)

    async def locate_outputs(self, ref: str) -> list[OutputLocation]:
        """Return the locations of all outputs of a task, or of an array's members."""
        record = await self._find_task(ref)
        array = record.spec.array if record.spec else None
        if array is None:
            records = [record]
        elif array.count > MEMBERS_MAX:
            raise OutputNotFound(
                f"it has {array.count} members, and {MEMBERS_MAX} are possible"
            )
        else:
            records = await self._read_members(record.id, array.count)
        found = [
            self._location(each.id, attempt)
            for each in records
            if (attempt := each.deciding_attempt) and _kept_outputs(attempt)
        ]
        if not found:
            raise OutputNotFound("it ended without outputs")
        return found

    async def _read_members(self, array: TaskId, count: int) -> list[TaskRecord]:
        members: list[TaskRecord] = []
        first = 0
        while first < count:
            some = await self._read_ended_members(array, first, count - 1, count)
            if not some:
                break
            members += (record for _, record in some)
            first = some[-1][0] + 1
        return members

    def _location(self, task: TaskId, attempt: Attempt) -> OutputLocation:
        first = self._holder(attempt.node)
        others = self._view.copy_holders(task, attempt.id)
        holders = [first] if first else []
        # The outputs of a visitor are at the node that was dispatcher then.
        holders_max = None if is_visitor(attempt.node) else COPY_HOLDERS_MAX
        holders += [
            holder
            for member in others[:holders_max]
            if member.id != attempt.node and (holder := self._holder(member.id))
        ]
        is_gone = first is None and not is_visitor(attempt.node)
        lost = self._view.name_of(attempt.node) if is_gone else ""
        return OutputLocation(
            task=task, attempt=attempt.id, holders=tuple(holders), lost=lost
        )

    def _holder(self, node: NodeId) -> OutputHolder | None:
        """Return a node as a holder; None if it is not in the mesh."""
        if node == self._node_id:
            return OutputHolder(node=node, is_local=True)
        urls = self._view.lan_urls_of(node)
        return OutputHolder(node=node, lan_urls=urls) if urls else None

    async def captured_outputs(self, task: str, attempt: AttemptId) -> CapturedTree:
        """Return the outputs of an attempt that this node captured."""
        return await asyncio.to_thread(self._files.read_outputs, TaskId(task), attempt)

    async def make_output_tree(self, task: TaskId, attempt: AttemptId) -> str:
        """Make outputs of this node available as a tree; return its SHA-256."""
        return await asyncio.to_thread(self._files.make_output_tree, task, attempt)


def _kept_outputs(attempt: Attempt) -> list[OutputFile]:
    outputs = attempt.outcome.outputs if attempt.outcome else ()
    return [output for output in outputs if output.size_bytes is not None]


async def stream_visitor_output(
    requests: PendingRequests,
    visitor: NodeId,
    attempt: tuple[TaskId, AttemptId],
    starts: StartOffsets,
    *,
    follow: bool,
) -> AsyncIterator[OutputChunk]:
    """Yield the output of an attempt at a visitor; see `OutputSource.stream_output`."""
    offsets = dict(enumerate(starts))
    pause_s, relayed_bytes = POLL_S, 0
    while follow or relayed_bytes < OUTPUT_BYTES_MAX:
        known = offsets[0], offsets[1]
        output = await _read_once(requests, visitor, attempt, known)
        for piece in output.pieces:
            offsets[piece.stream] = piece.offset + len(piece.data)
            relayed_bytes += len(piece.data)
            yield OutputChunk(piece.stream, piece.offset, piece.data)
        if output.pieces:
            pause_s = POLL_S
        elif output.is_complete or not follow:
            break
        else:
            await asyncio.sleep(pause_s)
            pause_s = min(POLL_S_MAX, pause_s * 1.5)
    for stream, offset in offsets.items():
        if offset is not None:
            yield OutputChunk(stream, offset, b"")


async def _read_once(
    requests: PendingRequests,
    visitor: NodeId,
    attempt: tuple[TaskId, AttemptId],
    starts: StartOffsets,
) -> VisitorOutput:
    """Return the next part of the output.

    Raises:
        OutputNotFound: The visitor is not linked to this node, or does not have it.
    """
    try:
        async with asyncio.timeout(ANSWER_S):
            reply = await requests.send_request(
                lambda ticket: OutputRequested(ticket, visitor, *attempt, starts)
            )
    except (OctasklyError, TimeoutError):
        reply = None
    if not isinstance(reply, VisitorOutput):
        raise OutputNotFound(f"{attempt[0]} has no output at a visitor of this node")
    return reply
