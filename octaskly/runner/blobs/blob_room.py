"""Room of a store: its quota, the free disk space, and deletion for new files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from octaskly.ports.files import DiskFull, FileExceedsQuota, FileQuotaExceeded
from octaskly.runner.blobs.blob_index import BlobIndex
from octaskly.runner.blobs.uploads import PartialFiles
from octaskly.runner.output.output_archive import (
    DISK_PARTS,
    QUOTA_BYTES_MAX,
    DiskUsage,
)

FILES_MAX: Final = 200_000  #: bounds the index, which is kept in memory
BATCHES: Final = 20  #: in which all files of a full store are deleted
PARTIAL_RETENTION_S: Final = 600.0  #: from an interruption until it may be deleted


class BlobRoom:
    """Decides if there is room for files, and makes it; the store's lock guards this.

    Args:
        folder: The folder of the store.
        index: The files in it.
        partials: The partial files in it.
        now_s: Returns the time, as file times have it.
        quota_bytes: Maximum size of all files; default 10 GB, or a tenth of the disk
            if that is less.
        reserve_bytes: Bytes to leave free on the disk, for the log.
    """

    def __init__(
        self,
        folder: Path,
        index: BlobIndex,
        partials: PartialFiles,
        now_s: Callable[[], float],
        *,
        quota_bytes: int | None,
        reserve_bytes: int,
    ) -> None:
        self._folder, self._index, self._partials = folder, index, partials
        self._now_s = now_s
        self._quota_bytes, self._reserve_bytes = quota_bytes, reserve_bytes

    @property
    def used_bytes(self) -> int:
        """Size of the files so far, without waiting for other threads."""
        return self._index.stored_bytes + self._partials.arrived_bytes

    def quota_bytes(self) -> int:
        """Return the maximum size of all files."""
        if self._quota_bytes is not None:
            return self._quota_bytes
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk = shutil.disk_usage(self._folder)
        return min(QUOTA_BYTES_MAX, disk.total // DISK_PARTS)

    def usage(self) -> DiskUsage:
        """Return how much room the files take, and may take."""
        self._index.files()
        disk = shutil.disk_usage(self._folder)
        return DiskUsage(
            used_bytes=self.used_bytes,
            quota_bytes=self.quota_bytes(),
            free_bytes=disk.free,
            disk_bytes=disk.total,
        )

    def check_quota(self, size_bytes: int) -> None:
        """Raise FileExceedsQuota if the store may never hold so many bytes."""
        if size_bytes > self.quota_bytes():
            raise FileExceedsQuota(
                f"{size_bytes} bytes of files are more than the quota of this node,"
                f" {self.quota_bytes()} bytes",
                hint="raise the agent's --files-quota, or send it through another node",
            )

    def check_room(self, size_bytes: int, continued: str = "") -> None:
        """Raise FileQuotaExceeded if a file cannot fit, whatever may be deleted.

        Args:
            size_bytes: How much of it has not arrived.
            continued: Name of its partial file.
        """
        self._delete_old_partials()
        kept, now_s = self._index.files(), self._now_s()
        used_bytes = self.used_bytes
        if used_bytes + size_bytes <= self.quota_bytes() and len(kept) < FILES_MAX:
            return  # Nothing need be deleted.
        needed = [each.size_bytes for each in kept.values() if each.until_s > now_s]
        left = self._partials.left_pieces()
        left.pop(continued, None)
        arriving_bytes = self._partials.arrived_bytes - sum(left.values())
        free_bytes = self.quota_bytes() - arriving_bytes - sum(needed)
        if size_bytes > free_bytes or len(needed) >= FILES_MAX:
            raise _no_room(size_bytes)

    def make_room(self, size_bytes: int) -> None:
        """Delete unprotected files until there is room for so many more bytes.

        A twentieth of the store is deleted at a time, so that not every file that comes
        later has to search all of them. What fetches have left is deleted last: their
        next attempt needs it soon.
        """
        kept = self._index.files()
        self._delete_old_partials()
        free_bytes = shutil.disk_usage(self._folder).free - self._reserve_bytes
        quota_bytes = self.quota_bytes()

        def has_room(more_bytes: int, more_files: int = 1) -> bool:
            is_over = self.used_bytes + more_bytes > quota_bytes
            is_over = is_over or more_bytes > free_bytes
            return not is_over and len(kept) + more_files <= FILES_MAX

        if has_room(size_bytes):
            return
        batch_bytes = size_bytes + self.used_bytes // BATCHES
        batch_files = 1 + len(kept) // BATCHES
        now_s = self._now_s()
        free_to_go = [n for n, each in kept.items() if each.until_s <= now_s]
        free_to_go.sort(key=lambda name: kept[name].used_s)
        for name in free_to_go:
            if has_room(batch_bytes, batch_files):
                break
            free_bytes += kept[name].size_bytes
            self._index.delete(name)
        for name, arrived_bytes in self._partials.left_pieces().items():
            if has_room(size_bytes):
                break
            free_bytes += arrived_bytes
            self._partials.delete(name)
        if size_bytes > free_bytes:
            raise self._disk_full()
        if not has_room(size_bytes):
            raise _no_room(size_bytes)

    def _disk_full(self) -> DiskFull:
        free_mb = shutil.disk_usage(self._folder).free // 1_000_000
        reserve_mb = self._reserve_bytes // 1_000_000
        return DiskFull(
            f"the disk of this node is full: {free_mb} MB are free, and"
            f" {reserve_mb} MB stay free for the log",
            hint="free disk space there, or send the files through another node",
        )

    def _delete_old_partials(self) -> None:
        """Delete the partial files of clients that did not come back."""
        self._partials.delete_older(self._now_s() - PARTIAL_RETENTION_S)


def _no_room(size_bytes: int) -> FileQuotaExceeded:
    return FileQuotaExceeded(
        f"not enough space for {size_bytes} more bytes of files on this node",
        hint="a file may be deleted an hour after its last use, or a minute after"
        " octaskly forget; raise the agent's --files-quota, or free disk space",
    )
