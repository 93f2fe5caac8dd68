"""Output of a visitor's attempts, for members: what it prints, and its files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import quote

from octaskly.core.effects import ServeOutput
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.protocol.messages import (
    OUTPUT_PIECES_MAX,
    Message,
    OutputPiece,
    OutputPieces,
    ReadOutput,
)
from octaskly.core.protocol.visitor_rules import READS_MAX
from octaskly.errors import OutputNotFound
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.blobs.holder_connection import (
    Holder,
    HolderBusy,
    HolderRefused,
    HolderUnreachable,
)
from octaskly.runner.files.capture import OutputReader
from octaskly.runner.pool.output_recorder import OutputRecorder

_READS_MAX: Final = 2 * READS_MAX  #: at a time; a new dispatcher may ask, too
PATH: Final = "/internal/v1/visits/outputs"
TRIES: Final = 10  #: while the dispatcher changes
BUSY_TRIES: Final = 100  #: while others go first, or this visitor asks too often
PAUSE_S: Final = 2.0
CHUNK_BYTES: Final = 1 << 20


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


class SentOutputs:
    """Sends captured files to the dispatcher before the attempt ends.

    Implements `CopiedOutputs`.

    Args:
        reader: Reads captured outputs.
        fetcher: Connects to members.
        dispatcher: Returns the dispatcher, if one is known.
    """

    def __init__(
        self,
        reader: OutputReader,
        fetcher: BlobFetcher,
        dispatcher: Callable[[], Holder | None],
    ) -> None:
        self._reader, self._fetcher, self._dispatcher = reader, fetcher, dispatcher

    def on_captured(self, task: TaskId, attempt: AttemptId, size_bytes: int) -> str:
        """Send captured outputs; return why the mesh does not have them, or ""."""
        del size_bytes
        why, tries, busy_tries = "no dispatcher is known", TRIES, BUSY_TRIES
        while tries and busy_tries:
            holder = self._dispatcher()
            try:
                if holder is not None:
                    self._send(holder, task, attempt)
                    return ""
            except HolderRefused as error:
                return f"its outputs were not kept ({error})"
            except HolderBusy:
                why, busy_tries = "the dispatcher is busy", busy_tries - 1
            except (HolderUnreachable, OutputNotFound, OSError) as error:
                why, tries = str(error) or type(error).__name__, tries - 1
            else:
                tries -= 1
            if self._fetcher.is_closing(PAUSE_S):
                break
        return f"its outputs were not kept ({why})"

    def _send(self, holder: Holder, task: TaskId, attempt: AttemptId) -> None:
        tree = self._reader.read_tree(task, attempt)
        size_bytes = tree.tar.size_bytes
        path = f"{PATH}/{quote(task, safe='')}/{attempt}"
        with self._fetcher.connections.connect_to(holder) as connection:
            chunks = tree.tar_chunks(0, size_bytes, CHUNK_BYTES)
            connection.send_outputs(path, size_bytes, filter(None, chunks))

    def close(self) -> None:
        """Do nothing: what is being sent ends with the sockets of the fetcher."""


def _absent(read: ReadOutput) -> OutputPieces:
    return OutputPieces(read.ticket, (), is_complete=True, is_absent=True)
