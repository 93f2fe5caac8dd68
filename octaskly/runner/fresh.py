"""Making the fresh folder of an attempt, and having files in it."""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import tempfile
from collections.abc import Container, Iterable
from pathlib import Path, PurePosixPath

from octaskly.runner.removal import remove_tree
from octaskly.runner.workdir import components

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
        if components(own) and own not in given and not _is_below(own, given):
            (folder / own).mkdir(parents=True)
        for path in given:
            if _is_below(path, given):
                continue  # It is there by way of a folder.
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(workdir / path)
    except OSError:
        remove_tree(folder, lambda: True)
        raise
    return folder


def place_link(source: Path, folder: Path, path: str) -> None:
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
    if components(path) is None:
        raise OSError(errno.EINVAL, "not a relative, normalised path", path)
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _is_below(path: str, others: Container[str]) -> bool:
    """Whether a path lies in one of the others, which is a folder then."""
    return any(str(parent) in others for parent in PurePosixPath(path).parents)
