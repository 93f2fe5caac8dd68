"""Removes what tasks left, whatever it is: deep, large, locked, or full of links."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(folder: Path, go_on: Callable[[], bool]) -> bool:
    """Remove a folder with all that is in it; links are removed, never followed.

    Every folder below is first moved up to the top. So it takes neither recursion nor
    more than two descriptors, however deep the tree is.

    Args:
        folder: What to remove.
        go_on: Asked before each file, so that an agent that stops need not wait.

    Returns:
        Whether it is gone.
    """
    tag = f".{secrets.token_hex(8)}-"  # No task can know which names will be used.
    try:
        top_fd = _open(os.fsdecode(folder), None)
    except OSError:
        with suppress(OSError):
            folder.unlink()  # A link or a file in its place is not what was made.
        return not os.path.lexists(folder)
    try:
        ahead, moved = _clear(top_fd, go_on), 0
        while ahead and go_on():
            name = ahead.pop()
            with suppress(OSError):
                fd = _open(name, top_fd)
                try:
                    for below in _clear(fd, go_on):
                        moved += 1
                        _move(below, fd, f"{tag}{moved}", top_fd)
                        ahead.append(f"{tag}{moved}")
                finally:
                    os.close(fd)
                os.rmdir(name, dir_fd=top_fd)
    finally:
        os.close(top_fd)
    with suppress(OSError):
        folder.rmdir()
    return not os.path.lexists(folder)


def _move(name: str, dir_fd: int, new: str, top_fd: int) -> None:
    """Move a folder up; raise OSError."""
    try:
        os.rename(name, new, src_dir_fd=dir_fd, dst_dir_fd=top_fd)
    except PermissionError:
        # Who is not root must be able to write in what gets another parent.
        os.close(_open(name, dir_fd))
        os.rename(name, new, src_dir_fd=dir_fd, dst_dir_fd=top_fd)


def _open(name: str, dir_fd: int | None) -> int:
    """Open a folder so that everything in it can be removed; raise OSError."""
    try:
        fd = os.open(name, _FOLDER, dir_fd=dir_fd)
    except PermissionError:
        place_fd = os.open(name, _PLACE, dir_fd=dir_fd)
        try:
            os.chmod(f"/proc/self/fd/{place_fd}", 0o700)  # noqa: PTH101 - a descriptor
        finally:
            os.close(place_fd)
        return os.open(name, _FOLDER, dir_fd=dir_fd)
    with suppress(OSError):
        os.fchmod(fd, 0o700)
    return fd


def _clear(fd: int, go_on: Callable[[], bool]) -> list[str]:
    """Remove all but the folders in a folder; return their names."""
    folders = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if not go_on():
                break
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                with suppress(OSError):
                    os.unlink(entry.name, dir_fd=fd)
    return folders
