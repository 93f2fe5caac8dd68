"""Files that arrive at a store: from a client in order, or from other nodes in pieces.

What has arrived of one that is interrupted is kept for a while, to be continued.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from octaskly.files.copying import write_all
from octaskly.ports.files import ContentMismatch, DiskFull, OpenPiece

PIECE_BYTES: Final = 4 << 20
PIECE_BYTES_MAX: Final = 32 << 20  #: a slow link takes half a minute for it
EQUAL_PIECES: Final = 64  #: of a blob, unless they would be too small or too large
UPLOAD_SUFFIX: Final = ".part"  #: of a partial file that a client sends in order
PIECES_SUFFIX: Final = ".pieces"  #: of one that other nodes send in any order
STORED_MODE: Final = 0o444
"""Mode of a file that is whole.

Only the agent may enter the folder. A task that reads the file as stdin may open it
again as /dev/stdin.
"""
_ARRIVED: Final = b"\1"  #: the mark of a piece in a partial file
_HASHED_BYTES: Final = 1 << 20
HASHED_AT_ONCE_BYTES: Final = 256 << 10  #: stays in the processor's cache
HASHED_APART_BYTES: Final = 256 << 10  #: a shorter part is hashed sooner than passed on


class HashedStart(NamedTuple):
    """The beginning of a file, and its SHA-256."""

    size_bytes: int
    digest: hashlib._Hash


class UploadTarget(Protocol):
    """The store that receives files."""

    def reserve_arrived(
        self, upload: BlobUpload | PieceUpload, size_bytes: int
    ) -> None:
        """See `BlobStore.reserve_arrived`."""

    def begin_pieces(self, upload: BlobUpload, start: int) -> None:
        """See `BlobStore.begin_pieces`."""

    def pause_upload(
        self,
        upload: BlobUpload | PieceUpload,
        arrived_bytes: int,
        hashed: HashedStart,
    ) -> None:
        """See `BlobStore.pause_upload`."""

    def finish_upload(
        self, upload: BlobUpload | PieceUpload, *, is_whole: bool
    ) -> None:
        """See `BlobStore.finish_upload`."""


class BlobUpload:
    """An upload in progress. All methods block."""

    def __init__(
        self,
        target: UploadTarget,
        sha256: str,
        size_bytes: int,
        partial: Path,
        fd: int,
        keep_s: float,
    ) -> None:
        self.sha256, self.size_bytes = sha256, size_bytes
        self.partial, self.keep_s = partial, keep_s
        self._target = target
        self._fd = fd
        self._hashing = _Hashing(hashlib.sha256())
        self._remaining_bytes = size_bytes
        self.arrived_bytes = 0  #: reserved in the store
        self.is_resumable = False
        self.is_superseded = False  #: another request continues it

    def resume(self, start: int, digest: hashlib._Hash | None) -> None:
        """Continue after the first `start` bytes of a partial file.

        Args:
            start: Number of bytes that are kept.
            digest: Theirs, if it is known.
        """
        self.is_resumable = True
        try:
            if digest is None:
                self._hash_beginning(start)
            else:
                self._hashing = _Hashing(digest)
            _cut(self._fd, start)
            os.lseek(self._fd, start, os.SEEK_SET)
        except OSError:
            self.abort()
            raise
        self._target.begin_pieces(self, start)
        self.arrived_bytes = start
        self._remaining_bytes = self.size_bytes - start

    def _hash_beginning(self, size_bytes: int) -> None:
        at = 0
        while at < size_bytes:
            data = os.pread(self._fd, min(_HASHED_BYTES, size_bytes - at), at)
            if not data:
                raise OSError(errno.EIO, "the partial file became shorter")
            self._hashing.add(data)
            at += len(data)

    @property
    def is_complete(self) -> bool:
        """Return True if all bytes of the file have arrived."""
        return not self._remaining_bytes

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, which must not change until the next call."""
        self._remaining_bytes -= len(data)
        if self._remaining_bytes < 0:
            raise ContentMismatch(
                f"more than the announced {self.size_bytes} bytes were sent"
            )
        self._target.reserve_arrived(self, len(data))
        self._hashing.add(data)
        write_all(self._fd, data)

    def finish(self) -> str:
        """Store the file, after checking its size and SHA-256; return the latter.

        Raises:
            ContentMismatch: the size or the SHA-256 is wrong.
            UploadInProgress: another request continues the upload.
        """
        found = self._hashing.end().hexdigest()
        self.sha256 = self.sha256 or found
        if self._remaining_bytes or found != self.sha256:
            came = self.size_bytes - self._remaining_bytes
            self._close(is_whole=False)
            raise ContentMismatch(f"received {came} bytes with the SHA-256 {found}")
        os.fchmod(self._fd, STORED_MODE)
        self._close(is_whole=True)
        return found

    def abort(self) -> None:
        """End an upload that was not finished; keep what arrived of a resumable one."""
        if self._fd < 0:
            return
        digest = self._hashing.end()
        if not self.is_resumable:
            self._close(is_whole=False)
            return
        size_bytes = os.fstat(self._fd).st_size
        os.close(self._fd)
        self._fd = -1
        hashed_bytes = self.size_bytes - self._remaining_bytes
        # If the disk took less than was hashed, the beginning is hashed again.
        hashed = HashedStart(hashed_bytes, digest)
        self._target.pause_upload(self, size_bytes, hashed)

    def _close(self, *, is_whole: bool) -> None:
        os.close(self._fd)
        self._fd = -1
        self._target.finish_upload(self, is_whole=is_whole)


class _Hashing:
    """The SHA-256 of a file that arrives in order.

    Long parts are hashed in a thread, while they are written and the next one arrives.
    """

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest
        self._thread: ThreadPoolExecutor | None = None
        self._added: Future[None] | None = None

    def add(self, data: bytes | memoryview) -> None:
        """Add data, which must not change until the next call."""
        self._wait()
        if len(data) < HASHED_APART_BYTES:
            self._digest.update(data)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="blob-hash")
        self._added = self._thread.submit(self._digest.update, data)

    def end(self) -> hashlib._Hash:
        """Return the digest of all data, and end the thread."""
        self._wait()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        return self._digest

    def _wait(self) -> None:
        if self._added is not None:
            self._added.result()
            self._added = None


class PieceUpload:
    """A blob that arrives in pieces, in any order and from several threads.

    Pieces are hashed in the order of the blob. Those that have arrived can be sent on.
    They stay if the rest does not arrive: after the bytes of the blob, the file has a
    byte for each piece, which is set once the piece has arrived.

    Args:
        target: The store.
        sha256: Digest of the whole blob.
        size_bytes: Size of the whole blob.
        partial: The file with what has arrived.
        fd: The same file, open; it is closed at the end.
        keep_s: How long to keep the blob once it is whole.
        hashed: The pieces at its beginning that are hashed, if they are known.

    Raises:
        OSError: the file cannot be used.
    """

    is_resumable, is_superseded = True, False

    def __init__(
        self,
        target: UploadTarget,
        sha256: str,
        size_bytes: int,
        partial: Path,
        fd: int,
        keep_s: float,
        hashed: HashedStart | None = None,
    ) -> None:
        self.sha256, self.size_bytes = sha256, size_bytes
        self.partial, self.keep_s = partial, keep_s
        self._target = target
        self._fd = fd
        self._arrived = read_arrived_pieces(fd, size_bytes)
        self._reserved = set(self._arrived)
        #: Reserved in the store, which counts them.
        self.arrived_bytes = self._bytes_of(self._arrived)
        if not self._arrived:
            _cut(fd, 0)
            os.ftruncate(fd, size_bytes + self.piece_count)
        self._digest, self._hashed_count = hashlib.sha256(), 0
        if hashed is not None and self._arrived:
            self._digest = hashed.digest
            self._hashed_count = -(-hashed.size_bytes // piece_bytes(size_bytes))

    @property
    def piece_count(self) -> int:
        """Number of pieces."""
        return piece_count(self.size_bytes)

    @property
    def first_missing(self) -> int:
        """Number of the first piece that is not hashed; all before it have arrived."""
        return self._hashed_count

    def piece_range(self, number: int) -> tuple[int, int]:
        """Return where a piece begins and ends."""
        return piece_range(number, self.size_bytes)

    def begin_piece(self, number: int) -> None:
        """Reserve room for a piece.

        Raises:
            FileQuotaExceeded: there is none.
        """
        if number not in self._reserved:
            start, end = self.piece_range(number)
            self._target.reserve_arrived(self, end - start)
            self._reserved.add(number)

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write bytes of a piece.

        Raises:
            FileQuotaExceeded: the disk of this node is full or failing.
        """
        try:
            while data:
                written = os.pwrite(self._fd, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise disk_error(error) from None

    def end_piece(self, number: int) -> None:
        """Mark a piece as arrived.

        Raises:
            FileQuotaExceeded: the disk of this node is full or failing.
        """
        self.write_at(self.size_bytes + number, memoryview(_ARRIVED))
        self._arrived.add(number)

    @property
    def arrived_count(self) -> int:
        """Number of pieces that have arrived."""
        return len(self._arrived)

    def has_piece(self, number: int) -> bool:
        """Return True if a piece has arrived."""
        return number in self._arrived

    def hash_next(self) -> bool:
        """Hash the next piece, in the order of the blob; False if it is missing.

        Raises:
            FileQuotaExceeded: the disk of this node is failing.
        """
        if self._hashed_count not in self._arrived:
            return False
        offset, end = self.piece_range(self._hashed_count)
        buffer = memoryview(bytearray(HASHED_AT_ONCE_BYTES))
        while offset < end:
            try:
                count = os.preadv(self._fd, [buffer[: end - offset]], offset)
            except OSError as error:
                raise disk_error(error) from None
            if not count:
                raise ContentMismatch("the file was changed while it arrived")
            self._digest.update(buffer[:count])
            offset += count
        self._hashed_count += 1
        return True

    def open_piece(self, number: int) -> OpenPiece:
        """Return a piece that has arrived, for reading."""
        start, end = self.piece_range(number)
        return OpenPiece(os.dup(self._fd), number, start, end, self.size_bytes)

    def finish(self) -> None:
        """Store the blob; all pieces have been hashed.

        Raises:
            ContentMismatch: it has another digest.
        """
        assert self._hashed_count == self.piece_count
        found = self._digest.hexdigest()
        if found != self.sha256:
            raise ContentMismatch(
                f"received {self.size_bytes} bytes with the SHA-256 {found}"
            )
        os.ftruncate(self._fd, self.size_bytes)
        os.fchmod(self._fd, STORED_MODE)
        self._target.finish_upload(self, is_whole=True)
        self._close_file()

    def close(self, *, is_wrong: bool) -> None:
        """Keep what has arrived, unless it is wrong or the blob is finished."""
        if self._fd < 0:
            return
        if is_wrong:
            self._target.finish_upload(self, is_whole=False)
        else:
            hashed_bytes = self._bytes_of(range(self._hashed_count))
            self._target.pause_upload(
                self,
                self._bytes_of(self._arrived),
                HashedStart(hashed_bytes, self._digest),
            )
        self._close_file()

    def _close_file(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _bytes_of(self, numbers: Iterable[int]) -> int:
        ranges = map(self.piece_range, numbers)
        return sum(end - start for start, end in ranges)


class PartialFile:
    """The part of a file that has arrived so far."""

    __slots__ = ("arrived_bytes", "hashed", "upload", "written_s")

    def __init__(self, arrived_bytes: int, written_s: float) -> None:
        self.arrived_bytes = arrived_bytes
        self.written_s = written_s  #: time of the last write
        self.hashed: HashedStart | None = None  #: None: of an earlier agent
        #: What adds to it: the request of a client, or a fetch from other nodes.
        self.upload: BlobUpload | PieceUpload | None = None


class PartialFiles:
    """The partial files in the folder of a store, whose lock guards all of this.

    Args:
        folder: The folder.
        now_s: Returns the time, as file times have it.
    """

    def __init__(self, folder: Path, now_s: Callable[[], float]) -> None:
        self._folder, self._now_s = folder, now_s
        self._files: dict[str, PartialFile] = {}  #: by name
        self.arrived_bytes = 0  #: of these files, and of uploads without one

    def load(self, name: str) -> None:
        """Add a file that an earlier agent has left.

        Raises:
            OSError: it cannot be read.
        """
        path = self._folder / name
        status = path.lstat()
        arrived_bytes = status.st_size
        if path.suffix == PIECES_SUFFIX:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                arrived_bytes = arrived_piece_bytes(fd)
            finally:
                os.close(fd)
        self._files[name] = PartialFile(arrived_bytes, status.st_mtime)
        self.arrived_bytes += arrived_bytes

    def find(self, name: str) -> PartialFile | None:
        """Return a file; None if there is none with this name."""
        return self._files.get(name)

    def find_or_add(self, name: str) -> PartialFile:
        """Return a file; a new one is empty."""
        return self._files.setdefault(name, PartialFile(0, self._now_s()))

    def set_arrived(self, partial: PartialFile, size_bytes: int) -> None:
        """Set how much of a file has arrived."""
        self.arrived_bytes += size_bytes - partial.arrived_bytes
        partial.arrived_bytes, partial.written_s = size_bytes, self._now_s()

    def pause(
        self,
        upload: BlobUpload | PieceUpload,
        arrived_bytes: int,
        hashed: HashedStart,
    ) -> None:
        """Keep what has arrived of an upload, if anything has."""
        partial = self._files[upload.partial.name]
        self.set_arrived(partial, arrived_bytes)
        partial.upload, partial.hashed = None, hashed
        if not arrived_bytes:
            self.delete(upload.partial.name)

    def remove_upload(self, upload: BlobUpload | PieceUpload) -> None:
        """Remove an upload that is whole or wrong, but not its file."""
        self.arrived_bytes -= upload.arrived_bytes
        if upload.is_resumable:
            del self._files[upload.partial.name]

    def delete(self, name: str) -> None:
        """Delete a file."""
        self.arrived_bytes -= self._files.pop(name).arrived_bytes
        (self._folder / name).unlink(missing_ok=True)

    def delete_paused(self, sha256: str) -> None:
        """Delete what arrived of a content that has arrived as a whole by now."""
        for name in (f"{sha256}{UPLOAD_SUFFIX}", f"{sha256}{PIECES_SUFFIX}"):
            partial = self._files.get(name)
            if partial is not None and partial.upload is None:
                self.delete(name)

    def delete_older(self, before_s: float) -> None:
        """Delete the files that nothing has added to since a time."""
        for name, partial in list(self._files.items()):
            if partial.upload is None and partial.written_s < before_s:
                self.delete(name)

    def left_pieces(self) -> dict[str, int]:
        """Return the files that ended fetches have left, with their arrived bytes.

        The oldest is first.
        """
        left = sorted(
            (partial.written_s, name, partial.arrived_bytes)
            for name, partial in self._files.items()
            if partial.upload is None and name.endswith(PIECES_SUFFIX)
        )
        return {name: arrived_bytes for _, name, arrived_bytes in left}


def read_arrived_pieces(fd: int, blob_bytes: int) -> set[int]:
    """Return the pieces that an unfinished file of a blob with this size has.

    Raises:
        OSError: it cannot be read.
    """
    count = piece_count(blob_bytes)
    if os.fstat(fd).st_size != blob_bytes + count:
        return set()
    marks = os.pread(fd, count, blob_bytes)
    return {number for number, mark in enumerate(marks) if mark}


def arrived_piece_bytes(fd: int) -> int:
    """Return how much has arrived in an unfinished file.

    Raises:
        OSError: it cannot be read.
    """
    file_bytes = os.fstat(fd).st_size
    blob_bytes = max(0, file_bytes - _count_pieces(file_bytes, mark_bytes=1))
    ranges = (piece_range(n, blob_bytes) for n in read_arrived_pieces(fd, blob_bytes))
    return sum(end - start for start, end in ranges)


def piece_count(blob_bytes: int) -> int:
    """Return the number of pieces of a blob; an empty one has an empty piece."""
    return _count_pieces(blob_bytes)


def piece_bytes(blob_bytes: int) -> int:
    """Return the size of each piece of a blob but the last.

    Each piece is a request, which takes as much processor time as a few MiB, so a large
    blob has larger ones. Many are left even so, to come from several nodes.
    """
    return min(max(PIECE_BYTES, -(-blob_bytes // EQUAL_PIECES)), PIECE_BYTES_MAX)


def piece_range(number: int, blob_bytes: int) -> tuple[int, int]:
    """Return where a piece of a blob begins and ends."""
    size_bytes = piece_bytes(blob_bytes)
    start = number * size_bytes
    return start, min(start + size_bytes, blob_bytes)


def _count_pieces(size_bytes: int, *, mark_bytes: int = 0) -> int:
    """Return the number of pieces of a blob, or of a file with marks for each."""
    of_smallest = -(-size_bytes // (PIECE_BYTES + mark_bytes))
    of_largest = -(-size_bytes // (PIECE_BYTES_MAX + mark_bytes))
    return max(1, min(of_smallest, EQUAL_PIECES), of_largest)


def choose_piece(
    wanted: Sequence[int], have: Collection[int], sent: dict[int, int]
) -> int | None:
    """Return the wanted piece that was sent least often, of those that are here.

    Many nodes that fetch one blob get different pieces in this way, and then fetch from
    each other.
    """
    return min(
        (number for number in wanted if number in have),
        key=lambda number: sent.get(number, 0),
        default=None,
    )


def _cut(fd: int, size_bytes: int) -> None:
    """Drop what a file has after its first bytes; raise OSError.

    A shorter file is left alone. When a file, even an empty one, is cut to nothing,
    ext4 assumes that new content replaces the old. It then starts to write all data to
    the disk when the file is closed, which takes half a second a GB.
    """
    if os.fstat(fd).st_size > size_bytes:
        os.ftruncate(fd, size_bytes)


def disk_error(error: OSError) -> DiskFull:
    """Return the error of this node's disk."""
    return DiskFull(
        f"this node cannot write to its disk: {error.strerror or error}",
        hint="free disk space on this node",
    )
