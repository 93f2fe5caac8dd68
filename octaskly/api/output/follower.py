"""Output follower: reads a task's output across attempts, nodes and dispatchers.

The node of the client asks the dispatcher for the status of the task, and fetches bytes
directly from the worker. Both may change; the reader's position stays valid, because it
consists of attempt and offsets.

`logs` sends the events to the client. `api.http.sse` disconnects clients that do not
read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from octaskly.api.http.handler_types import Request
from octaskly.api.http.node_client import NodeNotResponding
from octaskly.api.output.output_transfer import read_transcript
from octaskly.api.output.task_status_query import (
    StatusQuery,
    TaskStatus,
    get_task_status,
)
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.protocol.messages import StartOffsets
from octaskly.errors import OutputNotFound
from octaskly.ports.output import STREAMS, OutputChunk

STATUS_WAIT_S = 20.0  #: long poll for a change of status
RETRY_S = 0.5  #: between two requests to a worker
CANCELLED_RETRIES_MAX = 10
"""Queries for the end of a cancelled attempt, bounded because it may never come."""


@dataclass(slots=True)
class OutputPosition:
    """Position of a reader: attempt, and offsets of both streams."""

    attempt: AttemptId | None = None
    offsets: list[int] = field(default_factory=lambda: [0, 0])


@dataclass(frozen=True, slots=True)
class NotRunning:
    """No node runs the task at the moment."""

    status: str


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """The output of an attempt follows, from its start."""

    attempt: int
    node: str
    previous_reason: str | None  #: reason why the previous attempt does not count


@dataclass(frozen=True, slots=True)
class OutputGap:
    """Bytes of a stream that no node keeps."""

    stream: int
    offset: int
    end: int
    reason: str


OutputEvent = NotRunning | AttemptStarted | OutputChunk | OutputGap

_TRUNCATED = "the task wrote more than the node keeps"


class OutputFollower:
    """Reads the output of one task.

    Args:
        request: The request.
        status_query: The query for the task's status.
        status: The current status.
        position: Position of the reader; this object updates it.
        streams: Whether stdout and whether stderr is read.
    """

    def __init__(
        self,
        request: Request,
        status_query: StatusQuery,
        status: TaskStatus,
        position: OutputPosition,
        streams: tuple[bool, bool],
    ) -> None:
        self._request = request
        self._status_query = status_query
        self.status = status  #: the last known status
        self._position = position
        self._streams = [stream for stream in range(len(STREAMS)) if streams[stream]]

    async def events(self, *, follow: bool) -> AsyncGenerator[OutputEvent]:
        """Yield the output that exists now; with `follow`, continue until the end."""
        said = ""
        tries_left = CANCELLED_RETRIES_MAX
        while True:
            attempt = self.status.attempt
            if attempt is None:
                if not self.status.is_final and self.status.status != said:
                    said = self.status.status
                    yield NotRunning(said)
            elif attempt != self._position.attempt:
                yield self._start_attempt(attempt)
            is_whole = False
            if attempt is not None:
                live = (
                    self._read_ended()
                    if self.status.is_final
                    else self._read_running(follow=follow)
                )
                async with aclosing(live) as found:
                    async for step in found:
                        if isinstance(step, OutputChunk) and not step.data:
                            is_whole = True
                        else:
                            yield step
            if self.status.is_final or not follow or not tries_left:
                return
            tries_left -= self.status.is_ending
            said = said if attempt is None else ""
            # The result arrives shortly after the last byte.
            await self._refresh_status(
                STATUS_WAIT_S if is_whole or attempt is None else RETRY_S
            )

    async def _refresh_status(self, wait_s: float) -> None:
        known = self.status.version
        question = replace(self._status_query, known_version=known, wait_s=wait_s)
        self.status = await get_task_status(self._request, question)

    def _start_attempt(self, attempt: AttemptId) -> AttemptStarted:
        if self._position.attempt is not None:
            self._position.offsets[:] = (0, 0)
        self._position.attempt = attempt
        return AttemptStarted(
            attempt.n, self.status.node_name, self.status.previous_reason
        )

    async def _read_running(self, *, follow: bool) -> AsyncGenerator[OutputEvent]:
        """Yield the output of a running attempt while its node sends it."""
        try:
            async with aclosing(self._read_from_node(follow=follow)) as found:
                async for step in found:
                    yield step
        except (OutputNotFound, NodeNotResponding):
            # The output does not exist yet, or the node is lost: ask the dispatcher.
            return

    async def _read_ended(self) -> AsyncGenerator[OutputEvent]:
        """Yield the rest of the output of an attempt that has ended."""
        now, offsets = self.status, self._position.offsets
        why = _TRUNCATED
        if now.is_end_unseen or any(
            now.output_bytes[s] > max(now.logged_bytes[s], offsets[s])
            for s in self._streams
        ):
            try:
                async with aclosing(self._read_from_node(follow=False)) as found:
                    async for step in found:
                        yield step
            except OutputNotFound:
                why = f"{now.node_name} does not keep the rest"
            except NodeNotResponding:
                why = f"{now.node_name}, which keeps the rest, cannot be reached"
        async for step in self._read_logged():
            yield step
        if self.status is not now:
            return
        for stream in self._streams:
            if offsets[stream] < now.output_bytes[stream]:
                yield self._skip_to(stream, now.output_bytes[stream], why)

    async def _read_logged(self) -> AsyncGenerator[OutputEvent]:
        """Yield the output in the log of an ended attempt, beyond the position.

        A new dispatcher may not know the end yet. Then its status replaces the old one,
        and the attempt counts as not ended.
        """
        offsets = self._position.offsets
        if all(offsets[s] >= self.status.logged_bytes[s] for s in self._streams):
            return
        question = replace(self._status_query, with_output=True)
        async with self._request.quota.part():
            with_kept = await get_task_status(self._request, question)
            if with_kept.version != self.status.version:
                self.status = with_kept
                return
            kept = with_kept.logged_output or (b"", b"")
            for stream in self._streams:
                offset = offsets[stream]
                if data := kept[stream][offset:]:
                    offsets[stream] += len(data)
                    yield OutputChunk(stream, offset, data)

    async def _read_from_node(self, *, follow: bool) -> AsyncGenerator[OutputEvent]:
        offsets, attempt = self._position.offsets, self.status.attempt
        assert attempt is not None
        starts: StartOffsets = (
            offsets[0] if 0 in self._streams else None,
            offsets[1] if 1 in self._streams else None,
        )
        found = read_transcript(
            self._request,
            NodeId(self.status.node),
            (TaskId(self.status.task), attempt),
            starts,
            follow=follow,
        )
        async with aclosing(found):
            async for piece in found:
                if piece.offset < offsets[piece.stream]:
                    raise NodeNotResponding(
                        "the node sends bytes before the requested offset"
                    )
                if piece.offset > offsets[piece.stream]:
                    yield self._skip_to(piece.stream, piece.offset, _TRUNCATED)
                offsets[piece.stream] = piece.end_offset
                yield piece

    def _skip_to(self, stream: int, end: int, reason: str) -> OutputGap:
        offset, self._position.offsets[stream] = self._position.offsets[stream], end
        return OutputGap(stream, offset, end, reason)
