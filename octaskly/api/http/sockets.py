"""Sockets of this machine: the local one, and whose the other ends of loopback are.

The file of the local one is made by hand so that its rights are ours at once.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import ipaddress
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TCP_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_GROUP_MODE = 0o660
_OWNER_MODE = 0o600


def bind_local_socket(path: Path, group: str | None) -> socket.socket:
    """Bind a UNIX socket that this user, and `group` where it exists, may open.

    A file that a dead process left is replaced.

    Raises:
        OSError: another process listens there (EADDRINUSE), or it cannot be made.
    """
    _remove_stale(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The file takes this mode at birth: there is no instant at which all may.
        os.fchmod(connection.fileno(), _OWNER_MODE)
        connection.bind(str(path))
        path.chmod(_OWNER_MODE)
        _grant_group(path, group)
    except OSError:
        connection.close()
        raise
    return connection


def loopback_uids(
    client_port: int, own_port: int, tables: Sequence[Path] = TCP_TABLES
) -> frozenset[int]:
    """Return the users of the sockets that are connected so, by the kernel's tables.

    Ports alone are compared, so there may be another connection between the same ports
    of other addresses; whoever trusts a user has to trust all of these.
    """
    ends = (f":{client_port:04X}", f":{own_port:04X}")
    users = set()
    for table in tables:
        with contextlib.suppress(OSError):  # A kernel may have no IPv6.
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1]):
                    users.add(int(fields[7]))
    return frozenset(users)


def _grant_group(path: Path, group: str | None) -> None:
    if group is None:
        return
    # Without the group, or without the right to give to it, only the owner has access.
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
        # On a local socket this never waits: EAGAIN means a listener with a full queue.
        probe.settimeout(0)
        if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, f"another process serves {path}")


def address_without_scope(sockname: Sequence[Any] | None) -> frozenset[str]:
    """Return the address that a client reached, without scope."""
    if not sockname:
        return frozenset()
    literal = str(sockname[0]).partition("%")[0]
    with contextlib.suppress(ValueError):
        return frozenset((str(ipaddress.ip_address(literal)),))
    return frozenset()
