"""TCP sockets of this machine with their users, from the kernel's tables.

Source: Documentation/networking/proc_net_tcp.rst of Linux. The tables show the sockets
of all users, but only those of this network namespace.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

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


def connection_uids(
    port: int, remote_port: int, tables: Sequence[Path] = TCP_TABLES
) -> frozenset[int]:
    """Return the users of the sockets with these ports.

    Only ports are compared, so another connection between the same ports of other
    addresses may match as well. A caller has to trust all returned users.
    """
    ends = (f":{port:04X}", f":{remote_port:04X}")
    return frozenset(
        int(fields[7])
        for fields in _rows(tables, ends[0])
        if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1])
    )


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
