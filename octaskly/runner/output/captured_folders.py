"""The folders of captured outputs on this node's disk, within one quota.

Room is made by deleting outputs that were fetched and that no other task needs, those
first whose fetch is longest ago. Outputs that nobody has fetched stay until the
retention is over.
"""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from octaskly.files.manifest import ManifestError
from octaskly.ports.store import Clock
from octaskly.runner.output.captured_contents import (
    MANIFEST_NAME,
    CapturedContents,
    set_mark,
)

FETCHED_NAME: Final = "fetched"  #: a file that is touched by each complete fetch
NEEDED_NAME: Final = "needed"  #: a file with the time until which a task needs them
ROOM_BYTES_MIN: Final = 1 << 20
"""Part of the quota below which a node takes no task that has outputs."""
UNCOPIED_NAME: Final = "uncopied"  #: a file that is there until a second copy exists


class CapturedUsage(NamedTuple):
    """How much room captured outputs take."""

    folders: int
    used_bytes: int
    quota_bytes: int


class CapturedFolders:
    """Accounts for captured outputs. All methods block and are thread-safe.

    Args:
        outputs_dir: Holds a folder for each task, with one for each attempt.
        quota_bytes: Maximum size of all of them together.
        reserve_bytes: Bytes to leave free on the disk, for the log.
        clock: The machine's clocks.
    """

    def __init__(
        self, outputs_dir: Path, *, quota_bytes: int, reserve_bytes: int, clock: Clock
    ) -> None:
        self._outputs_dir, self._clock = outputs_dir, clock
        self._quota_bytes, self._reserve_bytes = quota_bytes, reserve_bytes
        self.contents = CapturedContents()  #: of all folders
        self._lock = threading.Lock()
        self._sizes: dict[Path, int] | None = None
        self._arriving: dict[Path, int] = {}  #: bytes that are being captured

    def make_room(self, folder: Path, needed_bytes: int) -> int:
        """Return how many bytes the outputs of one attempt may have.

        Args:
            folder: The folder of the attempt, which may have some of them already.
            needed_bytes: Size of all its outputs, for which others may be deleted.
        """
        with self._lock:
            self._arriving[folder] = needed_bytes
            sizes = self._load_sizes()
            room_bytes = self._room(folder)
            if needed_bytes > room_bytes:
                for each in self._unneeded_folders(sizes):
                    self._delete(each)
                    room_bytes = self._room(folder)
                    if needed_bytes <= room_bytes:
                        break
            return max(0, room_bytes)

    def lack_of_room(self) -> str:
        """Return why there is no room for outputs of a task; "" if there is, or can be.

        Changes nothing: room is made once it is known how much is needed.
        """
        with self._lock:
            sizes = self._load_sizes()
            quota_bytes, free_bytes = self._left_bytes()
            if quota_bytes >= ROOM_BYTES_MIN and free_bytes > 0:
                return ""
            freed_bytes = sum(sizes[each] for each in self._unneeded_folders(sizes))
        if free_bytes + freed_bytes <= 0:
            needed_mb = self._reserve_bytes // 1_000_000
            free_mb = (self._reserve_bytes + free_bytes) // 1_000_000
            return f"{free_mb} MB of its disk are free, and {needed_mb} MB are needed"
        if quota_bytes + freed_bytes < ROOM_BYTES_MIN:
            return "its --output-quota is full of outputs that were not fetched"
        return ""

    def add_folder(self, folder: Path) -> None:
        """Count the outputs of an attempt, all of which are there now."""
        with self._lock:
            self._arriving.pop(folder, None)
            size_bytes = _folder_bytes(folder)
            if size_bytes:
                self._load_sizes()[folder] = size_bytes
        self._add_contents(folder)

    def add_contents(self) -> None:
        """Make the contents of all folders available to other nodes.

        The next agent does so in the background: manifests may be long.
        """
        with self._lock:
            folders = list(self._load_sizes())
        for folder in folders:
            self._add_contents(folder)

    def _add_contents(self, folder: Path) -> None:
        with suppress(OSError, ManifestError):  # There are none, or no whole ones.
            self.contents.add_folder(folder)

    def mark_needed(self, folder: Path, needed_s: float) -> None:
        """Note that a task that has not ended needs outputs, for so many seconds."""
        with self._lock:
            until_s = self._now_s() + needed_s
            set_mark(folder, NEEDED_NAME, is_set=True)
            with suppress(OSError):  # The outputs are gone.
                os.utime(folder / NEEDED_NAME, (until_s, until_s))

    def delete_older(self, before_s: float) -> None:
        """Delete the outputs of attempts that ended before a time."""
        with self._lock:
            folders = list(self._load_sizes())
        for folder in folders:
            try:
                is_old = folder.lstat().st_mtime < before_s
            except OSError:  # It was deleted by hand.
                is_old = True
            if is_old:
                with self._lock:
                    self._delete(folder)

    def delete(self, folder: Path) -> None:
        """Delete the outputs of one attempt, unless they are being captured."""
        with self._lock:
            if folder not in self._arriving:
                self._load_sizes()
                self._delete(folder)

    def usage(self) -> CapturedUsage:
        """Return how much room captured outputs take, without waiting for threads.

        Until they have been counted, there are none.
        """
        sizes = list((self._sizes or {}).values())
        used_bytes = sum(sizes) + sum(list(self._arriving.values()))
        return CapturedUsage(len(sizes), used_bytes, self._quota_bytes)

    def _room(self, folder: Path) -> int:
        """Return the bytes that an attempt may have now."""
        own_bytes = self._arriving.get(folder, 0) + self._load_sizes().get(folder, 0)
        quota_bytes, free_bytes = self._left_bytes()
        return min(quota_bytes + own_bytes, free_bytes)

    def _left_bytes(self) -> tuple[int, int]:
        """Return what the quota leaves, and the disk; less than 0 if exceeded."""
        used_bytes = sum(self._arriving.values()) + sum(self._load_sizes().values())
        self._outputs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(self._outputs_dir).free - self._reserve_bytes
        return self._quota_bytes - used_bytes, free_bytes

    def _load_sizes(self) -> dict[Path, int]:
        """Return the size of each folder; the first call reads them from the disk.

        A folder without a manifest into which nothing arrives is what an agent left
        that was killed: it is deleted. If the folders cannot be listed now, as without
        a free descriptor, none are returned, and the next call tries again.
        """
        if self._sizes is None:
            try:
                tasks = [each for each in self._outputs_dir.iterdir() if each.is_dir()]
                folders = [folder for task in tasks for folder in task.iterdir()]
            except OSError:
                return {}
            self._sizes = {}
            for folder in folders:
                if _has_manifest(folder):
                    self._sizes[folder] = _folder_bytes(folder)
                elif not self._is_arriving(folder):
                    self._delete(folder)
        return self._sizes

    def _is_arriving(self, folder: Path) -> bool:
        """Return True if outputs are being captured into it, or copied at first."""
        return any(str(folder).startswith(str(each)) for each in self._arriving)

    def _unneeded_folders(self, sizes: dict[Path, int]) -> list[Path]:
        """Return the folders that were fetched, the longest ago first."""
        found = []
        for folder in sizes:
            fetched_s = _mark_time_s(folder, FETCHED_NAME)
            needed_until_s = _mark_time_s(folder, NEEDED_NAME) or 0.0
            if fetched_s is not None and needed_until_s <= self._now_s():
                found.append((fetched_s, folder))
        return [folder for _, folder in sorted(found)]

    def _delete(self, folder: Path) -> None:
        self.contents.drop_folder(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if self._sizes is not None:
            self._sizes.pop(folder, None)
        with suppress(OSError):
            folder.parent.rmdir()  # Fails while it has other attempts' outputs.

    def _now_s(self) -> float:
        return self._clock.now().wall_ms / 1000


def mark_fetched(folder: Path) -> None:
    """Note that all outputs of an attempt were fetched now; they expire as before."""
    set_mark(folder, FETCHED_NAME, is_set=True)


def mark_uncopied(folder: Path, *, is_uncopied: bool = True) -> None:
    """Note if the outputs of an attempt need a second copy; they expire as before."""
    set_mark(folder, UNCOPIED_NAME, is_set=is_uncopied)


def _has_manifest(folder: Path) -> bool:
    """Return True if the folder has a manifest, also if that cannot be read."""
    try:
        (folder / MANIFEST_NAME).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # The disk is damaged; others of the files may be whole.
        return True
    return True


def _mark_time_s(folder: Path, name: str) -> float | None:
    """Return the time of a mark; None if it is not there."""
    with suppress(OSError):
        return (folder / name).lstat().st_mtime
    return None


def _folder_bytes(folder: Path) -> int:
    size_bytes = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                size_bytes += entry.stat(follow_symlinks=False).st_size
    return size_bytes
