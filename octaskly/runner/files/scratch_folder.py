"""Creating and filling scratch folders, and removing them with any content."""

from __future__ import annotations

import errno
import os
import posixpath
import secrets
import tempfile
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Final

from octaskly.files.output_patterns import has_wildcards
from octaskly.runner.files.workdir import path_components

PLAIN_MODE: Final = 0o644
EXECUTABLE_MODE: Final = 0o755

FinishedFile = tuple[str, int, bool]
"""Path, modification time in nanoseconds, and True for an executable file."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_ONLY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(folder: Path, may_continue: Callable[[], bool]) -> bool:
    """Remove a folder with its contents; links are removed, never followed.

    Each subfolder is first moved up into `folder`. So this needs neither recursion nor
    more than two descriptors, however deep the tree is.

    Args:
        folder: The folder to remove.
        may_continue: Called before each file; if it returns False, removal stops.

    Returns:
        True if the folder is gone.
    """
    tag = f".{secrets.token_hex(8)}-"  # Random, so that no task can guess the names.
    try:
        top_fd = _open(os.fsdecode(folder), None)
    except OSError:
        with suppress(OSError):
            folder.unlink()  # A task replaced the folder by a link or a file.
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
    """Move a folder into the top folder; raise OSError."""
    try:
        os.rename(name, new, src_dir_fd=dir_fd, dst_dir_fd=top_fd)
    except PermissionError:
        # Without root, moving a folder requires write permission in that folder.
        os.close(_open(name, dir_fd))
        os.rename(name, new, src_dir_fd=dir_fd, dst_dir_fd=top_fd)


def _open(name: str, dir_fd: int | None) -> int:
    """Open a folder with the permissions to remove its contents; raise OSError."""
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


def _remove_files(fd: int, may_continue: Callable[[], bool]) -> list[str]:
    """Remove all entries of a folder except folders; return the folders' names."""
    folders = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if not may_continue():
                break
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                with suppress(OSError):
                    os.unlink(entry.name, dir_fd=fd)
    return folders


_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def make_scratch(base: Path, workdir: Path, inputs: Iterable[str], cwd: str) -> Path:
    """Create a folder in `base` with links to the inputs, and the folder `cwd` in it.

    Raises:
        OSError: something could not be created; then nothing is left.
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
                continue  # The link to its parent folder includes it.
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(workdir / path)
    except OSError:
        remove_tree(folder, lambda: True)
        raise
    return folder


def create_file(folder: Path, path: str) -> int:
    """Create a file in a scratch folder; return a descriptor to write it.

    Raises:
        OSError: it could not be created.
    """
    return os.open(_target(folder, path), _CREATE, 0o600)


def finish_files(folder: Path, files: Iterable[FinishedFile]) -> None:
    """Set the modes and times of files that were created and written.

    Raises:
        OSError: a file is gone, or belongs to somebody else.
    """
    for path, mtime_ns, is_executable in files:
        target = folder / path
        target.chmod(EXECUTABLE_MODE if is_executable else PLAIN_MODE)
        os.utime(target, ns=(mtime_ns, mtime_ns))


def make_links(folder: Path, links: Iterable[tuple[str, str]]) -> None:
    """Create symbolic links, each with its target, in a scratch folder.

    Raises:
        OSError: one could not be created.
    """
    for path, target in links:
        _target(folder, path).symlink_to(target)


def make_folders(folder: Path, paths: Iterable[str]) -> None:
    """Create folders in a scratch folder.

    Raises:
        OSError: one could not be created.
    """
    for path in paths:
        _target(folder, path).mkdir(exist_ok=True)


def make_output_folders(folder: Path, outputs: Iterable[str]) -> None:
    """Create the folders above declared outputs, up to the first wildcard.

    A file or link in the way is left, since a link may lead out of the folder.

    Raises:
        OSError: one could not be created.
    """
    for path in outputs:
        parts = path_components(path) or []
        place = folder
        for part in takewhile(lambda part: not has_wildcards(part), parts[:-1]):
            place /= part
            try:
                place.mkdir()
            except FileExistsError:
                if place.is_symlink() or not place.is_dir():
                    break


def _target(folder: Path, path: str) -> Path:
    if path_components(path) is None:
        raise OSError(errno.EINVAL, "not a relative, normalised path", path)
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _is_inside(path: str, others: Container[str]) -> bool:
    """Return True if one of the other paths is a parent of this path."""
    return any(str(parent) in others for parent in PurePosixPath(path).parents)
