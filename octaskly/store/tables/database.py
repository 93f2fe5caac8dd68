"""The database file: lock, checks, connections, free space, and moving it aside.

An existing file is checked completely before the first byte is written to it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from msgspec import DecodeError

from octaskly.errors import (
    RemoteProtocolError,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreUnusable,
)
from octaskly.store.tables.schema import (
    APPLICATION_ID,
    MIGRATIONS,
    OLDEST_VERSION,
    VERSION,
)

SQLITE_MIN: Final = (3, 38)  #: for `->>`; strict tables need 3.37

SCAN_BYTES_MAX: Final = 200 << 20
"""A larger file has only its schema checked at start; others have all pages checked."""

WAL_PAGES: Final = 4096  #: size of the write-ahead log at a checkpoint: 16 MiB
_WAL_BYTES: Final = WAL_PAGES * (4096 + 24) + 32
_RESERVE_BYTES: Final = 1 << 20
_RESERVE_SHARE: Final = 64  #: at most 1/64 of the free space

VACUUM_PAGES: Final = 64  #: pages freed in one commit
_SPARE_PAGES: Final = 1024  #: free pages that stay in the file for reuse,
_SPARE_PARTS: Final = 16  #: or 1/16 of all pages, whichever is more
_SIZE_MAX: Final = 8_000_000_000  #: default size limit of the log,
_SIZE_DISK_PARTS: Final = 10  #: or 1/10 of the disk, whichever is less

_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_HEADER_VERSIONS: Final = struct.Struct(">i4xi")  #: `user_version`, `application_id`
_VERSIONS_OFFSET: Final = 60
_RESET: Final = "`octaskly db reset` moves it aside and starts afresh"
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FULL_BYTES: Final = 1 << 20
_BUSY_S: Final = 1.0  #: how long to wait for another program's lock

# Python looks up an adapter for each value of these types, and a missing one costs an
# exception. That took a fifth of the writer's time. These adapters return their
# argument without a call of a Python function.
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(bool, int)
_NONE: dict[None, int] = {}
sqlite3.register_adapter(type(None), _NONE.get)


READ_ERRORS: Final = (sqlite3.Error, DecodeError, RemoteProtocolError)
"""Errors of SQLite, and of values that cannot be decoded."""


def build_store_error(path: Path, error: Exception) -> StoreError:
    """Return the `StoreError` for one of `READ_ERRORS`, with a hint.

    SQLite has no checksums, so a damaged value may be the first sign of a bad disk.
    """
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _DAMAGE or not isinstance(error, sqlite3.Error):
        return StoreCorrupt(f"{path} is damaged: {error}", hint=_RESET)
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(path)):
        return StoreFull(f"{path}: the disk is full", hint="free some space")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnusable(
            f"{path} is locked by another program", hint="close what has it open"
        )
    if code == sqlite3.SQLITE_READONLY:
        return StoreUnusable(
            f"{path} cannot be written: {error}", hint="check owner and permissions"
        )
    return StoreError(f"{path}: {error}")


class DatabaseLock:
    """The exclusive lock of a process on the database; ends with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        self._fd = self._acquire(path)

    def release(self) -> None:
        """Release the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _acquire(self, path: Path) -> int:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError:
            holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise StoreUnusable(
                f"{path} is in use by process {holder or 'unknown'}",
                hint="stop that agent, or choose another --name or --state-dir",
            ) from None
        except OSError as error:
            os.close(fd)
            raise _unusable(self.path, error) from error
        return fd


def open_writer(path: Path) -> sqlite3.Connection:
    """Check or create the database and return the only writing connection.

    The caller must hold the `DatabaseLock`.

    Raises:
        StoreCorrupt: The file is damaged, belongs to another program, or is newer.
            Nothing was written.
        StoreUnusable: The file cannot be opened or written, or SQLite is too old.
    """
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        needed = ".".join(map(str, SQLITE_MIN))
        raise StoreUnusable(
            f"this Python has SQLite {sqlite3.sqlite_version}; {needed} is needed",
            hint="`uv tool install --managed-python` installs a Python that has it",
        )
    try:
        if path.exists() and path.stat().st_size:
            _check(path)
        else:
            _create(path)
    except OSError as error:
        raise _unusable(path, error) from error
    return _connect(path, "rw", _prepare_writer)


class DatabaseFile:
    """The open database file, which other programs can delete or replace."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)  # Each commit uses it twice; a `Path` is slower.
        self._inode = _inode(self._path)

    def require_present(self) -> None:
        """Raise OSError unless the opened file is still at its path."""
        if _inode(self._path) != self._inode:
            raise FileNotFoundError(0, "another file has taken its place")

    def describe_loss(self, error: OSError) -> str:
        """Return the message for an OSError of `require_present`."""
        return f"{self._path} is gone: {error.strerror}"


class WalPreallocation:
    """Extends the write-ahead log to its full size in small steps.

    A commit then overwrites bytes of the file. A flush that lengthens a file takes
    twice as long. SQLite ignores the zeros after the last commit.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(f"{path}-wal")
        self._is_done = False

    def extend_wal(self) -> bool:
        """Write one more piece. Return True if more may be left."""
        if not self._is_done:
            try:
                self._is_done = self._write_zeros()
            except OSError:
                self._is_done = True  # Preallocation only saves time.
        return not self._is_done

    def _write_zeros(self) -> bool:
        free_bytes = shutil.disk_usage(self._path.parent).free
        if free_bytes < _WAL_BYTES * _RESERVE_SHARE:
            return True
        # SQLite holds no locks on this file, so closing a descriptor loses none.
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            size = os.fstat(descriptor).st_size
            missing = min(_RESERVE_BYTES, _WAL_BYTES - size)
            if missing > 0:
                os.pwrite(descriptor, bytes(missing), size)
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        return missing < _RESERVE_BYTES


def default_size_max(path: Path) -> int:
    """Return the default size limit of the log in bytes."""
    return min(_SIZE_MAX, shutil.disk_usage(path.parent).total // _SIZE_DISK_PARTS)


def free_bytes(folder: str) -> int:
    """Return the free space of a folder's disk, or 0 if it cannot be read."""
    try:
        found = os.statvfs(folder)  # Each submission calls this, so it must be cheap.
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def disk_bytes(path: Path) -> int:
    """Return the size of the database with its `-wal` and `-shm` files."""
    total = 0
    for suffix in ("", "-wal", "-shm"):
        with suppress(OSError):
            total += path.with_name(path.name + suffix).stat().st_size
    return total


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of the pages in use."""
    pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
    return pages * _pragma(connection, "page_size")


def has_spare_pages(connection: sqlite3.Connection) -> bool:
    """Return True if so many pages are free that the file should shrink.

    A file from a version without `auto_vacuum` never shrinks: its pages are reused.
    """
    free, pages = (_pragma(connection, n) for n in ("freelist_count", "page_count"))
    is_much = free > max(_SPARE_PAGES, pages // _SPARE_PARTS)
    return is_much and _pragma(connection, "auto_vacuum") != 0


def vacuum_some_pages(connection: sqlite3.Connection) -> None:
    """Free up to `VACUUM_PAGES` pages of the file, in a transaction of the caller."""
    for _ in range(VACUUM_PAGES):  # Python runs only one step of this statement.
        connection.execute("PRAGMA incremental_vacuum(1)")


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a read-only connection. Any thread may use it, one at a time."""
    return _connect(path, "ro", _prepare_reader)


def move_aside(path: Path, suffix: str) -> tuple[Path, ...]:
    """Rename the database and its write-ahead log to `<name>.<suffix>`.

    Returns:
        The new names.

    Raises:
        StoreUnusable: An agent uses the database, or it cannot be renamed.
    """
    lock = DatabaseLock(path)
    moved = []
    try:
        for part in ("-wal", "-shm", ""):  # SQLite pairs the files by name.
            source = path.with_name(path.name + part)
            target = path.with_name(f"{path.name}.{suffix}{part}")
            if target.exists():
                raise StoreUnusable(f"{target} exists already")
            if source.exists():
                source.rename(target)
                moved.append(target)
    except OSError as error:
        raise StoreUnusable(f"{path} cannot be moved: {error.strerror}") from error
    finally:
        lock.release()
    return tuple(moved)


def _inode(path: str) -> tuple[int, int]:
    found = os.stat(path)  # noqa: PTH116  the cheap call, made at each commit
    return found.st_dev, found.st_ino


def _unusable(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{path}: the disk is full", hint="free some space")
    return StoreUnusable(
        f"{path} cannot be used: {error.strerror}",
        hint="check owner and permissions of the state folder",
    )


def _is_full(path: Path) -> bool:
    """Return True if the disk is full, which explains an I/O error."""
    try:
        return shutil.disk_usage(path.parent).free < _FULL_BYTES
    except OSError:
        return False


def _connect(
    path: Path, mode: str, prepare: Callable[[sqlite3.Connection, Path], None]
) -> sqlite3.Connection:
    """Open and prepare a connection; on failure, close it and raise StoreError."""
    try:
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode={mode}",
            uri=True,
            isolation_level=None,  # Only our code opens transactions.
            check_same_thread=False,
            timeout=_BUSY_S,
            cached_statements=256,
        )
    except sqlite3.Error as error:
        raise build_store_error(path, error) from error
    try:
        prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise build_store_error(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    """Create an empty file that only its owner can read."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # Without this, a power cut could lose the file.
    finally:
        os.close(folder)


def check_header(path: Path) -> None:
    """Raise StoreCorrupt if the first bytes of a file are not those of a log.

    Creates no files beside it, as SQLite does. Source: its file format, section 1.3.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise StoreCorrupt(f"{path} is not a database", hint=_RESET)
    _check_version(path, *_HEADER_VERSIONS.unpack_from(header, _VERSIONS_OFFSET))


def _check(path: Path) -> None:
    """Raise StoreCorrupt for a damaged, foreign, newer or too old file."""
    check_header(path)
    _connect(path, "ro", _check_schema).close()


def _check_version(path: Path, version: int, application_id: int) -> None:
    if version > VERSION:
        raise StoreCorrupt(
            f"{path} has schema {version}, this program knows up to {VERSION}",
            hint=f"install the newer Octaskly again; {_RESET}",
        )
    if 0 < version < OLDEST_VERSION:
        raise StoreCorrupt(
            f"{path} has schema {version}, which no release has written",
            hint=_RESET,
        )
    if application_id not in (0, APPLICATION_ID):
        raise StoreCorrupt(f"{path} belongs to another program", hint=_RESET)


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    version = _pragma(connection, "user_version")
    _check_version(path, version, _pragma(connection, "application_id"))
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise StoreCorrupt(f"{path} belongs to another program", hint=_RESET)
    if path.stat().st_size <= SCAN_BYTES_MAX:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StoreCorrupt(f"{path} is damaged: {verdict}", hint=_RESET)


def _prepare_writer(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # Works only for a new file.
    if connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
        raise StoreUnusable(
            f"{path}: this file system cannot keep a write-ahead log",
            hint="put the state folder on a local disk",
        )
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA cache_size=-16384")
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit={64 << 20}")
    connection.execute("BEGIN IMMEDIATE")
    version = _pragma(connection, "user_version")
    done = max(0, version - OLDEST_VERSION + 1)
    for script in MIGRATIONS[done:]:
        for statement in script.split(";\n"):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version={VERSION}")
    if version == 0:
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute("COMMIT")


def _prepare_reader(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("PRAGMA query_only=1")
    connection.execute("PRAGMA cache_size=-4096")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
