"""Output of a visitor's attempts, for the member that asks for it over the link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from octaskly.core.effects import ServeOutput
from octaskly.core.model.ids import NodeId
from octaskly.core.protocol.messages import (
    OUTPUT_PIECES_MAX,
    Message,
    OutputPiece,
    OutputPieces,
    ReadOutput,
)
from octaskly.core.protocol.visitor_rules import READS_MAX
from octaskly.errors import OutputNotFound
from octaskly.runner.pool.output_recorder import OutputRecorder

_READS_MAX: Final = 2 * READS_MAX  #: at a time; a new dispatcher may ask, too


class LiveOutput:
    """Answers each `ServeOutput` of the core.

    Args:
        tasks: Owns the reads.
        recorder: Reads the output.
        send: Sends messages to a member.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        recorder: OutputRecorder,
        send: Callable[[NodeId, Sequence[Message]], None],
    ) -> None:
        self._tasks, self._recorder, self._send = tasks, recorder, send
        self._reads: set[asyncio.Task[None]] = set()

    def serve(self, effect: ServeOutput) -> None:
        """Read output and send it."""
        if len(self._reads) >= _READS_MAX:
            self._send(effect.peer, (_absent(effect.read),))
            return
        work = self._tasks.create_task(self._answer(effect))
        self._reads.add(work)
        work.add_done_callback(self._reads.discard)

    async def _answer(self, effect: ServeOutput) -> None:
        read = effect.read
        try:
            chunks, is_complete = await self._recorder.read_output(
                read.task, read.attempt, read.starts, OUTPUT_PIECES_MAX
            )
        except (OutputNotFound, OSError):
            answer = _absent(read)
        else:
            pieces = tuple(OutputPiece(c.stream, c.offset, c.data) for c in chunks)
            answer = OutputPieces(read.ticket, pieces, is_complete)
        self._send(effect.peer, (answer,))

    def close(self) -> None:
        """End all reads."""
        for read in self._reads:
            read.cancel()


def _absent(read: ReadOutput) -> OutputPieces:
    return OutputPieces(read.ticket, (), is_complete=True, is_absent=True)
