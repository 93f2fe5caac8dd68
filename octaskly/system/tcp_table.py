"""TCP sockets of this machine with their users: all listeners, or one connection.

Sources: Documentation/networking/proc_net_tcp.rst of Linux, and sock_diag(7). Both show
the sockets of all users, but only those of this network namespace.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from octaskly.config.users import user_name

TCP_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENING: Final = "0A"
_WORD_DIGITS: Final = 8  #: addresses are words of 32 bits, in the machine's byte order


class Listener(NamedTuple):
    """A listening TCP socket; `inode` identifies it."""

    address: str
    uid: int
    inode: int

    def accepts(self, address: str) -> bool:
        """Return True if a connection to this address may arrive at the socket."""
        if ":" in address:
            return self.address in (address, "::")
        # An IPv6 socket also accepts IPv4 unless it says otherwise, which is not shown.
        return self.address in (address, "0.0.0.0", "::", f"::ffff:{address}")  # noqa: S104


def listeners_on(port: int, tables: Sequence[Path] = TCP_TABLES) -> frozenset[Listener]:
    """Return all sockets that listen on a port; none if the tables are unreadable."""
    own = f":{port:04X}"
    return frozenset(
        Listener(_decode_address(fields[1]), int(fields[7]), int(fields[9]))
        for fields in _rows(tables, own)
        if fields[3] == _LISTENING and fields[1].endswith(own)
    )


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


def local_client(client: Sequence[Any], server: Sequence[Any]) -> str | None:
    """Return whose client a connection is, if it comes from this machine; else None.

    A program may choose among sixteen million loopback addresses, also as the source
    of a connection to another address of its machine. So its user counts.

    Args:
        client: The client's address and port.
        server: The address and port of this end.
    """
    is_local = client[0] == server[0] or (
        _is_loopback(client[0]) and not _is_loopback(server[0])
    )
    if not is_local:
        return None
    return client_user(client, server)


def client_user(client: Sequence[Any], server: Sequence[Any]) -> str:
    """Return whose client a connection from this machine is.

    Args:
        client: The client's address and port.
        server: The address and port of this end.
    """
    uid = tcp_client_uid(client, server)
    return "an unknown user" if uid is None else _describe_user(uid)


@lru_cache(maxsize=256)
def _describe_user(uid: int) -> str:
    # The file of users would be read for each connection of a flood.
    return f"user {user_name(uid)}"


def _is_loopback(host: str) -> bool:
    return host == "::1" or host.removeprefix("::ffff:").startswith("127.")


def _rows(tables: Sequence[Path], port: str) -> Iterator[list[str]]:
    """Yield the fields of the rows that contain a port; the tables may be long."""
    for table in tables:
        with contextlib.suppress(OSError):  # The kernel may lack IPv6.
            for line in table.read_text().splitlines():
                if port in line:
                    yield line.split()


def _decode_address(field: str) -> str:
    """Return the IP address of `HEX:PORT`."""
    digits = field.partition(":")[0]
    words = (
        int(digits[start : start + _WORD_DIGITS], 16).to_bytes(4, sys.byteorder)
        for start in range(0, len(digits), _WORD_DIGITS)
    )
    packed = b"".join(words)
    family = socket.AF_INET if len(digits) == _WORD_DIGITS else socket.AF_INET6
    return socket.inet_ntop(family, packed)
