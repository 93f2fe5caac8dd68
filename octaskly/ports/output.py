"""Output of tasks: chunks of stdout and stderr, also while a task runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.protocol.messages import StartOffsets

STREAMS = ("stdout", "stderr")


class OutputChunk(NamedTuple):
    """Bytes of one stream of an attempt.

    Chunks of a stream come in order. A gap between two chunks means that the bytes
    between them were not kept. A chunk without bytes marks the current end of the
    stream.
    """

    stream: int  #: index in `STREAMS`
    offset: int  #: of the first byte in the stream
    data: bytes

    @property
    def end_offset(self) -> int:
        """The offset after the last byte."""
        return self.offset + len(self.data)


class OutputSource(Protocol):
    """Source of output that is not in a result: long, or of a running task."""

    async def wait_until(
        self, ref: str, is_wanted: Callable[[TaskRecord], bool], timeout_s: float
    ) -> TaskRecord:
        """Return a task once `is_wanted` is true of it, or when the time is over.

        Unless the task has ended, the change may not be replicated yet. Raises the
        errors of `Gateway.find_task`.
        """

    def stream_output(
        self,
        task: TaskId,
        attempt: AttemptId,
        starts: StartOffsets,
        *,
        follow: bool,
    ) -> AsyncIterator[OutputChunk]:
        """Return the output of an attempt.

        Args:
            task: Id of the task.
            attempt: An attempt that this node runs or ran.
            starts: First offset of each stream; None leaves a stream out.
            follow: Continue until the attempt has ended.

        Raises:
            OutputNotFound: This node kept no output except that in the result.
        """

    def stream_visitor_output(
        self,
        visitor: NodeId,
        task: TaskId,
        attempt: AttemptId,
        starts: StartOffsets,
        *,
        follow: bool,
    ) -> AsyncIterator[OutputChunk]:
        """Return the output of an attempt at a visitor, if this node is dispatcher.

        Raises:
            OutputNotFound: The visitor is not linked to this node, or has no output.
        """
