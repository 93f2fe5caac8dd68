"""What a task writes, as it is passed on piece by piece while the task runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, TaskId

STREAMS = ("stdout", "stderr")


class OutputChunk(NamedTuple):
    """Bytes of one stream of an attempt.

    Pieces of a stream come in order. Where one begins later than the one before ended,
    what is in between was not kept. One without bytes says how far the stream goes.
    """

    stream: int  #: index in `STREAMS`
    offset: int  #: of the first byte in the stream
    data: bytes

    @property
    def end_offset(self) -> int:
        """The offset behind its last byte."""
        return self.offset + len(self.data)


class OutputSource(Protocol):
    """What the API asks of the agent for output that is longer, or still being made."""

    async def wait_until(
        self, ref: str, is_wanted: Callable[[TaskRecord], bool], timeout_s: float
    ) -> TaskRecord:
        """Return a task once it is as wanted, or when the time is over.

        It may be as wanted before another node has a copy of that. Raises what
        `Gateway.find_task` does.
        """

    def stream_output(
        self,
        task: TaskId,
        attempt: AttemptId,
        starts: tuple[int | None, int | None],
        *,
        follow: bool,
    ) -> AsyncIterator[OutputChunk]:
        """Return the output of an attempt.

        Args:
            task: As the log knows it.
            attempt: One that this node runs or ran.
            starts: The offset for each stream; None leaves a stream out.
            follow: Whether to go on until the attempt has ended.

        Raises:
            OutputNotFound: nothing was kept here but what is in the result.
        """
