"""The bound on connections that have shown no certificate of the mesh yet.

Whoever opens many and says nothing must not get many: each costs a descriptor and the
memory of a TLS handshake. This machine is bounded apart from all others: a hundred
agents may start here at once, and what runs here takes no place of a peer elsewhere.
A handshake takes some 300 kB until it is over.
"""

from __future__ import annotations

import socket
from collections import Counter
from typing import Final

from octaskly.config.bounds import LimitOptions

HANDSHAKES_HERE_MAX: Final = 96
HERE_TIMES: Final = 2
"""Agents that start here, on few cores, may take so many times longer than others."""

_HERE: Final = ""


class Strangers:
    """Handshakes under way, by the address from which they come."""

    def __init__(self, bounds: LimitOptions | None = None) -> None:
        self._bounds = bounds or LimitOptions()
        self._welcoming: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._welcoming.total()

    def enter(self, connection: socket.socket, host: str) -> str | None:
        """Return the place that a new connection takes; None: hang up."""
        is_near = host == connection.getsockname()[0]
        place = _HERE if is_near else host
        if not self._has_room(place):
            return None
        self._welcoming[place] += 1
        return place

    def leave(self, place: str) -> None:
        """Give a place back: a member was found, or nobody."""
        self._welcoming[place] -= 1
        if not self._welcoming[place]:
            del self._welcoming[place]

    def patience_s(self, place: str) -> float:
        """Return how long who has taken a place may take to show a certificate."""
        times = HERE_TIMES if place == _HERE else 1
        return float(times * self._bounds.handshake_s)

    def _has_room(self, place: str) -> bool:
        welcoming = self._welcoming
        if place == _HERE:
            return welcoming[_HERE] < HANDSHAKES_HERE_MAX
        elsewhere = welcoming.total() - welcoming[_HERE]
        is_crowd = welcoming[place] >= self._bounds.handshakes_per_address
        return elsewhere < self._bounds.handshakes_max and not is_crowd
