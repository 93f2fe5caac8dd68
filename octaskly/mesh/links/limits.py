"""Bounds on handshakes under way, and on the return of peers that broke the protocol.

Whoever opens many and says nothing must not get many: each costs a descriptor and the
memory of a TLS handshake. This machine is bounded apart from all others: a hundred
agents may start here at once, and what runs here takes no place of a peer elsewhere.
A handshake takes some 300 kB until it is over.

Who has many addresses, as IPv6 gives them, could take all places. So nobody is refused
for that all are taken: who has waited longest makes room, of the address that has most.
A peer needs a moment, and whoever says nothing waits.

A peer that broke the protocol is refused for ten seconds: its bytes may be costly to
read, and a broken or hostile peer may dial again at once.
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

from octaskly.config.limits import LimitOptions
from octaskly.core.model.ids import NodeId
from octaskly.ports import Clock

DIALS_AT_ONCE_MAX: Final = 16
DIALS_TO_HOST_MAX: Final = 2


class DialLimiter:
    """Turns to dial, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(DIALS_AT_ONCE_MAX)
        self._hosts = WeakValueDictionary[str, asyncio.Semaphore]()

    @asynccontextmanager
    async def limit_dial(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn to dial a host, and have it for the length of the block."""
        is_here = host == "::1" or host.startswith("127.")
        most = DIALS_AT_ONCE_MAX if is_here else DIALS_TO_HOST_MAX
        turns = self._hosts.get(host) or asyncio.Semaphore(most)
        self._hosts[host] = turns
        async with turns, self._all:
            yield


LOCAL_HANDSHAKES_MAX: Final = 96
LOCAL_TIMEOUT_FACTOR: Final = 2
"""Agents that start here, on few cores, may take so many times longer than others."""

REFUSED_S: Final = 10.0  #: after a peer broke the protocol
REFUSED_MAX: Final = 1024  #: a hostile member can have any number of ids
VIOLATION_REASON: Final = "refused for a while: this peer broke the protocol"

_LOCAL_HOST: Final = ""


@dataclass(frozen=True, slots=True, eq=False)
class PendingHandshake:
    """What one connection takes."""

    host: str  #: whose it is; empty: this machine's
    connection: socket.socket


class HandshakeLimiter:
    """Handshakes under way, by the address from which they come."""

    def __init__(self, bounds: LimitOptions | None = None) -> None:
        self._bounds = bounds or LimitOptions()
        self._handshakes: dict[PendingHandshake, None] = {}  #: who came first is first
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._handshakes)

    def admit_connection(
        self, connection: socket.socket, host: str
    ) -> PendingHandshake | None:
        """Return the place that a new connection takes; None: hang up."""
        is_near = host == connection.getsockname()[0]
        place = PendingHandshake(_LOCAL_HOST if is_near else host, connection)
        most = self._bounds.handshakes_per_address
        if self._counts[place.host] >= (LOCAL_HANDSHAKES_MAX if is_near else most):
            return None
        if not is_near and self._remote_count >= self._bounds.handshakes_max:
            self._evict_handshake()
        self._handshakes[place] = None
        self._counts[place.host] += 1
        return place

    def release_handshake(self, handshake: PendingHandshake) -> None:
        """Give a place back, unless another has it: a member was found, or nobody."""
        if handshake not in self._handshakes:
            return
        del self._handshakes[handshake]
        self._counts[handshake.host] -= 1
        if not self._counts[handshake.host]:
            del self._counts[handshake.host]

    def handshake_timeout_s(self, handshake: PendingHandshake) -> float:
        """Return how long who has taken a place may take to show a certificate."""
        times = LOCAL_TIMEOUT_FACTOR if handshake.host == _LOCAL_HOST else 1
        return float(times * self._bounds.handshake_s)

    @property
    def _remote_count(self) -> int:
        return len(self._handshakes) - self._counts[_LOCAL_HOST]

    def _evict_handshake(self) -> None:
        """End what somebody elsewhere has begun, as if the other side had hung up."""
        counts = self._counts
        others = [place for place in self._handshakes if place.host != _LOCAL_HOST]
        longest = max(others, key=lambda place: counts[place.host])
        self.release_handshake(longest)
        with suppress(OSError):
            longest.connection.shutdown(socket.SHUT_RDWR)


class ViolationBackoff:
    """Peers that broke the protocol, each refused for `REFUSED_S`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s: dict[NodeId, float] = {}  #: the latest violation is last

    def add(self, peer: NodeId) -> None:
        """Refuse a peer from now on."""
        self._until_s.pop(peer, None)
        self._until_s[peer] = self._clock.now().mono_s + REFUSED_S
        if len(self._until_s) > REFUSED_MAX:
            del self._until_s[next(iter(self._until_s))]

    def is_refused(self, peer: NodeId) -> bool:
        """Return True if a peer is refused now."""
        return self._clock.now().mono_s < self._until_s.get(peer, 0.0)
