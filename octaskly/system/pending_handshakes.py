"""Limits on the pending TLS handshakes of one port.

A pending handshake costs a descriptor and about 300 kB before the other end has proven
anything, so their number is bounded, in total and per address. Three groups have places
of their own, and none can take those of another: this machine, addresses from which
members of the mesh have connected, and all others, the strangers.

A host with many addresses could fill a group. A new connection is therefore never
refused because of its total. Instead, the oldest handshake of the address with the most
handshakes is closed. An honest client finishes quickly; a silent one waits longest.
Once half of the places of strangers are taken, an address is admitted once every two
seconds. So a flood costs little, and a client has the time to finish.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Final, Generic, TypeVar

INTERVAL_S: Final = 2.0
ADDRESSES_MAX: Final = 4096
MEMBERS_MAX: Final = 1024
_IPV6_HOST_BITS: Final = 64

_Connection = TypeVar("_Connection")


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


class HandshakeLimiter(Generic[_Connection]):
    """Decides which connections may start a handshake.

    Args:
        total_max: Number of pending handshakes of members, and of strangers.
        per_address_max: Number of pending handshakes of one address of these.
        local_max: Number of pending handshakes of this machine.
        members: Addresses of members.
        close: Closes a connection that has to make room.
    """

    def __init__(
        self,
        *,
        total_max: int,
        per_address_max: int,
        local_max: int,
        members: MemberAddresses,
        close: Callable[[_Connection], None],
    ) -> None:
        self._member_addresses = members
        self._close = close
        self._intervals = AddressIntervals()
        self._local = _Group[_Connection](local_max, local_max)
        self._members = _Group[_Connection](total_max, per_address_max)
        self._strangers = _Group[_Connection](total_max, per_address_max)

    def __len__(self) -> int:
        return len(self._local) + len(self._members) + len(self._strangers)

    def admit(self, connection: _Connection, host: str, own_host: str) -> bool:
        """Count a new connection; return False if the caller must close it.

        Args:
            connection: The connection.
            host: Address of the other end.
            own_host: Address of this end.
        """
        group = self._strangers
        if host == own_host:
            group = self._local
        elif host in self._member_addresses:
            group = self._members
        if not group.has_room_for(host):
            return False
        if group is self._strangers and group.is_half_full:
            now_s = asyncio.get_running_loop().time()
            if not self._intervals.admit(host, now_s):
                return False
        evicted = group.add(connection, host)
        if evicted is not None:
            self._close(evicted)
        return True

    def release(self, connection: _Connection) -> None:
        """Stop counting a connection; no effect if it was evicted."""
        for group in (self._local, self._members, self._strangers):
            group.remove(connection)

    def is_local(self, connection: _Connection) -> bool:
        """Return True if an admitted connection comes from this machine."""
        return connection in self._local


class _Group(Generic[_Connection]):
    """The pending handshakes of one group of addresses."""

    def __init__(self, total_max: int, per_address_max: int) -> None:
        self._total_max = total_max
        self._per_address_max = per_address_max
        self._hosts: dict[_Connection, str] = {}  #: oldest first
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._hosts)

    def __contains__(self, connection: _Connection) -> bool:
        return connection in self._hosts

    @property
    def is_half_full(self) -> bool:
        """Return True if half of the places are taken."""
        return len(self) >= self._total_max // 2

    def has_room_for(self, host: str) -> bool:
        """Return True if an address has not reached its limit."""
        return self._counts[host] < self._per_address_max

    def add(self, connection: _Connection, host: str) -> _Connection | None:
        """Add a connection; return the one that it evicts, if all places are taken."""
        evicted = None
        if len(self) >= self._total_max:
            evicted = max(self._hosts, key=lambda one: self._counts[self._hosts[one]])
            self.remove(evicted)
        self._hosts[connection] = host
        self._counts[host] += 1
        return evicted

    def remove(self, connection: _Connection) -> None:
        """Remove a connection, if it is here."""
        host = self._hosts.pop(connection, None)
        if host is None:
            return
        self._counts[host] -= 1
        if not self._counts[host]:
            del self._counts[host]


class AddressIntervals:
    """Decides which connections to admit while there are too many.

    A machine that connects once is admitted however many connections others make. An
    IPv6 network of 64 bits counts as one address: a machine can have them all.
    """

    def __init__(self) -> None:
        self._admitted_s: dict[str | int, float] = {}  #: the latest address is last

    def admit(self, host: str, now_s: float) -> bool:
        """Return True, and remember it, if an address was not admitted for a while."""
        key = _network_of(host)
        last_s = self._admitted_s.pop(key, -math.inf)
        is_due = now_s - last_s >= INTERVAL_S
        self._admitted_s[key] = now_s if is_due else last_s
        if len(self._admitted_s) > ADDRESSES_MAX:
            del self._admitted_s[next(iter(self._admitted_s))]
        return is_due


def _network_of(host: str) -> str | int:
    address = ip_address(host)
    if not isinstance(address, IPv6Address) or address.ipv4_mapped is not None:
        return host
    return int(address) >> _IPV6_HOST_BITS


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
