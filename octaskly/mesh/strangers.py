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

import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from octaskly.config.bounds import LimitOptions

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
