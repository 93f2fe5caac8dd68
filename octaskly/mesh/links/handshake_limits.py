"""Limits on concurrent dials and handshakes, and a backoff for protocol violations.

Local handshakes have a bound of their own: a hundred agents may start on this machine
at once, and they must not displace remote peers.

A peer that broke the protocol is refused for ten seconds: its bytes may be costly to
decode, and a broken or hostile peer may dial again at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from octaskly.config.settings import LimitOptions
from octaskly.core.model.ids import NodeId
from octaskly.ports.store import Clock
from octaskly.system.pending_handshakes import HandshakeLimiter, MemberAddresses

DIALS_AT_ONCE_MAX: Final = 16
DIALS_TO_HOST_MAX: Final = 2


class DialLimiter:
    """Bounds concurrent dials, in total and per host; waiters are served in order.

    Dials to members are counted apart from those to other hosts. A stranger can
    announce many hosts that accept a connection and then send nothing.

    Args:
        members: Addresses of members.
    """

    def __init__(self, members: MemberAddresses) -> None:
        self._members = members
        self._to_members = asyncio.Semaphore(DIALS_AT_ONCE_MAX)
        self._to_others = asyncio.Semaphore(DIALS_AT_ONCE_MAX)
        self._hosts = WeakValueDictionary[str, asyncio.Semaphore]()

    @asynccontextmanager
    async def limit_dial(self, host: str) -> AsyncIterator[None]:
        """Wait until a dial to a host is allowed, and count it while the block runs."""
        is_here = host == "::1" or host.startswith("127.")
        most = DIALS_AT_ONCE_MAX if is_here else DIALS_TO_HOST_MAX
        host_limit = self._hosts.get(host) or asyncio.Semaphore(most)
        self._hosts[host] = host_limit
        is_member = host in self._members
        async with host_limit, self._to_members if is_member else self._to_others:
            yield


LOCAL_HANDSHAKES_MAX: Final = 96
LOCAL_TIMEOUT_FACTOR: Final = 2
"""Multiplies the timeout of local handshakes: many agents may share few cores."""

REFUSED_S: Final = 10.0  #: how long a peer that broke the protocol is refused
REFUSED_MAX: Final = 1024  #: a hostile member can have any number of ids
VIOLATION_REASON: Final = "refused for a while: this peer broke the protocol"


def build_handshake_limiter(
    bounds: LimitOptions, members: MemberAddresses
) -> HandshakeLimiter:
    """Return the limiter of a peer port, or of a port like it."""
    return HandshakeLimiter(
        total_max=bounds.handshakes_max,
        per_address_max=bounds.handshakes_per_address,
        local_max=LOCAL_HANDSHAKES_MAX,
        members=members,
    )


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
