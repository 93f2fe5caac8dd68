"""Recognising the folder of a client on this machine, by a file that it keeps there.

The check runs with the rights of the tasks' user, so it opens nothing that a task could
not open. Of the file, only "yes" or "no" leaves this machine.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from octaskly.runner.launch_protocol import RESOURCE_ERRORS

FILE_BYTES_MAX: Final = 4096
HOMES: Final = ("/home", "/root", "/run/user")  #: that `ProtectHome=` of a unit hides
TEMPORARY: Final = ("/tmp", "/var/tmp")  # noqa: S108 - that `PrivateTmp=` replaces

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


class FolderProblem(NamedTuple):
    """The reason why a folder here is not usable as the folder of a client."""

    kind: str
    """`missing`, `hidden`, `private`, `denied`, `other`, `read-only` or `unwritable`.
    """
    path: str  #: of the folder, or of the folder above that causes the problem

    def describe(self, folder: str, node: str, user: str) -> str:
        """Return the problem as what a task lacks, with what helps.

        Args:
            folder: Path of the client's folder.
            node: Name of this node.
            user: The user that tasks run as here.
        """
        unit = f"the systemd unit of {node}"
        by_unit = "set by `sudo systemctl edit octaskly` there"
        why = {
            "missing": f"it does not exist on {node}",
            "hidden": f"{unit} hides {self.path}; ProtectHome=no and"
            f" ReadWritePaths={folder}, {by_unit}, open it",
            "private": f"{unit} has a {self.path} of its own; use another folder",
            "denied": f"permission denied: on {node}, tasks run as {user}, who may not"
            f" enter {self.path}",
            "other": f"the one on {node} is another folder, or has no longer the file"
            " by which it is recognised",
            "read-only": f"it is read-only on {node}; if that is by its systemd unit,"
            f" ReadWritePaths={folder}, {by_unit}, opens it",
            "unwritable": f"permission denied: on {node}, tasks run as {user}, who may"
            " not write to it",
        }[self.kind]
        return f"the folder {folder} ({why})"


def find_folder_problem(
    folder: str, name: str, sha256: str, *, may_write: bool
) -> FolderProblem | None:
    """Return why a task cannot run in a client's folder; None if it can.

    Args:
        folder: Absolute path of the folder.
        name: A file in it.
        sha256: Hexadecimal digest of that file's content.
        may_write: True if tasks must be able to write to the folder.

    Raises:
        OSError: this process cannot open files now, so the answer is unknown.
    """
    try:
        folder_fd = os.open(folder, _FOLDER)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        if number in RESOURCE_ERRORS:
            raise
        return _unreachable(folder, is_denied=number in (errno.EACCES, errno.EPERM))
    try:
        here = f"/proc/self/fd/{folder_fd}"
        if not os.access(here, os.X_OK):
            return _unreachable(folder, is_denied=True)
        if not _has_file(folder_fd, name, sha256):
            return _mount_problem(folder) or FolderProblem("other", folder)
        if may_write and not os.access(here, os.W_OK):
            is_read_only = os.statvfs(folder_fd).f_flag & os.ST_RDONLY
            kind = "read-only" if is_read_only else "unwritable"
            return FolderProblem(kind, folder)
    finally:
        os.close(folder_fd)
    return None


def _has_file(folder_fd: int, name: str, sha256: str) -> bool:
    """Return True if the folder has a small regular file with this content."""
    try:
        fd = os.open(name, _READ, dir_fd=folder_fd)
    except OSError as error:
        if error.errno in RESOURCE_ERRORS:
            raise
        return False
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_MAX:
            return False
        content = os.read(fd, FILE_BYTES_MAX)
        return hashlib.sha256(content).hexdigest() == sha256
    finally:
        os.close(fd)


def _unreachable(folder: str, *, is_denied: bool) -> FolderProblem:
    hidden = _mount_problem(folder)
    if hidden is not None:
        return hidden
    if not is_denied:
        return FolderProblem("missing", folder)
    above = [str(path) for path in reversed(Path(folder).parents)]
    closed = (path for path in (*above, folder) if not os.access(path, os.X_OK))
    return FolderProblem("denied", next(closed, folder))


class _Mount(NamedTuple):
    point: str
    root: str  #: the folder of the file system that is mounted
    kind: str


def _mount_problem(folder: str) -> FolderProblem | None:
    """Return the problem of a folder that a systemd unit hides, if one does."""
    above = [
        mount
        for mount in _mounts()
        if folder == mount.point or folder.startswith(f"{mount.point.rstrip('/')}/")
    ]
    if not above:
        return None
    # Of several mounts at one place, the last one is on top.
    point, root, kind = max(reversed(above), key=lambda mount: len(mount.point))
    is_empty = kind == "tmpfs" and point in HOMES
    if "systemd/inaccessible/" in root or is_empty:
        return FolderProblem("hidden", point)
    if point in TEMPORARY and "systemd-private-" in root:
        return FolderProblem("private", point)
    return None


def _mounts() -> Iterator[_Mount]:
    """Yield the mounts that this process sees. Source: proc_pid_mountinfo(5)."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return
    for line in lines.splitlines():
        fields, _, rest = line.partition(" - ")
        root, point = fields.split(" ")[3:5]
        yield _Mount(_unescaped(point), _unescaped(root), rest.partition(" ")[0])


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
