"""Retention of output files and captured outputs on this node's disk.

The total size is bounded, and the oldest files are deleted first. Only the agent may
enter the folder. It creates each file anew and never through a link, and then passes
the open descriptor on. Renamed or replaced files therefore cannot redirect output.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from octaskly.core.model.ids import AttemptId, TaskId, parse_attempt_id
from octaskly.errors import OutputNotFound
from octaskly.ports.files import KeptOutput
from octaskly.ports.store import Clock
from octaskly.runner.output.captured_folders import UNCOPIED_NAME, CapturedFolders
from octaskly.runner.output.output_file import BYTES_MIN, OutputFileReader

QUOTA_BYTES_MAX = 10_000_000_000  #: default; less on a small disk
DISK_PARTS = 10  #: the default quota is at most this fraction of the disk
RESERVE_BYTES = 256 << 20  #: left free for the log
#: Attempts that can write output files at once, also on a small disk.
CONCURRENT_FILES_MIN = 4
FILES_MAX = 20_000  #: bounds the index, which is kept in memory
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK_BYTES = 512  #: unit of `st_blocks`


class DiskUsage(NamedTuple):
    """How much room something takes on this disk."""

    used_bytes: int
    quota_bytes: int
    free_bytes: int  #: on the whole disk
    disk_bytes: int  #: size of the disk


def output_file_name(task: TaskId, attempt: AttemptId) -> str:
    """Return the name of an attempt's file, which cannot name another folder."""
    return f"{task}.{attempt}"


def _attempt_named(name: str) -> AttemptId | None:
    """Return the attempt that a file or folder is named after."""
    try:
        return parse_attempt_id(name)
    except ValueError:
        return None


class OutputArchive:
    """Output files and captured outputs. All methods block and are thread-safe.

    Args:
        folder: Holds the output files; it is created.
        outputs_dir: Holds the captured outputs.
        bytes_max: Maximum size of one output file on disk.
        quota_bytes: Maximum size of all output files, and of all captured outputs; an
            output file that is being written counts with `bytes_max`. Default: 10 GB,
            or a tenth of the disk if that is less; then one file may take at most a
            quarter of it.
        retention_s: Seconds for which output files and captured outputs are kept.
        clock: The machine's clocks.
        reserve_bytes: Bytes to leave free on the disk, for the log.
    """

    def __init__(
        self,
        folder: Path,
        *,
        outputs_dir: Path,
        bytes_max: int,
        quota_bytes: int | None,
        retention_s: float,
        clock: Clock,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self._folder = folder
        self.outputs_dir = outputs_dir
        if quota_bytes is None:
            disk = shutil.disk_usage(outputs_dir)
            quota_bytes = min(QUOTA_BYTES_MAX, disk.total // DISK_PARTS)
            bytes_max = min(
                bytes_max, max(BYTES_MIN, quota_bytes // CONCURRENT_FILES_MIN)
            )
        self.captured = CapturedFolders(
            outputs_dir,
            quota_bytes=quota_bytes,
            reserve_bytes=reserve_bytes,
            clock=clock,
        )
        self.bytes_max = bytes_max
        self._quota_bytes = quota_bytes
        self._retention_s = retention_s
        self._reserve_bytes = reserve_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._open_names: set[str] = set()
        self._complete: dict[str, tuple[int, float]] | None = None  #: oldest first
        self._complete_bytes = 0

    def create_file(self, task: TaskId, attempt: AttemptId) -> int:
        """Create the file of a running attempt; return its descriptor.

        Raises:
            OSError: the disk is full, or the files being written need the whole quota.
        """
        name = output_file_name(task, attempt)
        with self._lock:
            self._make_room((len(self._open_names) + 1) * self.bytes_max)
            fd = os.open(self._folder / name, _CREATE, 0o600)
            self._open_names.add(name)
            return fd

    def mark_complete(self, task: TaskId, attempt: AttemptId) -> None:
        """Mark a file as complete; an empty file is deleted."""
        name = output_file_name(task, attempt)
        with self._lock:
            if name not in self._open_names:
                return
            self._open_names.discard(name)
            if self._complete is None:
                return  # The first listing finds it.
            with suppress(OSError):
                self._count_file(name, (self._folder / name).lstat())

    def open_file(self, task: TaskId, attempt: AttemptId) -> OutputFileReader:
        """Open the file of an attempt for reading.

        Raises:
            OutputNotFound: there is no such file.
        """
        try:
            fd = os.open(self._folder / output_file_name(task, attempt), _READ)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return OutputFileReader(fd)
            os.close(fd)
        except OSError:
            pass
        raise OutputNotFound(f"{task} has no output file on this node")

    def usage(self) -> DiskUsage:
        """Return how much room output files take, and may take."""
        with self._lock:
            self._load_files()
            disk = shutil.disk_usage(self.outputs_dir)
            return DiskUsage(
                used_bytes=self._complete_bytes,
                quota_bytes=self._quota_bytes,
                free_bytes=disk.free,
                disk_bytes=disk.total,
            )

    def output_folders(self) -> Iterator[tuple[Path, str]]:
        """Yield the folders of captured outputs, each with its task's id in the log."""
        for folder in self.outputs_dir.glob("*/*"):
            name = folder.parent.name
            with suppress(ValueError):
                is_encoded = name.startswith("%")
                yield folder, bytes.fromhex(name[1:]).decode() if is_encoded else name

    def uncopied_attempts(self) -> Iterator[tuple[TaskId, AttemptId]]:
        """Yield the attempts whose captured outputs need a second copy."""
        for folder, task in self.output_folders():
            attempt = _attempt_named(folder.name)
            if attempt is not None and (folder / UNCOPIED_NAME).exists():
                yield TaskId(task), attempt

    def kept_until_s(self, folder: Path) -> float:
        """Return when captured outputs expire; raise OSError if they are gone."""
        return folder.lstat().st_mtime + self._retention_s

    def list_ended(self) -> list[KeptOutput]:
        """Return the ended attempts whose output is kept here.

        Each ended when the last of it was written, as far as its files say.
        """
        with self._lock:
            files = list(self._load_files().items())
        named = [(*name.rpartition(".")[::2], at_s) for name, (_, at_s) in files]
        for folder, task in self.output_folders():
            with suppress(OSError):
                named.append((task, folder.name, folder.lstat().st_mtime))
        ended: dict[tuple[TaskId, AttemptId], int] = {}
        for task, name, at_s in named:
            attempt = _attempt_named(name)
            if attempt is not None:
                key = TaskId(task), attempt
                ended[key] = max(ended.get(key, 0), int(at_s * 1000))
        return [KeptOutput(*key, ended_ms) for key, ended_ms in ended.items()]

    def delete_ended(self, gone: Iterable[KeptOutput]) -> None:
        """Delete what is kept of attempts that have ended."""
        attempts = {(each.task, each.attempt) for each in gone}
        if not attempts:
            return
        for folder, task in self.output_folders():
            attempt = _attempt_named(folder.name)
            if attempt is not None and (TaskId(task), attempt) in attempts:
                self.captured.delete(folder)
        with self._lock:
            for task_id, attempt in attempts:
                self._delete_complete(output_file_name(task_id, attempt))

    def delete_expired(self) -> None:
        """Delete outputs that are older than the retention or exceed the quota."""
        with self._lock, suppress(OSError):
            self._make_room(len(self._open_names) * self.bytes_max)
        before_s = self._clock.now().wall_ms / 1000 - self._retention_s
        self.captured.delete_older(before_s)

    def _make_room(self, needed_bytes: int) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        complete = self._load_files()
        now_s = self._clock.now().wall_ms / 1000
        spare_bytes = shutil.disk_usage(self._folder).free - self._reserve_bytes
        is_refused = needed_bytes > min(
            self._quota_bytes, spare_bytes + self._complete_bytes
        )
        if is_refused:  # Then nothing is deleted for it, but for the log.
            needed_bytes = 0
        while complete:
            name, (size, ended_s) = next(iter(complete.items()))
            is_room = (
                self._complete_bytes + needed_bytes <= self._quota_bytes
                and needed_bytes <= spare_bytes
            )
            is_fresh = now_s - ended_s <= self._retention_s
            if is_room and is_fresh and len(complete) < FILES_MAX:
                break
            self._delete_complete(name)
            spare_bytes += size
        if is_refused:
            raise OSError(errno.EDQUOT, "files being written need the whole quota")

    def _load_files(self) -> dict[str, tuple[int, float]]:
        """Return the complete files; the first call reads them from the disk.

        If they cannot be listed now, as without a free descriptor, none are returned,
        and the next call tries again.
        """
        if self._complete is None:
            found = []
            try:
                with os.scandir(self._folder) as entries:
                    for entry in entries:
                        with suppress(OSError):
                            status = entry.stat(follow_symlinks=False)
                            found.append((entry.name, status))
            except OSError:
                return {}
            self._complete = {}
            for name, status in sorted(found, key=lambda file: file[1].st_mtime):
                if name not in self._open_names:
                    self._count_file(name, status)
        return self._complete

    def _delete_complete(self, name: str) -> None:
        size, _ = self._load_files().pop(name, (0, 0.0))
        if size:
            self._delete(name)
            self._complete_bytes -= size

    def _count_file(self, name: str, status: os.stat_result) -> None:
        assert self._complete is not None
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            self._delete(name)
            return
        size = status.st_blocks * _BLOCK_BYTES
        self._complete[name] = (size, status.st_mtime)
        self._complete_bytes += size

    def _delete(self, name: str) -> None:
        with suppress(OSError):
            (self._folder / name).unlink()
