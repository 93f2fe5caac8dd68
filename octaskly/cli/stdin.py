"""The stdin of `octaskly run`, for its command: a pipe or a file of any size.

Up to 1 MiB travels with the task. More is sent as a file first, whole, because the
command may start on another machine, or twice.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
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
            data = os.pread(self.fd, min(CHUNK_BYTES, end - at), at)
            if not data:
                raise click.ClickException("stdin shrank while it was read")
            at += len(data)
            yield data


def stdin_fields(client: Session) -> dict[str, Any]:
    """Return the fields of a task that give it the stdin of this command, if any.

    A terminal or a device is not passed on: the command could not interact with it.
    """
    fd = sys.stdin.fileno()  # Not 0, which another file may have if stdin was closed.
    if click.get_current_context().meta.get(STDIN_CONSUMED) or not _is_readable(fd):
        return {}
    head = _read_head(fd)
    if len(head) <= STDIN_BYTES_MAX:
        return {"stdin_base64": base64.b64encode(head).decode()} if head else {}
    if stat.S_ISREG(os.fstat(fd).st_mode):
        start = os.lseek(fd, 0, os.SEEK_CUR) - len(head)
        _check_quota(client, os.fstat(fd).st_size - start)
        return _send(client, _hash_from(fd, start))
    with tempfile.TemporaryFile(prefix="octaskly-") as spool:
        try:
            _spool(client, head, fd, spool)
            spool.flush()
        except OSError as error:
            raise OctasklyError(
                f"this machine cannot store stdin in {tempfile.gettempdir()}:"
                f" {error.strerror}",
                hint="TMPDIR=/var/tmp octaskly run ...    stores it elsewhere",
            ) from None
        return _send(client, _hash_from(spool.fileno(), 0))


def _is_readable(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _read_head(fd: int) -> bytes:
    """Read a little more than a task may carry; say so if that takes long."""
    hint = threading.Timer(
        HINT_AFTER_S,
        note,
        ("reading stdin for the command; with </dev/null it gets none",),
    )
    hint.start()
    try:
        head = bytearray()
        while len(head) <= STDIN_BYTES_MAX:
            data = os.read(fd, CHUNK_BYTES)
            if not data:
                break
            head += data
        return bytes(head)
    finally:
        hint.cancel()


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
        data = os.read(fd, CHUNK_BYTES)


def _check_quota(client: Session, size_bytes: int) -> None:
    client.run(check_quota(client.requests, {"stdin": size_bytes}))


def _hash_from(fd: int, start: int) -> _Content:
    digest, at = hashlib.sha256(), start
    while data := os.pread(fd, CHUNK_BYTES, at):
        digest.update(data)
        at += len(data)
    return _Content(fd, start, at - start, digest.hexdigest())


def _send(client: Session, content: _Content) -> dict[str, Any]:
    body = ContentBody(content.size_bytes, content.read)
    callbacks = SendCallbacks(on_no_room=NoRoomNote().say)
    stored = client.run(upload_file(client.requests, content.sha256, body, callbacks))
    return {"stdin_file": {"sha256": stored.sha256, "node": stored.node}}
