"""The bound on connections that have shown no certificate of the mesh yet.

Whoever opens many and says nothing must not get many: each costs a descriptor and the
memory of a TLS handshake. This machine is bounded apart from all others: a hundred
agents may start here at once, and what runs here takes no place of a peer elsewhere.
A handshake takes some 300 kB until it is over.

Who has many addresses, as IPv6 gives them, could take all places. So nobody is refused
for that all are taken: who has waited longest makes room, of the address that has most.
A peer needs a moment, and whoever says nothing waits.
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


class Dials:
    """Turns to dial, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(DIALS_AT_ONCE_MAX)
        self._hosts = WeakValueDictionary[str, asyncio.Semaphore]()

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn to dial a host, and have it for the length of the block."""
        is_here = host == "::1" or host.startswith("127.")
        most = DIALS_AT_ONCE_MAX if is_here else DIALS_TO_HOST_MAX
        turns = self._hosts.get(host) or asyncio.Semaphore(most)
        self._hosts[host] = turns
        async with turns, self._all:
            yield


FIRST_S: Final = 1.0
LONGEST_S: Final = 30.0
FORGIVEN_S: Final = 120.0  #: without an offence, from when it was let in again
OFFENDERS_MAX: Final = 1024  #: a member can have any number of ids

GRUDGE: Final = "kept out for a while, after what broke the protocol"


class Grudges:
    """Who broke the protocol, and until when it is kept out."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._out: dict[NodeId, tuple[float, float]] = {}  #: for how long, until when

    def bear(self, peer: NodeId) -> None:
        """Keep a peer out for longer than the last time."""
        now_s = self._clock.now().mono_s
        last_s, until_s = self._out.pop(peer, (0.0, now_s))
        if now_s > until_s + FORGIVEN_S:
            last_s = 0.0
        wait_s = min(max(FIRST_S, 2 * last_s), LONGEST_S)
        if len(self._out) >= OFFENDERS_MAX:
            del self._out[next(iter(self._out))]  # The one that offended first.
        self._out[peer] = (wait_s, now_s + wait_s)

    def is_out(self, peer: NodeId) -> bool:
        """Return whether a peer is kept out now."""
        return peer in self._out and self._clock.now().mono_s < self._out[peer][1]


HANDSHAKES_HERE_MAX: Final = 96
HERE_TIMES: Final = 2
"""Agents that start here, on few cores, may take so many times longer than others."""

_HERE: Final = ""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """What one connection takes."""

    host: str  #: whose it is; empty: this machine's
    connection: socket.socket


class Strangers:
    """Handshakes under way, by the address from which they come."""

    def __init__(self, bounds: LimitOptions | None = None) -> None:
        self._bounds = bounds or LimitOptions()
        self._taken: dict[Place, None] = {}  #: who came first is first
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._taken)

    def enter(self, connection: socket.socket, host: str) -> Place | None:
        """Return the place that a new connection takes; None: hang up."""
        is_near = host == connection.getsockname()[0]
        place = Place(_HERE if is_near else host, connection)
        most = self._bounds.handshakes_per_address
        if self._counts[place.host] >= (HANDSHAKES_HERE_MAX if is_near else most):
            return None
        if not is_near and self._elsewhere >= self._bounds.handshakes_max:
            self._make_room()
        self._taken[place] = None
        self._counts[place.host] += 1
        return place

    def leave(self, place: Place) -> None:
        """Give a place back, unless another has it: a member was found, or nobody."""
        if place not in self._taken:
            return
        del self._taken[place]
        self._counts[place.host] -= 1
        if not self._counts[place.host]:
            del self._counts[place.host]

    def patience_s(self, place: Place) -> float:
        """Return how long who has taken a place may take to show a certificate."""
        times = HERE_TIMES if place.host == _HERE else 1
        return float(times * self._bounds.handshake_s)

    @property
    def _elsewhere(self) -> int:
        return len(self._taken) - self._counts[_HERE]

    def _make_room(self) -> None:
        """End what somebody elsewhere has begun, as if the other side had hung up."""
        counts = self._counts
        others = [place for place in self._taken if place.host != _HERE]
        longest = max(others, key=lambda place: counts[place.host])
        self.leave(longest)
        with suppress(OSError):
            longest.connection.shutdown(socket.SHUT_RDWR)
