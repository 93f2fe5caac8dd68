"""Files that a visitor may get from a member, and outputs that it may send there.

A visitor may ask only the dispatcher, which knows what it has assigned to it: the
inputs of its live attempts, and the outputs of the tasks that these name. The
dispatcher fetches what it lacks of them, and a visitor asks again until they are here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.task_options import BlobRef, InputTree
from octaskly.core.model.tasks import TaskSpec
from octaskly.errors import OutputNotFound
from octaskly.files.manifest import ManifestError
from octaskly.ports.files import FileQuotaExceeded, VisitorAccess
from octaskly.ports.store import Clock
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.blobs.fetch import FilesAwaited
from octaskly.runner.files.capture import outputs_folder
from octaskly.runner.files.output_copies import (
    OutputCopies,
    PushedArchive,
    no_room_error,
)
from octaskly.runner.output.captured_contents import MANIFEST_NAME
from octaskly.runner.output.output_archive import OutputArchive
from octaskly.system.byte_rate import ByteRate

RETRY_S: Final = 2.0  #: until files that could not be fetched are tried again
TREES_MAX: Final = 64  #: output trees that one visitor may have asked for
PUSHED_BYTES_MAX: Final = 64 << 30  #: of the outputs of one attempt
UPLOAD_BYTES_PER_S: Final = 64 << 20
"""Of all uploads of one visitor: half of a gigabit link stays for others."""
RATES_MAX: Final = 1024  #: visitors that send outputs, or did lately

AttemptsOf = Callable[[NodeId], Sequence[tuple[AttemptId, TaskSpec]]]
"""Returns the live attempts of a node, if this node is dispatcher."""

_FAILURES: Final = (OutputNotFound, ManifestError, FileQuotaExceeded, OSError)


class VisitorFiles:
    """The files that visitors may read and send: those of their live attempts.

    Args:
        attempts_of: Returns the live attempts of a visitor.
        fetcher: Fetches inputs from other members.
        archive: Keeps outputs.
        copies: Has another member copy outputs.
        clock: Gives the time, for the rate of uploads.
    """

    def __init__(
        self,
        attempts_of: AttemptsOf,
        fetcher: BlobFetcher,
        archive: OutputArchive,
        copies: OutputCopies,
        clock: Clock,
    ) -> None:
        self._attempts_of, self._fetcher = attempts_of, fetcher
        self._archive, self._copies = archive, copies
        self._clock_s = lambda: clock.now().mono_s
        self._held: dict[BlobRef, frozenset[str]] = {}  #: inputs here, with contents
        self._fetching: dict[BlobRef, asyncio.Task[None]] = {}
        self._granted: dict[NodeId, dict[BlobRef, None]] = {}
        """Trees of outputs that a visitor asked for, for its attempts."""
        self._tasks: asyncio.TaskGroup | None = None
        self._lock = threading.Lock()  #: of the set below
        self._arriving: set[Path] = set()  #: folders of outputs that are being sent
        self._rates: dict[NodeId, ByteRate] = {}  #: the latest upload is last

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Set the task group, which owns the fetches."""
        self._tasks = tasks

    def close(self) -> None:
        """End all fetches."""
        self._tasks = None
        for fetch in self._fetching.values():
            fetch.cancel()

    def access_to(self, visitor: NodeId, names: Sequence[str]) -> VisitorAccess:
        """Return whether a visitor may read files, by their SHA-256."""
        inputs = self._inputs_of(visitor)
        self._forget_unneeded()
        for blob in inputs:
            self._fetch(visitor, blob)
        allowed: set[str] = set()
        for blob in inputs:
            allowed |= {blob.sha256, *self._held.get(blob, ())}
        if not set(names) <= allowed:
            are_all_here = all(blob in self._held for blob in inputs)
            return VisitorAccess.DENIED if are_all_here else VisitorAccess.LATER
        if not self._fetcher.blob_store.missing_files(names, keep_s=60.0):
            return VisitorAccess.GRANTED
        for blob in inputs:  # Some were deleted; the next request fetches them again.
            self._held.pop(blob, None)
        return VisitorAccess.LATER

    def may_read_outputs(self, visitor: NodeId, task: str) -> bool:
        """Return True if an attempt of a visitor gets the outputs of this task."""
        return any(
            spec.options is not None and task in spec.options.outputs_of
            for _, spec in self._attempts_of(visitor)
        )

    def grant_trees(self, visitor: NodeId, trees: Sequence[BlobRef]) -> None:
        """Let a visitor read trees of outputs that its attempts get."""
        granted = self._granted.setdefault(visitor, {})
        granted.update(dict.fromkeys(trees))
        while len(granted) > TREES_MAX:
            del granted[next(iter(granted))]

    def open_outputs(
        self, visitor: NodeId, task: TaskId, attempt: AttemptId, size_bytes: int
    ) -> PushedArchive | None:
        """Return what stores the outputs of an attempt; None if it is not its own.

        Raises:
            FileQuotaExceeded: There is no room for them.
        """
        spec = self._own_spec(visitor, task, attempt)
        if spec is None or not spec.outputs:
            return None
        captured = self._archive.captured
        folder = outputs_folder(self._archive.outputs_dir, task, attempt)
        with self._lock:
            if folder in self._arriving or (folder / MANIFEST_NAME).exists():
                return None
            # Outputs of other tasks make no room for what a visitor only announces.
            room = captured.make_room(folder, 0)
            if size_bytes > min(room, PUSHED_BYTES_MAX):
                captured.add_folder(folder)
                raise no_room_error(size_bytes)
            outputs = PushedArchive(
                folder,
                size_bytes,
                captured,
                declared=spec.outputs,
                rate=self._rate_of(visitor),
                is_wanted=lambda: self._own_spec(visitor, task, attempt) is not None,
                on_stored=partial(self._copies.on_captured, task, attempt),
                on_closed=partial(self._arriving.discard, folder),
            )
            self._arriving.add(folder)
        return outputs

    def _rate_of(self, visitor: NodeId) -> ByteRate:
        """Return what all uploads of a visitor have in common."""
        rate = self._rates.pop(visitor, None)
        rate = rate or ByteRate(UPLOAD_BYTES_PER_S, clock=self._clock_s)
        self._rates[visitor] = rate
        if len(self._rates) > RATES_MAX:
            del self._rates[next(iter(self._rates))]
        return rate

    def _own_spec(
        self, visitor: NodeId, task: TaskId, attempt: AttemptId
    ) -> TaskSpec | None:
        """Return the task of a live attempt of a visitor; None if it is not its own."""
        spec = dict(self._attempts_of(visitor)).get(attempt)
        return None if spec is None or spec.id != task else spec

    # --- Inputs.

    def _inputs_of(self, visitor: NodeId) -> list[BlobRef]:
        """Return the inputs of the live attempts of a visitor."""
        inputs: dict[BlobRef, None] = {}
        for _, spec in self._attempts_of(visitor):
            options = spec.options
            if options is None:
                continue
            for blob in (options.tree, options.stdin_file):
                if blob is not None:
                    inputs[blob] = None
            if options.outputs_of:
                inputs.update(self._granted.get(visitor, {}))
        if not inputs:
            self._granted.pop(visitor, None)
        return list(inputs)

    def _forget_unneeded(self) -> None:
        """Forget the contents of inputs that are not used any more, oldest first."""
        while len(self._held) > TREES_MAX:
            del self._held[next(iter(self._held))]

    def _fetch(self, visitor: NodeId, blob: BlobRef) -> None:
        """Begin to fetch an input that is not known to be here."""
        if blob in self._held or blob in self._fetching or self._tasks is None:
            return
        work = self._tasks.create_task(self._fetch_until_here(visitor, blob))
        self._fetching[blob] = work
        work.add_done_callback(lambda _: self._fetching.pop(blob, None))

    async def _fetch_until_here(self, visitor: NodeId, blob: BlobRef) -> None:
        """Fetch an input, again and again while an attempt of the visitor needs it."""
        is_tree = isinstance(blob, InputTree) or blob in self._granted.get(visitor, {})
        while blob in self._inputs_of(visitor):
            pause_s = RETRY_S
            try:
                contents = await self._fetch_once(blob, is_tree=is_tree)
            except FilesAwaited as awaited:
                pause_s = awaited.retry_s
            except _FAILURES:
                contents = None
            else:
                if contents is not None:
                    self._held[blob] = contents
                    return
            await asyncio.sleep(pause_s)

    async def _fetch_once(
        self, blob: BlobRef, *, is_tree: bool
    ) -> frozenset[str] | None:
        """Fetch an input; return its contents, None if they are not all here.

        Raises:
            FilesAwaited: A client lends them, and has not sent all.
            OutputNotFound, ManifestError, FileQuotaExceeded: They cannot be fetched.
        """
        loop, fetcher = asyncio.get_running_loop(), self._fetcher
        source = fetcher.find_blob(blob)
        assert source is not None
        fetch = fetcher.fetch_tree if is_tree else fetcher.fetch_blob
        failures = await loop.run_in_executor(fetcher.threads, fetch, source)
        if failures:
            return None
        if not is_tree:
            return frozenset()
        manifest = await asyncio.to_thread(fetcher.read_manifest, blob)
        return frozenset(file.sha256.hex() for file in manifest.files)
