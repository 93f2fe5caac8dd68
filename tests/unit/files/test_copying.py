"""Copies of contents: by shared blocks, in the kernel, and by hand."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Never

import pytest

from octaskly.files.copying import copy_content

FICLONE = 0x40049409  #: as in linux/fs.h


def failing(code: int) -> Callable[..., Never]:
    """Return a call of the kernel that fails."""

    def fail(*_: object) -> Never:
        raise OSError(code, os.strerror(code))

    return fail


def unexpected(*_: object) -> Never:
    pytest.fail("the blocks are shared, so there is nothing to copy")


def copied(folder: Path, data: bytes) -> bytes:
    """Return what a copy of a file has."""
    (folder / "source").write_bytes(data)
    with (folder / "source").open("rb") as ours, (folder / "copy").open("wb") as theirs:
        copy_content(ours.fileno(), theirs.fileno())
    return (folder / "copy").read_bytes()


@pytest.mark.parametrize("size_bytes", [0, 1, 3 << 20])
@pytest.mark.parametrize("way", ["disk", "kernel", "hand"])
def test_a_copy_has_all_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, size_bytes: int
) -> None:
    """In the way of this disk, and of one that can do less."""
    if way != "disk":
        monkeypatch.setattr(fcntl, "ioctl", failing(errno.EOPNOTSUPP))
    if way == "hand":
        monkeypatch.setattr(os, "copy_file_range", failing(errno.EXDEV))
    data = os.urandom(size_bytes)

    assert copied(tmp_path, data) == data


def test_a_disk_that_shares_blocks_copies_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Btrfs and XFS do; the call names the file that gets the blocks first."""

    def share(target_fd: int, request: int, source_fd: int) -> int:
        assert request == FICLONE
        os.pwrite(target_fd, os.pread(source_fd, 1 << 20, 0), 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", share)
    for call in ("copy_file_range", "read", "write"):
        monkeypatch.setattr(os, call, unexpected)

    assert copied(tmp_path, b"shared") == b"shared"


@pytest.mark.parametrize("call", ["ioctl", "copy_file_range"])
def test_a_full_disk_is_an_error_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It is no reason to try another one."""
    other = failing(errno.EOPNOTSUPP if call != "ioctl" else errno.ENOSPC)
    monkeypatch.setattr(fcntl, "ioctl", other)
    monkeypatch.setattr(os, "copy_file_range", failing(errno.ENOSPC))
    monkeypatch.setattr(os, "read", unexpected)

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        copied(tmp_path, b"data")
