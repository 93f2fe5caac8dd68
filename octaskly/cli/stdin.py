"""The stdin of `octaskly run`, for its command: a pipe or a file of any size.

Up to 1 MiB travels with the task. More is sent as a file first, whole, because the
command may start on another machine, or twice.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import click

from octaskly.cli.output.progress import NoRoomNote
from octaskly.cli.output.render import note
from octaskly.cli.task_options import STDIN_BYTES_MAX, STDIN_CONSUMED
from octaskly.client import Session
from octaskly.client.flows.files import (
    CHECKED_BYTES,
    ContentBody,
    SendCallbacks,
    check_quota,
    upload_file,
)
from octaskly.errors import OctasklyError

CHUNK_BYTES: Final = 1 << 20
HINT_AFTER_S: Final = 2.0
READING_NOTE: Final = (
    "reading stdin to its end before the command starts; with </dev/null it gets none"
)


class _Content(NamedTuple):
    """Bytes of an open file, from a position on."""

    fd: int
    start: int
    size_bytes: int
    sha256: str

    def read(self) -> Iterator[bytes]:
        """Yield the bytes in parts."""
        at, end = self.start, self.start + self.size_bytes
        while at < end:
            data = _read_part(self.fd, min(CHUNK_BYTES, end - at), at)
            if not data:
                raise OctasklyError("stdin shrank while it was read")
            at += len(data)
            yield data


def stdin_fields(client: Session) -> dict[str, Any]:
    """Return the fields of a task that give it the stdin of this command, if any.

    A terminal is not passed on: the command could not interact with it. Nor is another
    device, which may have no end.
    """
    fd = sys.stdin.fileno()  # Not 0, which another file may have if stdin was closed.
    if click.get_current_context().meta.get(STDIN_CONSUMED):
        return {}
    if not _is_passed_on(fd):
        if not (os.isatty(fd) or _is_null(fd)):
            note(
                "warning: stdin is neither a pipe nor a file, so the command gets none;"
                " cat DEVICE | octaskly run ...    passes it on"
            )
        return {}
    with contextlib.ExitStack() as files:
        with _hint_if_slow():
            content = _read(client, fd, files)
        if isinstance(content, _Content):
            return _send(client, content)
    return {"stdin_base64": base64.b64encode(content).decode()} if content else {}


def _is_passed_on(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _is_null(fd: int) -> bool:
    """Return True if this is `/dev/null`, which stands for no stdin."""
    status = os.fstat(fd)
    is_device = stat.S_ISCHR(status.st_mode)
    return is_device and status.st_rdev == Path(os.devnull).stat().st_rdev


@contextlib.contextmanager
def _hint_if_slow() -> Iterator[None]:
    """Say that stdin is read if the block takes long: the command has not started."""
    hint = threading.Timer(HINT_AFTER_S, note, (READING_NOTE,))
    hint.start()
    try:
        yield
    finally:
        hint.cancel()


def _read(client: Session, fd: int, files: contextlib.ExitStack) -> bytes | _Content:
    """Return stdin as a task carries it, or else the file that has all of it.

    Args:
        client: Session with the node that stores it.
        fd: The stdin of this command.
        files: Closes the file that is returned.

    Raises:
        OctasklyError: no node has room for it, or this machine has none.
    """
    head = _read_head(fd)
    if len(head) <= STDIN_BYTES_MAX:
        return head
    if stat.S_ISREG(os.fstat(fd).st_mode):
        start = os.lseek(fd, 0, os.SEEK_CUR) - len(head)
        _check_quota(client, os.fstat(fd).st_size - start)
        return _hash_from(fd, start)
    try:
        spool = tempfile.TemporaryFile(prefix="octaskly-")  # noqa: SIM115 - see `files`
        files.enter_context(spool)
        _spool(client, head, fd, spool)
        spool.flush()
    except OSError as error:
        raise OctasklyError(
            f"this machine cannot store stdin in {tempfile.gettempdir()}:"
            f" {error.strerror}",
            hint="TMPDIR=/var/tmp octaskly run ...    stores it elsewhere",
        ) from None
    return _hash_from(spool.fileno(), 0)


def _read_part(fd: int, size_bytes: int = CHUNK_BYTES, at: int | None = None) -> bytes:
    """Read from a position of a file, or what comes next; nothing at the end.

    Raises:
        OctasklyError: it cannot be read.
    """
    try:
        return os.read(fd, size_bytes) if at is None else os.pread(fd, size_bytes, at)
    except OSError as error:
        raise OctasklyError(f"stdin cannot be read: {error.strerror}") from None


def _read_head(fd: int) -> bytes:
    """Read a little more than a task may carry."""
    head = bytearray()
    while len(head) <= STDIN_BYTES_MAX:
        data = _read_part(fd)
        if not data:
            break
        head += data
    return bytes(head)


def _spool(client: Session, head: bytes, fd: int, spool: IO[bytes]) -> None:
    """Write what was read of a pipe to a file, then the rest.

    A pipe may have no end, as that of `yes`: the disk of this machine is not filled
    with more than a node has room for.
    """
    data, spooled_bytes, checked_bytes = head, 0, 0
    while data:
        spool.write(data)
        spooled_bytes += len(data)
        if spooled_bytes - checked_bytes >= CHECKED_BYTES:
            _check_quota(client, spooled_bytes)
            checked_bytes = spooled_bytes
        data = _read_part(fd)


def _check_quota(client: Session, size_bytes: int) -> None:
    client.run(check_quota(client.requests, {"stdin": size_bytes}))


def _hash_from(fd: int, start: int) -> _Content:
    digest, at = hashlib.sha256(), start
    while data := _read_part(fd, CHUNK_BYTES, at):
        digest.update(data)
        at += len(data)
    return _Content(fd, start, at - start, digest.hexdigest())


def _send(client: Session, content: _Content) -> dict[str, Any]:
    body = ContentBody(content.size_bytes, content.read)
    callbacks = SendCallbacks(on_no_room=NoRoomNote().say)
    stored = client.run(upload_file(client.requests, content.sha256, body, callbacks))
    return {"stdin_file": {"sha256": stored.sha256, "node": stored.node}}
