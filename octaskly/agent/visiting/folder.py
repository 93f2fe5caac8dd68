"""The folder of a visitor, which is erased at its end, or by the next visitor.

A visitor that is killed cannot erase its folder. Each folder has a lock file, which its
visitor holds for as long as it lives. If the lock is free, the visitor is dead.

A temporary folder is open to other users. A folder there counts only if it belongs to
this user alone, and what is in it is reached by its descriptor, so that no link that
another user puts in its place leads elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

from octaskly.errors import ConfigError

PREFIX: Final = "octaskly-visitor-"
LOCK_NAME: Final = "visitor.lock"
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LOCK: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class VisitorFolder:
    """The folder of a visitor that lives.

    Args:
        asked: The folder that was asked for; None for a new one below TMPDIR.

    Raises:
        ConfigError: There is something in the folder that no visitor left.
    """

    def __init__(self, asked: Path | None) -> None:
        self._is_new = asked is None or not asked.exists()
        if asked is None:
            erase_abandoned()
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        else:
            self.path = asked
            asked.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self.path, _FOLDER)
        _erase_if_abandoned(self._fd)
        with os.scandir(self._fd) as entries:
            is_empty = not any(entries)
        if not is_empty:
            os.close(self._fd)
            raise ConfigError(
                f"the folder {asked} is not empty, and a visitor erases its folder",
                hint="octaskly agent --visitor    without --state-dir makes a new one",
            )
        self._lock = _create_lock(self._fd)

    def erase(self) -> None:
        """Delete all that the visitor wrote; an empty folder that was there stays."""
        with contextlib.suppress(OSError):
            _erase_content(self._fd)
            if self._is_new:
                self.path.rmdir()
        os.close(self._lock)
        os.close(self._fd)


def erase_abandoned() -> None:
    """Erase the folders of this user's visitors that were killed on this machine."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            folder = os.open(path, _FOLDER | os.O_NOFOLLOW)
            try:
                if _erase_if_abandoned(folder):
                    path.rmdir()
            finally:
                os.close(folder)


def _create_lock(folder: int) -> int:
    """Create the lock file of a folder, and return it open, locked from the start."""
    new = f"{LOCK_NAME}.new"
    lock = os.open(new, _LOCK | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, BOOT_ID.read_bytes())
    os.rename(new, LOCK_NAME, src_dir_fd=folder, dst_dir_fd=folder)
    return lock


def _erase_if_abandoned(folder: int) -> bool:
    """Erase what a killed visitor left in its folder; return True if it did."""
    try:
        lock = os.open(LOCK_NAME, _LOCK, dir_fd=folder)
    except OSError:
        return False
    try:
        is_own = _is_private(os.fstat(folder)) and _is_private(os.fstat(lock))
        # Another machine may share the file system, but not its locks.
        if not is_own or os.read(lock, 99) != BOOT_ID.read_bytes():
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _erase_content(folder)
    except OSError:  # It lives, or what it left cannot be deleted.
        return False
    finally:
        os.close(lock)
    return True


def _is_private(found: os.stat_result) -> bool:
    """Return True if only this user can reach a file or folder."""
    others = stat.S_IRWXG | stat.S_IRWXO
    return found.st_uid == os.geteuid() and not found.st_mode & others


def _erase_content(folder: int) -> None:
    """Delete all in a folder, its lock file last."""
    for name in sorted(os.listdir(folder), key=LOCK_NAME.__eq__):
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
