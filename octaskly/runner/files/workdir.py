"""Inputs and declared outputs of tasks in the worker directory.

Tasks may change that directory at any time, also while the agent reads it. So a path is
resolved one component at a time from an open folder, and each component is checked: a
link cannot lead out of the folder, and a pipe or device is never opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.model.tasks import OutputFile
from octaskly.errors import OutputNotFound
from octaskly.runner.launch_protocol import RESOURCE_ERRORS

OUTPUT_BYTES_MAX = 1 << 30  #: of all outputs of one attempt together
TOO_LARGE = "all outputs together may have at most 1 GiB"
PATH_CHARS_MAX = 4096
LINKS_MAX = 40  #: the kernel's own limit
COPY_BYTES = 1 << 20

_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


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


def outputs_folder(outputs_dir: Path, task: TaskId, attempt: AttemptId) -> Path:
    """Return the folder of an attempt's outputs.

    A task id may be `.` or `..`, which is encoded: it would name another folder.
    """
    name = str(task)
    if path_components(name) != [name]:
        name = "%" + name.encode().hex()
    return outputs_dir / name / f"{attempt.term}-{attempt.stream}-{attempt.n}"


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


class CapturedOutputs(NamedTuple):
    """Result of capturing declared outputs."""

    files: tuple[OutputFile, ...]  #: the size is None if it was not captured
    problem: str = ""  #: why existing files were not kept


def capture_outputs(
    workdir: Path,
    folder: Path,
    paths: Sequence[str],
    *,
    left: int = OUTPUT_BYTES_MAX,
    opened: Callable[[Path, str], int] = open_output,
) -> CapturedOutputs:
    """Copy declared outputs.

    Args:
        workdir: The folder in which the task ran.
        folder: Destination of the copies; it is created.
        paths: The declared paths.
        left: Maximum size of all outputs together, in bytes.
        opened: Opens an output with the rights of the tasks' user; raises OSError.
    """
    files: dict[str, OutputFile] = {}
    why = []
    for path in dict.fromkeys(paths):
        size = None
        try:
            size = _capture_one(partial(opened, workdir, path), folder / path, left)
        except OSError as error:
            why.append(f"output {path} was not kept: {error.strerror or error}")
        left -= size or 0
        files[path] = OutputFile(path, size)
    return CapturedOutputs(tuple(files.values()), "; ".join(why))


def _capture_one(opened: Callable[[], int], target: Path, left: int) -> int | None:
    """Copy one output; return its size, None if there is no such file.

    Raises:
        OSError: it is not a regular file, is reached through a link or is too large;
            the disk is full; or another output has its path as a folder.
    """
    try:
        source_fd = opened()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        size = None
        if os.fstat(source_fd).st_size <= left:
            size = _copy_to_new_file(source_fd, target, left)
        if size is None:
            raise OSError(errno.EFBIG, TOO_LARGE)
        return size
    finally:
        os.close(source_fd)


def _copy_to_new_file(source_fd: int, target: Path, left: int) -> int | None:
    """Copy into a new file, which is deleted unless the copy is complete."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    target.unlink(missing_ok=True)
    target_fd = os.open(target, _CREATE, 0o600)
    size = None
    try:
        size = _copy(source_fd, target_fd, left)
    finally:
        os.close(target_fd)
        if size is None:
            target.unlink()
    return size


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


def _copy(source_fd: int, target_fd: int, left: int) -> int | None:
    """Copy a file; return its size, or None if it is larger than `left`."""
    size = 0
    while data := os.read(source_fd, COPY_BYTES):
        size += len(data)
        if size > left:
            return None
        view = memoryview(data)
        while view:
            view = view[os.write(target_fd, view) :]
    return size


def captured_path(
    outputs_dir: Path, task: TaskId, attempt: AttemptId, path: str
) -> Path:
    """Return the copy of an output that was captured here.

    Raises:
        OutputNotFound: there is no such copy.
    """
    file = outputs_folder(outputs_dir, task, attempt)
    parts = path_components(path)
    try:
        if parts is not None:
            is_file = stat.S_ISREG(file.joinpath(*parts).lstat().st_mode)
            if is_file:
                return file.joinpath(*parts)
    except (OSError, ValueError):
        pass
    raise OutputNotFound(f"{task} has no output {path!r} on this node", field="path")
