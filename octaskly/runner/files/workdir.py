"""Access to files of tasks in the worker directory.

Tasks may change that directory at any time, also while the agent reads it. So a path is
resolved one component at a time from an open folder, and each component is checked: a
link cannot lead out of the folder, and a pipe or device is never opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from octaskly.runner.launch_protocol import RESOURCE_ERRORS

PATH_CHARS_MAX = 4096
LINKS_MAX = 40  #: the kernel's own limit
LISTED_MAX = 200_000  #: entries of one folder, because a list of them is in memory
TIME_NS_MAX = (1 << 63) - 1

_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def path_components(path: str) -> list[str] | None:
    """Return the parts of a relative, normalised path, or None if it is not one."""
    if not path or len(path) > PATH_CHARS_MAX or "\0" in path:
        return None
    parts = path.split("/")
    return None if any(part in ("", ".", "..") for part in parts) else parts


def open_beneath(root_fd: int, path: str, *, may_follow: bool) -> int:
    """Open a file or folder below a folder, with O_PATH.

    Args:
        root_fd: The folder; the path must not leave it.
        path: Relative and normalised.
        may_follow: Whether to follow links that stay below the folder.

    Raises:
        OSError: it does not exist, leaves the folder, or is reached through a link
            that must not be followed (ELOOP).
    """
    parts = path_components(path)
    if parts is None:
        raise OSError(errno.EINVAL, "not a relative, normalised path", path)
    try:
        return _walk(root_fd, deque(parts), may_follow=may_follow)
    except (ValueError, UnicodeError) as error:
        raise OSError(errno.EINVAL, str(error), path) from error


def _walk(root_fd: int, ahead: deque[str], *, may_follow: bool) -> int:
    folders = [os.dup(root_fd)]  # from the root to the current folder
    links = 0
    try:
        while ahead:
            part = ahead.popleft()
            if part in ("", "."):
                continue
            if part == "..":
                if len(folders) == 1:
                    raise OSError(errno.EXDEV, "leaves the folder")
                os.close(folders.pop())
                continue
            place_fd = os.open(part, _PATH_ONLY, dir_fd=folders[-1])
            folders.append(place_fd)
            if not stat.S_ISLNK(os.fstat(place_fd).st_mode):
                continue
            links += 1
            target = _link_target(place_fd, links, may_follow=may_follow)
            os.close(folders.pop())
            ahead.extendleft(reversed(target.split("/")))
        return os.dup(folders[-1])
    finally:
        for fd in folders:
            os.close(fd)


def _link_target(link_fd: int, links: int, *, may_follow: bool) -> str:
    if not may_follow or links > LINKS_MAX:
        raise OSError(errno.ELOOP, "is a link")
    target = os.readlink("", dir_fd=link_fd)
    if target.startswith("/"):
        raise OSError(errno.EXDEV, "leaves the folder")
    return target


def missing_inputs(workdir: Path, inputs: Iterable[str]) -> list[str]:
    """Return the inputs that do not exist below the worker directory.

    An input may be a file or folder, also through a link that stays below.

    Raises:
        OSError: this process cannot open files now, so the answer is unknown.
    """
    try:
        root_fd = os.open(workdir, _FOLDER)
    except OSError as error:
        if error.errno in RESOURCE_ERRORS:
            raise
        return list(inputs)
    try:
        return [path for path in inputs if not _is_input(root_fd, path)]
    finally:
        os.close(root_fd)


def _is_input(root_fd: int, path: str) -> bool:
    try:
        fd = open_beneath(root_fd, path, may_follow=True)
    except OSError as error:
        if error.errno in RESOURCE_ERRORS:
            raise
        return False
    try:
        mode = os.fstat(fd).st_mode
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    finally:
        os.close(fd)


def open_output(workdir: Path, path: str) -> int:
    """Open a declared output for reading.

    It must be a regular file below the worker directory, and no link may lead to it.

    Raises:
        OSError: there is no such file.
    """
    root_fd = os.open(workdir, _FOLDER)
    try:
        return _open_regular(root_fd, path)
    finally:
        os.close(root_fd)


class FolderEntry(NamedTuple):
    """A file, folder or link in a folder; a task may replace it at any time."""

    name: str
    mode: int
    size_bytes: int
    mtime_ns: int
    target: str  #: of a link, else empty


def find_entry(workdir: Path, path: str) -> FolderEntry:
    """Return a file or folder below the worker directory.

    Raises:
        OSError: there is none, or a link leads to it.
    """
    root_fd = os.open(workdir, _FOLDER)
    try:
        place_fd = open_beneath(root_fd, path, may_follow=False)
    finally:
        os.close(root_fd)
    try:
        return _entry(path.rpartition("/")[2], os.fstat(place_fd), "")
    finally:
        os.close(place_fd)


def list_folder(workdir: Path, path: str) -> list[FolderEntry]:
    """Return the entries of a folder below the worker directory.

    Args:
        workdir: The worker directory.
        path: Relative and normalised; empty for the directory itself. No link may lead
            to it.

    Raises:
        OSError: there is no such folder, it cannot be read, or has too many entries.
    """
    root_fd = os.open(workdir, _FOLDER)
    try:
        folder_fd = _open_folder(root_fd, path) if path else os.dup(root_fd)
    finally:
        os.close(root_fd)
    try:
        with os.scandir(folder_fd) as entries:
            found = [_listed(entry, folder_fd) for entry in islice(entries, LISTED_MAX)]
            if next(entries, None) is not None:
                raise OSError(errno.E2BIG, f"has more than {LISTED_MAX} entries")
    finally:
        os.close(folder_fd)
    return [entry for entry in found if entry is not None]


def _open_folder(root_fd: int, path: str) -> int:
    place_fd = open_beneath(root_fd, path, may_follow=False)
    try:
        return os.open(f"/proc/self/fd/{place_fd}", _FOLDER)
    finally:
        os.close(place_fd)


def _listed(entry: os.DirEntry[str], folder_fd: int) -> FolderEntry | None:
    """Return an entry of a folder; None if it is gone."""
    try:
        status = entry.stat(follow_symlinks=False)
        is_link = stat.S_ISLNK(status.st_mode)
        target = os.readlink(entry.name, dir_fd=folder_fd) if is_link else ""
    except OSError:
        return None
    return _entry(entry.name, status, target)


def _entry(name: str, status: os.stat_result, target: str) -> FolderEntry:
    # Some file systems store times that do not fit into 64 bits.
    mtime_ns = min(max(status.st_mtime_ns, -TIME_NS_MAX), TIME_NS_MAX)
    return FolderEntry(name, status.st_mode, status.st_size, mtime_ns, target)


def _open_regular(root_fd: int, path: str) -> int:
    """Open a regular file for reading; no component of its path may be a link."""
    place_fd = open_beneath(root_fd, path, may_follow=False)
    try:
        place = os.fstat(place_fd)
        if not stat.S_ISREG(place.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        # The path in /proc opens exactly the file that was checked.
        return os.open(f"/proc/self/fd/{place_fd}", _READ)
    finally:
        os.close(place_fd)
