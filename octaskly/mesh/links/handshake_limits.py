"""Limits on concurrent dials and handshakes, and a backoff for protocol violations.

A pending handshake costs a file descriptor and about 300 kB, so the number per address
is bounded. Local connections have a bound of their own: a hundred agents may start on
this machine at once, and they must not displace remote peers.

A host with many IPv6 addresses could fill the total bound. A new connection is
therefore never refused because of it. Instead, the oldest handshake of the address with
the most handshakes is closed. A real peer finishes quickly; a silent one waits longest.
Once half of the places are taken, an address is admitted once every two seconds. So a
flood costs little, and a peer has the time to finish. Addresses from which a member has
connected before are exempt.

A peer that broke the protocol is refused for ten seconds: its bytes may be costly to
decode, and a broken or hostile peer may dial again at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from octaskly.config.settings import LimitOptions
from octaskly.core.model.ids import NodeId
from octaskly.ports import Clock
from octaskly.system.address_intervals import AddressIntervals

DIALS_AT_ONCE_MAX: Final = 16
DIALS_TO_HOST_MAX: Final = 2


class DialLimiter:
    """Bounds concurrent dials, in total and per host; waiters are served in order."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(DIALS_AT_ONCE_MAX)
        self._hosts = WeakValueDictionary[str, asyncio.Semaphore]()

    @asynccontextmanager
    async def limit_dial(self, host: str) -> AsyncIterator[None]:
        """Wait until a dial to a host is allowed, and count it while the block runs."""
        is_here = host == "::1" or host.startswith("127.")
        most = DIALS_AT_ONCE_MAX if is_here else DIALS_TO_HOST_MAX
        host_limit = self._hosts.get(host) or asyncio.Semaphore(most)
        self._hosts[host] = host_limit
        async with host_limit, self._all:
            yield


LOCAL_HANDSHAKES_MAX: Final = 96
LOCAL_TIMEOUT_FACTOR: Final = 2
"""Multiplies the timeout of local handshakes: many agents may share few cores."""

REFUSED_S: Final = 10.0  #: how long a peer that broke the protocol is refused
REFUSED_MAX: Final = 1024  #: a hostile member can have any number of ids
VIOLATION_REASON: Final = "refused for a while: this peer broke the protocol"

MEMBER_HOSTS_MAX: Final = 1024

_LOCAL_HOST: Final = ""


@dataclass(frozen=True, slots=True, eq=False)
class PendingHandshake:
    """An accepted connection whose TLS handshake has not finished."""

    host: str  #: address of the other end; empty: this machine
    connection: socket.socket


class HandshakeLimiter:
    """Bounds pending handshakes, in total and per remote address."""

    def __init__(self, bounds: LimitOptions | None = None) -> None:
        self._bounds = bounds or LimitOptions()
        self._intervals = AddressIntervals()
        self._member_hosts: dict[str, None] = {}  #: the latest is last
        self._handshakes: dict[PendingHandshake, None] = {}  #: oldest first
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._handshakes)

    def admit_connection(
        self, connection: socket.socket, host: str
    ) -> PendingHandshake | None:
        """Count a new connection; return None if the caller must close it."""
        is_local = host == connection.getsockname()[0]
        handshake = PendingHandshake(_LOCAL_HOST if is_local else host, connection)
        most = self._bounds.handshakes_per_address
        if self._counts[handshake.host] >= (LOCAL_HANDSHAKES_MAX if is_local else most):
            return None
        if not is_local and not self._has_room_for(host):
            return None
        if not is_local and self._remote_count >= self._bounds.handshakes_max:
            self._evict_handshake()
        self._handshakes[handshake] = None
        self._counts[handshake.host] += 1
        return handshake

    def record_member(self, host: str) -> None:
        """Remember the address of a connected member."""
        self._member_hosts.pop(host, None)
        self._member_hosts[host] = None
        if len(self._member_hosts) > MEMBER_HOSTS_MAX:
            del self._member_hosts[next(iter(self._member_hosts))]

    def release_handshake(self, handshake: PendingHandshake) -> None:
        """Stop counting a handshake; no effect if it was evicted."""
        if handshake not in self._handshakes:
            return
        del self._handshakes[handshake]
        self._counts[handshake.host] -= 1
        if not self._counts[handshake.host]:
            del self._counts[handshake.host]

    def handshake_timeout_s(self, handshake: PendingHandshake) -> float:
        """Return the seconds in which the peer must present its certificate."""
        times = LOCAL_TIMEOUT_FACTOR if handshake.host == _LOCAL_HOST else 1
        return float(times * self._bounds.handshake_s)

    @property
    def _remote_count(self) -> int:
        return len(self._handshakes) - self._counts[_LOCAL_HOST]

    def _has_room_for(self, host: str) -> bool:
        """Return True if a remote address may start a handshake now."""
        if self._remote_count < self._bounds.handshakes_max // 2:
            return True
        is_due = self._intervals.admit(host, asyncio.get_running_loop().time())
        return is_due or host in self._member_hosts

    def _evict_handshake(self) -> None:
        """Shut down the oldest handshake of the remote address that has the most.

        Addresses of members come last.
        """
        counts, members = self._counts, self._member_hosts
        remote = [each for each in self._handshakes if each.host != _LOCAL_HOST]
        oldest = max(
            remote, key=lambda each: (each.host not in members, counts[each.host])
        )
        self.release_handshake(oldest)
        with suppress(OSError):
            oldest.connection.shutdown(socket.SHUT_RDWR)


class ViolationBackoff:
    """Peers that broke the protocol, each refused for `REFUSED_S`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s: dict[NodeId, float] = {}  #: the latest violation is last

    def add(self, peer: NodeId) -> None:
        """Refuse a peer for `REFUSED_S` from now on."""
        self._until_s.pop(peer, None)
        self._until_s[peer] = self._clock.now().mono_s + REFUSED_S
        if len(self._until_s) > REFUSED_MAX:
            del self._until_s[next(iter(self._until_s))]

    def is_refused(self, peer: NodeId) -> bool:
        """Return True if a peer is refused now."""
        return self._clock.now().mono_s < self._until_s.get(peer, 0.0)
