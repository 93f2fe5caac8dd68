"""Accepts connections at one port, within limits on pending TLS handshakes.

A pending handshake costs a descriptor and about 300 kB before the other end has proven
anything, so their number is bounded, in total and per address. Three groups have places
of their own, and none can take those of another: this machine, addresses from which
members of the mesh have connected, and all others, the strangers.

A host with many addresses could fill a group. A new connection is therefore never
refused because of its total. Instead, the oldest handshake of the address with the most
handshakes is closed. An honest client finishes quickly; a silent one waits longest.
Once 16 strangers have pending handshakes, or half of their places are taken, an address
is admitted once every two seconds, and more rarely while it finishes none. So a flood
costs little, and a client has the time to finish.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

from octaskly.system.accepting import accept_connections
from octaskly.system.tcp_table import local_client

INTERVAL_S: Final = 2.0  #: doubled for each handshake that is not finished
INTERVAL_S_MAX: Final = 64.0
ADDRESSES_MAX: Final = 4096
MEMBERS_MAX: Final = 1024
CROWD_ADDRESSES: Final = 16  #: with pending handshakes
ACCEPTS_PER_TURN: Final = 64  #: of the event loop
_IPV6_HOST_BITS: Final = 64


class MemberAddresses:
    """The addresses from which members of the mesh have connected to this node."""

    def __init__(self) -> None:
        self._hosts: dict[str, None] = {}  #: the latest is last

    def record(self, host: str) -> None:
        """Remember the address of a member."""
        key = _plain_address(host)
        self._hosts.pop(key, None)
        self._hosts[key] = None
        if len(self._hosts) > MEMBERS_MAX:
            del self._hosts[next(iter(self._hosts))]

    def __contains__(self, host: str) -> bool:
        return _plain_address(host) in self._hosts


class HandshakeLimiter:
    """Decides which connections may start a handshake.

    Args:
        total_max: Number of pending handshakes of members, and of strangers.
        per_address_max: Number of pending handshakes of one address of these.
        local_max: Number of pending handshakes of one user of this machine.
        members: Addresses of members.
    """

    def __init__(
        self,
        *,
        total_max: int,
        per_address_max: int,
        local_max: int,
        members: MemberAddresses,
    ) -> None:
        self._member_addresses = members
        self._intervals = AddressIntervals()
        # Other users of the machine must not take the places of the agent's own.
        self._local = _Group(2 * local_max, local_max)
        self._members = _Group(total_max, per_address_max)
        self._strangers = _Group(total_max, per_address_max)

    def __len__(self) -> int:
        return len(self._local) + len(self._members) + len(self._strangers)

    def admit(
        self,
        connection: socket.socket,
        host: str,
        own_host: str,
        local_user: str | None = None,
    ) -> bool:
        """Count a new connection; return False if the caller must close it.

        Args:
            connection: The connection.
            host: Address of the other end.
            own_host: Address of this end.
            local_user: The user at the other end, if that is on this machine.
        """
        group = self._strangers
        if local_user is not None:
            group, host = self._local, local_user
        elif host == own_host:
            group = self._local
        elif host in self._member_addresses:
            group = self._members
        if not group.has_room_for(host):
            return False
        if group is self._strangers and group.is_crowded:
            now_s = asyncio.get_running_loop().time()
            if not self._intervals.admit(host, now_s):
                return False
        evicted = group.add(connection, host)
        if evicted is not None:
            with suppress(OSError):
                # Not the method of a TLS socket, which forgets the handshake: its end
                # must be seen by `do_handshake`.
                socket.socket.shutdown(evicted, socket.SHUT_RDWR)
        return True

    def release(self, connection: socket.socket, *, is_finished: bool) -> None:
        """Stop counting a connection; no effect if it was evicted.

        Args:
            connection: A connection that was admitted.
            is_finished: True if its handshake was successful.
        """
        self._local.remove(connection)
        self._members.remove(connection)
        host = self._strangers.remove(connection)
        if is_finished and host is not None:
            self._intervals.forget(host)

    def replace(self, connection: socket.socket, tls: socket.socket) -> None:
        """Count a TLS connection in place of the connection that it has taken over."""
        for group in (self._local, self._members, self._strangers):
            group.replace(connection, tls)

    def is_local(self, connection: socket.socket) -> bool:
        """Return True if an admitted connection comes from this machine."""
        return connection in self._local


async def accept_within_limits(
    listener: socket.socket,
    limiter: HandshakeLimiter,
    on_admitted: Callable[[socket.socket, str], None],
) -> None:
    """Accept connections on a listener that does not block, until cancelled.

    Args:
        listener: The listener.
        limiter: Decides which connections are admitted; the others are closed.
        on_admitted: Called with each admitted connection and its remote address; the
            callee releases it in the limiter.
    """

    def on_connection(connection: socket.socket, address: Any) -> None:
        own = connection.getsockname()
        host, own_host = str(address[0]), str(own[0])
        user = local_client(address, own)
        if limiter.admit(connection, host, own_host, user):
            on_admitted(connection, host)
        else:
            connection.close()

    await accept_connections(listener, on_connection, per_turn_max=ACCEPTS_PER_TURN)


class _Group:
    """The pending handshakes of one group of addresses."""

    def __init__(self, total_max: int, per_address_max: int) -> None:
        self._total_max = total_max
        self._per_address_max = per_address_max
        self._hosts: dict[socket.socket, str] = {}  #: oldest first
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._hosts)

    def __contains__(self, connection: socket.socket) -> bool:
        return connection in self._hosts

    @property
    def is_crowded(self) -> bool:
        """Return True if half of the places are taken, or many addresses have some."""
        return len(self) >= self._total_max // 2 or len(self._counts) >= CROWD_ADDRESSES

    def has_room_for(self, host: str) -> bool:
        """Return True if an address has not reached its limit."""
        return self._counts[host] < self._per_address_max

    def add(self, connection: socket.socket, host: str) -> socket.socket | None:
        """Add a connection; return the one that it evicts, if all places are taken."""
        evicted = None
        if len(self) >= self._total_max:
            evicted = max(self._hosts, key=lambda one: self._counts[self._hosts[one]])
            self.remove(evicted)
        self._hosts[connection] = host
        self._counts[host] += 1
        return evicted

    def replace(self, connection: socket.socket, tls: socket.socket) -> None:
        """Count the latest connection by another socket, if it is here."""
        if connection in self._hosts:
            self._hosts[tls] = self._hosts.pop(connection)

    def remove(self, connection: socket.socket) -> str | None:
        """Remove a connection; return its address, or None if it is not here."""
        host = self._hosts.pop(connection, None)
        if host is not None:
            self._counts[host] -= 1
            if not self._counts[host]:
                del self._counts[host]
        return host


class AddressIntervals:
    """Decides which connections to admit while there are too many.

    A machine that connects once is admitted however many connections others make. An
    IPv6 network of 64 bits counts as one address: a machine can have them all.
    """

    def __init__(self) -> None:
        #: Time of the next admission, and the interval after it; the latest is last.
        self._due: dict[str | int, tuple[float, float]] = {}

    def admit(self, host: str, now_s: float) -> bool:
        """Return True, and remember it, if an address was not admitted for a while."""
        key = _network_of(host)
        due_s, interval_s = self._due.pop(key, (-math.inf, INTERVAL_S))
        is_due = now_s >= due_s
        if is_due:
            due_s = now_s + interval_s
            interval_s = min(2 * interval_s, INTERVAL_S_MAX)
        self._due[key] = due_s, interval_s
        if len(self._due) > ADDRESSES_MAX:
            del self._due[next(iter(self._due))]
        return is_due

    def forget(self, host: str) -> None:
        """Start again for an address that has finished a handshake."""
        self._due.pop(_network_of(host), None)


@lru_cache(ADDRESSES_MAX)
def _network_of(host: str) -> str | int:
    address = ip_address(host)
    if not isinstance(address, IPv6Address) or address.ipv4_mapped is not None:
        return host
    return int(address) >> _IPV6_HOST_BITS


@lru_cache(ADDRESSES_MAX)
def _plain_address(host: str) -> str:
    """Return an address without its scope, and IPv4 in its own form.

    A socket shows a link-local address without its scope.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host  # Stored by another version: no socket has it.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
