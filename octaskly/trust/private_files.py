"""Private files: created with mode 0600 from the start, and replaced atomically."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from octaskly.config.users import user_name
from octaskly.errors import ConfigError

FILE_BYTES_MAX: Final = 64 * 1024
_GROUP_AND_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def read_private(path: Path, *, may_be_shared: bool = False) -> bytes:
    """Return the content of a file that only its owner may read.

    Args:
        path: The file; symbolic links are followed.
        may_be_shared: Accept a file that others may read.

    Raises:
        FileNotFoundError: The file does not exist.
        ConfigError: It cannot be read, is not a regular file, is too large, or others
            may read it or own it.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not block the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}",
            hint=f"make {path} a file that {user_name(os.geteuid())} may read",
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_MAX:
            raise ConfigError(
                f"{path} is not a regular file of at most {FILE_BYTES_MAX} bytes",
                hint=f"ls -l {path}",
            )
        if status.st_mode & _GROUP_AND_OTHERS and not may_be_shared:
            raise ConfigError(
                f"{path} can be read by others (mode {status.st_mode & 0o777:04o})",
                hint=f"chmod 600 {path}",
            )
        if status.st_uid not in (0, os.geteuid()) and not may_be_shared:
            raise ConfigError(
                f"{path} belongs to user {user_name(status.st_uid)}, who can read it",
                hint=f"chown {user_name(os.geteuid())} {path}",
            )
        return os.read(descriptor, FILE_BYTES_MAX)
    finally:
        os.close(descriptor)


def create_private(path: Path, data: bytes) -> bool:
    """Create a file with mode 0600 unless it exists; return True if this call did.

    Of several concurrent processes, one creates it. Readers never see a partial file.

    Raises:
        ConfigError: The folder or the file cannot be created.
    """
    folder = path.parent
    temporary = folder / f".{path.name}.{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_new(temporary, data)
        try:
            # Unlike a rename, a link never replaces a file of another process.
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _sync_folder(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot create {path}: {error.strerror}",
            hint=f"make {folder} a folder that this user may write",
        ) from error
    return True


def replace_private(path: Path, data: bytes) -> None:
    """Replace the content of a file atomically, with mode 0600.

    Raises:
        OSError: The folder cannot be written.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    _write_new(temporary, data)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise
    _sync_folder(path.parent)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold an exclusive `flock` on a folder while the block runs."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_new(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # With an umask of 0777 the owner could not read the file.
            os.fchmod(descriptor, 0o600)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
