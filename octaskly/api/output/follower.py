"""One task's output for one reader: across queue, attempts, nodes and dispatchers.

The node that the client is connected to asks the dispatcher where the task stands, and
fetches the bytes from the worker itself. Both may change; what the reader has got stays
where it was, by attempt and offset.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from octaskly.api.http.node_client import NodeNotResponding
from octaskly.api.http.request import Request
from octaskly.api.output.task_status import StatusQuery, TaskStatus, get_task_status
from octaskly.api.output.transcripts import StartOffsets, read_transcript
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.errors import OutputNotFound
from octaskly.ports.output import STREAMS, OutputChunk

STATUS_WAIT_S = 20.0  #: for news of the dispatcher, then it is asked again
RETRY_S = 0.5  #: until a worker is asked again that has not answered
CANCELLED_RETRIES_MAX = (
    10  #: to hear of the end of what was cancelled, which may be lost
)


@dataclass(slots=True)
class OutputPosition:
    """How far a reader has got."""

    attempt: AttemptId | None = None
    offsets: list[int] = field(default_factory=lambda: [0, 0])


@dataclass(frozen=True, slots=True)
class NotRunning:
    """Nobody runs the task at the moment."""

    status: str


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """The output of an attempt begins, from its start on."""

    attempt: int
    node: str
    previous_reason: str | None  #: why the attempt before it does not count


@dataclass(frozen=True, slots=True)
class OutputGap:
    """Bytes of a stream that are not kept anywhere."""

    stream: int
    offset: int
    end: int
    reason: str


OutputEvent = NotRunning | AttemptStarted | OutputChunk | OutputGap

_TRUNCATED = "more was written than is kept"


class OutputFollower:
    """Reads the output of one task.

    Args:
        call: The request.
        question: The task that is read.
        begin: Where it stands.
        place: How far the reader has got; it is kept up to date.
        wanted: Whether stdout and stderr are read.
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
        self.status = status  #: where the task stands
        self._position = position
        self._streams = [stream for stream in range(len(STREAMS)) if streams[stream]]

    async def events(self, *, follow: bool) -> AsyncGenerator[OutputEvent]:
        """Return what there is to read now, and with `follow` until the end."""
        said = ""
        tries_left = CANCELLED_RETRIES_MAX
        while True:
            attempt = self.status.attempt_id
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
            # A result is there a moment after the last byte.
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
        """Return what a running attempt writes, as long as its node says it."""
        try:
            async with aclosing(self._read_from_node(follow=follow)) as found:
                async for step in found:
                    yield step
        except (OutputNotFound, NodeNotResponding):
            return  # Not there yet, or gone: the dispatcher will say.

    async def _read_ended(self) -> AsyncGenerator[OutputEvent]:
        """Return the rest of an attempt that has ended."""
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
                why = f"{now.node_name} keeps no more of it"
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
        """Return what the log has of an ended attempt, beyond what was read.

        Another dispatcher may have to hear of the end first: then it counts as not yet
        come.
        """
        offsets = self._position.offsets
        if all(offsets[s] >= self.status.logged_bytes[s] for s in self._streams):
            return
        question = replace(self._status_query, with_output=True)
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
        offsets, attempt = self._position.offsets, self.status.attempt_id
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
                    raise NodeNotResponding("the node sends what was not asked for")
                if piece.offset > offsets[piece.stream]:
                    yield self._skip_to(piece.stream, piece.offset, _TRUNCATED)
                offsets[piece.stream] = piece.end_offset
                yield piece

    def _skip_to(self, stream: int, end: int, reason: str) -> OutputGap:
        offset, self._position.offsets[stream] = self._position.offsets[stream], end
        return OutputGap(stream, offset, end, reason)
