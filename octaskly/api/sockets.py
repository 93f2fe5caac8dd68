"""Listening sockets, made by hand so that errors and rights are ours."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

_SKIPPED = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_GROUP_MODE = 0o660
_OWNER_MODE = 0o600


def open_tcp(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Bind one port on all these addresses; port 0 takes any that is free on all.

    An address that this machine lacks (`::1` without IPv6) is left out, unless none
    is left.

    Raises:
        OSError: the port is taken, or no address could be bound.
    """
    opened: list[socket.socket] = []
    missing: OSError | None = None
    with contextlib.ExitStack() as stack:
        for host in hosts:
            try:
                connection = _bind(host, port)
            except OSError as error:
                if error.errno not in _SKIPPED:
                    raise
                missing = error
                continue
            stack.callback(connection.close)
            opened.append(connection)
            port = connection.getsockname()[1]
        if not opened:
            raise missing or OSError(errno.EINVAL, "no address to listen on")
        stack.pop_all()
    return opened


def local_socket(path: Path, group: str | None) -> socket.socket:
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
        _share(path, group)
    except OSError:
        connection.close()
        raise
    return connection


def _bind(host: str, port: int) -> socket.socket:
    info = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )
    family, kind, protocol, _, address = info[0]
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        connection.bind(address)
        # Bound is not enough: with SO_REUSEADDR only listening finds another one.
        connection.listen()
    except OSError as error:
        connection.close()
        raise OSError(error.errno, f"{host} port {port}: {error.strerror}") from None
    return connection


def _share(path: Path, group: str | None) -> None:
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
