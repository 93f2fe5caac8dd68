"""Files that clients left at this node, and copies of those that tasks needed here.

Each is called by the SHA-256 of its bytes, so it is kept once, whoever brings it, and
never changes. Together they are bounded; what was not wanted for longest goes first.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from octaskly.errors import OutputNotFound
from octaskly.ports import Clock, ContentMismatch, FileQuotaExceeded
from octaskly.runner.output.output_archive import (
    DISK_PARTS,
    QUOTA_BYTES_MAX,
    RESERVE_BYTES,
)

RETENTION_S: Final = 3600.0  #: whoever left or named a file may count on it so long
COPY_RETENTION_S: Final = 60.0  #: a copy can be had again
UNUSED_S_MAX: Final = 86_400.0  #: what nobody wanted for so long is deleted
FILES_MAX: Final = 20_000  #: names and sizes are kept in memory

_NAME = re.compile(r"[0-9a-f]{64}")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class BlobStore:
    """Implements `ports.Files`.

    Until when a file must stay is the time of its last change on the disk, so that the
    next agent knows it, too.

    Args:
        folder: Where they lie; it is made, for the agent alone.
        quota_bytes: What all may take; default 10 GiB, or a tenth of the disk where
            that is less.
        clock: The machine's clocks.
        reserve_bytes: What is left free on the disk, for the log.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        quota_bytes: int | None = None,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._quota_bytes = quota_bytes
        self._reserve_bytes = reserve_bytes
        self._lock = threading.RLock()
        self._index: dict[str, tuple[int, float]] | None = None  #: size, until when
        self._uploading_bytes = 0

    def touch_file(self, sha256: str, *, keep_s: float = RETENTION_S) -> int | None:
        """Return the size of a file, which stays for so long; None: there is none."""
        with self._lock:
            kept = self._load_index().get(sha256)
            if kept is None:
                return None
            with suppress(OSError):
                self._set_expiry(sha256, kept[0], max(kept[1], self._now_s() + keep_s))
                return kept[0]
            del self._load_index()[sha256]  # Somebody else has deleted it.
            return None

    def release_file(self, sha256: str) -> None:
        """Note that nobody counts on a file any more; it stays while there is room."""
        with self._lock:
            kept = self._load_index().get(sha256)
            if kept is not None:
                with suppress(OSError):
                    self._set_expiry(sha256, kept[0], self._now_s())

    def file_path(self, sha256: str) -> Path:
        """Return where a file lies, to be read."""
        if self.touch_file(sha256, keep_s=COPY_RETENTION_S) is None:
            raise OutputNotFound(f"there is no file {sha256[:12]}... on this node")
        return self._folder / sha256

    def start_upload(
        self, sha256: str, size_bytes: int, *, keep_s: float = RETENTION_S
    ) -> BlobUpload:
        """Begin to take a file in, which then must stay for so long."""
        if not _NAME.fullmatch(sha256):
            raise ContentMismatch(f"{sha256[:80]!r} is no SHA-256")
        with self._lock:
            self._make_room(size_bytes)
            partial = self._folder / f"{sha256}.{secrets.token_hex(8)}"
            fd = os.open(partial, _CREATE, 0o600)
            self._uploading_bytes += size_bytes
        return BlobUpload(self, sha256, size_bytes, partial, fd, keep_s)

    def finish_upload(self, upload: BlobUpload, *, is_whole: bool) -> None:
        """Keep what has come in, or delete it."""
        with self._lock:
            self._uploading_bytes -= upload.size_bytes
            if not is_whole:
                upload.partial.unlink(missing_ok=True)
                return
            upload.partial.rename(self._folder / upload.sha256)
            until_s = self._now_s() + upload.keep_s
            self._set_expiry(upload.sha256, upload.size_bytes, until_s)

    def delete_expired(self) -> None:
        """Delete what nobody wanted for long."""
        before_s = self._now_s() - UNUSED_S_MAX
        with self._lock, suppress(OSError):
            if not self._folder.exists():
                return
            for name, (_, until_s) in list(self._load_index().items()):
                if until_s < before_s:
                    self._delete(name)

    def _load_index(self) -> dict[str, tuple[int, float]]:
        """Return what is kept, which an earlier agent may have left."""
        if self._index is None:
            self._index = {}
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for place in self._folder.iterdir():
                status = place.lstat()
                if _NAME.fullmatch(place.name) and stat.S_ISREG(status.st_mode):
                    self._index[place.name] = status.st_size, status.st_mtime
                else:
                    place.unlink()  # It was coming when that agent ended.
        return self._index

    def _set_expiry(self, name: str, size_bytes: int, until_s: float) -> None:
        os.utime(self._folder / name, (until_s, until_s))
        self._load_index()[name] = size_bytes, until_s

    def _make_room(self, size_bytes: int) -> None:
        kept = self._load_index()
        disk = shutil.disk_usage(self._folder)
        quota_bytes = self._quota_bytes
        if quota_bytes is None:
            quota_bytes = min(QUOTA_BYTES_MAX, disk.total // DISK_PARTS)
        quota_bytes -= self._uploading_bytes + size_bytes
        free_bytes = (
            disk.free - self._reserve_bytes - self._uploading_bytes - size_bytes
        )
        used_bytes = sum(size for size, _ in kept.values())
        now_s = self._now_s()
        for name in sorted(kept, key=lambda name: kept[name][1]):
            size, until_s = kept[name]
            is_room = used_bytes <= quota_bytes and free_bytes >= 0
            if until_s > now_s or (is_room and len(kept) < FILES_MAX):
                break
            self._delete(name)
            used_bytes -= size
            free_bytes += size
        if used_bytes > quota_bytes or free_bytes < 0 or len(kept) >= FILES_MAX:
            raise FileQuotaExceeded(
                f"no room for a file of {size_bytes} bytes",
                hint="files go an hour after they were last wanted; --files-quota"
                " of the agent, or more disk, makes room",
            )

    def _delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)
        del self._load_index()[name]

    def _now_s(self) -> float:
        return self._clock.now().wall_ms / 1000


class BlobUpload:
    """Implements `ports.Intake`."""

    def __init__(
        self,
        blob_store: BlobStore,
        sha256: str,
        size_bytes: int,
        partial: Path,
        fd: int,
        keep_s: float,
    ) -> None:
        self.sha256, self.size_bytes = sha256, size_bytes
        self.partial, self.keep_s = partial, keep_s
        self._blob_store = blob_store
        self._fd = fd
        self._digest = hashlib.sha256()
        self._remaining_bytes = size_bytes

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._remaining_bytes -= len(data)
        if self._remaining_bytes < 0:
            raise ContentMismatch(
                f"more than the {self.size_bytes} bytes that were told"
            )
        self._digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def finish(self) -> None:
        """Keep the file, which is whole."""
        found = self._digest.hexdigest()
        if self._remaining_bytes or found != self.sha256:
            came = self.size_bytes - self._remaining_bytes
            raise ContentMismatch(
                f"what came are {came} bytes with the SHA-256 {found}"
            )
        # Tasks read it by other names, and must not change it for each other.
        os.fchmod(self._fd, 0o400)
        self._close(is_whole=True)

    def abort(self) -> None:
        """Forget it, unless it was finished."""
        if self._fd >= 0:
            self._close(is_whole=False)

    def _close(self, *, is_whole: bool) -> None:
        os.close(self._fd)
        self._fd = -1
        self._blob_store.finish_upload(self, is_whole=is_whole)
