"""Second copies of captured outputs, at another node.

The node that captured them asks another one to fetch them, in the background or, with
strict durability, before the end of the task is reported. A copy in the background is
pending on disk until it is made, also after a restart. What a node sends is hostile:
contents are stored under their digests, paths are only in the checked manifest, and its
SHA-256 must be that of the manifest which was written when the outputs were captured.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.errors import OutputNotFound
from octaskly.files.copying import write_all
from octaskly.files.manifest import (
    MANIFEST_BYTES_MAX,
    ManifestError,
    TreeFile,
    TreeLink,
    content_digest,
    encode_manifest,
    make_manifest,
)
from octaskly.files.output_patterns import DeclaredOutputs
from octaskly.files.tree_tar import TarEntry, TarError, TarReader
from octaskly.ports.files import AttemptOutputs, FileQuotaExceeded
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.blobs.blob_store import sync_file_system
from octaskly.runner.blobs.holder_connection import (
    Holder,
    HolderBusy,
    HolderUnreachable,
)
from octaskly.runner.blobs.uploads import disk_error
from octaskly.runner.files.capture import outputs_folder
from octaskly.runner.output.captured_contents import (
    DAMAGED_NAME,
    MANIFEST_NAME,
    write_manifest,
)
from octaskly.runner.output.captured_folders import CapturedFolders, mark_uncopied
from octaskly.runner.output.output_archive import OutputArchive
from octaskly.system.byte_rate import ByteRate

COPIED_BYTES_MAX: Final = 256 << 20  #: of one attempt's outputs
ARCHIVE_BYTES_MAX: Final = COPIED_BYTES_MAX * 2  #: with the headers of its entries
COPY_S_MAX: Final = 600.0
TRIED_MAX: Final = 3  #: nodes that are asked for a copy
RETRY_S_MIN: Final = 10.0  #: until pending copies are tried again
RETRY_S_MAX: Final = 600.0  #: the same after many failures
PARTIAL_SUFFIX: Final = ".partial"
WRITE_BYTES: Final = 1 << 20
ROOM_BYTES: Final = 16 << 20  #: reserved beyond what has arrived of an upload

CopyHolders = Callable[[TaskId, AttemptId], Sequence[Holder]]
"""Returns the nodes that may have a copy of an attempt's outputs, likely ones first."""

_FAILURES: Final = (
    HolderUnreachable,
    HolderBusy,
    OutputNotFound,
    FileQuotaExceeded,
    TarError,
    ManifestError,
)
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class CopiedOutputs(Protocol):
    """Sees to it that another node has what an attempt left, before or after its end.

    Any thread calls the methods, which block.
    """

    def on_captured(self, task: TaskId, attempt: AttemptId, size_bytes: int) -> str:
        """Have captured outputs copied; return why there is no copy, or ""."""

    def close(self) -> None:
        """End without waiting for copies that have not begun."""


class OutputCopies:
    """Makes second copies of outputs; any thread may call the methods, which block.

    Args:
        archive: Keeps captured outputs, and the copies of other nodes' outputs.
        fetcher: Connects to other nodes.
        node: This node.
        copy_holders: Returns where a copy of outputs belongs; any thread calls it.
        is_strict: Make the copy before the end of the task is reported.
    """

    def __init__(
        self,
        archive: OutputArchive,
        fetcher: BlobFetcher,
        *,
        node: NodeId,
        copy_holders: CopyHolders,
        is_strict: bool,
    ) -> None:
        self._archive, self._fetcher, self._node = archive, fetcher, node
        self._copy_holders, self._is_strict = copy_holders, is_strict
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="output-copies")
        self._is_closing = threading.Event()
        #: Outputs of which a copy is to be made; None until the disk was read.
        self._pending: dict[tuple[TaskId, AttemptId], None] | None = None

    def on_captured(self, task: TaskId, attempt: AttemptId, size_bytes: int) -> str:
        """Have another node copy outputs that were just captured.

        Returns:
            With strict durability, why there is no copy; "" if there is one.
        """
        if size_bytes > COPIED_BYTES_MAX:
            return ""
        if self._is_strict:
            return self._make_copy(task, attempt)
        # Whatever happens to this agent, a copy is made later.
        mark_uncopied(outputs_folder(self._archive.outputs_dir, task, attempt))
        self._threads.submit(self._make_pending_copy, task, attempt)
        return ""

    async def run(self) -> None:
        """Make the copies that earlier attempts did not, until cancelled."""
        loop, pause_s = asyncio.get_running_loop(), RETRY_S_MIN
        # Of outputs that are here since an earlier start, other nodes may want files.
        add_contents = self._archive.captured.add_contents
        await loop.run_in_executor(self._threads, add_contents)
        while True:
            is_done = await loop.run_in_executor(self._threads, self.make_copies)
            pause_s = RETRY_S_MIN if is_done else min(pause_s * 2, RETRY_S_MAX)
            await asyncio.sleep(pause_s)

    def make_copies(self) -> bool:
        """Make the copies that are pending; return True if none is left."""
        if self._pending is None:
            self._pending = dict.fromkeys(self._archive.uncopied_attempts())
        for task, attempt in list(self._pending):
            if self._is_closing.is_set():
                break
            self._make_pending_copy(task, attempt)
        return not self._pending

    def fetch_copy(
        self, task: TaskId, attempt: AttemptId, holder: Holder, tree: str
    ) -> str:
        """Copy the outputs of another node to this one; return why that failed.

        Args:
            task: The task.
            attempt: The attempt that left them.
            holder: The node.
            tree: SHA-256 of their manifest.
        """
        folder = outputs_folder(self._archive.outputs_dir, task, attempt)
        partial = folder.with_name(f"{folder.name}{PARTIAL_SUFFIX}")
        lock = self._fetcher.file_locks.hold_lock(f"outputs {folder}")
        with lock:
            if (folder / MANIFEST_NAME).exists():
                return ""
            # An agent that was killed may have left some.
            shutil.rmtree(partial, ignore_errors=True)
            try:
                with self._fetcher.connections.connect_to(holder) as connection:
                    path = _outputs_path(task, attempt)
                    size_bytes, chunks = connection.fetch_outputs(
                        f"{path}?copy=true&verify=true"
                    )
                    if size_bytes > ARCHIVE_BYTES_MAX:
                        return f"its archive has {size_bytes} bytes"
                    room = self._archive.captured.make_room(folder, size_bytes)
                    if room < size_bytes:
                        return f"not enough space for {size_bytes} bytes of outputs"
                    partial.mkdir(mode=0o700, parents=True)
                    store_outputs(chunks, partial, tree)
                partial.rename(folder)
                _flush_folder(folder)
            except _FAILURES as error:
                return f"{holder.name}: {error}"
            except OSError as error:
                return disk_error(error).message
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                self._archive.captured.add_folder(folder)
        return ""

    def mark_needed(
        self, outputs: Iterable[AttemptOutputs], needed_s: float
    ) -> list[int]:
        """Keep outputs that are here, copies included; return which, by index."""
        held = []
        for index, (task, attempt) in enumerate(outputs):
            folder = outputs_folder(self._archive.outputs_dir, task, attempt)
            is_damaged = (folder / DAMAGED_NAME).exists()
            if (folder / MANIFEST_NAME).exists() and not is_damaged:
                self._archive.captured.mark_needed(folder, needed_s)
                held.append(index)
        return held

    def close(self) -> None:
        """End without waiting for copies that have not begun; they stay pending."""
        self._is_closing.set()
        self._threads.shutdown(cancel_futures=True)

    def _make_pending_copy(self, task: TaskId, attempt: AttemptId) -> None:
        """Make a copy in the background, or leave it for a later attempt."""
        folder = outputs_folder(self._archive.outputs_dir, task, attempt)
        is_needed = folder.exists() and not (folder / DAMAGED_NAME).exists()
        is_done = not is_needed or not self._make_copy(task, attempt)
        if is_done:
            mark_uncopied(folder, is_uncopied=False)
        if self._pending is not None:
            if is_done:
                self._pending.pop((task, attempt), None)
            else:
                self._pending[task, attempt] = None

    def _make_copy(self, task: TaskId, attempt: AttemptId) -> str:
        """Ask nodes for a copy until one has it; return why none has."""
        folder = outputs_folder(self._archive.outputs_dir, task, attempt)
        try:
            tree = self._archive.captured.contents.add_folder(folder)
        except (OSError, ManifestError) as error:
            return f"its outputs have no second copy ({error})"
        why = "there is no other node"
        body = {"node": self._node, "sha256": tree}
        for holder in self._copy_holders(task, attempt)[:TRIED_MAX]:
            try:
                with self._fetcher.connections.connect_to(holder) as connection:
                    answer = connection.post_json(
                        f"{_outputs_path(task, attempt)}/copy",
                        body,
                        timeout_s=COPY_S_MAX,
                    )
            except _FAILURES as error:
                why = f"{holder.name}: {error}"
                continue
            failures = answer.get("failures") if isinstance(answer, dict) else None
            if not failures:
                return ""
            why = f"{holder.name}: {failures}"
        return f"its outputs have no second copy ({why})"


def store_outputs(
    chunks: Iterator[bytes], folder: Path, tree: str | None = None
) -> None:
    """Store the archive of another node's outputs as captured outputs.

    Args:
        chunks: The archive.
        folder: It gets the contents.
        tree: SHA-256 of the manifest that was written when they were captured; None
            if that is not known.

    Raises:
        TarError, ManifestError: no honest node sends such an archive.
        OSError: the disk is full or failing.
    """
    store = _ArchiveStore(folder, COPIED_BYTES_MAX)
    try:
        for data in chunks:
            store.add_data(data)
        store.finish(tree)
    finally:
        store.close()


class PushedArchive:
    """Captured outputs that a visitor sends; the methods block.

    Args:
        folder: Where they belong; nothing is there before `finish`.
        size_bytes: Size of the archive.
        declared: The outputs that the task has declared; it may hold no others.
        rate: Counts the bytes of all uploads of this visitor.
        captured: Accounts for captured outputs.
        is_wanted: Returns False if the attempt is not the visitor's any more.
        on_stored: Called with the size once they are here.
        on_closed: Called when nothing more arrives.
    """

    def __init__(
        self,
        folder: Path,
        size_bytes: int,
        captured: CapturedFolders,
        *,
        declared: Iterable[str],
        rate: ByteRate,
        is_wanted: Callable[[], bool],
        on_stored: Callable[[int], object],
        on_closed: Callable[[], None],
    ) -> None:
        self._folder, self._size_bytes = folder, size_bytes
        self._captured, self._on_stored = captured, on_stored
        self._is_wanted, self._on_closed = is_wanted, on_closed
        self._rate = rate
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = tempfile.mkdtemp(PARTIAL_SUFFIX, f"{folder.name}-", folder.parent)
        self._partial = Path(name)
        self._arrived_bytes = self._reserved_bytes = 0
        self._store = _ArchiveStore(
            self._partial, size_bytes, DeclaredOutputs(declared)
        )

    def write(self, data: bytes | memoryview) -> None:
        """Store the next bytes.

        Raises:
            TarError: No honest visitor sends them.
            FileQuotaExceeded: Others have taken the room since the upload began.
        """
        for start in range(0, len(data), WRITE_BYTES):
            part = bytes(data[start : start + WRITE_BYTES])
            self._rate.add_bytes(len(part))
            self._reserve(len(part))
            self._store.add_data(part)

    def wait_s(self) -> float:
        """Return how long to read nothing, as the visitor sends too fast."""
        return self._rate.wait_s()

    def finish(self) -> None:
        """Keep the outputs.

        Raises:
            TarError, ManifestError: They are not whole.
            OutputNotFound: The attempt is not the visitor's any more.
        """
        self._store.finish()
        self._store.close()
        if not self._is_wanted():
            raise OutputNotFound("the attempt is not the visitor's any more")
        self._partial.rename(self._folder)
        _flush_folder(self._folder)
        self._captured.add_folder(self._folder)
        self._on_stored(self._size_bytes)

    def abort(self) -> None:
        """Delete what is not finished; call it at the end in any case."""
        self._store.close()
        if self._partial.exists():
            shutil.rmtree(self._partial, ignore_errors=True)
            self._captured.add_folder(self._folder)
        self._on_closed()

    def _reserve(self, more_bytes: int) -> None:
        """Reserve room for the next bytes: a slow upload holds none for its rest."""
        self._arrived_bytes += more_bytes
        if self._arrived_bytes <= self._reserved_bytes:
            return
        ahead_bytes = min(self._size_bytes, self._arrived_bytes + ROOM_BYTES)
        self._reserved_bytes = max(self._arrived_bytes, ahead_bytes)
        room_bytes = self._captured.make_room(self._folder, self._reserved_bytes)
        if room_bytes < self._arrived_bytes:
            raise no_room_error(self._size_bytes)


def no_room_error(size_bytes: int) -> FileQuotaExceeded:
    """Return the error for outputs that do not fit."""
    return FileQuotaExceeded(
        f"not enough space for {size_bytes} bytes of outputs",
        hint="delete files, or raise --output-quota",
    )


class _ArchiveStore:
    """Stores an archive as it arrives, each content under its digest."""

    def __init__(
        self, folder: Path, bytes_max: int, declared: DeclaredOutputs | None = None
    ) -> None:
        self._folder, self._declared = folder, declared
        self._bytes_max = bytes_max
        self._reader = TarReader()
        self._left_bytes = bytes_max
        self._left_path_bytes = MANIFEST_BYTES_MAX  #: in memory until `finish`
        self._fd = -1
        self._digest = hashlib.sha256()
        self._entry: TarEntry | None = None
        self._files: list[TreeFile] = []
        self._links: list[TreeLink] = []
        self._folders: list[str] = []

    def add_data(self, data: bytes) -> None:
        """Store the next bytes."""
        for part in self._reader.add_data(data):
            if isinstance(part, TarEntry):
                self._begin_entry(part)
            elif part is None:
                self._end_entry()
            else:
                self._digest.update(part)
                write_all(self._fd, part)

    def finish(self, tree: str | None = None) -> None:
        """Write the manifest, after checking it."""
        if not self._reader.is_over:
            raise TarError("the archive has no end")
        manifest = make_manifest(self._files, self._links, self._folders)
        if tree not in (None, content_digest(encode_manifest(manifest))):
            raise TarError("the outputs are not those that were captured")
        write_manifest(self._folder, manifest)

    def close(self) -> None:
        """Close the file that was being written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _begin_entry(self, entry: TarEntry) -> None:
        if self._declared is not None and not self._declared.covers(entry.path):
            # Tasks that get these outputs in their folders trust their names.
            raise TarError("the archive has a path that is no declared output")
        self._entry = entry
        self._left_path_bytes -= len(entry.path) + len(entry.target)
        if self._left_path_bytes < 0:
            raise TarError(f"the paths have more than {MANIFEST_BYTES_MAX} bytes")
        self._left_bytes -= entry.size_bytes
        if self._left_bytes < 0:
            raise TarError(f"the archive has more than {self._bytes_max} bytes")
        if entry.is_file:
            self._digest = hashlib.sha256()
            self._fd = os.open(self._folder / "content", _CREATE, 0o600)

    def _end_entry(self) -> None:
        entry = self._entry
        assert entry is not None
        if entry.is_link:
            self._links.append(TreeLink(entry.path, entry.target))
        elif entry.is_file:
            digest = self._digest.digest()
            self.close()
            if digest.hex() != entry.sha256:
                raise TarError(f"the bytes of {entry.path[:200]!r} are wrong")
            (self._folder / "content").rename(self._folder / digest.hex())
            self._files.append(
                TreeFile(
                    entry.path,
                    digest,
                    entry.size_bytes,
                    entry.mtime_ns,
                    entry.is_executable,
                )
            )
        else:
            self._folders.append(entry.path)


def _outputs_path(task: TaskId, attempt: AttemptId) -> str:
    return f"/internal/v1/outputs/{quote(task, safe='')}/{attempt}"


def _flush_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_file_system(fd)
    finally:
        os.close(fd)
