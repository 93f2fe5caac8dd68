"""Content-addressed store of the files that tasks need, on one node.

The SHA-256 of a file is its name, so each content is stored once and never changes:
tasks get copies. The total size is bounded: of the files that are not protected, the
one that was used least recently is deleted first. What arrived of an interrupted upload
is kept for a while, so that the upload can be resumed, also at the next agent.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Final

from octaskly.errors import OutputNotFound
from octaskly.files.copying import copy_content
from octaskly.files.manifest import is_content_digest
from octaskly.files.pack import PACKED_BYTES_MAX, pack_header
from octaskly.ports.files import (
    COPY_RETENTION_S,
    RETENTION_S,
    ContentMismatch,
    FileQuotaExceeded,
    OpenPiece,
    UploadInProgress,
    WrongOffset,
)
from octaskly.ports.store import Clock
from octaskly.runner.blobs.blob_index import BlobIndex
from octaskly.runner.blobs.blob_room import BlobRoom
from octaskly.runner.blobs.uploads import (
    PIECES_SUFFIX,
    UPLOAD_SUFFIX,
    BlobUpload,
    HashedStart,
    PartialFiles,
    PieceUpload,
    choose_piece,
    disk_error,
    piece_count,
    piece_range,
)
from octaskly.runner.output.captured_contents import CapturedContents
from octaskly.runner.output.output_archive import RESERVE_BYTES, DiskUsage

UNUSED_S_MAX: Final = 86_400.0  #: time for which an expired file may stay
TAKEOVER_S: Final = 5.0  #: a silent upload may be continued by another request

FLUSHED_ALONE_MAX: Final = 16  #: files flushed one by one, rather than the file system
COUNTED_BLOBS_MAX: Final = 64  #: blobs whose sent pieces are counted
PACK_PART_BYTES: Final = 256 << 10

_CONTINUE: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = _CONTINUE | os.O_EXCL


class BlobStore:
    """Stores files in a folder. All methods block; any thread may call them.

    `BlobIndex` has what is here, and `BlobRoom` decides what is deleted for new files.
    A suspect is read once before it counts as here.

    Args:
        folder: Holds the files; created with access for the agent alone.
        quota_bytes: Maximum size of all files; default 10 GB, or a tenth of the disk
            if that is less.
        clock: The machine's clocks.
        reserve_bytes: Bytes to leave free on the disk, for the log.
        captured: Contents of captured outputs, which are files of this node, too; they
            count towards another quota.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        quota_bytes: int | None = None,
        reserve_bytes: int = RESERVE_BYTES,
        captured: CapturedContents | None = None,
    ) -> None:
        self._folder = folder
        self._captured = captured or CapturedContents()
        self.clock = clock
        self._lock = threading.RLock()
        self.on_stored: Callable[[str], None] = lambda _name: None
        """Called with the name of each file that was stored, in any thread."""
        self._partials = PartialFiles(folder, self._now_s)
        self._index = BlobIndex(folder, self._partials, self._captured, self._now_s)
        self._room = BlobRoom(
            folder,
            self._index,
            self._partials,
            self._now_s,
            quota_bytes=quota_bytes,
            reserve_bytes=reserve_bytes,
        )
        self._arriving: dict[str, PieceUpload] = {}
        self._readings: dict[str, threading.Lock] = {}  #: suspects that are being read
        #: How often pieces of a blob were sent; the blob that was sent last is last.
        self._sent: dict[str, Counter[int]] = {}

    @property
    def has_changes(self) -> bool:
        """Return True if large files or trees came or went since `take_changes`."""
        return self._index.has_changes

    def take_changes(self) -> tuple[list[str], list[str]]:
        """Return the large files and trees that came, and those that went.

        Each change is returned once; the most recent is last.
        """
        with self._lock:
            return self._index.take_changes()

    def mark_tree(self, sha256: str) -> None:
        """Note that all contents of the tree with this manifest are here."""
        with self._lock:
            self._index.mark_tree(sha256)

    def touch_file(self, sha256: str, *, keep_s: float = RETENTION_S) -> int | None:
        """Return the size of a file and keep it for `keep_s`; None if there is none.

        A captured output may be deleted at any time, so it counts for copies only.
        """
        self._read_suspect(sha256)
        with self._lock:
            size_bytes = self._touch_stored(sha256, keep_s)
        if size_bytes is not None or keep_s > COPY_RETENTION_S:
            return size_bytes
        # A captured output may have to be read first, which must not stop others.
        return self._captured_size(sha256)

    def _touch_stored(self, sha256: str, keep_s: float) -> int | None:
        kept = self._index.files().get(sha256)
        if kept is None:
            return None
        with suppress(OSError):
            until_s = max(kept.until_s, self._now_s() + keep_s)
            self._index.protect(sha256, kept.size_bytes, until_s)
            return kept.size_bytes
        self._index.forget(sha256)  # It was deleted by hand.
        return None

    def _captured_size(self, sha256: str) -> int | None:
        """Return the size of a captured output; None if it is not here and right."""
        path = self._captured.find(sha256)
        if path is not None:
            with suppress(OSError):
                return path.stat().st_size
        return None

    def missing_files(
        self, sha256s: Iterable[str], *, keep_s: float = RETENTION_S
    ) -> list[str]:
        """Return which of these files are not here, and keep the others."""
        return [
            name for name in sha256s if self.touch_file(name, keep_s=keep_s) is None
        ]

    def files_here(self, sha256s: Iterable[str]) -> list[str]:
        """Return which of these files are here, without keeping them."""
        with self._lock:
            stored = self._index.files().keys()
            names = [(name, name in stored) for name in sha256s]
        return [n for n, is_here in names if is_here or self._captured.find(n)]

    def release_file(self, sha256: str) -> None:
        """Make a file expire now; it stays while there is room."""
        with self._lock:
            kept = self._index.files().get(sha256)
            if kept is not None:
                with suppress(OSError):
                    self._index.protect(sha256, kept.size_bytes, self._now_s())

    def release_unused(self) -> None:
        """Make files expire now that were not used for `COPY_RETENTION_S`."""
        with self._lock:
            now_s = self._now_s()
            for name, kept in list(self._index.files().items()):
                if kept.used_s < now_s - COPY_RETENTION_S and kept.until_s > now_s:
                    with suppress(OSError):
                        self._index.expire(name)

    def release_copies(self, sha256s: Iterable[str]) -> None:
        """Make files expire now, except those that are kept longer than copies."""
        with self._lock:
            for name in sha256s:
                kept = self._index.files().get(name)
                copied_until_s = self._now_s() + COPY_RETENTION_S
                if kept is not None and kept.until_s <= copied_until_s:
                    self.release_file(name)

    def file_path(self, sha256: str) -> Path:
        """Return the path of a file, and keep it for `COPY_RETENTION_S`.

        Raises:
            OutputNotFound: there is no such file.
        """
        if self.touch_file(sha256, keep_s=COPY_RETENTION_S) is None:
            raise OutputNotFound(f"there is no file {sha256[:12]}... on this node")
        return self._path_of(sha256)

    def open_file(self, sha256: str) -> int:
        """Return a descriptor to read a file; it may be deleted meanwhile.

        Raises:
            OutputNotFound: there is no such file.
        """
        path = self.file_path(sha256)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise OutputNotFound(f"file {sha256[:12]}... was deleted") from None

    def open_copy(self, sha256: str) -> int:
        """Return a descriptor to read an unnamed copy of a file, for a task.

        A task of the owner or of root may open its stdin once more, to write to it.

        Raises:
            OutputNotFound: there is no such file.
            OSError: the disk is full or failing.
        """
        source_fd = self.open_file(sha256)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as copy:
                copy_content(source_fd, copy.fileno())
                os.fchmod(copy.fileno(), 0o444)
                path = f"/proc/self/fd/{copy.fileno()}"
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(source_fd)

    def start_upload(
        self, sha256: str | None, size_bytes: int, *, keep_s: float = RETENTION_S
    ) -> BlobUpload:
        """Start an upload; the finished file is kept for `keep_s`.

        Without `sha256`, the file gets the name of what arrives.

        Raises:
            ContentMismatch: `sha256` is not a SHA-256 in hexadecimal.
            FileQuotaExceeded: there is no room for the file.
            OSError: the folder cannot be used.
        """
        if sha256 is not None and not is_content_digest(sha256):
            raise ContentMismatch(f"{sha256[:80]!r} is not a SHA-256")
        with self._lock:
            self.check_quota(size_bytes)
            self._room.check_room(size_bytes)
            partial = self._folder / f"{sha256 or ''}.{secrets.token_hex(8)}"
            fd = os.open(partial, _CREATE, 0o600)
        return BlobUpload(self, sha256 or "", size_bytes, partial, fd, keep_s)

    def start_pieces(
        self, sha256: str, size_bytes: int, *, keep_s: float = COPY_RETENTION_S
    ) -> PieceUpload:
        """Start the arrival of a blob in pieces from other nodes, or continue it.

        Raises:
            ContentMismatch: `sha256` is not a SHA-256 in hexadecimal.
            FileQuotaExceeded: there is no room for it, or the disk is failing.
        """
        if not is_content_digest(sha256):
            raise ContentMismatch(f"{sha256[:80]!r} is not a SHA-256")
        path = self._folder / f"{sha256}{PIECES_SUFFIX}"
        try:
            with self._lock:
                self._index.files()
                self._room.check_quota(size_bytes)
                partial = self._partials.find(path.name)
                left_bytes = size_bytes - (partial.arrived_bytes if partial else 0)
                self._room.check_room(left_bytes, path.name)
                fd = os.open(path, _CONTINUE, 0o600)
                partial = self._partials.find_or_add(path.name)
                assert partial.upload is None, "it is fetched twice at a time"
                try:
                    upload = PieceUpload(
                        self, sha256, size_bytes, path, fd, keep_s, partial.hashed
                    )
                except OSError:
                    os.close(fd)
                    self._partials.delete(path.name)
                    raise
                # A file of another size has no piece of this one.
                self._partials.set_arrived(partial, upload.arrived_bytes)
                partial.upload = self._arriving[sha256] = upload
        except OSError as error:
            raise disk_error(error) from None
        return upload

    def has_pieces(self, sha256: str) -> bool:
        """Return True if a fetch that has ended left pieces of a blob."""
        with self._lock:
            self._index.files()
            return self._partials.find(f"{sha256}{PIECES_SUFFIX}") is not None

    def open_piece(self, sha256: str, wanted: Sequence[int]) -> OpenPiece | None:
        """Return one of the wanted pieces of a blob that is here or arriving.

        Returns:
            None if none of them has arrived yet.

        Raises:
            OutputNotFound: there is no such blob.
        """
        # What has to be read first must not stop others.
        self.touch_file(sha256, keep_s=COPY_RETENTION_S)
        with self._lock:
            sent = self._sent.pop(sha256, Counter[int]())
            self._sent[sha256] = sent
            if len(self._sent) > COUNTED_BLOBS_MAX:
                del self._sent[next(iter(self._sent))]
            arriving = self._arriving.get(sha256)
            if arriving is not None:
                have = [number for number in wanted if arriving.has_piece(number)]
                number = choose_piece(wanted, have, sent)
                if number is None:
                    return None
                piece = arriving.open_piece(number)
            else:
                piece = self._open_whole(sha256, wanted, sent)
            sent[piece.number] += 1
            return piece

    def arrived_bytes(self, sha256: str) -> int:
        """Return how much has arrived of a file that is uploaded in pieces."""
        with self._lock:
            self._index.files()
            partial = self._partials.find(f"{sha256}{UPLOAD_SUFFIX}")
            return 0 if partial is None else partial.arrived_bytes

    def continue_upload(
        self, sha256: str, size_bytes: int, start: int, *, keep_s: float = RETENTION_S
    ) -> BlobUpload:
        """Start or continue an upload in pieces; see `start_upload`.

        Args:
            sha256: Digest of the whole file.
            size_bytes: Size of the whole file.
            start: Offset of the first byte that will be written; what has arrived of
                the file from there on is dropped.
            keep_s: How long to keep the finished file.

        Raises:
            WrongOffset: less than `start` has arrived.
            UploadInProgress: another request adds to the file.
        """
        if not is_content_digest(sha256):
            raise ContentMismatch(f"{sha256[:80]!r} is not a SHA-256")
        with self._lock:
            self._index.files()
            path = self._folder / f"{sha256}{UPLOAD_SUFFIX}"
            partial = self._partials.find(path.name)
            arrived = 0 if partial is None else partial.arrived_bytes
            if start > arrived:
                raise WrongOffset(f"{arrived} bytes of the file are here, not {start}")
            now_s = self._now_s()
            if partial is not None:
                if partial.upload and now_s - partial.written_s < TAKEOVER_S:
                    raise UploadInProgress("another request sends the file")
                partial.written_s = now_s  # Its client came back, so it stays.
            self.check_quota(size_bytes)
            self._room.check_room(size_bytes - arrived)
            fd = os.open(path, _CONTINUE, 0o600)
            partial = self._partials.find_or_add(path.name)
            if partial.upload is not None:
                partial.upload.is_superseded = True
            upload = BlobUpload(self, sha256, size_bytes, path, fd, keep_s)
            # Hashing its beginning may take a while.
            partial.upload, partial.written_s = upload, inf
            # The upload changes the digest, so the next one cannot start with it.
            hashed, partial.hashed = partial.hashed, None
            is_hashed = hashed is not None and hashed.size_bytes == start
        upload.resume(start, hashed.digest if hashed and is_hashed else None)
        return upload

    def store_blob(
        self, sha256: str, data: bytes, *, keep_s: float = RETENTION_S
    ) -> bool:
        """Store a small file at once; return False if it is stored already.

        Raises:
            ContentMismatch: it has another SHA-256.
            FileQuotaExceeded: there is no room for it.
            OSError: the folder cannot be used.
        """
        if self.touch_file(sha256, keep_s=keep_s) is not None:
            return False
        upload = self.start_upload(sha256, len(data), keep_s=keep_s)
        try:
            upload.write(data)
            upload.finish()
        finally:
            upload.abort()
        return True

    def pack_files(self, sha256s: Iterable[str]) -> Iterator[bytes]:
        """Yield a pack of small files in parts of about `PACK_PART_BYTES`.

        Files that are not here, or not small, are left out.
        """
        part = bytearray()
        for name in sha256s:
            size_bytes = self.touch_file(name, keep_s=COPY_RETENTION_S)
            if size_bytes is None or size_bytes > PACKED_BYTES_MAX:
                continue
            with suppress(FileNotFoundError):  # It was deleted meanwhile.
                data = self._path_of(name).read_bytes()
                part += pack_header(bytes.fromhex(name), len(data)) + data
            if len(part) >= PACK_PART_BYTES:
                yield bytes(part)
                part.clear()
        if part:
            yield bytes(part)

    def reserve_arrived(
        self, upload: BlobUpload | PieceUpload, size_bytes: int
    ) -> None:
        """Reserve room for bytes of an upload that arrived.

        The rest of the file is not reserved, because it may never arrive. A client
        could otherwise take all room by announcing a large file.

        Raises:
            FileQuotaExceeded: there is no room for them.
            UploadInProgress: another request continues the upload.
        """
        with self._lock:
            if upload.is_superseded:
                raise UploadInProgress("another request continues to send the file")
            self._room.make_room(size_bytes)
            upload.arrived_bytes += size_bytes
            partial = self._partials.find(upload.partial.name)
            if partial is None:
                self._partials.arrived_bytes += size_bytes
            else:
                self._partials.set_arrived(partial, upload.arrived_bytes)

    def begin_pieces(self, upload: BlobUpload, start: int) -> None:
        """Drop what a partial file has after `start`, before more is written."""
        with self._lock:
            partial = self._partials.find(upload.partial.name)
            assert partial is not None
            self._partials.set_arrived(partial, start)

    def pause_upload(
        self,
        upload: BlobUpload | PieceUpload,
        arrived_bytes: int,
        hashed: HashedStart,
    ) -> None:
        """Keep what arrived of an upload, so that it can be continued.

        Args:
            upload: The upload.
            arrived_bytes: How many of its bytes are on disk.
            hashed: Its beginning.
        """
        with self._lock:
            if self._arriving.get(upload.sha256) is upload:
                del self._arriving[upload.sha256]
            if not upload.is_superseded:
                self._partials.pause(upload, arrived_bytes, hashed)

    def finish_upload(
        self, upload: BlobUpload | PieceUpload, *, is_whole: bool
    ) -> None:
        """Store an upload, or delete it if it is not whole.

        Raises:
            UploadInProgress: it is whole, but another request continues it.
        """
        with self._lock:
            if upload.is_superseded:
                if is_whole:
                    raise UploadInProgress("another request continues to send the file")
                return  # Its file belongs to the other request.
            self._partials.remove_upload(upload)
            if self._arriving.get(upload.sha256) is upload:
                del self._arriving[upload.sha256]
            if not is_whole:
                upload.partial.unlink(missing_ok=True)
                return
            upload.partial.rename(self._folder / upload.sha256)
            self._partials.delete_paused(upload.sha256)
            until_s = self._now_s() + upload.keep_s
            if (before := self._index.files().get(upload.sha256)) is not None:
                until_s = max(until_s, before.until_s)
            self._index.flushed.discard(upload.sha256)
            self._index.suspects.discard(upload.sha256)
            self._index.protect(upload.sha256, upload.size_bytes, until_s)
        self.on_stored(upload.sha256)

    @property
    def used_bytes(self) -> int:
        """Size of the files so far, without waiting for other threads."""
        return self._room.used_bytes

    def quota_bytes(self) -> int:
        """Return the maximum size of all files."""
        return self._room.quota_bytes()

    def check_quota(self, size_bytes: int) -> None:
        """Raise FileExceedsQuota if the store may never hold so many bytes."""
        self._room.check_quota(size_bytes)

    def why_no_room(self, size_bytes: int) -> str:
        """Return why a file of this size cannot be stored now; "" if it can be."""
        try:
            with self._lock:
                self._room.check_room(size_bytes)
        except FileQuotaExceeded as error:
            return error.message
        return ""

    def list_blobs(self) -> dict[str, tuple[int, float]]:
        """Return size and expiry of all files, by SHA-256."""
        with self._lock:
            kept = self._index.files()
            return {name: (one.size_bytes, one.until_s) for name, one in kept.items()}

    def read_start(self, sha256: str, bytes_max: int) -> bytes:
        """Return the first bytes of a file, without keeping it any longer.

        Raises:
            OSError: it is not here any more.
        """
        with (self._folder / sha256).open("rb", buffering=0) as file:
            return file.read(bytes_max)

    def usage(self) -> DiskUsage:
        """Return how much room the files take, and may take."""
        with self._lock:
            return self._room.usage()

    def verify_file(self, sha256: str) -> bool:
        """Return True if a file has the right content; delete it if it has not.

        Raises:
            OutputNotFound: there is no such file.
        """
        with self._lock:
            is_stored = sha256 in self._index.files()
        if not is_stored:
            return self._captured.verify(sha256)
        if _is_right(self.open_file(sha256), sha256):
            return True
        with self._lock:
            if sha256 in self._index.files():
                self._index.delete(sha256)
        return False

    def flush_files(self, sha256s: Iterable[str]) -> None:
        """Wait until files and their folder entries are on disk.

        Raises:
            OSError: the disk is failing.
        """
        with self._lock:
            kept = self._index.files()
            names = [n for n in sha256s if n in kept and n not in self._index.flushed]
        if not names:
            return
        folder_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if len(names) > FLUSHED_ALONE_MAX:
                sync_file_system(folder_fd)
            else:
                for name in names:
                    _flush_file(name, folder_fd)
                os.fsync(folder_fd)
        finally:
            os.close(folder_fd)
        with self._lock:
            self._index.flushed.update(name for name in names if name in kept)

    def delete_expired(self) -> None:
        """Delete files that expired more than `UNUSED_S_MAX` ago."""
        before_s = self._now_s() - UNUSED_S_MAX
        with self._lock, suppress(OSError):
            if not self._folder.exists():
                return
            for name, kept in list(self._index.files().items()):
                if kept.until_s < before_s:
                    self._index.delete(name)
            self._partials.delete_older(before_s)

    def _open_whole(
        self, sha256: str, wanted: Sequence[int], sent: Counter[int]
    ) -> OpenPiece:
        """Return one of the wanted pieces of a blob that is here.

        Raises:
            OutputNotFound: it is not, or it has none of these pieces.
        """
        fd = self.open_file(sha256)
        size_bytes = os.fstat(fd).st_size
        count = piece_count(size_bytes)
        have = [number for number in wanted if number < count]
        number = choose_piece(wanted, have, sent)
        if number is None:
            os.close(fd)
            raise OutputNotFound(f"file {sha256[:12]}... has {size_bytes} bytes here")
        return OpenPiece(fd, number, *piece_range(number, size_bytes), size_bytes)

    def _path_of(self, name: str) -> Path:
        with self._lock:
            return self._index.path_of(name)

    def _read_suspect(self, name: str) -> None:
        """Read a file that the machine may have written in part; delete it if wrong.

        Others use the store meanwhile; those that need the file wait.
        """
        with self._lock:
            self._index.files()
            if name not in self._index.suspects:
                return
            turn = self._readings.setdefault(name, threading.Lock())
        with turn:
            if name not in self._index.suspects:
                return
            try:
                is_right = _is_right(os.open(self._folder / name, os.O_RDONLY), name)
            except OSError:
                is_right = False
            with self._lock:
                self._readings.pop(name, None)
                if name not in self._index.suspects:
                    return  # It arrived again, or was deleted for others.
                if is_right:
                    self._index.trust(name)
                else:
                    self._index.delete(name)

    def _now_s(self) -> float:
        return self.clock.now().wall_ms / 1000


def _is_right(fd: int, name: str) -> bool:
    """Return True if an open file has the content with this name; close it."""
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == name


def sync_file_system(fd: int) -> None:
    """Wait until the file system of an open file is on disk; raise OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _flush_file(name: str, folder_fd: int) -> None:
    with suppress(FileNotFoundError):  # It was deleted meanwhile.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder_fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
