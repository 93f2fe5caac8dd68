"""How many connections a node takes: in all, and from one address of the LAN."""

from __future__ import annotations

import resource
from collections import Counter
from typing import Final

from octaskly.config.bounds import LimitOptions

CONNECTIONS_MIN: Final = 4
SURPLUS_MAX: Final = 16
"""Connections beyond the bound that are told so; others are cut."""

DESCRIPTORS_KEPT: Final = 48
"""For files, launchers and peers; connections get the rest."""

STRANGERS_SHARE: Final = 0.75
"""Of the connections, for strangers of the LAN together; this machine and nodes of the
mesh have the rest, however many addresses a stranger has."""

SOCKET_RESERVE: Final = 64  #: more connections that only the UNIX socket may have


class Crowd:
    """Judges connections, and knows those from each address of strangers."""

    def __init__(self, bounds: LimitOptions) -> None:
        self._bounds = bounds
        self._strangers: Counter[str] = Counter()

    def surplus(self, count: int, *, is_socket: bool) -> int:
        """Return how many connections are too many, with one more than `count`."""
        reserve = SOCKET_RESERVE if is_socket else 0
        return count + 1 - self._connections_max() - reserve

    def enter(self, host: str) -> bool:
        """Note a stranger's connection; False: it is one more than may be had.

        Its address has its share already, or all strangers together have theirs.
        """
        self._strangers[host] += 1
        most = self._connections_max() * STRANGERS_SHARE
        is_crowd = self._strangers[host] > self._bounds.connections_per_address
        return not is_crowd and self._strangers.total() <= most

    def leave(self, host: str) -> None:
        """Forget a connection that entered."""
        self._strangers[host] -= 1
        if not self._strangers[host]:
            del self._strangers[host]

    def _connections_max(self) -> int:
        """Return how many this process has descriptors for, within bounds."""
        most = self._bounds.connections_max
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors == resource.RLIM_INFINITY:
            return most
        return max(CONNECTIONS_MIN, min(most, descriptors - DESCRIPTORS_KEPT))
