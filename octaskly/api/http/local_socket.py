"""Local sockets: the UNIX socket of the API, and the users of loopback connections.

This module creates the UNIX socket, so that its mode is correct from the start. The
kernel knows the users of both ends of a connection on this machine: for a UNIX socket
by SO_PEERCRED, for TCP by sock_diag(7).
"""

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
from typing import Any, Final

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


_SOCK_DIAG: Final = 4  #: NETLINK_SOCK_DIAG
_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_ANY_COOKIE: Final = 0xFFFFFFFF
_NETLINK_HEADER: Final = struct.Struct("=IHHII")
_DIAG_REQUEST: Final = struct.Struct("=BBBBI")
_DIAG_PORTS: Final = struct.Struct(">HH")
_DIAG_REST: Final = struct.Struct("=III")  #: interface and cookie
_DIAG_OWNER: Final = struct.Struct("=II")  #: user and inode
_DIAG_OWNER_AT: Final = _NETLINK_HEADER.size + 64
_ALL_STATES: Final = 0xFFFFFFFF
_REPLY_BYTES: Final = 4096


def tcp_client_uid(client: Sequence[Any], server: Sequence[Any]) -> int | None:
    """Return the user of the client's end of a TCP connection on this machine.

    The kernel looks up exactly this connection. Reading its table in /proc would take
    longer, the more connections there are.

    Args:
        client: The client's address and port.
        server: The address and port of this end.

    Returns:
        None if the client has closed its socket, or if the kernel does not say.
    """
    try:
        family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
        addresses = b"".join(
            socket.inet_pton(family, str(end[0]).partition("%")[0]).ljust(16, b"\0")
            for end in (client, server)
        )
        body = (
            _DIAG_REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES)
            + _DIAG_PORTS.pack(client[1], server[1])
            + addresses
            + _DIAG_REST.pack(0, _ANY_COOKIE, _ANY_COOKIE)
        )
        size = _NETLINK_HEADER.size + len(body)
        head = _NETLINK_HEADER.pack(size, _DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
        kinds = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_NETLINK, kinds, _SOCK_DIAG) as kernel:
            kernel.send(head + body)
            reply = kernel.recv(_REPLY_BYTES)  # The kernel answers within `send`.
    except OSError:
        return None
    if _NETLINK_HEADER.unpack_from(reply)[1] != _DIAG_BY_FAMILY:
        return None
    uid, inode = _DIAG_OWNER.unpack_from(reply, _DIAG_OWNER_AT)
    return int(uid) if inode else None


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
