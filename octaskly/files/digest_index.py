"""Index of the digests of files that were hashed before, kept between runs.

A file is known by its device and inode. Its digest counts as long as size, mtime and
ctime are the same. The index is only a cache: without it, or with a damaged one, all
files are hashed again.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

DIGESTS_MAX: Final = 200_000  #: some 30 MB; the oldest are dropped first
RACY_NS: Final = 2_000_000_000  #: the coarsest timestamps of a file system (FAT)
LOCK_WAIT_S: Final = 0.25
CHECKSUM_BYTES: Final = 8

_FILE: Final = struct.Struct(">QQ")
_STATE: Final = struct.Struct(">Qqq")
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS digests (
    file BLOB NOT NULL UNIQUE,  -- device and inode
    state BLOB NOT NULL,  -- size, mtime and ctime
    sha256 BLOB NOT NULL,
    checksum BLOB NOT NULL  -- of the row
)
"""


class FileState(NamedTuple):
    """Attributes of a file. If its content changes, so does at least one of them."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int  #: no program can set it, as it can set the mtime

    @classmethod
    def from_status(cls, status: os.stat_result) -> FileState:
        """Return the state of a file from its status."""
        return cls(
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )


class DigestIndex:
    """The digests in one file, for one scan at a time; several processes may share it.

    Args:
        path: The file. None, or one that cannot be used, is an empty index.
        now_ns: Clock that file times can be compared with.
        is_distrusted: Find nothing, so that all files are hashed again.
    """

    def __init__(
        self,
        path: Path | None,
        now_ns: Callable[[], int],
        *,
        is_distrusted: bool = False,
    ) -> None:
        self.now_ns = now_ns
        self._is_distrusted = is_distrusted
        self._path = path
        self._database = None if path is None else _open_database(path)
        self._added: dict[bytes, tuple[bytes, bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keep the added digests, also after an error."""
        self.close()

    def look_up(self, state: FileState) -> bytes | None:
        """Return the SHA-256 of a file that has not changed since it was added."""
        if self._database is None or self._is_distrusted:
            return None
        file, wanted = _encode(state)
        try:
            row = self._database.execute(
                "SELECT state, sha256, checksum FROM digests WHERE file = ?", (file,)
            ).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        match row:
            case (state_then, bytes(sha256), checksum) if state_then == wanted:
                return sha256 if checksum == _checksum(file, wanted, sha256) else None
            case _:
                return None

    def add(self, state: FileState, sha256: bytes, *, hashed_at_ns: int) -> None:
        """Add the digest of a file, unless a later change could leave its times as is.

        This is git's rule for racy timestamps: a file may change again within the
        resolution of its times.

        Args:
            state: That of the file before and after it was read.
            sha256: Digest of its content.
            hashed_at_ns: Time before it was read.
        """
        if state.ctime_ns < hashed_at_ns - RACY_NS:
            file, encoded = _encode(state)
            self._added[file] = encoded, sha256

    def close(self) -> None:
        """Write the added digests, if no other process prevents it."""
        if self._database is None:
            return
        rows = [
            (file, state, sha256, _checksum(file, state, sha256))
            for file, (state, sha256) in self._added.items()
        ]
        try:
            if rows:
                _write_rows(self._database, rows)
        except sqlite3.Error as error:
            self._give_up(error)
        else:
            self._database.close()
            self._database = None

    def _give_up(self, error: sqlite3.Error) -> None:
        """Use the file no longer."""
        assert self._database is not None
        assert self._path is not None
        self._database.close()
        self._database = None
        _remove_if_damaged(self._path, error)


def _encode(state: FileState) -> tuple[bytes, bytes]:
    return _FILE.pack(*state[:2]), _STATE.pack(*state[2:])


def _checksum(file: bytes, state: bytes, sha256: bytes) -> bytes:
    """Return the checksum of a row, since SQLite has none for its pages."""
    return hashlib.sha256(file + state + sha256).digest()[:CHECKSUM_BYTES]


def _open_database(path: Path) -> sqlite3.Connection | None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)
    except (OSError, sqlite3.Error):
        return None
    try:
        # The loss of this file is harmless, so nothing waits for the disk.
        database.execute("PRAGMA synchronous=OFF")
        database.execute(_TABLE)
    except sqlite3.Error as error:
        database.close()
        _remove_if_damaged(path, error)
        return None
    return database


def _remove_if_damaged(path: Path, error: sqlite3.Error) -> None:
    """Remove the file unless it may be sound, as one that is locked."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        with suppress(OSError):
            path.unlink()


def _write_rows(
    database: sqlite3.Connection, rows: list[tuple[bytes, bytes, bytes, bytes]]
) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", rows)
    # A replaced row gets a new row number, so the lowest numbers are the oldest rows.
    database.execute(
        "DELETE FROM digests WHERE rowid <= (SELECT max(rowid) FROM digests) - ?",
        (DIGESTS_MAX,),
    )
    database.execute("COMMIT")
