"""Removes what tasks left, whatever it is: deep, large, locked, or full of links."""

from __future__ import annotations

import errno
import os
import posixpath
import secrets
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from octaskly.runner.files.workdir import path_components

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_ONLY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(folder: Path, may_continue: Callable[[], bool]) -> bool:
    """Remove a folder with all that is in it; links are removed, never followed.

    Every folder below is first moved up to the top. So it takes neither recursion nor
    more than two descriptors, however deep the tree is.

    Args:
        folder: What to remove.
        may_continue: Asked before each file, so that an agent that stops need not wait.

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
        ahead, moved = _remove_files(top_fd, may_continue), 0
        while ahead and may_continue():
            name = ahead.pop()
            with suppress(OSError):
                fd = _open(name, top_fd)
                try:
                    for below in _remove_files(fd, may_continue):
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
        place_fd = os.open(name, _PATH_ONLY, dir_fd=dir_fd)
        try:
            os.chmod(f"/proc/self/fd/{place_fd}", 0o700)  # noqa: PTH101 - a descriptor
        finally:
            os.close(place_fd)
        return os.open(name, _FOLDER, dir_fd=dir_fd)
    with suppress(OSError):
        os.fchmod(fd, 0o700)
    return fd


def _remove_files(fd: int, go_on: Callable[[], bool]) -> list[str]:
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


_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def make_scratch(base: Path, workdir: Path, inputs: Iterable[str], cwd: str) -> Path:
    """Make a folder below `base` with links to inputs, and with the folder `cwd`.

    Raises:
        OSError: something cannot be made; then nothing is left.
    """
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="", dir=base))
    try:
        given = set(inputs)
        own = posixpath.normpath(cwd)
        if path_components(own) and own not in given and not _is_inside(own, given):
            (folder / own).mkdir(parents=True)
        for path in given:
            if _is_inside(path, given):
                continue  # It is there by way of a folder.
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(workdir / path)
    except OSError:
        remove_tree(folder, lambda: True)
        raise
    return folder


def link_or_copy(source: Path, folder: Path, path: str) -> None:
    """Have a file in a fresh folder by another name, or a copy of it.

    Raises:
        OSError: it cannot be had there.
    """
    target = _target(folder, path)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
            raise
        shutil.copyfile(source, target)


def create_file(folder: Path, path: str) -> int:
    """Make a file in a fresh folder; return a descriptor to write it with.

    Raises:
        OSError: it cannot be made.
    """
    return os.open(_target(folder, path), _CREATE, 0o400)


def _target(folder: Path, path: str) -> Path:
    if path_components(path) is None:
        raise OSError(errno.EINVAL, "not a relative, normalised path", path)
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _is_inside(path: str, others: Container[str]) -> bool:
    """Whether a path lies in one of the others, which is a folder then."""
    return any(str(parent) in others for parent in PurePosixPath(path).parents)
