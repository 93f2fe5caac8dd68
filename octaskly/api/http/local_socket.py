"""The UNIX socket of the API, created with the correct mode from the start."""

from __future__ import annotations

import contextlib
import errno
import grp
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_GROUP_MODE = 0o660
_OWNER_MODE = 0o600


def bind_local_socket(path: Path, group: str | None) -> socket.socket:
    """Bind a UNIX socket that this user and `group`, if it exists, may open.

    The stale file of a dead process is replaced.

    Raises:
        OSError: another process listens there (EADDRINUSE), or bind fails.
    """
    _remove_stale(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # `bind` creates the file with this mode, so other users never have access.
        os.fchmod(connection.fileno(), _OWNER_MODE)
        connection.bind(str(path))
        path.chmod(_OWNER_MODE)
        _grant_group(path, group)
    except OSError:
        connection.close()
        raise
    return connection


_CREDENTIALS = struct.Struct("3i")


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """Return the user and the group at the other end of a UNIX socket."""
    raw = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    _, uid, gid = _CREDENTIALS.unpack(raw)
    return uid, gid


def _grant_group(path: Path, group: str | None) -> None:
    if group is None:
        return
    # If the group is missing, or chown is not permitted, only the owner has access.
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(_GROUP_MODE)


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, f"{path} is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # This does not block. EAGAIN means that the queue of a listener is full.
        probe.settimeout(0)
        if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, f"another process serves {path}")


def address_without_scope(sockname: Sequence[Any] | None) -> frozenset[str]:
    """Return the address that a client connected to, without its scope."""
    if not sockname:
        return frozenset()
    literal = str(sockname[0]).partition("%")[0]
    with contextlib.suppress(ValueError):
        return frozenset((str(ipaddress.ip_address(literal)),))
    return frozenset()
