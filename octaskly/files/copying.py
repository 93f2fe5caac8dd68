"""Copies of contents between files, made by the kernel where it can."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

COPY_BYTES: Final = 1 << 20  #: per call; between two calls, other threads run
_KERNEL_BYTES: Final = 1 << 26
_FICLONE: Final = 0x4004_9409  #: from linux/fs.h: share the blocks until one is written
#: Between file systems, on a network disk, or in a sandbox.
_UNSUPPORTED: Final = frozenset(
    (
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.ETXTBSY,
    )
)


def copy_content(source_fd: int, target_fd: int) -> None:
    """Copy all bytes of a file to an empty one.

    Raises:
        OSError: the disk is full or failing.
    """
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    else:
        return
    try:
        while os.copy_file_range(source_fd, target_fd, _KERNEL_BYTES):
            pass
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        while data := os.read(source_fd, COPY_BYTES):
            write_all(target_fd, data)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all bytes, in as many calls as it takes; raise OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
