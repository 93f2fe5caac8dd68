"""Recording the output of attempts in files, and streaming it to readers.

An attempt gets a file if its output is long or if a client reads it while it runs. Most
attempts end within milliseconds and write little: their output comes with the result.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.protocol.messages import StartOffsets
from octaskly.errors import OutputNotFound
from octaskly.ports.output import OutputChunk
from octaskly.rest.mesh import FileStoreUsage
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.output.output_archive import OutputArchive
from octaskly.runner.output.output_file import OutputFileReader
from octaskly.runner.pool.attempts import PoolAttempt
from octaskly.runner.pool.launcher_process import LauncherProcess

OPEN_POLL_S = 0.002  #: first pause until a file exists, which is then doubled
POLL_S = 0.03  #: first pause between two reads of a file that is followed
POLL_S_MAX = 0.12  #: longest pause while nothing is written
POLLS_MAX = 50  #: until a running attempt has a file, unless it is followed
CLEANUP_PERIOD_S = 600.0
THREADS = 4

P = ParamSpec("P")
Result = TypeVar("Result")


class OutputRecorder:
    """Records and streams the output of a pool's attempts.

    Args:
        archive: Holds the files.
        blob_store: Holds uploaded files; its expired files are deleted here too.
        attempts: The attempts in the pool, which keeps this mapping up to date.
    """

    def __init__(
        self,
        archive: OutputArchive,
        blob_store: BlobStore,
        attempts: Mapping[tuple[TaskId, AttemptId], PoolAttempt],
    ) -> None:
        self._archive, self._blob_store = archive, blob_store
        self._attempts = attempts
        # The pool's threads may be busy copying outputs of a gigabyte.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="recorder")

    async def close(self) -> None:
        """Wait until pending work on files is done."""
        await asyncio.to_thread(self._threads.shutdown)

    async def run_cleanup(self) -> None:
        """Delete expired files every `CLEANUP_PERIOD_S`, until cancelled."""
        while True:
            await self._in_thread(self._archive.delete_expired)
            await self._in_thread(self._blob_store.delete_expired)
            await asyncio.sleep(CLEANUP_PERIOD_S)

    def store_usage(self) -> list[FileStoreUsage]:
        """Return how full the stores are; blocks for an instant."""
        store, outputs = self._blob_store, self._archive.captured.usage()
        return [
            FileStoreUsage(
                store="files",
                used_bytes=store.used_bytes,
                quota_bytes=store.quota_bytes(),
            ),
            FileStoreUsage(
                store="outputs",
                used_bytes=outputs.used_bytes,
                quota_bytes=outputs.quota_bytes,
            ),
        ]

    # -- the pool ----------------------------------------------------------------

    def on_started(self, item: PoolAttempt, process: LauncherProcess) -> None:
        """Note the launcher of a running attempt; start its file if a client reads."""
        item.process = process
        if item.is_output_read:
            self.record_output(item)

    def record_output(self, item: PoolAttempt) -> None:
        """Create an output file for a running attempt, unless it has one."""
        if not item.has_output_file:
            item.has_output_file = True
            making = self._in_thread(
                self._archive.create_file, item.spec.id, item.attempt
            )
            making.add_done_callback(lambda made: self._on_file_created(item, made))

    def on_ended(self, item: PoolAttempt) -> None:
        """Mark the file of an ended attempt as complete."""
        if item.has_output_file:
            # During shutdown the threads refuse work; the next agent counts the file.
            with suppress(RuntimeError):
                self._threads.submit(
                    self._archive.mark_complete, item.spec.id, item.attempt
                )

    def _on_file_created(self, item: PoolAttempt, made: asyncio.Future[int]) -> None:
        fd = made.result() if made.exception() is None else None
        item.is_file_refused = fd is None
        if self._is_live(item):
            assert item.process is not None
            fds = [] if fd is None else [[fd]]
            item.process.send([["file", item.key, fd is not None]], fds)
            return
        if fd is not None:
            os.close(fd)
        self.on_ended(item)

    def _is_live(self, item: PoolAttempt) -> bool:
        return self._attempts.get((item.spec.id, item.attempt)) is item

    # -- who reads ---------------------------------------------------------------

    async def stream_output(
        self,
        task: TaskId,
        attempt: AttemptId,
        starts: StartOffsets,
        *,
        follow: bool,
    ) -> AsyncIterator[OutputChunk]:
        """Yield the output of an attempt: see `ports.OutputSource.stream_output`."""
        item = self._attempts.get((task, attempt))
        if item is None:
            reader = await self._in_thread(self._archive.open_file, task, attempt)
        else:
            reader = await self._open_running(item, follow=follow)
        offsets = {n: start for n, start in enumerate(starts) if start is not None}
        pause_s = POLL_S
        while True:
            # Check this before reading: once it is False, the file is complete.
            is_live = item is not None and self._is_live(item)
            found = await self._in_thread(_read_chunks, reader, offsets)
            for piece in found:
                offsets[piece.stream] = piece.end_offset
                yield piece
            if found:
                pause_s = POLL_S
            elif is_live and follow:
                await asyncio.sleep(pause_s)
                pause_s = min(POLL_S_MAX, pause_s * 1.5)
            else:
                break
        for stream, offset in offsets.items():
            yield OutputChunk(stream, max(offset, reader.stream_size(stream)), b"")

    async def read_output(
        self, task: TaskId, attempt: AttemptId, starts: StartOffsets, chunks_max: int
    ) -> tuple[list[OutputChunk], bool]:
        """Return the next chunks of an attempt's output, and whether all is written.

        Raises:
            OutputNotFound: This node has no file of its output.
        """
        item = self._attempts.get((task, attempt))
        if item is None:
            reader = await self._in_thread(self._archive.open_file, task, attempt)
        else:
            reader = await self._open_running(item, follow=False)
        is_live = item is not None and self._is_live(item)
        offsets = {n: start for n, start in enumerate(starts) if start is not None}
        found: list[OutputChunk] = []
        while len(found) + len(offsets) <= chunks_max:
            chunks = await self._in_thread(_read_chunks, reader, offsets)
            if not chunks:
                return found, not is_live
            found += chunks
            offsets |= {chunk.stream: chunk.end_offset for chunk in chunks}
        return found, False

    async def _open_running(
        self, item: PoolAttempt, *, follow: bool
    ) -> OutputFileReader:
        """Open the file of a running attempt, waiting until it exists."""
        item.is_output_read = True
        if item.process is not None:
            self.record_output(item)
        task, attempt = item.spec.id, item.attempt
        looks, pause_s = 0, OPEN_POLL_S
        while self._is_live(item) and not item.is_file_refused:
            reader = await self._in_thread(self._try_open, task, attempt)
            if reader is not None:
                return reader
            looks += 1
            if looks > POLLS_MAX and not follow:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(POLL_S, 2 * pause_s)
        reader = await self._in_thread(self._try_open, task, attempt)
        if reader is None:
            raise OutputNotFound(f"{task} has no output file on this node")
        return reader

    def _in_thread(
        self, work: Callable[P, Result], *given: P.args, **named: P.kwargs
    ) -> asyncio.Future[Result]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, partial(work, *given, **named))

    def _try_open(self, task: TaskId, attempt: AttemptId) -> OutputFileReader | None:
        try:
            reader = self._archive.open_file(task, attempt)
        except OutputNotFound:
            return None
        return reader if reader.refresh_index() else None


def _read_chunks(
    reader: OutputFileReader, offsets: Mapping[int, int]
) -> list[OutputChunk]:
    """Return the next chunk of each stream that has one."""
    reader.refresh_index()
    found = []
    for stream, offset in offsets.items():
        start, data = reader.read(stream, offset)
        if data:
            found.append(OutputChunk(stream, start, data))
    return found
