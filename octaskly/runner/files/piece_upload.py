"""Blobs that are arriving in pieces from other nodes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, Protocol

from octaskly.files.copying import COPY_BYTES
from octaskly.ports import ContentMismatch, DiskFull, OpenPiece

PIECE_BYTES: Final = 4 << 20


class UploadTarget(Protocol):
    """The store that receives a blob."""

    def reserve_arrived(self, upload: PieceUpload, size_bytes: int) -> None:
        """See `BlobStore.reserve_arrived`."""

    def finish_upload(self, upload: PieceUpload, *, is_whole: bool) -> None:
        """See `BlobStore.finish_upload`."""


class PieceUpload:
    """A blob that arrives in pieces, in any order and from several threads.

    Pieces are hashed in the order of the blob. Those that have arrived can be sent on.

    Args:
        target: The store.
        sha256: Digest of the whole blob.
        size_bytes: Size of the whole blob.
        partial: The file with what has arrived.
        fd: The same file, open.
        keep_s: How long to keep the blob once it is whole.
    """

    is_resumable = is_superseded = False  #: in contrast to the upload of a client

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
        self.arrived_bytes = 0  #: reserved in the store, which counts them
        self._target = target
        self._fd = fd
        self._digest = hashlib.sha256()
        self._hashed_count = 0
        self._reserved: set[int] = set()
        self._arrived: set[int] = set()

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
        """Mark a piece as arrived."""
        self._arrived.add(number)

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
        while offset < end:
            try:
                data = os.pread(self._fd, min(end - offset, COPY_BYTES), offset)
            except OSError as error:
                raise disk_error(error) from None
            if not data:
                raise ContentMismatch("the file was changed while it arrived")
            self._digest.update(data)
            offset += len(data)
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
        # Only the agent may enter the folder. A task that reads the file as stdin may
        # open it again as /dev/stdin.
        os.fchmod(self._fd, 0o444)
        self._close(is_whole=True)

    def abort(self) -> None:
        """Delete what has arrived, unless the blob is finished."""
        if self._fd >= 0:
            self._close(is_whole=False)

    def _close(self, *, is_whole: bool) -> None:
        self._target.finish_upload(self, is_whole=is_whole)
        os.close(self._fd)
        self._fd = -1


def piece_count(blob_bytes: int) -> int:
    """Return the number of pieces of a blob; an empty one has an empty piece."""
    return max(1, -(-blob_bytes // PIECE_BYTES))


def piece_range(number: int, blob_bytes: int) -> tuple[int, int]:
    """Return where a piece of a blob begins and ends."""
    start = number * PIECE_BYTES
    return start, min(start + PIECE_BYTES, blob_bytes)


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


def disk_error(error: OSError) -> DiskFull:
    """Return the error of this node's disk."""
    return DiskFull(
        f"this node cannot write to its disk: {error.strerror or error}",
        hint="free disk space on this node",
    )
