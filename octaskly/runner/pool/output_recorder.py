"""Has output written to files: where it is long, and where somebody wants to see it.

Most attempts are over in milliseconds and write little, so for them no file is made:
their output travels with the result.
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
from octaskly.errors import OutputNotFound
from octaskly.ports.output import Piece
from octaskly.runner.files.blob_store import Depot
from octaskly.runner.output.output_archive import Archive
from octaskly.runner.output.output_file import Reader
from octaskly.runner.pool.attempts import Item
from octaskly.runner.pool.launcher_process import LauncherProcess

LOOK_S = 0.03  #: until a file that is followed is looked at again
LOOK_S_MAX = 0.12  #: where nothing has come for a while
LOOKS_MAX = 50  #: for the file of an attempt that runs, where it is not followed
SWEEP_S = 600.0
THREADS = 4

P = ParamSpec("P")
Result = TypeVar("Result")


class Recorder:
    """Files for the output of a pool's attempts.

    Args:
        archive: Where they lie.
        depot: Files of other kinds, which are tidied, too.
        items: What the pool runs.
    """

    def __init__(
        self,
        archive: Archive,
        depot: Depot,
        items: Mapping[tuple[TaskId, AttemptId], Item],
    ) -> None:
        self._archive, self._depot = archive, depot
        self._items = items
        # Its own: in the pool's, outputs of a gigabyte are copied.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="recorder")

    async def close(self) -> None:
        """Finish what is being done with files."""
        await asyncio.to_thread(self._threads.shutdown)

    async def tidy(self) -> None:
        """Delete what is too old or too much, now and again, until cancelled."""
        while True:
            await self._in_thread(self._archive.sweep)
            await self._in_thread(self._depot.sweep)
            await asyncio.sleep(SWEEP_S)

    # -- the pool ----------------------------------------------------------------

    def begun(self, item: Item, process: LauncherProcess) -> None:
        """Note that an attempt has run for a moment, and who writes its file."""
        item.process = process
        if item.is_wanted:
            self.record(item)

    def record(self, item: Item) -> None:
        """Have the output of an attempt that has begun written to a file."""
        if not item.has_file:
            item.has_file = True
            making = self._in_thread(self._archive.create, item.spec.id, item.attempt)
            making.add_done_callback(lambda made: self._made(item, made))

    def ended(self, item: Item) -> None:
        """Note that nothing more is written."""
        if item.has_file:
            with suppress(RuntimeError):  # We stop: the next agent counts the file.
                self._threads.submit(self._archive.ended, item.spec.id, item.attempt)

    def _made(self, item: Item, made: asyncio.Future[int]) -> None:
        fd = made.result() if made.exception() is None else None
        item.is_refused = fd is None
        if self._is_live(item):
            assert item.process is not None
            fds = [] if fd is None else [fd]
            item.process.send([["file", item.key, fd is not None]], fds)
            return
        if fd is not None:
            os.close(fd)
        self.ended(item)

    def _is_live(self, item: Item) -> bool:
        return self._items.get((item.spec.id, item.attempt)) is item

    # -- who reads ---------------------------------------------------------------

    async def pieces(
        self,
        task: TaskId,
        attempt: AttemptId,
        starts: tuple[int | None, int | None],
        *,
        follow: bool,
    ) -> AsyncIterator[Piece]:
        """Return the output of an attempt: see `output.Transcripts.pieces`."""
        item = self._items.get((task, attempt))
        if item is None:
            reader = await self._in_thread(self._archive.open, task, attempt)
        else:
            reader = await self._opened(item, follow=follow)
        offsets = {n: start for n, start in enumerate(starts) if start is not None}
        pause_s = LOOK_S
        while True:
            # Asked before the file is read: what an ended attempt wrote is all there.
            is_live = item is not None and self._is_live(item)
            found = await self._in_thread(_read, reader, offsets)
            for piece in found:
                offsets[piece.stream] = piece.end
                yield piece
            if found:
                pause_s = LOOK_S
            elif is_live and follow:
                await asyncio.sleep(pause_s)
                pause_s = min(LOOK_S_MAX, pause_s * 1.5)
            else:
                break
        for stream, offset in offsets.items():
            yield Piece(stream, max(offset, reader.size(stream)), b"")

    async def _opened(self, item: Item, *, follow: bool) -> Reader:
        """Open the file of an attempt that runs, once there is one."""
        item.is_wanted = True
        if item.process is not None:
            self.record(item)
        task, attempt = item.spec.id, item.attempt
        looks = 0
        while self._is_live(item) and not item.is_refused:
            reader = await self._in_thread(self._try_open, task, attempt)
            if reader is not None:
                return reader
            looks += 1
            if looks > LOOKS_MAX and not follow:
                break
            await asyncio.sleep(LOOK_S)
        reader = await self._in_thread(self._try_open, task, attempt)
        if reader is None:
            raise OutputNotFound(f"{task} has no file with output on this node")
        return reader

    def _in_thread(
        self, work: Callable[P, Result], *given: P.args, **named: P.kwargs
    ) -> asyncio.Future[Result]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, partial(work, *given, **named))

    def _try_open(self, task: TaskId, attempt: AttemptId) -> Reader | None:
        try:
            reader = self._archive.open(task, attempt)
        except OutputNotFound:
            return None
        return reader if reader.look() else None


def _read(reader: Reader, offsets: Mapping[int, int]) -> list[Piece]:
    """Return the next block of each stream, if there is more."""
    reader.look()
    found = []
    for stream, offset in offsets.items():
        start, data = reader.read(stream, offset)
        if data:
            found.append(Piece(stream, start, data))
    return found
