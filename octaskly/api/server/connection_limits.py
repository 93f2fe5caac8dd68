"""Limits on the connections of one API.

Clients with a token, nodes, users of the local socket and connections without
authentication have separate pools, so none can take the connections of another. A new
connection belongs to the last pool until it shows a valid token. Within a pool, each
owner (a subject, a node, a local user or a LAN address) has a limit of its own. A full
pool closes the oldest connection without a complete request of the owner that has the
most.
"""

from __future__ import annotations

import contextlib
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum, auto
from math import inf
from typing import Final, Protocol

from octaskly.api.problems import (
    Problem,
    too_many_connections,
    too_many_connections_of,
)
from octaskly.config.settings import LimitOptions
from octaskly.ports.store import Clock

CONNECTIONS_MIN: Final = 4
EXCESS_ANSWERED_MAX: Final = 16
"""Connections above a limit that get an error response; others are closed at once."""

IDLE_S_MIN: Final = 0.5
"""A connection makes room for a newer one of its owner only after so long without a
request. Otherwise, an owner that connects without end would cost a transport each time.
"""

WAITING_MAX: Final = 512
"""Connections that wait for a place at one plain listener; they cost a descriptor."""

PLAIN_LISTENERS: Final = 3  #: two loopback ports and the UNIX socket

DESCRIPTORS_RESERVED: Final = 48
"""Descriptors for files, launchers and peers; connections get the rest."""


class ConnectionKind(Enum):
    """The pool of a connection."""

    CLIENT = auto()  #: it showed a valid token
    NODE = auto()  #: it showed the certificate of a member
    LOCAL = auto()  #: it came over the local socket
    UNAUTHENTICATED = auto()


POOL_SHARES: Final = {
    ConnectionKind.CLIENT: 1.0,
    ConnectionKind.NODE: 0.375,
    ConnectionKind.LOCAL: 0.25,
    ConnectionKind.UNAUTHENTICATED: 0.25,
}
"""Size of each pool as a share of `connections_max`."""


class PooledConnection(Protocol):
    """A connection that a full pool may close."""

    def abort(self) -> None:
        """Close the connection at once."""


class _OwnerConnections:
    """The connections of one owner in one pool, oldest first."""

    __slots__ = ("receiving", "serving")

    def __init__(self) -> None:
        self.receiving: dict[PooledConnection, float] = {}
        """Those without a complete request, and since when."""
        self.serving: dict[PooledConnection, None] = {}

    @property
    def count(self) -> int:
        """Number of connections."""
        return len(self.receiving) + len(self.serving)


class ConnectionPool:
    """The connections of one kind.

    Args:
        connections_max: Returns the size of the pool.
        per_owner_max: Number of connections of one owner.
        aborts_serving: Also closes connections with a complete request. Otherwise,
            clients that do not read their responses could keep the pool full.
        clock: Tells how long a connection is idle.
    """

    def __init__(
        self,
        connections_max: Callable[[], int],
        per_owner_max: int,
        *,
        aborts_serving: bool,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._connections_max = connections_max
        self._per_owner_max = per_owner_max
        self._aborts_serving = aborts_serving
        self._by_owner: dict[str, _OwnerConnections] = {}
        self._owners: dict[PooledConnection, str] = {}

    def has_room_for_owner(self, owner: str, forwarded_count: int = 0) -> bool:
        """Make room for one more connection of an owner; return False if none is free.

        Args:
            owner: The owner.
            forwarded_count: Number of its requests that other nodes forwarded.
        """
        own = self._by_owner.get(owner)
        count = forwarded_count + (0 if own is None else own.count)
        if count < self._per_owner_max:
            return True
        if own is None or not own.receiving or self.is_flooded_by(owner):
            return False
        self._evict(next(iter(own.receiving)))
        return True

    def is_flooded_by(self, owner: str) -> bool:
        """Return True if an owner reached its limit by connections that are all new."""
        own = self._by_owner.get(owner)
        if own is None or own.count < self._per_owner_max or not own.receiving:
            return False
        oldest_s = next(iter(own.receiving.values()))
        return oldest_s + IDLE_S_MIN > self._clock.now().mono_s

    def has_room(self) -> bool:
        """Make room for one more connection; return False if none may be closed."""
        if len(self._owners) < self._connections_max():
            return True
        victims = (
            each
            for each in self._by_owner.values()
            if self._aborts_serving or each.receiving
        )
        # With equal counts, close no connection with a complete request.
        largest = max(victims, key=lambda o: (o.count, bool(o.receiving)), default=None)
        if largest is None:
            return False
        self._evict(next(iter(largest.receiving or largest.serving)))
        return True

    def make_room(self, owner: str) -> Problem | None:
        """Make room for one more connection of an owner; return why not, or None."""
        if not self.has_room_for_owner(owner):
            return self.owner_problem(owner)
        return None if self.has_room() else too_many_connections()

    def add(self, connection: PooledConnection, owner: str) -> None:
        """Add a connection that has not sent a complete request."""
        self._owners[connection] = owner
        own = self._by_owner.setdefault(owner, _OwnerConnections())
        own.receiving[connection] = self._clock.now().mono_s

    def remove(self, connection: PooledConnection) -> None:
        """Remove a connection, if it was not evicted before."""
        owner = self._owners.pop(connection, None)
        if owner is None:
            return
        own = self._by_owner[owner]
        own.receiving.pop(connection, None)
        own.serving.pop(connection, None)
        if not own.count:
            del self._by_owner[owner]

    def set_serving(self, connection: PooledConnection, *, is_serving: bool) -> None:
        """Record that a request is complete, or that its response is."""
        if connection not in self._owners:
            return
        own = self._by_owner[self._owners[connection]]
        if connection in own.serving:
            del own.serving[connection]
        else:
            del own.receiving[connection]
        if is_serving:
            own.serving[connection] = None
        else:
            own.receiving[connection] = self._clock.now().mono_s

    def owner_of(self, connection: PooledConnection) -> str | None:
        """Return the owner of a connection in this pool; None if it is not here."""
        return self._owners.get(connection)

    def owner_problem(self, owner: str) -> Problem:
        """Return the 429 response for an owner that has too many connections."""
        return too_many_connections_of(owner, self._per_owner_max)

    def _evict(self, connection: PooledConnection) -> None:
        self.remove(connection)
        connection.abort()


class ConnectionLimits:
    """The pools of all connections of one API."""

    def __init__(self, limits: LimitOptions, clock: Clock) -> None:
        self._limits, self._clock = limits, clock
        self._forwarded_counts: Counter[str] = Counter()
        self._pools = {kind: self._build_pool(kind) for kind in ConnectionKind}
        self._homes: dict[PooledConnection, ConnectionPool] = {}

    def _build_pool(self, kind: ConnectionKind) -> ConnectionPool:
        limits = self._limits
        per_owner_max = {
            ConnectionKind.UNAUTHENTICATED: limits.connections_per_address,
            ConnectionKind.NODE: limits.connections_max,  # Only the pool is limited.
        }.get(kind, limits.connections_per_subject)
        return ConnectionPool(
            lambda: self._pool_size(kind),
            per_owner_max,
            aborts_serving=kind is ConnectionKind.UNAUTHENTICATED,
            clock=self._clock,
        )

    @property
    def count(self) -> int:
        """Number of connections in all pools."""
        return len(self._homes)

    def is_excess(self, kind: ConnectionKind, owner: str, open_count: int) -> bool:
        """Return True if a connection without a place gets no error response.

        Args:
            kind: The pool that has no place for it.
            owner: Its owner.
            open_count: All open connections, also those that get such a response.
        """
        is_flooded = self._pools[kind].is_flooded_by(owner)
        return is_flooded or open_count - self.count >= EXCESS_ANSWERED_MAX

    def has_place(self, kind: ConnectionKind, owner: str) -> bool:
        """Make room for a connection in its pool; return False if none is free."""
        pool = self._pools[kind]
        return pool.has_room_for_owner(owner) and pool.has_room()

    def add_connection(
        self, connection: PooledConnection, kind: ConnectionKind, owner: str
    ) -> Problem | None:
        """Add a new connection to its pool; return why it is refused, or None."""
        pool = self._pools[kind]
        problem = pool.make_room(owner)
        if problem is None:
            pool.add(connection, owner)
            self._homes[connection] = pool
        return problem

    def remove_connection(self, connection: PooledConnection) -> None:
        """Remove a connection that is lost."""
        pool = self._homes.pop(connection, None)
        if pool is not None:
            pool.remove(connection)

    def set_serving(self, connection: PooledConnection, *, is_serving: bool) -> None:
        """Record that a request is complete, or that its response is."""
        pool = self._homes.get(connection)
        if pool is not None:
            pool.set_serving(connection, is_serving=is_serving)

    def authenticate(self, connection: PooledConnection, subject: str) -> None:
        """Move a connection to the clients, because it showed a valid token.

        If the clients have no room for it, it keeps its place until it is closed. So
        an owner that connects without end is soon refused before its tokens are read.

        Raises:
            Problem: 429, the subject has too many; 503, all clients have.
        """
        home, pool = self._homes.get(connection), self._pools[ConnectionKind.CLIENT]
        is_moved = home is pool and pool.owner_of(connection) == subject
        if home is None or home is self._pools[ConnectionKind.NODE] or is_moved:
            return
        problem = pool.make_room(subject)
        if problem is not None:
            raise problem
        home.remove(connection)
        pool.add(connection, subject)
        self._homes[connection] = pool

    @contextlib.contextmanager
    def count_forwarded(self, subject: str) -> Iterator[None]:
        """Count a request that another node forwarded as a connection of its subject.

        Raises:
            Problem: 429, the subject has too many.
        """
        pool = self._pools[ConnectionKind.CLIENT]
        if not pool.has_room_for_owner(subject, self._forwarded_counts[subject]):
            raise pool.owner_problem(subject)
        self._forwarded_counts[subject] += 1
        try:
            yield
        finally:
            self._forwarded_counts[subject] -= 1
            if not self._forwarded_counts[subject]:
                del self._forwarded_counts[subject]

    def waiting_max(self) -> int:
        """Return how many connections may wait for a place at one plain listener.

        They get the descriptors that the pools leave.
        """
        pools = self._limits.connections_max * sum(POOL_SHARES.values())
        left = _available_descriptors() - pools
        return max(1, int(min(WAITING_MAX, left / PLAIN_LISTENERS)))

    def _pool_size(self, kind: ConnectionKind) -> int:
        """Return the share of a pool, smaller if there are too few descriptors."""
        available = _available_descriptors() / sum(POOL_SHARES.values())
        most = max(CONNECTIONS_MIN, min(self._limits.connections_max, available))
        return max(1, int(most * POOL_SHARES[kind]))


def _available_descriptors() -> float:
    """Return the number of descriptors for connections; infinity without a limit."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return inf
    return descriptors - DESCRIPTORS_RESERVED
